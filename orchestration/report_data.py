"""What the report shows of the store: funnel, histograms, contact sheets, errors, releases. No torch.

Scores are read as Arrow columns and only the clips that are shown become Python rows, so that a store of millions
of clips is reported too.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup

from curation.config import Rule
from orchestration.charts import Limit, histogram
from orchestration.page import format_bytes, format_seconds
from pipelines.artifacts import Workspace
from pipelines.recipe import Recipe

if TYPE_CHECKING:
    from curation.store import Store

HISTOGRAM_COLUMNS = (
    "motion_proxy",
    "motion_raft",
    "aesthetic_proxy",
    "aesthetic",
    "piqe",
    "musiq",
    "clipiqa",
    "maniqa",
    "niqe",
    "text_overlay",
)
SHEET_CLIPS = 12
"""Clips on one contact sheet."""
THUMB_WIDTH_PX = 240
ERROR_ROWS = 200
"""Rows of the errors table that are printed; the rest is counted."""


@dataclass(frozen=True)
class Thumb:
    """One clip on a contact sheet."""

    image: str
    """data: URL; empty where the picture is missing."""
    title: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Sheet:
    """A contact sheet."""

    title: str
    about: str
    thumbs: tuple[Thumb, ...]


@dataclass(frozen=True)
class Chart:
    """A drawing with its caption."""

    title: str
    svg: Markup
    about: str


@dataclass
class DataPart:
    """The page's part about data. `note` says what is missing and which command makes it; empty where all is there."""

    note: str = ""
    sheet_note: str = ""
    error_note: str = ""
    tables: list[dict[str, Any]] = field(default_factory=list)
    rules: list[dict[str, Any]] = field(default_factory=list)
    states: list[tuple[str, int]] = field(default_factory=list)
    amounts: list[tuple[str, str]] = field(default_factory=list)
    """Hours, bytes, work so far."""
    histograms: list[Chart] = field(default_factory=list)
    sheets: list[Sheet] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)
    error_counts: list[dict[str, Any]] = field(default_factory=list)
    tags: list[dict[str, Any]] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)


def read_data(workspace: Workspace, recipe: Recipe) -> DataPart:
    """Everything that the store knows."""
    from curation.store import MissingStoreError, Store

    try:
        store = Store.open(workspace.store, create=False)
    except MissingStoreError:
        return DataPart(note=f"There is no store yet. It is made by: flashvideo curate --root {workspace.root}")
    part = DataPart()
    part.tables = [{"name": name, "rows": store.count(name), "version": store.version(name)} for name in ("sources", "clips", "captions")]
    part.tags = [{"name": tag.name, "version": tag.version, "note": tag.note} for tag in reversed(list(store.tags().values()))]
    part.runs = store.read("runs").drop_columns(["time"]).to_pylist()
    _errors(part, store)
    rules = recipe.curation.policy.rules
    columns = dict.fromkeys(["clip_id", "media_type", "state", *HISTOGRAM_COLUMNS, *(rule.column for rule in rules)])
    clips = store.read("clips", list(columns))
    if clips.num_rows == 0:
        part.note = f"The table of clips is empty. It is filled by: flashvideo curate --root {workspace.root}"
        return part
    part.amounts = _amounts(store, workspace)
    _funnel(part, clips, rules)
    _histograms(part, clips, rules)
    _sheets(part, clips, store, workspace, rules)
    return part


def _amounts(store: Store, workspace: Workspace) -> list[tuple[str, str]]:
    sources = store.read("sources", ["bytes", "duration_s"], "present = true", ordered=False)
    runs = store.read("runs", ["seconds"], ordered=False)
    clips, kept = (store.read("clips", ["duration_s"], where, ordered=False) for where in (None, "state = 'kept'"))
    films, cut, held = (float(pc.sum(rows["duration_s"]).as_py() or 0) for rows in (sources, clips, kept))
    pictures, tables = (
        sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) for folder in (workspace.tracks, workspace.store)
    )
    return [
        ("sources", f"{sources.num_rows:,} files, {format_bytes(pc.sum(sources['bytes']).as_py() or 0)}, {format_seconds(films)} of video"),
        ("clips", f"{format_seconds(cut)} of video, {format_seconds(held)} of it kept"),
        ("on disk", f"{format_bytes(pictures)} of tracks and thumbnails, {format_bytes(tables)} of tables"),
        ("work", f"{format_seconds(pc.sum(runs['seconds']).as_py() or 0)} of the workers, the last execution of every step"),
    ]


def _funnel(part: DataPart, clips: pa.Table, rules: tuple[Rule, ...]) -> None:
    from curation.policy import funnel

    part.rules = [
        {
            "rule": count.rule,
            "condition": count.condition,
            "unit": count.unit,
            "judged": count.judged,
            "unknown": count.unknown,
            "alone": count.rejected_alone,
            "first": count.rejected_first,
            "left": count.left,
            "share": count.left / clips.num_rows,
        }
        for count in funnel(clips, rules)
    ]
    counts = {entry["values"] or "new": entry["counts"] for entry in pc.value_counts(clips["state"]).to_pylist()}
    part.states = sorted(counts.items())


def _histograms(part: DataPart, clips: pa.Table, rules: tuple[Rule, ...]) -> None:
    is_kept = pc.fill_null(pc.equal(clips["state"], "kept"), False)
    for column in HISTOGRAM_COLUMNS:
        kept, others = _known(clips, column, is_kept), _known(clips, column, pc.invert(is_kept))
        if not len(kept) and not len(others):
            continue
        limits = [
            Limit(value, f"{rule.name} {sign} {value:g}")
            for rule in rules
            if rule.column == column
            for value, sign in ((rule.at_least, "≥"), (rule.at_most, "≤"))
            if value is not None
        ]
        unknown = clips.num_rows - len(kept) - len(others)
        about = f"{len(kept):,} kept, {len(others):,} not kept" + (f", {unknown:,} unknown" if unknown else "")
        part.histograms.append(Chart(column, Markup(histogram(kept, others, limits, _unit(column))), about))


def _known(clips: pa.Table, column: str, mask: pa.ChunkedArray) -> np.ndarray:
    """The finite values of a column where the mask holds."""
    values = clips[column].filter(mask).drop_null().to_numpy().astype(np.float64)
    return values[np.isfinite(values)]


def _unit(column: str) -> str:
    from curation.schema import CLIPS

    return (CLIPS.field(column).metadata or {}).get(b"unit", b"").decode()


# ---- contact sheets --------------------------------------------------------------------------------------------------


def _sheets(part: DataPart, clips: pa.Table, store: Store, workspace: Workspace, rules: tuple[Rule, ...]) -> None:
    """Kept clips; clips just below and just above each rule's threshold, motion first."""
    motion = next((rule for rule in rules if rule.column.startswith("motion")), None)
    kept = clips["clip_id"].filter(pc.fill_null(pc.equal(clips["state"], "kept"), False))
    shown = spread(kept, SHEET_CLIPS)
    part.sheets.append(_sheet("Kept", f"{len(shown)} of {len(kept):,}, evenly from all kept clips", shown, store, workspace, motion))
    if motion is None or motion.at_least is None:
        part.sheet_note = "The policy has no motion rule with at_least, so there is no threshold to look around."
    for rule in sorted(rules, key=lambda rule: rule is not motion):
        for bound, least in ((rule.at_least, True), (rule.at_most, False)):
            if bound is not None:
                part.sheets += _around(rule, bound, least, rule is motion, clips, store, workspace)


def _around(rule: Rule, bound: float, least: bool, both: bool, clips: pa.Table, store: Store, workspace: Workspace) -> list[Sheet]:
    """The clips nearest a threshold. A side that passes with one value throughout (no damage, no duplicate) shows nothing, nor does an
    empty one; `both`: the two sides whatever they hold."""
    judged = clips if rule.media == "any" else clips.filter(pc.fill_null(pc.equal(clips["media_type"], rule.media), False))
    scored = judged.select(["clip_id", rule.column]).filter(judged[rule.column].is_valid())
    score = scored[rule.column]
    limit = pa.scalar(bound, pa.float64())
    limit = limit.cast(score.type) if pa.types.is_floating(score.type) else limit  # as the policy compares
    above = (pc.greater_equal if least else pc.greater)(score, limit)
    sheets = []
    for side, mask, order in (("below", pc.invert(above), "descending"), ("above", above, "ascending")):
        rows = scored.filter(mask)
        passes = (side == "above") == least
        if not both and (rows.num_rows == 0 or (passes and pc.count_distinct(rows[rule.column]).as_py() == 1)):
            continue
        nearest = pc.select_k_unstable(rows, min(SHEET_CLIPS, rows.num_rows), [(rule.column, order), ("clip_id", "ascending")])
        unit = f" ({_unit(rule.column)})" if _unit(rule.column) else ""
        about = f"{rule.column} nearest {side} {bound:g}{unit}" + ("" if passes else ": this rule turns them away")
        title = f"Just {side} the {rule.name} threshold"
        sheets.append(_sheet(title, about, rows["clip_id"].take(nearest).to_pylist(), store, workspace, rule))
    return sheets


def spread(values: pa.ChunkedArray, count: int) -> list[str]:
    """At most `count` values, evenly over the sequence."""
    if len(values) <= count:
        picked: list[str] = values.to_pylist()
        return picked
    return [values[index * len(values) // count].as_py() for index in range(count)]


def _sheet(title: str, about: str, clip_ids: list[str], store: Store, workspace: Workspace, rule: Rule | None) -> Sheet:
    from curation.expression import any_of

    columns = ["clip_id", "uri", "media_type", "start_us", "end_us", "state", "reject_reason", "camera_move", "caption"]
    columns += [rule.column] if rule is not None and rule.column not in columns else []
    rows = {row["clip_id"]: row for row in store.read("clips", columns, any_of("clip_id", clip_ids)).to_pylist()} if clip_ids else {}
    return Sheet(title, about, tuple(_thumb(rows[clip_id], workspace, rule) for clip_id in clip_ids))


def _thumb(row: dict[str, Any], workspace: Workspace, rule: Rule | None) -> Thumb:
    path = workspace.tracks / "thumbs" / f"{row['clip_id']}.jpg"
    timed = row["media_type"] == "video" and row["start_us"] is not None
    score = None if rule is None else row[rule.column]
    facts = [f"{row['start_us'] / 1e6:.2f}–{row['end_us'] / 1e6:.2f} s"] if timed else []
    if rule is not None and score is not None:
        facts.append(f"{rule.name.replace('_', ' ')} {f'{score:.2f}' if isinstance(score, float) else score}")
    facts += [row["camera_move"]] if row["camera_move"] else []
    lines = [Path(row["uri"]).name, " · ".join(facts)]
    if row["reject_reason"]:
        lines.append(f"{row['state']}: {row['reject_reason']}")
    image = data_url(path, THUMB_WIDTH_PX) if path.is_file() else ""
    return Thumb(image, f"{row['clip_id']}\n{row['uri']}\n{row['caption'] or ''}", tuple(line for line in lines if line))


def data_url(path: Path, width_px: int) -> str:
    """The picture as a data: URL, JPEG, at most `width_px` wide."""
    from PIL import Image

    with Image.open(path) as source:
        image = source.convert("RGB")
    if image.width > width_px:
        image = image.resize((width_px, round(image.height * width_px / image.width)), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


# ---- errors ----------------------------------------------------------------------------------------------------------


def _errors(part: DataPart, store: Store) -> None:
    columns = ["job", "code", "uri", "clip_id", "message", "resolved"]
    table = store.read("errors", columns)
    counts: dict[tuple[str, str], list[int]] = {}
    for entry in table.group_by(["job", "code", "resolved"]).aggregate([([], "count_all")]).to_pylist():
        pair = counts.setdefault((entry["job"], entry["code"]), [0, 0])
        pair[bool(entry["resolved"])] += entry["count_all"]
    part.error_counts = [{"job": job, "code": code, "open": n[0], "resolved": n[1]} for (job, code), n in sorted(counts.items())]
    order = [(name, "ascending") for name in ("resolved", "job", "code", "uri")]
    for row in table.sort_by(order).slice(0, ERROR_ROWS).to_pylist():
        part.errors.append({**row, "uri": row["uri"] or "", "file": Path(row["uri"] or "").name, "clip": row["clip_id"] or ""})
    if table.num_rows > ERROR_ROWS:
        part.error_note = f"{table.num_rows - ERROR_ROWS:,} more rows are in the store's table errors."
