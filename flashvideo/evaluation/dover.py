"""DOVER's two scores out of its raw branches, in both conventions that are in print. Light.

    a = (A - mean_a) / std_a,  t = (T - mean_t) / std_t,  score = sigmoid, overall = sigmoid(0.6104 a + 0.3896 t)

dover_fixed: constants with their own branches, as in DOVER's set script until 2023-08-11. dover_master: exchanged, as in
the script since (its issue 32 is open); a natural video then reads technical 6.7 and aesthetic 99.4, the range of the
paper's DOVER columns. DOVER itself is S-Lab non-commercial and no part of this project: raw scores come from a backend,
which is the user's command or a stand-in that says so.
"""

from __future__ import annotations

import json
import math
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np

Convention = Literal["dover_fixed", "dover_master"]
AESTHETIC, TECHNICAL = (0.1107, 0.07355), (-0.08285, 0.03774)
"""Mean and standard deviation of the raw branches."""
AESTHETIC_SHARE, TECHNICAL_SHARE = 0.6104, 0.3896


class DoverScores(NamedTuple):
    """0-1."""

    technical: float
    aesthetic: float
    overall: float


def _constants(convention: Convention) -> tuple[tuple[float, float], tuple[float, float]]:
    """Of the aesthetic and of the technical branch."""
    return (AESTHETIC, TECHNICAL) if convention == "dover_fixed" else (TECHNICAL, AESTHETIC)


def dover_scores(raw_aesthetic: float, raw_technical: float, convention: Convention) -> DoverScores:
    """Raw branch outputs (about -0.3 to 0.4) to scores. Raises ValueError where one is not finite."""
    if not (math.isfinite(raw_aesthetic) and math.isfinite(raw_technical)):
        raise ValueError(f"DOVER's raw scores are {raw_aesthetic} and {raw_technical}; both must be finite")
    (mean_a, std_a), (mean_t, std_t) = _constants(convention)
    a, t = (raw_aesthetic - mean_a) / std_a, (raw_technical - mean_t) / std_t
    return DoverScores(_sigmoid(t), _sigmoid(a), _sigmoid(AESTHETIC_SHARE * a + TECHNICAL_SHARE * t))


def dover_raw(technical: float, aesthetic: float, convention: Convention) -> tuple[float, float]:
    """Raw aesthetic and technical outputs of scores in 0-1 (exclusive). For means over videos this is approximate."""
    if not (0 < technical < 1 and 0 < aesthetic < 1):
        raise ValueError(f"DOVER scores {technical:g} and {aesthetic:g} must lie between 0 and 1; divide percent by 100")
    (mean_a, std_a), (mean_t, std_t) = _constants(convention)
    return mean_a + std_a * _logit(aesthetic), mean_t + std_t * _logit(technical)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def _logit(p: float) -> float:
    return math.log(p / (1 - p))


class DoverBackend(Protocol):
    """Who gives the raw scores."""

    @property
    def name(self) -> str: ...
    @property
    def is_stand_in(self) -> bool: ...

    def __call__(self, frames: np.ndarray, frame_rate_hz: float) -> tuple[float, float]:
        """uint8 T H W C -> raw aesthetic, raw technical."""
        ...


class StandInDover:
    """Closed form: aesthetic (spread of all pixels - 64) / 512, technical (mean difference of rows - 16) / 128. Means nothing."""

    name, is_stand_in = "StandInDover, closed form 1", True

    def __call__(self, frames: np.ndarray, frame_rate_hz: float) -> tuple[float, float]:
        levels = frames[:: max(1, len(frames) // 4)].astype(np.float32)
        return (float(levels.std()) - 64) / 512, (float(np.abs(np.diff(levels, axis=1)).mean()) - 16) / 128


class CommandDover:
    """The user's own DOVER behind a command: `COMMAND... VIDEO.mp4` prints one line of JSON, [raw aesthetic, raw technical].

    The frames are handed over as H.264 without loss (yuv420p). Raises ValueError with the command's last line where it fails.
    """

    is_stand_in = False

    def __init__(self, command: Sequence[str]) -> None:
        if not command:
            raise ValueError("evaluation.dover is command, but evaluation.dover_command is empty; name the program that runs your DOVER")
        self._command = tuple(command)
        self.name = f"DOVER by {Path(command[0]).name}"

    def __call__(self, frames: np.ndarray, frame_rate_hz: float) -> tuple[float, float]:
        from flashvideo.video_files import write_video

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "video.mp4"
            write_video(path, frames, frame_rate_hz, crf=0)
            try:
                answer = subprocess.run([*self._command, str(path)], capture_output=True, text=True, check=False)
            except OSError as error:
                raise ValueError(f"evaluation.dover_command {self._command[0]} cannot be run: {error.strerror}") from None
        lines = [line for line in (answer.stdout if answer.returncode == 0 else answer.stderr).splitlines() if line.strip()]
        last = lines[-1] if lines else "no message"
        if answer.returncode:
            raise ValueError(f"evaluation.dover_command failed ({last}; exit code {answer.returncode})")
        try:
            aesthetic, technical = json.loads(last)
            return float(aesthetic), float(technical)
        except (TypeError, ValueError):
            raise ValueError(f"evaluation.dover_command must print [raw aesthetic, raw technical], not {last!r}") from None


def dover_metrics(raw_aesthetic: float, raw_technical: float) -> dict[str, float]:
    """The raw scores, and both conventions in percent, by the names that they have in results."""
    found = {"dover raw aesthetic": raw_aesthetic, "dover raw technical": raw_technical}
    conventions: tuple[Convention, ...] = ("dover_fixed", "dover_master")
    for convention in conventions:
        scores = dover_scores(raw_aesthetic, raw_technical, convention)
        found |= {f"{convention} {name}": 100 * value for name, value in scores._asdict().items()}
    return found
