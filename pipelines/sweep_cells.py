"""What a sweep is made of: items (clips or prompts), cells (one value of one setting), and what each will cost.

A cell's protocol holds everything that changes its numbers; its key is the protocol's hash and names the folder where
its items' numbers lie, so two sweeps that share a cell share the work.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from flashvideo.config import FrameShape, Settings, Stage2SamplingConfig, SweepConfig
from flashvideo.evaluation.networks.frame_metrics import identity
from flashvideo.evaluation.sweeps import SWEEP_NAMES, VERSION, SweepName
from pipelines.artifacts import Report, Workspace
from pipelines.generate import read_manifest
from pipelines.job import JobContext, Progress, UserError
from pipelines.plan import job_spec, jobs_for
from pipelines.recipe import Recipe, did_you_mean, fingerprint

Kind = Literal["truth", "codec", "input", "enhanced", "stage1", "stage2", "folder"]
REFERENCES: tuple[Kind, ...] = ("input", "codec", "truth")
VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v"})
MAX_STRIPS = 4
"""Items whose pictures are kept."""


@dataclass(frozen=True)
class Item:
    """One video of a sweep."""

    name: str
    """Safe as a file name; a folder of another tool's videos names its files so."""
    about: str
    """Caption or prompt."""
    text: str
    """What Stage II is told."""
    seed: int
    clip: Mapping[str, Any] | None = None
    """A held-out clip's row; it has truth."""
    row: Mapping[str, Any] | None = None
    """A generated video's row of the manifest."""
    path: str | None = None
    """A video of another tool that is none of our items."""
    pictured: bool = False

    @property
    def identity(self) -> str:
        """Hash of what the item is; numbers of another one under the same name are not used."""
        clip = {name: self.clip[name] for name in ("clip_id", "uri", "start_us", "end_us")} if self.clip is not None else None
        row = {name: self.row[name] for name in ("stage1_pixels", "stage2_pixels")} if self.row is not None else None
        return fingerprint(self.name, self.text, self.seed, clip, row, self.path)


@dataclass(frozen=True)
class Cell:
    """One value of one setting."""

    sweep: SweepName
    label: str
    kind: Kind
    shape: FrameShape
    protocol: Mapping[str, Any]
    value: float | None = None
    """Place on the plot's axis."""
    sampling: Stage2SamplingConfig | None = None
    handover: bool = False
    """Weights of the phase before the last one."""
    twin: bool = False
    """Weights trained with the other latent degradation."""
    folder: str | None = None
    """Another tool's videos."""
    items: tuple[Item, ...] | None = None
    """Its own ones, where they are not the sweep's."""
    note: str = ""

    @cached_property
    def key(self) -> str:
        return fingerprint(self.protocol)

    def file(self, root: Path, item: Item) -> Path:
        """Where the item's numbers lie."""
        return root / "cells" / self.key / f"{item.name}.json"

    def picture(self, root: Path, item: Item) -> Path:
        return self.file(root, item).with_suffix(".png")


@dataclass(frozen=True)
class Trained:
    """The finished jobs that a sweep stands on."""

    recipe: Recipe
    workspace: Workspace
    reports: dict[str, Report] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Everything of sweeps lies here."""
        return self.workspace.root / "sweep"

    @classmethod
    def of(cls, recipe: Recipe, workspace: Workspace) -> Trained:
        """The root's finished jobs up to train_stage2, and generate where it is done. Raises UserError with the command that is due."""
        reports: dict[str, Report] = {}
        for state in workspace.states(recipe, ["generate"]):
            name = state.spec.name
            if state.report is not None:
                reports[name] = state.report
            elif name not in ("generate", "train_stage1"):
                raise UserError(
                    f"{name} is not done in {workspace.root} with this recipe, so there is no Stage II to sweep; run: flashvideo train "
                    f"stage2 --root {workspace.root}{finished_ones(workspace)}"
                )
        return cls(recipe, workspace, reports)

    @classmethod
    def at(cls, recipe: Recipe, workspace: Workspace, stage2: str) -> Trained:
        """The root's newest jobs and one Stage II by its fingerprint, whatever the code says now. Raises UserError."""
        reports: dict[str, Report] = {}
        for name in (*(job.name for job in jobs_for("precompute_latents")), "train_stage2"):
            folder = workspace.root / "artifacts" / name
            try:
                own = stage2 if name == "train_stage2" else json.loads((folder / "current.json").read_text())["fingerprint"]
                reports[name] = Report.model_validate_json((folder / own / "report.json").read_text())
            except OSError as error:
                raise UserError(f"{name} is not finished in {workspace.root}: {error.filename} cannot be read") from None
        return cls(recipe, workspace, reports)

    def context(self) -> JobContext:
        """What the evaluate job's functions want; its folder is the sweeps'."""
        return JobContext(self.recipe, self.workspace, job_spec("evaluate"), "", self.folder, Progress(None, "sweep"), self.reports)


def finished_ones(workspace: Workspace) -> str:
    """What --stage2 may name, in words; empty where nothing is finished."""
    found = sorted(path.parent.name for path in (workspace.root / "artifacts" / "train_stage2").glob("*/report.json"))
    return f" (or name one that is finished: --stage2 {' or '.join(found)})" if found else ""


# ---- items -----------------------------------------------------------------------------------------------------------


def choose_items(trained: Trained) -> tuple[tuple[Item, ...], str]:
    """The recipe's items, and what they are in words. Raises UserError where there are none."""
    recipe = trained.recipe
    if recipe.sweep.inputs == "prompts":
        items = generated_items(trained)
        if recipe.sweep.items is not None:
            items = items[: recipe.sweep.items]
        return items, f"{len(items)} videos that Stage I generated, enlarged"
    from pipelines.evaluate import choose_clips
    from pipelines.trained_models import item_seed

    count = recipe.sweep.items or recipe.evaluation.held_out_clips
    wider = recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update={"held_out_clips": count})})
    clips, truth = choose_clips(Trained(wider, trained.workspace, trained.reports).context())
    items = tuple(
        Item(
            name=clip["clip_id"],
            about=": ".join(text for text in (Path(clip["uri"]).name, clip["caption"]) if text),
            text=clip["caption"] or "",
            seed=item_seed("evaluate", recipe.seed, recipe.evaluation.seed, clip["clip_id"]),
            clip=clip,
            pictured=place < MAX_STRIPS,
        )
        for place, clip in enumerate(clips)
    )
    return items, f"{len(items)} {truth}, shrunk by {recipe.evaluation.downscale:g} and enlarged again"


def generated_items(trained: Trained) -> tuple[Item, ...]:
    """Every prompt of the generate job. Raises UserError where it is not done."""
    report = trained.reports.get("generate")
    if report is None:
        raise UserError(
            f"generate is not done in {trained.workspace.root}, so there are no videos of Stage I; run: flashvideo generate "
            f"--root {trained.workspace.root}"
        )
    rows = read_manifest(trained.workspace.folder("generate", report.fingerprint))["rows"]
    return tuple(
        Item(
            name=Path(row["stage2"]).name.removesuffix(".stage2.mp4"),
            about=row["prompt"],
            text=row["sampled_prompt"],
            seed=row["enhance_seed"],
            row=row,
            pictured=place < MAX_STRIPS,
        )
        for place, row in enumerate(rows)
    )


# ---- cells -----------------------------------------------------------------------------------------------------------


def with_values(config: SweepConfig, name: str, values: str) -> SweepConfig:
    """The settings with one sweep's values given as text, e.g. "1,2,4" or "256x448,336x592". Raises UserError."""
    if name not in ("nfe", "guidance", "noise", "resolution"):
        raise UserError(f"--values {values}: the sweep {name} has no values; nfe, guidance, noise and resolution have")
    parts = [part.strip() for part in values.split(",") if part.strip()]
    entries: list[Any] | None = [part.lower().split("x") for part in parts] if name == "resolution" else parts
    try:
        return type(config).model_validate(config.model_dump() | {name: entries or None})
    except ValidationError as error:
        example = "256x448,336x592 (height x width)" if name == "resolution" else "1,2,4"
        raise UserError(f"--values {values}: {error.errors()[0]['msg'].lower()}; write e.g. {example}") from None


def base_shape(recipe: Recipe) -> FrameShape:
    """Stage II's last phase: what the model was made for."""
    return recipe.stage2.phases[-1].shape


def cells_of(name: SweepName, trained: Trained, items: Sequence[Item], folders: Mapping[str, Path]) -> list[Cell]:
    """The cells of one sweep, references first. Raises UserError for values that do not fit the model."""
    recipe, sampling, base = trained.recipe, trained.recipe.generate.stage2, base_shape(trained.recipe)
    config = recipe.sweep
    make = _Maker(trained, name)
    if name == "stages":
        return [make.cell("Stage I", "stage1", base), make.cell("Stage II", "stage2", base)]
    has_truth = any(item.clip is not None for item in items)
    kinds = REFERENCES if has_truth else ("input",)
    if name == "resolution":
        shapes = [_shape(base, height, width) for height, width in config.resolution]
        cells = [make.cell(f"{kind} {_size(shape)}", kind, shape) for shape in shapes for kind in kinds]
        return cells + [
            make.cell(_size(shape), "enhanced", shape, value=float(shape.height * shape.width) / 1e6, sampling=sampling) for shape in shapes
        ]
    cells = [make.cell(kind, kind, base) for kind in kinds]
    if name in ("nfe", "guidance", "noise"):
        setting = {"nfe": "num_steps", "guidance": "guidance_scale", "noise": "noise_step"}[name]
        values: Sequence[float] = getattr(config, name)
        for value in values:
            changed = sampling.model_copy(update={setting: value})
            cells.append(make.cell(f"{value:g}", "enhanced", base, value=value, sampling=changed))
    if name == "preference":
        check_handover(trained)
        cells += [make.cell("before", "enhanced", base, sampling=sampling, handover=True)]
        cells += [make.cell("after", "enhanced", base, sampling=sampling)]
    if name == "degradation":
        check_twin(trained)
        own = make.cell(_degradation(recipe), "enhanced", base, sampling=sampling)
        other = make.cell(_degradation(twin_recipe(recipe)), "enhanced", base, sampling=sampling, twin=True)
        cells += sorted((own, other), key=lambda cell: len(cell.label))
    if name == "enhancers":
        cells.append(make.cell("ours", "enhanced", base, sampling=sampling))
        cells += [_folder_cell(make, label, folder, items, base) for label, folder in folders.items()]
    return cells


class _Maker:
    """Makes cells with their protocols."""

    def __init__(self, trained: Trained, sweep: SweepName) -> None:
        self.trained, self.sweep = trained, sweep
        config = trained.recipe.evaluation
        weights = None if config.frame_weights is None else Path(config.frame_weights).expanduser()
        try:
            metrics = {name: identity(name, weights) for name in config.frame_metrics}
        except OSError as error:
            raise UserError(f"evaluation.frame_weights: {error.filename} cannot be read: {error.strerror}") from None
        self.scoring = {
            "sweeps": VERSION,
            "metrics": metrics,
            "frame_stride": config.frame_stride,
            "device": "cuda" if trained.recipe.runtime.gpus_per_model_worker > 0 else "cpu",
        } | ({"dover": [config.dover, *config.dover_command]} if config.dover != "none" else {})

    def cell(
        self,
        label: str,
        kind: Kind,
        shape: FrameShape,
        *,
        value: float | None = None,
        sampling: Stage2SamplingConfig | None = None,
        handover: bool = False,
        twin: bool = False,
        folder: Path | None = None,
        items: tuple[Item, ...] | None = None,
        note: str = "",
    ) -> Cell:
        recipe, reports = self.trained.recipe, self.trained.reports
        protocol: dict[str, Any] = self.scoring | {"kind": kind, "shape": _plain(shape), "frame_rate_hz": recipe.latents.frame_rate_hz}
        if kind in ("codec", "input", "enhanced"):
            protocol |= {
                "inputs": recipe.sweep.inputs,
                "downscale": recipe.evaluation.downscale if recipe.sweep.inputs == "held_out" else None,
            }
        if kind in ("codec", "enhanced"):
            protocol["latents"] = reports["precompute_latents"].digest
        if kind == "enhanced" and sampling is not None:
            stage2 = check_twin(self.trained) if twin else reports["train_stage2"]
            protocol |= {
                "stage2": handover_name(self.trained) if handover else stage2.digest,
                "latent_degradation": recipe.stage2.latent_degradation != twin,
                "sampling": _plain(sampling),
                "motion": recipe.generate.motion,
                "precision": recipe.stage2.engine.precision,
                "text_encoder": _plain(recipe.text_encoder),
            }
        if kind in ("stage1", "stage2"):
            protocol |= {"generate": reports["generate"].digest, "enlarged": "to Stage II's size (bilinear, antialiased)"}
        if kind == "folder" and folder is not None:
            protocol |= {"folder": label, "files": _listing(folder)}
        folder_text = None if folder is None else str(folder)
        return Cell(self.sweep, label, kind, shape, protocol, value, sampling, handover, twin, folder_text, items, note)


def _plain(settings: Settings) -> dict[str, Any]:
    return settings.model_dump(mode="json")


def _size(shape: FrameShape) -> str:
    return f"{shape.height}x{shape.width}"


def _shape(base: FrameShape, height: int, width: int) -> FrameShape:
    try:
        return FrameShape(frames=base.frames, height=height, width=width)
    except ValidationError as error:
        raise UserError(f"sweep.resolution {height}x{width}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None


def trained_noise(recipe: Recipe) -> tuple[int, int]:
    """Range of noise steps that Stage II saw last."""
    last = recipe.stage2.phases[-1]
    return last.noise_steps_after[1] if last.noise_steps_after is not None else last.noise_steps


def warnings_of(name: SweepName, recipe: Recipe) -> list[str]:
    """What a reader of the numbers must know."""
    notes = []
    if name == "noise":
        low, high = trained_noise(recipe)
        ever = [
            steps for phase in recipe.stage2.phases for steps in (phase.noise_steps, (phase.noise_steps_after or (0, None))[1]) if steps
        ]
        widest = min(first for first, _ in ever), max(last for _, last in ever)
        outside = [step for step in recipe.sweep.noise if not widest[0] <= step <= widest[1]]
        notes.append(f"trained with noise steps {widest[0]}-{widest[1]}, in the last phase {low}-{high}")
        if outside:
            notes.append(f"noise steps {', '.join(map(str, outside))} lie outside of what it was trained with (sweep.noise)")
        if not recipe.stage2.latent_degradation:
            notes.append("stage2.latent_degradation is false: no latent noise is added, so every value gives the same videos")
    if name == "degradation" and base_shape(recipe).frames != 5:
        notes.append(f"the paper's Table 6 is on 5 frames, this Stage II on {base_shape(recipe).frames} (recipes: debug+five_frames, ...)")
    return notes


# ---- another tool's videos -------------------------------------------------------------------------------------------


def parse_folders(texts: Sequence[str]) -> dict[str, Path]:
    """LABEL=DIR texts. Raises UserError for a wrong form, a label twice, a folder that is missing or holds no video."""
    folders: dict[str, Path] = {}
    for text in texts:
        label, equals, place = text.partition("=")
        if not label or not equals or not place:
            raise UserError(f"--folder {text}: write LABEL=DIR, e.g. --folder RealBasicVSR=out/realbasicvsr")
        if label in folders or label in ("ours", *REFERENCES):
            raise UserError(f"--folder {text}: the label {label!r} is taken; choose another")
        folder = Path(place).expanduser().resolve()
        if not folder.is_dir():
            raise UserError(f"--folder {text}: there is no folder {folder}")
        if not videos_in(folder):
            raise UserError(f"--folder {text}: {folder} holds no video ({', '.join(sorted(VIDEO_SUFFIXES))})")
        folders[label] = folder
    return folders


def videos_in(folder: Path) -> dict[str, Path]:
    """Stem -> file of the folder's videos, in order of name."""
    return {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in VIDEO_SUFFIXES}


def _listing(folder: Path) -> list[list[Any]]:
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in videos_in(folder).values()]


def _folder_cell(make: _Maker, label: str, folder: Path, items: Sequence[Item], shape: FrameShape) -> Cell:
    """A column of another tool's videos: those named after our items, or all of them where none is."""
    videos = videos_in(folder)
    named = tuple(item for item in items if item.name in videos)
    if named:
        missing = len(items) - len(named)
        note = f"{label}: {missing} of {len(items)} items have no video named after them in its folder" if missing else ""
        return make.cell(label, "folder", shape, folder=folder, items=named, note=note)
    own = tuple(
        Item(stem, path.name, "", 0, path=str(path), pictured=place < MAX_STRIPS) for place, (stem, path) in enumerate(videos.items())
    )
    note = f"{label}: none of its {len(own)} videos is named after an item, so it shows other videos than ours and has no truth"
    return make.cell(label, "folder", shape, folder=folder, items=own, note=note)


# ---- the preference phase's hand-over --------------------------------------------------------------------------------


def handover_folder(trained: Trained) -> Path:
    """The folder of the phase before the preference phase. Raises UserError where the recipe has no such pair."""
    from pipelines.train_stage2 import phase_fingerprints

    phases = trained.recipe.stage2.phases
    if len(phases) < 2 or phases[-1].subset is None:
        raise UserError(
            f"the sweep preference compares before and after a last phase on a subset; stage2.phases has {len(phases)}, the last, "
            f"{phases[-1].name}, on {phases[-1].subset or 'every kept clip'}"
        )
    names = phase_fingerprints(trained.recipe, trained.reports["precompute_latents"].digest)
    return trained.workspace.root / "artifacts" / "train_stage2" / "phases" / names[-2]


def handover_name(trained: Trained) -> str:
    """Names the hand-over's weights in a protocol."""
    return f"hand-over of {trained.recipe.stage2.phases[-2].name}, {handover_folder(trained).name}"


def check_handover(trained: Trained) -> Path:
    """The newest whole checkpoint of the hand-over. Raises UserError where it is not there."""
    from flashvideo.training.checkpoints import Checkpoints

    folder = handover_folder(trained) / "checkpoints"
    newest = Checkpoints(folder, 1).newest()
    if newest is None:
        raise UserError(
            f"the checkpoint that phase {trained.recipe.stage2.phases[-2].name} handed over is not there: {folder} holds no whole one. "
            f"Without it there is no 'before'; train again: flashvideo train stage2 --root {trained.workspace.root}"
        )
    return newest.folder


# ---- the other degradation -------------------------------------------------------------------------------------------


def twin_recipe(recipe: Recipe) -> Recipe:
    """The same with pixel degradation alone, or of a pixel_only recipe with both."""
    stage2 = recipe.stage2.model_copy(update={"latent_degradation": not recipe.stage2.latent_degradation})
    return recipe.model_copy(update={"stage2": stage2})


def _degradation(recipe: Recipe) -> str:
    """The paper's name of what Stage II was trained with."""
    return "pixel + latent" if recipe.stage2.latent_degradation else "pixel"


def check_twin(trained: Trained) -> Report:
    """Report of the Stage II trained with the other degradation. Raises UserError where it is not there."""
    other = twin_recipe(trained.recipe)
    state = trained.workspace.states(other, ["train_stage2"])[-1]
    if state.report is None:
        setting = str(other.stage2.latent_degradation).lower()
        raise UserError(
            f"the sweep degradation compares two Stage IIs; the one trained with {_degradation(other)} degradation is not in "
            f"{trained.workspace.root}; run the same recipe with: flashvideo train stage2 --set stage2.latent_degradation={setting} "
            f"--root {trained.workspace.root}"
        )
    return state.report


# ---- which sweeps, and which work ------------------------------------------------------------------------------------


def chosen_sweeps(name: str) -> tuple[SweepName, ...]:
    """The named sweep, or all of them. Raises UserError with the nearest name."""
    if name == "all":
        return SWEEP_NAMES
    for known in SWEEP_NAMES:
        if known == name:
            return (known,)
    raise UserError(f"no sweep named {name!r}{did_you_mean(name, (*SWEEP_NAMES, 'all'))} (sweeps: {', '.join(SWEEP_NAMES)}, all)")


def work_of(cells: Sequence[Cell], items: Sequence[Item]) -> Iterator[tuple[Item, Cell]]:
    """Every pair that a sweep's table needs, each key once an item, item by item."""
    own: dict[str, tuple[Item, dict[str, Cell]]] = {}
    for cell in cells:
        for item in items if cell.items is None else cell.items:
            own.setdefault(item.identity, (item, {}))[1].setdefault(cell.key, cell)
    for item, by_key in own.values():
        for cell in by_key.values():
            yield item, cell
