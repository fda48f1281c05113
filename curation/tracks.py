"""What the one decode pass leaves of a source, so that scores and captions never decode again.

    tracks/<source_id>.arrow       a row per decoded frame or refused packet; every 1/8 s with the picture at 360 px
    tracks/<source_id>.keys.arrow  a row per key frame of a clip: JPEG, bars, perceptual hash
    tracks/<source_id>.pass.json   what the pass found and by which settings, for a job that was killed before its commit
    tracks/thumbs/<clip_id>.jpg    a small picture of the clip

Arrow IPC files, zstd, written beside and renamed (the frames last: a track whose .arrow exists is whole).
Pictures are I420 without loss (luma, then two half-size chroma planes), upright, square pixels, in the source's
own range and matrix (schema metadata).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.video import Picture
from curation.whole_files import write_text, writing

FRAMES = pa.schema(
    [
        pa.field("time_us", pa.int64(), nullable=False),
        pa.field("corrupt", pa.bool_(), nullable=False),  # flagged by the decoder, or refused
        pa.field("refused", pa.bool_(), nullable=False),  # a packet without a picture
        pa.field("cut", pa.bool_(), nullable=False),  # first frame of a shot
        pa.field("repeat", pa.bool_(), nullable=False),  # shows the same as the frame before
        pa.field("change", pa.float32()),  # mean absolute luma difference to the frame before, 0-255 scale
        pa.field("luma", pa.float32()),  # mean, 0-255 scale
        pa.field("black_share", pa.float32()),  # share of pixels below curation.video.BLACK_LUMA
        pa.field("blur", pa.float32()),  # sampled frames: variance of the Laplacian
        pa.field("picture", pa.binary()),  # sampled frames: I420
    ]
)
KEYS = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("time_us", pa.int64(), nullable=False),
        pa.field("jpeg", pa.binary(), nullable=False),
        pa.field("bars_px", pa.list_(pa.int32(), 4)),  # top, bottom, left, right in the display picture; null: all black
        pa.field("hash", pa.binary(8), nullable=False),
    ]
)
BATCH_ROWS = 16
"""At 64 a decode pass holds 30 MB more, and is no quicker."""
VERSION = "tracks/1"


@dataclass(frozen=True)
class TrackFacts:
    """What the readers of a track must know, kept as schema metadata."""

    source_id: str
    width: int
    """Display size of the source, px."""
    height: int
    picture_width: int
    """Size of the sampled pictures, px, both even."""
    picture_height: int
    full_range: bool
    kr: float
    kb: float
    period_us: int
    """Usual frame spacing."""


class TrackWriter:
    """Writes the files of a track; as a context manager it puts them in place at a clean end and removes them otherwise."""

    def __init__(self, folder: Path, facts: TrackFacts) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.found: dict[str, Any] = {}
        """What .pass.json will hold; set before the clean end."""
        self._found_path = pass_path(folder, facts.source_id)
        self._paths = [folder / f"{facts.source_id}.keys.arrow", folder / f"{facts.source_id}.arrow"]
        self._parts = ExitStack()  # the keys' file, made last, is put in place first
        frames, keys = (self._parts.enter_context(writing(path)) for path in reversed(self._paths))
        options = pa.ipc.IpcWriteOptions(compression="zstd", use_threads=False)  # a worker is one thread
        metadata = {"track": json.dumps({"version": VERSION, **vars(facts)})}
        schemas = [KEYS.with_metadata(metadata), FRAMES.with_metadata(metadata)]
        self._sinks = [pa.OSFile(str(path), "wb") for path in (keys, frames)]
        self._keys, self._frames = (
            pa.ipc.new_file(sink, schema, options=options) for sink, schema in zip(self._sinks, schemas, strict=True)
        )
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0

    def frame(self, row: dict[str, Any]) -> None:
        """Adds a row of FRAMES."""
        self._rows.append(row)
        if len(self._rows) >= BATCH_ROWS:
            self._flush()

    def keys(self, rows: Iterable[dict[str, Any]]) -> None:
        """Adds rows of KEYS."""
        batch = pa.RecordBatch.from_pylist(list(rows), schema=KEYS)
        if batch.num_rows:
            self._keys.write_batch(batch)

    def _flush(self) -> None:
        if self._rows:
            self._frames.write_batch(pa.RecordBatch.from_pylist(self._rows, schema=FRAMES))
            self._rows = []

    def __enter__(self) -> TrackWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self._flush()
        finally:
            self._keys.close()
            self._frames.close()
            for sink in self._sinks:
                sink.close()
        if kind is not None:
            self._parts.__exit__(kind, error, trace)
            return
        self._paths[-1].unlink(missing_ok=True)  # a kill from here on leaves no track, never one of two passes
        write_text(self._found_path, json.dumps(self.found))
        self._parts.close()


def pass_path(folder: Path, source_id: str) -> Path:
    """Where it is written what a pass found."""
    return folder / f"{source_id}.pass.json"


def track_exists(folder: Path, source_id: str) -> bool:
    """True when the decode pass of that source has finished here."""
    return (folder / f"{source_id}.arrow").is_file()


def thumbnail_path(folder: Path, clip_id: str) -> Path:
    """Where a clip's small picture is."""
    return folder / "thumbs" / f"{clip_id}.jpg"


@dataclass(frozen=True)
class KeyFrame:
    """One key frame of a clip."""

    time_us: int
    jpeg: bytes
    bars_px: tuple[int, int, int, int] | None
    """Top, bottom, left, right in the display picture; None: the frame is all black."""
    hash: int
    """64-bit DCT hash."""

    def rgb(self) -> np.ndarray:
        """H W 3 uint8, upright."""
        return cv2.cvtColor(cv2.imdecode(np.frombuffer(self.jpeg, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


class ClipTrack:
    """The part of a track that belongs to one clip."""

    def __init__(self, facts: TrackFacts, frames: pa.Table, keys: tuple[KeyFrame, ...]) -> None:
        self.facts, self.keys = facts, keys
        self.frames = frames
        """Rows of FRAMES with start_us <= time_us < end_us, in order."""

    @cached_property
    def decoded(self) -> pa.Table:
        """Rows that have a picture in the source (refused packets left out), without the pictures."""
        return self.frames.drop_columns(["picture"]).filter(pc.invert(self.frames["refused"]))

    @cached_property
    def samples(self) -> pa.Table:
        """Rows that were sampled, about 1/8 s apart."""
        return self.frames.filter(pc.is_valid(self.frames["blur"]))

    def picture(self, index: int) -> Picture:
        """Sample `index` as planes."""
        width, height = self.facts.picture_width, self.facts.picture_height
        flat = np.frombuffer(self.samples["picture"][index].as_buffer(), np.uint8)
        luma, half = flat[: width * height].reshape(height, width), width * height // 4
        blue, red = (flat[width * height + i * half : width * height + (i + 1) * half].reshape(height // 2, width // 2) for i in (0, 1))
        return Picture(luma, (blue, red), self.facts.full_range, (self.facts.kr, self.facts.kb))

    @cached_property
    def bars_px(self) -> tuple[int, int, int, int] | None:
        """Letterbox of the clip: bars that are in every key frame that is not black. Top, bottom, left, right, display px."""
        known = [key.bars_px for key in self.keys if key.bars_px is not None]
        if not known:
            return None
        return tuple(min(bars[side] for bars in known) for side in range(4))  # type: ignore[return-value]


def read_clip_track(
    folder: Path, source_id: str, clip_id: str, start_us: int, end_us: int, read: Literal["keys", "facts", "pictures"] = "pictures"
) -> ClipTrack:
    """The clip's part of the track; an image's clip (start 0, end 0) has its one row.

    `read`: keys reads the key frames only (frames is empty); facts also the frames' numbers; pictures everything.
    Raises FileNotFoundError where the decode pass has not run.
    """
    with pa.memory_map(str(folder / f"{source_id}.keys.arrow")) as file:
        reader = pa.ipc.open_file(file)
        facts = _facts(reader.schema)
        keys = tuple(_key_frames(reader, clip_id))
    if read == "keys":
        return ClipTrack(facts, FRAMES.empty_table(), keys)
    with pa.memory_map(str(folder / f"{source_id}.arrow")) as file:
        return ClipTrack(facts, _rows_between(file, start_us, max(end_us, start_us + 1), read == "pictures"), keys)


def _facts(schema: pa.Schema) -> TrackFacts:
    facts = json.loads((schema.metadata or {})[b"track"])
    if facts.pop("version") != VERSION:
        raise ValueError("the track was written by another version; run detect_shots again")
    return TrackFacts(**facts)


def _key_frames(reader: Any, clip_id: str) -> Iterator[KeyFrame]:
    for index in range(reader.num_record_batches):
        batch = reader.get_batch(index)
        if batch.column("clip_id")[0].as_py() != clip_id:  # one batch holds one clip
            continue
        for row in batch.to_pylist():
            bars = None if row["bars_px"] is None else tuple(row["bars_px"])
            yield KeyFrame(row["time_us"], row["jpeg"], bars, int.from_bytes(row["hash"], "big"))


def _rows_between(file: pa.MemoryMappedFile, start_us: int, end_us: int, pictures: bool) -> pa.Table:
    """Rows of FRAMES with start_us <= time_us < end_us; without `pictures` that column is all null and not read."""
    index = pa.ipc.open_file(file, options=pa.ipc.IpcReadOptions(included_fields=[FRAMES.get_field_index("time_us")]))
    fields = [place for place, field in enumerate(FRAMES) if pictures or field.name != "picture"]
    content = pa.ipc.open_file(file, options=pa.ipc.IpcReadOptions(included_fields=fields))
    parts = []
    for number in range(_first_batch(index, start_us), index.num_record_batches):
        times = index.get_batch(number).column("time_us").to_numpy()
        if times[0] >= end_us:
            break
        inside = np.flatnonzero((times >= start_us) & (times < end_us))
        if len(inside):
            batch = content.get_batch(number).slice(inside[0], inside[-1] - inside[0] + 1)
            columns = [batch.column(f.name) if f.name in batch.schema.names else pa.nulls(len(batch), f.type) for f in FRAMES]
            parts.append(pa.RecordBatch.from_arrays(columns, schema=FRAMES))
    return pa.Table.from_batches(parts, FRAMES)


def _first_batch(index: Any, start_us: int) -> int:
    """The first batch whose last row is not before the time."""
    low, high = 0, index.num_record_batches
    while low < high:
        middle = (low + high) // 2
        times = index.get_batch(middle).column("time_us")
        if times[len(times) - 1].as_py() < start_us:
            low = middle + 1
        else:
            high = middle
    return low
