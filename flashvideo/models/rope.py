"""Rotary positions of video tokens on the real patch grid."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_table(
    grid: tuple[int, int, int],
    axes: tuple[int, int, int],
    theta: float = 10_000.0,
    num_text_tokens: int = 0,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every token's angles, each fp32 (num_text_tokens + t*h*w, sum(axes) / 2).

    `grid` is (t, h, w) in patches, positions 0..t-1, 0..h-1, 0..w-1: no crop, no stretching to a base size. `axes`
    are the head dimensions given to each. Text tokens come first and get angle 0, so they are left as they are.
    Source: CogVideoX 3D RoPE as FlashVideo's released code applies it (ScaleCropRotary3DPositionEmbeddingMixin).
    diffusers' pipeline instead stretches the grid into 30x45; that changes the outputs of these models.
    """
    num_frames, height, width = grid
    shapes = ((num_frames, 1, 1), (1, height, 1), (1, 1, width))
    angles = []
    for size, axis, shape in zip(grid, axes, shapes, strict=True):
        frequencies = 1.0 / theta ** (torch.arange(0, axis, 2, dtype=torch.float32, device=device) / axis)
        positions = torch.arange(size, dtype=torch.float32, device=device)
        angles.append(torch.outer(positions, frequencies).view(*shape, -1).expand(num_frames, height, width, -1))
    video = torch.cat(angles, dim=-1).flatten(0, 2)
    text = video.new_zeros(num_text_tokens, video.shape[1])
    table = torch.cat([text, video])
    return table.cos(), table.sin()


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`x` with its adjacent pairs (2i, 2i+1) turned by the table's angles, computed in fp32, in x's dtype.

    x: (..., N, heads, head_dim); cos, sin: (N, head_dim / 2).
    """
    real, imaginary = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    turned = torch.stack([real * cos - imaginary * sin, imaginary * cos + real * sin], dim=-1)
    return turned.flatten(-2).to(x.dtype)
