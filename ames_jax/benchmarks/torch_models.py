"""The opponents' networks in plain PyTorch: AMES in the structure of the release, DINOv2's ViT as timm builds it.

Imports torch alone. Parameters are named as in the authors' checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
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
            x = norm(x + attention(x, x, x, attn_mask=hidden, key_padding_mask=padding)[0])
        return self.norm3(x + self.linear2(torch.relu(self.linear1(x))))


class ReleaseAMES(nn.Module):
    """The model; `config` holds the fields of `AMESConfig` (post-norm with ReLU only).

    Every pair is one sequence [matching token, query, database] of 1 + Q + T tokens. Each block is a MultiheadAttention
    over the whole sequence, and boolean masks (True = hidden) take away what a row must not see.
    """

    def __init__(self, config: dict) -> None:
        super().__init__()
        width, bits = config["model_width"], config["bits"]
        self.round_stored = config["round_stored"] and bits is None
        binarizer = [] if bits is None else [Binarizer(config["descriptor_width"], bits, config["sigma"])]
        remap = nn.Linear(bits or config["descriptor_width"], width)
        self.remap_local = nn.Sequential(*binarizer, remap, nn.LayerNorm(width))
        self.mtc_token = nn.Parameter(torch.empty(width))
        layers = (Layer(width, config["heads"], config["feed_forward"]) for _ in range(config["layers"]))
        self.decoder = nn.ModuleDict({"layers": nn.ModuleList(layers)})
        self.classifier = nn.Linear(width, 1)

    def forward(self, query: torch.Tensor, database: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """query [B, Q, D], database [B, T, D] to logits [B] and final tokens [B, 1 + Q + T, d]."""
        sides = [self.remap_local(F.normalize(x, dim=-1)) for x in (query, database)]
        if self.round_stored and not self.training:
            sides[1] = sides[1].half().to(sides[1].dtype)
        matching = self.mtc_token.to(sides[0].dtype).expand(len(query), 1, -1)
        x = torch.cat([matching, *sides], dim=1)
        group = torch.tensor([0] + [1] * query.shape[1] + [2] * database.shape[1], device=x.device)
        rows, columns = group[:, None], group[None, :]
        free = (rows == 0) | (columns == 0)
        own, other = ~(free | (rows == columns)), ~(free | (rows != columns))
        # The release always passes a mask of padding; here nothing is padding.
        padding = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        for layer in self.decoder["layers"]:
            x = layer(x, own, other, padding)
        return self.classifier(x[:, 0]).squeeze(-1), x


class LogDomainELViS(nn.Module):
    """ELViS with Sinkhorn's algorithm on logarithms; `config`: the fields of `ELViSConfig` (full precision, no padding)."""

    def __init__(self, config: dict) -> None:
        super().__init__()
        width, votes, head = config["model_width"], config["vote_width"], config["head_width"]
        self.iterations = config["iterations"]
        self.remap_local = nn.Sequential(nn.Linear(config["descriptor_width"], width), nn.LayerNorm(width))
        self.dust_bin_mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))
        self.dust_bin = nn.Parameter(torch.empty(()))
        self.f = nn.Sequential(nn.Linear(1, votes), nn.LayerNorm(votes, eps=1e-6), nn.GELU(), nn.Linear(votes, 1))
        self.g = nn.Sequential(nn.Linear(1, head), nn.GELU(), nn.Linear(head, 1))

    def forward(self, query: torch.Tensor, database: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """query [B, Q, D], database [B, T, D] to sums of votes [B] and the plan [B, Q, T]."""
        query, database = (F.normalize(self.remap_local(side), dim=-1) for side in (query, database))
        (batch, q, _), t = query.shape, database.shape[1]
        right, below = (torch.tanh(self.dust_bin_mlp(side)) for side in (query, database))
        core = torch.cat([query @ database.mT, right], dim=2)
        bins = torch.cat([below.mT, self.dust_bin.expand(batch, 1, 1)], dim=2)
        scores = 10 * torch.cat([core, bins], dim=1)
        # All masses are shares of Q + T: of a descriptor 1, of a dust bin those of the whole other side.
        rows, columns = (torch.zeros(count + 1, device=scores.device) - math.log(q + t) for count in (q, t))
        rows[-1] += math.log(t)
        columns[-1] += math.log(q)
        u, v = torch.zeros_like(scores[:, :, 0]), torch.zeros_like(scores[:, 0])
        for _ in range(self.iterations):
            u = rows - torch.logsumexp(scores + v[:, None], dim=2)
            v = columns - torch.logsumexp(scores + u[:, :, None], dim=1)
        plan = torch.exp((scores + u[:, :, None] + v[:, None] + math.log(q + t))[:, :-1, :-1])
        largest = torch.cat([plan.amax(2), plan.amax(1)], dim=1)
        return torch.sigmoid(self.f(largest[..., None])).flatten(1).sum(1), plan


def vision_transformer(weights: Mapping[str, torch.Tensor], config: dict, images: torch.Tensor) -> torch.Tensor:
    """Images [B, 3, H, W] to final tokens [B, 1 + R + P, d]: class, registers, patches.

    The images are of the size of the position embeddings; `config` holds the fields of `ViTConfig`. Attention is fused,
    GELU exact.
    """
    width = config["width"]

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, (width,), weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)

    patches = [weights[f"patch_embed.proj.{part}"] for part in ("weight", "bias")]
    x = F.conv2d(images, *patches, stride=config["patch"]).flatten(2).transpose(1, 2)
    x = torch.cat([weights["cls_token"].expand(len(x), -1, -1), x], 1) + weights["pos_embed"]
    x = torch.cat([x[:, :1], weights["register_tokens"].expand(len(x), -1, -1), x[:, 1:]], 1)
    for i in range(config["depth"]):
        block = f"blocks.{i}."
        qkv = linear(norm(x, block + "norm1"), block + "attn.qkv").unflatten(2, (3, config["heads"], -1))
        attended = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4)).transpose(1, 2).flatten(2)
        x = x + weights[block + "ls1.gamma"] * linear(attended, block + "attn.proj")
        hidden = F.gelu(linear(norm(x, block + "norm2"), block + "mlp.fc1"))
        x = x + weights[block + "ls2.gamma"] * linear(hidden, block + "mlp.fc2")
    return norm(x, "norm")
