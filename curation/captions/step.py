"""The caption Step: asks the backend, checks the text, writes a row of `captions` per clip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from curation.captions.attributes import NEEDED
from curation.captions.backends import build_captioner
from curation.captions.caption import Caption, CaptionRequest
from curation.captions.checks import check_caption, count_words
from curation.captions.prompt import prompt_hash
from curation.config import CaptionConfig
from curation.schema import CAPTIONS
from curation.step import Batch, Lineage, Resources, StepError

IDENTITY = ("clip_id", "source_id", "uri", "start_us", "end_us")


class CaptionStep:
    """A caption per clip, its flags and facts: the columns of `captions` beside the key. Backend and model by recipe.

    `start_us` and `end_us` are null where the caption was written for the whole file.
    """

    name = "caption"
    reads: tuple[str, ...] = tuple(dict.fromkeys((*IDENTITY, *NEEDED)))
    writes = pa.schema([field.with_nullable(True) for field in CAPTIONS if field.name != "clip_id"])

    def __init__(self, config: CaptionConfig, lineage: Lineage, tracks: Path, cache: Path, device: str) -> None:
        self._config, self.lineage = config, lineage
        self._captioner = build_captioner(config, tracks, cache, device)
        self.resources = Resources(cpus=1, gpus=1 if device.startswith("cuda") else 0)
        self._known: dict[str, Caption | StepError] = {}

    def __call__(self, batch: Batch) -> Batch:
        rows = batch.to_pylist()
        missing = [row for row in rows if row["clip_id"] not in self._known]
        if missing:
            requests = [
                CaptionRequest(**{name: row[name] for name in IDENTITY}, facts={name: row[name] for name in NEEDED}) for row in missing
            ]
            answers = self._captioner(requests)
            failed = next((answer for answer in answers if isinstance(answer, StepError)), None)
            self._known |= {request.clip_id: answer for request, answer in zip(requests, answers, strict=True)}
            if failed is not None:
                raise failed  # the executor runs the rows again one by one; what was answered or refused is not asked again
        return pa.RecordBatch.from_pylist([self._row(row, self._known.pop(row["clip_id"])) for row in rows], schema=self.writes)

    def _row(self, row: dict[str, Any], caption: Caption | StepError) -> dict[str, Any]:
        if isinstance(caption, StepError):
            raise caption
        text = " ".join(caption.text.split())
        whole_file = caption.of == "file"
        return {
            "caption_run": self.lineage.run_id,
            "model": self.lineage.model,
            "prompt_hash": prompt_hash(self._config),
            "start_us": None if whole_file else row["start_us"],
            "end_us": None if whole_file else row["end_us"],
            "text": text,
            "finish": caption.finish,
            "words": count_words(text),
            "flags": check_caption(caption, self._config.min_words, self._config.max_words),
        }
