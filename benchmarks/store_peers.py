"""The questions of store_scale.py put to DuckDB over Parquet, or to pandas over JSON lines; prints JSON. Needs nothing of ours.

    python benchmarks/store_peers.py duckdb clips.parquet
    python benchmarks/store_peers.py pandas clips.jsonl

Queries are the best of three, writes are measured once. Neither has tags: a release is a copy of the file. pandas holds the
whole file in memory once it is loaded, and writes the whole file to keep a change.
"""

from __future__ import annotations

import importlib.util
import json
import resource
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RULES = "short_side_px >= 1080 and motion_proxy >= {motion} and aesthetic_proxy >= 4.5 and corrupt_frames <= 0 and is_duplicate <= 0"


def timed(action: Callable[[], Any], repeats: int = 1) -> float:
    """Seconds, best of the repeats."""
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def ask_duckdb(file: Path) -> dict[str, float]:
    import duckdb

    database = duckdb.connect()
    database.execute(f"SET temp_directory = '{file.parent / 'duckdb'}'")
    table = f"read_parquet('{file}')"
    first, second, wider = (file.with_name(f"{name}.parquet") for name in ("first", "second", "wider"))

    def ask(text: str) -> Any:
        return database.execute(text).fetchall()

    def select(motion: float, target: Path) -> None:
        verdict = f"CASE WHEN {RULES.format(motion=motion)} THEN 'kept' ELSE 'rejected' END AS state"
        ask(f"COPY (SELECT * REPLACE ({verdict}) FROM {table}) TO '{target}' (FORMAT parquet)")

    where = "motion_proxy >= 1.1 AND aesthetic_proxy >= 5.5"
    top = f"FROM {table} WHERE {where} ORDER BY aesthetic_proxy DESC, clip_id LIMIT 20"
    bounds = f"(SELECT min(motion_proxy) AS low, (max(motion_proxy) - min(motion_proxy)) / 40 AS width FROM {table})"
    column = f"COPY (SELECT *, row_number() OVER () * 1.0::FLOAT AS score FROM {table}) TO '{wider}' (FORMAT parquet)"
    found = {
        "count by state": timed(lambda: ask(f"SELECT state, count(*) FROM {table} GROUP BY state"), 3),
        "count where motion and aesthetic": timed(lambda: ask(f"SELECT count(*) FROM {table} WHERE {where}"), 3),
        "filter + top 20, id and score": timed(lambda: ask(f"SELECT clip_id, aesthetic_proxy {top}"), 3),
        "filter + top 20, all columns": timed(lambda: ask(f"SELECT * {top}"), 3),
        "sample of 1000": timed(lambda: ask(f"SELECT clip_id, motion_proxy FROM {table} USING SAMPLE 1000 ROWS"), 3),
        "histogram": timed(
            lambda: ask(f"SELECT least(39, floor((motion_proxy - low) / width)), count(*) FROM {table}, {bounds} GROUP BY 1"), 3
        ),
        "new score column": timed(lambda: ask(column)),
        "first selection and tag": timed(lambda: select(1.1, first)),
        "policy change 1.1 -> 1.3 and tag": timed(lambda: select(1.3, second)),
        "tag alone": timed(lambda: shutil.copyfile(second, file.with_name("copy.parquet"))),
    }
    joined = f"read_parquet('{first}') a FULL JOIN read_parquet('{second}') b USING (clip_id)"
    found["diff of the two tags"] = timed(lambda: ask(f"SELECT count(*) FROM {joined} WHERE a.state IS DISTINCT FROM b.state"))
    return found


def ask_pandas(file: Path) -> dict[str, float]:
    import numpy as np
    import pandas as pd

    begin = time.perf_counter()
    frame = pd.read_json(file, lines=True)
    found = {"load": time.perf_counter() - begin}
    first, second = file.with_name("first.jsonl"), file.with_name("second.jsonl")

    def matching() -> Any:
        return frame[(frame.motion_proxy >= 1.1) & (frame.aesthetic_proxy >= 5.5)]

    def select(motion: float, target: Path) -> None:
        kept = frame.eval(RULES.format(motion=motion))
        frame["state"] = np.where(kept, "kept", "rejected")
        frame.to_json(target, orient="records", lines=True)

    def diff() -> int:
        one, other = (pd.read_json(path, lines=True)[["clip_id", "state"]] for path in (first, second))
        both = one.merge(other, on="clip_id", how="outer", suffixes=("", "_after"))
        return int((both.state != both.state_after).sum())

    def new_column() -> None:
        frame["score"] = np.linspace(0, 100, len(frame))
        frame.to_json(file.with_name("wider.jsonl"), orient="records", lines=True)

    found |= {
        "count by state": timed(lambda: frame.groupby("state").size(), 3),
        "count where motion and aesthetic": timed(lambda: len(matching()), 3),
        "filter + top 20, all columns": timed(lambda: matching().nlargest(20, "aesthetic_proxy"), 3),
        "sample of 1000": timed(lambda: frame.sample(1000)[["clip_id", "motion_proxy"]], 3),
        "histogram": timed(lambda: np.histogram(frame.motion_proxy.dropna(), bins=40), 3),
        "new score column": timed(new_column),
        "first selection and tag": timed(lambda: select(1.1, first)),
        "policy change 1.1 -> 1.3 and tag": timed(lambda: select(1.3, second)),
        "tag alone": timed(lambda: shutil.copyfile(second, file.with_name("copy.jsonl"))),
        "diff of the two tags": timed(diff),
    }
    return found


def main() -> None:
    name, file = sys.argv[1], Path(sys.argv[2])
    if importlib.util.find_spec(name) is None:
        sys.exit(f"not installed in {Path(sys.prefix).name}; give --peer-python an interpreter that has it")
    size = file.stat().st_size / 1e6
    before = set(file.parent.iterdir())
    found = {"duckdb": ask_duckdb, "pandas": ask_pandas}[name](file)
    found |= {"size on disk, MB": size, "peak memory, MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    for path in set(file.parent.iterdir()) - before:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
