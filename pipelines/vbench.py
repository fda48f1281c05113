"""VBench over a folder of videos, or over a run's generated ones, spread over workers.

    python -m pipelines.vbench VIDEOS --prompts FILE --out FOLDER [--workers 4 --backend ray]
    python -m pipelines.vbench --root ROOT [--out FOLDER]

The second form scores both stages' videos of the root's last finished generate job: OUT/stage1 and OUT/stage2, each as the
first form leaves it, and OUT/run.json, which says what stands beside what in the report. Every worker computes on one
thread, so 1 and n workers give the same numbers. Exit codes: flashvideo/evaluation/vbench.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flashvideo.evaluation.pictures import thumbnail, write_jpeg
from flashvideo.evaluation.reference.environment import make
from flashvideo.evaluation.score_store import CannotStore
from flashvideo.evaluation.scores import Prompt
from flashvideo.evaluation.suite import Problem, Suite, SuiteError, VideoItem
from flashvideo.evaluation.vbench import VBenchMistake, build_evaluator, parser, protocol_of, run, run_suite, score_here, unwritten
from flashvideo.evaluation.video_frames import decoded_frames
from flashvideo.video_files import VideoFileError
from pipelines.artifacts import Workspace, write_atomically
from pipelines.executor import WorkerDied, Workers, map_tasks
from pipelines.generate import read_manifest
from pipelines.worker import WorkerBuildError

if TYPE_CHECKING:
    from flashvideo.evaluation.evaluator import Evaluator, Tally

STAGES = {"stage1": "Stage I", "stage2": "Stage II"}
OWN_DIMENSIONS = (
    "subject_consistency",
    "background_consistency",
    "temporal_flickering",
    "motion_smoothness",
    "dynamic_degree",
    "aesthetic_quality",
    "imaging_quality",
    "overall_consistency",
)
"""Those of the 16 that ask nothing of a prompt but its text: what any video can be scored in."""
RUN_FILE = "run.json"
TRIED_AGAIN = "most likely it ran out of memory (fewer --workers need less); the same command tries it again"
PICTURED = 8
"""Prompts whose stages are shown beside each other."""


class VideoWorker:
    """Holds the networks in one worker and scores one video at a time into the shared store."""

    def __init__(self, options: argparse.Namespace, items: Sequence[VideoItem]) -> None:
        self._judge = build_evaluator(options, protocol_of(options), items)

    def __call__(self, item: VideoItem) -> Tally:
        return self._judge.evaluate([item])


def score_spread(options: argparse.Namespace, judge: Evaluator, items: Sequence[VideoItem]) -> Tally:
    """Over workers where there are several and work for them. A worker that dies takes its video out, named."""
    todo = [item for item in items if _lacks(judge, item)]
    if options.workers == 1 or len(todo) < 2:
        return score_here(options, judge, items)
    kept = [item for item in items if item not in todo]
    tally = judge.evaluate(kept)
    gpus = 1.0 if options.device.startswith("cuda") else 0.0
    workers = Workers(options.backend, options.workers, 1.0, gpus)
    given = argparse.Namespace(**{name: value.absolute() if isinstance(value, Path) else value for name, value in vars(options).items()})
    here = [item.model_copy(update={"path": item.path.absolute()}) for item in todo]  # a worker may run in another folder
    for done, (index, result) in enumerate(map_tasks(partial(VideoWorker, given, tuple(here)), here, workers), 1):
        print(f"\r  {done} of {len(todo)} videos", end="\n" if done == len(todo) else "", file=sys.stderr, flush=True)
        if isinstance(result, WorkerDied):
            name = todo[index].path.name
            tally.problems.append(Problem(kind="video", item=name, message=f"{name}: {result.message}; {TRIED_AGAIN}"))
        else:
            tally.add(result)
    return tally


def _lacks(judge: Evaluator, item: VideoItem) -> bool:
    try:
        return bool(judge.lacking(item))
    except OSError:  # told when it is scored
        return True


# ---- a run's videos --------------------------------------------------------------------------------------------------


def run_root(options: argparse.Namespace) -> int:
    """Both stages' videos of the root's last finished generate job."""
    folder = generated(options.root)
    rows = read_manifest(folder)["rows"]
    out = options.out or options.root / "vbench"
    prompts = [{"prompt_en": row["prompt"], "dimension": list(OWN_DIMENSIONS)} for row in rows]
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "prompts.json", json.dumps(prompts, indent=1))
    code = 0
    for stage, title in STAGES.items():
        print(f"{title}, {folder}")
        given = argparse.Namespace(**vars(options) | {"out": out / stage, "prompts": out / "prompts.json"})
        wanted = None if options.dimensions is None else options.dimensions.split(",")
        names = tuple(name for name in OWN_DIMENSIONS if wanted is None or name in wanted)
        items = [
            VideoItem(path=folder / row[stage], prompt=Prompt(text=row["prompt"], dimensions=OWN_DIMENSIONS), dimensions=names, index=0)
            for row in rows
        ]
        code = max(code, run_suite(given, Suite(tuple(items)), score_spread))
    if not options.dry_run:
        columns = [{"label": title, "folder": stage} for stage, title in STAGES.items()]
        facts = {"title": f"VBench of {options.root.name}", "columns": columns, "pictures": stage_pictures(folder, rows, out)}
        write_atomically(out / RUN_FILE, json.dumps(facts, indent=1))
    return code


def generated(root: Path) -> Path:
    """The folder of the root's last finished generate job. Raises VBenchMistake."""
    name = Workspace(root).current("generate")
    if name is None:
        raise VBenchMistake(f"{root} holds no generated videos; make them: flashvideo generate --root {root}")
    return Workspace(root).folder("generate", name)


def stage_pictures(folder: Path, rows: Sequence[dict[str, Any]], out: Path) -> list[dict[str, Any]]:
    """First, middle and last frame of both stages, one above the other; a picture that is there stays."""
    pictures = []
    for row in rows[:PICTURED]:
        name = Path(row["stage2"]).name.removesuffix(".stage2.mp4")
        path = out / "stages" / f"{folder.name}-{name}.jpg"
        try:
            if not path.is_file():
                write_jpeg(path, np.concatenate([_strip(folder / row[stage]) for stage in STAGES]))
        except VideoFileError:
            continue  # named among the problems
        pictures.append({"title": row["prompt"], "file": str(path.relative_to(out)), "rows": list(STAGES.values())})
    return pictures


def _strip(path: Path) -> np.ndarray:
    frames = [thumbnail(frame, 360) for frame in decoded_frames(path)]
    return np.concatenate([frames[index] for index in (0, len(frames) // 2, len(frames) - 1)], axis=1)


# ---- the command -----------------------------------------------------------------------------------------------------


def command() -> argparse.ArgumentParser:
    """The options of flashvideo/evaluation/vbench.py and of spreading."""
    made = parser()
    made.add_argument("--root", type=Path, help="score the videos that this run root generated, both stages; no VIDEOS and --prompts then")
    made.add_argument("--make-reference", type=Path, metavar="DIR", help="make the environment of VBench's own evaluator there, and end")
    made.add_argument("--workers", type=int, default=1, help="processes (ray) or threads (local) that score videos, one thread each")
    made.add_argument("--backend", choices=("ray", "local"), default="ray", help="where several workers run")
    return made


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    options = command().parse_args(arguments)
    try:
        if options.workers < 1:
            raise VBenchMistake(f"--workers {options.workers}: at least 1")
        if options.make_reference is not None:
            print(make(options.make_reference))
            return 0
        if options.root is None:
            return run(options, score_spread)
        if options.videos is not None or options.prompts is not None:
            raise VBenchMistake("--root names the videos and their prompts: leave out VIDEOS and --prompts")
        return run_root(options)
    except (SuiteError, ValueError, WorkerBuildError) as error:
        print(f"vbench: {error}", file=sys.stderr)
        return 2
    except (CannotStore, OSError) as error:
        print(f"\nvbench: {unwritten(error)}", file=sys.stderr)  # after a line of progress
        return 1
    except KeyboardInterrupt:
        print("\nvbench: stopped; the same command goes on from there", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
