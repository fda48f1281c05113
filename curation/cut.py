"""One clip as a file of its own: packets copied from the key frame on, or the pictures encoded anew and said so.

A copy keeps the source's bits. It starts at the key frame at or before the clip and may end with frames that others
refer to; an edit list hides both, so that players and readers that heed it (FFmpeg, browsers) show the clip exactly.
Sound is left out. An image is copied as it is.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from curation.video import MICROSECONDS, TIME_TOLERANCE_US, MediaError, decode_from, frame_geometry, open_media, picture_of
from curation.whole_files import writing

COPIED_CODECS = frozenset({"h264", "hevc", "vp9", "mpeg4"})
"""Codecs whose packets MP4 holds and PyAV can pass on."""
CRF, PRESET = 12, "medium"
"""Of libx264: visually without loss, since a model that learns detail sees every artefact."""
ENCODER_THREADS = 2
TICKS_HZ = 90_000
MODES = ("copy", "encode")


class CannotCopyError(Exception):
    """Why the packets of a clip cannot be copied."""


@dataclass(frozen=True)
class CutTask:
    """A clip and where it goes."""

    uri: str
    """A path; remote files are fetched before."""
    media_type: str
    start_us: int
    end_us: int
    path: Path
    """Made atomically. Videos are MP4 whatever its suffix."""
    mode: str
    """copy: copied where that is possible, else encoded, with the reason. encode: always encoded."""
    short_side_px: int | None = None
    """Encoded pictures are made at most this large, for looking at only, with sides that 4:2:0 takes. None: the source's own size."""
    quality: tuple[int, str] = (CRF, PRESET)
    """CRF and preset of libx264."""


@dataclass(frozen=True)
class Cut:
    """What was written."""

    method: str
    """copied | encoded | file (an image, as it is)."""
    encoder: str
    """Codec of the source where it was copied; else encoder, quality and pixel format."""
    why_encoded: str | None
    """Where a copy was asked for and could not be had."""
    lead_in_us: int
    """Hidden in the file before the clip, from the key frame on."""
    frames: int | None
    """Shown frames; None: copied, not counted."""
    bytes: int


def cut_clip(task: CutTask) -> Cut:
    """Writes the clip. Raises MediaError when the file cannot be opened or holds no picture of the span."""
    with writing(task.path) as part:
        if task.media_type == "image":
            if not Path(task.uri).is_file():
                raise MediaError("missing", f"{task.uri} does not exist; was it moved after ingest?")
            shutil.copyfile(task.uri, part)
            facts: dict[str, Any] = {"method": "file", "encoder": "", "why_encoded": None, "lead_in_us": 0, "frames": 1}
        else:
            facts = _cut_video(task, part)
        size = part.stat().st_size
    return Cut(bytes=size, **facts)


def _cut_video(task: CutTask, part: Path) -> dict[str, Any]:
    why = None
    if task.mode == "copy":
        try:
            codec, lead_in_us = _copy(task, part)
            return {"method": "copied", "encoder": codec, "why_encoded": None, "lead_in_us": lead_in_us, "frames": None}
        except CannotCopyError as error:
            why = str(error)
    frames, encoder = _encode(task, part)
    return {"method": "encoded", "encoder": encoder, "why_encoded": why, "lead_in_us": 0, "frames": frames}


# ---- copied packets ----------------------------------------------------------------------------------------------


def _copy(task: CutTask, part: Path) -> tuple[str, int]:
    """(codec, length of the lead-in in us). Raises CannotCopyError."""
    entry_us = _entry_us(task)
    with open_media(task.uri) as (source, stream):
        codec = stream.codec_context.name
        if codec not in COPIED_CODECS:
            raise CannotCopyError(f"{codec} is not copied into MP4 ({', '.join(sorted(COPIED_CODECS))} are)")
        ticks = 1 / stream.time_base
        start, end = (round(Fraction(time_us, MICROSECONDS) * ticks) for time_us in (task.start_us, task.end_us))
        try:
            lead_in = _copy_packets(source, stream, start, end, part)
        except av.error.FFmpegError as error:
            raise CannotCopyError(f"its packets cannot be copied: {error.strerror}") from None
    if round((start - lead_in) / ticks * MICROSECONDS) > entry_us + TIME_TOLERANCE_US:
        raise CannotCopyError("the key frame before it does not decode by itself")
    _trim_edit_list(part, task.end_us - task.start_us)
    return codec, round(lead_in / ticks * MICROSECONDS)


def _entry_us(task: CutTask) -> int:
    """Where decoding has to begin for the clip's pictures to be whole; some files mark frames as key that are none."""
    with open_media(task.uri) as (source, stream):
        first = next((event for event in decode_from(source, stream, task.start_us) if event.frame is not None), None)
    if first is None:
        raise CannotCopyError("no picture of it decodes")
    return first.time_us


def _copy_packets(source: Any, stream: Any, start: int, end: int, part: Path) -> int:
    """Passes on the packets that the span needs, in decoding order; returns the ticks before it."""
    source.seek(start, backward=True, stream=stream)
    first: int | None = None
    shown, waiting = 0, []
    with av.open(str(part), "w", format="mp4") as target:
        written = target.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if not packet.size:
                continue
            if packet.pts is None or packet.dts is None:
                raise CannotCopyError("its packets carry no times")
            if packet.dts >= end:
                break
            if first is None:
                if not packet.is_keyframe or packet.pts > start:
                    raise CannotCopyError("there is no key frame to seek to before the clip")
                first = packet.pts
            waiting.append(packet)
            if packet.pts < end:  # what comes later in time is passed on only where something after it is shown
                shown += packet.pts >= start
                for each in waiting:
                    each.pts, each.dts, each.stream = each.pts - start, each.dts - start, written
                    target.mux(each)
                waiting = []
    if first is None or not shown:
        raise CannotCopyError("no packet of the span was found")
    return start - first


def _trim_edit_list(path: Path, length_us: int) -> None:
    """Ends the edit list, and what the boxes say of the length, with the clip (the muxer's end with the last packet)."""
    data = bytearray(path.read_bytes())
    moov = data.rindex(b"moov")
    places = {name: data.find(name, moov) for name in (b"mvhd", b"tkhd", b"elst")}
    if min(places.values()) < 0 or any(data[place + 4] for place in places.values()):
        raise CannotCopyError("the copy has no edit list of 32 bits")
    mvhd, tkhd, elst = (places[name] + 4 for name in (b"mvhd", b"tkhd", b"elst"))
    timescale = int.from_bytes(data[mvhd + 12 : mvhd + 16], "big")
    entries = int.from_bytes(data[elst + 4 : elst + 8], "big")
    last = elst + 8 + 12 * (entries - 1)
    before = sum(int.from_bytes(data[elst + 8 + 12 * i : elst + 12 + 12 * i], "big") for i in range(entries - 1))
    length = length_us * timescale // MICROSECONDS
    whole = before + min(length, int.from_bytes(data[last : last + 4], "big"))
    for place, value in ((last, whole - before), (mvhd + 16, whole), (tkhd + 20, whole)):
        data[place : place + 4] = value.to_bytes(4, "big")
    path.write_bytes(bytes(data))


# ---- encoded pictures --------------------------------------------------------------------------------------------


def _encode(task: CutTask, part: Path) -> tuple[int, str]:
    """(frames, encoder). Upright pictures with square pixels, H.264, at the source's own times."""
    frames, encoder = 0, ""
    with open_media(task.uri) as (source, stream), av.open(str(part), "w", format="mp4") as target:
        written = None
        for event in decode_from(source, stream, task.start_us):
            if event.frame is None or event.time_us < task.start_us - TIME_TOLERANCE_US:
                continue
            if event.time_us >= task.end_us:
                break
            geometry = frame_geometry(event.frame, stream)
            size = _shown_size(geometry.display_size(event.frame.width, event.frame.height), task.short_side_px)
            stored = size[::-1] if geometry.rotation_deg in (90, 270) else size
            picture = geometry.rotate(picture_of(event.frame).to_rgb(*stored))
            if written is None:
                written, encoder = _h264(target, stream, size, task.quality)
            shown = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            shown = shown.reformat(format=written.pix_fmt, dst_colorspace="ITU709")
            shown.pts, shown.time_base = round((event.time_us - task.start_us) * TICKS_HZ / MICROSECONDS), Fraction(1, TICKS_HZ)
            target.mux(written.encode(shown))
            frames += 1
        if written is None:
            raise MediaError("no_frames", f"{task.uri}: no picture between {task.start_us} and {task.end_us} us can be decoded")
        target.mux(written.encode(None))
    return frames, encoder


def _shown_size(size: tuple[int, int], short_side_px: int | None) -> tuple[int, int]:
    """Width and height to encode at; even where a limit is given, whether or not it is reached."""
    if short_side_px is None:
        return size
    scale = min(1.0, short_side_px / min(size))
    return max(2, 2 * round(size[0] * scale / 2)), max(2, 2 * round(size[1] * scale / 2))


def _h264(target: Any, stream: Any, size: tuple[int, int], quality: tuple[int, str]) -> tuple[Any, str]:
    written = target.add_stream("libx264", rate=stream.average_rate or 25)
    written.width, written.height = size
    written.pix_fmt = "yuv444p" if size[0] % 2 or size[1] % 2 else "yuv420p"  # 4:2:0 needs even sides
    written.time_base = written.codec_context.time_base = Fraction(1, TICKS_HZ)
    written.codec_context.colorspace = 1
    written.codec_context.thread_count = ENCODER_THREADS
    written.options = {"crf": str(quality[0]), "preset": quality[1]}
    return written, f"libx264 crf {quality[0]} {quality[1]}, {written.pix_fmt} 8 bit, BT.709"
