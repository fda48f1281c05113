"""The caption Step: asks the backend, checks the text, writes a row of `captions` per clip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from curation.captions.attributes import NEEDED
from curation.captions.backends import build_captioner
from curation.captions.caption import Caption, CaptionRequest
from curation.captions.checks import check_caption, count_words
from curation.config import CaptionConfig
from curation.schema import CAPTIONS
from curation.step import Batch, Resources, StepError

IDENTITY = ("clip_id", "source_id", "uri", "start_us", "end_us")


class CaptionStep:
    """A caption per clip, its flags and facts: the columns of `captions` beside the key. Backend and model by recipe."""

    name = "caption"
    reads: tuple[str, ...] = tuple(dict.fromkeys((*IDENTITY, *NEEDED)))
    writes = pa.schema([field.with_nullable(True) for field in CAPTIONS if field.name != "clip_id"])

    def __init__(self, config: CaptionConfig, tracks: Path, cache: Path, device: str) -> None:
        self._config = config
        self._captioner = build_captioner(config, tracks, cache, device)
        self.resources = Resources(cpus=1, gpus=1 if device.startswith("cuda") else 0)
        self.lineage = self._captioner.lineage
        self._known: dict[str, Caption] = {}

    def __call__(self, batch: Batch) -> Batch:
        rows = batch.to_pylist()
        missing = [row for row in rows if row["clip_id"] not in self._known]
        requests = [CaptionRequest(**{name: row[name] for name in IDENTITY}, facts={name: row[name] for name in NEEDED}) for row in missing]
        answers = self._captioner(requests)
        first_error: StepError | None = None
        for request, answer in zip(requests, answers, strict=True):
            if isinstance(answer, StepError):
                first_error = first_error or answer
            else:
                self._known[request.clip_id] = answer
        if first_error is not None:
            # The executor runs the rows again one by one; those that were answered are not asked twice.
            raise first_error
        return pa.RecordBatch.from_pylist([self._row(row, self._known.pop(row["clip_id"])) for row in rows], schema=self.writes)

    def _row(self, row: dict[str, Any], caption: Caption) -> dict[str, Any]:
        return {
            "caption_run": self.lineage.run_id,
            "model": caption.model,
            "prompt_hash": caption.prompt_hash,
            "start_us": row["start_us"],
            "end_us": row["end_us"],
            "text": caption.text,
            "finish": caption.finish,
            "words": count_words(caption.text),
            "flags": check_caption(caption, self._config.min_words, self._config.max_words),
        }
