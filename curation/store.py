"""The one door to the LanceDB directory: open, read, upsert, merge columns, errors, runs, tags.

Every call that writes makes one commit. A writer holds a lock file per table for the commit (the lock dies
with its process) and Lance's own commit is atomic, so `kill -9` at any moment leaves the table at the commit
before or after; the same call again gives the same rows. The tables open with
`lancedb.connect(path).open_table(name)` too; we go through pylance, which imports in a ninth of the time
(0.33 s against 2.9 s) once pandas is kept out of it.
"""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.column_files import write_columns, write_in_order
from curation.expression import QueryError, any_of, check_column, compile_filter
from curation.held_off_pandas import no_pandas
from curation.schema import KEYS, TABLES
from curation.step import Lineage
from curation.whole_files import write_text

COMMIT_RETRIES = 20
"""Attempts of one commit against writers on other machines; on this machine the lock file orders them."""
INDEXES: dict[str, dict[str, str]] = {
    "clips": {
        "clip_id": "BTREE",
        "source_id": "BTREE",
        "state": "BITMAP",
        "media_type": "BITMAP",
        "dataset": "BITMAP",
    },
    "captions": {"clip_id": "BTREE"},
}
"""Columns whose values few rows share, or that a few values fill, and the kind of index. No score: most clips pass a threshold, and the
index then costs ten times the CPU of reading the column, which is quick for any threshold (2 M clips: 0.45 against 0.04 s)."""
READ_ROWS = 65_536
"""Of a batch that the engine decodes at once; its own 8192 cost 1.7 times the CPU on 2 M clips."""
READ_AHEAD = 4
"""Batches that are decoded before they are asked for, where rows are read a batch at a time; the engine's own 16 held 0.3 GB."""
COMMIT_TIMEOUT = timedelta(seconds=120)
NEWS = "target.resolved OR target.message IS DISTINCT FROM source.message"
"""When an error row that is there already is written anew: a later attempt failed again."""


class StoreError(RuntimeError):
    """The store cannot do what was asked; the message says what and to which table."""


class MissingStoreError(StoreError):
    """There is no store at the path. A user's mistake."""


@dataclass(frozen=True)
class Tag:
    """A named, unchanging version of `clips`: a dataset release."""

    name: str
    version: int
    note: str
    card: dict[str, Any]
    """What the release holds: rows, kept, hours, policy, versions."""


def error_id(job: str, step: str, item: str, code: str, run_id: str) -> str:
    """Key of an error row: 32 hex of the sha256 of what failed, how, and in which lineage."""
    return hashlib.sha256(json.dumps([job, step, item, code, run_id]).encode()).hexdigest()[:32]


class Store:
    """The tables of `curation.schema.TABLES` under one directory or object-store URL."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._datasets: dict[str, Any] = {}

    @classmethod
    def open(cls, path: Path | str, create: bool = True) -> Store:
        """The store at a path. Creates absent tables; with `create=False` raises MissingStoreError when there is none."""
        store = cls(str(path))
        if not create and not store._exists("clips"):
            raise MissingStoreError(f"there is no store at {path}; curate first: flashvideo curate --root ROOT")
        if create:
            if store._is_local:
                Path(store.path).mkdir(parents=True, exist_ok=True)
            for name in TABLES:
                store._create(name)
        return store

    # reading

    def read(
        self,
        table: str,
        columns: Sequence[str] | None = None,
        where: str | None = None,
        tag: str | None = None,
        ordered: bool = True,
    ) -> pa.Table:
        """Rows of a table, sorted by key (`ordered=False`: in the engine's order, which changes with every write).

        `where` is filter text over known columns (`curation.expression`); `tag` reads that release of `clips`.
        Raises QueryError for unknown columns, StoreError for an unknown tag.
        """
        schema = schema_of(table)
        wanted = [check_column(name, schema) for name in (schema.names if columns is None else columns)]
        keys = [key for key in KEYS[table] if key not in wanted] if ordered else []
        dataset = self.dataset(table, tag)
        filter_ = filter_over(dataset, table, where) if where else None
        known = set(dataset.schema.names)  # an older version's table, opened to read, or its release
        rows = dataset.to_table(columns=[name for name in wanted + keys if name in known], filter=filter_, batch_size=READ_ROWS)
        rows = widened(rows, wanted + keys, schema)
        if ordered:
            rows = rows.sort_by([(key, "ascending") for key in KEYS[table]])
        return rows.select(wanted).combine_chunks()

    def count(self, table: str, where: str | None = None, tag: str | None = None) -> int:
        """Number of rows that the filter text lets through."""
        dataset = self.dataset(table, tag)
        number: int = dataset.count_rows(filter=filter_over(dataset, table, where) if where else None)
        return number

    def version(self, table: str) -> int:
        """The table's newest version number; every commit makes a new one."""
        number: int = self.dataset(table).version
        return number

    def dataset(self, table: str, tag: str | None = None) -> Any:
        """The engine's own object (lance.LanceDataset) at the newest version, or at a tag of `clips`."""
        schema_of(table)
        if tag is not None:
            if table != "clips":
                raise StoreError(f"tags are releases of clips; table {table} has none")
            return self._at_tag(tag)
        if table not in self._datasets:
            if not self._exists(table):
                raise MissingStoreError(f"there is no table {table} at {self.path}")
            self._datasets[table] = lance().dataset(self._uri(table))
        else:
            self._datasets[table].checkout_latest()
        return self._datasets[table]

    def at_version(self, table: str, version: int) -> Any:
        """The engine's own object at a version that does not move on."""
        schema_of(table)
        return lance().dataset(self._uri(table), version=version)

    # writing

    def upsert(self, table: str, rows: pa.Table | pa.RecordBatch, replace_within: str | None = None) -> int:
        """Adds rows, or changes those whose key exists; returns how many rows were given. One commit.

        Columns that are absent from `rows` keep their values in existing rows and are null in new ones.
        `replace_within="source_id"`: in the same commit, rows of the table that share a source_id with `rows` and
        whose key is not among them are deleted (e.g. the clips of older shot settings).
        Raises ValueError for unknown columns, types that do not fit, missing, null or repeated keys.
        """
        data = _conform(table, rows)
        if data.num_rows == 0:
            return 0
        with self._committing(table) as dataset:
            merge = self._merge(dataset, table).when_matched_update_all().when_not_matched_insert_all()
            if replace_within is not None:
                values = data.column(replace_within).unique().drop_null().to_pylist()
                merge = merge.when_not_matched_by_source_delete(compile_filter(any_of(replace_within, values), TABLES[table]))
            merge.execute(data)
        return data.num_rows

    def merge_columns(self, table: str, columns: pa.Table | pa.RecordBatch) -> int:
        """Sets the given columns of existing rows by key; keys that the table lacks are left out. Returns rows changed. One commit.

        Writes new column files beside the old ones and copies no other column.
        """
        data = _conform(table, columns, keys_too=False)
        if data.num_columns <= len(KEYS[table]):
            raise ValueError(f"merge_columns({table}) was given the key only; add the columns to set")
        with self._committing(table) as dataset:
            if data.num_rows == 0 or dataset.count_rows() == 0:
                _check_keys(table, data)
                return 0
            if self._is_local and len(KEYS[table]) == 1:
                changed = write_columns(dataset, KEYS[table][0], data, lambda: _check_keys(table, data))
                if changed is not None:
                    return changed
                dataset.checkout_latest()
            _check_keys(table, data)
            partial = data.num_columns < len(TABLES[table])
            merge = self._merge(dataset, table).when_matched_update_all()
            stats = (merge.write_mode("rewrite_columns") if partial else merge).execute(data)
        return int(stats["num_updated_rows"])

    def set_columns(self, table: str, version: int, changed: np.ndarray, names: Sequence[str], rows: Callable[[int, int], pa.Table]) -> int:
        """Sets columns of rows as they stand in that version, in the engine's order; returns how many changed. One commit.

        `changed`: bool per row of the version; `rows(start, stop)` gives the columns `names` of those rows and is asked a piece at a
        time, so that they need not all be in memory. Rows are told apart by place while the version is the newest, else by key.
        """
        fields = pa.schema([schema_of(table).field(name) for name in names])
        key, number = KEYS[table][0], int(np.count_nonzero(changed))
        if not number:
            return 0
        with self._committing(table) as dataset:
            in_place = self._is_local and dataset.version == version
            if in_place and write_in_order(dataset, changed, names, lambda *span: rows(*span).cast(fields)):
                return number
        parts, start = [], 0
        for batch in self.at_version(table, version).to_batches(columns=[key], batch_size=READ_ROWS):
            some = pa.array(changed[start : start + batch.num_rows])
            given = rows(start, start + batch.num_rows)
            parts.append(given.add_column(0, key, batch.column(key)).filter(some))
            start += batch.num_rows
        return self.merge_columns(table, pa.concat_tables(parts))

    def delete(self, table: str, where: str) -> int:
        """Deletes the rows that the filter text names; returns how many. One commit; tags keep them."""
        filter_ = compile_filter(where, schema_of(table))
        with self._committing(table) as dataset:
            doomed = int(dataset.count_rows(filter=filter_))
            if doomed:
                dataset.delete(filter_)
        return doomed

    def append_errors(self, rows: pa.Table | pa.RecordBatch | Sequence[Mapping[str, Any]]) -> int:
        """Adds error rows; one that exists stays as it is, unless it was resolved (it is open again) or says something else now.

        Returns rows given. `error_id`, `resolved` and `time` are filled in where absent.
        """
        given = rows if isinstance(rows, Sequence) else rows.to_pylist()
        now = datetime.now(UTC)
        by_id = {row["error_id"]: row for row in (_error_row(row, now) for row in given)}
        if not by_id:
            return 0
        data = _conform("errors", pa.Table.from_pylist(list(by_id.values()), schema=TABLES["errors"]))
        with self._committing("errors") as dataset:
            merge = self._merge(dataset, "errors").when_matched_update_all(NEWS).when_not_matched_insert_all()
            merge.execute(data)
        return len(given)

    def resolve_errors(
        self,
        job: str,
        step: str | None = None,
        *,
        uris: Iterable[str] | None = None,
        source_ids: Iterable[str] | None = None,
        clip_ids: Iterable[str] | None = None,
    ) -> int:
        """Marks open errors of a job (and step) as resolved, for the given items or for all. Returns how many."""
        where = f"resolved = false and {any_of('job', [job])}" + (f" and {any_of('step', [step])}" if step else "")
        open_errors = self.read("errors", ["error_id", "uri", "source_id", "clip_id"], where)
        for column, items in (("uri", uris), ("source_id", source_ids), ("clip_id", clip_ids)):
            if items is not None:
                open_errors = open_errors.filter(pc.is_in(open_errors[column], pa.array(list(items), pa.string())))
        if open_errors.num_rows == 0:
            return 0
        done = pa.array([True] * open_errors.num_rows)
        return self.merge_columns("errors", pa.table({"error_id": open_errors["error_id"], "resolved": done}))

    def register_run(
        self, lineage: Lineage, device: str, seconds: float, rows_in: int, rows_ok: int, rows_failed: int, table: str = "clips"
    ) -> str:
        """Writes the registry row of a lineage, newest execution wins. Returns its run_id.

        `table`: what the job wrote, all of it committed; its newest version is recorded.
        """
        row = {
            "run_id": lineage.run_id,
            "job": lineage.job,
            "step": lineage.step,
            "version": lineage.version,
            "model": lineage.model,
            "revision": lineage.revision,
            "weights_sha256": lineage.weights_sha256,
            "parameters": lineage.parameters_json,
            "parameters_hash": hashlib.sha256(lineage.parameters_json.encode()).hexdigest(),
            "device": device,
            "seconds": seconds,
            "rows_in": rows_in,
            "rows_ok": rows_ok,
            "rows_failed": rows_failed,
            "table_version": self.version(table),
            "time": datetime.now(UTC),
        }
        self.upsert("runs", pa.Table.from_pylist([row], schema=TABLES["runs"]))
        return lineage.run_id

    # releases

    def tag(self, name: str, note: str, card: Mapping[str, Any] | None = None) -> Tag:
        """Names the present version of `clips` as a release, its card beside the tables. A name that exists stays as it is."""
        with self._committing("clips") as dataset:
            if name not in dataset.tags.list():
                # The card first: a kill between the two leaves a card without a tag, which the next call writes again.
                self._write_card(name, {"tag": name, "note": note, "version": dataset.version, **(card or {})})
                dataset.tags.create(name, dataset.version)
        return self.tags()[name]

    def tags(self) -> dict[str, Tag]:
        """Every release, by name, oldest first."""
        versions = {name: int(entry["version"]) for name, entry in self.dataset("clips").tags.list().items()}
        tags = {}
        for name in sorted(versions, key=lambda name: (versions[name], name)):
            card = self._read_card(name)
            tags[name] = Tag(name, versions[name], str(card.get("note", "")), card)
        return tags

    # upkeep

    def compact(self, older_than: timedelta = timedelta(hours=1)) -> None:
        """Joins small fragments, brings indexes up to date, and drops untagged versions older than that; tagged ones stay.

        Called at the end of a scheduled run, before the release is tagged, so that release and newest rows share files.
        """
        for table in TABLES:
            with self._committing(table) as dataset:
                if len(dataset.get_fragments()) > 1 or any(fragment.num_deletions for fragment in dataset.get_fragments()):
                    dataset.optimize.compact_files()
                if dataset.list_indices():
                    dataset.optimize.optimize_indices()
                dataset.cleanup_old_versions(older_than=older_than, error_if_tagged_old_versions=False)

    def build_indexes(self) -> list[str]:
        """Makes the scalar indexes of `INDEXES` that are absent; returns their columns as table.column. One commit each.

        `compact` keeps them up to date; rows written since are found without the index, so answers are always whole.
        """
        built = []
        for table, columns in INDEXES.items():
            with self._committing(table) as dataset:
                if dataset.count_rows() == 0:
                    continue
                present = {name for index in dataset.describe_indices() for name in index.field_names}
                for column, kind in columns.items():
                    if column not in present:
                        dataset.create_scalar_index(column, kind)
                        built.append(f"{table}.{column}")
        return built

    # inside

    @property
    def _is_local(self) -> bool:
        return "://" not in self.path

    def _uri(self, table: str) -> str:
        return f"{self.path.rstrip('/')}/{table}.lance"

    def _exists(self, table: str) -> bool:
        if self._is_local:
            versions = Path(self._uri(table)) / "_versions"
            return versions.is_dir() and any(entry.suffix == ".manifest" for entry in versions.iterdir())
        try:
            lance().dataset(self._uri(table))
        except ValueError:
            return False
        return True

    def _create(self, table: str) -> None:
        """Makes the table where it is absent, and columns that an older version did not have."""
        schema = TABLES[table]
        if self._exists(table) and set(schema.names) <= set(self.dataset(table).schema.names):
            return
        with self._locked(table):
            if self._exists(table):
                dataset = self.dataset(table)
                absent = [field for field in schema if field.name not in dataset.schema.names]
                if absent:
                    dataset.add_columns(pa.schema(absent))
            else:
                lance().write_dataset(schema.empty_table(), self._uri(table), schema=schema, enable_stable_row_ids=True)

    def _at_tag(self, tag: str) -> Any:
        known = self.dataset("clips").tags.list()
        if tag not in known:
            close = difflib.get_close_matches(tag, known, n=1, cutoff=0.4)
            hint = f'; did you mean "{close[0]}"?' if close else f"; tags: {', '.join(known) or '(none yet)'}"
            raise StoreError(f"there is no tag {tag!r}{hint}")
        return self.at_version("clips", int(known[tag]["version"]))

    @contextlib.contextmanager
    def _committing(self, table: str) -> Iterator[Any]:
        """The newest version of a table, no other process of this machine writing it."""
        with self._locked(table):
            yield self.dataset(table)

    @contextlib.contextmanager
    def _locked(self, table: str) -> Iterator[None]:
        if not self._is_local:  # an object store has no locks; Lance's conditional put and the retries decide there
            yield
            return
        with open(Path(self.path) / f".{table}.lock", "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _merge(self, dataset: Any, table: str) -> Any:
        # With an index on the key, pylance 14.0.2 joins inside a 300 MB pool that cannot spill: 200 k rows x 8 columns fail.
        return dataset.merge_insert(list(KEYS[table])).use_index(False).conflict_retries(COMMIT_RETRIES).retry_timeout(COMMIT_TIMEOUT)

    def _card_path(self, name: str) -> Path:
        if not self._is_local:
            raise StoreError(f"dataset cards need a local store; {self.path} is not")
        return Path(self.path) / "releases" / f"{name}.json"

    def _write_card(self, name: str, card: dict[str, Any]) -> None:
        path = self._card_path(name)
        path.parent.mkdir(exist_ok=True)
        write_text(path, json.dumps(card, indent=1, sort_keys=True))

    def _read_card(self, name: str) -> dict[str, Any]:
        path = self._card_path(name)
        card: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
        return card


def schema_of(table: str) -> pa.Schema:
    """The declared schema. Raises QueryError for an unknown table."""
    if table not in TABLES:
        close = difflib.get_close_matches(table, TABLES, n=1, cutoff=0.5)
        raise QueryError(f"no table {table!r}{f'; did you mean {close[0]}?' if close else ''}; tables: {', '.join(TABLES)}")
    return TABLES[table]


Rows = TypeVar("Rows", pa.Table, pa.RecordBatch)


def widened(rows: Rows, names: Sequence[str], schema: pa.Schema) -> Rows:
    """The columns of these names; null, and of the schema's type, where an older version's rows lack them."""
    known = set(rows.schema.names)
    fields = [(rows.schema if name in known else schema).field(name) for name in names]
    columns = [rows.column(field.name) if field.name in known else pa.nulls(rows.num_rows, field.type) for field in fields]
    return type(rows).from_arrays(columns, schema=pa.schema(fields))


def filter_over(dataset: Any, table: str, where: str) -> str:
    """The engine's SQL for filter text. Raises QueryError (one line) for a mistake, and for a column that is newer than this table."""
    schema, known = schema_of(table), set(dataset.schema.names)
    sql = compile_filter(where, schema)
    if known.issuperset(schema.names):
        return sql
    try:
        return compile_filter(where, pa.schema([field for field in schema if field.name in known]))
    except QueryError as error:
        raise QueryError(
            f"{error} (an older version made this table of {table}; flashvideo curate adds the columns that are new)"
        ) from None


def lance() -> Any:
    """The pylance module. Its import pulls pandas in through pyarrow.dataset (1 s); we hold that off until it is wanted."""
    if "lance" not in sys.modules and "pandas" not in sys.modules and "pyarrow.dataset" not in sys.modules:
        with no_pandas():
            import pyarrow.dataset  # noqa: F401 asks for pandas once, and takes no for an answer until .to_pandas()
    import lance as module

    return module


def _conform(table: str, rows: pa.Table | pa.RecordBatch, keys_too: bool = True) -> pa.Table:
    """The rows with the schema's column types and order, keys checked (or to be checked by the caller)."""
    schema = schema_of(table)
    data = pa.Table.from_batches([rows]) if isinstance(rows, pa.RecordBatch) else rows
    for name in data.column_names:
        if name not in schema.names:
            check_column(name, schema)
    missing = [key for key in KEYS[table] if key not in data.column_names]
    if missing:
        raise ValueError(f"rows for table {table} lack the key column {', '.join(missing)}; they have {', '.join(data.column_names)}")
    fields = [schema.field(name) for name in schema.names if name in data.column_names]
    columns = []
    for field in fields:
        try:
            columns.append(data.column(field.name).cast(field.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise ValueError(f"{table}.{field.name} is {field.type}; the rows have {data.column(field.name).type}: {error}") from None
    conformed = pa.table(columns, schema=pa.schema(fields))
    if keys_too:
        _check_keys(table, conformed)
    return conformed


def _check_keys(table: str, data: pa.Table) -> None:
    keys = list(KEYS[table])
    for key in keys:
        if data[key].null_count:
            raise ValueError(f"{data[key].null_count} of {data.num_rows} rows for table {table} have no {key}")
    if len(keys) == 1 and pc.count_distinct(data[keys[0]]).as_py() == data.num_rows:  # half the time of grouping
        return
    groups = data.select(keys).group_by(keys).aggregate([([], "count_all")])
    if groups.num_rows < data.num_rows:
        twice = groups.filter(pc.greater(groups["count_all"], 1)).select(keys).slice(0, 1).to_pylist()[0]
        raise ValueError(f"rows for table {table} repeat a key: {twice}; {data.num_rows - groups.num_rows} rows too many")


def _error_row(row: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    filled = dict(row)
    unknown = set(filled) - set(TABLES["errors"].names)
    if unknown:
        check_column(min(unknown), TABLES["errors"])
    if not filled.get("error_id"):
        item = filled.get("clip_id") or filled.get("uri") or filled.get("source_id") or ""
        job, step, code, run_id = (filled.get(name) or "" for name in ("job", "step", "code", "run_id"))
        filled["error_id"] = error_id(job, step, item, code, run_id)
    filled["resolved"] = bool(filled.get("resolved"))
    filled["time"] = filled.get("time") or now
    return filled
