"""The one door to pixels: probe a file, decode it in order with exact times, read a clip's training pixels.

PyAV only (no ffmpeg binary). Times are presentation times of the file in microseconds, as the container
states them (the first frame need not be at 0). Pictures come out as they are meant to be shown: rotated,
with square pixels, full range. Damage is counted, never hidden: a packet that the decoder refuses and a
frame that it flags are both events of the sequence. PyAV's log callback stays off: it can deadlock workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from av.codec.context import Flags

from curation.remote import RemoteError, local_path
from curation.sources import IMAGE_SUFFIXES

MICROSECONDS = 1_000_000
TIME_TOLERANCE_US = 1_000
"""Container clocks tick in ms (webm) or finer; a frame this much after the wanted time still counts as at it."""
DECODER_THREADS = 2
"""Fixed, so that concealment of damaged frames does not depend on the machine's cores."""
BLACK_LUMA = 25.5
"""Full-range luma below which a pixel is black (10 % of 255, as ffmpeg's blackdetect)."""

_TRANSFER_PQ, _TRANSFER_HLG = 16, 18
_FULL_RANGE = 2
_MATRIX = {1: (0.2126, 0.0722), 4: (0.30, 0.11), 5: (0.299, 0.114), 6: (0.299, 0.114), 7: (0.212, 0.087)}
_MATRIX |= {9: (0.2627, 0.0593), 10: (0.2627, 0.0593)}
"""ITU-T H.273 matrix coefficients -> (Kr, Kb)."""
_PLANAR_8BIT = frozenset(f"{prefix}{chroma}p" for prefix in ("yuv", "yuvj") for chroma in ("420", "422", "444"))


class MediaError(Exception):
    """A file or a clip that cannot be read, with a stable code for the errors table."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        return MediaError, (self.code, str(self))


@dataclass(frozen=True)
class Probe:
    """What a file is, from its container, its packets and its first picture."""

    media_type: str
    container: str
    codec: str
    pixel_format: str
    width: int
    """Display width, px: after rotation and sample aspect ratio."""
    height: int
    rotation_deg: int
    """Clockwise rotation to display: 0, 90, 180 or 270."""
    sample_aspect_ratio: float
    frame_rate_hz: float | None
    """Average; None for an image."""
    variable_frame_rate: bool
    declared_frames: int | None
    """Frames that the container declares; None where it does not say."""
    packets: int
    """Video packets found, which is about the number of frames."""
    duration_s: float
    bit_depth: int
    hdr: bool
    full_range: bool
    key_frame_interval_s: float | None


@dataclass(frozen=True)
class Decoded:
    """One event of a decode: a frame, or (frame None) a packet that the decoder refused."""

    frame: av.VideoFrame | None
    time_us: int
    corrupt: bool


@dataclass(frozen=True)
class Geometry:
    """How a stored picture becomes the displayed one."""

    rotation_deg: int
    """Clockwise: 0, 90, 180, 270."""
    sample_aspect_ratio: float

    def display_size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) as shown; non-square pixels are stretched, never squeezed."""
        ratio = self.sample_aspect_ratio
        if ratio >= 1:
            width = max(1, round(width * ratio))
        else:
            height = max(1, round(height / ratio))
        return (height, width) if self.rotation_deg in (90, 270) else (width, height)

    def rotate(self, picture: np.ndarray) -> np.ndarray:
        """The picture (H W or H W C) turned upright."""
        codes = {90: cv2.ROTATE_90_CLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_COUNTERCLOCKWISE}
        code = codes.get(self.rotation_deg)
        return picture if code is None else cv2.rotate(picture, code)


@contextmanager
def open_media(uri: str) -> Iterator[tuple[Any, Any]]:
    """(container, its best video stream), closed afterwards. Raises MediaError with a code that says why not."""
    path = _path_of(uri)
    if not path.exists():
        raise MediaError("missing", f"{uri} does not exist; was it moved after ingest?")
    if path.stat().st_size == 0:
        raise MediaError("empty_file", f"{uri} holds 0 bytes; copy it again")
    try:
        container = av.open(_literal(str(path)), metadata_errors="ignore")
    except av.error.FFmpegError as error:
        raise _open_error(path, error) from None
    try:
        if not container.streams.video:
            kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "none"
            raise MediaError("no_video_stream", f"{uri} has no video stream (streams: {kinds})")
        stream = _best_stream(container.streams.video)
        if stream.codec_context is None:
            raise MediaError(
                "no_decoder", f"{uri}: its video track names a codec that FFmpeg has no decoder for; the header may be damaged"
            )
        yield container, stream
    finally:
        container.close()


def _best_stream(streams: Sequence[Any]) -> Any:
    """The one with the largest picture (players show that one), the first of equals; an attached cover only where there is no other."""

    def worth(stream: Any) -> tuple[bool, bool, int]:
        codec = stream.codec_context
        film = not stream.disposition & av.stream.Disposition.attached_pic
        return codec is not None, film, codec.width * codec.height if codec is not None else 0

    return max(streams, key=worth)


def _path_of(uri: str) -> Path:
    """Where the bytes lie: the path, or the copy of a remote file."""
    try:
        return local_path(uri)
    except RemoteError as error:
        raise MediaError("unreachable", str(error)) from None


def _literal(path: str) -> str:
    """An URL that names exactly this path: ffmpeg would read `a:b` as a protocol and `%d` as an image sequence."""
    return f"file:{path}"


def _open_error(path: Path, error: av.error.FFmpegError) -> MediaError:
    boxes, cut_short = _top_level_boxes(path)
    if "ftyp" in boxes or "moov" in boxes or "mdat" in boxes:
        if "moov" not in boxes:
            return MediaError("truncated", f"{path} has no moov box (boxes: {' '.join(boxes)}): the file was cut short before its index")
        why = "cut short" if cut_short else "not readable"
        return MediaError("invalid_container", f"{path} is an MP4 whose index is {why}: {error.strerror}")
    return MediaError("not_media", f"{path} is no media file that FFmpeg knows: {error.strerror}")


def _top_level_boxes(path: Path) -> tuple[list[str], bool]:
    """Names of an MP4 file's top-level boxes, and whether the last one reaches past the end of the file."""
    names: list[str] = []
    size, place = path.stat().st_size, 0
    with open(path, "rb") as file:
        while place + 8 <= size and len(names) < 64:
            file.seek(place)
            head = file.read(16)
            length, name = int.from_bytes(head[:4], "big"), head[4:8]
            if not (name.isalnum() and name.isascii()):
                return names, False
            names.append(name.decode())
            if length == 1:
                length = int.from_bytes(head[8:16], "big")
            if length == 0:
                return names, False
            if length < 8:
                return names, True
            place += length
    return names, place > size


def probe(uri: str) -> Probe:
    """What the file is. Reads every packet, decodes up to the first picture. Raises MediaError."""
    with open_media(uri) as (container, stream):
        frame = _first_frame(container, stream, uri)
        geometry = frame_geometry(frame, stream)
        width, height = geometry.display_size(frame.width, frame.height)
        facts: dict[str, Any] = {
            "container": container.format.name,
            "codec": stream.codec_context.name,
            "pixel_format": frame.format.name,
            "width": width,
            "height": height,
            "rotation_deg": geometry.rotation_deg,
            "sample_aspect_ratio": geometry.sample_aspect_ratio,
            "bit_depth": max(component.bits for component in frame.format.components),
            "hdr": frame.color_trc in (_TRANSFER_PQ, _TRANSFER_HLG),
            "full_range": _is_full_range(frame),
        }
        if _is_image(uri, container):
            return Probe(media_type="image", frame_rate_hz=None, variable_frame_rate=False, declared_frames=1, packets=1,
                         duration_s=0.0, key_frame_interval_s=None, **facts)  # fmt: skip
        return Probe(media_type="video", declared_frames=stream.frames or None, **_timing(uri), **facts)


def _first_frame(container: Any, stream: Any, uri: str) -> av.VideoFrame:
    for event in decode_media(container, stream):
        if event.frame is not None:
            return event.frame
    with open(_path_of(uri), "rb") as file:
        head = file.read(1 << 20)
    if b"encv" in head or b"sinf" in head:
        raise MediaError("encrypted", f"{uri}: the video track is encrypted and no picture can be decoded")
    raise MediaError("no_frames", f"{uri}: a {stream.codec_context.name} track is declared but no picture can be decoded")


def _is_image(uri: str, container: Any) -> bool:
    name = container.format.name
    return name.endswith("_pipe") or name == "image2" or Path(uri).suffix.lower() in IMAGE_SUFFIXES


def _timing(uri: str) -> dict[str, Any]:
    """Frame rate, spacing and length from the packets, without decoding."""
    with open_media(uri) as (container, stream):
        base, times, key_times = stream.time_base, [], []
        declared_rate = stream.average_rate
        packets = 0
        for packet in _packets(container, stream):
            packets += 1
            if packet.pts is not None:
                times.append(packet.pts * base)
                if packet.is_keyframe:
                    key_times.append(packet.pts * base)
    times.sort()
    gaps = [float(later - earlier) for earlier, later in pairwise(times) if later > earlier]
    usual = float(np.median(gaps)) if gaps else (float(1 / declared_rate) if declared_rate else 0.04)
    length = float(times[-1] - times[0]) + usual if times else packets * usual
    rate = packets / length if length > 0 else None
    # Container clocks round frame times (webm: to 1 ms), so unevenness below 20 % of a frame is not variable.
    variable = bool(gaps) and float(np.mean(np.abs(np.array(gaps) - usual) > 0.2 * usual)) > 0.02
    if declared_rate and not variable and rate is not None and abs(float(declared_rate) - rate) < 0.05 * rate:
        rate = float(declared_rate)
    keys = sorted(key_times)
    interval = float(keys[-1] - keys[0]) / (len(keys) - 1) if len(keys) > 1 else None
    return {
        "frame_rate_hz": rate,
        "variable_frame_rate": variable,
        "packets": packets,
        "duration_s": length,
        "key_frame_interval_s": interval,
    }


def _packets(container: Any, stream: Any) -> Iterator[Any]:
    """Packets with data; a demuxer that gives up midway ends the sequence."""
    demuxer = container.demux(stream)
    while True:
        try:
            packet = next(demuxer)
        except (StopIteration, av.error.FFmpegError):
            return
        if packet.size:
            yield packet


def decode_media(container: Any, stream: Any, threads: int = DECODER_THREADS) -> Iterator[Decoded]:
    """Every frame and every refused packet, in decoding order, from where the container stands. Raises MemoryError."""
    if not stream.codec_context.is_open:  # open: a second time over the same file, after a seek that led nowhere
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = threads
        stream.codec_context.flags |= Flags.output_corrupt  # show damaged frames, flagged, instead of leaving them out
    clock = _Clock(stream)
    demuxer = container.demux(stream)
    while True:
        try:
            packet = next(demuxer)
        except StopIteration:
            return
        except MemoryError:
            raise
        except av.error.FFmpegError:
            yield Decoded(None, clock.next_us(), True)
            return
        try:
            frames = packet.decode()
        except MemoryError:  # FFmpeg's ENOMEM is an FFmpegError too, but says nothing of the file
            raise
        except av.error.FFmpegError:
            yield Decoded(None, clock.of(packet.pts), True)
            continue
        for frame in frames:
            yield Decoded(frame, clock.of(frame.pts), bool(frame.is_corrupt))


class _Clock:
    """Presentation times in us; a frame without one follows the last by a frame of the average rate."""

    def __init__(self, stream: Any) -> None:
        self._base = stream.time_base
        rate = stream.average_rate or Fraction(25)
        self.period_us = round(MICROSECONDS / rate)
        self._last: int | None = None

    def next_us(self) -> int:
        return 0 if self._last is None else self._last + self.period_us

    def of(self, pts: int | None) -> int:
        self._last = self.next_us() if pts is None else round(pts * self._base * MICROSECONDS)
        return self._last


def decode(uri: str) -> Iterator[Decoded]:
    """The whole file, once, in order. Raises MediaError when it cannot be opened; damage inside is yielded."""
    with open_media(uri) as (container, stream):
        yield from decode_media(container, stream)


def frame_geometry(frame: av.VideoFrame, stream: Any) -> Geometry:
    """Rotation to the nearest quarter turn, and the sample aspect ratio (1 where unset)."""
    clockwise = round(-(frame.rotation or 0) / 90) * 90 % 360
    ratio = stream.sample_aspect_ratio
    return Geometry(clockwise, float(ratio) if ratio else 1.0)


def _is_full_range(frame: av.VideoFrame) -> bool:
    return frame.format.name.startswith("yuvj") or frame.color_range == _FULL_RANGE or frame.format.is_rgb


@dataclass(frozen=True)
class Picture:
    """8-bit Y, U, V planes of one frame as stored (not rotated), and what they mean."""

    luma: np.ndarray
    """H W uint8; rows may be padded in memory."""
    chroma: tuple[np.ndarray, np.ndarray]
    """Two planes, h w uint8, subsampled or not; 1 x 1 for grey pictures."""
    full_range: bool
    kr_kb: tuple[float, float]

    def luma_to_full_range(self, value: Any) -> Any:
        """Luma (a number or an array) on the 0-255 scale."""
        return value if self.full_range else (value - 16.0) * (255.0 / 219.0)

    def to_rgb(self, width: int, height: int) -> np.ndarray:
        """H W 3 uint8 at the given size (of the stored, unrotated picture): area when smaller, cubic when larger."""
        planes = [resize(plane, width, height) for plane in (self.luma, *self.chroma)]
        return cv2.transform(cv2.merge(planes), _rgb_matrix(self.full_range, *self.kr_kb))

    def to_bgr(self, width: int, height: int) -> np.ndarray:
        """As `to_rgb`, channels in OpenCV's order."""
        planes = [resize(plane, width, height) for plane in (self.luma, *self.chroma)]
        return cv2.transform(cv2.merge(planes), _rgb_matrix(self.full_range, *self.kr_kb)[::-1].copy())


@lru_cache
def _rgb_matrix(full_range: bool, kr: float, kb: float) -> np.ndarray:
    """3 x 4 affine matrix from Y, U, V bytes to R, G, B bytes; not to be written to."""
    kg = 1 - kr - kb
    gain_y, gain_c, offset = (1.0, 1.0, 0.0) if full_range else (255 / 219, 255 / 224, 16.0)
    rows = np.array(
        [
            [gain_y, 0.0, 2 * (1 - kr) * gain_c],
            [gain_y, -2 * (1 - kb) * kb / kg * gain_c, -2 * (1 - kr) * kr / kg * gain_c],
            [gain_y, 2 * (1 - kb) * gain_c, 0.0],
        ]
    )
    shift = -rows @ np.array([offset, 128.0, 128.0])
    return np.concatenate([rows, shift[:, None]], axis=1).astype(np.float32)


def picture_of(frame: av.VideoFrame) -> Picture:
    """The frame's planes without a copy where it is 8-bit planar YUV; everything else through swscale at full size."""
    full_range = _is_full_range(frame)
    default = _MATRIX[1] if min(frame.width, frame.height) >= 720 else _MATRIX[6]  # untagged: as players do
    kr_kb = _MATRIX.get(frame.colorspace, default)
    name = frame.format.name
    if name.startswith("gray") and len(frame.planes) == 1:
        luma = _plane(frame.reformat(format="gray") if name != "gray" else frame, 0)
        middle = np.full((1, 1), 128, np.uint8)
        return Picture(luma, (middle, middle), True if name == "gray" else full_range, kr_kb)
    if name not in _PLANAR_8BIT:
        if frame.format.is_rgb or name == "pal8":
            return _picture_of_rgb(frame.to_ndarray(format="rgb24"))
        color_range = "JPEG" if full_range else "MPEG"
        frame = frame.reformat(format="yuv444p", src_color_range=color_range, dst_color_range=color_range)
    return Picture(_plane(frame, 0), (_plane(frame, 1), _plane(frame, 2)), full_range, kr_kb)


def _picture_of_rgb(rgb: np.ndarray) -> Picture:
    """Full-range BT.709 planes of an H W 3 uint8 picture."""
    kr, kb = _MATRIX[1]
    kg = 1 - kr - kb
    blue, red = 2 * (1 - kb), 2 * (1 - kr)
    rows = [[kr, kg, kb, 0.0], [-kr / blue, -kg / blue, (1 - kb) / blue, 128.0], [(1 - kr) / red, -kg / red, -kb / red, 128.0]]
    luma, cb, cr = cv2.split(cv2.transform(rgb, np.array(rows, np.float32)))
    return Picture(luma, (cb, cr), True, (kr, kb))


def _plane(frame: av.VideoFrame, index: int) -> np.ndarray:
    plane = frame.planes[index]
    return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: plane.height, : plane.width]


def resize(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    """H W or H W C at a new size: area when it shrinks on both sides, cubic otherwise."""
    if picture.shape[:2] == (height, width):
        return picture
    if picture.dtype == np.uint8 and picture.shape == (3 * height, 3 * width):  # 1080 to 360
        # OpenCV's area reduction is quick for halves only; this gives the same bytes in half the time.
        return np.ascontiguousarray(cv2.blur(picture, (3, 3))[1::3, 1::3])
    shrinks = width <= picture.shape[1] and height <= picture.shape[0]
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def read_clip(
    uri: str, start_us: int, end_us: int, frame_rate_hz: float, num_frames: int, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Training pixels of a span: (uint8 T H W C in RGB, int64 T of the frames' own times in us).

    Frame k is the one on show at start_us + k / frame_rate_hz. The upright picture is resized by area so that it
    covers height x width with its aspect kept, then cropped at the centre. An image source gives num_frames = 1.
    Raises MediaError `too_few_frames` when the span or the file holds fewer.
    """
    targets = [start_us + round(k * MICROSECONDS / frame_rate_hz) for k in range(num_frames)]
    if num_frames > 1 and targets[-1] >= end_us:
        raise MediaError(
            "too_few_frames",
            f"{uri}: {num_frames} frames at {frame_rate_hz:g} Hz last {(targets[-1] - start_us) / 1e6:g} s, the span "
            f"{start_us}-{end_us} us only {(end_us - start_us) / 1e6:g} s; raise shots.min_duration_s",
        )
    frames, times = [], []
    for frame, time_us, geometry in _frames_on_show(uri, targets):
        frames.append(cover_and_crop(frame, geometry, height, width))
        times.append(time_us)
    if len(frames) < num_frames:
        raise MediaError("too_few_frames", f"{uri}: {len(frames)} of {num_frames} frames could be read from {start_us} us on")
    return np.stack(frames), np.array(times, np.int64)


def _frames_on_show(uri: str, targets: list[int]) -> Iterator[tuple[av.VideoFrame, int, Geometry]]:
    """For each target time the frame on show: the last one that starts no later (the first one, before all)."""
    with open_media(uri) as (container, stream):
        geometry: Geometry | None = None
        shown: Decoded | None = None
        wanted = iter(targets)
        target = next(wanted, None)
        for event in decode_from(container, stream, targets[0]):
            if event.frame is None:
                continue
            if geometry is None:
                geometry = frame_geometry(event.frame, stream)
            while target is not None and shown is not None and event.time_us > target + TIME_TOLERANCE_US:
                yield shown.frame, shown.time_us, geometry
                target = next(wanted, None)
            if target is None:
                return
            if shown is None or event.time_us >= shown.time_us:
                shown = event
        period_us = _Clock(stream).period_us
        while target is not None and shown is not None and geometry is not None:
            if target > shown.time_us + period_us + TIME_TOLERANCE_US and target != targets[0]:
                return
            yield shown.frame, shown.time_us, geometry
            target = next(wanted, None)


def decode_from(container: Any, stream: Any, start_us: int) -> Iterator[Decoded]:
    """Decodes from the key frame at or before the time; from the beginning where seeking does not work."""
    if start_us > 0:
        try:
            container.seek(int(Fraction(start_us, MICROSECONDS) / stream.time_base), backward=True, stream=stream)
            events = decode_media(container, stream)
            first = next((event for event in events if event.frame is not None and not event.corrupt), None)
            # a "key frame" that is none leaves pictures without their references, and not all of them are flagged
            whole = first is not None and first.frame is not None and first.frame.key_frame
            if first is not None and whole and first.time_us <= start_us + TIME_TOLERANCE_US:
                yield first
                yield from events
                return
        except av.error.FFmpegError:
            pass  # no index: read from the beginning
        container.seek(0, backward=True, any_frame=False)
    yield from decode_media(container, stream)


def cover_and_crop(frame: av.VideoFrame, geometry: Geometry, height: int, width: int) -> np.ndarray:
    """H W 3 uint8: the upright picture scaled to cover the size, centre crop."""
    shown_width, shown_height = geometry.display_size(frame.width, frame.height)
    scale = max(width / shown_width, height / shown_height)
    cover_width, cover_height = max(width, round(shown_width * scale)), max(height, round(shown_height * scale))
    turned = geometry.rotation_deg in (90, 270)
    stored = (cover_height, cover_width) if turned else (cover_width, cover_height)
    picture = geometry.rotate(picture_of(frame).to_rgb(*stored))
    top, left = (cover_height - height) // 2, (cover_width - width) // 2
    return np.ascontiguousarray(picture[top : top + height, left : left + width])
