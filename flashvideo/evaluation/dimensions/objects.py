"""Object class, multiple objects, colour and spatial relationship: rules over a detector's answers.

Sources: Vchitect/VBench vbench/object_class.py, multiple_objects.py, color.py, spatial_relationship.py, commit 45e79ec.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from flashvideo.evaluation.dimensions.frame_choice import ChosenFrames, dense_caption_pixels, detector_pixels, middle_frames
from flashvideo.evaluation.networks.interfaces import Detection, Detector, Network
from flashvideo.evaluation.scores import ClipFacts, ClipScore, Prompt, look_for, mean_score

FRAMES = 16
COLOURS = ("white", "red", "pink", "blue", "silver", "purple", "orange", "green", "gray", "yellow", "black", "grey")
IOU_LIMIT = 0.1
Frames = Sequence[Sequence[Detection]]
"""The detections of each frame; an empty list is a frame without any."""


def hits(frames: Frames, wanted: Sequence[str]) -> list[bool]:
    """Frame by frame, whether every wanted class is among the detections."""
    return [set(wanted) <= {found.label for found in frame} for frame in frames]


def two_objects(text: str) -> tuple[str, str]:
    """ "a and b" -> (a, b). Raises ValueError otherwise."""
    parts = [part.strip() for part in text.split(" and ")]
    if len(parts) != 2 or not all(parts):
        raise ValueError(f'multiple_objects looks for "{text}"; it must be two objects with " and " between')
    return parts[0], parts[1]


def coloured_object(prompt: str, colour: str) -> str:
    """The object of "a red bicycle": the prompt without articles and colour."""
    return prompt.replace("a ", "").replace("an ", "").replace(colour, "").strip()


def colour_counts(frames: Frames, wanted: str, colour: str, faithful: bool) -> tuple[int, int]:
    """Frames where the object is seen in the colour, and frames where it is seen in any of 12 colours.

    Faithful: every caption counts as of the class of the frame's first detection (the reference's detections share
    one list of classes, of which it reads the first).
    """
    right = any_colour = 0
    for frame in frames:
        labels = [frame[0].label] * len(frame) if faithful and frame else [found.label for found in frame]
        captions = [found.caption for found, label in zip(frame, labels, strict=True) if label == wanted]
        right += any(colour in caption for caption in captions)
        any_colour += any(name in caption for caption in captions for name in COLOURS)
    return right, any_colour


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes x0 y0 x1 y1; 0 where both are empty."""
    across = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    down = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - across * down
    return across * down / union if union > 0 else 0.0


def position_score(relation: str, a: Sequence[float], b: Sequence[float], faithful: bool) -> float:
    """How well box `a` stands in `relation` to box `b`: 1, or 0.1 / IoU where they overlap by 0.1 or more, or 0.

    left and right ask for |dx| > |dy|, top and bottom for |dy| > |dx|, between centres. Faithful: which side does not
    matter; otherwise it does. Raises ValueError for another relation.
    """
    sides = {"left": (0, 1), "right": (0, -1), "top": (1, 1), "bottom": (1, -1)}
    side = next((name for name in sides if relation == f"on the {name} of"), None)
    if side is None:
        raise ValueError(f'spatial_relationship knows "on the left|right|top|bottom of", not "{relation}"')
    axis, sign = sides[side]
    delta = [(b[k] + b[k + 2]) / 2 - (a[k] + a[k + 2]) / 2 for k in (0, 1)]
    if abs(delta[axis]) <= abs(delta[1 - axis]) or (not faithful and delta[axis] * sign < 0):
        return 0.0
    shared = overlap(a, b)
    return 1.0 if shared < IOU_LIMIT else IOU_LIMIT / shared


def spatial_scores(frames: Frames, object_a: str, object_b: str, relation: str, faithful: bool) -> list[float]:
    """The best pair's score of each frame, 0 without a pair.

    Faithful: any two boxes of either class, in the order found; otherwise one of `object_a` with one of `object_b`.
    """
    scores = []
    for frame in frames:
        if faithful:
            boxes = [found.box for found in frame if found.label in (object_a, object_b)]
            pairs = [(a, b) for place, a in enumerate(boxes) for b in boxes[place + 1 :]]
        else:
            sides = [[found.box for found in frame if found.label == name] for name in (object_a, object_b)]
            pairs = [(a, b) for a in sides[0] for b in sides[1] if a is not b]
        scores.append(max((position_score(relation, a, b, faithful) for a, b in pairs), default=0.0))
    return scores


class OncePerFrame:
    """A detector with its preparation that is asked once about each frame, however many dimensions look at it.

    Answers are kept as long as their frame is; frames are prepared (11 MB of floats at 720p) one at a time.
    """

    def __init__(self, detector: Detector, prepare: Callable[[np.ndarray], np.ndarray]) -> None:
        self._detector, self._prepare = detector, prepare
        self._known: dict[int, tuple[weakref.ref[np.ndarray], list[Detection]]] = {}

    def __call__(self, frames: Sequence[np.ndarray]) -> list[list[Detection]]:
        return [self._detections(frame) for frame in frames]

    def _detections(self, frame: np.ndarray) -> list[Detection]:
        place = id(frame)
        kept = self._known.get(place)
        if kept is not None and kept[0]() is frame:
            return kept[1]
        [found] = self._detector([self._prepare(frame)])
        self._known[place] = (weakref.ref(frame, lambda _: self._known.pop(place, None)), found)
        return found


class DetectionMeasurement:
    """Keeps the middle 16 frames as they come (uint8, shared with the other dimensions), then asks."""

    def __init__(self, detector: OncePerFrame, facts: ClipFacts, rule: Callable[[Frames], ClipScore]) -> None:
        self._detector, self._rule = detector, rule
        self._chosen = ChosenFrames(middle_frames(facts.frames, FRAMES))

    def add(self, index: int, frame: np.ndarray) -> None:
        if self._chosen.wants(index):
            self._chosen.keep(index, frame)

    def result(self) -> ClipScore:
        return self._rule(self._detector(self._chosen.all()))


class ObjectDimension:
    """One of the four rules with its detector. Dimensions that share a detector may share its `answers`."""

    version = "vbench@45e79ec/1"

    def __init__(self, name: str, detector: Detector, faithful: bool, answers: OncePerFrame | None = None) -> None:
        self.name = name
        self.networks: Mapping[str, Network] = {"detector": detector}
        self._faithful = faithful
        self._answers = answers or OncePerFrame(detector, dense_caption_pixels if name == "color" else detector_pixels)
        self._rules = {
            "object_class": self._object_class,
            "multiple_objects": self._multiple_objects,
            "color": self._colour,
            "spatial_relationship": self._spatial,
        }
        if name not in self._rules:
            raise ValueError(f"{name} is none of {', '.join(self._rules)}")

    def start(self, facts: ClipFacts, prompt: Prompt) -> DetectionMeasurement:
        return DetectionMeasurement(self._answers, facts, self._rules[self.name](prompt))

    def _object_class(self, prompt: Prompt) -> Callable[[Frames], ClipScore]:
        wanted = look_for(prompt, self.name, "object")["object"]
        return lambda frames: _hit_score(hits(frames, [wanted]))

    def _multiple_objects(self, prompt: Prompt) -> Callable[[Frames], ClipScore]:
        wanted = two_objects(look_for(prompt, self.name, "object")["object"])
        return lambda frames: _hit_score(hits(frames, wanted))

    def _colour(self, prompt: Prompt) -> Callable[[Frames], ClipScore]:
        colour = look_for(prompt, self.name, "color")["color"]
        if not any(name in colour for name in COLOURS):
            raise ValueError(f'color looks for "{colour}"; it counts captions with one of {", ".join(COLOURS)}')
        wanted = coloured_object(prompt.text, colour)

        def rule(frames: Frames) -> ClipScore:
            right, any_colour = colour_counts(frames, wanted, colour, self._faithful)
            if any_colour == 0:  # such a video is left out of the mean
                return ClipScore(value=None, total=0, count=0)
            share = right / any_colour
            return ClipScore(value=share, total=share, count=1, extras={"cur_success_frame_rate": share})

        return rule

    def _spatial(self, prompt: Prompt) -> Callable[[Frames], ClipScore]:
        entry = look_for(prompt, self.name, "object_a", "object_b", "relationship")
        position_score(entry["relationship"], (0, 0, 1, 1), (2, 0, 3, 1), True)  # an unknown relation is refused before decoding

        def rule(frames: Frames) -> ClipScore:
            scores = spatial_scores(frames, entry["object_a"], entry["object_b"], entry["relationship"], self._faithful)
            return mean_score(scores, frame_results=scores)

        return rule


def _hit_score(found: list[bool]) -> ClipScore:
    return mean_score(found, success_frame_count=sum(found), frame_count=len(found))
