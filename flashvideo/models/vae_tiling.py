"""Spatial tiles of a video: which there are, running them on several devices, putting them together, their memory.

Released layout: two slices in width, each with 16 latents of its neighbour, cropped hard where they meet (code).
Tiles are not exact for the released autoencoder: its GroupNorm averages over what it is given, so a tile is normalised
by its own statistics. Where the statistics agree, tiles that overlap by the receptive field are exact (tested).
"""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from flashvideo.config import VaeTilingConfig

MOST_PARTS = 64
"""Parts along one side at most."""


class Span(NamedTuple):
    """A tile along one side, in latents: it is computed over start..stop and kept over own_start..own_stop."""

    start: int
    stop: int
    own_start: int
    own_stop: int


class Tile(NamedTuple):
    rows: Span
    columns: Span

    @property
    def size(self) -> tuple[int, int]:
        """Height and width that are computed, in latents."""
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start


def split_side(length: int, parts: int, overlap: int) -> list[Span]:
    """`parts` nearly equal spans of 0..length, each reaching `overlap` further at its inner sides."""
    bounds = [length * part // parts for part in range(parts + 1)]
    return [Span(max(0, start - overlap), min(length, stop + overlap), start, stop) for start, stop in itertools.pairwise(bounds)]


def plan_tiles(height: int, width: int, chunk_frames: int, limit: int, tiling: VaeTilingConfig) -> list[Tile]:
    """The tiles of a picture of height x width latents, row by row.

    As few as keep every tile's latents x `chunk_frames` (latent frames in one temporal chunk) within `limit`; among
    equally few, those that are smallest. Raises ValueError when even the smallest tiles are too large, or narrower than
    the blend.
    """
    parts = range(1, MOST_PARTS + 1)
    heights, widths = ([_largest(side, count, tiling.overlap) for count in parts] for side in (height, width))
    layouts = [
        (rows * columns, heights[rows - 1] * widths[columns - 1], rows, columns)
        for rows in range(1, min(height, MOST_PARTS) + 1)
        for columns in range(1, min(width, MOST_PARTS) + 1)
        if heights[rows - 1] * widths[columns - 1] * chunk_frames <= limit
    ]
    if not layouts:
        raise ValueError(
            f"{height}x{width} latents in chunks of {chunk_frames} frames: no tiles with an overlap of {tiling.overlap} stay within "
            f"{limit} latents a pass; raise the vae.tiling limit or lower vae.tiling.overlap"
        )
    _, _, rows, columns = min(layouts)
    for side, count in ((height, rows), (width, columns)):
        if count > 1 and side // count < tiling.blend:
            raise ValueError(
                f"{side} latents in {count} tiles leave each {side // count}, but vae.tiling.blend = {tiling.blend}; "
                "lower it or raise the limit"
            )
    row_spans, column_spans = split_side(height, rows, tiling.overlap), split_side(width, columns, tiling.overlap)
    return [Tile(row, column) for row in row_spans for column in column_spans]


def _largest(length: int, parts: int, overlap: int) -> int:
    return max(span.stop - span.start for span in split_side(length, parts, overlap))


def run_tiles(tiles: Sequence[Tile], devices: Sequence[torch.device], run: Callable[[Tile, torch.device], Tensor]) -> Iterator[Tensor]:
    """run(tile, device) of every tile, in the tiles' order: tile i on device i mod n, one thread a device.

    A device may be named twice, and then runs two tiles at a time. Needs no lock: `run` must keep nothing on modules.
    """
    if len(devices) == 1 or len(tiles) == 1:
        yield from (run(tile, devices[0]) for tile in tiles)
        return
    workers = [ThreadPoolExecutor(1, thread_name_prefix=f"tiles-{device}") for device in devices]
    try:
        futures = [workers[index % len(workers)].submit(run, tile, devices[index % len(devices)]) for index, tile in enumerate(tiles)]
        for future in futures:
            yield future.result()
    finally:
        for worker in workers:
            worker.shutdown(wait=True, cancel_futures=True)


def merge_tiles(pieces: Iterator[Tensor], tiles: Sequence[Tile], size: tuple[int, int], scale: int, blend: int) -> Tensor:
    """Pieces (..., h, w), `scale` values a latent, -> (..., H * scale, W * scale) where size is (H, W) in latents.

    blend 0: each tile's own part. Otherwise neighbours are cross-faded linearly over `blend` latents around the border;
    the weights sum to 1 everywhere.
    """
    height, width = size
    merged: Tensor | None = None
    for tile, piece in zip(tiles, pieces, strict=True):
        if len(tiles) == 1:
            return piece
        if merged is None:
            merged = piece.new_zeros(*piece.shape[:-2], height * scale, width * scale)
        rows, columns = (_weights(span, side, scale, blend) for span, side in zip(tile, size, strict=True))
        rows_kept, columns_kept = (slice(int(w.nonzero()[0]), int(w.nonzero()[-1]) + 1) for w in (rows, columns))
        top, left = tile.rows.start * scale, tile.columns.start * scale
        target = merged[..., top + rows_kept.start : top + rows_kept.stop, left + columns_kept.start : left + columns_kept.stop]
        part = piece[..., rows_kept, columns_kept]
        if blend == 0:
            target.copy_(part)
        else:
            target += part * (rows[rows_kept, None] * columns[columns_kept]).to(piece)
    assert merged is not None
    return merged


def _weights(span: Span, side: int, scale: int, blend: int) -> Tensor:
    """How much of a tile is used at each of its places along one side, fp32 ((stop - start) * scale,), on the CPU."""
    places = (torch.arange((span.stop - span.start) * scale) + 0.5) / scale + span.start
    if blend == 0:
        return ((places > span.own_start) & (places < span.own_stop)).float()
    weights = torch.ones_like(places)
    if span.own_start > 0:
        weights = weights * ((places - span.own_start) / blend + 0.5).clamp(0, 1)
    if span.own_stop < side:
        weights = weights * ((span.own_stop - places) / blend + 0.5).clamp(0, 1)
    return weights


# ---- memory --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MemoryPlan:
    """What a tiled pass will need, from running its shapes on the meta device. Without the convolutions' workspace."""

    tiles: tuple[Tile, ...]
    weights_bytes: int
    """The network, on every device that takes part."""
    pass_bytes: int
    """Most that lives at once while the largest tile runs: its input, activations, caches and output."""
    result_bytes: int
    """The whole input or output, whichever is larger, and the merged result, on the first device."""

    @property
    def peak_bytes(self) -> int:
        """On the first device, when it runs one tile at a time."""
        return self.weights_bytes + self.pass_bytes + self.result_bytes


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors made inside it that live; `peak` is the most at once. Each storage counts once."""

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self._count(tensor)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._seen:
            return
        self._seen.add(storage._cdata)
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, storage._cdata, size)

    def _release(self, identity: int, size: int) -> None:
        self._seen.discard(identity)
        self.live -= size


@contextmanager
def live_bytes() -> Iterator[LiveBytes]:
    """Counts what a block of code allocates."""
    with LiveBytes() as counter:
        yield counter


def tensor_bytes(shape: Sequence[int], dtype: torch.dtype) -> int:
    return math.prod(shape) * dtype.itemsize
