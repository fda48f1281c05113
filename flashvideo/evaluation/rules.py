"""The dimensions that the networks at hand can score, and what the others lack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from flashvideo.evaluation.dimensions.consistency import (
    background_across_clips,
    background_consistency,
    subject_across_clips,
    subject_consistency,
)
from flashvideo.evaluation.dimensions.dimension import Dimension
from flashvideo.evaluation.dimensions.flickering import TemporalFlickering
from flashvideo.evaluation.dimensions.frame_choice import detector_pixels
from flashvideo.evaluation.dimensions.frame_scores import AestheticQuality, ImagingQuality
from flashvideo.evaluation.dimensions.motion import DynamicDegree, MotionSmoothness
from flashvideo.evaluation.dimensions.objects import ObjectDimension, OncePerFrame
from flashvideo.evaluation.dimensions.texts import AppearanceStyle, HumanAction, Scene, VideoText
from flashvideo.evaluation.networks.interfaces import Networks
from flashvideo.evaluation.protocol import VBenchProtocol

NEEDS: dict[str, tuple[str, ...]] = {
    "subject_consistency": ("dino",),
    "background_consistency": ("clip_b",),
    "temporal_flickering": (),
    "motion_smoothness": ("interpolator",),
    "aesthetic_quality": ("clip_l", "aesthetic"),
    "imaging_quality": ("quality",),
    "dynamic_degree": ("flow",),
    "object_class": ("detector",),
    "multiple_objects": ("detector",),
    "human_action": ("action",),
    "color": ("dense_captioner",),
    "spatial_relationship": ("detector",),
    "scene": ("captioner",),
    "appearance_style": ("clip_b",),
    "temporal_style": ("video_text",),
    "overall_consistency": ("video_text",),
}
"""Networks of each dimension, by field of Networks. The static filter adds flow to temporal_flickering."""
ACROSS_NEEDS = {"subject_consistency": "dinov2", "background_consistency": "dreamsim"}
"""Slow-fast fusion's."""


@dataclass(frozen=True)
class Rules:
    """What can be scored."""

    dimensions: dict[str, Dimension]
    across: dict[str, Dimension]
    """Consistency of the clips' first frames, where the protocol fuses."""
    absent: dict[str, str]
    """Dimension -> the networks it lacks."""


def needed(dimension: str, protocol: VBenchProtocol) -> tuple[str, ...]:
    """Fields of Networks that a dimension needs under the protocol."""
    names = NEEDS[dimension]
    if dimension == "temporal_flickering" and protocol.static_filter:
        names = (*names, "flow")
    if dimension in ACROSS_NEEDS and protocol.suite == "vbench_long" and protocol.slow_fast:
        names = (*names, ACROSS_NEEDS[dimension])
    return names


def build_rules(networks: Networks, protocol: VBenchProtocol) -> Rules:
    """Every dimension whose networks are there."""
    absent: dict[str, str] = {}
    dimensions: dict[str, Dimension] = {}
    builders = _builders(networks, protocol)
    for name in NEEDS:
        lacking = [field for field in needed(name, protocol) if getattr(networks, field) is None]
        if lacking:
            absent[name] = "; ".join(networks.absent.get(field, f"no network for {field}") for field in lacking)
        else:
            dimensions[name] = builders[name]()
    across: dict[str, Dimension] = {}
    if protocol.suite == "vbench_long" and protocol.slow_fast:
        if "subject_consistency" in dimensions and networks.dinov2 is not None:
            across["subject_consistency"] = subject_across_clips(networks.dinov2)
        if "background_consistency" in dimensions and networks.dreamsim is not None:
            across["background_consistency"] = background_across_clips(networks.dreamsim)
    return Rules(dimensions, across, absent)


_Network = TypeVar("_Network")


def _there(network: _Network | None) -> _Network:
    assert network is not None  # build_rules has looked
    return network


def _builders(networks: Networks, protocol: VBenchProtocol) -> dict[str, Callable[[], Dimension]]:
    antialias, faithful = protocol.antialias, protocol.faithful

    answers = None if networks.detector is None else OncePerFrame(networks.detector, detector_pixels)
    objects = {
        name: (lambda name=name: ObjectDimension(name, _there(networks.detector), faithful, answers))
        for name in ("object_class", "multiple_objects", "spatial_relationship")
    }
    return {
        "subject_consistency": lambda: subject_consistency(_there(networks.dino), antialias),
        "background_consistency": lambda: background_consistency(_there(networks.clip_b), antialias),
        "temporal_flickering": lambda: TemporalFlickering(networks.flow if protocol.static_filter else None),
        "motion_smoothness": lambda: MotionSmoothness(_there(networks.interpolator)),
        "aesthetic_quality": lambda: AestheticQuality(_there(networks.clip_l), _there(networks.aesthetic), antialias),
        "imaging_quality": lambda: ImagingQuality(_there(networks.quality), antialias),
        "dynamic_degree": lambda: DynamicDegree(_there(networks.flow)),
        "color": lambda: ObjectDimension("color", _there(networks.dense_captioner), faithful),
        "human_action": lambda: HumanAction(_there(networks.action)),
        "scene": lambda: Scene(_there(networks.captioner)),
        "appearance_style": lambda: AppearanceStyle(_there(networks.clip_b)),
        "temporal_style": lambda: VideoText("temporal_style", _there(networks.video_text), antialias),
        "overall_consistency": lambda: VideoText("overall_consistency", _there(networks.video_text), antialias),
        **objects,
    }
