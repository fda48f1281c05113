"""Attention inside a 3D window of video tokens, in blocks that are computed or skipped whole.

Video tokens are put into 3D tiles (one tile, one block of the kernel), short tiles are padded, text tokens come last
and see and are seen by everything. With `exact=False` a tile sees every tile that the window of any of its tokens
reaches: more than the window, and no block is half-masked but for padding. With `exact=True` each token sees its own
window only; the same blocks are computed.
Source: FlashVideo (arXiv 2502.05179) 6.1: windows of (7, 11, 11) suffice at low motion and break at large motion;
choosing by motion is its stated future work. Tiles as in Sliding Tile Attention (arXiv 2502.04507).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flashvideo.config import AttentionConfig

EAGER_SLOTS = 4096
"""On a CPU, sequences up to here run uncompiled: every pair is scored, so this is for tests and debug sizes."""


class Window(NamedTuple):
    """What each token may see: (time, height, width) in tokens. Hashable: plans are cached by it."""

    size: tuple[int, int, int]
    """Full extents, odd: a token at t sees t - size // 2 .. t + size // 2."""
    tile: tuple[int, int, int] = (2, 8, 8)
    exact: bool = False


class AttentionOptions(NamedTuple):
    """How a transformer attends. The default is full attention over all heads at once."""

    window: Window | None = None
    """None: full attention."""
    head_chunk: int | None = None
    """So many heads at once: less memory for rotated queries and keys, the same result. None: all."""


FULL_ATTENTION = AttentionOptions()


@dataclass(frozen=True)
class WindowPlan:
    """The order of the tokens and the mask for one grid, window and device."""

    order: Tensor
    """(slots,): the token, counted in [text, video], that each slot of the tile order holds; padding holds token 0."""
    place: Tensor
    """(L + N,): the slot of each token; the inverse of `order`."""
    block_mask: Any
    """torch's BlockMask over slots."""
    computed_share: float
    """Scored pairs, padding included, over the (L + N)^2 of full attention."""
    window_share: float
    """Pairs inside the exact windows, and text's, over (L + N)^2: what no tiling could go below."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(B, heads, L + N, head_dim), text first, -> the same shape and order. Softmax scale 1 / sqrt(head_dim)."""
        slots = len(self.order)
        attend = _compiled_attention() if query.device.type != "cpu" or slots > EAGER_SLOTS else _eager_attention()
        query, key, value = (tensor.index_select(2, self.order) for tensor in (query, key, value))
        attended: Tensor = attend(query, key, value, block_mask=self.block_mask)
        return attended.index_select(2, self.place)


@lru_cache(maxsize=32)
def window_plan(grid: tuple[int, int, int], num_text_tokens: int, window: Window, device: torch.device) -> WindowPlan:
    """The plan for video of `grid` (t, h, w) tokens after `num_text_tokens` of text. Cached by all four arguments.

    Raises ValueError for windows with an even or tiles with a non-positive extent.
    """
    from torch.nn.attention.flex_attention import BlockMask

    if any(size < 1 or size % 2 == 0 for size in window.size) or any(extent < 1 for extent in window.tile):
        raise ValueError(f"window {window.size} and tile {window.tile}: windows need odd, tiles positive extents")
    with torch.inference_mode(False):
        order, valid, coordinates = _tile_order(grid, num_text_tokens, window.tile)
        block = math.prod(window.tile)
        allowed, inside = _blocks(grid, num_text_tokens, window)
        whole = allowed & valid.view(-1, block).all(1)[None] & (inside if window.exact else True)
        (partial_count, partial), (full_count, full) = _indices(allowed & ~whole), _indices(whole)
        block_mask = BlockMask.from_kv_blocks(
            partial_count.to(device),
            partial.to(device),
            full_count.to(device),
            full.to(device),
            BLOCK_SIZE=block,
            mask_mod=_mask(allowed.to(device), valid.to(device), coordinates.to(device), window, block),
        )
        place = torch.empty(int(valid.sum()), dtype=torch.long)
        place[order[valid]] = torch.arange(len(order))[valid]
    tokens = num_text_tokens + math.prod(grid)
    return WindowPlan(
        order=order.to(device),
        place=place.to(device),
        block_mask=block_mask,
        computed_share=int(allowed.sum()) * block**2 / tokens**2,
        window_share=_exact_pairs(grid, num_text_tokens, window.size) / tokens**2,
    )


def choose_window(motion_px: float, grid: tuple[int, int, int], config: AttentionConfig) -> Window | None:
    """The window for a clip of that motion, or None for full attention.

    `motion_px`: px at 360 px short side per 1/8 s. Full above `config.full_above_motion_px`. Below it the window is
    `config.window`, widened in height and width so that what moves so fast stays inside it over half the window's
    time (a token is 16 px, a latent frame 4/8 s). Raises ValueError for a motion below 0 or not a number.
    """
    if not motion_px >= 0:
        raise ValueError(f"motion is {motion_px} px; it must be 0 or more")
    if config.kind == "full" or motion_px > config.full_above_motion_px:
        return None
    time, height, width = config.window
    tokens_per_latent_frame = motion_px * (16 * min(grid[1:]) / 360) * 4 / 16
    reach = math.ceil(tokens_per_latent_frame * (time // 2))
    size = (time, max(height, 2 * reach + 1), max(width, 2 * reach + 1))
    return Window(size, config.tile, config.exact)


def _tile_order(grid: tuple[int, int, int], num_text: int, tile: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Token of each slot, whether the slot holds one, and its (t, h, w) (-1 for text): (slots,), (slots,), (slots, 3)."""
    block = math.prod(tile)
    padded = [math.ceil(size / extent) * extent for size, extent in zip(grid, tile, strict=True)]
    axes = torch.meshgrid(*(torch.arange(size) for size in padded), indexing="ij")
    t, h, w = (_tiled(axis, tile) for axis in axes)
    valid = (t < grid[0]) & (h < grid[1]) & (w < grid[2])
    order = torch.where(valid, num_text + (t * grid[1] + h) * grid[2] + w, 0)
    text_slots = math.ceil(num_text / block) * block
    text = torch.arange(text_slots)
    return (
        torch.cat([order, torch.where(text < num_text, text, 0)]),
        torch.cat([valid, text < num_text]),
        torch.cat([torch.stack([t, h, w], dim=1), torch.full((text_slots, 3), -1)]),
    )


def _tiled(axis: Tensor, tile: tuple[int, int, int]) -> Tensor:
    """(T, H, W) -> one row of tiles after the other, flat."""
    t, h, w = (size // extent for size, extent in zip(axis.shape, tile, strict=True))
    return axis.reshape(t, tile[0], h, tile[1], w, tile[2]).permute(0, 2, 4, 1, 3, 5).flatten()


def _blocks(grid: tuple[int, int, int], num_text: int, window: Window) -> tuple[Tensor, Tensor]:
    """Two bool matrices over blocks: which key blocks a query block reaches, and which lie in every token's window."""
    reached, inside = [], []
    for size, extent, span in zip(grid, window.tile, window.size, strict=True):
        starts = torch.arange(0, size, extent)
        ends = (starts + extent).clamp(max=size) - 1
        gap = torch.maximum(starts[None] - ends[:, None], starts[:, None] - ends[None]).clamp(min=0)
        farthest = torch.maximum(ends[None] - starts[:, None], ends[:, None] - starts[None])
        reached.append(gap <= span // 2)
        inside.append(farthest <= span // 2)
    text_blocks = math.ceil(num_text / math.prod(window.tile))
    return _with_text(_kron(reached), text_blocks), _with_text(_kron(inside), text_blocks)


def _kron(axes: list[Tensor]) -> Tensor:
    """Per axis (n, n) -> (n_t n_h n_w, n_t n_h n_w), all three at once."""
    first, second, third = axes
    joint = first[:, None, None, :, None, None] & second[None, :, None, None, :, None] & third[None, None, :, None, None, :]
    count = first.shape[0] * second.shape[0] * third.shape[0]
    return joint.reshape(count, count)


def _with_text(video: Tensor, text_blocks: int) -> Tensor:
    """Adds blocks that see all and are seen by all."""
    return torch.nn.functional.pad(video, (0, text_blocks, 0, text_blocks), value=True)


def _indices(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """A bool matrix as torch wants it: number a row (1, 1, rows) and columns, chosen ones first (1, 1, rows, columns)."""
    columns = blocks.int().argsort(dim=1, descending=True, stable=True).int()
    return blocks.sum(1).int()[None, None], columns[None, None].contiguous()


def _mask(allowed: Tensor, valid: Tensor, coordinates: Tensor, window: Window, block: int) -> Callable[..., Tensor]:
    """Whether a query slot may see a key slot; the whole truth, since uncompiled attention reads no block lists."""
    halves = tuple(size // 2 for size in window.size)

    def tile_mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return allowed[query // block, key // block] & valid[key]

    def token_mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        near = valid[key]
        for axis, half in enumerate(halves):
            near = near & ((coordinates[query, axis] - coordinates[key, axis]).abs() <= half)
        text = (coordinates[query, 0] < 0) | (coordinates[key, 0] < 0)
        return valid[key] & (near | text)

    return token_mask if window.exact else tile_mask


def _exact_pairs(grid: tuple[int, int, int], num_text: int, size: tuple[int, int, int]) -> int:
    """Pairs (query, key) inside the exact windows, with text's rows and columns."""
    pairs = 1
    for length, span in zip(grid, size, strict=True):
        positions = torch.arange(length)
        low, high = (positions - span // 2).clamp(min=0), (positions + span // 2).clamp(max=length - 1)
        pairs *= int((high - low + 1).sum())
    return pairs + num_text * (2 * math.prod(grid) + num_text)


@lru_cache(maxsize=1)
def _eager_attention() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention


@lru_cache(maxsize=1)
def _compiled_attention() -> Callable[..., Any]:
    """fullgraph: too many recompilations are an error then, not a silent fall back to scoring every pair."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, fullgraph=True)
