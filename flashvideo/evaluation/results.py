"""What an evaluation leaves behind: `results.json`, and the gates that judge a run. Light (no torch).

A gate never stops a job: it is a row that says pass or fail, with the number and its limits.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from flashvideo.config import EvaluationConfig
from flashvideo.evaluation import published
from flashvideo.evaluation.totals import Totals, totals

RESULTS_FILE = "results.json"


class Record(BaseModel):
    """Base of every result: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Protocol(Record):
    """How the numbers were made. Two results compare only where their protocols are equal."""

    suite: Literal["debug", "vbench", "vbench_long"] = "debug"
    """debug: held-out clips and generated videos of the run, with the metrics below."""
    metrics: dict[str, str]
    """Metric -> library and version, or definition."""
    frame_stride: int = 1
    """Every n-th frame enters the frame metrics."""
    re_encode: Literal["none", "1.024M", "crf23"] = "none"
    """VBench-Long writes every clip again before it scores it (1.024 Mbit/s H.264 in the leaderboard's time)."""
    static_filter: bool = False
    """VBench scores temporal flickering on static videos only; false: on all videos."""
    prompts: Literal["short", "long", "run"] = "run"
    """Prompt list that the videos were sampled from; run: captions or prompts of the recipe."""
    upsampling: str
    """How Stage I's frames reach Stage II's size before they are scored."""
    degradation: str
    """How held-out truth becomes the input."""
    truth: Literal["held-out clips", "training clips"]
    """training clips: the run holds nothing out, so the numbers say nothing about new video."""
    shape: tuple[int, int, int]
    """Frames, height, width that are scored."""
    frame_rate_hz: float
    sampling: dict[str, Any]
    """Stage II's sampling settings."""
    seeds: dict[str, int]
    digest: str = ""
    """First 16 hex digits of the sha256 of every other field; two results compare only where it is equal."""

    def sealed(self) -> Protocol:
        """With its digest."""
        fields = self.model_dump(mode="json", exclude={"digest"})
        return self.model_copy(update={"digest": hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]})


class QualityRow(Record):
    """Means over clips for one kind of video (truth, input, enhanced, ...)."""

    name: str
    clips: int
    metrics: dict[str, float]
    """pyiqa metrics by name."""
    gradient: float
    """Mean gradient magnitude, luma 0-1."""
    gradient_ratio: float | None = None
    """gradient / truth's gradient; None where there is no truth."""
    psnr_db: float | None = None
    """Mean over clips of the PSNR to truth; None for truth itself, without truth, and for an exact copy (infinite)."""
    temporal_flickering: float | None = None
    """VBench's score, 0-1; None for single frames."""


class ClipQuality(Record):
    """One clip or generated video: its rows."""

    item: str
    """clip_id of a held-out clip; the prompt of a generated video."""
    about: str = ""
    """Caption or file."""
    rows: tuple[QualityRow, ...]


class Gate(Record):
    """One pass-or-fail line."""

    name: str
    subject: str
    """What is judged, e.g. "Stage II, trained"."""
    value: float | None
    """None: it could not be measured, which is a fail."""
    limits: str
    """In words, e.g. "0.85 to 1.25"."""
    unit: str = ""
    passed: bool
    control: bool = False
    """An untrained model's row: its gates together are expected to fail, which shows that they can."""


def judge(
    name: str,
    subject: str,
    value: float | None,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    unit: str = "",
    control: bool = False,
) -> Gate:
    """The gate with its verdict; a value that is missing or not finite fails."""
    words = [f"{word} {limit:.4g}" for word, limit in (("at least", at_least), ("at most", at_most)) if limit is not None]
    known = value if value is not None and math.isfinite(value) else None
    passed = known is not None and (at_least is None or known >= at_least) and (at_most is None or known <= at_most)
    limits = f"{at_least:.4g} to {at_most:.4g}" if len(words) == 2 else words[0]
    return Gate(name=name, subject=subject, value=known, limits=limits, unit=unit, passed=passed, control=control)


class DimensionScore(Record):
    """One VBench dimension, 0-1."""

    dimension: str
    score: float
    videos: int
    note: str = ""


class Picture(Record):
    """A picture for the report: a grid whose rows and columns are named."""

    file: str
    """Relative to the folder of results.json."""
    title: str
    columns: tuple[str, ...]
    """Left to right, equally wide."""
    rows: tuple[str, ...]
    """Top to bottom."""


class Results(Record):
    """results.json."""

    protocol: Protocol
    held_out: tuple[QualityRow, ...]
    """Means over held-out clips: truth, codec, input, enhanced, untrained."""
    held_out_clips: tuple[ClipQuality, ...]
    generated: tuple[QualityRow, ...]
    """Means over generated videos: stage1, stage2."""
    generated_videos: tuple[ClipQuality, ...]
    dimensions: tuple[DimensionScore, ...]
    """VBench dimensions that ran, on Stage II's videos unless the note says otherwise."""
    totals: dict[str, Any]
    """flashvideo.evaluation.totals.Totals; total is None while dimensions are missing."""
    gates: tuple[Gate, ...]
    verdict: str
    """The gates in one line."""
    pictures: tuple[Picture, ...]
    models: dict[str, str]
    published: dict[str, Any]
    """The paper's rows that stand beside ours (flashvideo.evaluation.published)."""
    notes: tuple[str, ...] = ()

    def row(self, name: str) -> QualityRow | None:
        """The held-out row of that name."""
        return next((row for row in self.held_out if row.name == name), None)


def load_results(folder: Path) -> Results:
    """results.json of a folder."""
    return Results.model_validate_json((folder / RESULTS_FILE).read_text())


def mean_row(name: str, rows: list[QualityRow], truth_gradient: float | None = None) -> QualityRow:
    """Mean over clips. The gradient ratio is the ratio of means, so that a flat clip does not dominate it."""
    if not rows:
        raise ValueError(f"no clip has a row {name}")
    count = len(rows)
    gradient = sum(row.gradient for row in rows) / count
    psnr = [row.psnr_db for row in rows if row.psnr_db is not None]
    still = [row.temporal_flickering for row in rows if row.temporal_flickering is not None]
    return QualityRow(
        name=name,
        clips=count,
        metrics={metric: sum(row.metrics[metric] for row in rows) / count for metric in rows[0].metrics},
        gradient=gradient,
        gradient_ratio=gradient / truth_gradient if truth_gradient else None,
        psnr_db=sum(psnr) / len(psnr) if psnr else None,
        temporal_flickering=sum(still) / len(still) if still else None,
    )


def enhancement_gates(rows: dict[str, QualityRow], config: EvaluationConfig) -> list[Gate]:
    """Sharpness and fidelity of the trained Stage II, and of the untrained one as a control.

    `rows`: means over held-out clips, by name (input, enhanced, untrained).
    """
    reference = rows["input"].psnr_db
    if reference is None:
        raise ValueError("the input has no PSNR to truth, so the enhanced clips cannot be judged against it")
    low, high = config.sharpness_band
    gates = []
    for name, subject in (("enhanced", "Stage II, trained"), ("untrained", "Stage II, untrained")):
        control = name == "untrained"
        row = rows[name]
        gates.append(judge("sharpness over truth's", subject, row.gradient_ratio, at_least=low, at_most=high, control=control))
        floor = reference - config.psnr_margin_db
        gates.append(judge("PSNR to truth", subject, row.psnr_db, at_least=floor, unit="dB", control=control))
    return gates


STAGE1_FALL, STAGE2_FALL = 0.30, 0.50
"""Shares by which the debug run's fixed-noise validation losses must fall."""


def learning_gates(stage1: dict[str, Any] | None, stage2: dict[str, Any] | None) -> list[Gate]:
    """Fall of the fixed-noise validation loss of both stages, from their validation.json; None: not recorded."""
    gates = []
    for name, subject, validation, least in (
        ("fall of v-prediction loss", "Stage I", stage1, STAGE1_FALL),
        ("fall of flow-matching loss", "Stage II", stage2, STAGE2_FALL),
    ):
        fall = None if validation is None else 1 - validation["after"] / validation["before"]
        gates.append(judge(name, subject, fall, at_least=least))
    return gates


def dimension_totals(dimensions: tuple[DimensionScore, ...]) -> Totals:
    """Totals of the dimensions that ran; missing ones are listed, and the total is None while there are any."""
    return totals({entry.dimension: entry.score for entry in dimensions})


def verdict(gates: tuple[Gate, ...]) -> str:
    """One line: how many gates passed, which failed, and whether the untrained control failed as it should.

    The control is one check over its gates together: an untrained model fails it where any of its gates fails.
    """
    judged = [gate for gate in gates if not gate.control]
    control = [gate for gate in gates if gate.control]
    failed = [f"{gate.name} ({gate.subject})" for gate in judged if not gate.passed]
    text = f"{len(judged) - len(failed)} of {len(judged)} pass"
    if failed:
        text += f"; FAILED: {', '.join(failed)}"
    if control:
        fails = [gate.name for gate in control if not gate.passed]
        text += f"; the untrained control fails {', '.join(fails)}" if fails else "; THE UNTRAINED CONTROL PASSES: these gates show nothing"
    return text


def table_1_rows() -> list[dict[str, Any]]:
    """The paper's Table 1 as JSON, percent."""
    return [
        {"model": row.model, "total": row.total, "quality": row.quality, "semantic": row.semantic, "dimensions": row.dimensions}
        for row in published.TABLE_1
    ]


def published_rows() -> dict[str, Any]:
    """The paper's Tables 1, 2, 3, 6 and 8 as they go into results.json: what the debug report can stand beside."""
    return {
        "source": published.SOURCE,
        "table_1": table_1_rows(),
        "table_2": published.TABLE_2,
        "table_3": published.TABLE_3,
        "table_6": published.TABLE_6,
        "table_8": published.TABLE_8,
    }
