"""The whole story killed (`kill -9` of the whole process group) at five moments, each followed by the same command.

    nice .venv/bin/python benchmarks/kill_moments.py [--folder /tmp/kills] [--moments scoring,commit]

Prints what each kill met and what the next launch did, then the comparison with an uninterrupted run. The exit code is 1
when a finished thing was done again, a table differs, a clip is there twice, or a process is left. The killed run is on
Ray, the uninterrupted one in plain processes; the moments and the sources are those of tests/whole_story.py. A folder that
is given is kept, and an uninterrupted run that is finished there is not run again.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import whole_story as story

from orchestration.processes import leftovers
from pipelines.plan import JOB_NAMES

UNITS = {"score": ("row",), "train_stage1": ("train_step",), "train_stage2": ("phase", "train_step"), "generate": ("prompt",)}
"""What `Launch.kept` and `Launch.found` count."""
ENDING_S = 20.0
"""So long a process of the finished run may take to end."""


def amount(job: str, counts: tuple[int, ...] | None) -> str:
    """E.g. "1 phase, 3 train_steps"; "-" where the job did not end in that launch."""
    return "-" if counts is None else ", ".join(f"{n} {unit}{'s' * (n != 1)}" for n, unit in zip(counts, UNITS[job], strict=True))


def kill_rows(launches: Sequence[story.Launch]) -> list[list[str]]:
    """One row a kill, and what the launch after it did."""
    rows = [["moment", "job", "jobs finished", "progress", "kept of the job", "alive", "next launch ran", "it found", "its wall s"]]
    for launch, after in itertools.pairwise(launches):
        assert launch.moment is not None
        job = story.MOMENTS[launch.moment].job
        ran = " .. ".join(dict.fromkeys((after.ran[0], after.ran[-1]))) if after.ran else "none"
        rows.append(
            [launch.moment, job, str(len(launch.finished)), launch.seen, amount(job, launch.kept), str(launch.survivors)]
            + [ran, amount(job, after.found.get(job)), f"{after.wall_s:.0f}"]
        )
    return rows


def comparison(launches: Sequence[story.Launch], uninterrupted: Path, sources: Path, settings: Sequence[str]) -> list[list[str]]:
    """Rows of (what, found, "yes" where it is as it must be)."""
    killed = launches[-1].root
    there, here = story.tables(uninterrupted), story.tables(killed)
    rows = [["compared", "found", "as it must be"]]
    for name, table in there.items():
        rows.append([f"table {name}", f"{here[name].num_rows} of {table.num_rows} rows", _yes(here[name].equals(table))])
    recipe = story.recipe_of(sources, *settings)
    digests = [{name: report.digest for name, report in story.reports(root, recipe).items()} for root in (uninterrupted, killed)]
    equal = sum(digests[0].get(name) == digests[1].get(name) is not None for name in JOB_NAMES)
    rows.append(["jobs of equal digest", f"{equal} of {len(JOB_NAMES)}", _yes(equal == len(JOB_NAMES))])
    doubled = sum(count - 1 for count in Counter(here["clips"]["clip_id"].to_pylist()).values())
    rows.append(["clips doubled", str(doubled), _yes(doubled == 0)])
    again = story.done_again(launches)
    rows.append(["finished things done again", "; ".join(again) or "0", _yes(not again)])
    _, alive = psutil.wait_procs(leftovers(killed), timeout=ENDING_S)
    rows.append(["processes left", str(len(alive)), _yes(not alive)])
    return rows


def _yes(good: bool) -> str:
    return "yes" if good else "NO"


def print_table(rows: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    print(flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="The whole story killed at five moments and resumed.")
    parser.add_argument("--folder", type=Path, help="where the two roots are made and kept; a temporary one that is deleted unless given")
    parser.add_argument("--moments", default=",".join(story.MOMENTS), help="some of them, in this order (default: %(default)s)")
    arguments = parser.parse_args()
    moments = arguments.moments.split(",")
    if unknown := [moment for moment in moments if moment not in story.MOMENTS]:
        parser.error(f"no moment {unknown[0]!r}; moments: {', '.join(story.MOMENTS)}")
    folder = arguments.folder.resolve() if arguments.folder else Path(tempfile.mkdtemp(prefix="fv-kills-"))
    killed, uninterrupted = folder / "killed", folder / "uninterrupted"
    if killed.exists():
        parser.error(f"{killed} is there already; the killed run begins in a new root: delete it or choose another --folder")
    try:
        sources = folder / "sources"
        if not sources.is_dir():
            story.render_sources(sources)
        settings = story.settings_of(moments)
        story.run("retrain", uninterrupted, sources, *story.LOCAL, *settings)
        launches = story.kill_and_resume("retrain", killed, sources, moments, *settings)
        print_table(kill_rows(launches))
        rows = comparison(launches, uninterrupted, sources, settings)
        print_table(rows)
    finally:
        if not arguments.folder:
            shutil.rmtree(folder, ignore_errors=True)
    return 0 if all(row[-1] == "yes" for row in rows[1:]) else 1


if __name__ == "__main__":
    sys.exit(main())
