"""How the store answers over many synthetic clips, beside DuckDB over Parquet and pandas over JSON lines. Targets: store.md, 2 M
rows on a two-core machine.

    .venv/bin/python benchmarks/store_scale.py --rows 2000000 --folder /tmp/scale [--peer-python PYTHON] [--prepare]
    .venv/bin/python benchmarks/store_scale.py --rows 2000000 --folder /tmp/scale --ask store,duckdb,pandas

`--prepare` writes the rows only: the store, and of the same rows a Parquet file and a file of JSON lines. Each is then asked in
a process of its own, one after the other (benchmarks/store_peers.py for the peers, which may be of another environment);
nothing is held in memory between commands but by pandas, which has loaded everything. Times are medians after one try that
is not counted (queries of 7, writes of `--writes`; 1 means the first try itself); memory is the peak of the process tree's
PSS. A peer that needs more than `--limit-gib` or `--limit-s` stops there: the table has what it answered until then and where it
stopped. `--ask` measures some of them and leaves the others' answers as they were; the folder is deleted afterwards unless it
was given.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from printed_table import print_table
from process_tree import measure
from pyarrow import parquet

from curation.config import PolicyConfig, Rule
from curation.query import histogram, open_dataset
from curation.releases import diff
from curation.schema import CLIPS
from curation.store import Store, lance
from pipelines import select

CLIPS_A_SOURCE = 20
BATCH = 250_000
SUBJECTS = 9973
FRAGMENT_ROWS = 1_000_000
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
    place = np.arange(start, start + count, dtype=np.uint64)
    source = (place // CLIPS_A_SOURCE).astype(np.int64)
    first = int(source[0])
    names = range(first, int(source[-1]) + 1)
    subjects = pa.array([f"A shot of subject {i}, slow pan to the left, daylight, six seconds." for i in range(SUBJECTS)])
    turn = place.astype(np.int64) % CLIPS_A_SOURCE
    columns = {
        "clip_id": _hex(np.stack([place * np.uint64(0x9E3779B97F4A7C15), place * np.uint64(0xC2B2AE3D27D4EB4F)], axis=1)),
        "source_id": pa.array([f"{name:032x}" for name in names]).take(pa.array(source - first)),
        "uri": pa.array([f"/films/{name:08}.mp4" for name in names]).take(pa.array(source - first)),
        "media_type": pa.repeat(pa.scalar("video"), count),
        "start_us": turn * 6_125_000,
        "end_us": (turn + 1) * 6_125_000,
        "duration_s": np.full(count, 6.125),
        "short_side_px": draw.choice([720, 1080, 2160], count, p=[0.1, 0.7, 0.2]),
        "corrupt_frames": draw.poisson(0.02, count),
        "motion_proxy": draw.gamma(2.0, 1.5, count),
        "aesthetic_proxy": draw.normal(5.0, 1.0, count),
        "is_duplicate": draw.random(count) < 0.03,
        "caption": subjects.take(pa.array((place % SUBJECTS).astype(np.int64))),
        "state": pa.repeat(pa.scalar("new"), count),
    }
    return pa.table(
        {name: pa.array(values).cast(CLIPS.field(name).type) for name, values in columns.items()},
        schema=pa.schema([CLIPS.field(name) for name in columns]),
    )


def _hex(words: np.ndarray) -> pa.Array:
    """Rows of uint64 as one text of hex digits each."""
    width = 16 * words.shape[1]
    digits = pa.py_buffer(words.astype(">u8").tobytes().hex().encode())
    return pa.StringArray.from_buffers(len(words), pa.py_buffer(np.arange(len(words) + 1, dtype=np.int32) * width), digits)


def timed(action: Callable[[], object], repeats: int) -> float:
    """Seconds, median of the repeats, after one that is not counted where there are several."""
    seconds = []
    for _ in range(repeats + (repeats > 1)):
        begin = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[repeats > 1 :])


def fill(store: Store, rows: int) -> None:
    """New clips appended as the engine appends them; a job's upserts would compare every key with those that are there."""
    schema = batch(0, 1).schema
    batches = (part for start in range(0, rows, BATCH) for part in batch(start, min(BATCH, rows - start)).to_batches())
    uri = store.dataset("clips").uri
    lance().write_dataset(pa.RecordBatchReader.from_batches(schema, batches), uri, mode="append", max_rows_per_file=FRAGMENT_ROWS)
    sources = range(rows // CLIPS_A_SOURCE + 1)
    store.upsert(
        "sources",
        pa.table(
            {
                "uri": [f"/films/{s:08}.mp4" for s in sources],
                "source_id": [f"{s:032x}" for s in sources],
                "present": pa.repeat(pa.scalar(True), len(sources)),
                "status": pa.repeat(pa.scalar("split"), len(sources)),
            }
        ),
    )


def reselect(store: Store, motion: float) -> str:
    """What the select job does, without its report."""
    config = rules(motion)
    selection = select.select(store, config)
    select.write(store, selection)
    return select.release(store, selection, config).name


def new_column(store: Store, rows: int, name: str) -> None:
    """A score for every clip, as a score job commits it: by clip_id."""
    ids = store.read("clips", ["clip_id"], ordered=False)["clip_id"]
    store.merge_columns("clips", pa.table({"clip_id": ids, name: pa.array(np.linspace(0, 100, rows), pa.float32())}))


def sample(store: Store, number: int = 1000) -> pa.Table:
    """Random clips with their score."""
    return store.dataset("clips").sample(number, columns=["clip_id", "motion_proxy"])


def command(folder: Path) -> None:
    """`flashvideo query` with a filter, an order and a limit, interpreter start included."""
    order = ["--order-by", "-aesthetic_proxy", "--limit", "10"]
    subprocess.run(
        [Path(sys.executable).with_name("flashvideo"), "query", WHERE, "--root", folder, *order], check=True, capture_output=True
    )


QUERIES = 7


def ask_store(folder: Path, rows: int, writes: int) -> dict[str, float]:
    """Seconds per question."""
    store, clips = Store.open(folder / "store"), open_dataset(folder / "store").clips
    top = clips.where(WHERE).order_by("-aesthetic_proxy").limit(20)
    one = clips.limit(1).columns("clip_id").rows()[0]["clip_id"]
    motions = iter((1.1, 1.3, 1.2, 1.4, 1.25))
    columns, tags, names = iter(("musiq", "piqe", "aesthetic", "motion_raft")), list[str](), iter("abcdefgh")
    found = {
        "count by state": timed(lambda: clips.counts("state"), QUERIES),
        "count where motion and aesthetic": timed(lambda: clips.where(WHERE).count(), QUERIES),
        "filter + top 20, id and score": timed(lambda: top.columns("clip_id", "aesthetic_proxy").to_arrow(), QUERIES),
        "filter + top 20, all columns": timed(top.to_arrow, QUERIES),
        "one clip by id": timed(lambda: clips.where(f"clip_id = '{one}'").to_arrow(), QUERIES),
        "sample of 1000": timed(lambda: sample(store), QUERIES),
        "histogram": timed(lambda: histogram(store, "motion_proxy"), QUERIES),
        "query command, whole process": timed(lambda: command(folder), writes),
        "new score column": timed(lambda: new_column(store, rows, next(columns)), writes),
        "first selection and tag": timed(lambda: tags.append(reselect(store, next(motions))), 1),
        "policy change and tag": timed(lambda: tags.append(reselect(store, next(motions))), writes),
        "tag alone": timed(lambda: store.tag(f"bench-{next(names)}", "the newest rows"), writes),
    }
    compared = [diff(store, *tags[:2])]
    found["clips that differ"] = float(len(compared[0].added) + len(compared[0].removed))
    del compared
    found["diff of two tags"] = timed(lambda: diff(store, *tags[:2]), writes)
    found["count by state, after selections"] = timed(lambda: clips.counts("state"), QUERIES)
    found["end of run (compaction, old versions)"] = timed(store.compact, 1)
    found["build scalar indexes"] = timed(store.build_indexes, 1)
    found["indexed: one clip by id"] = timed(lambda: clips.where(f"clip_id = '{one}'").to_arrow(), QUERIES)
    return found


PEERS = Path(__file__).with_name("store_peers.py")
PEER_COLUMNS = ("clip_id", "source_id", "uri", "start_us", "duration_s", "caption", "state", *(r.column for r in rules(1.1).rules))


def prepare(folder: Path, rows: int, python: str, names: Sequence[str]) -> None:
    """The rows, as each of these wants them. What is there stays."""
    folder.mkdir(parents=True, exist_ok=True)
    store = Store.open(folder / "store")
    if (there := store.count("clips")) not in (0, rows):
        sys.exit(f"{folder} holds {there} clips; give another --folder")
    if there == 0:
        fill(store, rows)
        store.compact()
    if names != ["store"] and not (folder / "clips.parquet").exists():
        part = folder / "part"
        with parquet.ParquetWriter(part, pa.schema([CLIPS.field(name) for name in PEER_COLUMNS])) as file:
            for batch_ in store.dataset("clips").to_batches(columns=list(PEER_COLUMNS), batch_size=BATCH):
                file.write_batch(batch_)
        part.rename(folder / "clips.parquet")
    if "pandas" in names and not (folder / "clips.jsonl").exists() and subprocess.run([python, PEERS, "lines", folder]).returncode:
        sys.exit(f"{python} could not write the peers' JSON lines, see above; --peer-python names an interpreter that has them")


def ask(folder: Path, rows: int, name: str, python: str, limits: tuple[float, float], writes: int) -> dict[str, float | str]:
    """Seconds per question, peak memory, size and what it was limited to (GiB, seconds); `stopped`: where and why it ended early."""
    mine = [sys.executable, __file__, "--rows", str(rows), "--folder", str(folder), "--ask-store", "--writes", str(writes)]
    log = folder / f"{name}.log"
    log.unlink(missing_ok=True)
    cost = measure(mine if name == "store" else [python, str(PEERS), name, str(folder), *map(str, limits), str(writes)], log)
    found: dict[str, float | str] = {}
    if cost.exit_code:
        last = (log.read_text().strip().splitlines() or ["no answer"])[-1]
        found["stopped"] = f"ended with exit code {cost.exit_code} after {cost.wall_s:.0f} s; its last line: {last}"
    else:
        found = json.loads(cost.output)
    if name != "store":
        found |= dict(zip((GIB, SECONDS), limits, strict=True))
    size = {"store": folder / "store", "duckdb": folder / "clips.parquet", "pandas": folder / "clips.jsonl"}[name]
    files = [size] if size.is_file() else [file for file in size.rglob("*") if file.is_file()]
    return found | {PEAK: cost.peak_bytes / 2**20, SIZE: sum(file.stat().st_size for file in files) / 1e6}


def show(folder: Path, rows: int) -> None:
    """The table of all answers in the folder."""
    answers = {name: json.loads(file.read_text()) for name in NAMES if (file := folder / f"{name}.json").exists()}
    labels = list(dict.fromkeys(label for answer in answers.values() for label in answer if label != "stopped"))
    table: list[list[object]] = [["seconds", *answers]]
    for label in sorted(labels, key=lambda label: WHOLE.index(label) if label in WHOLE else -1):
        shape = ",g" if label in (GIB, SECONDS) else ",.0f" if label in WHOLE else ",.3f"
        table.append([label, *(format(answer[label], shape) if label in answer else "-" for answer in answers.values())])
    table.append(["all questions", *("stopped early" if "stopped" in answer else "answered" for answer in answers.values())])
    print(f"{rows:,} clips, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print_table(table)
    for name, answer in answers.items():
        if "stopped" in answer:
            print(f"{name}: {answer['stopped']}; peak {answer[PEAK]:,.0f} MiB")


NAMES = ("store", "duckdb", "pandas")
PEAK, SIZE, GIB, SECONDS = "peak memory, MiB", "size on disk, MB", "limit of memory, GiB", "limit of time, s"
WHOLE = ("clips that differ", PEAK, SIZE, GIB, SECONDS)
"""Rows of whole numbers, at the end of the table."""


def main() -> None:
    parser = argparse.ArgumentParser(description="The store over many synthetic clips.")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--folder", type=Path, default=None, help="kept afterwards")
    parser.add_argument("--prepare", action="store_true", help="write the rows and stop")
    parser.add_argument("--ask", default=",".join(NAMES), help="whom")
    parser.add_argument("--ask-store", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has the peers")
    parser.add_argument("--limit-gib", type=float, default=5.0, help="memory of a peer")
    parser.add_argument("--limit-s", type=float, default=400.0, help="wall seconds of a peer")
    parser.add_argument("--writes", type=int, default=3, help="times that a write is measured")
    arguments = parser.parse_args()
    if arguments.ask_store:
        print(json.dumps(ask_store(arguments.folder, arguments.rows, arguments.writes)))
        return
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="store_scale_"))
    try:
        names = arguments.ask.split(",")
        prepare(folder, arguments.rows, arguments.peer_python, names)
        if arguments.prepare:
            return
        for name in names:
            answer = ask(folder, arguments.rows, name, arguments.peer_python, (arguments.limit_gib, arguments.limit_s), arguments.writes)
            (folder / f"{name}.json").write_text(json.dumps(answer))
        show(folder, arguments.rows)
    finally:
        if arguments.folder is None:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
