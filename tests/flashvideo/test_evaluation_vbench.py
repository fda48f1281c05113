"""The command `flashvideo vbench` on a folder of small films, from looking to the leaderboard's files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from flashvideo.evaluation.exchange import read_eval_results, read_leaderboard_zip
from flashvideo.evaluation.totals import DIMENSIONS
from flashvideo.evaluation.vbench import main
from flashvideo.evaluation.vbench_results import VBenchResults
from flashvideo.video_files import write_video
from orchestration.vbench_page import build_page

PROMPTS = [
    {"prompt_en": "a dog", "dimension": ["subject_consistency", "dynamic_degree", "motion_smoothness"]},
    {"prompt_en": "a lake", "dimension": ["temporal_flickering"]},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "info.json").write_text(json.dumps(PROMPTS))
    generator = np.random.default_rng(0)
    for entry in PROMPTS:
        frame = generator.integers(0, 256, (1, 32, 48, 3), dtype=np.uint8)
        write_video(tmp_path / "videos" / f"{entry['prompt_en']}-0.mp4", np.repeat(frame, 20, axis=0), 8, crf=0)
    return tmp_path


def arguments(folder: Path, *more: str) -> list[str]:
    return [str(folder / "videos"), "--prompts", str(folder / "info.json"), "--out", str(folder / "out"), "--samples", "1", *more]


def test_looking_scores_nothing(folder, capsys):
    assert main(arguments(folder, "--dry-run")) == 0
    told = capsys.readouterr().out
    assert "2 videos, 40 frames" in told
    assert "2 x 48x32, 8 frames/s, 20 frames" in told
    assert "2 videos of 2 clips" in told
    assert "dynamic_degree                  30 passes" in told  # two clips of 16 frames at 8 Hz
    assert "missing for motion_smoothness: AMT-S" in told
    assert "missing for dynamic_degree: WEIGHTS/raft_large_C_T_V1-22a6c225.pth is missing" in told
    assert not (folder / "out").exists()


def test_a_run_leaves_results_and_the_references_files_and_the_second_does_nothing(folder, capsys):
    assert main(arguments(folder, "--stand-ins", "--no-slow-fast", "--strict")) == 0
    first = (folder / "out" / "vbench_results.json").read_bytes()
    results = VBenchResults.model_validate_json(first)
    assert results.of("temporal_flickering").score == 1
    assert results.of("dynamic_degree").score == 0
    assert results.of("scene").reason == "no video"
    assert results.of("temporal_flickering").stand_in
    assert results.protocol["suite"] == "vbench_long"
    assert len(results.protocol["digest"]) == 16
    exported = read_eval_results(folder / "out" / "results_eval_results.json")
    assert exported.scores == {one.dimension: one.score for one in results.dimensions if one.score is not None}
    assert "2 videos scored, 0 were there already" in capsys.readouterr().out
    assert main(arguments(folder, "--stand-ins", "--no-slow-fast")) == 0
    assert "0 videos scored, 2 were there already" in capsys.readouterr().out
    assert (folder / "out" / "vbench_results.json").read_bytes() == first


def test_shards_add_up(folder):
    options = ("--stand-ins", "--no-slow-fast")
    main(arguments(folder, *options))
    whole = (folder / "out" / "vbench_results.json").read_bytes()
    for name in ("1/2", "0/2"):
        assert main([*arguments(folder, *options, "--shard", name), "--out", str(folder / "shards")]) == 0
    assert (folder / "shards" / "vbench_results.json").read_bytes() == whole


def test_a_bad_video_is_counted_and_fails_only_where_asked(folder, capsys):
    (folder / "videos" / "a dog-0.mp4").write_bytes(b"no video")
    options = ("--stand-ins", "--no-slow-fast")
    assert main(arguments(folder, *options)) == 0
    assert "x unreadable: a dog-0.mp4" in capsys.readouterr().out
    assert main(arguments(folder, *options, "--strict")) == 1
    results = VBenchResults.model_validate_json((folder / "out" / "vbench_results.json").read_bytes())
    assert [problem.item for problem in results.problems if problem.fatal] == ["a dog-0.mp4"]
    assert results.of("temporal_flickering").score == 1


def test_another_length_is_left_out_though_it_was_scored_before(folder):
    options = ("--stand-ins", "--no-slow-fast")
    write_video(folder / "videos" / "a lake-1.mp4", np.full((8, 32, 48, 3), 99, np.uint8), 8, crf=0)
    main(arguments(folder, *options))
    assert (
        len(VBenchResults.model_validate_json((folder / "out" / "vbench_results.json").read_bytes()).of("temporal_flickering").videos) == 2
    )
    main(arguments(folder, *options, "--frames", "20"))
    results = VBenchResults.model_validate_json((folder / "out" / "vbench_results.json").read_bytes())
    assert [video.video for video in results.of("temporal_flickering").videos] == ["a lake-0"]
    assert [problem.message for problem in results.problems if problem.fatal] == [
        "a lake-1.mp4 has 8 frames, 20 are expected; it is left out"
    ]


def test_missing_dimensions_are_filled_from_another_evaluators_file(folder, capsys):
    scores = {name: [0.5, []] for name in DIMENSIONS} | {"scene": [math.nan, []], "dynamic_degree": [0.75, []]}
    (folder / "theirs.json").write_text(json.dumps(scores))
    options = ("--stand-ins", "--no-slow-fast", "--fill-from", str(folder / "theirs.json"))
    assert main(arguments(folder, *options)) == 0
    results = VBenchResults.model_validate_json((folder / "out" / "vbench_results.json").read_bytes())
    assert (results.of("dynamic_degree").score, results.of("dynamic_degree").imported) == (0, "")  # ours stays
    assert (results.of("color").score, results.of("color").imported) == (0.5, "theirs.json")
    assert results.of("scene").score is None
    assert results.totals["missing"] == ["scene"]
    told = capsys.readouterr().out
    assert "x score: theirs.json: scene is nan, not a number; it counts as missing" in told
    assert "1 of 16 dimensions are missing" in told
    assert "12 of 16" not in told
    (folder / "theirs.json").write_text(json.dumps(scores | {"scene": [0.5, []]}))
    assert main(arguments(folder, *options)) == 0
    assert VBenchResults.model_validate_json((folder / "out" / "vbench_results.json").read_bytes()).totals["total"] is not None


OWN = """
from flashvideo.evaluation.networks.stand_ins import AverageInterpolator

class Mine(AverageInterpolator):
    is_stand_in, identity = False, "weights 1"

def interpolator(device):
    return Mine()
"""


def test_the_users_own_networks_answer_from_a_file(folder, capsys):
    (folder / "mine.py").write_text(OWN)
    given = arguments(folder, "--networks", str(folder / "mine.py"), "--no-slow-fast", "--dimensions", "motion_smoothness")
    assert main([*given, "--dry-run"]) == 0
    assert "missing for" not in capsys.readouterr().out
    assert main(given) == 0
    smooth = VBenchResults.model_validate_json((folder / "out" / "vbench_results.json").read_bytes()).of("motion_smoothness")
    assert (smooth.score, smooth.stand_in, smooth.metric) == (1, False, "vbench@45e79ec/1; interpolator Mine weights 1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def detektor(device): ...", "has no function named as a network: dino, clip_b"),
        ("import no_such_module", "cannot be run: ModuleNotFoundError: No module named 'no_such_module'"),
        ("def interpolator(device):\n    raise OSError('no weights')", "interpolator cannot be built: OSError: no weights"),
        ("def interpolator(device):\n    return print", "what interpolator returns has no name, identity, is_stand_in"),
        (None, "mine.py is no Python file"),
    ],
)
def test_a_file_of_networks_that_is_none_is_one_line(folder, capsys, text, message):
    if text is not None:
        (folder / "mine.py").write_text(text)
    assert main(arguments(folder, "--networks", str(folder / "mine.py"), "--no-slow-fast")) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


def test_the_leaderboards_zip_is_made_of_real_scores_only_and_fills_another_run(folder, capsys):
    place = folder / "out" / "results_leaderboard.zip"
    flickering = ("--no-slow-fast", "--no-static-filter", "--dimensions", "temporal_flickering")
    assert main(arguments(folder, *flickering)) == 0
    assert read_leaderboard_zip(place).scores == {"temporal_flickering": 1.0}
    assert main(arguments(folder, "--no-slow-fast", "--stand-ins", "--dimensions", "dynamic_degree", "--fill-from", str(place))) == 0
    results = VBenchResults.model_validate_json((folder / "out" / "vbench_results.json").read_bytes())
    assert results.of("temporal_flickering").imported == "results_leaderboard.zip"
    assert not place.exists()  # a stand-in scored dynamic degree


def test_odd_sizes_cannot_be_written_again(folder, capsys):
    import av

    with av.open(str(folder / "videos" / "a lake-0.mp4"), "w") as container:  # yuv444p takes odd sizes
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 47, 31, "yuv444p"
        for _ in range(16):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((31, 47, 3), 99, np.uint8), format="rgb24")))
        container.mux(stream.encode())
    options = ("--stand-ins", "--no-slow-fast", "--dimensions", "temporal_flickering,dynamic_degree")
    assert main(arguments(folder, *options)) == 0
    assert main(arguments(folder, *options, "--re-encode", "crf23", "--dry-run")) == 0
    assert "x size: a lake-0.mp4 is 47x31 px; writing it again needs even sizes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--suite", "vbench", "--re-encode", "crf23"), "re_encode is crf23, but plain VBench scores the files themselves"),
        (("--stand-ins",), "--vbench-data is missing: slow-fast fusion reads its mapping tables there"),
        (("--dimensions", "beauty"), "--dimensions names beauty"),
        (("--shard", "2/2"), "--shard 2/2: write I/N"),
        (("--weights", "nowhere"), "--weights nowhere is no folder"),
        (("--sampled-from", "nowhere.txt"), "nowhere.txt: No such file"),
        (("--no-slow-fast",), "nothing could be scored"),
    ],
)
def test_mistakes_are_one_line(folder, capsys, more, message):
    extra = () if "--stand-ins" in more or "--no-slow-fast" in more else ("--no-slow-fast",)
    assert main(arguments(folder, *more, *extra)) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("vbench: ")
    assert message in told


def test_an_empty_folder_is_a_mistake(folder, capsys):
    (folder / "empty").mkdir()
    assert main([str(folder / "empty"), *arguments(folder)[1:]]) == 2
    assert "empty holds no .mp4 video" in capsys.readouterr().err


# ---- with and without the reference's quirks -------------------------------------------------------------------------

QUIRKY = """
import torch
from flashvideo.evaluation.networks.interfaces import Detection

LEFT, RIGHT = (0, 0, 2, 2), (4, 0, 6, 2)

class Detector:
    name, identity, is_stand_in = "scripted", "1", False

    def __call__(self, frames):
        return [self.bright() if frame.mean() > 128 else self.dark() for frame in frames]

class Places(Detector):
    def bright(self):
        return [Detection("cat", LEFT), Detection("dog", RIGHT)]

    def dark(self):
        return [Detection("dog", LEFT), Detection("cat", RIGHT)]

class Colours(Detector):
    def bright(self):
        return [Detection("car", LEFT, "a blue car"), Detection("bird", RIGHT, "a red bird")]

    def dark(self):
        return [Detection("car", LEFT, "a red car")]

class Style:
    name, identity, is_stand_in = "sign", "1", False

    def __call__(self, pictures):
        return torch.stack([pictures[:, 0].mean((-1, -2)), torch.zeros(len(pictures))], dim=1)

    def text(self, texts):
        return torch.tensor([[3.0, 4.0]] * len(texts))

def detector(device):
    return Places()

def dense_captioner(device):
    return Colours()

def clip_b(device):
    return Style()
"""
QUIRKY_PROMPTS = [
    {"prompt_en": "a red car", "dimension": ["color"], "auxiliary_info": {"color": {"color": "red"}}},
    {
        "prompt_en": "a cat by a dog",
        "dimension": ["spatial_relationship"],
        "auxiliary_info": {
            "spatial_relationship": {"spatial_relationship": {"object_a": "cat", "object_b": "dog", "relationship": "on the right of"}}
        },
    },
    {"prompt_en": "oil", "dimension": ["appearance_style"], "auxiliary_info": {"appearance_style": {"appearance_style": "oil"}}},
]


@pytest.fixture
def quirky(tmp_path: Path) -> Path:
    """Three films of 16 frames, the first 4 bright and 12 dark, and networks that tell bright from dark."""
    (tmp_path / "info.json").write_text(json.dumps(QUIRKY_PROMPTS))
    (tmp_path / "mine.py").write_text(QUIRKY)
    film = np.repeat(np.array([255] * 4 + [0] * 12, np.uint8), 32 * 48 * 3).reshape(16, 32, 48, 3)
    for entry in QUIRKY_PROMPTS:
        write_video(tmp_path / "videos" / f"{entry['prompt_en']}-0.mp4", film, 8, crf=0)
    return tmp_path


def test_scores_with_and_without_the_quirks_stand_beside_each_other(quirky, capsys):
    """Colour: of the bright frames the red bird's caption counts as the car's (16 of 16), or the car is blue (12 of 16). Spatial:
    the cat is on the right in the 12 dark frames, in the 4 bright ones left is not told from right. Style: 4 frames of 0.6 and
    12 of -0.6, the last of which is dark."""
    given = arguments(quirky, "--networks", str(quirky / "mine.py"), "--suite", "vbench")
    assert main(given) == 0
    alone = VBenchResults.model_validate_json((quirky / "out" / "vbench_results.json").read_bytes())
    assert all(one.corrected is None for one in alone.dimensions) and "corrected" not in capsys.readouterr().out
    assert main([*given, "--both", "--dry-run"]) == 0
    assert "3 of them a second time, without the quirks" in capsys.readouterr().out
    assert main([*given, "--both"]) == 0
    both = VBenchResults.model_validate_json((quirky / "out" / "vbench_results.json").read_bytes())
    found = {name: (both.of(name).score, both.of(name).corrected) for name in ("color", "spatial_relationship", "appearance_style")}
    assert found["color"] == (1, 0.75) and found["spatial_relationship"] == (1, 0.75)
    assert found["appearance_style"] == (pytest.approx(-0.3), pytest.approx(-0.3))
    assert both.of("appearance_style").last_frame == pytest.approx(-0.6)
    assert both.totals == alone.totals and both.protocol == alone.protocol
    told = capsys.readouterr().out
    assert "0 videos scored, 3 were there already" in told and "without the quirks: 3 videos scored, 0 were there already" in told
    rows = {line.split()[0]: line.split()[1:] for line in told.splitlines() if line.startswith("  ") and len(line.split()) > 2}
    assert rows["color"][:3] == ["100.00", "75.00", "-25.00"] and rows["spatial_relationship"][:3] == ["100.00", "75.00", "-25.00"]
    assert rows["appearance_style"][:3] == ["-30.00", "-30.00", "+0.00"] and rows["appearance_style"][-1] == "-60.00"
    assert "totals are of the faithful scores" in told
    cells = build_page(quirky / "out").read_text()
    assert '<th class="n">corrected</th>' in cells and '<td class="n">75.00<span class="interval">-25.00</span></td>' in cells
    assert '<span class="interval">last frames -60.00</span>' in cells


def test_what_a_corrected_run_stored_stands_beside_the_faithful_run_after_it(quirky, capsys):
    """The same files under the same key: nothing is scored again, and of a dimension with a video less nothing is shown."""
    given = arguments(quirky, "--networks", str(quirky / "mine.py"), "--suite", "vbench")
    assert main([*given, "--corrected", "--dimensions", "color"]) == 0
    assert VBenchResults.model_validate_json((quirky / "out" / "vbench_results.json").read_bytes()).of("color").score == 0.75
    assert main(given) == 0
    results = VBenchResults.model_validate_json((quirky / "out" / "vbench_results.json").read_bytes())
    assert (results.of("color").score, results.of("color").corrected) == (1, 0.75)
    assert results.of("spatial_relationship").corrected is None
    capsys.readouterr()
    assert main([*given, "--both"]) == 0
    assert "without the quirks: 2 videos scored, 1 were there already" in capsys.readouterr().out
    (quirky / "videos" / "a red car-1.mp4").write_bytes((quirky / "videos" / "oil-0.mp4").read_bytes() + b"another")
    assert main([*given, "--samples", "2"]) == 0
    assert VBenchResults.model_validate_json((quirky / "out" / "vbench_results.json").read_bytes()).of("color").corrected is None
    capsys.readouterr()
    assert main([*given, "--both", "--corrected"]) == 2
    assert capsys.readouterr().err == "vbench: --both shows corrected scores beside faithful ones; leave --corrected out\n"
