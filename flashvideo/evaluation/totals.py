"""VBench's quality, semantic and total scores from the 16 dimensions, and what is wrong with a printed row.

Torch-free: `python -m flashvideo.evaluation.totals FILE --format json|table` answers at once.

    norm(d)  = (raw - low) / (high - low), not clipped
    quality  = sum(w norm) / sum(w) over 7 dimensions; w = 1, dynamic degree 0.5
    semantic = mean of norm over 9 dimensions
    total    = (4 quality + semantic) / 5

Source: Vchitect/VBench scripts/constant.py and cal_final_score.py, commit 45e79ec (Apache-2.0).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

QUALITY_DIMENSIONS = (
    "subject_consistency",
    "background_consistency",
    "temporal_flickering",
    "motion_smoothness",
    "aesthetic_quality",
    "imaging_quality",
    "dynamic_degree",
)
SEMANTIC_DIMENSIONS = (
    "object_class",
    "multiple_objects",
    "human_action",
    "color",
    "spatial_relationship",
    "scene",
    "appearance_style",
    "temporal_style",
    "overall_consistency",
)
DIMENSIONS = QUALITY_DIMENSIONS + SEMANTIC_DIMENSIONS

NORMALISE: dict[str, tuple[float, float]] = dict.fromkeys(DIMENSIONS, (0.0, 1.0)) | {
    "subject_consistency": (0.1462, 1.0),
    "background_consistency": (0.2615, 1.0),
    "temporal_flickering": (0.6293, 1.0),
    "motion_smoothness": (0.706, 0.9975),
    "scene": (0.0, 0.8222),
    "appearance_style": (0.0009, 0.2855),
    "temporal_style": (0.0, 0.364),
    "overall_consistency": (0.0, 0.364),
}
"""Low and high of each dimension, as fractions."""

WEIGHT: dict[str, float] = dict.fromkeys(DIMENSIONS, 1.0) | {"dynamic_degree": 0.5}

QUALITY_WEIGHT, SEMANTIC_WEIGHT = 4.0, 1.0

PRINT_TOLERANCE = 0.01
"""Points by which a recomputed score may differ from a printed one: both sides are rounded to 0.01."""

Unit = Literal["auto", "percent", "fraction"]


class TotalsError(ValueError):
    """A file without VBench scores; the message is one clear line."""


@dataclass(frozen=True)
class Totals:
    """Scores in percent. A score is None where one of its dimensions is missing."""

    quality: float | None
    semantic: float | None
    total: float | None
    missing: tuple[str, ...]
    reference_total: float
    """The reference script's number: a missing dimension counts 0. Equal to `total` where none is missing."""


@dataclass(frozen=True)
class Repair:
    """One dimension's value, percent, that would bring the printed group score about."""

    dimension: str
    printed: float
    repaired: float
    equals_neighbour: bool
    """The printed value stands in the row before or after too: it may have been copied."""


@dataclass(frozen=True)
class RowReport:
    """One row of a table: recomputed scores beside the printed ones, percent."""

    row: str
    totals: Totals
    printed: dict[str, float]
    differences: dict[str, float]
    """recomputed - printed, by score."""
    consistent: bool | None
    """None where nothing is printed or a score is missing."""
    repairs: tuple[Repair, ...] = ()
    """Most likely first; empty for a consistent row."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ScoreRow:
    """One row as read from a file. `scores` and `printed` are fractions and percent as they came, by our names."""

    name: str
    scores: dict[str, float]
    printed: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def normalise(dimension: str, fraction: float) -> float:
    """(raw - low) / (high - low), not clipped. Raises KeyError for an unknown dimension."""
    low, high = NORMALISE[dimension]
    return (fraction - low) / (high - low)


def totals(fractions: Mapping[str, float]) -> Totals:
    """Scores in percent from raw dimension scores as fractions (0-1). Raises TotalsError for an unknown dimension."""
    unknown = sorted(set(fractions) - set(DIMENSIONS))
    if unknown:
        raise TotalsError(f"unknown VBench dimensions: {', '.join(unknown)}; known: {', '.join(DIMENSIONS)}")
    missing = tuple(name for name in DIMENSIONS if name not in fractions)
    quality, semantic = _group(QUALITY_DIMENSIONS, fractions), _group(SEMANTIC_DIMENSIONS, fractions)
    total = (QUALITY_WEIGHT * quality + SEMANTIC_WEIGHT * semantic) / (QUALITY_WEIGHT + SEMANTIC_WEIGHT)
    return Totals(
        quality=quality if not set(missing) & set(QUALITY_DIMENSIONS) else None,
        semantic=semantic if not set(missing) & set(SEMANTIC_DIMENSIONS) else None,
        total=total if not missing else None,
        missing=missing,
        reference_total=total,
    )


def _group(names: tuple[str, ...], fractions: Mapping[str, float]) -> float:
    """Weighted mean of the normalised scores in percent; a missing dimension counts 0, as in the reference script."""
    score = sum(WEIGHT[name] * normalise(name, fractions[name]) for name in names if name in fractions)
    return 100 * score / sum(WEIGHT[name] for name in names)


def repaired_value(dimension: str, fractions: Mapping[str, float], printed_group: float) -> float:
    """The value in percent that `dimension` needs for its group's score to be `printed_group` (percent)."""
    names = QUALITY_DIMENSIONS if dimension in QUALITY_DIMENSIONS else SEMANTIC_DIMENSIONS
    low, high = NORMALISE[dimension]
    excess = (_group(names, fractions) - printed_group) / 100
    slope = WEIGHT[dimension] / (high - low) / sum(WEIGHT[name] for name in names)
    return 100 * (fractions[dimension] - excess / slope)


def repairs(
    fractions: Mapping[str, float], printed: Mapping[str, float], neighbours: tuple[Mapping[str, float], ...]
) -> tuple[Repair, ...]:
    """Single-dimension repairs of an inconsistent row, most likely first; empty unless exactly one group is off.

    Most likely: a value that also stands in a neighbouring row (copied), then the smallest change. Values
    outside 0-100 are no repair.
    """
    scores = totals(fractions)
    computed = {"quality": scores.quality, "semantic": scores.semantic}
    off = [
        group
        for group, value in computed.items()
        if value is not None and group in printed and abs(value - printed[group]) > PRINT_TOLERANCE
    ]
    if len(off) != 1:
        return ()
    names = QUALITY_DIMENSIONS if off[0] == "quality" else SEMANTIC_DIMENSIONS
    found = []
    for name in names:
        value = repaired_value(name, fractions, printed[off[0]])
        if 0 <= value <= 100:
            copied = any(name in row and math.isclose(row[name], fractions[name], abs_tol=1e-9) for row in neighbours)
            found.append(Repair(name, 100 * fractions[name], value, copied))
    return tuple(sorted(found, key=lambda repair: (not repair.equals_neighbour, abs(repair.repaired - repair.printed))))


def report_rows(rows: list[ScoreRow]) -> list[RowReport]:
    """Recomputed scores of every row, and repairs where a printed row contradicts itself. Scores are fractions."""
    reports = []
    for index, row in enumerate(rows):
        scores = totals(row.scores)
        computed = {"total": scores.total, "quality": scores.quality, "semantic": scores.semantic}
        differences = {name: value - row.printed[name] for name, value in computed.items() if value is not None and name in row.printed}
        consistent = all(abs(value) <= PRINT_TOLERANCE for value in differences.values()) if differences else None
        neighbours = tuple(rows[place].scores for place in (index - 1, index + 1) if 0 <= place < len(rows))
        found = repairs(row.scores, row.printed, neighbours) if consistent is False else ()
        reports.append(RowReport(row.name, scores, row.printed, differences, consistent, found, row.notes))
    return reports


def read_rows(path: Path, unit: Unit = "auto") -> tuple[list[ScoreRow], list[str]]:
    """Every VBench row that a JSON file holds, scores as fractions, and one note for each mapping left out.

    Takes a mapping of dimensions, an eval_results.json (`{dimension: [score, ...]}`), or any nesting of such
    mappings under row names; or a leaderboard's zip. Raises TotalsError for a file that cannot be read or holds no row.
    """
    if path.suffix.lower() == ".zip":
        return [_zipped_row(path)], []
    try:
        data = json.loads(path.read_text())
    except OSError as error:
        raise TotalsError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise TotalsError(f"{path} is not valid JSON: {error}") from None
    rows: list[ScoreRow] = []
    left_out: list[str] = []
    for place, mapping in _mappings(data, ()):
        scores, printed, others, notes = _sort_entries(mapping)
        where = "/".join(place) or path.stem
        if not scores:
            continue
        if others:
            left_out.append(f"{where}: also holds {', '.join(others)}, so it is no VBench row")
            continue
        rows.append(_scaled(place[-1] if place else path.stem, scores, printed, notes, unit))
    if not rows:
        hint = f" ({left_out[0]})" if left_out else ""
        raise TotalsError(f"{path} holds no VBench row{hint}; expected a mapping of dimensions such as subject_consistency to numbers")
    return rows, left_out


def _zipped_row(path: Path) -> ScoreRow:
    from flashvideo.evaluation.exchange import ExchangeError, read_leaderboard_zip

    try:
        read = read_leaderboard_zip(path)
    except ExchangeError as error:
        raise TotalsError(str(error)) from None
    return ScoreRow(path.stem, read.scores, notes=tuple(problem.message for problem in read.problems))


def _mappings(node: Any, place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    if isinstance(node, dict):
        yield place, node
        for key, value in node.items():
            yield from _mappings(value, (*place, str(key)))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _mappings(value, (*place, str(index)))


def _sort_entries(mapping: dict[str, Any]) -> tuple[dict[str, float], dict[str, float], list[str], tuple[str, ...]]:
    """Dimension scores, printed scores, other numeric keys, and notes on values that are no number."""
    scores: dict[str, float] = {}
    printed: dict[str, float] = {}
    others: list[str] = []
    notes: list[str] = []
    for key, raw in mapping.items():
        name = str(key).strip().lower().replace(" ", "_").replace("-", "_")
        value = raw[0] if isinstance(raw, list) and raw else raw  # eval_results.json: [score, details]
        if name not in DIMENSIONS and name not in ("total", "quality", "semantic"):
            if isinstance(value, int | float) and not isinstance(value, bool):
                others.append(str(key))
        elif isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            notes.append(f"{name} is {value!r}, not a number: treated as missing")
        else:
            (scores if name in DIMENSIONS else printed)[name] = float(value)
    return scores, printed, others, tuple(notes)


def _scaled(name: str, scores: dict[str, float], printed: dict[str, float], notes: tuple[str, ...], unit: Unit) -> ScoreRow:
    """Scores to fractions and printed scores to percent. auto: percent where a score lies above 1, each kind by itself."""

    def percent(values: Iterable[float]) -> bool:
        return max(values, default=0.0) > 1 if unit == "auto" else unit == "percent"

    if percent(scores.values()):
        scores = {key: value / 100 for key, value in scores.items()}
    if not percent(printed.values()):
        printed = {key: 100 * value for key, value in printed.items()}
    return ScoreRow(name, scores, printed, notes)


def format_table(reports: list[RowReport], left_out: list[str]) -> str:
    """The rows as text, percent with two decimals."""
    width = max(len(report.row) for report in reports) + 2
    lines = [f"{'':{width}}{'total':>8}{'quality':>9}{'semantic':>10}  printed"]
    for report in reports:
        scores = report.totals
        numbers = f"{_number(scores.total):>8}{_number(scores.quality):>9}{_number(scores.semantic):>10}"
        lines.append(f"{report.row:{width}}{numbers}  {_verdict(report)}".rstrip())
        lines += [f"{'':{width}}! {note}" for note in report.notes]
    lines += [f"left out: {note}" for note in left_out]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _verdict(report: RowReport) -> str:
    if report.totals.missing:
        count = len(report.totals.missing)
        names = ", ".join(report.totals.missing[:3]) + (", ..." if count > 3 else "")
        return f"{count} of {len(DIMENSIONS)} dimensions missing ({names}); with 0 for them: {report.totals.reference_total:.2f}"
    if report.consistent is None:
        return ""
    if report.consistent:
        return f"agrees (within {max(abs(value) for value in report.differences.values()):.3f})"
    off = ", ".join(f"{name} {value:+.2f}" for name, value in report.differences.items() if abs(value) > PRINT_TOLERANCE)
    text = f"INCONSISTENT IN PRINT: {off}"
    if report.repairs:
        best = report.repairs[0]
        copied = f"; the printed {best.printed:.2f} equals the neighbouring row's" if best.equals_neighbour else ""
        text += f"; {best.dimension.replace('_', ' ')} {best.repaired:.2f} would repair it{copied}"
    return text


def main(arguments: list[str] | None = None) -> int:
    """Command line. Exit code 0, or 2 for a file without VBench scores."""
    parser = argparse.ArgumentParser(prog="flashvideo totals", description="VBench's quality, semantic and total scores from a JSON file")
    parser.add_argument(
        "file", type=Path, help="JSON: 16 dimensions, an eval_results.json, or a table of such rows; or a leaderboard's zip"
    )
    parser.add_argument("--format", choices=("table", "json"), default="table")
    parser.add_argument("--unit", choices=("auto", "percent", "fraction"), default="auto", help="of the numbers in the file")
    options = parser.parse_args(arguments)
    try:
        rows, left_out = read_rows(options.file, options.unit)
    except TotalsError as error:
        print(f"totals: {error}", file=sys.stderr)
        return 2
    reports = report_rows(rows)
    if options.format == "json":
        text = json.dumps({"rows": [asdict(report) for report in reports], "left_out": left_out}, indent=1)
    else:
        text = format_table(reports, left_out)
    try:
        print(text, flush=True)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
