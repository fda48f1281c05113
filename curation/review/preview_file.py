"""Makes one clip into a file that browsers play. Runs in a supervised child: imports av and numpy, nothing of the page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2

from curation.cut import CutTask, cut_clip
from curation.review.previews import LONGEST_LEAD_IN_US, QUALITY, SHORT_SIDE_PX, PreviewTask
from curation.video import decode_media, frame_geometry, open_media, picture_of
from curation.whole_files import writing

PLAYED_PIXELS = frozenset({"yuv420p", "yuvj420p"})
"""8-bit 4:2:0, the only H.264 that every browser plays."""


def make_preview(task: PreviewTask) -> str:
    """Writes `task.path` and says how. Raises MediaError when the source cannot be read."""
    if task.media_type == "image":
        return _as_png(task)
    encode = CutTask(task.uri, "video", task.start_us, task.end_us, task.path, "encode", SHORT_SIDE_PX, QUALITY)
    why = why_not_copied(task.uri)
    if why is None:
        cut = cut_clip(replace(encode, mode="copy"))
        if cut.method == "copied" and cut.lead_in_us <= LONGEST_LEAD_IN_US:
            return f"the source's own packets ({cut.encoder})"
        why = cut.why_encoded or f"the key frame before it is {cut.lead_in_us / 1e6:.1f} s away"
        if cut.method == "encoded":
            return f"encoded for viewing: {cut.encoder}, at most {SHORT_SIDE_PX} px ({why})"
    cut = cut_clip(encode)
    return f"encoded for viewing: {cut.encoder}, at most {SHORT_SIDE_PX} px ({why})"


def why_not_copied(uri: str) -> str | None:
    """Why browsers would not play the packets as they are, upright and with square pixels; None: they do."""
    with open_media(uri) as (_, stream):
        context, ratio = stream.codec_context, stream.sample_aspect_ratio
        if context.name != "h264":
            return f"the source is {context.name}"
        if context.pix_fmt not in PLAYED_PIXELS:
            return f"the source is {context.pix_fmt}"
        if ratio and ratio != 1:
            return f"its pixels are {ratio} wide"
    return None


def _as_png(task: PreviewTask) -> str:
    """An image that browsers do not show, upright, 8 bit."""
    with open_media(task.uri) as (container, stream):
        for event in decode_media(container, stream):
            if event.frame is None:
                continue
            geometry = frame_geometry(event.frame, stream)
            picture = geometry.rotate(picture_of(event.frame).to_bgr(event.frame.width, event.frame.height))
            with writing(task.path, suffix=".png") as part:
                cv2.imwrite(str(part), picture)
            return f"{Path(task.uri).suffix.lstrip('.')} shown as PNG, 8 bit"
    raise AssertionError("open_media or the decoder says why there is no picture")
