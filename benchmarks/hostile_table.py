"""Every file of the hostile corpus and how it ends: named outcome, damage, duplicates by bytes and by looks, seconds in all.

    nice .venv/bin/python benchmarks/hostile_table.py

Runs ingest, detect_shots and score over ../shared/corpus/hostile and the kitten film that two of its files copy. The exit
code is 1 when a file ends otherwise than tests/curation/test_hostile.py says.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from pathlib import Path

from printed_table import print_table

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "curation"))
from curated import curate, outcomes, recipe_of
from generated_films import CORPUS
from test_hostile import EXPECTED, KITTEN

from pipelines.artifacts import Workspace


def main() -> int:
    if not CORPUS.is_dir():
        sys.exit(f"no corpus at {CORPUS}")
    sources = (str(CORPUS / "hostile"), str(CORPUS / "real" / KITTEN))
    with tempfile.TemporaryDirectory(prefix="hostile_") as folder:
        begin = time.monotonic()
        curate(Workspace(folder), recipe_of(sources))
        wall_s = time.monotonic() - begin
        found = outcomes(Workspace(folder))
    cpu_s = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    rows: list[list[object]] = [["file", "status", "says", "decoded", "damaged", "clips", "duplicate", "as expected"]]
    for name, outcome in sorted(found.items()):
        good = "yes" if EXPECTED.get(name) == (outcome.status, outcome.codes, outcome.alike) else "NO"
        counts = ["-" if number is None else number for number in (outcome.decoded, outcome.corrupt)]
        rows.append([name, outcome.status, " ".join(outcome.codes) or "-", *counts, outcome.clips, outcome.alike or "-", good])
    print_table(rows)
    missing = sorted(set(EXPECTED) - set(found))
    print(f"{len(found)} files, {sum(outcome.is_named for outcome in found.values())} named, missing: {missing or 'none'}")
    print(f"{wall_s:.1f} s wall, {cpu_s:.1f} CPU-s with imports (limit 60 s), load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    return 0 if not missing and all(row[-1] == "yes" for row in rows[1:]) else 1


if __name__ == "__main__":
    sys.exit(main())
