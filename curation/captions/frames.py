"""Key frames of a clip to be described, off its source's track."""

from __future__ import annotations

from pathlib import Path

from curation.captions.caption import CaptionRequest
from curation.step import StepError
from curation.tracks import ClipTrack, read_clip_track


def read_key_frames(tracks: Path, request: CaptionRequest) -> ClipTrack:
    """The clip's track with its key frames (at least one). Raises StepError `no_track`, `no_key_frames`."""
    try:
        track = read_clip_track(tracks, request.source_id, request.clip_id, request.start_us, request.end_us, read="keys")
    except FileNotFoundError:
        raise StepError("no_track", f"{tracks} holds no track of source {request.source_id}; run detect_shots again") from None
    if not track.keys:
        raise StepError("no_key_frames", "the clip has no key frame; run detect_shots again")
    return track
