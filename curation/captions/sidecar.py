"""Backend `sidecar`: captions that lie beside the sources as NAME.txt or NAME.json (or NAME.EXT.txt, NAME.EXT.json).

A .txt holds the caption of the whole file. A .json holds `{"caption": "..."}`, or spans in seconds of the source:
`{"captions": [{"start": 0.0, "end": 5.0, "text": "..."}]}`; the span that overlaps the clip most describes it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from curation.captions.caption import Caption, CaptionRequest
from curation.captions.prompt import prompt_hash
from curation.config import CaptionConfig
from curation.step import Lineage, StepError

MODEL = "sidecar/1"


class SidecarCaptioner:
    """Reads captions. StepError `no_sidecar` where there is none, `bad_sidecar` where it cannot be read."""

    def __init__(self, config: CaptionConfig) -> None:
        self.lineage = sidecar_lineage(config)

    def __call__(self, requests: list[CaptionRequest]) -> list[Caption | StepError]:
        return [self._read(request) for request in requests]

    def _read(self, request: CaptionRequest) -> Caption | StepError:
        source = Path(request.uri)
        candidates = [source.with_suffix(".txt"), source.with_suffix(".json"), Path(f"{source}.txt"), Path(f"{source}.json")]
        path = next((candidate for candidate in candidates if candidate.is_file()), None)
        if path is None:
            return StepError("no_sidecar", f"{source} has no caption beside it ({', '.join(c.name for c in candidates)})")
        try:
            text = path.read_text().strip() if path.suffix == ".txt" else _of_span(json.loads(path.read_text()), request)
        except (OSError, ValueError, KeyError, TypeError) as error:
            return StepError("bad_sidecar", f"{path} is not text or JSON with caption or captions: {type(error).__name__}: {error}")
        if not text:
            return StepError("no_sidecar", f"{path} holds no caption for {request.start_us / 1e6:g}-{request.end_us / 1e6:g} s")
        return Caption(text, MODEL, prompt_hash(""), "stop")


def sidecar_lineage(config: CaptionConfig) -> Lineage:
    """What made the captions of this backend."""
    del config
    return Lineage("caption", "sidecar", "1", MODEL)


def _of_span(data: Any, request: CaptionRequest) -> str:
    if "caption" in data:
        return str(data["caption"]).strip()
    start, end = request.start_us / 1e6, request.end_us / 1e6

    def overlap(span: dict[str, Any]) -> float:
        return min(end, float(span["end"])) - max(start, float(span["start"]))

    best = max(data["captions"], key=overlap, default=None)
    # An image's clip has no length: a span that holds its moment is enough.
    return "" if best is None or overlap(best) < (0 if end == start else 1e-6) else str(best["text"]).strip()
