"""Mutated files of the corpus through ingest and the decode pass: no crash of the job, every file ends in a named state.

    nice .venv/bin/python benchmarks/fuzz_decode.py [--files 300] [--seed 1] [--workers 2]

Bit flips, flips in the header, truncations, spliced headers and holes of random bytes (tests/mutated_files.py) of the
corpus files up to 1 MB. The exit code is 1 when a file ends without a name for it; such files are kept and named.
"""

from __future__ import annotations

import argparse
import logging
import os
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from printed_table import print_table

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from curated import Outcome, curate, outcomes, recipe_of
from generated_films import CORPUS
from mutated_files import KINDS, write_mutations

from curation.store import Store
from pipelines.artifacts import Workspace

LARGEST_BYTES = 1_000_000
SMALLEST_BYTES = 1000


def ending(outcome: Outcome) -> str:
    """One word for the state, and the codes that go with it."""
    return " ".join([outcome.status, *outcome.codes])


def main() -> int:
    parser = argparse.ArgumentParser(description="Mutated files through ingest and decode.")
    parser.add_argument("--files", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    if not CORPUS.is_dir():
        sys.exit(f"no corpus at {CORPUS}")
    logging.disable(logging.WARNING)
    files = sorted([*(CORPUS / "hostile").iterdir(), *(CORPUS / "real").iterdir()])
    originals = [path for path in files if SMALLEST_BYTES <= path.stat().st_size <= LARGEST_BYTES]
    folder = Path(tempfile.mkdtemp(prefix="fuzz_"))
    kinds = write_mutations(folder / "broken", originals, arguments.files, arguments.seed)
    recipe = recipe_of((str(folder / "broken"),), "curation.decode.deadline_s=60", workers=arguments.workers)
    begin = time.monotonic()
    reports = curate(Workspace(folder / "root"), recipe, "ingest", "detect_shots")
    wall_s = time.monotonic() - begin
    found = outcomes(Workspace(folder / "root"))
    counts = {kind: Counter(ending(outcome) for name, outcome in found.items() if kinds[name] == kind) for kind in KINDS}
    endings = sorted(set().union(*counts.values()))
    rows: list[list[object]] = [["state", *KINDS, "all"]]
    rows += [[name, *(counts[kind][name] for kind in KINDS), sum(counts[kind][name] for kind in KINDS)] for name in endings]
    print_table(rows)
    unnamed = sorted(name for name, outcome in found.items() if not outcome.is_named) + sorted(set(kinds) - set(found))
    cpu_s = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(
        f"seed {arguments.seed}, {len(originals)} originals, {len(kinds)} files, {len(found)} in the table, {len(unnamed)} without a name"
    )
    print(f"jobs finished: {', '.join(reports)}; {wall_s:.0f} s wall, {cpu_s:.0f} CPU-s, load {os.getloadavg()[0]:.1f}")
    if unnamed:
        for row in Store.open(folder / "root" / "store").read("errors", where="resolved = false").to_pylist():
            if Path(row["uri"]).name in unnamed:
                print(f"{row['code']}: {row['message']}")
        print(f"kept: {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
