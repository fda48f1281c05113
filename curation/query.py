"""Questions to the store: rows by score, counts, histograms, contact sheets; as text, files or Arrow. Light: no torch.

store = curation.open("root/store")
store.clips.where("motion_proxy >= 1.1").order_by("-aesthetic_proxy").limit(10).to_pandas()
"""

from __future__ import annotations

import csv
import html
import io
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from curation.expression import QueryError, check_column, compile_filter, kind_of, unit_of
from curation.schema import KEYS, TABLES
from curation.store import READ_ROWS, MissingStoreError, Store, StoreError, filter_over, lance, schema_of, widened

if TYPE_CHECKING:
    import pandas
    from PIL.Image import Image

    from curation.exports import Exported, Say
    from curation.releases import ReleaseDiff

PRINTED = ("table", "json", "csv")
"""Formats of an answer on the terminal; files have more (`curation.exports`)."""
TABLE_ROWS = 20
"""Rows of a printed table where no limit is given."""
SHOWN_ROWS = 10
"""Rows of a question in a notebook."""
SHEET_CLIPS = 60
"""Clips of a contact sheet where no limit is given."""
CAPTION_WIDTH = 48
ALL_COLUMNS = "all"
"""As a list of columns: every one but vectors."""
MOST_ROWS = 2**63 - 1
"""The engine counts rows in 64 bits."""

DEFAULT_COLUMNS = {
    "clips": (
        "clip_id",
        "uri",
        "media_type",
        "start_us",
        "end_us",
        "motion_proxy",
        "motion_raft",
        "aesthetic_proxy",
        "aesthetic",
        "piqe",
        "split",
        "state",
        "reject_reason",
        "caption",
    ),
    "sources": ("uri", "status", "media_type", "width", "height", "frame_rate_hz", "duration_s", "codec", "corrupt_frames"),
    "errors": ("job", "step", "code", "uri", "clip_id", "message", "resolved"),
    "runs": ("run_id", "job", "step", "version", "model", "device", "seconds", "rows_in", "rows_ok", "rows_failed"),
}
"""What is shown where no columns are asked for; other tables show all but lists."""


@dataclass(frozen=True)
class Query:
    """A question to one table, answered when it is read. Every method that narrows it returns a new question."""

    store: Store
    table: str
    filters: tuple[str, ...] = ()
    order: tuple[str, ...] = ()
    chosen: tuple[str, ...] | None = None
    """Columns that are read; None: all."""
    most: int | None = None
    at_tag: str | None = None

    def __repr__(self) -> str:
        return f"<{self.words}; {self.store.path}>"

    @property
    def words(self) -> str:
        """The question as text; nothing is read."""
        words = [self.table if self.at_tag is None else f"{self.table} at {self.at_tag}"]
        words += [f"where {' and '.join(f'({text})' if len(self.filters) > 1 else text for text in self.filters)}"] if self.filters else []
        words += [f"order by {', '.join(self.order)}"] if self.order else []
        words += [f"limit {self.most}"] if self.most is not None else []
        words += [f"columns {', '.join(self.chosen)}"] if self.chosen is not None else []
        return " ".join(words)

    def _repr_html_(self) -> str:
        """What a notebook shows: the question, the number of its rows, and the first of them."""
        shown = self if self.chosen is not None else self.columns(*_default_columns(self.table))
        first = shown.limit(min(SHOWN_ROWS, self.most or SHOWN_ROWS)).to_pandas()
        total = self.count() if self.most is None else min(self.most, self.count())
        return f"<p>{html.escape(repr(self))}: {total} rows</p>{first.to_html(index=False, na_rep='–', max_cols=None)}"

    def where(self, text: str) -> Query:
        """Narrows to rows for which the filter text holds. Raises QueryError at once for a mistake."""
        compile_filter(text, self.schema)
        return replace(self, filters=(*self.filters, text))

    def order_by(self, *names: str) -> Query:
        """Sorts by columns, `-name` is descending; unknown values come last, ties go by key."""
        for name in names:
            kind = kind_of(self.schema.field(check_column(name.lstrip("+-"), self.schema)).type)
            if kind in ("list", "vector"):
                raise QueryError(f"cannot order by {name.lstrip('+-')}: it is a {kind}")
        return replace(self, order=(*self.order, *names))

    def limit(self, count: int) -> Query:
        """At most this many rows."""
        if count < 1:
            raise QueryError(f"limit is {count}; give 1 or more")
        return replace(self, most=min(count, MOST_ROWS))

    def columns(self, *names: str) -> Query:
        """Only these columns, in this order."""
        return replace(self, chosen=tuple(check_column(name, self.schema) for name in names))

    def tag(self, name: str) -> Query:
        """Reads that release of the clips instead of the newest rows."""
        return replace(self, at_tag=name)

    @property
    def schema(self) -> pa.Schema:
        return schema_of(self.table)

    def count(self) -> int:
        """Rows that match, whatever the limit."""
        dataset = self.store.dataset(self.table, self.at_tag)
        number: int = dataset.count_rows(filter=self._filter(dataset))
        return number

    def to_arrow(self) -> pa.Table:
        """The rows, in the order asked for, then by key."""
        return self.batches().read_all()

    def batches(self) -> pa.RecordBatchReader:
        """The rows of `to_arrow`, some at a time. Columns that are newer than this version of the table are null."""
        wanted = list(self.chosen if self.chosen is not None else self.schema.names)
        dataset = self.store.dataset(self.table, self.at_tag)
        known = set(dataset.schema.names)
        orderings = [(name.lstrip("+-"), not name.startswith("-")) for name in self.order if name.lstrip("+-") in known]
        orderings += [(key, True) for key in KEYS[self.table] if key not in [name for name, _ in orderings]]
        hidden = [name for name, _ in orderings if name not in wanted]
        column_ordering = _lance_ordering()
        bound = self._bound(dataset)
        scanner = dataset.scanner(
            columns=[name for name in wanted if name in known] + hidden,
            filter=" AND ".join(part for part in (self._filter(dataset), bound) if part) or None,
            late_materialization=True if bound else None,
            use_scalar_index=bound is None,
            limit=self.most,
            order_by=[column_ordering(name, ascending=up, nulls_first=False) for name, up in orderings],
        )
        reader = scanner.to_reader()
        schema = pa.schema([(reader.schema if name in known else self.schema).field(name) for name in wanted])
        return pa.RecordBatchReader.from_batches(schema, (widened(batch, wanted, self.schema) for batch in reader))

    def _bound(self, dataset: Any) -> str | None:
        """What the first column of the order must reach for a row to be among the limit's: reading one number a row finds it, and
        all other columns (and the order of ties) are then read of the best rows only. None: no limit, no number, too few rows.

        Without the scalar indexes: most rows pass such filters, and looking each up costs ten times the CPU of reading on.
        """
        if self.most is None or not self.order:
            return None
        name, descending = self.order[0].lstrip("+-"), self.order[0].startswith("-")
        if kind_of(self.schema.field(name).type) != "number" or name not in dataset.schema.names:
            return None
        ordering = _lance_ordering()(name, ascending=not descending, nulls_first=False)
        best = dataset.to_table(columns=[name], filter=self._filter(dataset), limit=self.most, order_by=[ordering], use_scalar_index=False)[
            name
        ]
        if len(best) < self.most or best.null_count or not pc.all(pc.is_finite(best)).as_py():
            return None
        return f"(`{name}` {'>=' if descending else '<='} {best[-1].as_py()!r})"

    def to_pandas(self) -> pandas.DataFrame:
        """The rows as a pandas frame."""
        frame: pandas.DataFrame = self.to_arrow().to_pandas()
        return frame

    def rows(self) -> list[dict[str, Any]]:
        """The rows as plain values; float32 scores print as short as they are exact."""
        return plain_rows(self.to_arrow())

    def counts(self, *by: str) -> pa.Table:
        """Rows per combination of values, most frequent first: the columns and `count`."""
        for name in by:
            if kind_of(self.schema.field(check_column(name, self.schema)).type) in ("list", "vector"):
                raise QueryError(f"cannot count by {name}: it is a list")
        dataset = self.store.dataset(self.table, self.at_tag)
        known = [name for name in by if name in dataset.schema.names]
        read = dataset.to_table(columns=known or [KEYS[self.table][0]], filter=self._filter(dataset), batch_size=READ_ROWS)
        rows = widened(read, by, self.schema)
        groups = rows.group_by(list(by)).aggregate([([], "count_all")]).rename_columns([*by, "count"])
        return groups.sort_by([("count", "descending"), *((name, "ascending") for name in by)])

    def sheet(self, path: Path | str | None = None, thumbs_folder: Path | str | None = None) -> Image:
        """The rows (without a limit the first 60) as a contact sheet, written to `path` as PNG where one is given. Clips only.

        Thumbnails lie beside the store unless `thumbs_folder` names another place. Raises QueryError where `path` cannot be written.
        """
        from curation.sheet import contact_sheet, draw_sheet

        if self.table != "clips":
            raise QueryError(f"contact sheets show clips; the table is {self.table}")
        _check_writable(path)
        thumbs = Path(thumbs_folder) if thumbs_folder is not None else Path(self.store.path).parent / "tracks" / "thumbs"
        rows = self.limit(self.most or SHEET_CLIPS).columns(*DEFAULT_COLUMNS["clips"]).rows()
        if path is not None:
            contact_sheet(rows, thumbs, Path(path))
        picture, _ = draw_sheet(rows, thumbs)
        return picture

    def export(self, path: Path | str, format: str | None = None, cut: str = "copy") -> Exported:
        """Writes the rows as .json, .csv, .parquet or .lance, or into a folder as format `clips` or `webdataset` (`curation.exports`)."""
        from curation.exports import export

        return export(self, path, format, cut)

    def _filter(self, dataset: Any) -> str | None:
        parts = [filter_over(dataset, self.table, text) for text in self.filters]
        return " AND ".join(f"({part})" for part in parts) or None


class Dataset:
    """A store for looking at; one attribute a table: `clips`, `sources`, `captions`, `errors`, `runs`, ..."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def __repr__(self) -> str:
        counts = ", ".join(f"{self.store.count(table):,} {table}" for table in TABLES)
        return f"<store {self.store.path}: {counts}; {len(self.store.tags())} tags>"

    def __dir__(self) -> list[str]:
        """Tables too, for the notebook's completion."""
        return sorted({*super().__dir__(), *TABLES})

    def __getattr__(self, table: str) -> Query:
        if table not in TABLES:
            raise AttributeError(f"no table {table!r}; tables: {', '.join(TABLES)}")
        return Query(self.store, table)

    def tags(self) -> dict[str, dict[str, Any]]:
        """Releases by name: their cards."""
        return {name: tag.card for name, tag in self.store.tags().items()}

    def diff(self, old: str, new: str) -> ReleaseDiff:
        """What differs between two releases: clips added, removed, changed. Raises QueryError for an unknown tag."""
        from curation.releases import diff

        try:
            return diff(self.store, old, new)
        except StoreError as error:
            raise QueryError(str(error)) from None


def open_dataset(path: Path | str) -> Dataset:
    """The store at a path, for reading. Raises QueryError when there is none."""
    try:
        return Dataset(Store.open(path, create=False))
    except MissingStoreError as error:
        raise QueryError(str(error)) from None


def read(store_path: Path | str, table: str, columns: Sequence[str] | None = None, where: str | None = None) -> pa.Table:
    """Rows of a table, sorted by key; the one line for reports."""
    return open_dataset(store_path).store.read(table, columns, where)


@dataclass(frozen=True)
class Histogram:
    """Counts of a score over equal bins. `edges` has one entry more than `counts`; the last bin takes its upper edge in."""

    column: str
    unit: str
    edges: list[float]
    counts: list[int]
    unknown: int
    """Rows without the score."""


def histogram(store: Store, column: str, bins: int = 40, where: str | None = None, table: str = "clips") -> Histogram:
    """How a score is spread. No known value: no edges, no counts. Raises QueryError for a column that is no number."""
    schema = schema_of(table)
    field = schema.field(check_column(column, schema))
    if kind_of(field.type) != "number":
        raise QueryError(f"a histogram needs a number; {column} is {kind_of(field.type)}")
    values = store.read(table, [column], where, ordered=False)[column].cast(pa.float64())
    known = values.drop_null().combine_chunks()
    unknown = len(values) - len(known)
    if len(known) == 0:
        return Histogram(column, unit_of(field), [], [], unknown)
    low, high = (bound.as_py() for bound in pc.min_max(known).values())
    width = (high - low) / bins or 1.0
    places = pc.min_element_wise(pc.cast(pc.floor(pc.divide(pc.subtract(known, low), width)), pa.int64()), bins - 1)
    found = {row["values"]: row["counts"] for row in pc.value_counts(places).to_pylist()}
    return Histogram(column, unit_of(field), [low + width * i for i in range(bins + 1)], [found.get(i, 0) for i in range(bins)], unknown)


def run_query(
    store_path: Path | str,
    where: str | None = None,
    order_by: str | None = None,
    limit: int | None = None,
    columns: str | Sequence[str] | None = None,
    tag: str | None = None,
    count: bool = False,
    by: str | Sequence[str] | None = None,
    format: str | None = None,
    sheet: Path | str | None = None,
    thumbs_folder: Path | str | None = None,
    table: str = "clips",
    export: Path | str | None = None,
    cut: str = "copy",
    say: Say | None = None,
) -> str:
    """The answer of `flashvideo query`, as text to print.

    `order_by`, `columns` and `by` take names with commas between. `export` writes the rows or the clips to a file or
    folder, `say` is told of its progress. Raises QueryError (one line) for every mistake of the user.
    """
    if export is None:
        _check_printed(format)
    elif count or by:
        raise QueryError("--export writes rows and clips; --count and --by print (redirect them to keep them)")
    if count and by:
        raise QueryError("--count is one number and --by a table of them; give one of the two")
    if sheet is not None and (count or by):
        raise QueryError("--sheet shows the rows' pictures; --count and --by show no rows")
    _check_writable(sheet)
    try:
        query = _build(store_path, table, where, order_by, limit, columns, tag)
        if count:
            return str(query.count())
        if by:
            return _render(query.counts(*_names(by)), format or "table", total=None)
        note = ""
        if sheet is not None:
            if thumbs_folder is None:
                raise QueryError("a contact sheet needs the folder of thumbnails")
            found = _write_sheet(query.limit(limit or SHEET_CLIPS), Path(sheet), Path(thumbs_folder))
            note = f"\ncontact sheet: {sheet} ({found} pictures)" if format in (None, "table") or export is not None else ""
        if export is not None:
            from curation.exports import export as write

            return str(write(query, export, format, cut, say)) + note
        if columns is None:
            query = query.columns(*_default_columns(table))
        total = None
        if format in (None, "table") and limit is None:
            query, total = query.limit(TABLE_ROWS), query.count()
        return _render(query.to_arrow(), format or "table", total, shorten=columns is None) + note
    except StoreError as error:
        raise QueryError(str(error)) from None
    except OSError as error:
        if error.errno is None:  # the engine's own, which says more in its words
            raise
        raise QueryError(f"cannot write {error.filename or export or sheet}: {os.strerror(error.errno)}") from None


def _write_sheet(query: Query, path: Path, thumbs_folder: Path) -> int:
    """A contact sheet as PNG; returns the number of thumbnails found."""
    from curation.sheet import contact_sheet

    if query.table != "clips":
        raise QueryError(f"contact sheets show clips; the table is {query.table}")
    return contact_sheet(query.columns(*DEFAULT_COLUMNS["clips"]).rows(), thumbs_folder, path)


def _build(
    store_path: Path | str,
    table: str,
    where: str | None,
    order_by: str | None,
    limit: int | None,
    columns: str | Sequence[str] | None,
    tag: str | None,
) -> Query:
    schema_of(table)
    query: Query = getattr(open_dataset(store_path), table)
    if where:
        query = query.where(where)
    if order_by:
        query = query.order_by(*_names(order_by))
    if limit is not None:
        query = query.limit(limit)
    if columns is not None:
        names = _names(columns)
        everything = [field.name for field in query.schema if kind_of(field.type) != "vector"]
        query = query.columns(*(everything if names == [ALL_COLUMNS] else names))
    return query.tag(tag) if tag else query


def _check_printed(format: str | None) -> None:
    if format is None or format in PRINTED:
        return
    from curation.exports import CLIP_FORMATS, ROW_FORMATS

    known = dict.fromkeys([*PRINTED, *ROW_FORMATS.values(), *CLIP_FORMATS])
    if format not in known:
        raise QueryError(f"no format {format!r}; formats: {', '.join(known)}")
    raise QueryError(f"{format} goes to a {'folder: add --export DIR' if format in CLIP_FORMATS else f'file: add --export clips.{format}'}")


def _check_writable(file: Path | str | None) -> None:
    if file is None:
        return
    folder = Path(file).resolve().parent
    if Path(file).is_dir():
        raise QueryError(f"cannot write {file}: it is a folder; name a file in it")
    if not folder.is_dir():
        raise QueryError(f"cannot write {file}: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise QueryError(f"cannot write {file}: {folder} may not be written to")


def _names(given: str | Sequence[str]) -> list[str]:
    parts = given.split(",") if isinstance(given, str) else [part for entry in given for part in entry.split(",")]
    names = [part.strip() for part in parts if part.strip()]
    if not names:
        raise QueryError("a list of column names is empty")
    return names


def _default_columns(table: str) -> Sequence[str]:
    schema = schema_of(table)
    return DEFAULT_COLUMNS.get(table) or [field.name for field in schema if kind_of(field.type) not in ("list", "vector")]


def plain_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Rows as JSON-ready values: float32 as the shortest decimal that means it, times in ISO 8601."""
    columns = []
    for name in table.column_names:
        column = table[name]
        if pa.types.is_float32(column.type):
            column = column.cast(pa.string()).cast(pa.float64())
        elif pa.types.is_timestamp(column.type):
            column = pa.chunked_array([[value.isoformat() if value else None for value in column.to_pylist()]], pa.string())
        columns.append(column)
    rows: list[dict[str, Any]] = pa.table(columns, names=table.column_names).to_pylist()
    return rows


def _render(rows: pa.Table, format: str, total: int | None, shorten: bool = False) -> str:
    if format == "json":
        return json.dumps(plain_rows(rows), indent=1, ensure_ascii=False)
    return _csv(rows) if format == "csv" else _table(rows, total, shorten)


def _csv(rows: pa.Table) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(rows.column_names)
    writer.writerows(csv_cells(row) for row in plain_rows(rows))
    return file.getvalue().rstrip("\n")


def csv_cells(row: dict[str, Any]) -> list[Any]:
    """A row's values; lists as JSON."""
    return [json.dumps(value) if isinstance(value, list) else value for value in row.values()]


def _table(rows: pa.Table, total: int | None, shorten: bool) -> str:
    """A rich table; with `shorten` ids, paths, spans and captions are cut to what fits a line."""
    from rich.console import Console
    from rich.table import Table

    shown = _readable(rows) if shorten else plain_rows(rows)
    names = list(shown[0]) if shown else rows.column_names
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        number = all(isinstance(row[name], int | float | None) and not isinstance(row[name], bool) for row in shown)
        grid.add_column(name, justify="right" if number and shown else "left", overflow="fold")
    for row in shown:
        grid.add_row(*[_cell(row[name]) for name in names])
    file = io.StringIO()
    Console(file=file, width=shutil.get_terminal_size((200, 50)).columns, highlight=False, markup=False).print(grid)
    text = "\n".join(line.rstrip() for line in file.getvalue().rstrip("\n").splitlines())
    count = f"{rows.num_rows} rows" if rows.num_rows != 1 else "1 row"
    more = f" of {total}; --limit N shows more" if total is not None and total > rows.num_rows else ""
    return f"{text}\n{count}{more}"


def _readable(rows: pa.Table) -> list[dict[str, Any]]:
    """Rows for people: columns that are null throughout left out, ids short, file names, spans in seconds."""
    empty = {name for name in rows.column_names if rows.num_rows and rows[name].null_count == rows.num_rows}
    shown = []
    for row in plain_rows(rows):
        line: dict[str, Any] = {}
        for name, value in row.items():
            if name in empty or name == "end_us":
                continue
            if name == "start_us":
                line["span_s"] = f"{value / 1e6:.2f}-{row['end_us'] / 1e6:.2f}" if value is not None and row["end_us"] is not None else None
            elif name in ("clip_id", "run_id") and value is not None:
                line[name] = value[:12]
            elif name == "uri" and value is not None:
                line["file"] = value.rsplit("/", 1)[-1]
            elif name in ("caption", "message") and value is not None and len(value) > CAPTION_WIDTH:
                line[name] = value[: CAPTION_WIDTH - 1] + "…"
            else:
                line[name] = value
        shown.append(line)
    return shown


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    return str(value)


def _lance_ordering() -> Any:
    lance()
    from lance.dataset import ColumnOrdering

    return ColumnOrdering
