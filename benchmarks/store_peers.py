"""The questions of store_scale.py put to DuckDB over Parquet, or to pandas over JSON lines; prints JSON. Needs nothing of ours.

    python benchmarks/store_peers.py lines FOLDER          (clips.parquet -> clips.jsonl, by DuckDB)
    python benchmarks/store_peers.py duckdb FOLDER GIB WRITES
    python benchmarks/store_peers.py pandas FOLDER GIB WRITES

Times as in store_scale.py. Neither has tags: a release is a copy of the file. pandas holds the whole file in memory once it is
loaded, and writes the whole file to keep a change (measured once). GIB: memory that each may take (DuckDB's own limit;
pandas' data segment).
"""

from __future__ import annotations

import importlib.util
import json
import resource
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RULES = "short_side_px >= 1080 and motion_proxy >= {motion} and aesthetic_proxy >= 4.5 and corrupt_frames <= 0 and is_duplicate <= 0"


QUERIES = 7
PIECE = 100_000
"""Rows that pandas reads and writes at once: the text of a whole file does not fit beside its rows."""


def timed(action: Callable[[], Any], repeats: int) -> float:
    """Seconds, median of the repeats, after one that is not counted where there are several."""
    seconds = []
    for _ in range(repeats + (repeats > 1)):
        begin = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[repeats > 1 :])


def write_lines(folder: Path) -> None:
    import duckdb

    part = folder / "part.jsonl"
    duckdb.connect().execute(f"COPY (SELECT * FROM read_parquet('{folder / 'clips.parquet'}')) TO '{part}' (FORMAT json)")
    part.rename(folder / "clips.jsonl")


def ask_duckdb(file: Path, limit_gib: float, writes: int) -> dict[str, float]:
    import duckdb

    database = duckdb.connect()
    database.execute(f"SET memory_limit = '{limit_gib:g}GiB'")
    database.execute(f"SET temp_directory = '{file.parent / 'duckdb'}'")
    table = f"read_parquet('{file}')"
    first, second, wider = (file.with_name(f"{name}.parquet") for name in ("first", "second", "wider"))

    def ask(text: str) -> Any:
        return database.execute(text).fetchall()

    def select(motion: float, target: Path) -> None:
        verdict = f"CASE WHEN {RULES.format(motion=motion)} THEN 'kept' ELSE 'rejected' END AS state"
        ask(f"COPY (SELECT * REPLACE ({verdict}) FROM {table}) TO '{target}' (FORMAT parquet)")

    one = ask(f"SELECT clip_id FROM {table} LIMIT 1")[0][0]
    where = "motion_proxy >= 1.1 AND aesthetic_proxy >= 5.5"
    top = f"FROM {table} WHERE {where} ORDER BY aesthetic_proxy DESC, clip_id LIMIT 20"
    bounds = f"(SELECT min(motion_proxy) AS low, (max(motion_proxy) - min(motion_proxy)) / 40 AS width FROM {table})"
    column = f"COPY (SELECT *, row_number() OVER () * 1.0::FLOAT AS score FROM {table}) TO '{wider}' (FORMAT parquet)"
    found = {
        "count by state": timed(lambda: ask(f"SELECT state, count(*) FROM {table} GROUP BY state"), QUERIES),
        "count where motion and aesthetic": timed(lambda: ask(f"SELECT count(*) FROM {table} WHERE {where}"), QUERIES),
        "filter + top 20, id and score": timed(lambda: ask(f"SELECT clip_id, aesthetic_proxy {top}"), QUERIES),
        "filter + top 20, all columns": timed(lambda: ask(f"SELECT * {top}"), QUERIES),
        "sample of 1000": timed(lambda: ask(f"SELECT clip_id, motion_proxy FROM {table} USING SAMPLE 1000 ROWS"), QUERIES),
        "histogram": timed(
            lambda: ask(f"SELECT least(39, floor((motion_proxy - low) / width)), count(*) FROM {table}, {bounds} GROUP BY 1"), QUERIES
        ),
        "one clip by id": timed(lambda: ask(f"SELECT * FROM {table} WHERE clip_id = '{one}'"), QUERIES),
        "new score column": timed(lambda: ask(column), writes),
        "first selection and tag": timed(lambda: select(1.1, first), 1),
        "policy change and tag": timed(lambda: select(1.3, second), writes),
        "tag alone": timed(lambda: shutil.copyfile(second, file.with_name("copy.parquet")), writes),
    }
    joined = f"read_parquet('{first}') a FULL JOIN read_parquet('{second}') b USING (clip_id)"
    differ = f"SELECT count(*) FROM {joined} WHERE a.state IS DISTINCT FROM b.state"
    found["clips that differ"] = ask(differ)[0][0]
    found["diff of two tags"] = timed(lambda: ask(differ), writes)
    return found


def ask_pandas(file: Path, limit_gib: float, _writes: int) -> dict[str, float]:
    import numpy as np
    import pandas as pd

    resource.setrlimit(resource.RLIMIT_DATA, (int(limit_gib * 2**30), -1))

    def load(path: Path, columns: tuple[str, ...] = ()) -> Any:
        parts = pd.read_json(path, lines=True, chunksize=PIECE)
        return pd.concat([part[list(columns)] if columns else part for part in parts], ignore_index=True)

    def save(path: Path) -> None:
        with open(path, "w") as file:
            for start in range(0, len(frame), PIECE):
                frame.iloc[start : start + PIECE].to_json(file, orient="records", lines=True)

    begin = time.perf_counter()
    try:
        frame = load(file)
    except MemoryError:
        sys.exit(f"the rows do not fit into {limit_gib:g} GiB")
    found = {"load": time.perf_counter() - begin}
    first, second = file.with_name("first.jsonl"), file.with_name("second.jsonl")

    one = frame.clip_id[0]

    def matching() -> Any:
        return frame[(frame.motion_proxy >= 1.1) & (frame.aesthetic_proxy >= 5.5)]

    def select(motion: float, target: Path) -> None:
        kept = frame.eval(RULES.format(motion=motion))
        frame["state"] = np.where(kept, "kept", "rejected")
        save(target)

    def diff() -> int:
        one, other = (load(path, ("clip_id", "state")) for path in (first, second))
        both = one.merge(other, on="clip_id", how="outer", suffixes=("", "_after"))
        return int((both.state != both.state_after).sum())

    def new_column() -> None:
        frame["score"] = np.linspace(0, 100, len(frame))
        save(file.with_name("wider.jsonl"))

    found |= {
        "count by state": timed(lambda: frame.groupby("state").size(), QUERIES),
        "count where motion and aesthetic": timed(lambda: len(matching()), QUERIES),
        "filter + top 20, all columns": timed(lambda: matching().nlargest(20, "aesthetic_proxy"), QUERIES),
        "sample of 1000": timed(lambda: frame.sample(1000)[["clip_id", "motion_proxy"]], QUERIES),
        "histogram": timed(lambda: np.histogram(frame.motion_proxy.dropna(), bins=40), QUERIES),
        "one clip by id": timed(lambda: frame[frame.clip_id == one], QUERIES),
        "new score column": timed(new_column, 1),
        "first selection and tag": timed(lambda: select(1.1, first), 1),
        "policy change and tag": timed(lambda: select(1.3, second), 1),
        "tag alone": timed(lambda: shutil.copyfile(second, file.with_name("copy.jsonl")), 1),
    }
    differ: list[int] = []
    found["diff of two tags"] = timed(lambda: differ.append(diff()), 1)
    return found | {"clips that differ": differ[0]}


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    if importlib.util.find_spec("duckdb" if name == "lines" else name) is None:
        sys.exit(f"not installed in {Path(sys.prefix).name}; give --peer-python an interpreter that has it")
    if name == "lines":
        write_lines(folder)
        return
    before = set(folder.iterdir())
    file = folder / ("clips.parquet" if name == "duckdb" else "clips.jsonl")
    found = {"duckdb": ask_duckdb, "pandas": ask_pandas}[name](file, float(sys.argv[3]), int(sys.argv[4]))
    for path in set(folder.iterdir()) - before:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
