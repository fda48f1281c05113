"""Positions of video tokens on the real patch grid: rotary, or sinusoids added to the patches (CogVideoX-2B's)."""

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


SINCOS_SPATIAL_SCALE = 1.875
"""Patches of height and width a unit of CogVideoX-2B's sinusoids (diffusers: spatial_interpolation_scale)."""


def sincos_table(grid: tuple[int, int, int], width: int, device: torch.device | str | None = None) -> Tensor:
    """Sinusoids of every video token, fp32 (t*h*w, width): a quarter for time, three eighths for width, then for height.

    `grid` is (t, h, w) in patches. Each part is [sin, cos] at frequencies 10,000^-(i / n). Equal to diffusers'
    get_3d_sincos_pos_embed as CogVideoX-2B calls it. Raises ValueError where `width` does not divide by 16.
    """
    if width % 16:
        raise ValueError(f"sinusoidal positions need a width that divides by 16, not {width}")
    num_frames, height, columns = grid
    spatial = 3 * width // 8
    time = _sinusoids(num_frames, width // 4, 1.0, device)
    down, across = (_sinusoids(size, spatial, SINCOS_SPATIAL_SCALE, device) for size in (height, columns))
    parts = (time[:, None, None], across[None, None], down[None, :, None])
    return torch.cat([part.expand(*grid, -1) for part in parts], dim=-1).flatten(0, 2)


def _sinusoids(count: int, dim: int, scale: float, device: torch.device | str | None) -> Tensor:
    """(count, dim) of positions 0, 1 / scale, ...; in fp64 on the way, as diffusers does."""
    places = torch.arange(count, dtype=torch.float32, device=device) / scale
    frequencies = 10_000.0 ** (-torch.arange(dim // 2, dtype=torch.float64, device=device) / (dim / 2))
    angles = torch.outer(places.double(), frequencies)
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()
