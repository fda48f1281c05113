"""How the store answers over many synthetic clips: one table of seconds. Targets: store.md, 2 M rows on a two-core machine.

    .venv/bin/python benchmarks/store_scale.py --rows 2000000 [--folder /tmp/scale] [--indexes] [--peers duckdb,pandas]

Queries are the best of three in this warm process; writes are measured once. The folder is deleted unless given. Peers get
the same rows (benchmarks/store_peers.py): DuckDB over Parquet, pandas over JSON lines, each in a process of its own, which
may be of another environment (`--peer-python`); one that is not installed there is named and left out.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from printed_table import print_table

from curation.config import PolicyConfig, Rule
from curation.policy import funnel
from curation.query import histogram, open_dataset
from curation.schema import CLIPS
from curation.store import Store
from pipelines import select

CLIPS_A_SOURCE = 20
BATCH = 250_000
WHERE = "motion_proxy >= 1.1 and aesthetic_proxy >= 5.5"


def rules(motion: float) -> PolicyConfig:
    """A policy like the debug recipe's, with that motion threshold."""
    return PolicyConfig(
        rules=(
            Rule(name="resolution", column="short_side_px", at_least=1080),
            Rule(name="motion", column="motion_proxy", at_least=motion),
            Rule(name="aesthetic", column="aesthetic_proxy", at_least=4.5),
            Rule(name="damage", column="corrupt_frames", at_most=0),
            Rule(name="duplicate", column="is_duplicate", at_most=0),
        ),
        preference_subset="top_aesthetic",
    )


def batch(start: int, count: int) -> pa.Table:
    """Clips start to start + count; values depend on the place only."""
    draw = np.random.default_rng(start)
    place = np.arange(start, start + count)
    source = place // CLIPS_A_SOURCE
    columns = {
        "clip_id": [f"{(int(i) * 0x9E3779B97F4A7C15) % 2**64:016x}" for i in place],
        "source_id": [f"{int(s):032x}" for s in source],
        "uri": [f"/films/{int(s):08}.mp4" for s in source],
        "media_type": ["video"] * count,
        "start_us": (place % CLIPS_A_SOURCE) * 6_125_000,
        "end_us": (place % CLIPS_A_SOURCE + 1) * 6_125_000,
        "duration_s": np.full(count, 6.125),
        "short_side_px": draw.choice([720, 1080, 2160], count, p=[0.1, 0.7, 0.2]),
        "corrupt_frames": draw.poisson(0.02, count),
        "motion_proxy": draw.gamma(2.0, 1.5, count),
        "aesthetic_proxy": draw.normal(5.0, 1.0, count),
        "is_duplicate": draw.random(count) < 0.03,
        "caption": [f"A shot of subject {int(i) % 9973}, slow pan to the left, daylight, six seconds." for i in place],
        "state": ["new"] * count,
    }
    return pa.table({name: pa.array(values).cast(CLIPS.field(name).type) for name, values in columns.items()})


def timed(action: Callable[[], object], repeats: int = 1) -> float:
    """Seconds, best of the repeats."""
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def fill(store: Store, rows: int) -> None:
    for start in range(0, rows, BATCH):
        store.upsert("clips", batch(start, min(BATCH, rows - start)))
    sources = rows // CLIPS_A_SOURCE + 1
    store.upsert(
        "sources",
        pa.table(
            {
                "uri": [f"/films/{s:08}.mp4" for s in range(sources)],
                "source_id": [f"{s:032x}" for s in range(sources)],
                "present": [True] * sources,
                "status": ["split"] * sources,
            }
        ),
    )


def reselect(store: Store, motion: float) -> str:
    """What the select job does, without its report."""
    config = rules(motion)
    selection = select.select(store, config)
    select.write(store, selection)
    return select.release(store, selection, config).name


def new_column(store: Store, rows: int) -> None:
    ids = store.read("clips", ["clip_id"], ordered=False)["clip_id"]
    store.merge_columns("clips", pa.table({"clip_id": ids, "musiq": pa.array(np.linspace(0, 100, rows), pa.float32())}))


def sample(store: Store, number: int = 1000) -> pa.Table:
    """Random clips with their score."""
    return store.dataset("clips").sample(number, columns=["clip_id", "motion_proxy"])


def diff(store: Store, one: str, other: str) -> int:
    """Clips whose state differs between two releases."""
    rows = [store.read("clips", ["clip_id", "state"], tag=tag, ordered=False) for tag in (one, other)]
    both = rows[0].join(rows[1], "clip_id", right_suffix="_after", join_type="full outer")
    return int(pc.sum(pc.not_equal(pc.fill_null(both["state"], "absent"), pc.fill_null(both["state_after"], "absent"))).as_py() or 0)


PEERS = Path(__file__).with_name("store_peers.py")
PEER_COLUMNS = ("clip_id", "source_id", "uri", "start_us", "duration_s", "caption", "state", "musiq", *(r.column for r in rules(1.1).rules))


def ask_peers(store: Store, folder: Path, names: list[str], python: str) -> dict[str, dict[str, float] | str]:
    """Seconds per question and peak memory of each peer over the same rows, or why there is none."""
    found: dict[str, dict[str, float] | str] = {}
    for name in names:
        begin = time.perf_counter()
        rows = store.read("clips", PEER_COLUMNS, ordered=False)
        file = folder / ("clips.parquet" if name == "duckdb" else "clips.jsonl")
        if name == "duckdb":
            from pyarrow import parquet

            parquet.write_table(rows, file)
        else:
            with open(file, "w") as lines:
                for part in rows.to_batches(max_chunksize=10_000):
                    lines.writelines(json.dumps(row) + "\n" for row in part.to_pylist())
        del rows
        print(f"  rows for {name} written in {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)
        done = subprocess.run([python, str(PEERS), name, str(file)], capture_output=True, text=True)
        file.unlink()
        found[name] = json.loads(done.stdout) if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no answer"])[-1]
    return found


def command(folder: Path) -> None:
    program = (
        "import sys; from curation.query import run_query; "
        "print(run_query(sys.argv[1], sys.argv[2], order_by='-aesthetic_proxy', limit=10))"
    )
    subprocess.run([sys.executable, "-c", program, str(folder), WHERE], check=True, capture_output=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--folder", type=Path, default=None, help="kept afterwards")
    parser.add_argument("--indexes", action="store_true")
    parser.add_argument("--peers", default="duckdb,pandas", help="empty: none")
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has the peers")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="store_scale_"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        peers = [name for name in arguments.peers.split(",") if name]
        measure(folder / "store", arguments.rows, arguments.indexes, peers, arguments.peer_python)
    finally:
        if arguments.folder is None:
            shutil.rmtree(folder)


def measure(folder: Path, rows: int, indexes: bool, peers: list[str], python: str) -> None:
    store = Store.open(folder)
    results = [("fill (upserts of 250 k)", timed(lambda: fill(store, rows)))]
    results.append(("compact", timed(store.compact)))
    if indexes:
        results.append(("build indexes", timed(store.build_indexes)))
    clips = open_dataset(folder).clips
    results.append(("count by state", timed(lambda: clips.counts("state"), 3)))
    results.append(("count where motion and aesthetic", timed(lambda: clips.where(WHERE).count(), 3)))
    top = clips.where(WHERE).order_by("-aesthetic_proxy").limit(20)
    results.append(("filter + top 20, id and score", timed(lambda: top.columns("clip_id", "aesthetic_proxy").to_arrow(), 3)))
    results.append(("filter + top 20, all columns", timed(top.to_arrow, 3)))
    one = clips.limit(1).columns("clip_id").rows()[0]["clip_id"]
    results.append(("one clip by id", timed(lambda: clips.where(f"clip_id = '{one}'").to_arrow(), 3)))
    results.append(("sample of 1000", timed(lambda: sample(store), 3)))
    results.append(("histogram", timed(lambda: histogram(store, "motion_proxy"), 3)))
    results.append(("query command, whole process", timed(lambda: command(folder), 3)))
    results.append(("new score column", timed(lambda: new_column(store, rows))))
    tags: list[str] = []
    results.append(("first selection and tag", timed(lambda: tags.append(reselect(store, 1.1)))))
    results.append(("policy change 1.1 -> 1.3 and tag", timed(lambda: tags.append(reselect(store, 1.3)))))
    results.append(("tag alone", timed(lambda: store.tag("bench", "the newest rows"))))
    changed: list[int] = []
    results.append(("diff of the two tags", timed(lambda: changed.append(diff(store, *tags)))))
    judged = store.read("clips", ["clip_id", "short_side_px", *[r.column for r in rules(1.1).rules[1:]], "media_type"], ordered=False)
    results.append(("funnel of 5 rules", timed(lambda: funnel(judged, rules(1.1).rules), 3)))
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = ask_peers(store, folder.parent, peers, python)
    print(f"{rows:,} clips, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, indexes {'on' if indexes else 'off'}")
    print(f"the two tags differ in {changed[0]:,} clips")
    answers = {name: answer for name, answer in found.items() if isinstance(answer, dict)}
    table: list[list[object]] = [["seconds", "store", *answers]]
    for name, seconds in [*results, *((name, None) for name in ("load",) if answers)]:
        peer_cells = [f"{answer[name]:.3f}" if name in answer else "-" for answer in answers.values()]
        table.append([name, "-" if seconds is None else f"{seconds:.3f}", *peer_cells])
    table.append(["peak memory, MB", f"{peak:.0f}", *(f"{answer['peak memory, MB']:.0f}" for answer in answers.values())])
    table.append(["size on disk, MB", f"{size / 1e6:.0f}", *(f"{answer['size on disk, MB']:.0f}" for answer in answers.values())])
    print_table(table)
    for name, answer in found.items():
        if isinstance(answer, str):
            print(f"{name}: {answer}")


if __name__ == "__main__":
    main()
