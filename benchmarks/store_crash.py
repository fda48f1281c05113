"""Four processes append and merge at once, one is killed in the middle of a commit, ten times over, on one growing table.

    nice .venv/bin/python benchmarks/store_crash.py [--rounds 10] [--writers 4] [--turns 6] [--seed 1] [--least-share 0]

`--least-share 0` has every merge write files of columns (curation/column_files.py), 2 has none. After each kill the others end,
the table is checked, and a new process does the victim's work again. A thread of this process opens the table and reads it
whole all the while. The exit code is 1 when a row was lost, doubled or half there, or a reading failed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from printed_table import print_table

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from crashing_writers import ROWS, SHARED, run_round

from curation.store import Store


def main() -> int:
    parser = argparse.ArgumentParser(description="Writers killed inside their commits.")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--writers", type=int, default=4)
    parser.add_argument("--turns", type=int, default=6, help="appends and merges of each writer")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--least-share", type=float, default=0.5, help="of the table, from which a merge writes files of columns")
    arguments = parser.parse_args()
    rows: list[list[object]] = [["round", "killed", "of its commit on disk", "whole readings", "rows after", "expected", "faults"]]
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="store_crash_") as folder:
        store = Store.open(Path(folder) / "store")
        for number in range(arguments.rounds):
            found = run_round(store, number, arguments.turns, arguments.writers, arguments.seed, arguments.least_share)
            expected = (number + 1) * arguments.writers * arguments.turns * ROWS + SHARED
            faults = [*found.faults, *([] if found.rows == expected else ["rows are not as expected"])]
            rows.append([number + 1, found.victim, found.moment, found.readings, found.rows, expected, "; ".join(faults) or "none"])
            print(f"  round {number + 1}: {rows[-1][-1]}, {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
        versions = store.version("clips")
    print_table(rows)
    bad = sum(row[-1] != "none" for row in rows[1:])
    print(f"{len(rows) - 1} kills inside a commit, {bad} rounds with a fault, {versions} versions of clips; seed {arguments.seed}")
    print(f"{time.monotonic() - begin:.0f} s wall, load {os.getloadavg()[0]:.1f}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
