"""Scene, appearance style, temporal style, overall consistency and human action: frames against words.

Sources: Vchitect/VBench vbench/scene.py, appearance_style.py, temporal_style.py, overall_consistency.py,
human_action.py, commit 45e79ec.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from flashvideo.evaluation.dimensions.consistency import BATCH
from flashvideo.evaluation.dimensions.frame_choice import (
    ChosenFrames,
    action_pixels,
    caption_pixels,
    middle_frames,
    pil_clip_pixels,
    viclip_pixels,
)
from flashvideo.evaluation.networks.interfaces import ActionClassifier, Captioner, ImageTextEncoder, Network, VideoTextEncoder
from flashvideo.evaluation.scores import ClipFacts, ClipScore, Prompt, look_for, mean_score, single_score

ACTION_TOP, ACTION_PROBABILITY = 5, 0.85


def scene_hits(captions: Sequence[str], scene: str) -> list[bool]:
    """Caption by caption, whether every word of the scene's name stands in it, as a substring."""
    return [all(word in caption for word in scene.split(" ")) for caption in captions]


def action_label(prompt: str) -> str:
    """The class that "A person is riding a bike" names: after "person is ", up to "-" or "_", in lower case."""
    return prompt.lower().split("-")[0].split("person is ")[-1].split("_")[0]


def is_action(logits: torch.Tensor, labels: Sequence[str], wanted: str) -> bool:
    """Whether `wanted` is among the 5 likeliest classes with a sigmoid, rounded to 4 digits, of at least 0.85."""
    likely, places = torch.topk(torch.sigmoid(logits.float()), min(ACTION_TOP, len(labels)))
    return any(
        round(value, 4) >= ACTION_PROBABILITY and labels[place] == wanted
        for value, place in zip(likely.tolist(), places.tolist(), strict=True)
    )


def cosine(features: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Of each row of `features` B D with `text` D."""
    return F.normalize(features.float(), dim=-1) @ F.normalize(text.float(), dim=-1)


class Scene:
    """Share of the middle 16 frames whose caption names the scene."""

    name, version = "scene", "vbench@45e79ec/1"

    def __init__(self, captioner: Captioner) -> None:
        self.networks: Mapping[str, Network] = {"captioner": captioner}
        self._captioner = captioner

    def start(self, facts: ClipFacts, prompt: Prompt) -> SceneMeasurement:
        return SceneMeasurement(self._captioner, facts, look_for(prompt, self.name, "scene")["scene"])


class SceneMeasurement:
    def __init__(self, captioner: Captioner, facts: ClipFacts, scene: str) -> None:
        self._captioner, self._scene = captioner, scene
        self._chosen = ChosenFrames(middle_frames(facts.frames, 16))

    def add(self, index: int, frame: np.ndarray) -> None:
        if self._chosen.wants(index):
            self._chosen.keep(index, caption_pixels(frame))

    def result(self) -> ClipScore:
        found = scene_hits(self._captioner(self._chosen.all()), self._scene)
        return mean_score(found, success_frame_count=sum(found), frame_count=len(found))


class AppearanceStyle:
    """Mean cosine of every frame with the style's text.

    The reference's `cur_sim` is its loop variable, so the last frame's: all that its n processes average (its pull request 207).
    One process averages the frames, as here for any number of workers.
    """

    name, version = "appearance_style", "vbench@45e79ec/2"

    def __init__(self, clip_b: ImageTextEncoder) -> None:
        self.networks: Mapping[str, Network] = {"encoder": clip_b}
        self._clip_b = clip_b

    def start(self, facts: ClipFacts, prompt: Prompt) -> AppearanceMeasurement:
        return AppearanceMeasurement(self._clip_b, look_for(prompt, self.name, self.name)[self.name])


class AppearanceMeasurement:
    def __init__(self, clip_b: ImageTextEncoder, style: str) -> None:
        self._clip_b, self._style = clip_b, clip_b.text([style])[0]
        self._waiting: list[torch.Tensor] = []
        self._scores: list[float] = []

    def add(self, index: int, frame: np.ndarray) -> None:
        self._waiting.append(pil_clip_pixels(frame))
        if len(self._waiting) == BATCH:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self._scores += cosine(self._clip_b(torch.stack(self._waiting)), self._style).tolist()
            self._waiting = []

    def result(self) -> ClipScore:
        self._flush()
        score = mean_score(self._scores)
        return score.model_copy(update={"extras": {"frame_results": self._scores, "cur_sim": self._scores[-1]}})


class VideoText:
    """Cosine of the middle 8 frames with the short prompt: temporal style, overall consistency."""

    version = "vbench@45e79ec/1"

    def __init__(self, name: str, encoder: VideoTextEncoder, antialias: bool) -> None:
        self.name = name
        self.networks: Mapping[str, Network] = {"encoder": encoder}
        self._encoder, self._antialias = encoder, antialias

    def start(self, facts: ClipFacts, prompt: Prompt) -> VideoTextMeasurement:
        return VideoTextMeasurement(self._encoder, facts, prompt.text, self._antialias)


class VideoTextMeasurement:
    def __init__(self, encoder: VideoTextEncoder, facts: ClipFacts, text: str, antialias: bool) -> None:
        self._encoder, self._text, self._antialias = encoder, text, antialias
        self._chosen = ChosenFrames(middle_frames(facts.frames, 8))

    def add(self, index: int, frame: np.ndarray) -> None:
        if self._chosen.wants(index):
            self._chosen.keep(index, viclip_pixels(frame, self._antialias).numpy())

    def result(self) -> ClipScore:
        clip = torch.from_numpy(np.stack(self._chosen.all()))[None]
        return single_score(cosine(self._encoder(clip), self._encoder.text([self._text])[0]).item())


class HumanAction:
    """Whether the prompt's action is recognised in the middle 16 frames."""

    name, version = "human_action", "vbench@45e79ec/1"

    def __init__(self, action: ActionClassifier) -> None:
        self.networks: Mapping[str, Network] = {"action": action}
        self._action = action

    def start(self, facts: ClipFacts, prompt: Prompt) -> ActionMeasurement:
        wanted = action_label(prompt.text)
        if wanted not in self._action.labels:
            raise ValueError(f'"{prompt.text}" names the action "{wanted}", which is no Kinetics-400 class')
        return ActionMeasurement(self._action, facts, wanted)


class ActionMeasurement:
    def __init__(self, action: ActionClassifier, facts: ClipFacts, wanted: str) -> None:
        self._action, self._wanted = action, wanted
        self._chosen = ChosenFrames(middle_frames(facts.frames, 16))

    def add(self, index: int, frame: np.ndarray) -> None:
        if self._chosen.wants(index):
            self._chosen.keep(index, action_pixels(frame).numpy())

    def result(self) -> ClipScore:
        clip = torch.from_numpy(np.stack(self._chosen.all(), axis=1))[None]
        right = is_action(self._action(clip)[0], self._action.labels, self._wanted)
        return single_score(right, cor_num_per_video=int(right))
