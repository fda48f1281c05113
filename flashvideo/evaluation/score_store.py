"""Scores of single videos, one small file each, so that an evaluation goes on where it stopped. Light.

A score is found by what it depends on: the video's bytes, the prompt, the dimension's rule and networks, the
protocol. A file is written beside and renamed, so any number of workers may share a folder.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from flashvideo.evaluation.protocol import VBenchProtocol
from flashvideo.evaluation.results import Record
from flashvideo.evaluation.scores import ClipScore, Prompt
from flashvideo.evaluation.suite import Problem
from flashvideo.whole_files import write_text

if TYPE_CHECKING:
    from flashvideo.evaluation.dimensions.dimension import Dimension


class CannotStore(RuntimeError):
    """A score cannot be written, as on a full disk; no fault of the video's. The message is one line."""


class VideoScore(Record):
    """What one dimension says of one video, or why it says nothing."""

    video: str
    """File name without suffix when it was scored; the bytes decide, not the name."""
    video_sha256: str
    dimension: str
    metric: str
    """Rule version and networks."""
    protocol: str
    """Digest."""
    stand_in: bool
    """A network that answered is a stand-in: the number means nothing outside tests."""
    clips: dict[str, ClipScore]
    """Clip name (full for whole videos) -> score."""
    across: float | None = None
    """Consistency of the clips' first frames (vbench_long); None for a single clip."""
    failed: Problem | None = None
    """Why the video has no score: it is not decoded again for the same reason. `clips` is empty then."""


def metric_version(dimension: Dimension, across: Dimension | None = None) -> str:
    """Rule version and the identity of every network, in one line."""
    parts = [dimension.version]
    for prefix, rule in (("", dimension), ("across clips ", across)):
        parts += [f"{prefix}{role} {one.name} {one.identity}" for role, one in sorted(rule.networks.items())] if rule else []
    return "; ".join(parts)


def score_key(video_sha256: str, prompt: Prompt, dimension: str, metric: str, protocol: VBenchProtocol) -> str:
    """sha256 of everything that the score depends on. Of the prompt: its text, what to look for, its clip length."""
    what = [video_sha256, prompt.text, prompt.auxiliary.get(dimension), sorted(prompt.dimensions), dimension, metric, protocol.digest]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


class ScoreStore:
    """A folder of scores."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"

    def get(self, key: str) -> VideoScore | None:
        """None where there is none, or where a file does not hold one (it is written again)."""
        try:
            return VideoScore.model_validate_json(self._path(key).read_text())
        except (OSError, ValidationError):
            return None

    def put(self, key: str, score: VideoScore) -> None:
        """Raises CannotStore."""
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, score.model_dump_json())
        except OSError as error:
            raise CannotStore(f"cannot write {path}: {error.strerror}; the same command goes on from there") from error
