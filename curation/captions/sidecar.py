"""Backend `sidecar`: captions that lie beside the sources, the first of NAME.EXT.txt, NAME.EXT.json, NAME.txt, NAME.json.

A .txt holds the caption of the whole file. A .json holds `{"caption": "..."}` (or text, or prompt), or spans in seconds of the source:
`{"captions": [{"start": 0.0, "end": 5.0, "text": "..."}]}`; the span that overlaps the clip most describes it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from curation.captions.caption import Caption, CaptionRequest
from curation.step import StepError

MODEL = "sidecar/1"
VERSION = "1"
KEYS = ("caption", "text", "prompt")


class SidecarCaptioner:
    """Reads captions. StepError `no_sidecar` where there is none, `bad_sidecar` where it cannot be read."""

    def __call__(self, requests: list[CaptionRequest]) -> list[Caption | StepError]:
        return [self._read(request) for request in requests]

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


def sidecar_listing(uris: Iterable[str]) -> list[tuple[str, int, int]]:
    """(path, bytes, modification time in ns) of every sidecar of these sources: changes when a caption may have changed."""
    found = {path for uri in uris for path in sidecar_paths(uri) if path.is_file()}
    return sorted((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in found)


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
