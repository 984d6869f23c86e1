"""The opponent of extraction: DINOv2's ViT in plain PyTorch, built as timm builds it. Imports torch and NumPy alone.

Convolution for the patches, fused `scaled_dot_product_attention`, LayerScale, exact GELU; parameters are named as in the
checkpoint of DINOv2's authors. Run as `PYTHON torch_vit.py JOB.npz RESULT.npz`.
"""

from __future__ import annotations

import json
import statistics
import sys

import numpy as np
import torch
from torch import nn
from torch_jobs import precision, wait

EPSILON = 1e-6


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens [B, N, d]."""
        batch, count, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, count, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        x = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(batch, count, width))


class Scale(nn.Module):
    """LayerScale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens [..., d]."""
        return x * self.gamma


class MLP(nn.Module):
    """Two layers with an exact GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens [..., d]."""
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, EPSILON), nn.LayerNorm(width, EPSILON)
        self.attn, self.mlp = Attention(width, heads), MLP(width, hidden)
        self.ls1, self.ls2 = Scale(width), Scale(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens [B, N, d]."""
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class Patches(nn.Module):
    """Patch embedding."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images [B, 3, H, W] to [B, P, d]."""
        return self.proj(x).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """`config` holds the fields of `ViTConfig`; images must be of the size of the position embeddings."""

    def __init__(self, config: dict) -> None:
        super().__init__()
        width = config["width"]
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_tokens = nn.Parameter(torch.zeros(1, config["registers"], width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config["grid"] ** 2, width))
        self.patch_embed = Patches(width, config["patch"])
        self.blocks = nn.Sequential(*(Block(width, config["heads"], config["mlp"]) for _ in range(config["depth"])))
        self.norm = nn.LayerNorm(width, EPSILON)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images [B, 3, H, W] to final tokens [B, 1 + R + P, d]: class, registers, patches."""
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        x = torch.cat([x[:, :1], self.register_tokens.expand(len(x), -1, -1), x[:, 1:]], 1)
        return self.norm(self.blocks(x))


def main() -> None:
    """Reads a job, times the forward pass over its images, writes tokens of the first and the median seconds."""
    with np.load(sys.argv[1]) as file:
        arrays = dict(file)
    settings = json.loads(str(arrays.pop("settings")))
    device = "cuda" if settings["gpu"] and torch.cuda.is_available() else "cpu"
    plain = VisionTransformer(settings["config"]).eval()
    weights = {name.removeprefix("param/"): torch.from_numpy(a) for name, a in arrays.items() if name != "images"}
    plain.load_state_dict(weights)
    plain = plain.to(device)
    model = torch.compile(plain) if settings["compile"] else plain
    images = torch.from_numpy(arrays["images"]).to(device)
    timed = []
    with torch.inference_mode(), precision(settings, device):
        for _ in range(1 + settings["repeats"]):  # the first warms up
            start = wait(device)
            tokens = model(images)
            timed.append(wait(device) - start)
    np.savez(
        sys.argv[2],
        tokens=tokens[0].float().cpu().numpy(),
        seconds=statistics.median(timed[1:]),
        version=torch.__version__,
    )


if __name__ == "__main__":
    main()
