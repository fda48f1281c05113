"""What every caption backend takes and gives: one protocol, four backends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

from curation.step import StepError


class CaptionSetupError(ValueError):
    """The backend cannot start as it is configured (a user's mistake); one line with what it wants."""


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
    finish: Literal["stop", "length"] = "stop"
    """stop: the model ended by itself. length: it was cut off."""
    refused: bool = False
    """The model declined; `text` is what it said instead."""
    of: Literal["clip", "file"] = "clip"
    """file: written for the whole source, of which the clip may be a part."""


class Captioner(Protocol):
    """A backend. Answers every request, in order, with a Caption or the error that it met."""

    def __call__(self, requests: list[CaptionRequest]) -> list[Caption | StepError]: ...
