"""Which files a run reads: folders, globs, lists, single files and addresses, expanded to one sorted listing. Light."""

from __future__ import annotations

import csv
import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

VIDEO_SUFFIXES = frozenset(
    [
        ".mp4",
        ".m4v",
        ".mov",
        ".mkv",
        ".webm",
        ".avi",
        ".ts",
        ".mts",
        ".m2ts",
        ".mpg",
        ".mpeg",
        ".wmv",
        ".flv",
        ".3gp",
        ".ogv",
        ".mxf",
        ".y4m",
        ".gif",
    ]
)
IMAGE_SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".avif", ".heic"])
LIST_SUFFIXES = frozenset({".txt", ".csv", ".parquet"})
LIST_COLUMNS = ("uri", "url", "path", "file")
"""Columns of a .csv or .parquet list that are taken unasked; `list.csv#NAME` names another."""
NAMED = 4
"""Entries of a list that do not exist and that the message names; the rest are counted."""


class SourceError(ValueError):
    """A user's mistake in the sources; the message is one clear line."""


@dataclass(frozen=True, order=True)
class SourceFile:
    """One file to curate."""

    uri: str
    """Absolute path, or address (s3://, gs://, https://)."""
    bytes: int
    modified_ns: int
    dataset: str = field(default="", compare=False)
    """`dataset_of` the source that names it (the last one, where several do)."""


@dataclass(frozen=True)
class Listing:
    """What the sources expand to, sorted by uri, each file once."""

    files: tuple[SourceFile, ...]
    ignored: tuple[str, ...]
    """Files in folders that are neither video nor image by suffix (sidecars, notes)."""


def list_sources(sources: tuple[str, ...]) -> Listing:
    """Every media file that the sources name. Raises SourceError for a missing path or when nothing is found.

    A folder is read recursively, through links to folders too, hidden files left out; a glob may use `**`. Addresses are
    files, folders or globs too (`curation.remote`). A list names one path or address an entry: .txt a line (# starts a comment),
    .csv and .parquet a row of column uri, url, path or file, or of the column that `list.csv#NAME` names; paths are relative to
    the list. A file named directly or by a list is taken whatever its suffix.
    """
    found: dict[str, SourceFile] = {}
    ignored: set[str] = set()
    for source in sources:
        try:
            entries = list(_expand(source))
        except PermissionError as error:
            raise SourceError(f"source {source}: {error.filename} cannot be read: {error.strerror}") from None
        dataset = dataset_of(source)
        media = {
            file.uri: replace(file, dataset=dataset)
            for file, named in entries
            if named or suffix_of(file.uri) in VIDEO_SUFFIXES | IMAGE_SUFFIXES
        }
        ignored |= {file.uri for file, _ in entries if file.uri not in media}
        if not media and (is_remote(source) or Path(source).expanduser().is_dir()):
            raise SourceError(
                f"source folder {source} holds no video or image ({len(entries)} other files); "
                f"known suffixes: {' '.join(sorted(VIDEO_SUFFIXES | IMAGE_SUFFIXES))}"
            )
        found |= media
    if not found:
        raise SourceError(f"the sources name no file: {', '.join(sources) or '(none given)'}")
    return Listing(tuple(sorted(found.values())), tuple(sorted(ignored - set(found))))


def dataset_of(source: str) -> str:
    """What the files of a source are counted under: the name of the folder or list; for a file or a pattern, of the folder it is in."""
    named, _ = _split_column(source)
    if is_remote(named):
        address = urlsplit(named)
        parts = [address.netloc, *(part for part in address.path.split("/") if part)]
        is_folder = suffix_of(named) not in LIST_SUFFIXES | VIDEO_SUFFIXES | IMAGE_SUFFIXES
    else:
        path = Path(named).expanduser().absolute()
        parts, is_folder = list(path.parts), path.is_dir()
    if suffix_of(named) in LIST_SUFFIXES and not is_folder:
        return PurePosixPath(parts[-1]).stem
    parts = parts if is_folder else parts[:-1]
    while len(parts) > 1 and glob.has_magic(parts[-1]):
        parts.pop()
    return parts[-1]


def is_remote(uri: str) -> bool:
    """Whether it is an address, not a path."""
    return "://" in uri


def suffix_of(uri: str) -> str:
    """The file name's suffix in lower case, with its dot."""
    path = urlsplit(uri).path if uri.startswith(("http://", "https://")) else uri
    return PurePosixPath(path).suffix.lower()


def _expand(source: str) -> Iterable[tuple[SourceFile, bool]]:
    """(file, named directly) for everything that one entry of the sources stands for."""
    named, column = _split_column(source)
    if column is not None or (suffix_of(named) in LIST_SUFFIXES and (is_remote(named) or Path(named).expanduser().is_file())):
        return _listed(named, column)
    if is_remote(source):
        from curation.remote import list_remote

        return list_remote(source)
    path = Path(source).expanduser()
    if path.is_dir():
        return [(_local(p), False) for p in _files_under(path)]
    if path.is_file():
        return [(_local(path), True)]
    if glob.has_magic(source):
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        if not matches:
            raise SourceError(f"source pattern {source} matches no file")
        return [(_local(p), False) for p in matches if p.is_file()]
    raise SourceError(f"source {source} does not exist (looked for a file, a folder, a list or a pattern)")


def _local(path: Path) -> SourceFile:
    stat = path.stat()
    return SourceFile(str(path.resolve()), stat.st_size, stat.st_mtime_ns)


def _files_under(folder: Path) -> list[Path]:
    """Every file below, hidden ones left out; a folder that is linked to several times is read once. Raises PermissionError."""

    def refuse(error: OSError) -> None:
        raise error  # a folder that is silently left out is a hole in the dataset

    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    for here, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        place = Path(here).stat()
        if (place.st_dev, place.st_ino) in seen:
            folders.clear()
            continue
        seen.add((place.st_dev, place.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(here, name) for name in names if not name.startswith(".")]
    return sorted(path for path in found if path.is_file())


def _split_column(source: str) -> tuple[str, str | None]:
    """`list.csv#NAME` as (list.csv, NAME); a file whose name holds a # stays whole."""
    name, mark, column = source.rpartition("#")
    if not mark or suffix_of(name) not in (".csv", ".parquet") or (not is_remote(source) and Path(source).expanduser().exists()):
        return source, None
    return name, column


def _listed(source: str, column: str | None) -> Iterator[tuple[SourceFile, bool]]:
    """Every file that a list names."""
    folder, path = source.rsplit("/", 1)[0], Path(source).expanduser()
    if is_remote(source):
        from curation.remote import RemoteError, check_address, fetch, list_each

        check_address(source)
        try:
            [file] = list_each([source])
            path = fetch(source, (file.bytes, file.modified_ns)).path
        except RemoteError as error:
            raise SourceError(str(error)) from None
    elif not path.is_file():
        raise SourceError(f"source list {source} does not exist")
    remote: list[str] = []
    absent: list[str] = []
    for where, text in _entries(path, source, column):
        if is_remote(text) or is_remote(source):
            remote.append(text if is_remote(text) else f"{folder}/{text}")
            continue
        entry = path.parent / Path(text).expanduser()
        if entry.is_file():
            yield _local(entry), True
        else:
            absent.append(f"{where}: {text}")
    if absent:
        more = f" (and {len(absent) - 1} more: {'; '.join(absent[1:NAMED])}{'; …' if len(absent) > NAMED else ''})" if absent[1:] else ""
        raise SourceError(f"{source}, {absent[0]} does not exist{more}")
    if remote:
        from curation.remote import list_each

        yield from ((file, True) for file in list_each(remote))


def _entries(path: Path, source: str, column: str | None) -> Iterator[tuple[str, str]]:
    """(line or row, entry) of a list. Raises SourceError for a column that is absent and an entry that is empty."""
    suffix = suffix_of(source)
    if suffix == ".txt":
        try:
            lines = path.read_text().splitlines()
        except UnicodeDecodeError:
            raise SourceError(f"source list {source} is not a text file") from None
        yield from ((f"line {number}", line.strip()) for number, line in enumerate(lines, 1) if line.strip() and line.strip()[0] != "#")
        return
    values = _csv_column(path, source, column) if suffix == ".csv" else _parquet_column(path, source, column)
    for number, value in enumerate(values, 1):
        if not value or not value.strip():
            raise SourceError(f"{source}, row {number} has no path; leave such rows out of the list")
        yield f"row {number}", value.strip()


def _csv_column(path: Path, source: str, column: str | None) -> list[str | None]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            name = _column_of(source, list(reader.fieldnames or []), column)
            return [row[name] for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"source list {source} is no CSV file: {error}") from None


def _parquet_column(path: Path, source: str, column: str | None) -> list[str | None]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
        name = _column_of(source, file.schema_arrow.names, column)
        values = file.read([name])[name]
    except pa.ArrowException as error:
        raise SourceError(f"source list {source} is no Parquet file: {str(error).splitlines()[0]}") from None
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        raise SourceError(f"column {name} of source list {source} is {values.type}; paths are text")
    paths: list[str | None] = values.to_pylist()
    return paths


def _column_of(source: str, names: list[str], column: str | None) -> str:
    """The column that holds the paths."""
    known = ", ".join(names) or "(none)"
    if column is not None:
        if column in names:
            return column
        raise SourceError(f"source list {source} has no column {column!r}; columns: {known}")
    found = [name for name in LIST_COLUMNS if name in names]
    if len(found) != 1:
        what = f"columns {' and '.join(found)}" if found else f"none of the columns {', '.join(LIST_COLUMNS)}"
        raise SourceError(f"source list {source} has {what}; say which holds the paths: {source}#NAME (columns: {known})")
    return found[0]
