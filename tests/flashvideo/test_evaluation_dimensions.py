"""The rules of VBench's 16 dimensions on inputs whose answer is worked out by hand; networks are constructor arguments."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from flashvideo.evaluation.dimensions.consistency import Consistency, consistency
from flashvideo.evaluation.dimensions.flickering import TemporalFlickering
from flashvideo.evaluation.dimensions.frame_choice import (
    centre_crop,
    clip_pixels,
    dense_caption_pixels,
    detector_pixels,
    dino_pixels,
    middle_frames,
    musiq_pixels,
    padded,
    pil_clip_pixels,
    resized_short_side,
    unpadded,
    viclip_pixels,
)
from flashvideo.evaluation.dimensions.frame_scores import AestheticQuality, ImagingQuality
from flashvideo.evaluation.dimensions.motion import (
    DynamicDegree,
    MotionSmoothness,
    StaticFilter,
    dynamic_threshold_px,
    fastest_mean,
    interpolation_error,
    is_dynamic,
    is_static,
)
from flashvideo.evaluation.dimensions.objects import (
    ObjectDimension,
    OncePerFrame,
    colour_counts,
    coloured_object,
    hits,
    overlap,
    position_score,
    spatial_scores,
    two_objects,
)
from flashvideo.evaluation.dimensions.temporal_flickering import temporal_flickering
from flashvideo.evaluation.dimensions.texts import AppearanceStyle, HumanAction, Scene, VideoText, action_label, is_action, scene_hits
from flashvideo.evaluation.networks.interfaces import Detection
from flashvideo.evaluation.networks.stand_ins import (
    AverageInterpolator,
    ColourCaptioner,
    ColourDetector,
    DifferenceFlow,
    LevelClassifier,
    MeanColourEncoder,
    MeanColourVideoEncoder,
    MeanFeatureHead,
    SpreadQuality,
    StandIn,
)
from flashvideo.evaluation.scores import ClipFacts, ClipScore, Prompt

PLAIN = Prompt(text="a person is marching", dimensions=("human_action",))


def flat(*levels: int, height: int = 32, width: int = 48) -> list[np.ndarray]:
    """One grey frame a level."""
    return [np.full((height, width, 3), level, np.uint8) for level in levels]


def noise(frames: int, height: int = 32, width: int = 48) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), dtype=np.uint8))


def scored(dimension, frames: list[np.ndarray], prompt: Prompt = PLAIN, fps: float = 8) -> ClipScore:
    measurement = dimension.start(ClipFacts(len(frames), fps, *frames[0].shape[:2]), prompt)
    for index, frame in enumerate(frames):
        measurement.add(index, frame)
    return measurement.result()


# ---- which frames, which pixels


@pytest.mark.parametrize(
    ("frames", "count", "expected"),
    [
        (16, 16, tuple(range(16))),
        (49, 16, (1, 4, 7, 10, 13, 16, 19, 22, 25, 28, 31, 34, 37, 40, 43, 46)),
        (49, 8, (2, 8, 14, 20, 26, 32, 38, 45)),
        (3, 8, (0, 1, 2, 2, 2, 2, 2, 2)),
        (1, 4, (0, 0, 0, 0)),
        (4, 2, (0, 2)),
    ],
)
def test_middle_frames(frames, count, expected):
    assert middle_frames(frames, count) == expected


def test_dino_resizes_without_a_crop():
    assert dino_pixels(np.zeros((1080, 1920, 3), np.uint8), antialias=False).shape == (3, 224, 398)
    assert dino_pixels(np.zeros((300, 224, 3), np.uint8), antialias=False).shape == (3, 300, 224)


def test_crop_is_in_the_middle():
    ramp = torch.arange(6.0).repeat(3, 4, 1)
    assert centre_crop(ramp[None], 4)[0, 0, 0].tolist() == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="6x4 px is smaller than the 5 px crop"):
        centre_crop(ramp[None], 5)


def test_clip_pixels_keep_the_overshoot_and_viclips_do_not():
    stripes = np.zeros((448, 448, 3), np.uint8)
    stripes[:, 64:] = 255
    white, black = (1 - 0.48145466) / 0.26862954, (0 - 0.48145466) / 0.26862954
    kept, clamped = clip_pixels(stripes, antialias=False)[0], viclip_pixels(stripes, antialias=False)[0]
    assert kept.max() > white + 1e-3
    assert kept.min() < black - 1e-3
    assert clamped.max() == pytest.approx(white, abs=1e-5)
    assert clamped.min() == pytest.approx(black, abs=1e-5)


def test_antialias_changes_what_a_network_sees():
    lines = np.zeros((896, 896, 3), np.uint8)
    lines[:, ::4] = 255
    sharp, smooth = clip_pixels(lines, antialias=False)[0], clip_pixels(lines, antialias=True)[0]
    assert smooth[:, 50:-50].std() < 1e-3  # every output pixel averages whole periods
    assert (sharp - smooth).abs().mean() > 0.1
    assert pil_clip_pixels(lines)[0][:, 50:-50].std() < 0.02  # PIL always does


def test_musiq_truncates_both_sides():
    assert musiq_pixels(np.zeros((1080, 1920, 3), np.uint8), antialias=False).shape == (3, 288, 512)
    assert musiq_pixels(np.zeros((333, 1000, 3), np.uint8), antialias=False).shape == (3, 170, 512)
    assert musiq_pixels(np.full((270, 480, 3), 51, np.uint8), antialias=False).unique().tolist() == pytest.approx([0.2])


def test_detectors_see_720_lines_above_768():
    assert detector_pixels(np.zeros((1080, 1920, 3), np.uint8)).shape == (720, 1280, 3)
    assert dense_caption_pixels(np.zeros((1072, 1920, 3), np.uint8)).shape == (720, 1289, 3)
    assert detector_pixels(np.zeros((768, 800, 3), np.uint8)).shape == (768, 800, 3)


def test_padding_repeats_edges_on_both_sides():
    pixels = torch.arange(10.0).repeat(1, 3, 8, 1)
    wide = padded(pixels, 8)
    assert wide.shape == (1, 3, 8, 16)
    assert wide[0, 0, 0].tolist() == [0, 0, 0, *range(10), 9, 9, 9]
    assert torch.equal(unpadded(wide, 8, 10), pixels)
    assert padded(wide, 8) is wide


def test_short_side_keeps_the_aspect_by_truncation():
    assert resized_short_side(torch.zeros(1, 3, 270, 480), 224, "bilinear", False).shape[-2:] == (224, 398)


# ---- consistency


def test_consistency_is_the_mean_of_two_cosines():
    features = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
    half = math.sqrt(0.5)
    assert consistency(features) == pytest.approx([half, (half + 0) / 2])


def test_opposite_features_count_zero_not_minus_one():
    assert consistency(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])) == [0.0]


def test_a_still_clip_is_consistent():
    score = scored(Consistency("subject_consistency", MeanColourEncoder(), lambda frame: dino_pixels(frame, False)), flat(*[90] * 11))
    assert score.value == pytest.approx(1, abs=1e-6)
    assert (score.count, score.extras["cnt_per_video"]) == (10, 10)
    assert score.extras["video_sim"] == score.total


def test_one_frame_has_no_consistency():
    with pytest.raises(ValueError, match="at least 2"):
        scored(Consistency("subject_consistency", MeanColourEncoder(), lambda frame: dino_pixels(frame, False)), flat(90))


# ---- motion


class LineFlow(StandIn):
    """`fast` px in the top `rows` rows, 0 elsewhere."""

    def __init__(self, fast: float, rows: int) -> None:
        self.fast, self.rows = fast, rows

    def __call__(self, first, second):
        flow = torch.zeros(len(first), 2, *first.shape[-2:])
        flow[:, 0, : self.rows] = 0.6 * self.fast
        flow[:, 1, : self.rows] = 0.8 * self.fast
        return flow


def test_the_fastest_share_is_truncated_to_whole_pixels():
    flow = torch.zeros(2, 10, 10)
    flow[0, 0, :3], flow[1, 0, :3] = 3, 4
    assert fastest_mean(flow, 0.05) == pytest.approx(5 * 3 / 5)  # 5 pixels, 3 of them at 5 px
    assert fastest_mean(flow, 0.02) == pytest.approx(5)
    assert fastest_mean(flow[:, :, :9], 0.05) == pytest.approx(5 * 3 / 4)  # int(4.5) pixels
    with pytest.raises(ValueError, match="no pixel"):
        fastest_mean(flow[:, :3, :3], 0.05)


@pytest.mark.parametrize(("height", "width", "px"), [(270, 480, 6.33), (480, 854, 11.25), (1080, 1920, 25.3)])
def test_dynamic_thresholds(height, width, px):
    assert dynamic_threshold_px(height, width) == pytest.approx(px, abs=0.02)


@pytest.mark.parametrize(("frames", "needed"), [(2, 0), (3, 1), (6, 2), (10, 2), (14, 4), (16, 4), (49, 12)])
def test_dynamic_needs_a_quarter_of_the_frames_by_bankers_rounding(frames, needed):
    fast, slow = 7.0, 6.0  # threshold is 6.0 at a short side of 256, and 6.0 does not pass
    scores = [fast] * needed + [slow] * (frames - 1 - needed)
    assert is_dynamic(scores, 256, 256)
    if needed:
        assert not is_dynamic([*scores[1:], slow], 256, 256)


def test_two_frames_are_always_dynamic_and_one_never():
    assert is_dynamic([0.0], 256, 256)
    assert not is_dynamic([], 256, 256)


@pytest.mark.parametrize(("frames", "allowed"), [(4, 0), (5, 1), (16, 2), (20, 2), (49, 6)])
def test_static_allows_an_eighth_of_the_frames(frames, allowed):
    fast, slow = 3.1, 3.0
    scores = [fast] * allowed + [slow] * (frames - 1 - allowed)
    assert is_static(scores, (0, 0), 256, 300)
    assert not is_static([*scores[:-1], fast], (0, 0), 256, 300)


def test_static_limits_first_against_last():
    slow = [0.0] * 15
    assert is_static(slow, (12.0, 12.0), 256, 256)  # 3 px x 2 x 2
    assert not is_static(slow, (12.1, 0.0), 256, 256)
    assert not is_static(slow, (0.0, 12.1), 256, 256)
    assert not is_static([0.0] * 3, (0.1, 0.0), 256, 256)  # 4 frames allow none: they must be 0


def test_frames_are_an_eighth_of_a_second_apart():
    frames = flat(*[0, 200] * 12, 0)  # 25 frames; every third differs from the one before as odd and even do
    score = scored(DynamicDegree(DifferenceFlow()), frames, fps=24)
    assert len(score.extras["pair_scores"]) == 8
    assert score.value == 1
    assert len(scored(DynamicDegree(DifferenceFlow()), frames, fps=8).extras["pair_scores"]) == 24
    assert len(scored(DynamicDegree(DifferenceFlow()), frames, fps=11).extras["pair_scores"]) == 24  # round(1.375) is 1
    assert len(scored(DynamicDegree(DifferenceFlow()), frames, fps=20).extras["pair_scores"]) == 12  # round(2.5) is 2


def test_flow_runs_on_padded_frames():
    """27 rows become 32; the fast rows are 2 of 32 = 6.25 % of the padded picture, above 5 %."""
    score = scored(DynamicDegree(LineFlow(10, rows=2)), flat(0, 0, 0, 0, height=27, width=48))
    assert score.extras["pair_scores"] == pytest.approx([10, 10, 10])
    assert score.value == 1


def test_smoothness_compares_odd_frames_with_the_mean_of_their_neighbours():
    score = scored(MotionSmoothness(AverageInterpolator()), flat(0, 60, 100, 100, 200, 7))
    assert score.value == pytest.approx((255 - (10 + 50) / 2) / 255)  # the last frame, odd, has no successor


def test_smoothness_truncates_the_guess():
    assert interpolation_error(flat(10)[0], torch.full((3, 32, 48), 10.9 / 255)) == 0
    assert interpolation_error(flat(10)[0], torch.full((3, 32, 48), 1.5)) == 245
    with pytest.raises(ValueError, match="at least 3"):
        scored(MotionSmoothness(AverageInterpolator()), flat(0, 1))


def test_interpolators_see_multiples_of_16():
    seen = []

    class Watching(AverageInterpolator):
        def __call__(self, first, second):
            seen.append(first.shape)
            return super().__call__(first, second)

    assert scored(MotionSmoothness(Watching()), flat(9, 9, 9, height=20, width=33)).value == 1
    assert seen == [(1, 3, 32, 48)]


# ---- flickering and the static filter


def test_flickering_equals_the_debug_flows():
    frames = noise(5)
    assert scored(TemporalFlickering(None), frames).value == temporal_flickering([frame[..., ::-1] for frame in frames])
    assert scored(TemporalFlickering(None), flat(0, 51, 0)).value == pytest.approx(0.8)


def test_the_filter_says_static():
    assert scored(TemporalFlickering(DifferenceFlow()), flat(*[80] * 8)).extras == {"static": True}
    assert scored(TemporalFlickering(DifferenceFlow()), noise(8)).extras == {"static": False}
    assert scored(TemporalFlickering(None), noise(8)).extras == {}


def test_the_filter_compares_both_ends():
    """A slow drift passes no pair's threshold (0.375 px at 32 lines), but first against last is 0.3 x 15."""
    static = StaticFilter(LineFlow(0, 1), ClipFacts(16, 8, 32, 48))
    for frame in flat(*range(16)):
        static.add(frame)
    assert static.result()
    drift = StaticFilter(DifferenceFlow(), ClipFacts(16, 8, 256, 256))
    for frame in flat(*range(16), height=256, width=256):
        drift.add(frame)
    assert not drift.result()  # 1 px a pair stays below 3, 15 px there and back is above 12


# ---- frame scores


def test_aesthetic_quality_is_the_head_over_10():
    grey = flat(255, 255)
    white = [(1 - mean) / std for mean, std in ((0.48145466, 0.26862954), (0.4578275, 0.26130258), (0.40821073, 0.27577711))]
    expected = (sum(white) + 1) / 4 / math.sqrt(sum(value**2 for value in white) + 1)
    assert scored(AestheticQuality(MeanColourEncoder(), MeanFeatureHead(), False), grey).value == pytest.approx(expected, abs=1e-5)


def test_imaging_quality_is_over_100():
    half = np.zeros((32, 48, 3), np.uint8)
    half[:16] = 255
    assert scored(ImagingQuality(SpreadQuality(), False), [half, *flat(9)]).value == pytest.approx(0.25)


# ---- detections


def found(*labels: str) -> list[Detection]:
    return [Detection(label, (0, 0, 1, 1)) for label in labels]


def test_hits_need_every_class():
    frames = [found("cat", "dog"), found("dog"), []]
    assert hits(frames, ["dog"]) == [True, True, False]
    assert hits(frames, ["cat", "dog"]) == [True, False, False]


def test_two_objects_are_split():
    assert two_objects("bird and cat") == ("bird", "cat")
    with pytest.raises(ValueError, match='looks for "bird"'):
        two_objects("bird")


class Scripted(StandIn):
    """One answer a frame, in turn."""

    def __init__(self, *answers: list[Detection]) -> None:
        self.answers, self.asked = answers, 0

    def __call__(self, frames):
        self.asked += len(frames)
        return [self.answers[index % len(self.answers)] for index in range(self.asked - len(frames), self.asked)]


def test_object_class_is_hits_over_frames():
    prompt = Prompt(text="a cat", dimensions=("object_class",), auxiliary={"object_class": {"object": "cat"}})
    score = scored(
        ObjectDimension("object_class", Scripted(found("cat"), [], found("dog"), found("dog", "cat")), True), flat(*[0] * 20), prompt
    )
    assert (score.value, score.extras) == (0.5, {"success_frame_count": 8, "frame_count": 16})


def test_multiple_objects_need_both():
    prompt = Prompt(text="x", dimensions=("multiple_objects",), auxiliary={"multiple_objects": {"object": "cat and dog"}})
    score = scored(ObjectDimension("multiple_objects", Scripted(found("cat"), found("dog", "cat")), True), flat(*[0] * 16), prompt)
    assert (score.value, score.count) == (0.5, 16)


def test_a_detector_is_asked_once_about_each_frame():
    """Three dimensions of 16 frames each, in two clips that share 15 frames: 17 questions; gone frames are forgotten."""
    detector = Scripted(found("cat"))
    answers = OncePerFrame(detector, detector_pixels)
    frames = flat(*range(17))
    for clip in (frames[:16], frames[1:]):
        for _ in range(3):
            assert answers(clip) == [found("cat")] * 16
    assert detector.asked == 17
    del frames, clip
    answers(flat(1))
    assert detector.asked == 18


def test_a_prompt_that_says_too_little_is_refused():
    with pytest.raises(ValueError, match=r'"a cat": object_class needs auxiliary_info\.object_class with object'):
        ObjectDimension("object_class", ColourDetector(), True).start(
            ClipFacts(1, 8, 8, 8), Prompt(text="a cat", dimensions=("object_class",))
        )


def captioned(*pairs: tuple[str, str]) -> list[Detection]:
    return [Detection(label, (0, 0, 1, 1), caption) for label, caption in pairs]


def test_colour_compares_with_the_first_detections_class():
    """Faithful: the bird's caption counts as the car's where the car comes first."""
    frame = captioned(("car", "a blue car"), ("bird", "a red bird"))
    assert colour_counts([frame], "car", "red", faithful=True) == (1, 1)
    assert colour_counts([frame], "car", "red", faithful=False) == (0, 1)
    assert colour_counts([frame], "bird", "red", faithful=True) == (0, 0)
    assert colour_counts([frame], "bird", "red", faithful=False) == (1, 1)


def test_colour_counts_frames_not_detections():
    frames = [captioned(("car", "a red car"), ("car", "a red car")), captioned(("car", "a car")), captioned(("car", "a grey car")), []]
    assert colour_counts(frames, "car", "red", faithful=True) == (1, 2)


def test_a_video_without_a_coloured_object_is_dropped():
    prompt = Prompt(text="a red car", dimensions=("color",), auxiliary={"color": {"color": "red"}})
    assert scored(ObjectDimension("color", Scripted(captioned(("car", "a car"))), True), flat(0), prompt).value is None
    half = Scripted(captioned(("car", "a red car")), captioned(("car", "a blue car")))
    assert scored(ObjectDimension("color", half, True), flat(*[0] * 16), prompt).value == 0.5


def test_a_colour_that_is_not_counted_is_refused():
    """Of the captions "a brown dog" none would count as coloured, so every share would be of nothing."""
    prompt = Prompt(text="a brown dog", dimensions=("color",), auxiliary={"color": {"color": "brown"}})
    with pytest.raises(ValueError, match='color looks for "brown"; it counts captions with one of white, red'):
        ObjectDimension("color", Scripted(), True).start(ClipFacts(3, 8, 32, 48), prompt)


@pytest.mark.parametrize(("prompt", "colour", "wanted"), [("a red bicycle", "red", "bicycle"), ("an orange bird", "orange", "bird")])
def test_the_coloured_object_is_the_rest_of_the_prompt(prompt, colour, wanted):
    assert coloured_object(prompt, colour) == wanted


def test_overlap_of_boxes():
    assert overlap((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(2 / 6)
    assert overlap((0, 0, 1, 1), (2, 2, 3, 3)) == 0
    assert overlap((1, 1, 1, 1), (1, 1, 1, 1)) == 0


LEFT, RIGHT, BELOW = (0, 0, 2, 2), (4, 0, 6, 2), (0, 4, 2, 6)


@pytest.mark.parametrize(
    ("relation", "a", "b", "faithful", "score"),
    [
        ("on the left of", LEFT, RIGHT, True, 1),
        ("on the right of", LEFT, RIGHT, True, 1),  # left is never told from right
        ("on the right of", LEFT, RIGHT, False, 0),
        ("on the left of", LEFT, RIGHT, False, 1),
        ("on the top of", LEFT, RIGHT, True, 0),  # |dx| > |dy|
        ("on the top of", LEFT, BELOW, True, 1),
        ("on the bottom of", LEFT, BELOW, True, 1),
        ("on the bottom of", LEFT, BELOW, False, 0),
        ("on the top of", LEFT, BELOW, False, 1),
        ("on the left of", LEFT, (4, 4, 6, 6), True, 0),  # a diagonal is neither
        ("on the left of", LEFT, (1, 0, 3, 2), True, 0.1 / (2 / 6)),
    ],
)
def test_positions(relation, a, b, faithful, score):
    assert position_score(relation, a, b, faithful) == pytest.approx(score)


def test_an_unknown_relation_is_refused():
    with pytest.raises(ValueError, match='not "near"'):
        position_score("near", LEFT, RIGHT, True)


def test_two_boxes_of_one_class_do_in_faithful_mode():
    frame = [Detection("cat", LEFT), Detection("cat", RIGHT)]
    assert spatial_scores([frame, frame[:1], []], "cat", "dog", "on the left of", faithful=True) == [1, 0, 0]
    assert spatial_scores([frame], "cat", "dog", "on the left of", faithful=False) == [0]


def test_the_best_pair_counts():
    frame = [Detection("cat", LEFT), Detection("dog", (1, 0, 3, 2)), Detection("dog", RIGHT)]
    assert spatial_scores([frame], "cat", "dog", "on the left of", faithful=True) == [1]


def test_spatial_relationship_averages_frames():
    entry = {"spatial_relationship": {"spatial_relationship": {"object_a": "cat", "object_b": "dog", "relationship": "on the left of"}}}
    prompt = Prompt(text="x", dimensions=("spatial_relationship",), auxiliary=entry)
    detector = Scripted([Detection("cat", LEFT), Detection("dog", RIGHT)], [])
    score = scored(ObjectDimension("spatial_relationship", detector, True), flat(*[0] * 16), prompt)
    assert (score.value, score.extras["frame_results"]) == (0.5, [1, 0] * 8)


# ---- words


def test_scene_is_a_substring_match_of_every_word():
    captions = ["a parking lot", "a lot of parked cars", "the amusement parking", ""]
    assert scene_hits(captions, "park lot") == [True, True, False, False]
    assert scene_hits(captions, "amusement park") == [False, False, True, False]


def test_scene_counts_captions():
    prompt = Prompt(text="x", dimensions=("scene",), auxiliary={"scene": {"scene": {"scene": "white picture"}}})
    score = scored(Scene(ColourCaptioner()), flat(*[0, 255] * 8), prompt)
    assert (score.value, score.extras) == (0.5, {"success_frame_count": 8, "frame_count": 16})


@pytest.mark.parametrize(
    ("prompt", "label"),
    [("A person is riding a bike", "riding a bike"), ("A person is Marching-3", "marching"), ("riding a bike", "riding a bike")],
)
def test_the_action_follows_person_is(prompt, label):
    assert action_label(prompt) == label


def test_an_action_needs_rank_and_probability():
    labels = [f"class {index}" for index in range(7)]
    logits = torch.tensor([6.0, 5.0, 4.0, 3.0, math.log(0.84996 / 0.15004), 1.73, -2.0])
    assert is_action(logits, labels, "class 0")
    assert is_action(logits, labels, "class 4")  # 0.84996 is 0.85 at 4 digits
    assert not is_action(logits, labels, "class 5")  # sixth
    assert not is_action(torch.tensor([1.7, 0.0]), labels[:2], "class 0")  # 0.8455


def test_human_action():
    prompt = Prompt(text="A person is marching", dimensions=("human_action",))
    frames = flat(*[124] * 3)
    level = np.mean([(124 / 255 - mean) / std for mean, std in ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))])
    labels = ["other"] * 13
    labels[round(100 * level) % 13] = "marching"  # the class that the stand-in sees
    assert scored(HumanAction(LevelClassifier(labels)), frames, prompt).value == 1
    assert scored(HumanAction(LevelClassifier(labels)), flat(60, 60), prompt).value == 0
    with pytest.raises(ValueError, match='names the action "flying", which is no Kinetics-400 class'):
        HumanAction(LevelClassifier(labels)).start(ClipFacts(3, 8, 32, 48), Prompt(text="A person is flying", dimensions=("human_action",)))


class ZeroMeanEncoder(MeanColourEncoder):
    """Features that can be read off a text: its colour against the picture's first channel."""

    def __call__(self, pictures):
        return torch.stack([pictures[:, 0].mean((-1, -2)), torch.zeros(len(pictures))], dim=1)

    def text(self, texts):
        return torch.tensor([[3.0, 4.0]] * len(texts))


def test_appearance_style_is_the_mean_cosine_of_every_frame():
    prompt = Prompt(text="x", dimensions=("appearance_style",), auxiliary={"appearance_style": {"appearance_style": "oil"}})
    score = scored(AppearanceStyle(ZeroMeanEncoder()), flat(255, 255, 0), prompt)  # the dark frame's normalised red is negative
    assert score.extras["frame_results"] == pytest.approx([0.6, 0.6, -0.6])
    assert (score.value, score.count) == (pytest.approx(0.2), 3)
    assert score.extras["cur_sim"] == pytest.approx(-0.6)  # the last frame's, as in the reference


def test_video_text_sees_the_middle_8_frames_and_the_short_prompt():
    seen = []

    class Watching(MeanColourVideoEncoder):
        def __call__(self, clip):
            seen.append(tuple(clip.shape))
            return torch.tensor([[1.0, 0.0]])

        def text(self, texts):
            seen.append(texts)
            return torch.tensor([[3.0, 4.0]])

    assert scored(VideoText("temporal_style", Watching(), False), flat(*[0] * 49)).value == pytest.approx(0.6)
    assert seen == [(1, 8, 3, 224, 224), ["a person is marching"]]
