"""The page of a sweep, ROOT/sweep/<name>/index.html: table, plots of every metric against the value, picture strips. No torch.

Reads results.json and the pictures that the sweep left; computes nothing.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from markupsafe import Markup

from orchestration.charts import Curve, Limit, marked
from orchestration.page import environment
from orchestration.report_data import Chart, data_url
from pipelines.artifacts import write_atomically

TILE_PX = 448
PICTURE_PX = 1400
FIDELITY = {"psnr_db": "PSNR to truth, dB", "gradient_ratio": "sharpness over truth's"}
TIME = "enhancing, s a video"


@dataclass
class Strip:
    """Pictures beside each other, each with its label."""

    title: str
    tiles: list[tuple[str, str]]
    """(label, data: URL)."""


@dataclass
class Part:
    """One section of the page."""

    title: str
    about: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    rows: list[tuple[str, list[str]]] = field(default_factory=list)
    """(ours, reference or paper; cells)."""
    charts: list[Chart] = field(default_factory=list)
    strips: list[Strip] = field(default_factory=list)
    details: str = ""


@dataclass
class Page:
    """A page of parts."""

    title: str
    parts: list[Part]
    about: list[str] = field(default_factory=list)
    source: str = ""
    made: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


def write_page(page: Page, path: Path) -> Path:
    """The page as one self-contained file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, environment().get_template("sweep.html.j2").render(page=page))
    return path


def build_sweep_page(folder: Path) -> Path:
    """index.html of a sweep's folder (with results.json and table.csv)."""
    results = json.loads((folder / "results.json").read_text())
    title = f"{results['title']} · {folder.parent.parent.name}"
    return write_page(Page(title, [part_of(folder, results)], source=f"Published numbers: {results['source']}."), folder / "index.html")


def part_of(folder: Path, results: Mapping[str, Any]) -> Part:
    """Everything of one sweep."""
    with open(folder / "table.csv", newline="") as file:
        columns, *lines = csv.reader(file)
    whose = columns.index("whose")
    rows = [(line[whose].split(",")[0], [cell or "–" for cell in line]) for line in lines]
    models = ", ".join(f"{role}: {name}" for role, name in results["models"].items())
    return Part(
        title=f"{results['title']}: the paper's Table {results['table']} in ours",
        about=[f"On {results['inputs']}. Each number is a mean over the videos.", models],
        notes=list(results["notes"]),
        columns=columns,
        rows=rows,
        charts=charts_of(results),
        strips=strips_of(folder, results["strips"]),
        details=json.dumps({row["label"]: {"digest": row["protocol_digest"], **row["protocol"]} for row in results["rows"]}, indent=1),
    )


@dataclass(frozen=True)
class LinkedPart:
    """A sweep as the run's report shows it, and where its own page is (relative to the root)."""

    part: Part
    page: str


def read_sweeps(root: Path) -> list[LinkedPart]:
    """What ROOT/sweep holds: of each sweep its table and first strip; of pages made by other commands (benchmarks/learning_run.py)
    the pictures beside them."""
    found = []
    for page in sorted((root / "sweep").glob("*/index.html")):
        folder = page.parent
        if (folder / "results.json").is_file():
            part = part_of(folder, json.loads((folder / "results.json").read_text()))
            part.strips = part.strips[:1]
        else:
            pictures = [(path.stem, data_url(path, PICTURE_PX)) for path in sorted(folder.glob("*.png"))]
            part = Part(title=folder.name, strips=[Strip("Pictures", pictures)])
        found.append(LinkedPart(part, page.relative_to(root).as_posix()))
    return found


def strips_of(folder: Path, strips: Sequence[Mapping[str, Any]]) -> list[Strip]:
    """The pictures inlined."""
    shown = []
    for strip in strips:
        tiles = [(label, data_url(folder / file, TILE_PX)) for label, file in strip["tiles"] if (folder / file).is_file()]
        shown.append(Strip(f"{strip['about']} (frame {strip['frame']})", tiles))
    return shown


def charts_of(results: Mapping[str, Any]) -> list[Chart]:
    """Every metric against the value: ours, the paper's where it has the metric, references as levels."""
    placed = [row for row in results["rows"] if row["value"] is not None]
    if len(placed) < 2:
        return []
    paper_names = results.get("metric_names", {})  # results of an older version: without the paper's curves, until the next sweep
    metrics = [name for name in placed[0]["quality"]["metrics"] if name in paper_names or not name.startswith("dover")]
    charts = []
    for name in [*metrics, *FIDELITY, "seconds"]:
        line = curve_of(placed, name, "ours")
        if line is None:
            continue
        others = paper_curves(results, paper_names[name]) if name in paper_names else []
        levels = [
            Limit(value, row["label"])
            for row in results["rows"]
            if row["reference"]
            for value in [number_of(row, name)]
            if value is not None
        ]
        label = paper_names.get(name) or FIDELITY.get(name) or (TIME if name == "seconds" else name.upper())
        charts.append(Chart(label, Markup(marked([line, *others], results["setting"], label, levels)), label))
    return charts


def number_of(row: Mapping[str, Any], name: str) -> float | None:
    """One number of a row: a metric, a fidelity, or seconds."""
    quality = row["quality"]
    if name == "seconds":
        time = row["time"]
        return None if time is None else sum(time[part] for part in ("encode_s", "sample_s", "decode_s"))
    value: float | None = quality[name] if name in FIDELITY else quality["metrics"].get(name)
    return value


def curve_of(rows: Sequence[Mapping[str, Any]], name: str, label: str) -> Curve | None:
    """The metric over the values; None without numbers."""
    points = [(row["value"], number_of(row, name)) for row in rows]
    known = sorted((x, y) for x, y in points if y is not None)
    return Curve(label, tuple(x for x, _ in known), tuple(y for _, y in known)) if known else None


def paper_curves(results: Mapping[str, Any], column: str) -> list[Curve]:
    """The paper's lines of one of its columns, where its rows are numbers."""
    curves = []
    for group, rows in results["published"].items():
        points = []
        for name, values in rows.items():
            try:
                points.append((float(name), values[column]))
            except ValueError:
                return []
        curves.append(Curve(f"paper, {group}" if group else "paper", tuple(x for x, _ in points), tuple(y for _, y in points)))
    return curves
