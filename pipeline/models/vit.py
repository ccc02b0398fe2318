"""A small vision transformer with the names and shapes of DINOv2's weights (Dosovitskiy et al. 2021; Oquab et al. 2023)."""

from __future__ import annotations

import math
import re
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.episode import Params
from pipeline.errors import InputError
from pipeline.models.lora import FACTOR, linear
from pipeline.models.norm import Normalise, by_batch

EPS = 1e-6
STD = 0.02


class LayerNorm(nn.Module):
    """Normalisation of every token (Ba et al. 2016).

    Scale and shift lie outside the kernel: `F.layer_norm` with a weight and bias that are batched by `vmap` has wrong
    second-order gradients at its input, as `F.batch_norm` has.
    """

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.bias, F.layer_norm(x, self.weight.shape, eps=EPS), self.weight)


class Attention(nn.Module):
    """Every token reads from all (Vaswani et al. 2017, equation 1); `qkv` gives queries, then keys, then values, head by head.

    In plain operations: the fused kernels have no second derivative.
    """

    def __init__(self, width: int, heads: int, rank: int, alpha: float):
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv = linear(width, 3 * width, rank=rank, alpha=alpha)
        self.proj = linear(width, width, rank=rank, alpha=alpha)

    def forward(self, x: Tensor) -> Tensor:
        # (samples, tokens, 3 · width) -> 3 × (samples, heads, tokens, width / heads)
        query, key, value = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (self.scale * query @ key.transpose(2, 3)).softmax(-1)
        return self.proj((weights @ value).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """A learned scale for every channel of a residual branch (Touvron et al. 2021, equation 4)."""

    def __init__(self, width: int, start: float):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), start))

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * x


class Block(nn.Module):
    """Attention, then a network for each token, both normalised before and added to what came in."""

    def __init__(self, width: int, heads: int, hidden: int, layer_scale: float, rank: int, alpha: float):
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(width), LayerNorm(width)
        self.ls1, self.ls2 = LayerScale(width, layer_scale), LayerScale(width, layer_scale)
        self.attn, self.mlp = Attention(width, heads, rank, alpha), Mlp(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """A linear function of every patch; `proj` is the convolution that it is, kept for its names and computed as one product."""

    def __init__(self, channels: int, width: int, patch: int):
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(channels, width, patch, patch)

    def forward(self, images: Tensor) -> Tensor:
        """(samples, channels, height, width) -> (samples, patches row by row, width)"""
        cells = images.unflatten(3, (-1, self.patch)).unflatten(2, (-1, self.patch))
        patches = cells.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


@final
class Vit(nn.Module):
    """Patches and a class token through `depth` blocks; the features are the class token, normalised.

    `size` is the side of the square input in pixels, a multiple of `patch`; `hidden` the width inside the blocks' networks.
    `registers` tokens without a position go along and are dropped (Darcet et al. 2024). With a `rank` the attention's linear
    layers have low-rank factors, scaled by `alpha` / `rank`. Nothing looks at other samples, so `normalise` is not asked.
    """

    def __init__(
        self,
        *,
        channels: int,
        size: int,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        hidden: int,
        registers: int = 0,
        layer_scale: float = 1.0,
        rank: int = 0,
        alpha: float = 1.0,
    ):
        super().__init__()
        self.features, self.side = width, size // patch
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + self.side**2, width))
        self.register_tokens = nn.Parameter(torch.empty(1, registers, width)) if registers else None
        self.patch_embed = PatchEmbed(channels, width, patch)
        self.blocks = nn.ModuleList(Block(width, heads, hidden, layer_scale, rank, alpha) for _ in range(depth))
        self.norm = LayerNorm(width)
        self._start()

    def _start(self) -> None:
        """As DINOv2 starts: small weights, no biases, tokens almost zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=STD)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.pos_embed, std=STD)
        for token in (self.cls_token, self.register_tokens):
            if token is not None:
                nn.init.normal_(token, std=1e-6)

    def forward(self, images: Tensor, normalise: Normalise = by_batch) -> Tensor:
        """(samples, channels, height, width) -> (samples, features)"""
        patches = self.patch_embed(images) + self.pos_embed[:, 1:]
        first = self.cls_token + self.pos_embed[:, :1]
        alike = [first] if self.register_tokens is None else [first, self.register_tokens]
        x = torch.cat([*(token.expand(images.shape[0], -1, -1) for token in alike), patches], 1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x[:, 0])

    def translated(self, state: Params) -> Params:
        """What `load_state_dict` takes, from the published weights of a DINOv2 of this width, depth and patch.

        The token that masks patches in pre-training is dropped; names with the number of a chunk of blocks lose it; positions
        are interpolated to this model's grid (Dosovitskiy et al. 2021, section 3.2); low-rank factors stay what they are.

        Raises:
            InputError: the positions are not those of a class token and a square grid.
        """
        own = {name: value for name, value in self.state_dict().items() if FACTOR.fullmatch(name)}
        renamed = {re.sub(r"^blocks\.\d+\.(?=\d+\.)", "blocks.", name): value for name, value in state.items()}
        renamed.pop("mask_token", None)
        if "pos_embed" in renamed:
            renamed["pos_embed"] = self._fitted(renamed["pos_embed"])
        return {**own, **renamed}

    def _fitted(self, positions: Tensor) -> Tensor:
        """(1, 1 + a square number, width) -> (1, 1 + side², width); the class token's comes first."""
        count = positions.numel() // self.features
        side = math.isqrt(max(0, count - 1))
        if positions.shape != (1, 1 + side**2, self.features):
            raise InputError(
                f"pos_embed of shape {tuple(positions.shape)} is not (1, 1 + a square number, {self.features}); "
                "give the weights of a DINOv2 of model.width"
            )
        if side == self.side:
            return positions
        grid = positions[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
        # Antialiased, because the grid of small images is several times coarser than the published one.
        resized = F.interpolate(grid.float(), size=(self.side, self.side), mode="bicubic", antialias=True)
        return torch.cat([positions[:, :1], resized.flatten(2).transpose(1, 2).to(positions.dtype)], 1)
