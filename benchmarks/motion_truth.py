"""motion_proxy against films of known motion: pans and zooms of 0.5 to 40 px, three sizes, three frame rates, rotations.

    nice .venv/bin/python benchmarks/motion_truth.py [--heights 720,1080,2160] [--rates 24,30,60] [--raft] [--keep FILE]

Each film goes through the encoder, the decode pass and the score as a source does (tests/known_motion.py). One row per
motion: the relative error in every size and rate, and their spread. The exit code is 1 when an error or a spread is 5 % or
more, a still film reads 0.05 or more, or a faster film reads less. `--keep` writes each film's figure to a file of JSON lines
as it comes: the same command goes on where it was stopped, and measures again what other code measured. `--raft` also runs
motion_raft with random weights.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
from printed_table import print_table

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from known_motion import Film, measured

from curation.config import MotionConfig
from curation.scores.motion import DisFlow, MotionRaftStep, RaftFlow

ROOT = Path(__file__).resolve().parents[1]
LIMIT, STILL_LIMIT = 0.05, 0.05
MOTIONS = (
    ("still", 0.0), ("right", 0.5), ("right", 1.1), ("right", 5.0), ("right", 40.0), ("in", 0.5), ("in", 5.0), ("in", 40.0), ("out", 10.0),
)  # fmt: skip
TURNED = (("left", 1.1), ("up", 5.0), ("slant", 20.0), ("out", 40.0))
"""Motions that are also filmed at every rotation, 1080p24."""
CODE = (
    "tests/known_motion.py",
    "tests/generated_films.py",
    "curation/scores/motion.py",
    "curation/scores/dis_flow.py",
    "curation/decode_pass.py",
    "curation/tracks.py",
    "curation/video.py",
)
"""What the figures hang on."""


class Measurements:
    """motion_proxy of films, each measured once; kept in a file where one is given."""

    def __init__(self, folder: Path, file: Path | None) -> None:
        self._folder, self._file = folder, file
        self._code = hashlib.sha256(b"".join((ROOT / name).read_bytes() for name in CODE)).hexdigest()[:12]
        lines = file.read_text().splitlines() if file is not None and file.exists() else []
        kept = [row for row in map(json.loads, lines) if row["code"] == self._code]
        self._known: dict[str, float] = {row["film"]: row["px"] for row in kept}
        self.filmed, self.cpu_s = len(kept), sum(row["cpu_s"] for row in kept)

    def __call__(self, film: Film) -> float:
        if film.name not in self._known:
            begin = _cpu_s()
            self._known[film.name] = measured(film, self._folder, DisFlow()).mean
            spent = _cpu_s() - begin
            self.filmed, self.cpu_s = self.filmed + 1, self.cpu_s + spent
            if self._file is not None:
                row = {"film": film.name, "code": self._code, "px": self._known[film.name], "cpu_s": round(spent, 2)}
                with open(self._file, "a") as file:
                    file.write(json.dumps(row) + "\n")
        return self._known[film.name]


def _cpu_s() -> float:
    return sum(resource.getrusage(resource.RUSAGE_SELF)[:2])


def grid(
    motions: tuple[tuple[str, float], ...], kinds: list[tuple[int, int, int]], measure: Measurements
) -> tuple[list[list[object]], bool]:
    """A row per motion over the kinds of film (height, rate, rotation), and whether all is as it must be."""
    rows: list[list[object]] = [["motion", "px", *(f"{h}p{r}{f' {turn}°' if turn else ''}" for h, r, turn in kinds), "spread", "good"]]
    all_good, slower = True, dict[tuple[str, int], float]()
    for move, speed in motions:
        means = [measure(Film(move, speed, height, rate, turn)) for height, rate, turn in kinds]
        for place, mean in enumerate(means):
            all_good &= mean > slower.get((move, place), -1.0)
            slower[move, place] = mean
        errors = [mean / speed - 1 if speed else mean for mean in means]
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
    parser.add_argument("--keep", type=Path, default=None, help="file of what is measured already")
    arguments = parser.parse_args()
    heights, rates = ([int(text) for text in given.split(",")] for given in (arguments.heights, arguments.rates))
    with tempfile.TemporaryDirectory(prefix="motion_truth_") as folder:
        measure = Measurements(Path(folder), arguments.keep)
        rows, good = grid(MOTIONS, [(height, rate, 0) for height in heights for rate in rates], measure)
        turned, turned_good = grid(TURNED, [(1080, 24, turn) for turn in (0, 90, 180, 270)], measure)
        raft = run_raft(Path(folder)) if arguments.raft else None
    print_table(rows)
    print_table(turned)
    if raft:
        print(raft)
    print(
        f"{measure.filmed} films, {measure.cpu_s:.0f} CPU-s with filming; px: at 360 px short side per 1/8 s; load {os.getloadavg()[0]:.1f}"
    )
    return 0 if good and turned_good else 1


if __name__ == "__main__":
    sys.exit(main())
