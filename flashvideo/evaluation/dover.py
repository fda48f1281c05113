"""DOVER's two scores out of its raw branches, in both conventions that are in print. Light.

    a = (A - mean_a) / std_a,  t = (T - mean_t) / std_t,  score = sigmoid, overall = sigmoid(0.6104 a + 0.3896 t)

dover_fixed: constants with their own branches, as in DOVER's set script until 2023-08-11. dover_master: exchanged, as in
the script since (its issue 32 is open); a natural video then reads technical 6.7 and aesthetic 99.4, the range of the
paper's DOVER columns. DOVER itself is S-Lab non-commercial and no part of this project: raw scores come from the user's.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

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
