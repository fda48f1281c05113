"""What could not be done: the error rows by code, with examples. Light."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curation.expression import QueryError, any_of
from curation.store import Store

COLUMNS = ("code", "job", "step", "uri", "clip_id", "message", "attempt", "seconds", "time", "resolved")


@dataclass(frozen=True)
class ErrorCode:
    """The rows of one code in one step."""

    code: str
    job: str
    step: str
    open: int
    resolved: int
    examples: list[dict[str, Any]]
    """Open rows, by file and clip: uri, clip_id, message, attempt, seconds, time."""


def errors_by_code(store: Store, code: str | None = None, examples: int = 2) -> list[ErrorCode]:
    """Every code (or that one) with counts and so many of its open rows, most open first.

    Raises QueryError, which names the codes that are there, for one that no row has.
    """
    rows = store.read("errors", COLUMNS, any_of("code", [code]) if code is not None else None)
    if code is not None and not rows.num_rows:
        raise QueryError(f"no error has the code {code!r}; {_known(store)}")
    keys = ["code", "job", "step"]
    groups: dict[tuple[str, str, str], list[int]] = {}
    for entry in rows.group_by([*keys, "resolved"]).aggregate([([], "count_all")]).to_pylist():
        counts = groups.setdefault(tuple(entry[key] or "" for key in keys), [0, 0])  # type: ignore[arg-type]
        counts[bool(entry["resolved"])] += entry["count_all"]
    is_open = rows.filter(pc.invert(pc.fill_null(rows["resolved"], False)))
    found = [ErrorCode(*key, counts[0], counts[1], _examples(is_open, key, examples)) for key, counts in groups.items()]
    return sorted(found, key=lambda each: (-each.open, each.code, each.job, each.step))


def _examples(rows: pa.Table, key: tuple[str, str, str], count: int) -> list[dict[str, Any]]:
    for name, value in zip(("code", "job", "step"), key, strict=True):
        rows = rows.filter(pc.equal(pc.fill_null(rows[name], ""), value))
    first: list[dict[str, Any]] = rows.sort_by([("uri", "ascending"), ("clip_id", "ascending")]).slice(0, count).to_pylist()
    return [{name: row[name] for name in ("uri", "clip_id", "message", "attempt", "seconds", "time")} for row in first]


def _known(store: Store) -> str:
    codes = sorted(set(store.read("errors", ["code"])["code"].drop_null().to_pylist()))
    return f"codes: {', '.join(codes)}" if codes else "there is no error"
