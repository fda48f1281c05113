"""Backend `sidecar`: captions that exist already: in one table, or in files beside the sources.

Beside a source counts the first of NAME.EXT.txt, NAME.EXT.json, NAME.txt, NAME.json.

A .txt holds the caption of the whole file. A .json holds `{"caption": "..."}` (or text, or prompt), or spans in seconds of the source:
`{"captions": [{"start": 0.0, "end": 5.0, "text": "..."}]}`; the span that overlaps the clip most describes it.

A table (caption.table) is .parquet, .csv or .jsonl: one of the columns uri, url, path, file (an address, or a path relative to the
table), one of caption, text, prompt, and where a row describes a span only, start and end in seconds of the source.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from curation.captions.caption import Caption, CaptionRequest, CaptionSetupError
from curation.sources import LIST_COLUMNS, is_remote
from curation.step import StepError

MODEL = "sidecar/1"
VERSION = "1"
KEYS = ("caption", "text", "prompt")


class SidecarCaptioner:
    """Reads captions. StepError `no_sidecar` where there is none, `bad_sidecar` where it cannot be read."""

    def __init__(self, table: Path | None = None) -> None:
        """`table`: see the module's docstring. Raises CaptionSetupError when it cannot be used."""
        self._table = table
        self._rows = None if table is None else _table_rows(table)

    def __call__(self, requests: list[CaptionRequest]) -> list[Caption | StepError]:
        return [self._read(request) if self._rows is None else self._look_up(request) for request in requests]

    def _look_up(self, request: CaptionRequest) -> Caption | StepError:
        rows = (self._rows or {}).get(request.uri, [])
        spans = [{"start": start, "end": end, "text": text} for text, start, end in rows if start is not None and end is not None]
        whole = next((text for text, start, end in rows if start is None or end is None), "")
        text = _of_span({"captions": spans}, request)
        if text:
            return Caption(text)
        if whole.strip():
            return Caption(whole, of="file")
        return StepError(
            "no_sidecar", f"{self._table} holds no caption for {request.start_us / 1e6:g}-{request.end_us / 1e6:g} s of {request.uri}"
        )

    def _read(self, request: CaptionRequest) -> Caption | StepError:
        candidates = sidecar_paths(request.uri)
        path = next((candidate for candidate in candidates if candidate.is_file()), None)
        if path is None:
            return StepError("no_sidecar", f"{request.uri} has no caption beside it ({', '.join(c.name for c in candidates)})")
        try:
            text = path.read_text(encoding="utf-8-sig")
            caption = Caption(text, of="file") if path.suffix == ".txt" else _of_json(json.loads(text), request)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return StepError("bad_sidecar", f"{path} is not UTF-8 text or JSON with caption or captions: {type(error).__name__}: {error}")
        if not caption.text.strip():
            return StepError("no_sidecar", f"{path} holds no caption for {request.start_us / 1e6:g}-{request.end_us / 1e6:g} s")
        return caption


def sidecar_paths(uri: str) -> tuple[Path, ...]:
    """Where a source's caption may lie, in order of preference."""
    path = Path(uri)
    return tuple(path.with_name(name) for name in (f"{path.name}.txt", f"{path.name}.json", f"{path.stem}.txt", f"{path.stem}.json"))


def sidecar_listing(uris: Iterable[str], table: str | None = None) -> list[tuple[str, int, int]]:
    """(path, bytes, modification time in ns) of the table, or of every sidecar of these sources: changes when a caption may have."""
    paths = [Path(table).expanduser()] if table is not None else [path for uri in uris for path in sidecar_paths(uri)]
    found = {path for path in paths if path.is_file()}
    return sorted((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in found)


def _table_rows(table: Path) -> dict[str, list[tuple[str, float | None, float | None]]]:
    """uri -> (text, start, end) of its rows, in order. Raises CaptionSetupError."""
    import pyarrow as pa
    from pyarrow import csv, json, parquet

    readers = {".parquet": parquet.read_table, ".csv": csv.read_csv, ".jsonl": json.read_json}
    if table.suffix.lower() not in readers or not table.is_file():
        state = "does not exist" if not table.is_file() else f"is none of {', '.join(readers)}"
        raise CaptionSetupError(f"caption.table: {table} {state}")
    try:
        rows = readers[table.suffix.lower()](str(table))
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise CaptionSetupError(f"caption.table: {table} cannot be read: {str(error).splitlines()[0]}") from None
    names = {}
    for what, wanted in (("uri", LIST_COLUMNS), ("text", KEYS)):
        found = [name for name in wanted if name in rows.column_names]
        if not found:
            raise CaptionSetupError(
                f"caption.table: {table} has none of the columns {', '.join(wanted)}; it has {', '.join(rows.column_names)}"
            )
        names[what] = found[0]
    spans = [rows[name].to_pylist() if name in rows.column_names else [None] * rows.num_rows for name in ("start", "end")]
    captions: dict[str, list[tuple[str, float | None, float | None]]] = {}
    for uri, text, start, end in zip(rows[names["uri"]].to_pylist(), rows[names["text"]].to_pylist(), *spans, strict=True):
        if uri and text:
            place = str(uri) if is_remote(str(uri)) else str((table.parent / Path(str(uri)).expanduser()).resolve())
            captions.setdefault(place, []).append((str(text), start, end))
    return captions


def _of_json(data: Any, request: CaptionRequest) -> Caption:
    """Raises what a file of another form raises."""
    whole = next((data[key] for key in KEYS if key in data), None)
    if whole is None:
        return Caption(_of_span(data, request))
    if not isinstance(whole, str):
        raise TypeError(f"the caption is {type(whole).__name__}, not text")
    return Caption(whole, of="file")


def _of_span(data: Any, request: CaptionRequest) -> str:
    """Text of the span that overlaps the clip most; empty where none does."""
    start, end = request.start_us / 1e6, request.end_us / 1e6

    def overlap(span: dict[str, Any]) -> float:
        return min(end, float(span["end"])) - max(start, float(span["start"]))

    best = max(data["captions"], key=overlap, default=None)
    # An image's clip has no length: a span that holds its moment is enough.
    return "" if best is None or overlap(best) < (0 if end == start else 1e-6) else str(best["text"]).strip()
