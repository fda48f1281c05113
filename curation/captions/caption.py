"""What every caption backend takes and gives: one protocol, four backends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from curation.step import Lineage, StepError


@dataclass(frozen=True)
class CaptionRequest:
    """A clip to be described: exactly the span that is trained on."""

    clip_id: str
    source_id: str
    uri: str
    start_us: int
    end_us: int
    facts: dict[str, Any]
    """Columns of `clips` (see `attributes.NEEDED`)."""


@dataclass(frozen=True)
class Caption:
    """A description and how it came to be."""

    text: str
    model: str
    prompt_hash: str
    finish: str
    """stop: the model ended by itself. length: it was cut off."""


class Captioner(Protocol):
    """A backend. Answers every request, in order, with a Caption or the error that it met."""

    lineage: Lineage

    def __call__(self, requests: list[CaptionRequest]) -> list[Caption | StepError]: ...
