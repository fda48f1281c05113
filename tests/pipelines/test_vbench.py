"""VBench over workers and over a run's videos: killed and resumed, local and Ray, and the page that it ends in."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from trained_root import context_of, finish_training, make_root, small_recipe

from flashvideo.evaluation.vbench_results import VBenchResults
from flashvideo.video_files import write_video
from orchestration.reports import build_report
from orchestration.vbench_page import build_page, out_of
from pipelines import generate
from pipelines.plan import job_spec
from pipelines.vbench import main

DIMENSIONS = ["subject_consistency", "dynamic_degree", "motion_smoothness", "imaging_quality"]
OPTIONS = ("--stand-ins", "--no-slow-fast")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight films of two prompts, one of which cannot be decoded, and 20 whole ones."""
    made = tmp_path_factory.mktemp("vbench")
    prompts = [{"prompt_en": "a dog", "dimension": DIMENSIONS}, {"prompt_en": "a lake", "dimension": ["temporal_flickering"]}]
    (made / "info.json").write_text(json.dumps(prompts))
    draws = np.random.default_rng(0)
    for prompt in prompts:
        for index in range(4):
            still = draws.integers(0, 256, (1, 64, 96, 3), dtype=np.uint8)
            film = np.concatenate([np.roll(still, index * place, axis=2) for place in range(20)])
            write_video(made / "videos" / f"{prompt['prompt_en']}-{index}.mp4", film, 8, crf=0)
    path = made / "videos" / "a lake-3.mp4"
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 4000] = draws.integers(0, 256, 4000, dtype=np.uint8).tobytes()
    path.write_bytes(data)  # its index is whole, its frames are not
    return made


def arguments(folder: Path, out: Path, *more: str) -> list[str]:
    given = [str(folder / "videos"), "--prompts", str(folder / "info.json"), "--out", str(out), "--samples", "4"]
    return [*given, *OPTIONS, *more]


def results_of(out: Path) -> VBenchResults:
    return VBenchResults.model_validate_json((out / "vbench_results.json").read_bytes())


def scores_of(out: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (out / "scores").rglob("*.json")}


@pytest.fixture(scope="module")
def once(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("once")
    assert main(arguments(folder, out)) == 0
    return out


def test_killed_in_the_middle_it_goes_on_and_ends_equal(folder: Path, once: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    victim = subprocess.Popen([sys.executable, "-m", "pipelines.vbench", *arguments(folder, out)], stdout=subprocess.DEVNULL)
    limit = time.monotonic() + 120
    while len(scores_of(out)) < 6 and victim.poll() is None and time.monotonic() < limit:
        time.sleep(0.005)
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    before = scores_of(out)
    assert len(before) >= 6
    assert main(arguments(folder, out)) == 0
    after = scores_of(out)
    assert {path: after[path] for path in before} == before  # what was scored is not scored again
    assert (out / "vbench_results.json").read_bytes() == (once / "vbench_results.json").read_bytes()


def test_the_second_run_decodes_nothing(
    folder: Path, once: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from flashvideo.evaluation import evaluator, pictures

    before, scored = (once / "vbench_results.json").read_bytes(), scores_of(once)
    for module in (evaluator, pictures):
        monkeypatch.setattr(module, "decoded_frames", lambda path: pytest.fail(f"{path} is decoded again"))
    assert main(arguments(folder, once, "--workers", "3")) == 0
    assert "0 videos scored, 8 were there already" in capsys.readouterr().out
    assert (once / "vbench_results.json").read_bytes() == before
    assert scores_of(once) == scored
    [problem] = [one for one in results_of(once).problems if one.fatal]
    assert (problem.kind, problem.item) == ("unreadable", "a lake-3.mp4")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_scores_that_cannot_be_written_end_it_and_blame_no_video(
    folder: Path, tmp_path: Path, workers: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "scores").write_text("a file where the folder should be, as a full disk gives an error")
    assert main(arguments(folder, tmp_path, "--workers", workers, "--backend", "local")) == 1
    said = capsys.readouterr()
    assert re.fullmatch(rf"vbench: cannot write {tmp_path}/scores/\S+: .+; the same command goes on from there", said.err.splitlines()[-1])
    assert "calm" not in said.out.split("problems")[-1]


@pytest.mark.parametrize("backend", ["local", "ray"])
def test_workers_give_the_same_numbers(folder: Path, once: Path, tmp_path: Path, backend: str) -> None:
    assert main(arguments(folder, tmp_path, "--workers", "2", "--backend", backend)) == 0
    assert (tmp_path / "vbench_results.json").read_bytes() == (once / "vbench_results.json").read_bytes()


def test_best_and_worst_clips_are_pictured(once: Path) -> None:
    results = results_of(once)
    shown = [one for one in results.extremes if one.dimension == "subject_consistency"]
    values = sorted(value for video in results.of("subject_consistency").videos for value in video.clips.values())
    assert [one.value for one in shown if one.kind == "worst"] == values[:3]
    assert [one.value for one in shown if one.kind == "best"] == values[::-1][:3]
    assert all((once / one.picture).is_file() for one in shown)


def test_the_page_stands_alone_and_says_what_stands_in(once: Path) -> None:
    page = build_page(once)
    assert page is not None
    text = page.read_text()
    results = results_of(once)
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]+"', text)  # nothing from outside
    assert results.protocol["digest"] in text
    assert f"{100 * results.of('motion_smoothness').score:.2f}" in text
    assert text.count("STAND-IN") >= 5 and "these numbers mean nothing" in text
    assert "OpenSora" in text and "82.80" in text  # the published rows stand beside
    assert text.count('<div class="clip ') == len(results.extremes)
    assert "63.47 = 457 of 720: 2 or 4 clips a video" in text and "99.00 = 495 of 500" in text  # FlashVideo 8fps
    assert "a lake-3.mp4" in text and "left out" in text
    assert results.of("subject_consistency").low is None  # one prompt has no interval


def test_a_page_is_made_where_the_command_writes() -> None:
    assert out_of(["videos", "--out", "x", "--prompts", "p"]) == Path("x")
    assert out_of(["--root", "r"]) == Path("r/vbench")
    assert out_of(["videos", "--out", "x", "--dry-run"]) is None
    assert out_of(["--help"]) is None


# ---- a run's videos


def test_both_stages_of_a_run_stand_beside_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workspace = make_root(tmp_path)
    recipe = small_recipe(tmp_path / "sources")
    reports = finish_training(workspace, recipe)
    report = generate.run(context_of("generate", workspace, recipe, reports))
    workspace.finish(job_spec("generate"), report)
    given = ["--root", str(workspace.root), "--suite", "vbench", "--stand-ins", "--no-static-filter"]
    assert main(given) == 0
    out = workspace.root / "vbench"
    first, second = results_of(out / "stage1"), results_of(out / "stage2")
    assert first.protocol == second.protocol
    assert sum(one.score is not None for one in second.dimensions) == 8
    assert first.of("imaging_quality").score != second.of("imaging_quality").score
    page = build_page(out)
    assert page is not None and "Stage by stage" in page.read_text()
    assert page.read_text().count('<div class="picture">') == len(second.of("imaging_quality").videos) == 2
    report = build_report(workspace, recipe).read_text()
    assert "VBench of this run's videos, both stages" in report and "these numbers mean nothing" in report
    capsys.readouterr()
    assert main(given) == 0
    assert capsys.readouterr().out.count("0 videos scored, 2 were there already") == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--root", "nowhere"], "nowhere holds no generated videos; make them: flashvideo generate --root nowhere"),
        (["videos", "--root", "nowhere"], "--root names the videos and their prompts"),
        (["videos", "--prompts", "p"], "--out is missing"),
        ([], "VIDEOS is missing"),
        (["videos", "--workers", "0"], "--workers 0: at least 1"),
    ],
)
def test_mistakes_are_one_line(given: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(given) == 2
    assert message in capsys.readouterr().err
