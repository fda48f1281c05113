"""Evaluation: rows, gates, pictures, resuming, unreadable clips. Real models at toy size."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from trained_root import FULL, context_of, finish_training, make_root, small_recipe

from flashvideo.evaluation.results import Results, load_results
from pipelines import evaluate, generate
from pipelines.artifacts import Report, Workspace
from pipelines.job import JobContext, UserError
from pipelines.plan import job_spec
from pipelines.recipe import Recipe

Run = tuple[Workspace, Recipe, dict[str, Report]]


def generate_for(workspace: Workspace, recipe: Recipe) -> dict[str, Report]:
    reports = finish_training(workspace, recipe)
    context = context_of("generate", workspace, recipe, reports)
    report = generate.run(context)
    workspace.finish(job_spec("generate"), report)
    return reports | {"generate": report}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("evaluate")
    workspace = make_root(folder)
    recipe = small_recipe(folder / "sources")
    return workspace, recipe, generate_for(workspace, recipe)


@pytest.fixture(scope="module")
def evaluated(run: Run) -> tuple[JobContext, Report, Results]:
    context = context_of("evaluate", *run)
    report = evaluate.run(context)
    return context, report, load_results(context.folder)


def test_every_kind_of_clip_has_a_row(evaluated: tuple[JobContext, Report, Results]) -> None:
    _, report, results = evaluated
    assert [row.name for row in results.held_out] == ["truth", "codec", "input", "enhanced", "untrained"]
    rows = {row.name: row for row in results.held_out}
    assert all(row.clips == 2 for row in rows.values())
    assert rows["truth"].psnr_db is None and rows["truth"].gradient_ratio is None
    assert rows["input"].gradient_ratio is not None and rows["input"].gradient_ratio < 0.7  # blurred by 8
    assert rows["input"].psnr_db is not None and rows["codec"].psnr_db is not None
    assert rows["codec"].psnr_db > rows["input"].psnr_db
    assert report.counts == {"clips": 2, "generated_videos": 2, "failed": 0}


def test_means_are_those_of_the_clips(evaluated: tuple[JobContext, Report, Results]) -> None:
    results = evaluated[2]
    for row in results.held_out:
        parts = [one for clip in results.held_out_clips for one in clip.rows if one.name == row.name]
        assert row.gradient == pytest.approx(np.mean([part.gradient for part in parts]))


def test_random_models_fail_the_gates_and_the_job_does_not(evaluated: tuple[JobContext, Report, Results]) -> None:
    _, report, results = evaluated
    verdicts = {(gate.name, gate.subject): gate.passed for gate in results.gates}
    assert not all(verdicts[name, "Stage II, untrained"] for name in ("sharpness over truth's", "PSNR to truth"))
    assert not all(verdicts[name, "Stage II, trained"] for name in ("sharpness over truth's", "PSNR to truth"))
    assert verdicts["fall of v-prediction loss", "Stage I"] is True  # 2.0 -> 0.5 in the fixture
    assert verdicts["fall of flow-matching loss", "Stage II"] is False  # 2.0 -> 1.5
    assert "FAILED" in results.verdict and report.headline["gates"] == results.verdict


def test_trained_and_untrained_are_different_models(evaluated: tuple[JobContext, Report, Results]) -> None:
    rows = {row.name: row for row in evaluated[2].held_out}
    assert rows["enhanced"].gradient != rows["untrained"].gradient


def test_generated_stages_and_flickering(evaluated: tuple[JobContext, Report, Results]) -> None:
    results = evaluated[2]
    assert [row.name for row in results.generated] == ["stage1", "stage2"] and results.generated[0].clips == 2
    (dimension,) = results.dimensions
    assert dimension.dimension == "temporal_flickering" and 0 < dimension.score < 1 and "static" in dimension.note
    assert dimension.score == results.generated[1].temporal_flickering
    assert results.totals["total"] is None and len(results.totals["missing"]) == 15
    assert results.protocol.static_filter is False and results.protocol.truth == "held-out clips"
    assert len(results.protocol.digest) == 16 and results.protocol.sealed() == results.protocol
    assert results.protocol.model_copy(update={"frame_stride": 2}).sealed().digest != results.protocol.digest


def test_pictures_are_grids_of_named_columns(evaluated: tuple[JobContext, Report, Results]) -> None:
    context, _, results = evaluated
    assert len(results.pictures) == 4
    held_out, generated = results.pictures[0], results.pictures[2]
    assert held_out.columns == ("input", "enhanced", "untrained", "truth") and held_out.rows == ("frame 0", "frame 4", "frame 8")
    with Image.open(context.folder / held_out.file) as picture:
        assert picture.size == (4 * FULL.width + 3 * 4, 3 * FULL.height + 2 * 4)
    with Image.open(context.folder / generated.file) as picture:
        assert picture.size == (3 * FULL.width + 2 * 4, 2 * FULL.height + 4)


def test_a_relaunch_measures_nothing_twice_and_ends_equal(
    run: Run, evaluated: tuple[JobContext, Report, Results], monkeypatch: pytest.MonkeyPatch
) -> None:
    context, report, results = evaluated
    items = sorted((context.folder / "items").iterdir())
    times = [item.stat().st_mtime_ns for item in items]
    (context.folder / "results.json").unlink()
    items[0].unlink()
    again = evaluate.run(context)
    assert [item.stat().st_mtime_ns for item in items[1:]] == times[1:] and items[0].is_file()
    assert again.digest == report.digest and load_results(context.folder) == results


def test_a_clip_that_cannot_be_read_is_counted_and_named(tmp_path: Path) -> None:
    workspace = make_root(tmp_path)
    recipe = small_recipe(tmp_path / "sources")
    reports = generate_for(workspace, recipe)
    (tmp_path / "sources" / "clip1.mp4").write_bytes(b"gone")
    report = evaluate.run(context_of("evaluate", workspace, recipe, reports))
    assert report.counts["failed"] == 1 and report.counts["clips"] == 1
    assert "clip1.mp4" in report.warnings[0]
    (tmp_path / "sources" / "clip2.mp4").unlink()
    other = recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update={"seed": 9})})
    with pytest.raises(UserError, match="none of 2 held-out clips could be read"):
        evaluate.run(context_of("evaluate", workspace, other, reports))


def test_an_unknown_metric_is_a_mistake(run: Run) -> None:
    workspace, recipe, reports = run
    context = context_of("evaluate", workspace, recipe, reports)
    context.recipe = recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update={"frame_metrics": ("pique",)})})
    with pytest.raises(UserError, match=r"evaluation.frame_metrics: pyiqa has no metric pique"):
        evaluate.run(context)


def test_results_are_plain_json(evaluated: tuple[JobContext, Report, Results]) -> None:
    text = (evaluated[0].folder / "results.json").read_text()
    assert "NaN" not in text and "Infinity" not in text
    assert len(json.loads(text)["published"]["table_1"]) == 11
