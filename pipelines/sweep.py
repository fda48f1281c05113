"""Sweeps one setting of a run's trained Stage II: NFE, guidance, noise step, resolution, stages, preference, degradation, enhancers.

    python -m pipelines.sweep nfe --root ROOT --recipe RECIPE [--values 1,2,4] [--folder LABEL=DIR] [--dry-run]

    ROOT/sweep/cells/<key>/<item>.json, .png    numbers and middle frame of one item at one cell; sweeps share them
    ROOT/sweep/<name>/results.json              flashvideo.evaluation.sweeps.SweepResults
    ROOT/sweep/<name>/table.md, table.csv       the paper's layout
    ROOT/sweep/enhancers/inputs/<item>.mp4      what another tool is given to enhance

A relaunch goes on where it stopped, cell by cell and item by item; no other job's fingerprint changes. Exit codes: 0; 1
failed, or with sweep.strict a row lacks an item; 2 a user's mistake.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from flashvideo.evaluation.results import QualityRow, mean_row
from flashvideo.evaluation.sweeps import (
    LAYOUTS,
    SWEEP_NAMES,
    CellTime,
    Strip,
    SweepName,
    SweepResults,
    SweepRow,
    comma_separated,
    markdown,
    published_beside,
    table_of,
)
from pipelines.artifacts import Workspace, write_atomically
from pipelines.executor import WorkerDied
from pipelines.generate import spread, spread_workers
from pipelines.job import Progress, UserError, exit_after, held_alone, log, write_json
from pipelines.recipe import Recipe, load
from pipelines.sweep_cells import (
    REFERENCES,
    Cell,
    Item,
    Trained,
    cells_of,
    choose_items,
    chosen_sweeps,
    generated_items,
    parse_folders,
    warnings_of,
    with_values,
    work_of,
)
from pipelines.sweep_costs import print_costs
from pipelines.sweep_worker import SweepWorker, kept, unfinished

RESULTS, TABLE_MD, TABLE_CSV = "results.json", "table.md", "table.csv"


class Plan:
    """One sweep, ready to be done."""

    def __init__(
        self, name: SweepName, trained: Trained, items: Sequence[Item], inputs: str, folders: Mapping[str, Path], out: Path | None = None
    ) -> None:
        """`out`: where results go; None: the root's own place."""
        self.name, self.trained, self.items, self.inputs = name, trained, tuple(items), inputs
        self.folder = (out or trained.folder) / name
        self.cells = cells_of(name, trained, items, folders)
        self.notes = warnings_of(name, trained.recipe) + [cell.note for cell in self.cells if cell.note]

    @property
    def table(self) -> int:
        """Of the paper."""
        return LAYOUTS[self.name].table

    @property
    def pairs(self) -> list[tuple[Item, Cell]]:
        """Everything that the table needs."""
        return list(work_of(self.cells, self.items))


def plans_of(
    names: Sequence[SweepName], trained: Trained, folders: Mapping[str, Path], out: Path | None = None
) -> tuple[list[Plan], list[str]]:
    """The sweeps' plans. Of several, those that cannot be done are left out, with the reason; of one, it is raised."""
    plans, left_out = [], []
    for name in names:
        try:
            items, inputs = (generated_items(trained), "the generate job's videos") if name == "stages" else choose_items(trained)
            plans.append(Plan(name, trained, items, inputs, folders, out))
        except UserError as error:
            if len(names) == 1:
                raise
            left_out.append(f"{name} is left out: {error}")
    return plans, left_out


def sweep(plans: Sequence[Plan]) -> list[SweepResults]:
    """Does what is left of every plan, item by item over all of them, and writes each one's results.

    Raises UserError where no item can be read.
    """
    trained = plans[0].trained
    root = trained.folder
    pairs = list({(item.identity, cell.key): (item, cell) for plan in plans for item, cell in plan.pairs}.values())
    tasks = unfinished(pairs, root)
    left = sum(len(task.cells) for task in tasks)
    log.info("sweep: %d cells of %d items in all, %d are done", len({cell.key for _, cell in pairs}), len(pairs), len(pairs) - left)
    failed: dict[str, str] = {}
    workers = spread_workers(trained.recipe, len(tasks))
    progress, done = Progress(None, "sweep"), 0
    for index, result in spread(partial(SweepWorker, trained), tasks, workers):
        done += len(tasks[index].cells)
        progress.update(done, left, "cells of an item", tasks[index].item.about[:60])
        if result is not None:
            failed[tasks[index].item.identity] = result.message if isinstance(result, WorkerDied) else result
            log.warning("%s is left out: %s", tasks[index].item.about, failed[tasks[index].item.identity])
    for plan in plans:
        if plan.name == "enhancers":
            plan.notes.append(
                f"inputs for another tool: {trained.workspace.relative(export_inputs(plan, failed))}, to be kept under their names"
            )
    return [write_results(plan, failed) for plan in plans]


# ---- results ---------------------------------------------------------------------------------------------------------


def write_results(plan: Plan, failed: Mapping[str, str]) -> SweepResults:
    """results.json, table.md and table.csv of one sweep. Raises UserError where no item has numbers."""
    trained, layout = plan.trained, LAYOUTS[plan.name]
    items = [item for item in plan.items if item.identity not in failed]
    lost = {item.identity: item.about for item, _ in plan.pairs if item.identity in failed}
    notes = [*plan.notes, *(f"{about} is left out of every row: {failed[identity]}" for identity, about in lost.items())]
    mine = {item.identity for item in plan.items}
    rows = []
    for cell in plan.cells:
        own = items if cell.items is None else [item for item in cell.items if item.identity not in failed]
        row, problems = row_of(cell, own, trained.folder)
        notes += problems
        if row is not None:
            others = [item for item in cell.items or () if item.identity not in mine]  # another tool's own videos
            asked = len(others or plan.items)
            rows.append(row.model_copy(update={"asked": asked, "published": published_beside(layout, cell.label)}))
    if not rows:
        raise UserError(f"the sweep {plan.name} has no numbers: {notes[-1] if notes else 'there are no items'}")
    results = SweepResults(
        name=plan.name,
        title=layout.title,
        table=layout.table,
        setting=layout.setting,
        inputs=plan.inputs,
        items=tuple(item.about for item in items),
        rows=tuple(rows),
        published={group: dict(table) for group, table in layout.published.items()},
        strips=tuple(strips_of(plan, items)),
        models=models_of(trained),
        notes=tuple(dict.fromkeys(notes)),
    )
    table = table_of(results)
    plan.folder.mkdir(parents=True, exist_ok=True)
    write_atomically(plan.folder / TABLE_MD, markdown(table))
    write_atomically(plan.folder / TABLE_CSV, comma_separated(table))
    write_json(plan.folder / RESULTS, results.model_dump(mode="json"))
    return results


def row_of(cell: Cell, items: Sequence[Item], root: Path) -> tuple[SweepRow | None, list[str]]:
    """The mean over the items, and what is said about them. None without numbers."""
    found = [(item, kept(cell, item, root)) for item in items]
    numbers = [entry for _, entry in found if entry is not None and entry["quality"] is not None]
    problems = [f"{cell.label}, {item.about[:60]}: {entry['problem']}" for item, entry in found if entry is not None and entry["problem"]]
    sizes = [entry["note"] for entry in numbers if entry["note"]]
    if sizes:
        problems.append(f"{cell.label}: {len(sizes)} of {len(numbers)} videos were {sizes[0]}")
    if not numbers:
        return None, problems
    quality = mean_row(cell.label, [QualityRow.model_validate(entry["quality"]) for entry in numbers])
    with_truth = [entry for entry in numbers if entry["truth_gradient"]]
    if with_truth and cell.kind != "truth":
        own = sum(entry["quality"]["gradient"] for entry in with_truth)
        quality = quality.model_copy(update={"gradient_ratio": own / sum(entry["truth_gradient"] for entry in with_truth)})
    row = SweepRow(
        label=cell.label,
        value=cell.value,
        reference=cell.kind in REFERENCES,
        quality=quality,
        time=time_of(numbers) if cell.kind == "enhanced" else None,
        protocol=dict(cell.protocol),
        protocol_digest=cell.key,
        note=cell.note,
    )
    return row, problems


def time_of(numbers: Sequence[Mapping[str, Any]]) -> CellTime:
    """Medians over the items."""
    names = ("encode_s", "sample_s", "decode_s", "measure_s")
    return CellTime(**{name: statistics.median(entry["times"][name] for entry in numbers) for name in names})


def strips_of(plan: Plan, items: Sequence[Item]) -> list[Strip]:
    """The middle frame of every pictured item at every cell, the input first and truth last."""
    root = plan.trained.folder
    order = sorted(plan.cells, key=lambda cell: {"input": 0, "codec": 2, "truth": 3}.get(cell.kind, 1))
    strips = []
    for item in items:
        shown = [(cell.label, cell.picture(root, item)) for cell in order if cell.items is None or item in cell.items]
        tiles = tuple((label, os.path.relpath(picture, plan.folder)) for label, picture in shown if picture.is_file())
        if item.pictured and tiles:
            strips.append(Strip(item=item.name, about=item.about, frame=plan.cells[0].shape.frames // 2, tiles=tiles))
    return strips


def models_of(trained: Trained) -> dict[str, str]:
    """Role -> what fills it, as the jobs recorded it; a later job names a role more exactly."""
    models: dict[str, str] = {}
    for report in trained.reports.values():
        models |= report.models
    return models


def export_inputs(plan: Plan, failed: Mapping[str, str]) -> Path:
    """The folder of the low-quality videos for another tool: lossless, named as the sweep expects them back."""
    from flashvideo.models.vae import video_to_pixels
    from flashvideo.video_files import write_video

    folder = plan.folder / "inputs"
    worker: SweepWorker | None = None
    for item in plan.items:
        path = folder / f"{item.name}.mp4"
        if path.is_file() or item.identity in failed:
            continue
        worker = worker or SweepWorker(plan.trained)
        small = video_to_pixels(worker.small(item)[0])
        write_video(path, small[:, : small.shape[1] // 2 * 2, : small.shape[2] // 2 * 2], plan.trained.recipe.latents.frame_rate_hz, 0)
    return folder


# ---- the command line ------------------------------------------------------------------------------------------------

EXAMPLES = """examples:
  flashvideo sweep nfe                                      Table 8, on the held-out clips of runs/debug
  flashvideo sweep noise --values 2,4,6,8 --root runs/mine  other values than the recipe's sweep.noise
  flashvideo sweep degradation --recipe debug+five_frames   Table 6, beside the same trained with +pixel_only
  flashvideo sweep all --dry-run                            every cell and what it will cost; nothing is started
  flashvideo sweep enhancers --folder RealBasicVSR=out/rb   Table 3: another tool's videos as a column
  flashvideo sweep guidance --set sweep.inputs=prompts      on Stage I's videos of the generate job, as in the paper

The same command again goes on where it stopped. A column of another tool: give it the files of ROOT/sweep/enhancers/inputs
(written by the first run), keep their names, name its folder with --folder."""


def parser() -> argparse.ArgumentParser:
    """The options; `flashvideo sweep` passes its own on."""
    made = argparse.ArgumentParser(
        prog="flashvideo sweep",
        description="Vary one setting of a run's trained Stage II and tabulate it as the paper does (Tables 2, 3, 5 to 10).",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("name", metavar="NAME", help=f"{', '.join(SWEEP_NAMES)}, or all")
    made.add_argument("--root", type=Path, required=True, help="run root that holds the trained Stage II")
    made.add_argument("--recipe", default="debug", help="preset name, or a YAML/JSON file")
    made.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    made.add_argument("--values", help="instead of the recipe's (sweep.nfe, ...): 1,2,4, or 256x448,336x592 for resolution")
    made.add_argument("--folder", action="append", default=[], metavar="LABEL=DIR", help="another tool's videos, a column of enhancers")
    made.add_argument("--stage2", metavar="FINGERPRINT", help="a finished folder of artifacts/train_stage2 that the recipe names no more")
    made.add_argument("--dry-run", action="store_true", help="print every cell with its estimated cost; start nothing")
    return made


def sweep_root(arguments: argparse.Namespace) -> None:
    """What the command does. Raises UserError."""
    recipe: Recipe = load(arguments.recipe, tuple(arguments.overrides))
    names = chosen_sweeps(arguments.name)
    if arguments.values is not None:
        recipe = recipe.model_copy(update={"sweep": with_values(recipe.sweep, arguments.name, arguments.values)})
    if arguments.folder and "enhancers" not in names:
        raise UserError(f"--folder is a column of the sweep enhancers; {arguments.name} has none")
    folders = parse_folders(arguments.folder)
    workspace = Workspace(arguments.root)
    if arguments.stage2 is not None:
        trained = Trained.at(recipe, workspace, arguments.stage2)
    else:
        trained = Trained.of(recipe, workspace)
    plans, left_out = plans_of(names, trained, folders)
    if not plans:
        raise UserError("; ".join(left_out))
    if arguments.dry_run:
        print_costs(plans, trained)
    else:
        with held_alone(
            trained.folder / ".lock",
            trained.workspace.root,
            holder="pid {pid} on {host} since {time}",
            busy=lambda by: f"a sweep of {trained.workspace.root} is running already: {by}",
        ):
            results = sweep(plans)
        for found in results:
            print(f"\n{found.title} (the paper's Table {found.table}), {found.inputs}\n")
            print(markdown(table_of(found)))
            for note in found.notes:
                print(f"note: {note}")
            print(f"{trained.folder / found.name}: {RESULTS}, {TABLE_MD}, {TABLE_CSV}")
    for line in left_out:
        print(f"note: {line}")
    if recipe.sweep.strict and not arguments.dry_run and any(found.incomplete for found in results):
        sys.exit(1)


def main() -> None:
    """Command line; exits the process."""
    arguments = parser().parse_args()
    exit_after("flashvideo", lambda: sweep_root(arguments))


if __name__ == "__main__":
    main()
