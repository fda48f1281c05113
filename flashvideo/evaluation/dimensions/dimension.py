"""What a dimension is to the evaluator: frames go in one at a time, a score comes out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch

from flashvideo.evaluation.networks.interfaces import Network
from flashvideo.evaluation.scores import ClipFacts, ClipScore, Prompt


class Measurement(Protocol):
    """One clip under way."""

    def add(self, index: int, frame: np.ndarray) -> None:
        """The next frame, uint8 H W 3 (RGB). `index` counts from 0."""
        ...

    def result(self) -> ClipScore:
        """The score, after the last frame. Raises ValueError for a clip that the rule cannot score."""
        ...


class Dimension(Protocol):
    """A rule with its networks."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str:
        """Of the rule; bumped when a number changes."""
        ...

    @property
    def networks(self) -> Mapping[str, Network]:
        """The networks it uses, by role."""
        ...

    def start(self, facts: ClipFacts, prompt: Prompt) -> Measurement:
        """A new clip. Raises ValueError where the prompt lacks what the dimension looks for."""
        ...


def picture(frame: np.ndarray) -> torch.Tensor:
    """uint8 H W 3 -> float 3 H W in 0-255."""
    return torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1).float()
