"""VBench's own files: there and back, the leaderboard's zip, and what can be wrong with somebody's JSON."""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path

import pytest

from flashvideo.evaluation.exchange import (
    ExchangeError,
    eval_results,
    full_info,
    read_eval_results,
    read_leaderboard_zip,
    write_exchange,
    write_leaderboard_zip,
)
from flashvideo.evaluation.scores import Prompt
from flashvideo.evaluation.suite import VideoItem, read_prompts
from flashvideo.evaluation.totals import read_rows
from flashvideo.evaluation.vbench_results import DimensionOutcome, VBenchResults, VideoValue


def outcome(dimension: str, score: float | None, *values: float, **extras: dict) -> DimensionOutcome:
    videos = tuple(
        VideoValue(video=f"a cat-{n}", prompt="a cat", sample=n, value=value, clips={"000": value, "001": value}, extras=extras)
        for n, value in enumerate(values)
    )
    return DimensionOutcome(dimension=dimension, score=score, videos=videos)


def results(*dimensions: DimensionOutcome, suite: str = "vbench_long") -> VBenchResults:
    return VBenchResults(protocol={"suite": suite}, dimensions=dimensions, totals={}, intervals={}, problems=(), notes=())


def items() -> list[VideoItem]:
    prompt = Prompt(text="a cat", dimensions=("object_class",), auxiliary={"object_class": {"object": "cat"}})
    return [VideoItem(path=Path(f"v/a cat-{n}.mp4"), prompt=prompt, dimensions=("object_class",), index=n) for n in (1, 0)]


def test_results_go_out_and_come_back(tmp_path):
    made = results(outcome("imaging_quality", 0.6, 0.5, 0.7), outcome("dynamic_degree", 0.5, 0, 1), outcome("scene", None))
    file, info = write_exchange(tmp_path, "results_2026", made, items())
    data = json.loads(file.read_text())
    assert sorted(data) == ["dynamic_degree", "imaging_quality"]
    assert data["imaging_quality"][0] == 0.6
    assert data["imaging_quality"][1][0] == {"video_path": "a cat-0_000.mp4", "video_results": 50.0}  # 0-100 in the reference
    assert data["dynamic_degree"][2] == [
        {"video_path": "a cat-0.mp4", "video_results": False},
        {"video_path": "a cat-1.mp4", "video_results": True},
    ]
    back = read_eval_results(file)
    assert back.scores == {"imaging_quality": 0.6, "dynamic_degree": 0.5}
    assert [(one.path, one.value) for one in back.per_video["imaging_quality"]] == [("a cat-0.mp4", 0.5), ("a cat-1.mp4", 0.7)]
    assert back.problems == ()
    assert read_rows(file)[0][0].scores == back.scores  # flashvideo totals reads it
    assert [(prompt.text, videos) for prompt, videos in read_prompts(info)] == [("a cat", ("v/a cat-0.mp4", "v/a cat-1.mp4"))]


def test_plain_vbench_has_two_list_items_and_the_references_extras():
    made = results(outcome("object_class", 0.5, 0.5, **{"000": {"success_frame_count": 8, "frame_count": 16}}), suite="vbench")
    assert len(eval_results(made)["object_class"]) == 2
    assert eval_results(made)["object_class"][1][0] == {
        "video_path": "a cat-0.mp4",
        "video_results": 0.5,
        "success_frame_count": 8,
        "frame_count": 16,
    }


def test_a_fused_dimension_has_two_list_items_and_both_scores_of_each_clip():
    fields = {"inclip_score": 0.5, "clip2clip_score": 0.25, "mapped_clip2clip_score": 0.75}
    made = results(outcome("subject_consistency", 0.625, 0.625, **{"000": fields, "001": fields}))
    score, clips = eval_results(made)["subject_consistency"]
    assert (score, clips[0]) == (0.625, {"video_path": "a cat-0_000.mp4", "video_results": 0.625, **fields})


def test_full_info_keeps_prompt_dimensions_and_what_to_look_for():
    assert full_info(items()) == [
        {
            "prompt_en": "a cat",
            "dimension": ["object_class"],
            "auxiliary_info": {"object_class": {"object": "cat"}},
            "video_list": ["v/a cat-0.mp4", "v/a cat-1.mp4"],
        }
    ]


def test_nan_and_strangers_are_named_and_the_rest_is_read(tmp_path):
    file = tmp_path / "r_eval_results.json"
    file.write_text(
        '{"scene": [NaN, []], "color": [0.5, [{"video_path": "b", "video_results": NaN}, {"video_path": "a", "video_results": 0.5}, 7]],'
        ' "beauty": [1], "overall consistency": 0.25, "human_action": [null]}'
    )
    read = read_eval_results(file)
    assert read.scores == {"color": 0.5, "overall_consistency": 0.25}
    assert [one.path for one in read.videos["color"]] == ["a"]
    assert [(problem.kind, problem.item) for problem in read.problems] == [
        ("score", "scene"),
        ("video", "b"),
        ("video", "entry 2"),
        ("name", "beauty"),
        ("score", "human_action"),
    ]
    assert read.problems[0].message == "r_eval_results.json: scene is nan, not a number; it counts as missing"


@pytest.mark.parametrize(("text", "message"), [("[]", "must map dimensions"), ("{", "not valid JSON")])
def test_other_files_are_refused(tmp_path, text, message):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ExchangeError, match=message):
        read_eval_results(tmp_path / "x.json")
    with pytest.raises(ExchangeError, match="No such file"):
        read_eval_results(tmp_path / "absent.json")


def test_nan_never_goes_out(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_exchange(tmp_path, "x", results(outcome("scene", math.nan, 0.5)), [])


def test_the_leaderboards_zip(tmp_path):
    files = []
    for name, made in (("b", results(outcome("scene", 0.5, 0.5))), ("a", results(outcome("color", 0.25, 0.25)))):
        files.append(write_exchange(tmp_path, name, made, items())[0])
    write_leaderboard_zip(tmp_path / "one.zip", files)
    write_leaderboard_zip(tmp_path / "two.zip", files[::-1])
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    assert read_leaderboard_zip(tmp_path / "one.zip").scores == {"scene": 0.5, "color": 0.25}
    again = write_exchange(tmp_path, "c", results(outcome("scene", 0.75, 0.75)), [])[0]
    with pytest.raises(ExchangeError, match=r"scene is in b_eval_results\.json and in c_eval_results\.json"):
        write_leaderboard_zip(tmp_path / "three.zip", [*files, again])


def test_somebodys_zip_is_read_as_the_leaderboard_reads_it(tmp_path):
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("r/a.json", '{"appearance style": [0.25, []]}')
        archive.writestr("r/b.json", '{"appearance_style": [0.5, []]}')
        archive.writestr("r/full_info.json", "[]")
        archive.writestr("r/deep/er/c.json", '{"scene": [1]}')
        archive.writestr("r/note.txt", "x")
    read = read_leaderboard_zip(tmp_path / "z.zip")
    assert read.scores == {"appearance_style": 0.5}
    assert [problem.message for problem in read.problems] == ["r/b.json gives appearance_style again; it counts"]
    (tmp_path / "no.zip").write_text("x")
    with pytest.raises(ExchangeError, match="no zip of VBench's JSON files"):
        read_leaderboard_zip(tmp_path / "no.zip")
