"""Which files a run reads: folders, globs, lists and single files, expanded to one sorted listing. Light."""

from __future__ import annotations

import glob
import os
from dataclasses import dataclass
from pathlib import Path

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
LIST_SUFFIXES = frozenset({".txt"})


class SourceError(ValueError):
    """A user's mistake in the sources; the message is one clear line."""


@dataclass(frozen=True, order=True)
class SourceFile:
    """One file to curate."""

    uri: str
    bytes: int
    modified_ns: int


@dataclass(frozen=True)
class Listing:
    """What the sources expand to, sorted by uri, each file once."""

    files: tuple[SourceFile, ...]
    ignored: tuple[str, ...]
    """Files in folders that are neither video nor image by suffix (sidecars, notes)."""


def list_sources(sources: tuple[str, ...]) -> Listing:
    """Every media file that the sources name. Raises SourceError for a missing path or when nothing is found.

    A folder is read recursively, hidden files left out; a glob may use `**`; a .txt names one path a line
    (relative to itself, # starts a comment). A file named directly is taken whatever its suffix.
    """
    found: dict[str, SourceFile] = {}
    ignored: set[str] = set()
    for source in sources:
        before = len(found)
        for path, named in _expand(source):
            if named or path.suffix.lower() in VIDEO_SUFFIXES | IMAGE_SUFFIXES:
                stat = path.stat()
                uri = str(path.resolve())
                found[uri] = SourceFile(uri, stat.st_size, stat.st_mtime_ns)
            else:
                ignored.add(str(path.resolve()))
        if len(found) == before and Path(source).is_dir() and not _any_known(found, source):
            raise SourceError(
                f"source folder {source} holds no video or image ({len(ignored)} other files); "
                f"known suffixes: {' '.join(sorted(VIDEO_SUFFIXES | IMAGE_SUFFIXES))}"
            )
    if not found:
        raise SourceError(f"the sources name no file: {', '.join(sources) or '(none given)'}")
    return Listing(tuple(sorted(found.values())), tuple(sorted(ignored)))


def _any_known(found: dict[str, SourceFile], folder: str) -> bool:
    prefix = str(Path(folder).resolve()) + os.sep
    return any(uri.startswith(prefix) for uri in found)


def _expand(source: str) -> list[tuple[Path, bool]]:
    """(path, named directly) for everything that one entry of the sources stands for."""
    path = Path(source).expanduser()
    if path.is_dir():
        return [(p, False) for p in sorted(path.rglob("*")) if p.is_file() and not _hidden(p.relative_to(path))]
    if path.is_file():
        if path.suffix.lower() in LIST_SUFFIXES:
            return _read_list(path)
        return [(path, True)]
    if glob.has_magic(source):
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        if not matches:
            raise SourceError(f"source pattern {source} matches no file")
        return [(p, False) for p in matches if p.is_file()]
    raise SourceError(f"source {source} does not exist (looked for a file, a folder, a list or a pattern)")


def _hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)


def _read_list(path: Path) -> list[tuple[Path, bool]]:
    entries = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        text = line.split("#", 1)[0].strip() if line.lstrip().startswith("#") else line.strip()
        if not text:
            continue
        entry = (path.parent / text).expanduser()
        if not entry.is_file():
            raise SourceError(f"{path}, line {number}: {text} does not exist")
        entries.append((entry, True))
    return entries
