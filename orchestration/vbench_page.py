"""OUT/report.html of `flashvideo vbench`: scores beside the published rows, best and worst clips, problems, protocol. No torch.

Reads OUT/vbench_results.json, or OUT/run.json and the results of the folders that it names (both stages of a run). One
self-contained file.
"""

from __future__ import annotations

import argparse
import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from markupsafe import Markup

from orchestration.page import environment
from pipelines.artifacts import write_atomically

RESULTS_FILE, RUN_FILE, PAGE_FILE = "vbench_results.json", "run.json", "report.html"
TOTALS = ("total", "quality", "semantic")
RATES = ("dynamic_degree", "human_action")
SHOWN_PROBLEMS = 200
ROW_PX, WIDTH_PX, LEFT_PX = 22, 1080, 190
STAND_IN = "STAND-IN"
NOT_CORRECTED = {"corrected": "", "change": "", "last_frame": ""}
"""Of a cell that has no number without the reference's quirks."""


@dataclass
class Column:
    """One set of results."""

    label: str
    folder: Path
    results: dict[str, Any]

    @property
    def notes(self) -> list[str]:
        """But for the stand-ins', which have a banner."""
        return [note for note in self.results["notes"] if not note.startswith(STAND_IN)]

    @property
    def protocol(self) -> dict[str, Any]:
        protocol: dict[str, Any] = self.results["protocol"]
        return protocol

    @property
    def has_corrected(self) -> bool:
        """Whether a score without the reference's quirks stands beside one of its own."""
        return any(one.get("corrected") is not None for one in self.results["dimensions"])

    @property
    def videos(self) -> list[dict[str, Any]]:
        """Of every dimension; a video comes once for each."""
        return [video for one in self.results["dimensions"] for video in one["videos"]]

    def dimension(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = next(one for one in self.results["dimensions"] if one["dimension"] == name)
        return found


@dataclass
class VBenchPart:
    """Everything that the templates print."""

    title: str
    columns: list[Column]
    facts: list[tuple[str, str]] = field(default_factory=list)
    stand_in_notes: list[str] = field(default_factory=list)
    source: str = ""
    published: list[str] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    plot: Markup = field(default_factory=Markup)
    extremes: list[dict[str, Any]] = field(default_factory=list)
    pictures: list[dict[str, Any]] = field(default_factory=list)
    problems: list[dict[str, Any]] = field(default_factory=list)
    more_problems: int = 0
    networks: list[dict[str, Any]] = field(default_factory=list)
    rates: list[tuple[str, str, str]] = field(default_factory=list)
    """Row, dynamic degree and human action as counts."""


def out_of(arguments: Sequence[str]) -> Path | None:
    """The folder that a call of `flashvideo vbench` writes its page into; None where it writes none."""
    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    options.add_argument("--out", type=Path)
    options.add_argument("--root", type=Path)
    options.add_argument("--dry-run", action="store_true")
    known, _ = options.parse_known_args(list(arguments))
    if known.dry_run:
        return None
    out: Path | None = known.out or (known.root / "vbench" if known.root is not None else None)
    return out


def build_page(out: Path) -> Path | None:
    """Writes OUT/report.html and returns its path; None where there are no results."""
    part = read_part(out)
    if part is None:
        return None
    page = out / PAGE_FILE
    write_atomically(page, environment().get_template("vbench.html.j2").render(part=part))
    return page


def read_part(out: Path) -> VBenchPart | None:
    """The results of a folder, ready to print; None where there are none."""
    run = json.loads((out / RUN_FILE).read_text()) if (out / RUN_FILE).is_file() else None
    named = [(one["label"], out / one["folder"]) for one in run["columns"]] if run else [("this run", out)]
    columns = [
        Column(label, folder, json.loads((folder / RESULTS_FILE).read_text()))
        for label, folder in named
        if (folder / RESULTS_FILE).is_file()
    ]
    if not columns:
        return None
    part = VBenchPart(title=run["title"] if run else f"VBench of {out.name}", columns=columns)
    _scores(part)
    part.plot = Markup(dot_plot(part))
    for column in columns:
        _extremes(part, column)
    for picture in run["pictures"] if run else []:
        part.pictures.append({**picture, "image": _image(out / picture["file"])})
    unique = {json.dumps(problem, sort_keys=True): problem for column in columns for problem in column.results["problems"]}
    part.problems, part.more_problems = list(unique.values())[:SHOWN_PROBLEMS], max(0, len(unique) - SHOWN_PROBLEMS)
    part.facts = _facts(part)
    for column in columns:
        dynamic, action = (_rate(column.dimension(name)) for name in RATES)
        part.rates.append((column.label, dynamic, action))
    part.rates += [_published_rate(row) for row in columns[0].results["published"].get("rates", [])]
    return part


def _rate(one: dict[str, Any]) -> str:
    """Clips that count over clips."""
    values = [value for video in one["videos"] for value in video["clips"].values()]
    return f"{sum(values):g} of {len(values)} clips{' ' + _mark(one) if _mark(one) else ''}" if values else "–"


def _published_rate(row: dict[str, Any]) -> tuple[str, str, str]:
    dynamic, action = f"{row['dynamic_degree']:.2f}", f"{row['human_action']:.2f}"
    fits = f" = {row['dynamic_hits']} of {row['dynamic_of']}: {_several(row['clips'])} clips a video" if row["clips"] else " fits no grid"
    acts = f" = {row['action_hits']} of {row['action_of']}" if row["action_hits"] is not None else f" is on no grid of {row['action_of']}"
    return row["model"], dynamic + fits, action + acts


def _several(clips: Sequence[int]) -> str:
    return " or ".join(str(count) for count in clips)


def _facts(part: VBenchPart) -> list[tuple[str, str]]:
    first = part.columns[0]
    digests = ", ".join(dict.fromkeys(column.protocol["digest"] for column in part.columns))
    videos = {
        column.label: len({video["video"] for one in column.results["dimensions"] for video in one["videos"]}) for column in part.columns
    }
    scored = sum(one["score"] is not None for one in first.results["dimensions"])
    left_out = sum(problem["fatal"] for problem in part.problems)
    counted = ", ".join(f"{label} {count}" for label, count in videos.items()) if len(videos) > 1 else str(next(iter(videos.values())))
    return [
        ("suite", first.protocol["suite"]),
        ("protocol digest", digests),
        ("videos scored", counted),
        ("dimensions", f"{scored} of {len(first.results['dimensions'])}"),
        ("left out", str(left_out)),
    ]


def _scores(part: VBenchPart) -> None:
    """The table's rows, the networks' rows and what stands in."""
    first = part.columns[0].results
    published = first["published"].get("table_1", [])
    part.source = first["published"].get("source", "")
    part.published = [row["model"] for row in published]
    for name in TOTALS:
        ours = [_total_cell(column.results, name) for column in part.columns]
        part.rows.append({"name": name, "ours": ours, "published": [row[name] for row in published], "rule": name == TOTALS[-1]})
    for one in first["dimensions"]:
        name = one["dimension"]
        found = [column.dimension(name) for column in part.columns]
        values = [row["dimensions"].get(name) for row in published]
        part.rows.append({"name": name.replace("_", " "), "ours": [_cell(each) for each in found], "published": values, "rule": False})
        best = max(found, key=lambda each: len(each["videos"]))
        videos = " / ".join(str(len(each["videos"])) for each in found)
        row = {"name": name.replace("_", " "), "videos": videos, "metric": best["metric"], "reason": best["reason"], "mark": _mark(best)}
        part.networks.append(row)
    notes = [(column.label, note) for column in part.columns for note in column.results["notes"] if note.startswith(STAND_IN)]
    by_text: dict[str, list[str]] = {}
    for label, note in notes:
        by_text.setdefault(note, []).append(label)
    part.stand_in_notes = [f"{note} [{', '.join(labels)}]" if len(part.columns) > 1 else note for note, labels in by_text.items()]


def _total_cell(results: dict[str, Any], name: str) -> dict[str, str]:
    value = results["totals"][name]
    bounds = results["intervals"].get(name)
    missing = len(results["totals"]["missing"])
    stand_in = value is not None and any(one["stand_in"] for one in results["dimensions"])
    return {
        "text": "–" if value is None else f"{value:.2f}",
        "interval": f"[{bounds[0]:.2f}, {bounds[1]:.2f}]" if bounds else "",
        "mark": STAND_IN if stand_in else "",
        "reason": f"{missing} of 16 dimensions are missing" if missing else "",
        **NOT_CORRECTED,
    }


def _cell(one: dict[str, Any]) -> dict[str, str]:
    if one["score"] is None:
        return {"text": "–", "interval": "", "mark": "", "reason": one["reason"], **NOT_CORRECTED}
    bounds = f"[{100 * one['low']:.2f}, {100 * one['high']:.2f}]" if one["low"] is not None else ""
    mark = _mark(one)
    if one["reference"] is not None and not one["imported"]:
        mark += f" reference {100 * one['reference']:.2f}"
    cell = {"text": f"{100 * one['score']:.2f}", "interval": bounds, "mark": mark.strip(), "reason": "", **NOT_CORRECTED}
    if one.get("corrected") is not None:
        cell |= {"corrected": f"{100 * one['corrected']:.2f}", "change": f"{100 * (one['corrected'] - one['score']):+.2f}"}
        if one["last_frame"] is not None:
            cell["last_frame"] = f"{100 * one['last_frame']:.2f}"
    return cell


def _mark(one: dict[str, Any]) -> str:
    if one["score"] is None:
        return ""
    return f"from {one['imported']}" if one["imported"] else STAND_IN if one["stand_in"] else ""


def _extremes(part: VBenchPart, column: Column) -> None:
    """Best and worst clips of one column, by dimension, with their pictures."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for one in column.results["extremes"]:
        image = _image(column.folder / one["picture"])
        groups.setdefault(one["dimension"], []).append({**one, "image": image, "value": f"{100 * one['value']:.2f}"})
    for name, clips in groups.items():
        found = column.dimension(name)
        values = [value for video in found["videos"] for value in video["clips"].values()]
        part.extremes.append(
            {"name": name.replace("_", " "), "label": column.label, "mark": _mark(found), "clips": clips, "strip": Markup(strip(values))}
        )


def _image(path: Path) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(path.read_bytes()).decode()


# ---- drawings --------------------------------------------------------------------------------------------------------


def _x(percent: float) -> float:
    return LEFT_PX + min(max(percent, 0.0), 100.0) / 100 * (WIDTH_PX - LEFT_PX - 20)


def dot_plot(part: VBenchPart) -> str:
    """A row a dimension: rings for the published rows, a dot with its interval for each column."""
    rows = part.rows[len(TOTALS) :]
    height = ROW_PX * len(rows) + 26
    parts = []
    for percent in range(0, 101, 20):
        parts.append(f'<line class="grid" x1="{_x(percent):.1f}" x2="{_x(percent):.1f}" y1="4" y2="{height - 20}"/>')
        parts.append(f'<text x="{_x(percent):.1f}" y="{height - 6}" text-anchor="middle">{percent}</text>')
    for place, row in enumerate(rows):
        middle = 4 + ROW_PX * (place + 0.5)
        parts.append(f'<text class="label" x="{LEFT_PX - 10}" y="{middle + 4:.1f}" text-anchor="end">{escape(row["name"])}</text>')
        for model, value in zip(part.published, row["published"], strict=True):
            if value is not None:
                said = f"<title>{escape(model)} {value:.2f}</title>"
                parts.append(f'<circle class="paper" cx="{_x(value):.1f}" cy="{middle:.1f}" r="3.5">{said}</circle>')
        for number, (column, cell) in enumerate(zip(part.columns, row["ours"], strict=True)):
            parts += _dot(column, cell, row["name"], middle + 4 * (number - (len(part.columns) - 1) / 2), number)
    return f'<svg viewBox="0 0 {WIDTH_PX} {height}" width="{WIDTH_PX}" height="{height}" role="img">{"".join(parts)}</svg>'


def _dot(column: Column, cell: dict[str, str], name: str, y: float, number: int) -> list[str]:
    if cell["text"] == "–":
        return []
    one = column.dimension(name.replace(" ", "_"))
    kind = f"ours{number % 4}"
    parts = []
    if one["low"] is not None:
        ends = f'x1="{_x(100 * one["low"]):.1f}" x2="{_x(100 * one["high"]):.1f}"'
        parts.append(f'<line class="{kind}" {ends} y1="{y:.1f}" y2="{y:.1f}"/>')
    said = f"<title>{escape(column.label)} {cell['text']} {cell['interval']} {cell['mark']}</title>"
    hollow = " is-stand-in" if one["stand_in"] else ""
    parts.append(f'<circle class="{kind}{hollow}" cx="{_x(100 * one["score"]):.1f}" cy="{y:.1f}" r="4">{said}</circle>')
    return parts


def strip(values: Sequence[float]) -> str:
    """Every clip's score as a tick on a line from the least to the greatest."""
    low, high = min(values), max(values)
    parts = [f'<line class="axis" x1="60" x2="{WIDTH_PX - 60}" y1="12" y2="12"/>']
    for value in sorted(values):
        x = 60 + (value - low) / ((high - low) or 1) * (WIDTH_PX - 120)
        parts.append(f'<line class="line0" x1="{x:.1f}" x2="{x:.1f}" y1="5" y2="19"><title>{100 * value:.2f}</title></line>')
    parts.append(f'<text x="54" y="16" text-anchor="end">{100 * low:.2f}</text><text x="{WIDTH_PX - 54}" y="16">{100 * high:.2f}</text>')
    return f'<svg viewBox="0 0 {WIDTH_PX} 24" width="{WIDTH_PX}" height="24" role="img">{"".join(parts)}</svg>'
