"""The opponent: AMES in plain PyTorch, in the structure of the release. Imports torch and NumPy alone.

Every pair is one sequence [matching token, query, database] of 1 + Q + T tokens; each block is a
`torch.nn.MultiheadAttention` over the whole sequence, and boolean masks (True = hidden) take away what a row must not see.
"""

from __future__ import annotations

import math

import torch
from torch import nn


class Binarizer(nn.Module):
    """x·W, then erf(x / √(2σ)) in training and the sign otherwise."""

    def __init__(self, width: int, bits: int, sigma: float) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.empty(width, bits))
        self.sigma = sigma

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Descriptors [B, N, D] to (soft) bits [B, N, bits]."""
        x = x @ self.W
        if self.training:
            return torch.erf(x / math.sqrt(2 * self.sigma))
        return torch.where(x > 0, 1.0, -1.0).to(x.dtype)


class Layer(nn.Module):
    """Self block, cross block, feed-forward; post-norm, ReLU."""

    def __init__(self, width: int, heads: int, feed_forward: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.cross_attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(width, feed_forward), nn.Linear(feed_forward, width)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: torch.Tensor, own: torch.Tensor, other: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        """Tokens [B, S, d]; own, other: bool [S, S] hidden in the self and cross block; padding: bool [B, S]."""
        for attention, norm, hidden in ((self.self_attn, self.norm1, own), (self.cross_attn, self.norm2, other)):
            attended = attention(x, x, x, attn_mask=hidden, key_padding_mask=padding)[0]
            x = norm(x + attended)
        return self.norm3(x + self.linear2(torch.relu(self.linear1(x))))


class Decoder(nn.Module):
    """The layers, one after the other."""

    def __init__(self, layers: int, width: int, heads: int, feed_forward: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(width, heads, feed_forward) for _ in range(layers))

    def forward(self, x: torch.Tensor, *masks: torch.Tensor) -> torch.Tensor:
        """Tokens [B, S, d] through all layers."""
        for layer in self.layers:
            x = layer(x, *masks)
        return x


class ReleaseAMES(nn.Module):
    """The model; parameters are named as in the release's checkpoints, so `torch_weights.to_torch` fills them.

    `config` holds the fields of `AMESConfig` (post-norm with ReLU only).
    """

    def __init__(self, config: dict) -> None:
        super().__init__()
        width, bits = config["model_width"], config["bits"]
        self.binary = bits is not None
        self.round_stored = config["round_stored"] and not self.binary
        binarizer = [Binarizer(config["descriptor_width"], bits, config["sigma"])] if self.binary else []
        remap = nn.Linear(bits or config["descriptor_width"], width)
        self.remap_local = nn.Sequential(*binarizer, remap, nn.LayerNorm(width))
        self.mtc_token = nn.Parameter(torch.empty(width))
        self.decoder = Decoder(config["layers"], width, config["heads"], config["feed_forward"])
        self.classifier = nn.Linear(width, 1)

    def forward(self, query: torch.Tensor, database: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """query [B, Q, D], database [B, T, D] to logits [B] and final tokens [B, 1 + Q + T, d]."""
        sides = [self.remap_local(nn.functional.normalize(x, dim=-1)) for x in (query, database)]
        if self.round_stored and not self.training:
            sides[1] = sides[1].half().to(sides[1].dtype)
        matching = self.mtc_token.to(sides[0].dtype).expand(len(query), 1, -1)
        x = torch.cat([matching, *sides], dim=1)
        x = self.decoder(x, *hidden(query.shape[1], database.shape[1], x.device), padding_of(x))
        return self.classifier(x[:, 0]).squeeze(-1), x


def hidden(queries: int, databases: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Boolean masks [S, S] of the self and the cross block, True where a row (first axis) may not look."""
    group = torch.tensor([0] + [1] * queries + [2] * databases, device=device)
    rows, columns = group[:, None], group[None, :]
    free = (rows == 0) | (columns == 0)
    return ~(free | (rows == columns)), ~(free | (rows != columns))


def padding_of(x: torch.Tensor) -> torch.Tensor:
    """The mask of padding [B, S], which the release always passes; here nothing is padding."""
    return torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
