"""What differs between two releases of the dataset (tags of `clips`): clips added, removed, and changed. Light."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curation.column_files import unchanged_columns
from curation.store import READ_AHEAD, READ_ROWS, Store

COMPARED = ("split", "caption", "subsets", "uri")
"""Columns of a kept clip that training reads, or that say where it lies."""
SHOWN_COLUMNS = ("clip_id", "uri", "start_us", "end_us", "split")
SHOWN = 5
"""Clips of each kind that the text names."""


@dataclass(frozen=True)
class ReleaseDiff:
    """Kept clips of release `old` against those of `new`."""

    old: str
    new: str
    old_clips: int
    new_clips: int
    old_hours: float
    new_hours: float
    added: list[dict[str, Any]]
    """clip_id, uri, start_us, end_us, split."""
    removed: list[dict[str, Any]]
    """The same, and why: its reject_reason in the new release, or that it is in no row there."""
    changed: list[dict[str, Any]]
    """clip_id, column, old, new: a row for every column of COMPARED that differs."""

    def __str__(self) -> str:
        lines = [
            f"{self.old} -> {self.new}: {self.old_clips} -> {self.new_clips} clips, {self.old_hours:.2f} -> {self.new_hours:.2f} h",
            f"added    {len(self.added)}",
            *(f"  {_place(row)}  {row['split'] or '-'}" for row in self.added[:SHOWN]),
            f"removed  {len(self.removed)}{_counted(row['why'] for row in self.removed)}",
            *(f"  {_place(row)}  {row['why']}" for row in self.removed[:SHOWN]),
            f"changed  {len({row['clip_id'] for row in self.changed})}{_counted(row['column'] for row in self.changed)}",
            *(f"  {row['clip_id'][:12]}  {row['column']}: {_short(row['old'])} -> {_short(row['new'])}" for row in self.changed[:SHOWN]),
        ]
        return "\n".join(lines)


def diff(store: Store, old: str, new: str) -> ReleaseDiff:
    """Compares two tags. Raises StoreError for one that does not exist."""
    before, after = (store.dataset("clips", tag) for tag in (old, new))
    same = unchanged_columns(before, after)
    compared = [name for name in COMPARED if name not in same]
    if "clip_id" in same:
        return _by_place(_Sides(old, before, new, after, same), compared)
    columns = list(dict.fromkeys([*SHOWN_COLUMNS, "duration_s", *compared]))
    kept_before, kept_after = (store.read("clips", columns, "state = 'kept'", tag=tag, ordered=False) for tag in (old, new))
    added = _sorted(kept_after.filter(_absent(kept_after, kept_before)))
    removed = _sorted(kept_before.filter(_absent(kept_before, kept_after)))
    after = store.read("clips", ["clip_id", "state", "reject_reason"], "state != 'kept' or state is null", tag=new, ordered=False)
    shown = list(SHOWN_COLUMNS)
    reasons = _at(after, removed["clip_id"], ["clip_id", "state", "reject_reason"]).to_pylist()
    why = ["no such clip any more" if row["clip_id"] is None else row["reject_reason"] or row["state"] for row in reasons]
    return ReleaseDiff(
        old,
        new,
        kept_before.num_rows,
        kept_after.num_rows,
        _hours(kept_before),
        _hours(kept_after),
        added.select(shown).to_pylist(),
        [row | {"why": reason} for row, reason in zip(removed.select(shown).to_pylist(), why, strict=True)],
        _changes(kept_before, kept_after, compared),
    )


@dataclass(frozen=True)
class _Sides:
    """Two releases with the same clips in the same order: only columns were written in between."""

    old: str
    before: Any
    new: str
    after: Any
    same: set[str]

    def batches(self, columns: list[str]) -> Iterator[tuple[pa.Table, pa.Table]]:
        """The same clips of both, a batch at a time; columns that did not change are read once."""
        other = [name for name in columns if name not in self.same]
        one = self.before.to_batches(columns=columns, batch_size=READ_ROWS, batch_readahead=READ_AHEAD)
        two = self.after.to_batches(columns=other, batch_size=READ_ROWS, batch_readahead=READ_AHEAD) if other else repeat(None)
        for then, now in zip(one, two, strict=bool(other)):
            rows, wider = pa.Table.from_batches([then]), pa.Table.from_batches([then])
            for name in other:
                assert now is not None and now.num_rows == rows.num_rows  # fragments are equal, so batches are
                wider = wider.set_column(columns.index(name), name, now.column(name))
            yield rows, wider


def _by_place(sides: _Sides, compared: list[str]) -> ReleaseDiff:
    """The diff of releases with the same clips in the same order, without more than a batch in memory besides what differs."""
    shown, clips, hours = list(SHOWN_COLUMNS), [0, 0], [0.0, 0.0]
    added: list[dict[str, Any]] = []
    removed: list[dict[str, Any]] = []
    changed: list[dict[str, Any]] = []
    for before, after in sides.batches(list(dict.fromkeys([*shown, "duration_s", "state", "reject_reason", *compared]))):
        was, is_now = (pc.fill_null(pc.equal(rows["state"], "kept"), False) for rows in (before, after))
        kept_before, kept_after = before.filter(was), after.filter(is_now)
        for place, kept in enumerate((kept_before, kept_after)):
            clips[place] += kept.num_rows
            hours[place] += _hours(kept)
        added += after.filter(pc.and_not(is_now, was)).select(shown).to_pylist()
        gone = pc.and_not(was, is_now)
        reasons = after.filter(gone).select(["state", "reject_reason"]).to_pylist()
        rows = before.filter(gone).select(shown).to_pylist()
        removed += [row | {"why": found["reject_reason"] or found["state"]} for row, found in zip(rows, reasons, strict=True)]
        both = pc.and_(was, is_now)
        changed += _changes(before.filter(both), after.filter(both), compared)
    for found in (added, removed):
        found.sort(key=lambda row: row["clip_id"])
    changed.sort(key=lambda row: (COMPARED.index(row["column"]), row["clip_id"]))
    return ReleaseDiff(sides.old, sides.new, clips[0], clips[1], hours[0], hours[1], added, removed, changed)


def _changes(before: pa.Table, after: pa.Table, compared: list[str]) -> list[dict[str, Any]]:
    """A row for every clip and column that differs, in the order of the columns and clip_id."""
    if not compared:
        return []
    if before["clip_id"].equals(after["clip_id"]):
        stayed, now = before, after
    else:
        places = pc.index_in(before["clip_id"].combine_chunks(), after["clip_id"].combine_chunks())
        stayed = before.filter(places.is_valid())
        now = after.select(compared).take(places.drop_null())
    changed = []
    for column in compared:
        then, present = _comparable(stayed[column]), _comparable(now[column])
        if then.equals(present):
            continue
        places = pc.indices_nonzero(pc.fill_null(pc.not_equal(then, present), pc.xor(then.is_null(), present.is_null())))
        values = (table.take(places) for table in (stayed["clip_id"], stayed[column], now[column]))
        rows = _sorted(pa.table(dict(zip(("clip_id", "old", "new"), values, strict=True)))).to_pylist()
        changed += [{"clip_id": row["clip_id"], "column": column, "old": row["old"], "new": row["new"]} for row in rows]
    return changed


def _absent(rows: pa.Table, others: pa.Table) -> pa.Array:
    """Which of the rows' clips are not among the others."""
    return pc.invert(pc.is_in(rows["clip_id"].combine_chunks(), others["clip_id"].combine_chunks()))


def _sorted(rows: pa.Table) -> pa.Table:
    return rows.sort_by([("clip_id", "ascending")])


def _comparable(values: pa.ChunkedArray) -> pa.Array:
    """Lists as one text, so that they compare."""
    array = values.combine_chunks()
    return pc.binary_join(pc.cast(array, pa.list_(pa.string())), ",") if pa.types.is_list(array.type) else array


def _at(rows: pa.Table, clip_ids: pa.ChunkedArray, columns: list[str]) -> pa.Table:
    """The rows of these clips in their order; nulls where there is none."""
    places = pc.index_in(clip_ids.combine_chunks(), rows["clip_id"].combine_chunks())
    return rows.select(columns).combine_chunks().take(places)


def _hours(rows: pa.Table) -> float:
    return float(pc.sum(rows["duration_s"]).as_py() or 0.0) / 3600


def _place(row: dict[str, Any]) -> str:
    start, end = (row["start_us"] or 0) / 1e6, (row["end_us"] or 0) / 1e6
    return f"{row['clip_id'][:12]}  {(row['uri'] or '').rsplit('/', 1)[-1]} {start:.2f}-{end:.2f} s"


def _counted(names: Any) -> str:
    counts = Counter(names).most_common(5)
    return f" ({', '.join(f'{name} {count}' for name, count in counts)})" if counts else ""


def _short(value: Any) -> str:
    text = "-" if value is None else str(value)
    return text if len(text) <= 48 else text[:47] + "…"
