"""Curation of a 1080p set whose answers are known, beside data-juicer, a hand-written loop and bare decoding.

    nice .venv/bin/python benchmarks/curate_1080p.py --folder /tmp/curate_1080p \\
        --juicer-python JUICER/bin/python --loop-python LOOP/bin/python [--only NAME,...] [--repeats 3] [--keep FILE]

The set (benchmarks/curation_set.py) is rendered once into the folder. Every run is a process tree of its own, measured from
outside (benchmarks/process_tree.py), start-up included; each figure is the median of the repeats, which go in turns. Ours runs
the jobs ingest, detect_shots and score. `--keep` appends every run to a file of JSON lines, so that the systems can be measured
one after the other, and the tables are made from all that it holds. The exit code is 1 when a target that was measured is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from printed_table import print_table
from process_tree import Cost, measure

from curation.supervised import KEEPS_MEMORY

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
DECODE_LIMIT, JUICER_LIMIT, MEMORY_LIMIT, SCALING = 1.5, 5.0, 1e9, 1.7
INSTALL = {
    "juicer": "uv venv JUICER && uv pip install --python JUICER/bin/python py-data-juicer==1.6.1 aiohttp av==13.1.0 "
    "opencv-contrib-python scenedetect imageio-ffmpeg ffmpeg-python ray torch, then --juicer-python JUICER/bin/python",
    "loop": "uv venv LOOP && uv pip install --python LOOP/bin/python scenedetect opencv-python-headless av, then --loop-python "
    "LOOP/bin/python",
}
"""By peer: what installs it."""


@dataclass(frozen=True)
class Bench:
    """The set, and who is asked."""

    files: Path
    truth: dict[str, Any]
    pythons: dict[str, str | None]
    log: Path
    runs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """By system, what each run cost and answered."""

    @property
    def sound(self) -> list[str]:
        """Files without damage that are no byte copies: what decoding costs is measured on them."""
        return [str(self.files / name) for name, row in self.truth["files"].items() if row["kind"] in ("film", "re-encoded")]

    @property
    def sound_s(self) -> float:
        return sum(row["duration_s"] for row in self.truth["files"].values() if row["kind"] in ("film", "re-encoded"))

    @property
    def video_s(self) -> float:
        """Seconds that can be decoded, a byte copy counted too."""
        return sum(row["duration_s"] for row in self.truth["files"].values())

    def run(self, command: list[str], environment: dict[str, str] | None = None) -> Cost:
        """Raises RuntimeError when the command fails."""
        cost = measure(command, self.log, {"PYTHONPATH": str(ROOT), **(environment or {})})
        if cost.exit_code:
            raise RuntimeError(f"{' '.join(command[:3])} ... ended with exit code {cost.exit_code}; its messages stand in {self.log}")
        return cost


APART = """
import contextlib, json, sys
from pathlib import Path
with contextlib.redirect_stdout(sys.stderr):
    sys.path[:0] = sys.argv[1:3]
    found = getattr(__import__(sys.argv[3]), sys.argv[4])(Path(sys.argv[5]))
print(json.dumps(found, default=vars))
"""


def apart(module: str, function: str, given: Path) -> Any:
    """The function's result from a process that has ended: libraries that are still mapped here would halve what is measured."""
    command = [sys.executable, "-c", APART, str(HERE), str(ROOT), module, function, str(given)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def ours(bench: Bench, backend: str, workers: int) -> dict[str, Any]:
    """One run of our jobs from an empty root."""
    with tempfile.TemporaryDirectory(prefix="curate_1080p_") as root:
        cost = bench.run([sys.executable, str(HERE / "curate_jobs.py"), root, str(bench.files), backend, str(workers)])
        lines = [json.loads(line) for line in cost.output.splitlines()]
        work_s = lines[-1]["done"] - lines[0]["ready"]
        return {**_cost(cost), "work_s": work_s, "answers": apart("curation_answers", "read_ours", Path(root))}


def juicer(bench: Bench) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="curate_juicer_") as work:
        python = bench.pythons["juicer"]
        assert python is not None
        cost = bench.run([python, str(HERE / "peers" / "juicer_videos.py"), str(bench.files), work, "2"])
        found = json.loads(cost.output.splitlines()[-1])
        copies = {name for name, row in bench.truth["files"].items() if row["kind"] == "bytes"}
        # It drops what it has seen and what it cannot read alike: the copy that is gone was a copy, for its benefit.
        duplicates = {name: bench.truth["files"][name]["of"] for name in found["gone"] if name in copies}
        unscored = [name for name, spans in found["scenes"].items() if any(span[2] is None for span in spans)]
        damaged = [name for name in found["gone"] if name not in copies] + unscored
        return {**_cost(cost), "answers": {"scenes": found["scenes"], "damaged": damaged, "duplicates": duplicates}}


def loop(bench: Bench) -> dict[str, Any]:
    python = bench.pythons["loop"]
    assert python is not None
    cost = bench.run([python, str(HERE / "peers" / "scene_loop.py"), str(bench.files)])
    found = json.loads(cost.output.splitlines()[-1])
    return {**_cost(cost), "answers": {name: found[name] for name in ("scenes", "damaged", "duplicates")}}


def bare(bench: Bench) -> dict[str, Any]:
    cost = bench.run([sys.executable, str(HERE / "peers" / "bare_decode.py"), *bench.sound])
    return {**_cost(cost), **json.loads(cost.output)}


def decode_pass(bench: Bench, threads: int) -> dict[str, Any]:
    cost = bench.run([sys.executable, str(HERE / "pass_parts.py"), str(threads), *bench.sound], KEEPS_MEMORY)
    return {**_cost(cost), **json.loads(cost.output)}


def _cost(cost: Cost) -> dict[str, Any]:
    return {"tree_cpu_s": cost.cpu_s, "tree_wall_s": cost.wall_s, "peak_bytes": cost.peak_bytes}


SYSTEMS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "bare": bare,
    "pass": lambda bench: decode_pass(bench, 1),
    "pass, 2 threads": lambda bench: decode_pass(bench, 2),
    "local, 1 worker": lambda bench: ours(bench, "local", 1),
    "local, 2 workers": lambda bench: ours(bench, "local", 2),
    "ray, 2 workers": lambda bench: ours(bench, "ray", 2),
    "loop": loop,
    "juicer": juicer,
}
WHOLE = {
    "local, 1 worker": "ours, local, 1 worker",
    "local, 2 workers": "ours, local, 2 workers",
    "ray, 2 workers": "ours, ray, 2 workers",
    "loop": "PySceneDetect + decode loop",
    "juicer": "data-juicer 1.6.1, 2 processes",
}
"""Systems that do everything, as the table calls them."""


def middle(runs: list[dict[str, Any]], name: str) -> float:
    return float(median(run[name] for run in runs))


def in_turns(runs: dict[str, list[dict[str, Any]]], above: str, over: str, cost: Callable[[dict[str, Any]], float]) -> float:
    """Median of the ratios of runs that followed each other: what else the machine did meanwhile weighs on both."""
    pairs = list(zip(runs[above], runs[over], strict=False))
    return float(median(cost(one) / other["cpu_s"] for one, other in pairs))


def whole_table(bench: Bench) -> list[list[object]]:
    from curation_answers import Answers, judge

    rows: list[list[object]] = [
        ["system", "runs", "CPU-s per video-s", "wall s", "peak MB", "cut F1", "motion error", "rank corr.", "damage named", "duplicates"]
    ]
    for name, title in WHOLE.items():
        runs = bench.runs.get(name)
        if not runs:
            if bench.pythons.get(name, "") is None:
                print(f"{title}: not installed; {INSTALL[name]}")
            rows.append([title, 0, "not installed" if bench.pythons.get(name, "") is None else "not run", *[""] * 7])
            continue
        score = judge(bench.truth["files"], Answers(**runs[-1]["answers"]))
        rows.append(
            [
                title, len(runs), middle(runs, "tree_cpu_s") / bench.video_s, middle(runs, "tree_wall_s"),
                round(middle(runs, "peak_bytes") / 1e6), f"{score.cut_f1:.3f}", f"{score.motion_error:.1%}", f"{score.rank:.3f}",
                f"{score.damage_named} of {score.damaged}, {score.false_damage} false",
                f"{score.duplicates_found} of {score.duplicates}, {score.false_duplicates} false",
            ]
        )  # fmt: skip
    return rows


def parts_table(bench: Bench) -> list[list[object]]:
    """What the decode pass costs beside bare decoding, part by part."""
    rows: list[list[object]] = [["decode pass, one worker", "CPU-s per video-s", "ms a frame", "of bare decode"]]
    base = middle(bench.runs["bare"], "cpu_s")
    frames = bench.runs["bare"][0]["frames"]

    def row(name: str, cpu_s: float) -> None:
        rows.append([name, f"{cpu_s / bench.sound_s:.4f}", f"{1e3 * cpu_s / frames:.2f}", f"{cpu_s / base:.2f}x"])

    row("bare PyAV decode, 2 threads", base)
    runs = bench.runs["pass"]
    parts = {name: float(median(run["parts"][name] for run in runs)) for name in runs[0]["parts"]}
    row("  decoding, 1 thread, and the rest", middle(runs, "cpu_s") - sum(parts.values()))
    for name, cpu_s in parts.items():
        row(f"  {name}", cpu_s)
    row("the pass: cuts, health, hashes, key frames, track", middle(runs, "cpu_s"))
    if "pass, 2 threads" in bench.runs:
        row("the same with 2 decoder threads", middle(bench.runs["pass, 2 threads"], "cpu_s"))
    row(f"  motion_proxy, {middle(runs, 'pairs') / bench.sound_s:.1f} pairs a second", middle(runs, "motion_cpu_s"))
    row("the pass and motion_proxy", middle(runs, "cpu_s") + middle(runs, "motion_cpu_s"))
    return rows


def targets(bench: Bench) -> list[list[object]]:
    """Those whose runs are there."""
    rows: list[list[object]] = [["target", "found", "limit", "met"]]

    def row(name: str, found: float, limit: float, most: bool) -> None:
        rows.append([name, round(found, 3), f"{'<=' if most else '>='} {limit:g}", "yes" if (found <= limit) == most else "NO"])

    runs = bench.runs
    if "bare" in runs and "pass" in runs:
        whole = in_turns(runs, "pass", "bare", lambda run: run["cpu_s"])
        row("pass / bare decode, CPU, in turns", whole, DECODE_LIMIT, True)
        both = in_turns(runs, "pass", "bare", lambda run: run["cpu_s"] + run["motion_cpu_s"])
        row("pass and motion_proxy / bare decode, CPU, in turns", both, DECODE_LIMIT, True)
    two = runs.get("local, 2 workers")
    if two and "juicer" in runs:
        row("data-juicer / ours, CPU", middle(runs["juicer"], "tree_cpu_s") / middle(two, "tree_cpu_s"), JUICER_LIMIT, False)
    for name in ("local, 2 workers", "ray, 2 workers"):
        if name in runs:
            row(f"peak memory, {name}, GB", middle(runs[name], "peak_bytes") / 1e9, MEMORY_LIMIT / 1e9, True)
    if two and "local, 1 worker" in runs:
        row("2 workers / 1 worker, speed of the work", middle(runs["local, 1 worker"], "work_s") / middle(two, "work_s"), SCALING, False)
    return rows


def arguments_of() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Curation of a 1080p set whose answers are known.")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "curate_1080p")
    parser.add_argument("--juicer-python", default=None, help="interpreter with py-data-juicer 1.6.1")
    parser.add_argument("--loop-python", default=None, help="interpreter with scenedetect, opencv and av")
    parser.add_argument(
        "--only", default=",".join(SYSTEMS).replace(", ", " "), help=f"of: {', '.join(s.replace(', ', ' ') for s in SYSTEMS)}"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--juicer-repeats", type=int, default=1)
    parser.add_argument("--keep", type=Path, default=None, help="file of JSON lines")
    return parser.parse_args()


def main() -> int:
    arguments = arguments_of()
    pythons = {"juicer": arguments.juicer_python, "loop": arguments.loop_python}
    truth = apart("curation_set", "render", arguments.folder)
    bench = Bench(
        arguments.folder / "files", truth, {n: shutil.which(p) if p else None for n, p in pythons.items()}, arguments.folder / "log"
    )
    for line in arguments.keep.read_text().splitlines() if arguments.keep and arguments.keep.exists() else ():
        kept = json.loads(line)
        bench.runs.setdefault(kept["system"], []).append(kept)
    wanted = [name for name in SYSTEMS if name.replace(", ", " ") in arguments.only.split(",") and bench.pythons.get(name, "") is not None]
    for number in range(max(arguments.repeats, arguments.juicer_repeats)):
        for name in wanted:
            if number < (arguments.juicer_repeats if name == "juicer" else arguments.repeats):
                found = {"system": name, **SYSTEMS[name](bench)}
                bench.runs.setdefault(name, []).append(found)
                if arguments.keep:
                    with open(arguments.keep, "a") as file:
                        file.write(json.dumps(found) + "\n")
    number_of = len(truth["files"])
    print(f"{number_of} files, {bench.video_s:.0f} s of 1080p; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end")
    print_table(whole_table(bench))
    if "bare" in bench.runs and "pass" in bench.runs:
        print_table(parts_table(bench))
    print_table(rows := targets(bench))
    return 0 if all(row[-1] == "yes" for row in rows[1:]) else 1


if __name__ == "__main__":
    sys.exit(main())
