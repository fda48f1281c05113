"""The Captioner protocol and the Step around it: rows of clips in; text, finish, length and flags out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import pyarrow as pa

from curation.captions.checks import count_words, flags_of
from curation.config import CaptionConfig
from curation.schema import CAPTIONS
from curation.step import Batch, Lineage, Resources, StepError


class CaptionSetupError(ValueError):
    """The captioner cannot start as it is configured (a user's mistake); one line with what it wants."""


@dataclass(frozen=True)
class Caption:
    """One answer."""

    text: str
    finish: Literal["stop", "length"] = "stop"
    """length: cut off at the model's token limit."""
    refused: bool = False
    """The model declined, and `text` is what it said instead."""


class Captioner(Protocol):
    """Describes clips. Answers in the order of the rows; raises StepError for a row that has no caption."""

    reads: tuple[str, ...]
    """Columns of `clips`."""
    resources: Resources

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> list[Caption]: ...


class CaptionStep:
    """A captioner's texts with their checks. Raises StepError `empty_caption`, and what the captioner raises."""

    name = "caption"
    writes = pa.schema([CAPTIONS.field(name) for name in ("text", "finish", "words", "flags")])

    def __init__(self, captioner: Captioner, lineage: Lineage, config: CaptionConfig) -> None:
        self.lineage, self.reads, self.resources = lineage, captioner.reads, captioner.resources
        self._captioner, self._config = captioner, config

    def __call__(self, batch: Batch) -> Batch:
        rows = batch.to_pylist()
        captions = self._captioner(rows)
        written = [self._row(row["clip_id"], caption) for row, caption in zip(rows, captions, strict=True)]
        return pa.RecordBatch.from_pylist(written, schema=self.writes)

    def _row(self, clip_id: str, caption: Caption) -> dict[str, Any]:
        text = " ".join(caption.text.split())
        if not text:
            raise StepError("empty_caption", f"clip {clip_id}: the captioner answered with no text")
        flags = flags_of(text, self._config)
        if caption.refused and "refusal" not in flags:
            flags.append("refusal")
        return {"text": text, "finish": caption.finish, "words": count_words(text), "flags": flags}

    def close(self) -> None:
        """Lets the captioner close what it holds."""
        close = getattr(self._captioner, "close", None)
        if close is not None:
            close()
