"""The questions of store_scale.py put to DuckDB over Parquet, or to pandas over JSON lines; prints JSON. Needs nothing of ours.

    python benchmarks/store_peers.py lines FOLDER          (clips.parquet -> clips.jsonl, by DuckDB)
    python benchmarks/store_peers.py duckdb FOLDER GIB SECONDS WRITES
    python benchmarks/store_peers.py pandas FOLDER GIB SECONDS WRITES

Times as in store_scale.py. Neither has tags: a release is a copy of the file. pandas holds the whole file in memory once it is
loaded, and writes the whole file to keep a change (measured once). GIB: memory that each may take (DuckDB's own limit; pandas'
data segment, so that an allocation above it fails). SECONDS: wall time of all questions. Who meets a limit stops there: the answers
until then are printed, and under `stopped` at which question and row.
"""

from __future__ import annotations

import importlib.util
import json
import resource
import shutil
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
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


class Asked:
    """Answers so far, and what is being asked."""

    def __init__(self, limit_gib: float, limit_s: float) -> None:
        self.limit_gib, self.limit_s = limit_gib, limit_s
        self.seconds: dict[str, float] = {}
        self.at = "start"

    def ask(self, label: str, action: Callable[[], Any], repeats: int) -> None:
        """Seconds of one question, under its label."""
        self.at = label
        print(label, file=sys.stderr, flush=True)  # for a process that ends without a word
        self.seconds[label] = timed(action, repeats)

    def answers(self, asking: Callable[[Asked], None]) -> dict[str, float | str]:
        """What was answered; where a limit was met, `stopped` says which and where."""
        signal.signal(signal.SIGALRM, _out_of_time)
        signal.setitimer(signal.ITIMER_REAL, self.limit_s)
        begin = time.monotonic()
        try:
            asking(self)
        except Exception as error:
            if not isinstance(error, (MemoryError, TimeoutError)) and type(error).__name__ != "OutOfMemoryException":
                raise
            kind = f"not done in {self.limit_s:g} s" if isinstance(error, TimeoutError) else f"does not fit in {self.limit_gib:g} GiB"
        else:
            return dict(self.seconds)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        return {**self.seconds, "stopped": f"{kind}: stopped at {self.at}, {time.monotonic() - begin:.0f} s after the start"}


def _out_of_time(*_: object) -> None:
    raise TimeoutError


def write_lines(folder: Path) -> None:
    import duckdb

    part = folder / "part.jsonl"
    duckdb.connect().execute(f"COPY (SELECT * FROM read_parquet('{folder / 'clips.parquet'}')) TO '{part}' (FORMAT json)")
    part.rename(folder / "clips.jsonl")


def ask_duckdb(file: Path, asked: Asked, writes: int) -> None:
    import duckdb

    database = duckdb.connect()
    database.execute(f"SET memory_limit = '{asked.limit_gib:g}GiB'")
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
    asked.ask("count by state", lambda: ask(f"SELECT state, count(*) FROM {table} GROUP BY state"), QUERIES)
    asked.ask("count where motion and aesthetic", lambda: ask(f"SELECT count(*) FROM {table} WHERE {where}"), QUERIES)
    asked.ask("filter + top 20, id and score", lambda: ask(f"SELECT clip_id, aesthetic_proxy {top}"), QUERIES)
    asked.ask("filter + top 20, all columns", lambda: ask(f"SELECT * {top}"), QUERIES)
    asked.ask("sample of 1000", lambda: ask(f"SELECT clip_id, motion_proxy FROM {table} USING SAMPLE 1000 ROWS"), QUERIES)
    bars = f"SELECT least(39, floor((motion_proxy - low) / width)), count(*) FROM {table}, {bounds} GROUP BY 1"
    asked.ask("histogram", lambda: ask(bars), QUERIES)
    asked.ask("one clip by id", lambda: ask(f"SELECT * FROM {table} WHERE clip_id = '{one}'"), QUERIES)
    asked.ask("new score column", lambda: ask(column), writes)
    asked.ask("first selection and tag", lambda: select(1.1, first), 1)
    asked.ask("policy change and tag", lambda: select(1.3, second), writes)
    asked.ask("tag alone", lambda: shutil.copyfile(second, file.with_name("copy.parquet")), writes)
    joined = f"read_parquet('{first}') a FULL JOIN read_parquet('{second}') b USING (clip_id)"
    differ = f"SELECT count(*) FROM {joined} WHERE a.state IS DISTINCT FROM b.state"
    asked.ask("diff of two tags", lambda: ask(differ), writes)
    asked.seconds["clips that differ"] = ask(differ)[0][0]


def ask_pandas(file: Path, asked: Asked, _writes: int) -> None:
    import numpy as np
    import pandas as pd

    resource.setrlimit(resource.RLIMIT_DATA, (int(asked.limit_gib * 2**30), -1))

    def pieces(path: Path, columns: tuple[str, ...]) -> Iterator[Any]:
        what, rows = asked.at, 0
        for part in pd.read_json(path, lines=True, chunksize=PIECE):
            rows += len(part)
            asked.at = f"{what}, row {rows:,}"
            yield part[list(columns)] if columns else part
        asked.at = f"{what}, all {rows:,} rows read, to make one frame of them"

    def load(path: Path, columns: tuple[str, ...] = ()) -> Any:
        return pd.concat(list(pieces(path, columns)), ignore_index=True)

    def save(path: Path) -> None:
        with open(path, "w") as file:
            for start in range(0, len(frame), PIECE):
                frame.iloc[start : start + PIECE].to_json(file, orient="records", lines=True)

    loaded: list[Any] = []
    asked.ask("load", lambda: loaded.append(load(file)), 1)
    frame = loaded[0]
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

    asked.ask("count by state", lambda: frame.groupby("state").size(), QUERIES)
    asked.ask("count where motion and aesthetic", lambda: len(matching()), QUERIES)
    asked.ask("filter + top 20, all columns", lambda: matching().nlargest(20, "aesthetic_proxy"), QUERIES)
    asked.ask("sample of 1000", lambda: frame.sample(1000)[["clip_id", "motion_proxy"]], QUERIES)
    asked.ask("histogram", lambda: np.histogram(frame.motion_proxy.dropna(), bins=40), QUERIES)
    asked.ask("one clip by id", lambda: frame[frame.clip_id == one], QUERIES)
    asked.ask("new score column", new_column, 1)
    asked.ask("first selection and tag", lambda: select(1.1, first), 1)
    asked.ask("policy change and tag", lambda: select(1.3, second), 1)
    asked.ask("tag alone", lambda: shutil.copyfile(second, file.with_name("copy.jsonl")), 1)
    differ: list[int] = []
    asked.ask("diff of two tags", lambda: differ.append(diff()), 1)
    asked.seconds["clips that differ"] = differ[0]


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    if importlib.util.find_spec("duckdb" if name == "lines" else name) is None:
        sys.exit(f"not installed in {Path(sys.prefix).name}; give --peer-python an interpreter that has it")
    if name == "lines":
        write_lines(folder)
        return
    before = set(folder.iterdir())
    file = folder / ("clips.parquet" if name == "duckdb" else "clips.jsonl")
    limit_gib, limit_s, writes = float(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5])
    questions = {"duckdb": ask_duckdb, "pandas": ask_pandas}[name]
    found = Asked(limit_gib, limit_s).answers(lambda asked: questions(file, asked, writes))
    for path in set(folder.iterdir()) - before:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
