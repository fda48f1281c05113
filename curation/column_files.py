"""Columns of existing rows written as files of their own, one a fragment, without the engine's join. One commit.

The engine's `merge_insert` joins the whole table with what is given and copies both; where most rows are set at once (a new
score, another policy) the keys are aligned here and the columns are written in the table's order, beside the files that are
there. The commit is the engine's own: atomic, checked against other writers, and it takes the fragments out of the indexes
of the columns until these are brought up to date.
"""

from __future__ import annotations

import contextlib
import dataclasses
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

LEAST_SHARE = 0.5
"""Of the table's rows; for fewer the engine's join writes less."""
BATCH_ROWS = 65_536
TOMBSTONE = -2
"""In place of a field's number: this file's column is no longer read."""


def write_columns(dataset: Any, key: str, data: pa.Table, check_keys: Callable[[], None]) -> int | None:
    """Sets the columns of `data` in the rows that have its keys; returns how many rows were.

    None, and nothing is changed, where this is not the way: few rows, rows deleted but still in the files, or another writer
    came between. `dataset`: lance.LanceDataset on a local path; `data`: the key and columns of the table.
    `check_keys` raises where the keys are no keys; those of the whole table, in its order, need no looking at.
    """
    fragments = dataset.get_fragments()
    if data.num_rows < LEAST_SHARE * dataset.count_rows() or any(f.num_deletions or f.metadata.overlays for f in fragments):
        return None
    present, given = dataset.to_table(columns=[key], batch_size=BATCH_ROWS)[key], data[key]
    places = None
    if not present.equals(given):
        check_keys()
        places = pc.index_in(present.combine_chunks(), given.combine_chunks())
    matched = len(present) - (places.null_count if places is not None else 0)
    if matched < LEAST_SHARE * len(present):
        return None
    columns = data.drop_columns([key])

    def part(fragment: Any, start: int) -> pa.Table:
        return _aligned(columns, places, start, fragment.physical_rows, fragment)

    return matched if _write(dataset, columns.column_names, part) else None


def write_in_order(dataset: Any, changed: np.ndarray, names: Sequence[str], rows: Callable[[int, int], pa.Table]) -> bool:
    """Sets the columns `names` in the order of the table, fragments without a changed row left out; whether it did.

    `changed`: which rows change, a bool for each of the table's; `rows(start, stop)`: the columns of those rows, asked for a
    fragment at a time. False, and nothing is written, where this is not the way, as `write_columns` has it.
    """
    fragments = dataset.get_fragments()
    ends = np.cumsum([fragment.physical_rows for fragment in fragments])
    touched = [changed[end - fragment.physical_rows : end] for fragment, end in zip(fragments, ends, strict=True)]
    touched = [part for part in touched if part.any()]
    few = sum(map(np.count_nonzero, touched)) < LEAST_SHARE * sum(map(len, touched))
    if few or any(fragment.num_deletions or fragment.metadata.overlays for fragment in fragments):
        return False

    def part(fragment: Any, start: int) -> pa.Table | None:
        stop = start + fragment.physical_rows
        return rows(start, stop) if changed[start:stop].any() else None

    return _write(dataset, names, part)


def _write(dataset: Any, names: Sequence[str], part: Callable[[Any, int], pa.Table | None]) -> bool:
    """Writes the columns of each fragment that `part(fragment, its first row)` gives rows for; False when another writer was first."""
    numbers = {field.name(): _numbers(field) for field in dataset.lance_schema.fields()}
    leaves = [number for name in names for number in numbers[name][-1:]]
    with _removed_unless_committed() as written:
        updated, start = [], 0
        for fragment in dataset.get_fragments():
            rows = part(fragment, start)
            if rows is not None:
                updated.append(_with_file(fragment.metadata, leaves, _write_file(dataset, rows, written), dataset))
            start += fragment.physical_rows
        modified = sorted({number for name in names for number in numbers[name]})
        if not _commit(dataset, updated, modified):
            return False
        written.clear()
    return True


def unchanged_columns(old: Any, new: Any) -> set[str]:
    """Columns that two versions of a table read from the same files, row for row; nothing of them is read to know it."""
    before, after = (
        {field.name(): _files_of(dataset, _numbers(field)[-1]) for field in dataset.lance_schema.fields()} for dataset in (old, new)
    )
    return {name for name, files in before.items() if after.get(name) == files}


def _files_of(dataset: Any, leaf: int) -> list[tuple[object, ...]]:
    """Per fragment: which it is, its deleted rows, and the file that holds the column."""
    return [
        (
            fragment.fragment_id,
            fragment.physical_rows,
            str(fragment.deletion_file()),
            *(file.path for file in fragment.data_files() if leaf in file.fields),
        )
        for fragment in dataset.get_fragments()
    ]


def _numbers(field: Any) -> list[int]:
    """The numbers of a field and, last, of the leaf that holds its values."""
    return [field.id(), *(number for child in field.children() for number in _numbers(child))]


def _aligned(columns: pa.Table, places: pa.Array | None, start: int, rows: int, fragment: Any) -> pa.Table:
    """The fragment's rows of the columns; rows that were not given keep their values."""
    if places is None:
        return columns.slice(start, rows)
    here = places.slice(start, rows)
    part = columns.take(here)
    if here.null_count:
        old = fragment.to_table(columns=columns.column_names)
        for index, field in enumerate(columns.schema):
            part = part.set_column(index, field, pc.if_else(here.is_valid(), part[field.name], old[field.name]))
    return part


def _write_file(dataset: Any, part: pa.Table, written: list[Path]) -> Path:
    from lance.file import LanceFileWriter

    path = Path(dataset.uri) / "data" / f"{uuid.uuid4().hex}.lance"
    written.append(path)
    with LanceFileWriter(str(path), part.schema, version=dataset.data_storage_version) as writer:
        for batch in part.to_batches(max_chunksize=BATCH_ROWS):
            writer.write_batch(batch)
    return path


def _with_file(metadata: Any, leaves: list[int], path: Path, dataset: Any) -> Any:
    """The fragment's metadata with the new file; files of which nothing is read any more are left out."""
    from lance.fragment import DataFile

    files = []
    for file in metadata.files:
        fields = [TOMBSTONE if number in leaves else number for number in file.fields]
        if any(number != TOMBSTONE for number in fields):
            files.append(
                DataFile(
                    file.path,
                    fields,
                    file.column_indices,
                    file.file_major_version,
                    file.file_minor_version,
                    file.file_size_bytes,
                    file.base_id,
                )
            )
    major, minor = map(int, dataset.data_storage_version.split("."))
    files.append(DataFile(path.name, leaves, list(range(len(leaves))), major, minor, path.stat().st_size))
    return dataclasses.replace(metadata, files=files)


def _commit(dataset: Any, fragments: list[Any], modified: list[int]) -> bool:
    """Whether the commit went through; False when another machine's writer came first."""
    import lance

    operation = lance.LanceOperation.Update(updated_fragments=fragments, fields_modified=modified, update_mode="rewrite_columns")
    try:
        lance.LanceDataset.commit(dataset.uri, operation, read_version=dataset.version)
    except OSError as error:
        if "conflict" not in str(error).lower():
            raise
        return False
    return True


@contextlib.contextmanager
def _removed_unless_committed() -> Iterator[list[Path]]:
    """Files that were written; those that are still listed at the end are no part of the table."""
    written: list[Path] = []
    try:
        yield written
    finally:
        for path in written:
            path.unlink(missing_ok=True)
