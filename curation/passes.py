"""What a decode pass is asked and what it finds, and the keeper of the child process that makes it.

Apart from `curation.decode_pass`, so that who only keeps the child (a worker, the job) imports no decoder.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from curation.config import DecodeConfig, ShotsConfig
from curation.remote import RemoteError, fetch
from curation.sources import is_remote
from curation.supervised import Failure, SupervisedFunction

DECODE_PASS = "curation.decode_pass:run_pass"
"""What the child processes run."""
UNREACHABLE, CHANGED = "unreachable", "changed"
"""Error codes of remote files that were not decoded."""


@dataclass(frozen=True)
class PassTask:
    """What a decode pass is asked to do."""

    uri: str
    source_id: str
    media_type: str
    frame_rate_hz: float
    decode: DecodeConfig
    shots: ShotsConfig
    tracks: Path


@dataclass(frozen=True)
class ClipFacts:
    """A clip that the pass found."""

    clip_id: str
    start_us: int
    end_us: int
    shot: int
    num_frames: int


@dataclass(frozen=True)
class PassResult:
    """What a decode pass found; pictures are in the track."""

    decoded_frames: int
    corrupt_frames: int
    """Frames flagged by the decoder, and refused packets."""
    cuts_us: list[int]
    clips: list[ClipFacts]
    end_us: int


class DecodePass:
    """The decode pass of one source in a child process. A remote file is fetched first, outside the child's deadline."""

    def __init__(self, config: DecodeConfig) -> None:
        self._run = SupervisedFunction(DECODE_PASS, config.deadline_s, config.memory_bytes, config.attempts)

    def __call__(self, task: PassTask) -> PassResult | Failure:
        if is_remote(task.uri):
            begin = time.monotonic()
            try:
                found = fetch(task.uri).sha256[:32]
            except RemoteError as error:
                return Failure(UNREACHABLE, str(error), 1, time.monotonic() - begin)
            if found != task.source_id:
                return Failure(CHANGED, f"{task.uri} has other bytes than at ingest; run again", 1, time.monotonic() - begin)
        result: PassResult | Failure = self._run(task)
        return result

    def close(self) -> None:
        """Ends the child."""
        self._run.close()
