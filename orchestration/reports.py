"""ROOT/report.html: the whole run on one self-contained page, and the headline that the command line prints.

Reads the jobs' reports, the store's tables and the files beside them; computes nothing that a job computes.
Works for a run in any state: a section whose job is not done says which command makes it. No torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from markupsafe import Markup

from orchestration.charts import Band, Curve, curves
from orchestration.page import environment, format_bytes, format_number, format_seconds
from orchestration.report_data import Chart, DataPart, data_url, read_data
from orchestration.sweep_report import LinkedPart, read_sweeps
from orchestration.vbench_page import VBenchPart, read_part
from pipelines.artifacts import JobState, Report, Workspace, ends_and_middle, write_atomically
from pipelines.plan import JOB_NAMES
from pipelines.recipe import Recipe, dump

PICTURE_WIDTH_PX = 1400
SHEET_WIDTH_PX = 1100
STAGES = {"train_stage1": "Stage I", "train_stage2": "Stage II"}
HEADLINES = {
    "precompute_latents.codec_psnr_db": "autoencoder's PSNR, dB",
    "generate.videos_generated": "videos generated",
}
"""job.key of a report's headline -> label of the run's headline; evaluate's are all shown as they are."""


@dataclass
class Page:
    """Everything that the template prints. An empty part is explained in `missing` under the section's name."""

    title: str
    root: str
    recipe_name: str
    made: str
    facts: list[tuple[str, str]]
    headline: list[tuple[str, str]]
    jobs: list[dict[str, Any]]
    data: DataPart
    stand_ins: list[tuple[str, str]] = field(default_factory=list)
    losses: list[Chart] = field(default_factory=list)
    validation: list[dict[str, Any]] = field(default_factory=list)
    sheets: list[dict[str, Any]] = field(default_factory=list)
    """Of held-out samples while the stages train."""
    pictures: list[dict[str, Any]] = field(default_factory=list)
    results: dict[str, Any] | None = None
    versions: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[tuple[str, str]] = field(default_factory=list)
    recipe_json: str = ""
    missing: dict[str, str] = field(default_factory=dict)
    vbench: VBenchPart | None = None
    sweeps: list[LinkedPart] = field(default_factory=list)


def build_report(workspace: Workspace, recipe: Recipe) -> Path:
    """Writes ROOT/report.html and returns its path. Raises SourceError where the sources cannot be listed."""
    states = workspace.states(recipe, JOB_NAMES)
    page = Page(
        title=f"FlashVideo run · {workspace.root.name}",
        root=str(workspace.root),
        recipe_name=recipe.name,
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        facts=_facts(states, workspace, recipe),
        headline=headline(workspace, recipe, states),
        jobs=[_job(state) for state in states],
        data=read_data(workspace, recipe),
        recipe_json=dump(recipe),
    )
    done = {state.spec.name: state for state in states if state.report is not None}
    _provenance(page, states)
    if page.data.tags:
        page.facts.append(("dataset tag", page.data.tags[0]["name"]))
    _training(page, workspace, states)
    _evaluation(page, workspace, done)
    page.vbench = read_part(workspace.root / "vbench")
    page.sweeps = read_sweeps(workspace.root)
    write_atomically(workspace.report_html, environment().get_template("report.html.j2").render(page=page))
    return workspace.report_html


def headline(workspace: Workspace, recipe: Recipe, states: list[JobState] | None = None) -> list[tuple[str, str]]:
    """(label, value) lines for the end of a run: data, both stages, evaluation, time and memory. Reads JSON only.

    Raises SourceError where the sources cannot be listed.
    """
    states = workspace.states(recipe, JOB_NAMES) if states is None else states
    reports = {state.spec.name: state.report for state in states if state.report is not None}
    lines: list[tuple[str, str]] = []
    for name, report in reports.items():
        if name == "select":
            lines += _selected(report)
        for key, value in report.headline.items():
            label = HEADLINES.get(f"{name}.{key}") or (key if name == "evaluate" else None)
            if label is not None and not isinstance(value, list | dict):
                lines.append((label, format_number(value)))
        if name in STAGES and "evaluate" not in reports and "validation_fall" in report.headline:
            lines.append((f"{STAGES[name]}: fall of validation loss", f"{100 * report.headline['validation_fall']:.0f} %"))
    if reports:
        peak = max(reports.values(), key=lambda report: report.peak_memory_bytes)
        lines.append(("time in jobs", format_seconds(sum(report.seconds for report in reports.values()))))
        lines.append(("largest process", f"{format_bytes(peak.peak_memory_bytes)} ({peak.job})"))
    waiting = [state.spec.name for state in states if state.report is None]
    if waiting:
        lines.append(("not done", ", ".join(waiting)))
    return lines


def _selected(report: Report) -> list[tuple[str, str]]:
    counts = report.counts
    lines = []
    if {"kept", "in", "train", "val"} <= set(counts):
        lines.append(("clips kept", f"{counts['kept']} of {counts['in']} ({counts['train']} train, {counts['val']} held out)"))
    if "tag" in report.outputs:
        lines.append(("dataset tag", report.outputs["tag"]))
    return lines


# ---- the page's parts ------------------------------------------------------------------------------------------------


def _facts(states: list[JobState], workspace: Workspace, recipe: Recipe) -> list[tuple[str, str]]:
    """The header's line of facts."""
    done = [state for state in states if state.report is not None]
    sources = ", ".join(recipe.sources) if recipe.sources else "rendered samples"
    facts = [("run root", str(workspace.root)), ("recipe", recipe.name), ("sources", sources)]
    facts.append(("jobs done", f"{len(done)} of {len(states)}"))
    started = [state.report.started for state in done if state.report is not None and state.report.started]
    if started:
        facts.append(("started", min(started)))
    return facts


def _job(state: JobState) -> dict[str, Any]:
    report = state.report
    return {
        "name": state.spec.name,
        "summary": state.spec.summary,
        "state": state.state,
        "fingerprint": state.fingerprint,
        "report": report,
        "recorded": [(key, value) for key, value in report.headline.items() if not isinstance(value, list | dict)] if report else [],
        "counts": [(key, value) for key, value in report.counts.items() if not key.startswith("rejected by ")] if report else [],
    }


def _provenance(page: Page, states: list[JobState]) -> None:
    """Versions, warnings, and what stands in for what."""
    versions: dict[str, set[str]] = {}
    models: dict[str, str] = {}
    for state in states:
        if state.report is None:
            continue
        for package, version in state.report.versions.items():
            versions.setdefault(package, set()).add(version)
        models |= state.report.models  # a later job names a role more exactly
        page.warnings += [(state.spec.name, warning) for warning in state.report.warnings]
    page.versions = [(package, ", ".join(sorted(found))) for package, found in sorted(versions.items())]
    page.stand_ins = list(models.items())


# ---- training --------------------------------------------------------------------------------------------------------


def _training(page: Page, workspace: Workspace, states: list[JobState]) -> None:
    """Loss curves and fixed-noise validation of both stages, also of a job that is still running."""
    for job, title in STAGES.items():
        state = next(state for state in states if state.spec.name == job)
        folder = workspace.folder(job, state.fingerprint) if state.fingerprint else None
        losses = _one(folder, "losses.jsonl")
        if losses is None:
            page.missing[job] = f"{title} has no loss log yet. It is made by: flashvideo train {job[6:]} --root {workspace.root}"
            continue
        entries = [json.loads(line) for line in losses.read_text().splitlines() if line.strip()]
        chart = loss_chart(title, entries)
        if chart is not None:
            page.losses.append(chart)
        page.sheets += _sheets(folder, title)
        validation = _one(folder, "validation.json")
        if validation is not None:
            by_phase = state.report.headline.get("validation_by_phase", {}) if state.report is not None else {}
            page.validation.append({"stage": title, "by_phase": by_phase, **_validation(json.loads(validation.read_text()))})


def _sheets(folder: Path | None, title: str) -> list[dict[str, Any]]:
    """Of Stage I, and of each phase of Stage II: the newest sheet of held-out samples, inlined, and the first and the middle one."""
    if folder is None:
        return []
    phases: dict[str, list[tuple[int, Path]]] = {}
    for path in sorted((folder / "samples").glob("*step-*.jpg")):
        phase, step = path.stem.rsplit("step-", 1)
        phases.setdefault(phase.strip("-").partition("-")[2], []).append((int(step), path))
    how = _sampling(folder / "samples" / "sampling.json")
    found = []
    for phase, sheets in phases.items():
        shown = [
            {"about": f"after {step} train_steps", "image": data_url(path, SHEET_WIDTH_PX)}
            for step, path in ends_and_middle(sorted(sheets))
        ]
        found.append({"title": f"{title}, {phase}" if phase else title, "how": how, "newest": shown[-1], "earlier": shown[:-1]})
    return found


def _sampling(path: Path) -> str:
    """What a sheet shows. Stage I leaves its settings beside them."""
    if not path.is_file():
        return "first frames of held-out clips: degraded, enhanced in 4 steps, true"
    settings = json.loads(path.read_text())
    return (
        f"first, middle and last frame of held-out clips: sampled from the caption in {settings['num_steps']} steps "
        f"(guidance scale {settings['guidance_scale']:g}), then true"
    )


def _one(folder: Path | None, name: str) -> Path | None:
    """The newest file of that name anywhere under a job's folder."""
    if folder is None or not folder.is_dir():
        return None
    return max(folder.rglob(name), key=lambda path: path.stat().st_mtime, default=None)


def loss_chart(title: str, entries: list[dict[str, Any]]) -> Chart | None:
    """Loss over train_steps, phases one after the other as bands, one curve a modality. None without entries."""
    if not entries:
        return None
    phases: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        phases.setdefault(str(entry.get("phase") or ""), []).append(entry)
    bands: list[Band] = []
    lines: dict[tuple[str, str], tuple[list[float], list[float]]] = {}
    offset = 0.0
    for phase, members in phases.items():
        start = offset
        first = min(entry["train_step"] for entry in members)
        base = offset if first <= offset else 0.0  # train_step counts within a phase, or over all of them
        for entry in members:
            xs, ys = lines.setdefault((phase, str(entry.get("modality") or "video")), ([], []))
            xs.append(base + entry["train_step"])
            ys.append(entry["loss"])
            offset = max(offset, xs[-1])
        if phase:
            bands.append(Band(phase, start, offset))
    order = [Curve(modality, tuple(xs), tuple(ys)) for (_, modality), (xs, ys) in lines.items()]
    first_loss, last_loss = entries[0]["loss"], entries[-1]["loss"]
    about = f"{len(entries)} logged train_steps; first {first_loss:.3g}, last {last_loss:.3g}. Thin: as logged. Thick: running mean."
    return Chart(f"{title}: training loss", Markup(curves(order, bands, "train_step", "loss")), about)


def _validation(values: dict[str, Any]) -> dict[str, Any]:
    """before, after, fall; and the bins (timesteps, or places on the path) as rows."""
    before, after = values["before"], values["after"]
    bins = [{"bin": name, **pair} for name, pair in (values.get("by_bin") or {}).items()]
    return {"before": before, "after": after, "fall": 1 - after / before, "samples": values.get("samples"), "bins": bins}


# ---- evaluation ------------------------------------------------------------------------------------------------------


def _evaluation(page: Page, workspace: Workspace, done: dict[str, JobState]) -> None:
    """results.json and its pictures as they are, the pictures shrunk and inlined."""
    state = done.get("evaluate")
    if state is None or state.fingerprint is None:
        page.missing["evaluation"] = f"The run is not evaluated yet. It is done by: flashvideo evaluate --root {workspace.root}"
        return
    folder = workspace.folder("evaluate", state.fingerprint)
    page.results = json.loads((folder / "results.json").read_text())
    page.pictures = [{**picture, "image": data_url(folder / picture["file"], PICTURE_WIDTH_PX)} for picture in page.results["pictures"]]
