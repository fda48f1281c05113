"""How sure a score is: bootstrap over prompts, and whether a printed rate lies on the grid that its counts allow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from flashvideo.evaluation.aggregation import Part
from flashvideo.evaluation.published import TABLE_1
from flashvideo.evaluation.totals import DIMENSIONS, totals


class Interval(NamedTuple):
    """Percentiles 2.5 and 97.5."""

    low: float
    high: float


def bootstrap(parts: Mapping[str, Sequence[Part]], draws: int = 1000, seed: int = 0) -> dict[str, Interval]:
    """95 % intervals of every dimension (0-1) and, where all 16 are there, of total, quality and semantic (percent).

    Prompts are drawn with replacement, all samples of a prompt together. A prompt weighs the same in all of its
    dimensions in one draw, so the totals see how dimensions move together. Same parts and seed, same intervals.
    """
    names = [name for name in DIMENSIONS if parts.get(name)]
    groups: dict[tuple[str, ...], list[str]] = {}
    members: dict[str, list[str]] = {}
    for name in names:
        for part in parts[name]:
            known = members.setdefault(part.prompt, [])
            if name not in known:
                known.append(name)
    for prompt in sorted(members):
        groups.setdefault(tuple(members[prompt]), []).append(prompt)
    generator = np.random.default_rng(seed)
    weights: dict[str, np.ndarray] = {}
    for prompts in _strata(groups):
        drawn = generator.multinomial(len(prompts), np.full(len(prompts), 1 / len(prompts)), size=draws)
        weights.update({prompt: drawn[:, place] for place, prompt in enumerate(prompts)})
    scores = {name: _drawn_scores(parts[name], weights) for name in names}
    found = {name: _interval(values) for name, values in scores.items()}
    if len(names) == len(DIMENSIONS):
        rows = [totals({name: float(values[draw]) for name, values in scores.items()}) for draw in range(draws)]
        for field in ("total", "quality", "semantic"):
            found[field] = _interval(np.array([getattr(row, field) for row in rows]))
    return found


def _strata(groups: Mapping[tuple[str, ...], list[str]]) -> list[list[str]]:
    """Prompts that stand for each other: those of the same dimensions. A lone one would never vary, so it joins the largest
    group that shares a dimension with it, where there is one."""
    strata = [(set(key), list(groups[key])) for key in sorted(groups)]
    for lone in [one for one in strata if len(one[1]) == 1]:
        others = [one for one in strata if one is not lone and one[0] & lone[0]]
        if others and len(lone[1]) == 1:
            names, prompts = max(others, key=lambda one: len(one[1]))
            names |= lone[0]
            prompts += lone[1]
            strata = [one for one in strata if one is not lone]
    return [prompts for _, prompts in strata]


def _drawn_scores(parts: Sequence[Part], weights: Mapping[str, np.ndarray]) -> np.ndarray:
    prompts = sorted({part.prompt for part in parts})
    sums = {prompt: [0.0, 0.0] for prompt in prompts}
    for part in sorted(parts, key=lambda one: (one.prompt, one.video)):
        sums[part.prompt][0] += part.numerator
        sums[part.prompt][1] += part.denominator
    drawn = np.stack([weights[prompt] for prompt in prompts]).astype(np.float64)
    above, below = (np.array([sums[prompt][k] for prompt in prompts]) @ drawn for k in (0, 1))
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)


def _interval(values: np.ndarray) -> Interval:
    kept = values[np.isfinite(values)]
    return Interval(*(float(value) for value in np.percentile(kept, [2.5, 97.5]))) if len(kept) else Interval(math.nan, math.nan)


class GridPlace(NamedTuple):
    """A printed rate as a count."""

    hits: int
    of: int
    off: float
    """Printed less exact, in percent."""

    @property
    def fits(self) -> bool:
        return abs(self.off) <= 0.005 + 1e-9


def grid_place(percent: float, of: int) -> GridPlace:
    """The nearest hits / `of` to a rate printed in percent with two decimals.

    Dynamic degree is a rate over 72 prompts x 5 samples x clips, human action over 100 x 5: a printed rate that fits
    no such grid was made otherwise (or is a misprint). Raises ValueError for a rate outside 0-100.
    """
    if not 0 <= percent <= 100:
        raise ValueError(f"{percent:g} is no rate in percent")
    hits = round(percent / 100 * of)
    return GridPlace(hits, of, percent - 100 * hits / of)


DYNAMIC_VIDEOS, ACTION_VIDEOS = 72 * 5, 100 * 5


def clips_that_fit(percent: float, most: int = 5) -> tuple[int, ...]:
    """Clips a video for which a printed dynamic degree lies on the grid."""
    return tuple(clips for clips in range(1, most + 1) if grid_place(percent, DYNAMIC_VIDEOS * clips).fits)


def published_rates() -> list[dict[str, Any]]:
    """Each row of Table 1 with its two rates as counts: the fewest clips a video for which dynamic degree lies on the grid."""
    rows: list[dict[str, Any]] = []
    for row in TABLE_1:
        dynamic, action = row.dimensions["dynamic_degree"], row.dimensions["human_action"]
        clips = clips_that_fit(dynamic)
        of = DYNAMIC_VIDEOS * clips[0] if clips else None
        place = grid_place(action, ACTION_VIDEOS)
        rows.append(
            {
                "model": row.model,
                "dynamic_degree": dynamic,
                "clips": list(clips),
                "dynamic_of": of,
                "dynamic_hits": None if of is None else grid_place(dynamic, of).hits,
                "human_action": action,
                "action_of": ACTION_VIDEOS,
                "action_hits": place.hits if place.fits else None,
            }
        )
    return rows
