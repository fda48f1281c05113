"""How long the trainer waits for batches with 0, 1 and 2 loader workers: real train_steps of both stages on a root's latents.

    flashvideo retrain --root runs/debug
    python benchmarks/loader.py runs/debug

The root must have trained both stages: its lists of samples, its shards and its recipe are read, and nothing in it is changed. Every
run is a new one from random weights in a temporary folder, with the recipe's ranks, batches and shapes. The first train_step of a
phase is left out (nothing is read ahead yet, and it pays for torch's first kernels); the share is of the time in all others.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from printed_table import print_table

from flashvideo.training.metrics import read_losses
from pipelines.ranks import RankRequest, start_ranks
from pipelines.recipe import Recipe, RecipeError, dump, load
from pipelines.train_stage1 import HELD_OUT_FILE, TRAIN_FILE

PHASE_FILE = "phase.json"


def newest(paths: Sequence[Path], root: Path, what: str) -> Path:
    if not paths:
        sys.exit(f"{root} has no {what}; train both stages there first: flashvideo retrain --root {root}")
    return max(paths, key=lambda path: path.stat().st_mtime)


def of_latents(root: Path, stage: int) -> dict[str, Any]:
    """What the ranks are told of the latents: the scale to model input, as precompute_latents measured it, and the autoencoder."""
    report = newest(list((root / "artifacts/precompute_latents").glob("*/report.json")), root, "latents")
    return {"scale": json.loads(report.read_text())["headline"][f"scale_stage{stage}"], "vae": str(report.with_name("vae"))}


def with_engine(recipe: Recipe, train_steps: int, **settings: Any) -> Recipe:
    """Both stages with other settings of the engine, every phase cut to so many train_steps."""
    tree = recipe.model_dump()
    for stage in ("stage1", "stage2"):
        tree[stage]["engine"] |= settings
        tree[stage]["validation_samples"] = 1
    tree["stage1"]["iterations"] = min(train_steps, recipe.stage1.iterations)
    for phase in tree["stage2"]["phases"]:
        phase["iterations"] = min(train_steps, phase["iterations"])
    tree["runtime"]["backend"] = "local"
    return Recipe.model_validate(tree)


def stage1(root: Path, recipe: Recipe, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Trains; the lines of losses.jsonl by phase."""
    lists = newest([path.parent for path in (root / "artifacts/train_stage1").glob(f"*/{TRAIN_FILE}")], root, "Stage I samples")
    for name in (TRAIN_FILE, HELD_OUT_FILE):
        shutil.copy(lists / name, folder / name)
    settings = of_latents(root, 1)
    start_ranks(RankRequest("train_stage1", dump(recipe), str(root), str(folder), None, settings), recipe, recipe.stage1.engine)
    return {"Stage I": read_losses(folder / "losses.jsonl")}


def stage2(root: Path, recipe: Recipe, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """As stage1, phase by phase."""
    job = root / "artifacts/train_stage2"
    shutil.copy(newest(list(job.glob(f"*/{HELD_OUT_FILE}")), root, "Stage II samples"), folder / HELD_OUT_FILE)
    folders = []
    for phase in recipe.stage2.phases:
        finished = [path for path in job.glob(f"phases/*/{PHASE_FILE}") if json.loads(path.read_text())["phase"] == phase.name]
        folders.append(folder / phase.name)
        folders[-1].mkdir()
        shutil.copy(newest(finished, root, f"finished phase {phase.name}").with_name(TRAIN_FILE), folders[-1] / TRAIN_FILE)
    settings = of_latents(root, 2) | {"phases": [str(path) for path in folders]}
    start_ranks(RankRequest("train_stage2", dump(recipe), str(root), str(folder), None, settings), recipe, recipe.stage2.engine)
    return {f"Stage II {path.name}": read_losses(path / "losses.jsonl") for path in folders}


def measured(root: Path, recipe: Recipe) -> dict[str, tuple[float, float, int]]:
    """By phase: share of the time spent waiting, median ms of a train_step, train_steps."""
    found = {}
    for train in (stage1, stage2):
        with tempfile.TemporaryDirectory() as folder:
            for phase, lines in train(root, recipe, Path(folder)).items():
                counted = lines[1:]
                waited, spent = (sum(line[key] for line in counted) for key in ("wait_seconds", "seconds"))
                found[phase] = (waited / spent, statistics.median(line["seconds"] for line in counted) * 1e3, len(counted))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="a run root in which both stages are trained")
    parser.add_argument("--train-steps", type=int, default=30, help="of each phase, at most")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="another setting of the root's recipe")
    options = parser.parse_args()
    root = options.root.resolve()
    try:
        recipe = load(str(root / "recipe.json"), tuple(options.set))
    except RecipeError as error:
        sys.exit(str(error))
    rows: dict[tuple[str, int], list[tuple[float, float, int]]] = {}
    for _ in range(options.repeats):
        for workers in options.workers:
            settings = {"log_every": 1, "loader_workers": workers, "checkpoint_every": 10**9, "max_restarts": 0}
            for phase, found in measured(root, with_engine(recipe, options.train_steps, **settings)).items():
                rows.setdefault((phase, workers), []).append(found)
    table: list[tuple[object, ...]] = [("phase", "loader workers", "waiting, % of the time", "ms a train_step", "train_steps")]
    phases = list(dict.fromkeys(phase for phase, _ in rows))
    for phase, workers in ((phase, workers) for phase in phases for workers in options.workers):
        found = rows[phase, workers]
        share, milliseconds = (statistics.median(row[column] for row in found) for column in (0, 1))
        table.append((phase, workers, f"{share * 100:.1f}", milliseconds, found[0][2]))
    print(f"{recipe.name}: {recipe.stage1.engine.num_ranks} ranks as processes; medians of {options.repeats} runs of each")
    print_table(table)


if __name__ == "__main__":
    main()
