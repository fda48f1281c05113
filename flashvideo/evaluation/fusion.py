"""Slow-fast fusion of VBench-Long: consistency inside clips with consistency across them. Light.

    fused = 0.5 in_clip + 0.5 map(across),  map: piecewise linear in 101 points; map 0 (or no value): in_clip alone

Source: Vchitect/VBench vbench2_beta_long/utils.py and configs/slow_fast_params.yaml, commit 45e79ec. The mapping tables
are the user's copy of configs/{subject,background}_mapping_table.yaml.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

IN_CLIP_WEIGHT, ACROSS_WEIGHT = 0.5, 0.5
TABLE_FILES = {"subject_consistency": "subject_mapping_table.yaml", "background_consistency": "background_mapping_table.yaml"}
TABLES_AT = "github.com/Vchitect/VBench, vbench2_beta_long/configs"


@dataclass(frozen=True)
class MappingTable:
    """Piecewise linear map of an across-clips score to the scale of in-clip scores; flat beyond its ends."""

    points: tuple[tuple[float, float], ...]
    """(score, mapped), ascending."""

    def __call__(self, score: float) -> float:
        keys = [key for key, _ in self.points]
        place = bisect_left(keys, score)
        if place == 0:
            return self.points[0][1]
        if place == len(keys):
            return self.points[-1][1]
        (low, at_low), (high, at_high) = self.points[place - 1 : place + 1]
        return at_low + (at_high - at_low) * (score - low) / (high - low)


def read_mapping_table(path: Path) -> MappingTable:
    """The table of a YAML file `score: mapped`. Raises ValueError with the file and what to do."""
    import yaml

    try:
        data = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"mapping table {path} cannot be read ({error}); it is in {TABLES_AT}") from None
    if not isinstance(data, Mapping) or len(data) < 2:
        raise ValueError(f"mapping table {path} must map scores to scores; it is in {TABLES_AT}")
    points = tuple(sorted((float(key), float(value)) for key, value in data.items()))
    if not all(math.isfinite(number) for point in points for number in point):
        raise ValueError(f"mapping table {path} holds a number that is not finite")
    return MappingTable(points)


def read_mapping_tables(folder: Path) -> dict[str, MappingTable]:
    """Both tables by dimension, from a folder or its vbench_long_configs."""
    inner = folder / "vbench_long_configs"
    place = inner if inner.is_dir() else folder
    return {name: read_mapping_table(place / file) for name, file in TABLE_FILES.items()}


def fuse(in_clip: float, across: float | None, table: MappingTable) -> float:
    """One clip's score out of its own and its video's across-clips score (None: the video has one clip)."""
    mapped = table(0.0 if across is None else across)
    return in_clip if mapped == 0.0 else IN_CLIP_WEIGHT * in_clip + ACROSS_WEIGHT * mapped


def fused_fields(in_clip: float, across: float | None, table: MappingTable) -> dict[str, float]:
    """What the reference's file says of a fused clip besides its score; a missing across-clips score is 0 there."""
    score = 0.0 if across is None else across
    return {"inclip_score": in_clip, "clip2clip_score": score, "mapped_clip2clip_score": table(score)}
