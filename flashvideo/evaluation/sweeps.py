"""Sweeps: one setting of Stage II varied, everything else held; tables laid out as the paper's Tables 2, 3, 5-10. Light.

A sweep is a row of cells. A cell's protocol says everything that changes its numbers, so equal cells of two sweeps (4
function evaluations; guidance 13) are one piece of work.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from flashvideo.evaluation import published as paper
from flashvideo.evaluation.results import QualityRow, Record

SweepName = Literal["nfe", "guidance", "noise", "resolution", "stages", "preference", "degradation", "enhancers"]
SWEEP_NAMES: tuple[SweepName, ...] = get_args(SweepName)
VERSION = "1"
"""Bumped when code of the sweeps changes a number."""

METRIC_COLUMNS = {
    "musiq": "MUSIQ",
    "maniqa": "MANIQA",
    "clipiqa": "CLIPIQA",
    "niqe": "NIQE",
    "dover_master technical": "DOVER technical",
    "dover_master aesthetic": "DOVER aesthetic",
}
"""Our name -> the paper's column. DOVER's: the convention whose range the paper's numbers have (flashvideo/evaluation/dover.py)."""
PAPER_COLUMNS = ("MUSIQ", "MANIQA", "CLIPIQA", "NIQE", "DOVER technical", "DOVER aesthetic")


@dataclass(frozen=True)
class Layout:
    """Where a sweep stands in the paper."""

    name: SweepName
    title: str
    table: int
    setting: str
    """What the first column says."""
    published: Mapping[str, paper.FrameQualityTable]
    """Group ("" where there is one) -> row -> numbers."""


LAYOUTS: dict[SweepName, Layout] = {
    layout.name: layout
    for layout in (
        Layout("stages", "The two stages", 2, "stage", {"": paper.TABLE_2}),
        Layout("enhancers", "Enhancers", 3, "enhancer", {"": paper.TABLE_3}),
        Layout("resolution", "Inference resolution", 5, "height x width, px", {"": paper.TABLE_5}),
        Layout("degradation", "Degradations in training", 6, "degradation", {"": paper.TABLE_6}),
        Layout("preference", "Human-preference phase", 7, "preference phase", {"": paper.TABLE_7}),
        Layout("nfe", "Function evaluations", 8, "NFE", {"": paper.TABLE_8}),
        Layout("guidance", "Guidance scale", 9, "guidance scale", {"": paper.TABLE_9}),
        Layout("noise", "Latent noise step", 10, "noise step", paper.TABLE_10),
    )
}

STANDS_BESIDE = {
    "Stage I": "Stage I 270p (50 NFE, 30.1 s)",
    "Stage II": "Stage II 1080p (4 NFE, 72.2 s)",
    "1072x1920": "1080p (72.2 s)",
    "1440x2560": "2K (209.8 s)",
    "input": "none (Stage I)",
    "ours": "FlashVideo (4 NFE, 72.2 s)",
}
"""Our row -> the paper's, where their names differ."""


class CellTime(Record):
    """Seconds a video, median over the items."""

    encode_s: float
    """The input through the autoencoder; shared by the cells of one size."""
    sample_s: float
    decode_s: float
    measure_s: float

    @property
    def enhance_s(self) -> float:
        return self.encode_s + self.sample_s + self.decode_s


class SweepRow(Record):
    """One row of a sweep's table: a cell, or what it is compared with."""

    label: str
    value: float | None = None
    """Place on the plot's axis; None: not on it."""
    reference: bool = False
    """truth, codec or input: not a value of the setting."""
    quality: QualityRow
    """Mean over the items."""
    asked: int = 0
    """Items that it should be over; where quality.clips is fewer, its mean may be over other clips than its neighbours'."""
    time: CellTime | None = None
    """None: nothing was computed but the metrics."""
    protocol: dict[str, Any]
    protocol_digest: str
    published: dict[str, dict[str, float]] = {}
    """The paper's rows of the same value, by group."""
    note: str = ""


class Strip(Record):
    """The same frame of one clip at every value."""

    item: str
    about: str
    frame: int
    tiles: tuple[tuple[str, str], ...]
    """(label, file relative to the sweep's folder)."""


class SweepResults(Record):
    """results.json of one sweep."""

    name: SweepName
    title: str
    table: int
    """Of the paper."""
    setting: str
    inputs: str
    """What was enhanced, in words."""
    items: tuple[str, ...]
    rows: tuple[SweepRow, ...]
    published: dict[str, paper.FrameQualityTable]
    metric_names: dict[str, str] = METRIC_COLUMNS
    """Our name -> the paper's column, for readers that import nothing of this."""
    source: str = paper.SOURCE
    strips: tuple[Strip, ...] = ()
    models: dict[str, str] = {}
    notes: tuple[str, ...] = ()

    @property
    def incomplete(self) -> tuple[SweepRow, ...]:
        """Rows over fewer items than they should be."""
        return tuple(row for row in self.rows if row.quality.clips < row.asked)

    def row(self, label: str) -> SweepRow | None:
        """The row of that label."""
        return next((row for row in self.rows if row.label == label), None)


def published_beside(layout: Layout, label: str) -> dict[str, dict[str, float]]:
    """The paper's rows that stand beside one of ours, by group."""
    name = STANDS_BESIDE.get(label, label)
    return {group: rows[name] for group, rows in layout.published.items() if name in rows}


def metric_column(metric: str) -> str:
    """Name of a metric's column: the paper's, where it has one."""
    return METRIC_COLUMNS.get(metric, metric.upper())


def shown_metrics(metrics: Iterable[str]) -> list[str]:
    """Those that a table has room for: DOVER's other numbers stay in results.json."""
    return [metric for metric in metrics if metric in METRIC_COLUMNS or not metric.startswith("dover")]


# ---- the table -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """Texts of a printed table; a missing number is a dash."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


MISSING = "–"


def table_of(results: SweepResults) -> Table:
    """Ours and the paper's rows: references, then each value with the paper's below it, then the paper's other rows."""
    ours = [metric_column(metric) for metric in shown_metrics(results.rows[0].quality.metrics)] if results.rows else []
    metrics = (*PAPER_COLUMNS, *(name for name in ours if name not in PAPER_COLUMNS))
    columns = (results.setting, "whose", "videos", *metrics, "PSNR, dB", "sharpness", "s/video")
    rows = [row for entry in results.rows for row in _lines(entry, metrics)]
    shown = {(group, name) for entry in results.rows for group in entry.published for name in [STANDS_BESIDE.get(entry.label, entry.label)]}
    for group, table in results.published.items():
        rows += [_paper_line(name, group, values, metrics) for name, values in table.items() if (group, name) not in shown]
    return Table(columns, tuple(rows))


def _lines(entry: SweepRow, metrics: Sequence[str]) -> Iterator[tuple[str, ...]]:
    row = entry.quality
    own = {metric_column(name): value for name, value in row.metrics.items()}
    yield (
        entry.label,
        "reference" if entry.reference else "ours",
        str(row.clips) if row.clips >= entry.asked else f"{row.clips} of {entry.asked}",
        *(shown(own.get(name)) for name in metrics),
        shown(row.psnr_db, ".2f"),
        shown(row.gradient_ratio, ".2f"),
        shown(entry.time.enhance_s if entry.time else None, ".2f"),
    )
    for group, values in entry.published.items():
        yield _paper_line(STANDS_BESIDE.get(entry.label, entry.label), group, values, metrics)


def _paper_line(label: str, group: str, values: Mapping[str, float], metrics: Sequence[str]) -> tuple[str, ...]:
    whose = f"paper, {group}" if group else "paper"
    return (label, whose, MISSING, *(shown(values.get(name)) for name in metrics), MISSING, MISSING, MISSING)


def shown(value: float | None, style: str = ".4g") -> str:
    """A number, or a dash."""
    return MISSING if value is None else format(value, style)


def markdown(table: Table) -> str:
    """The table for a document or a terminal."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (table.columns, *table.rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]) + "\n"


def comma_separated(table: Table) -> str:
    """The table as CSV; a missing number is an empty cell."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerows([table.columns, *(["" if cell == MISSING else cell for cell in row] for row in table.rows)])
    return buffer.getvalue()
