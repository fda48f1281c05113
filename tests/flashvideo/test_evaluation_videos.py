"""Whole evaluations of small films with stand-in networks: invariants, shards, resuming, bad input."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from flashvideo.evaluation import evaluator as evaluator_module
from flashvideo.evaluation.aggregation import Scored, dimension_score, video_parts
from flashvideo.evaluation.confidence import bootstrap, clips_that_fit, grid_place
from flashvideo.evaluation.evaluator import Evaluator
from flashvideo.evaluation.fusion import MappingTable
from flashvideo.evaluation.large_blocks import return_large_blocks
from flashvideo.evaluation.networks.stand_ins import MeanColourEncoder, stand_in_networks
from flashvideo.evaluation.networks.umt import kinetics_labels
from flashvideo.evaluation.preflight import look
from flashvideo.evaluation.protocol import VBenchProtocol
from flashvideo.evaluation.published import TABLE_1
from flashvideo.evaluation.rules import build_rules
from flashvideo.evaluation.score_store import ScoreStore, VideoScore
from flashvideo.evaluation.scores import ClipFacts, ClipScore, Prompt
from flashvideo.evaluation.suite import SuiteError, VideoItem, find_videos, read_prompts
from flashvideo.evaluation.totals import DIMENSIONS
from flashvideo.evaluation.vbench_results import VBenchResults, assemble
from flashvideo.evaluation.video_frames import ClipWriter, decoded_frames, encodable, probe
from flashvideo.video_files import VideoFileError, write_video

ENTRIES = [
    {"prompt_en": "a still thing", "dimension": ["subject_consistency", "dynamic_degree", "motion_smoothness"]},
    {"prompt_en": "a calm lake", "dimension": ["temporal_flickering"]},
    {
        "prompt_en": "a red picture",
        "dimension": ["scene", "background_consistency"],
        "auxiliary_info": {"scene": {"scene": {"scene": "red"}}},
    },
    {"prompt_en": "a person", "dimension": ["object_class"], "auxiliary_info": {"object_class": {"object": "person"}}},
    {"prompt_en": "two", "dimension": ["multiple_objects"], "auxiliary_info": {"multiple_objects": {"object": "person and dog"}}},
    {"prompt_en": "a red person", "dimension": ["color"], "auxiliary_info": {"color": {"color": "red"}}},
    {
        "prompt_en": "a person on the left of a dog",
        "dimension": ["spatial_relationship"],
        "auxiliary_info": {
            "spatial_relationship": {"spatial_relationship": {"object_a": "person", "object_b": "dog", "relationship": "on the left of"}}
        },
    },
    {"prompt_en": "a blue sea", "dimension": ["appearance_style"], "auxiliary_info": {"appearance_style": {"appearance_style": "blue"}}},
    {"prompt_en": "a green hill", "dimension": ["overall_consistency", "aesthetic_quality", "imaging_quality"]},
    {"prompt_en": "a zoom", "dimension": ["temporal_style"]},
    {"prompt_en": "a person is marching", "dimension": ["human_action"]},
]
SHARED = Path(__file__).resolve().parents[3] / "shared"
HOSTILE, VBENCH = SHARED / "corpus" / "hostile", SHARED / "vbench"
TABLES = {name: MappingTable(((0.0, 0.0), (1.0, 1.0))) for name in ("subject_consistency", "background_consistency")}


def film(frames: int, kind: str, seed: int = 0) -> np.ndarray:
    if kind == "still":
        return np.broadcast_to(np.random.default_rng(seed).integers(0, 256, (1, 32, 48, 3), dtype=np.uint8), (frames, 32, 48, 3)).copy()
    if kind == "noise":
        return np.random.default_rng(seed).integers(0, 256, (frames, 32, 48, 3), dtype=np.uint8)
    ramp = np.linspace(0, 200, frames)[:, None, None, None] + np.arange(48)[None, None, :, None]
    return np.broadcast_to(ramp, (frames, 32, 48, 3)).clip(0, 255).astype(np.uint8)


def protocol(**changes: object) -> VBenchProtocol:
    return VBenchProtocol.model_validate({"suite": "vbench", "prompts": "short", "prompts_sha256": "ab" * 32} | changes)


@pytest.fixture
def prompts(tmp_path: Path):
    (tmp_path / "full_info.json").write_text(json.dumps(ENTRIES))
    return read_prompts(tmp_path / "full_info.json")


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Two films a prompt, 11 prompts, 12 frames at 4 fps: two clips of 2 s."""
    folder = tmp_path / "videos"
    for place, entry in enumerate(ENTRIES):
        for index in range(2):
            kind = ("still", "noise", "ramp")[(place + index + 2) % 3]
            write_video(folder / f"{entry['prompt_en']}-{index}.mp4", film(12, kind, seed=place), 4, crf=0)
    return folder


def evaluator(store: Path, **changes: object) -> Evaluator:
    chosen = protocol(**changes)
    return Evaluator(chosen, build_rules(stand_in_networks(("riding a bike", "marching")), chosen), ScoreStore(store))


def results(judge: Evaluator, items, problems=()) -> VBenchResults:
    return assemble(judge.protocol, items, judge.score_of, TABLES, judge.rules.absent, problems)


# ---- the whole suite


def test_every_dimension_runs_without_weights(videos, prompts, tmp_path):
    suite = find_videos(videos, prompts, samples=2)
    judge = evaluator(tmp_path / "scores")
    tally = judge.evaluate(suite.items)
    assert (tally.scored, tally.kept, tally.problems) == (22, 0, [])
    outcome = results(judge, suite.items)
    assert [one.dimension for one in outcome.dimensions if one.score is None] == []
    assert all(one.stand_in for one in outcome.dimensions)
    assert outcome.notes == ((f"STAND-IN networks scored 16 dimensions ({', '.join(DIMENSIONS)}): these numbers mean nothing"),)
    assert outcome.protocol["digest"] == judge.protocol.digest
    assert outcome.totals["total"] is not None
    low, high = outcome.intervals["total"]
    assert low <= outcome.totals["total"] <= high


@pytest.mark.parametrize("changes", [{}, {"suite": "vbench_long", "re_encode": "crf23"}], ids=["vbench", "vbench_long"])
def test_order_shards_and_resuming_change_nothing(videos, prompts, tmp_path, changes):
    items = find_videos(videos, prompts, samples=2).items
    once = evaluator(tmp_path / "once", **changes)
    once.evaluate(items)
    first = results(once, items)

    for shard in (2, 0, 1):  # three workers, each with its own process state, in any order
        evaluator(tmp_path / "shards", **changes).evaluate(items[::-1], shard, 3)
    assert results(evaluator(tmp_path / "shards", **changes), items[::-1]) == first

    evaluator(tmp_path / "resumed", **changes).evaluate(items[:7])  # killed after 7
    again = evaluator(tmp_path / "resumed", **changes)
    tally = again.evaluate(items)
    assert (tally.scored, tally.kept) == (15, 7)
    assert results(again, items) == first
    assert again.evaluate(items).scored == 0


def test_a_run_stopped_inside_a_video_keeps_the_others(videos, prompts, tmp_path):
    items = find_videos(videos, prompts, samples=2).items
    judge = evaluator(tmp_path / "scores")

    def stop(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judge.evaluate(items, progress=stop)
    assert evaluator(tmp_path / "scores").evaluate(items).kept == 5


def test_progress_goes_on_inside_a_long_video(videos, prompts, tmp_path, monkeypatch):
    """A video of a minute is minutes of work: the share of its frames counts."""
    monkeypatch.setattr(evaluator_module, "SAY_EVERY_S", 0.0)
    items = find_videos(videos, prompts, samples=2).items[:2]
    told: list[float] = []
    evaluator(tmp_path / "scores").evaluate(items, progress=lambda done, total: told.append(done))
    frames = [probe(item.path).frames for item in items]
    assert told == [0, *(n / frames[0] for n in range(1, frames[0] + 1)), 1, *(1 + n / frames[1] for n in range(1, frames[1] + 1)), 2]


def test_another_protocol_or_network_is_scored_anew(videos, prompts, tmp_path):
    items = find_videos(videos, prompts, samples=2).items
    evaluator(tmp_path / "scores").evaluate(items)
    assert evaluator(tmp_path / "scores", antialias=True).evaluate(items).scored == 22

    class OtherEncoder(MeanColourEncoder):
        identity = "closed form 2"

    networks = stand_in_networks(("riding a bike", "marching"))
    changed = Evaluator(
        protocol(), build_rules(type(networks)(**vars(networks) | {"dino": OtherEncoder()}), protocol()), ScoreStore(tmp_path / "scores")
    )
    tally = changed.evaluate(items)
    assert (tally.scored, tally.kept) == (2, 20)  # the two videos of subject consistency


# ---- invariants


def judged(kind: str, tmp_path: Path, frames: int = 20, **changes: object) -> VBenchResults:
    names = ["subject_consistency", "background_consistency", "temporal_flickering", "dynamic_degree", "motion_smoothness"]
    path = tmp_path / f"{kind}-0.mp4"
    write_video(path, film(frames, kind), 8, crf=0)
    item = VideoItem(path=path, prompt=Prompt(text=kind, dimensions=tuple(names)), dimensions=tuple(names), index=0)
    judge = evaluator(tmp_path / "scores", **changes)
    tally = judge.evaluate([item])
    assert tally.problems == []
    return results(judge, [item])


@pytest.mark.parametrize("suite", ["vbench", "vbench_long"])
def test_identical_frames_are_consistent_still_smooth_and_static(tmp_path, suite):
    outcome = judged("still", tmp_path, suite=suite)
    assert outcome.of("subject_consistency").score == pytest.approx(1, abs=1e-6)
    assert outcome.of("background_consistency").score == pytest.approx(1, abs=1e-6)
    assert outcome.of("temporal_flickering").score == 1  # so the static filter let it through
    assert outcome.of("motion_smoothness").score == 1
    assert outcome.of("dynamic_degree").score == 0


def test_noise_is_dynamic_and_not_static(tmp_path):
    outcome = judged("noise", tmp_path)
    assert outcome.of("dynamic_degree").score == 1
    assert (outcome.of("temporal_flickering").score, outcome.of("temporal_flickering").reason) == (None, "no video counts")
    assert judged("noise", tmp_path, static_filter=False).of("temporal_flickering").score < 0.75


# ---- clips, writing again, fusion


def test_each_clip_is_scored_and_the_fused_score_is_half_and_half(tmp_path):
    outcome = judged("ramp", tmp_path, suite="vbench_long")
    subject = outcome.of("subject_consistency").videos[0]
    assert sorted(subject.clips) == ["000", "001"]  # 20 frames at 8 fps
    store = ScoreStore(tmp_path / "scores")
    kept = [VideoScore.model_validate_json(path.read_text()) for path in store.folder.rglob("*.json")]
    mine = next(one for one in kept if one.dimension == "subject_consistency")
    assert subject.clips["000"] == pytest.approx((mine.clips["000"].value + mine.across) / 2)
    assert outcome.of("subject_consistency").score == pytest.approx(sum(subject.clips.values()) / 2)


def test_writing_again_blurs_noise_and_gives_every_frame_back(tmp_path):
    noise = film(16, "noise")
    for mode, repeat in (("1.024M", 2), ("crf23", 2)):
        outcomes = []
        for _ in range(repeat):
            writer = ClipWriter(mode, True, 8, 32, 48)
            for frame in noise:
                writer.add(encodable(frame))
            outcomes.append(np.stack(list(writer.frames())))
        assert outcomes[0].shape == noise.shape
        assert not np.array_equal(outcomes[0], noise)
        assert np.array_equal(*outcomes)
    with pytest.raises(ValueError, match="48x31 px cannot be written again"):
        ClipWriter("crf23", True, 8, 31, 48)


def test_clips_that_overlap_are_encoded_one_after_another(tmp_path, monkeypatch):
    """21 frames at 8 fps: clips of frames 0-15 and 5-20. Each ends equal to the same frames as a film of their own."""
    from flashvideo.evaluation import evaluator as module

    class Watched(ClipWriter):
        opened, most = 0, 0

        def __init__(self, *given) -> None:
            super().__init__(*given)
            Watched.opened += 1
            Watched.most = max(Watched.most, Watched.opened)

        def frames(self):
            yield from super().frames()
            Watched.opened -= 1

    monkeypatch.setattr(module, "ClipWriter", Watched)
    names = ("subject_consistency", "motion_smoothness", "object_class", "multiple_objects")
    given = {"object_class": {"object": "person"}, "multiple_objects": {"object": "person and dog"}}
    prompt = Prompt(text="a", dimensions=names, auxiliary=given)
    scores = {}
    for name, frames in (("whole", film(21, "noise")), ("alone", film(21, "noise")[5:])):
        write_video(tmp_path / f"{name}.mp4", frames, 8, crf=0)
        item = VideoItem(path=tmp_path / f"{name}.mp4", prompt=prompt, dimensions=names, index=0)
        judge = evaluator(tmp_path / "scores", suite="vbench_long", re_encode="crf23", slow_fast=False)
        assert judge.evaluate([item]).problems == []
        scores[name] = [judge.score_of(item, dimension).clips for dimension in names]
    assert Watched.most == 1
    assert [clips["001"] for clips in scores["whole"]] == [clips["000"] for clips in scores["alone"]]


def test_frames_are_kept_as_they_come_and_once_for_all_detectors(tmp_path):
    """1080p as float is 25 MB a frame: the three dimensions of one detector keep the same 16 uint8 arrays."""
    chosen = protocol()
    rules = build_rules(stand_in_networks(), chosen)
    given = {"object_class": {"object": "person"}, "multiple_objects": {"object": "person and dog"}}
    prompt = Prompt(text="a", dimensions=tuple(given), auxiliary=given)
    started = [rules.dimensions[name].start(ClipFacts(20, 8, 32, 48), prompt) for name in given]
    frames = list(film(20, "noise"))
    for index, frame in enumerate(frames):
        for measurement in started:
            measurement.add(index, frame)
    kept = [measurement._chosen.all() for measurement in started]
    assert len(kept[0]) == 16 and all(any(one is frame for frame in frames) for one in kept[0])
    assert all(a is b for a, b in zip(*kept, strict=True))
    assert return_large_blocks() is sys.platform.startswith("linux")


def test_a_video_is_decoded_once_for_all_dimensions(tmp_path, monkeypatch):
    from flashvideo.evaluation import evaluator as module

    opened = []

    def counting(path):
        opened.append(path.name)
        return decoded_frames(path)

    monkeypatch.setattr(module, "decoded_frames", counting)
    judged("ramp", tmp_path, suite="vbench_long")
    assert opened == ["ramp-0.mp4"]


# ---- aggregation


def one(name: str, prompt: str, clips: dict[str, ClipScore], dimension: str = "scene") -> Scored:
    item = VideoItem(path=Path(f"{name}.mp4"), prompt=Prompt(text=prompt, dimensions=(dimension,)), dimensions=(dimension,), index=0)
    score = VideoScore(video=name, video_sha256="0", dimension=dimension, metric="m", protocol="p", stand_in=False, clips=clips)
    return Scored(item, score)


def clip(value: float | None, total: float = 0, count: int = 0, **extras: object) -> ClipScore:
    return ClipScore(value=value, total=total, count=count, extras=extras)


def mean_of(dimension: str, scored: list[Scored], **changes: object) -> float | None:
    return dimension_score(video_parts(dimension, scored, protocol(slow_fast=False, **changes), {})[0])


def test_flat_and_per_video_means():
    """Video a: 3 clips of 1; video b: 1 clip of 0. Flat 3/4, by video 1/2."""
    scored = [one("a", "p", {f"00{n}": clip(1) for n in range(3)}), one("b", "q", {"000": clip(0)})]
    assert mean_of("scene", scored, suite="vbench_long") == 0.75
    assert mean_of("scene", scored, suite="vbench_long", faithful=False) == 0.5
    assert mean_of("temporal_flickering", scored, suite="vbench_long", static_filter=False) == 0.5


def test_plain_vbench_pools_frames_in_seven_dimensions():
    """3 of 4 frames and 0 of 1: 3/5 pooled, 3/8 by video."""
    scored = [one("a", "p", {"full": clip(0.75, 3, 4)}), one("b", "q", {"full": clip(0, 0, 1)})]
    assert mean_of("scene", scored) == 0.6
    assert mean_of("temporal_style", scored) == 0.375


def test_videos_without_a_score_are_left_out():
    assert mean_of("color", [one("a", "p", {"full": clip(None)}), one("b", "q", {"full": clip(0.5, 0.5, 1)})]) == 0.5
    assert mean_of("color", [one("a", "p", {"full": clip(None)})]) is None


def test_the_first_five_static_videos_of_a_prompt_count():
    static = [one(f"p-{n:02d}", "p", {"full": clip(n / 10, static=n != 1)}, "temporal_flickering") for n in range(8)]
    parts, problems = video_parts("temporal_flickering", static, protocol(), {})
    assert [part.video for part in parts] == ["p-00", "p-02", "p-03", "p-04", "p-05"]
    assert problems == []
    few, problems = video_parts("temporal_flickering", static[:3], protocol(), {})
    assert [part.video for part in few] == ["p-00", "p-02"]
    assert [problem.message for problem in problems] == ['"p": 2 of 5 static videos or clips']


def test_a_fused_clip_says_what_it_was_fused_from():
    """In clip 0.5, across clips 0.25, mapped to 0.75: fused 0.625. A video of one clip has no across-clips score: 0, and 0.5 alone."""
    table = MappingTable(((0.0, 0.0), (0.25, 0.75), (1.0, 1.0)))
    several = one("a", "p", {"000": clip(0.5), "001": clip(0.5)}, "subject_consistency")
    scored = [several._replace(score=several.score.model_copy(update={"across": 0.25})), one("b", "q", {"full": clip(0.5)})]
    parts, _ = video_parts("subject_consistency", scored, protocol(suite="vbench_long"), {"subject_consistency": table})
    assert [part.clips for part in parts] == [{"000": 0.625, "001": 0.625}, {"full": 0.5}]
    assert parts[0].extras["001"] == {"inclip_score": 0.5, "clip2clip_score": 0.25, "mapped_clip2clip_score": 0.75}
    assert parts[1].extras["full"] == {"inclip_score": 0.5, "clip2clip_score": 0.0, "mapped_clip2clip_score": 0.0}


def test_fusion_without_its_table_is_refused():
    with pytest.raises(ValueError, match="slow-fast fusion needs its mapping table"):
        video_parts("subject_consistency", [one("a", "p", {"000": clip(1)})], protocol(suite="vbench_long"), {})


# ---- what can be wrong


def test_bad_videos_are_named_and_the_rest_is_scored(videos, prompts, tmp_path):
    whole = (videos / "two-0.mp4").read_bytes()
    (videos / "two-0.mp4").write_bytes(whole[: len(whole) * 2 // 3])  # index in front, end missing
    (videos / "two-1.mp4").write_bytes(b"")
    write_video(videos / "a zoom-1.mp4", film(9, "still"), 8, crf=10)
    write_video(videos / "A Zoom-0.mp4", film(12, "still"), 8, crf=10)
    write_video(videos / "again" / "a zoom-0.mp4", film(12, "still"), 8, crf=10)
    (videos / "a calm lake-1.mp4").unlink()
    suite = find_videos(videos, prompts, samples=2)
    told = {(problem.kind, problem.item): problem.message for problem in suite.problems}
    assert told == {
        ("name", "A Zoom-0.mp4"): '"A Zoom-0.mp4": no prompt reads "A Zoom"; did you mean "a zoom"?',
        ("duplicate", "again/a zoom-0.mp4"): "again/a zoom-0.mp4 repeats a zoom-0.mp4; the latter counts",
        ("missing", "a calm lake"): '"a calm lake": 1 of 2 videos',
    }
    chosen = protocol()
    judge = Evaluator(chosen, build_rules(stand_in_networks(("riding a bike", "marching")), chosen), ScoreStore(tmp_path / "scores"), 12)
    tally = judge.evaluate(suite.items)
    messages = {problem.item: (problem.kind, problem.message) for problem in tally.problems}
    assert set(messages) == {"two-0.mp4", "two-1.mp4", "a zoom-1.mp4"}
    assert messages["two-0.mp4"][0] == messages["two-1.mp4"][0] == "unreadable"
    assert messages["a zoom-1.mp4"] == ("frames", "a zoom-1.mp4 has 9 frames, 12 are expected; it is left out")
    assert tally.scored == 18
    again = judge.evaluate(suite.items)
    assert (again.scored, again.problems) == (0, tally.problems)
    outcome = results(judge, suite.items, (*suite.problems, *tally.problems))
    assert [one.dimension for one in outcome.dimensions if one.score is None] == ["multiple_objects"]
    assert outcome.of("multiple_objects").reason == "no video could be scored"
    assert len(outcome.problems) == 6 + 1  # and too few static videos
    assert outcome.totals["total"] is None


def test_a_truncated_file_is_told_by_its_index(tmp_path):
    write_video(tmp_path / "a.mp4", film(24, "noise"), 8, crf=10)
    data = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "b.mp4").write_bytes(data[: len(data) // 2])
    with pytest.raises(VideoFileError, match=r"b\.mp4 "):
        list(decoded_frames(tmp_path / "b.mp4")) if probe(tmp_path / "b.mp4") else None


@pytest.mark.corpus
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("corrupted_packets.mp4", "damaged|cannot be decoded"),
        ("truncated_faststart.mp4", "truncated|damaged|cannot be decoded"),
        ("truncated_no_moov.mp4", "cannot be read as a video"),
        ("empty.mp4", "cannot be read as a video"),
        ("text_named.mp4", "cannot be read as a video"),
        ("audio_only.mp4", "has no video stream"),
    ],
)
def test_hostile_files_are_named(name, message):
    path = HOSTILE / name
    if not path.is_file():
        pytest.skip(f"{name} is absent")
    with pytest.raises(VideoFileError, match=message):
        probe(path)
        list(decoded_frames(path))


def test_an_empty_folder_and_a_wrong_suite_are_refused(prompts, tmp_path):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(SuiteError, match=r"nothing holds no \.mp4 video"):
        find_videos(tmp_path / "nothing", prompts)
    with pytest.raises(SuiteError, match="absent is no folder"):
        find_videos(tmp_path / "absent", prompts)
    (tmp_path / "bad.json").write_text('[{"prompt_en": "x", "dimension": ["colour"]}]')
    with pytest.raises(SuiteError, match="entry 0 names the dimension colour"):
        read_prompts(tmp_path / "bad.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(SuiteError, match="not valid JSON"):
        read_prompts(tmp_path / "bad.json")
    with pytest.raises(SuiteError, match=r"VBench_full_info\.json is in github\.com/Vchitect/VBench"):
        read_prompts(tmp_path / "absent.json")


def test_a_video_that_one_rule_cannot_score_keeps_the_others(tmp_path):
    names = ("temporal_flickering", "subject_consistency", "dynamic_degree", "human_action")
    path = tmp_path / "a person is flying-0.mp4"
    write_video(path, film(1, "still"), 8, crf=10)
    item = VideoItem(path=path, prompt=Prompt(text="a person is flying", dimensions=names), dimensions=names, index=0)
    judge = evaluator(tmp_path / "scores")
    first, again = judge.evaluate([item]), evaluator(tmp_path / "scores").evaluate([item])
    assert (first.scored, again.scored, again.kept) == (1, 0, 1)  # why it has no score is kept too
    assert again.problems == first.problems
    told = sorted(problem.message for problem in again.problems)
    assert [message.split(": ")[1] for message in told] == ["human_action", "subject_consistency", "temporal_flickering"]
    assert results(judge, [item]).of("dynamic_degree").score == 0


def test_one_file_serves_the_dimensions_of_its_folder(tmp_path):
    (tmp_path / "info.json").write_text(
        json.dumps(
            [
                {"prompt_en": "x", "dimension": ["appearance_style"], "auxiliary_info": {"appearance_style": {"appearance_style": "oil"}}},
                {"prompt_en": "x", "dimension": ["overall_consistency", "aesthetic_quality", "imaging_quality"]},
            ]
        )
    )
    prompts = read_prompts(tmp_path / "info.json")
    assert len(prompts) == 1
    for folder in ("appearance_style", "overall_consistency"):
        write_video(tmp_path / "v" / folder / "x-0.mp4", film(2, "still"), 8, crf=10)
    suite = find_videos(tmp_path / "v", prompts, samples=1)
    assert [item.dimensions for item in suite.items] == [
        ("appearance_style",),
        ("overall_consistency", "aesthetic_quality", "imaging_quality"),
    ]
    assert suite.problems == ()
    assert set(suite.items[0].prompt.dimensions) == {"appearance_style", *suite.items[1].dimensions}  # the clip length sees all


def test_own_videos_are_named_by_a_list(tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps([{"prompt_en": "a cat", "dimension": ["temporal_style"], "video_list": ["take 1.mp4"]}]))
    write_video(tmp_path / "v" / "take 1.mp4", film(2, "still"), 8, crf=10)
    suite = find_videos(tmp_path / "v", read_prompts(tmp_path / "mine.json"))
    assert [(item.name, item.prompt.text, item.index) for item in suite.items] == [("take 1", "a cat", 0)]
    assert suite.problems == ()


def test_every_video_of_a_list_counts_whatever_its_name_and_format(tmp_path):
    """Names that follow the rule keep their index; the others take what is free, in the list's order."""
    videos = ["b.mp4", "a cat-1.mp4", "a.webm", "my dog-0.mp4"]
    (tmp_path / "mine.json").write_text(json.dumps([{"prompt_en": "a cat", "dimension": ["temporal_style"], "video_list": videos}]))
    (tmp_path / "v").mkdir()
    for name in (*videos, "c.webm"):
        (tmp_path / "v" / name).write_bytes(b"")
    suite = find_videos(tmp_path / "v", read_prompts(tmp_path / "mine.json"))
    assert {item.path.name: item.index for item in suite.items} == {"b.mp4": 0, "a cat-1.mp4": 1, "a.webm": 2, "my dog-0.mp4": 3}
    assert [problem.message for problem in suite.problems] == ['"c.webm" is no .mp4; a video of another format must stand in a video_list']
    (tmp_path / "v" / "a cat-1.mp4").unlink()
    elsewhere = [{"prompt_en": "a cat", "dimension": ["temporal_style"], "video_list": [str(tmp_path / "v" / "a.webm")]}]
    (tmp_path / "mine.json").write_text(json.dumps(elsewhere))
    found = find_videos(Path(os.path.relpath(tmp_path / "v")), read_prompts(tmp_path / "mine.json"))
    assert [item.path.name for item in found.items] == ["a.webm"]


def test_a_sixth_video_of_a_prompt_counts_for_the_static_filter_alone(tmp_path):
    """The reference reads {prompt}-0 to {prompt}-4, and before its static filter every one."""
    info = [{"prompt_en": "a", "dimension": ["scene"]}, {"prompt_en": "b", "dimension": ["temporal_flickering"]}]
    (tmp_path / "info.json").write_text(json.dumps(info))
    (tmp_path / "v").mkdir()
    for name in ("a-4", "a-5", "b-5"):
        (tmp_path / "v" / f"{name}.mp4").write_bytes(b"")
    suite = find_videos(tmp_path / "v", read_prompts(tmp_path / "info.json"))
    assert [item.name for item in suite.items] == ["a-4", "b-5"]
    assert [problem.message for problem in suite.problems if problem.fatal] == [
        "a-5.mp4 is beyond the 5 videos that count of a prompt, 0 to 4; --samples takes more"
    ]


def test_another_length_is_told_where_most_videos_have_one(tmp_path):
    prompt = Prompt(text="x", dimensions=("temporal_style",))
    items = []
    for name, frames in (("x-0", 2), ("x-1", 3), ("x-2", 2)):
        write_video(tmp_path / f"{name}.mp4", film(frames, "still"), 8, crf=10)
        items.append(VideoItem(path=tmp_path / f"{name}.mp4", prompt=prompt, dimensions=prompt.dimensions, index=0))
    assert [problem.message for problem in look(items, protocol()).problems] == ["x-1.mp4 has 3 frames, most have 2"]
    assert look(items[:2], protocol()).problems == ()  # no length is most videos'


@pytest.mark.corpus
def test_every_prompt_of_vbench_can_be_scored(tmp_path):
    """944 prompts; each dimension finds what it looks for, each action is a Kinetics class, one pair differs by case."""
    if not (VBENCH / "VBench_full_info.json").is_file():
        pytest.skip("VBench_full_info.json is absent")
    prompts = read_prompts(VBENCH / "VBench_full_info.json")
    assert len(prompts) == 944
    assert sum(set(prompt.dimensions) >= {"appearance_style", "overall_consistency"} for prompt, _ in prompts) == 2
    rules = build_rules(stand_in_networks(kinetics_labels(VBENCH / "kinetics_400_categories.txt")), protocol())
    counts = Counter()
    for prompt, _ in prompts:
        for name in prompt.dimensions:
            rules.dimensions[name].start(ClipFacts(49, 8, 270, 480), prompt)
            counts[name] += 1
    assert (counts["dynamic_degree"], counts["human_action"], counts["scene"], counts["temporal_style"]) == (72, 100, 86, 100)
    (tmp_path / "A person is marching-0.mp4").write_bytes(b"")
    suite = find_videos(tmp_path, prompts)
    assert [item.prompt.text for item in suite.items] == ["A person is marching"]
    told = Counter(problem.kind for problem in suite.problems)
    assert told == {"missing": 944, "case": 1}


# ---- how sure


def test_the_bootstrap_is_repeatable_and_spans_the_score():
    scored = [one(f"{n}-0", f"p{n}", {"full": clip(n % 2, n % 2, 1)}) for n in range(40)]
    parts, _ = video_parts("scene", scored, protocol(), {})
    interval = bootstrap({"scene": parts})["scene"]
    assert interval == bootstrap({"scene": parts[::-1]})["scene"]
    assert interval.low < 0.5 < interval.high
    assert interval.high - interval.low == pytest.approx(4 * 0.5 / 40**0.5, rel=0.15)  # a binomial's 95 %
    same = [one(f"{n}-0", f"p{n}", {"full": clip(0.25, 1, 4)}) for n in range(5)]
    assert bootstrap({"scene": video_parts("scene", same, protocol(), {})[0]})["scene"] == (0.25, 0.25)


def test_a_lone_prompt_is_drawn_with_those_that_share_a_dimension():
    """One's own prompts: p is scored in scene, q in scene and colour. Drawn each for itself they would never vary."""
    scene = [one("p-0", "p", {"full": clip(0, 0, 1)}), one("q-0", "q", {"full": clip(1, 1, 1)})]
    colour = [one("q-0", "q", {"full": clip(0.5, 0.5, 1)}, "color")]
    parts = {"scene": video_parts("scene", scene, protocol(), {})[0], "color": video_parts("color", colour, protocol(), {})[0]}
    assert bootstrap(parts) == {"scene": (0, 1), "color": (0.5, 0.5)}
    more = [one(f"r{n}-0", f"r{n}", {"full": clip(0, 0, 1)}) for n in range(2)]
    parts["scene"] = video_parts("scene", [*scene[1:], *more], protocol(), {})[0]
    assert bootstrap(parts)["scene"] == (0, 1)  # q joins the group of r0 and r1


def test_rates_lie_on_the_grid_of_their_counts():
    assert grid_place(50.0, 360) == (180, 360, 0.0)
    assert not grid_place(50.93, 360).fits
    assert grid_place(50.93, 1080).fits
    assert grid_place(98.2, 500) == (491, 500, pytest.approx(0))


CLIPS = {
    "HunyuanVideo": 3,
    "Vchitect-2.0 (VEnhancer)": 3,
    "CogVideoX-1.5": 3,
    "CogVideoX-5B": 4,
    "CogVideoX-2B": 4,
    "Mochi-1": 3,
    "LTX-Video": 3,
    "OpenSora-1.2": 5,
    "OpenSoraPlan-V1.1": 5,
    "FlashVideo 8fps": 4,
    "FlashVideo 24fps": 4,
}


@pytest.mark.parametrize("row", TABLE_1, ids=lambda row: row.model)
def test_the_papers_rates_lie_on_vbench_longs_grid(row):
    assert CLIPS[row.model] in clips_that_fit(row.dimensions["dynamic_degree"])
    assert grid_place(row.dimensions["human_action"], 500).fits
