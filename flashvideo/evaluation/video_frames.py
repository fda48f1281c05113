"""Videos for the evaluator: facts without decoding, frames one at a time, clips written again in memory.

Frames are uint8 H W 3 (RGB), decoded by PyAV with one thread: the same pixels as decord's and OpenCV's, which VBench reads
with. Of several video streams the best counts, as in decord; OpenCV (flickering, motion, dynamic degree there) takes the first.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from flashvideo.evaluation.protocol import ReEncode
from flashvideo.video_files import VideoFileError

REFERENCE_BIT_RATE = 1_024_000
"""write_video's rate with a PyAV that had a default bit rate (before its pull request 1782)."""
REPEATABLE = {"x264-params": "mbtree=0:scenecut=0"}
"""x264 without what its lookahead decides: with it, equal pixels gave 13 different files in 80 calls (PyAV 18.1)."""


class VideoFacts(NamedTuple):
    """What a file says without being decoded."""

    frames: int
    """Packets of the video stream."""
    frame_rate_hz: float
    height: int
    width: int


def probe(path: Path) -> VideoFacts:
    """Raises VideoFileError for a file that is no video, or whose index names more frames than it holds."""
    try:
        with av.open(str(path)) as container:
            stream = container.streams.best("video")
            if stream is None:
                raise VideoFileError(f"{path.name} has no video stream")
            packets = sum(1 for packet in container.demux(stream) if packet.size)
            facts = VideoFacts(packets, float(stream.average_rate or 0), stream.codec_context.height, stream.codec_context.width)
            named = stream.frames
    except (av.FFmpegError, OSError) as error:
        raise VideoFileError(f"{path.name} cannot be read as a video: {error.strerror}") from None
    if packets == 0 or facts.frame_rate_hz <= 0:
        raise VideoFileError(f"{path.name} holds {packets} frames at {facts.frame_rate_hz:g} frames/s")
    if named and packets < named:
        raise VideoFileError(f"{path.name} is truncated: its index names {named} frames, it holds {packets}")
    return facts


def decoded_frames(path: Path) -> Iterator[np.ndarray]:
    """Every frame. Raises VideoFileError for damage, naming how far it got."""
    count = 0
    try:
        with av.open(str(path)) as container:
            stream = container.streams.best("video")
            stream.codec_context.thread_count = 1
            for frame in container.decode(stream):
                if frame.is_corrupt:
                    raise VideoFileError(f"{path.name} is damaged at frame {count}")
                yield frame.to_ndarray(format="rgb24")
                count += 1
    except (av.FFmpegError, OSError) as error:
        raise VideoFileError(f"{path.name} cannot be decoded after {count} frames: {error.strerror}") from None


def encodable(frame: np.ndarray) -> av.VideoFrame:
    """yuv420p of uint8 H W 3, as the encoder itself would convert it: half the bytes."""
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24").reformat(format="yuv420p")


class ClipWriter:
    """A clip on its way through H.264 in memory, as VBench-Long writes it before scoring (torchvision's write_video).

    yuv420p, preset medium, whole frame rate; sizes must be even. `repeatable`: equal frames give equal bits. `frames()` gives
    the decoded frames.
    """

    def __init__(self, mode: ReEncode, repeatable: bool, frame_rate_hz: int, height: int, width: int) -> None:
        if mode == "none":
            raise ValueError("re_encode none needs no writer")
        if height % 2 or width % 2:
            raise ValueError(f"{width}x{height} px cannot be written again as yuv420p, which needs even sizes; re_encode none keeps them")
        self._buffer = io.BytesIO()
        self._container = av.open(self._buffer, "w", format="mp4")
        self._stream = self._container.add_stream("libx264", rate=Fraction(frame_rate_hz))
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        self._stream.codec_context.thread_count = 1
        self._stream.options = dict(REPEATABLE) if repeatable else {}
        if mode == "1.024M":
            self._stream.bit_rate = REFERENCE_BIT_RATE
        else:
            self._stream.options |= {"crf": "23"}

    def add(self, picture: av.VideoFrame) -> None:
        """The next one, of `encodable`."""
        for packet in self._stream.encode(picture):
            self._container.mux(packet)

    def frames(self) -> Iterator[np.ndarray]:
        """Ends the clip and decodes it."""
        for packet in self._stream.encode():
            self._container.mux(packet)
        self._container.close()
        del self._stream, self._container  # the encoder's pictures, before the decoder's
        self._buffer.seek(0)
        with av.open(self._buffer) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            for frame in container.decode(stream):
                yield frame.to_ndarray(format="rgb24")
