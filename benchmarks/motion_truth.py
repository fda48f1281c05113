"""motion_proxy against films of known motion: pans and zooms of 0.5 to 40 px, three sizes, three frame rates, rotations.

    nice .venv/bin/python benchmarks/motion_truth.py [--heights 720,1080,2160] [--rates 24,30,60] [--raft]

Each film goes through the encoder, the decode pass and the score as a source does (tests/known_motion.py). One row per
motion: the relative error in every size and rate, and their spread. The exit code is 1 when an error or a spread is 5 % or
more, a still film reads 0.05 or more, or a faster film reads less. `--raft` also runs motion_raft with random weights.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
from printed_table import print_table

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from known_motion import Film, measured, relative_error

from curation.config import MotionConfig
from curation.scores.motion import DisFlow, MotionRaftStep, RaftFlow

LIMIT, STILL_LIMIT = 0.05, 0.05
MOTIONS = (
    ("still", 0.0), ("right", 0.5), ("right", 1.1), ("right", 5.0), ("right", 40.0), ("in", 0.5), ("in", 5.0), ("in", 40.0), ("out", 10.0),
)  # fmt: skip
TURNED = (("left", 1.1), ("up", 5.0), ("slant", 20.0), ("out", 40.0))
"""Motions that are also filmed at every rotation, 1080p24."""


def grid(motions: tuple[tuple[str, float], ...], kinds: list[tuple[int, int, int]], folder: Path) -> tuple[list[list[object]], bool]:
    """A row per motion over the kinds of film (height, rate, rotation), and whether all is as it must be."""
    rows: list[list[object]] = [["motion", "px", *(f"{h}p{r}{f' {turn}°' if turn else ''}" for h, r, turn in kinds), "spread", "good"]]
    all_good, slower = True, dict[tuple[str, int], float]()
    for move, speed in motions:
        values = []
        for place, (height, rate, turn) in enumerate(kinds):
            film = Film(move, speed, height, rate, turn)
            motion = measured(film, folder, DisFlow())
            values.append((relative_error(film, motion), motion.mean))
            all_good &= motion.mean > slower.get((move, place), -1.0)
            slower[move, place] = motion.mean
        errors, means = [error for error, _ in values], [mean for _, mean in values]
        spread = (max(means) - min(means)) / (sum(means) / len(means)) if speed else None
        good = max(means) < STILL_LIMIT if spread is None else max(map(abs, errors)) < LIMIT and spread < LIMIT
        all_good &= good
        cells = [f"{error:+.1%}" if speed else f"{error:.3f} px" for error in errors]
        rows.append([move, f"{speed:g}", *cells, "-" if spread is None else f"{spread:.1%}", "yes" if good else "NO"])
        print(f"  {move} {speed:g} done", file=sys.stderr, flush=True)
    return rows, all_good


def run_raft(folder: Path) -> str:
    """motion_raft's step on one pair of one film, the network's weights random."""
    film = Film("right", 5.0, 360, 24)
    measured(film, folder, DisFlow())
    step = MotionRaftStep(MotionConfig(max_pairs=1), folder / "tracks", "run", "cpu", flow=RaftFlow(None, "cpu", seed=0))
    row = {"clip_id": "c", "source_id": film.name, "start_us": 0, "end_us": 10_000_000}
    begin = time.process_time()
    value = step(pa.RecordBatch.from_pylist([row])).column("motion_raft")[0].as_py()
    return f"motion_raft, random weights, one pair of 640x360: {value:.3g} (means nothing), {time.process_time() - begin:.1f} CPU-s"


def main() -> int:
    parser = argparse.ArgumentParser(description="motion_proxy against films of known motion.")
    parser.add_argument("--heights", default="720,1080,2160")
    parser.add_argument("--rates", default="24,30,60")
    parser.add_argument("--raft", action="store_true")
    arguments = parser.parse_args()
    heights, rates = ([int(text) for text in given.split(",")] for given in (arguments.heights, arguments.rates))
    with tempfile.TemporaryDirectory(prefix="motion_truth_") as folder:
        rows, good = grid(MOTIONS, [(height, rate, 0) for height in heights for rate in rates], Path(folder))
        turned, turned_good = grid(TURNED, [(1080, 24, turn) for turn in (0, 90, 180, 270)], Path(folder))
        raft = run_raft(Path(folder)) if arguments.raft else None
    print_table(rows)
    print_table(turned)
    if raft:
        print(raft)
    cpu_s = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    print(f"px: at 360 px short side per 1/8 s; {cpu_s:.0f} CPU-s with filming, load {os.getloadavg()[0]:.1f}")
    return 0 if good and turned_good else 1


if __name__ == "__main__":
    sys.exit(main())
