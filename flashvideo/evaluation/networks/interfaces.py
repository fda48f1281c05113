"""What the dimensions ask of a network. A rule never knows which network answers.

Every network says who it is: `name` and `identity` (weights' sha256, or a stand-in's definition) enter the key of each
stored score, and `is_stand_in` enters every result.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import NamedTuple, Protocol

import numpy as np
import torch


class Network(Protocol):
    """Who answers."""

    @property
    def name(self) -> str: ...
    @property
    def identity(self) -> str: ...
    @property
    def is_stand_in(self) -> bool: ...


class ImageEncoder(Network, Protocol):
    """Features of pictures: float B 3 H W, preprocessed as the dimension says -> B D."""

    def __call__(self, pictures: torch.Tensor) -> torch.Tensor: ...


class ImageTextEncoder(ImageEncoder, Protocol):
    """Features of pictures and of texts in one space."""

    def text(self, texts: list[str]) -> torch.Tensor:
        """-> B D."""
        ...


class AestheticHead(Network, Protocol):
    """Scores about 0-10 of L2-normalised CLIP ViT-L/14 features: B D -> B."""

    def __call__(self, features: torch.Tensor) -> torch.Tensor: ...


class QualityScorer(Network, Protocol):
    """Scores 0-100 of pictures, float B 3 H W in 0-1 -> B."""

    def __call__(self, pictures: torch.Tensor) -> torch.Tensor: ...


class OpticalFlow(Network, Protocol):
    """Flow in pixels from `first` to `second`: float B 3 H W in 0-255, H and W multiples of 8 -> B 2 H W (x, y)."""

    def __call__(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor: ...


class FrameInterpolator(Network, Protocol):
    """The frame half way: float B 3 H W in 0-1, H and W multiples of 16 -> B 3 H W."""

    def __call__(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor: ...


class Detection(NamedTuple):
    """One detected object."""

    label: str
    box: tuple[float, float, float, float]
    """x0, y0, x1, y1 in pixels."""
    caption: str = ""
    """Dense caption; empty from a detector that writes none."""


class Detector(Network, Protocol):
    """Objects of frames, most certain first: H W 3 in 0-255 each -> one list a frame, empty where nothing is found."""

    def __call__(self, frames: list[np.ndarray]) -> list[list[Detection]]: ...


class Captioner(Network, Protocol):
    """One caption a frame, uint8 384 384 3 each."""

    def __call__(self, frames: list[np.ndarray]) -> list[str]: ...


class ActionClassifier(Network, Protocol):
    """Logits of Kinetics-400 classes: float B 3 16 224 224 -> B 400."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in lower case, in order of the logits."""
        ...

    def __call__(self, clip: torch.Tensor) -> torch.Tensor: ...


class VideoTextEncoder(Network, Protocol):
    """Features of 8 frames (float B 8 3 224 224 -> B D) and of texts (-> B D) in one space."""

    def __call__(self, clip: torch.Tensor) -> torch.Tensor: ...

    def text(self, texts: list[str]) -> torch.Tensor: ...


@dataclass(frozen=True)
class Networks:
    """The networks at hand. None: not available, and `absent` may say which file is wanted."""

    dino: ImageEncoder | None = None
    clip_b: ImageTextEncoder | None = None
    clip_l: ImageEncoder | None = None
    aesthetic: AestheticHead | None = None
    quality: QualityScorer | None = None
    flow: OpticalFlow | None = None
    interpolator: FrameInterpolator | None = None
    detector: Detector | None = None
    dense_captioner: Detector | None = None
    """A detector that also captions."""
    captioner: Captioner | None = None
    action: ActionClassifier | None = None
    video_text: VideoTextEncoder | None = None
    dinov2: ImageEncoder | None = None
    """Subjects across clips (vbench_long)."""
    dreamsim: ImageEncoder | None = None
    """Backgrounds across clips (vbench_long)."""
    absent: dict[str, str] = field(default_factory=dict)
    """Field -> what is missing and where it comes from."""

    def present(self) -> dict[str, Network]:
        """The networks that are there, by field."""
        return {item.name: value for item in fields(self) if item.name != "absent" and (value := getattr(self, item.name)) is not None}
