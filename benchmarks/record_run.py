"""Records finished runs as the README's results: docs/measured.json, and the table between the README's markers.

    .venv/bin/python benchmarks/record_run.py runs/debug [runs/again ...]

The rows are the first root's headline, as the run itself prints it; wall time and peak memory are those of each root's
longest finished `retrain`. `tests/test_docs.py` holds the README to docs/measured.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

PROJECT = Path(__file__).resolve().parents[1]
MEASURED = PROJECT / "docs" / "measured.json"
README = PROJECT / "README.md"
BEGIN, END = "<!-- results: begin (benchmarks/record_run.py) -->", "<!-- results: end -->"


def record(roots: list[Path]) -> dict[str, Any]:
    """What docs/measured.json keeps. Raises SystemExit with one line for a root without a finished run."""
    from orchestration.reports import headline
    from pipelines.artifacts import Workspace
    from pipelines.recipe import load

    first = Workspace(roots[0])
    recipe = load(str(first.root / "recipe.json"))
    rows = headline(first, recipe)
    unfinished = dict(rows).get("not done")
    if unfinished:
        raise SystemExit(f"{roots[0]}: {unfinished} not done; finish the run first")
    return {
        "recipe": recipe.name,
        "recorded": datetime.now(UTC).date().isoformat(),
        "commit": _git("rev-parse", "--short", "HEAD"),
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "memory_bytes": psutil.virtual_memory().total, "gpu": None},
        "runs": [_longest_run(root) for root in roots],
        "rows": [[label, value] for label, value in rows],
    }


def _longest_run(root: Path) -> dict[str, Any]:
    runs = [json.loads(path.read_text()) for path in sorted(root.glob("logs/*/run.json"))]
    whole = [run for run in runs if run["target"] == "retrain" and run["outcome"] == "done"]
    if not whole:
        raise SystemExit(f"{root} holds no finished `flashvideo retrain` (logs/*/run.json)")
    run = max(whole, key=lambda run: float(run["wall_s"]))
    return {"started": run["started"], "wall_s": round(run["wall_s"], 1), "peak_memory_bytes": int(run["peak_memory_bytes"])}


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=PROJECT, capture_output=True, text=True, check=True).stdout.strip()


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def results_table(measured: dict[str, Any]) -> str:
    """The README's section: one sentence on the run, one row a headline line, wall times and peaks."""
    machine = measured["machine"]
    cores, memory = machine["cores"], machine["memory_bytes"] / 1e9
    minutes = ", ".join(f"{run['wall_s'] / 60:.1f} min" for run in measured["runs"])
    peaks = ", ".join(f"{run['peak_memory_bytes'] / 1e9:.1f} GB" for run in measured["runs"])
    lines = [
        f"Recipe `{measured['recipe']}` at commit {measured['commit']}, {measured['recorded']}, on {cores} cores "
        f"({machine['cpu']}), {memory:.0f} GB of memory, no GPU:",
        "",
        "| | |",
        "|---|---|",
        *(f"| {label} | {value} |" for label, value in measured["rows"]),
        f"| wall time, set-up done | {minutes} |",
        f"| peak memory, all processes | {peaks} |",
    ]
    return "\n".join(lines)


def with_results(readme: str, measured: dict[str, Any]) -> str:
    """The README with the section between its markers replaced."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"README.md has no section between {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{results_table(measured)}\n{END}{after}"


def main() -> None:
    """Writes docs/measured.json and the README."""
    parser = argparse.ArgumentParser(description="Record finished runs as the README's results.")
    parser.add_argument("roots", nargs="+", type=Path, help="run roots; the first gives the rows, all give time and memory")
    measured = record(parser.parse_args().roots)
    MEASURED.write_text(json.dumps(measured, indent=1) + "\n")
    README.write_text(with_results(README.read_text(), measured))
    print(results_table(measured))


if __name__ == "__main__":
    sys.path.insert(0, str(PROJECT))
    main()
