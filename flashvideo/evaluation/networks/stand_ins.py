"""Closed-form stand-ins for every network: the whole flow runs without weights, and its numbers mean nothing.

Each is recorded as a stand-in in whatever it scores. Their answers can be worked out by hand.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

from flashvideo.evaluation.networks.interfaces import Detection, Networks

PALETTE = {
    "black": (0, 0, 0),
    "white": (255, 255, 255),
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "purple": (128, 0, 128),
    "orange": (255, 165, 0),
    "pink": (255, 192, 203),
}


class StandIn:
    """Says so."""

    identity = "closed form 1"
    is_stand_in = True

    @property
    def name(self) -> str:
        return type(self).__name__


class MeanColourEncoder(StandIn):
    """Mean of each channel and 1: B 3 H W -> B 4. A text is the colour that it names, over 255, and 1."""

    def __call__(self, pictures: torch.Tensor) -> torch.Tensor:
        return torch.cat([pictures.flatten(2).mean(-1), torch.ones(len(pictures), 1)], dim=1)

    def text(self, texts: list[str]) -> torch.Tensor:
        return torch.stack([torch.tensor([*(level / 255 for level in named_colour(text)), 1.0]) for text in texts])


class MeanColourVideoEncoder(MeanColourEncoder):
    """The same over B T 3 H W."""

    def __call__(self, clip: torch.Tensor) -> torch.Tensor:
        return super().__call__(clip.transpose(1, 2).flatten(3).flatten(2)[..., None])


class MeanFeatureHead(StandIn):
    """10 x the features' mean: B D -> B."""

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        return 10 * features.mean(dim=1)


class SpreadQuality(StandIn):
    """100 x the standard deviation of all pixels: B 3 H W in 0-1 -> B."""

    def __call__(self, pictures: torch.Tensor) -> torch.Tensor:
        return 100 * pictures.flatten(1).std(dim=1, correction=0)


class DifferenceFlow(StandIn):
    """x: mean absolute difference over channels, in levels; y: 0."""

    def __call__(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        across = (second - first).abs().mean(dim=1)
        return torch.stack([across, torch.zeros_like(across)], dim=1)


class AverageInterpolator(StandIn):
    """The mean of both frames."""

    def __call__(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return (first + second) / 2


class ColourDetector(StandIn):
    """One object, `label`: the bounding box of pixels brighter than the mean, captioned with its nearest colour.

    Nothing in a flat frame.
    """

    def __init__(self, label: str = "person") -> None:
        self.label = label
        self.identity = f"closed form 1, {label}"

    def __call__(self, frames: list[np.ndarray]) -> list[list[Detection]]:
        return [self._detect(frame) for frame in frames]

    def _detect(self, frame: np.ndarray) -> list[Detection]:
        light = frame.astype(np.float64).mean(axis=-1)
        rows, columns = np.nonzero(light > light.mean() + 1e-6)
        if len(rows) == 0:
            return []
        box = (float(columns.min()), float(rows.min()), float(columns.max() + 1), float(rows.max() + 1))
        return [Detection(self.label, box, f"a {nearest_colour(frame[rows, columns].mean(axis=0))} {self.label}")]


class ColourCaptioner(StandIn):
    """ "a red picture"."""

    def __call__(self, frames: list[np.ndarray]) -> list[str]:
        return [f"a {nearest_colour(frame.reshape(-1, 3).mean(axis=0))} picture" for frame in frames]


class LevelClassifier(StandIn):
    """Logit 10 for the class numbered by the mean normalised pixel, in hundredths, -10 for the others."""

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = tuple(labels)
        self.identity = f"closed form 1, classes {hashlib.sha256(repr(self.labels).encode()).hexdigest()[:16]}"

    def __call__(self, clip: torch.Tensor) -> torch.Tensor:
        logits = torch.full((len(clip), len(self.labels)), -10.0)
        places = (100 * clip.flatten(1).mean(dim=1)).round().long() % len(self.labels)
        logits[torch.arange(len(clip)), places] = 10.0
        return logits


def nearest_colour(level: Sequence[float] | np.ndarray) -> str:
    """The palette's nearest name."""
    return min(PALETTE, key=lambda name: sum((a - b) ** 2 for a, b in zip(PALETTE[name], level, strict=True)))


def named_colour(text: str) -> tuple[int, int, int]:
    """The first palette colour in a text; mid grey where there is none."""
    return next((PALETTE[name] for name in PALETTE if name in text), (128, 128, 128))


def stand_in_networks(action_labels: Sequence[str] = ("riding a bike", "marching")) -> Networks:
    """One of each."""
    colours, detector = MeanColourEncoder(), ColourDetector()
    return Networks(
        dino=colours,
        clip_b=colours,
        clip_l=colours,
        aesthetic=MeanFeatureHead(),
        quality=SpreadQuality(),
        flow=DifferenceFlow(),
        interpolator=AverageInterpolator(),
        detector=detector,
        dense_captioner=detector,
        captioner=ColourCaptioner(),
        action=LevelClassifier(action_labels),
        video_text=MeanColourVideoEncoder(),
        dinov2=colours,
        dreamsim=colours,
    )
