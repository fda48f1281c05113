"""Generation: what is written, resuming, seeds, prompts, mistakes. Real models at toy size."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from trained_root import FULL, PREVIEW, context_of, finish_training, make_root, small_recipe

from flashvideo.config import PromptRewriteConfig
from flashvideo.video_files import read_video
from pipelines import generate
from pipelines.artifacts import Report, Workspace
from pipelines.executor import Workers
from pipelines.job import UserError
from pipelines.recipe import Recipe


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Recipe, dict[str, Report]]:
    folder = tmp_path_factory.mktemp("generate")
    workspace = make_root(folder)
    recipe = small_recipe(folder / "sources")
    return workspace, recipe, finish_training(workspace, recipe)


def generated(trained: tuple[Workspace, Recipe, dict[str, Report]], *prompts: str) -> tuple[Path, Report]:
    workspace, recipe, reports = trained
    number = max(len(prompts), recipe.generate.num_prompts)
    recipe = recipe.model_copy(update={"generate": recipe.generate.model_copy(update={"prompts": prompts, "num_prompts": number})})
    context = context_of("generate", workspace, recipe, reports)
    return context.folder, generate.run(context)


def test_captions_of_held_out_clips_become_videos(trained: tuple[Workspace, Recipe, dict[str, Report]]) -> None:
    folder, report = generated(trained)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["prompts_from"] == "captions of held-out clips"
    assert [row["prompt"] for row in manifest["rows"]] == [f"coloured blocks number {index} move to the left" for index in (1, 2)]
    for row in manifest["rows"]:
        for kind, shape in (("stage1", PREVIEW), ("stage2", FULL)):
            frames, rate = read_video(folder / row[kind])
            assert frames.shape == (9, shape.height, shape.width, 3) and rate == 8
        assert read_video(folder / row["beside"])[0].shape == (9, FULL.height, 2 * FULL.width + 4, 3)
        assert (folder / row["picture"]).stat().st_size > 1000
    assert len({row["stage2_pixels"] for row in manifest["rows"]}) == 2
    assert report.counts == {"prompts": 2, "generated": 2, "skipped": 0}
    assert "stand-in" in report.models["vae"] and "stand-in" in report.models["stage1"] and "LoRA rank 64" in report.models["stage1"]


def test_a_relaunch_generates_only_what_is_missing(trained: tuple[Workspace, Recipe, dict[str, Report]]) -> None:
    folder, first = generated(trained, "a red fox", "a blue whale")
    rows = json.loads((folder / "manifest.json").read_text())["rows"]
    kept, lost = folder / rows[0]["stage2"], folder / rows[1]["stage2"]
    before = kept.stat().st_mtime_ns
    lost_bytes = lost.read_bytes()
    lost.unlink()
    _, again = generated(trained, "a red fox", "a blue whale")
    assert again.counts == {"prompts": 2, "generated": 1, "skipped": 1}
    assert kept.stat().st_mtime_ns == before and lost.read_bytes() == lost_bytes
    assert again.digest == first.digest and again.models == first.models
    _, third = generated(trained, "a red fox", "a blue whale")
    assert third.counts["skipped"] == 2 and third.digest == first.digest and third.models == first.models


def test_a_videos_seed_does_not_depend_on_its_place(trained: tuple[Workspace, Recipe, dict[str, Report]]) -> None:
    rows = {}
    for prompts in (("a red fox", "a green frog"), ("a green frog",)):
        folder, _ = generated(trained, *prompts)
        rows[prompts] = {row["prompt"]: row for row in json.loads((folder / "manifest.json").read_text())["rows"]}
    alone, together = rows[("a green frog",)]["a green frog"], rows[("a red fox", "a green frog")]["a green frog"]
    assert alone == together
    assert together["seed"] != rows[("a red fox", "a green frog")]["a red fox"]["seed"]


def test_equal_prompts_are_generated_once_and_the_number_is_bounded(trained: tuple[Workspace, Recipe, dict[str, Report]]) -> None:
    workspace, recipe, reports = trained
    settings = recipe.generate.model_copy(update={"prompts": ("a", "a", "b", "c"), "num_prompts": 2})
    context = context_of("generate", workspace, recipe.model_copy(update={"generate": settings}), reports)
    assert generate.choose_prompts(context).texts == ("a", "b")


def test_without_held_out_clips_training_captions_are_used_and_said(tmp_path: Path) -> None:
    workspace = make_root(tmp_path, splits=("train",))
    recipe = small_recipe(tmp_path / "sources")
    reports = finish_training(workspace, recipe)
    report = generate.run(context_of("generate", workspace, recipe, reports))
    assert report.counts["prompts"] == 1 and "training clips" in report.warnings[0]


def test_unequal_frames_are_a_mistake_with_the_keys_to_change(trained: tuple[Workspace, Recipe, dict[str, Report]]) -> None:
    workspace, recipe, reports = trained
    longer = recipe.stage1.model_copy(update={"shape": PREVIEW.model_copy(update={"frames": 17})})
    context = context_of("generate", workspace, recipe, reports)
    context.recipe = recipe.model_copy(update={"stage1": longer})
    with pytest.raises(UserError, match=r"17 frames \(stage1.shape\).*takes 9"):
        generate.run(context)


def test_names_are_short_and_different() -> None:
    long = generate.prompt_name("A very long prompt, with (many) words: " * 9, 1)
    assert len(long) <= 80 and long.startswith("a-very-long-prompt-with-")
    assert generate.prompt_name("a", 1) != generate.prompt_name("a", 2)
    assert generate.prompt_name("???", 1)


def test_a_changed_stage2_enhances_the_kept_previews(
    trained: tuple[Workspace, Recipe, dict[str, Report]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from flashvideo.cascade import FlashVideoCascade

    workspace, recipe, reports = trained
    folder, _ = generated(trained, "a kept fox")
    [first] = json.loads((folder / "manifest.json").read_text())["rows"]
    monkeypatch.setattr(FlashVideoCascade, "preview", lambda *_: pytest.fail("Stage I was sampled again"))
    stage2 = recipe.generate.stage2.model_copy(update={"num_steps": 2})
    settings = recipe.generate.model_copy(update={"prompts": ("a kept fox",), "stage2": stage2})
    context = context_of("generate", workspace, recipe.model_copy(update={"generate": settings}), reports)
    generate.run(context)
    [second] = json.loads((context.folder / "manifest.json").read_text())["rows"]
    assert context.folder != folder and first["stage1_pixels"] == second["stage1_pixels"]
    assert first["stage2_pixels"] != second["stage2_pixels"]


def test_interpolated_frames_are_a_file_of_their_own_and_named(trained: tuple[Workspace, Recipe, dict[str, Report]]) -> None:
    workspace, recipe, reports = trained
    plain, _ = generated(trained, "a fox in rain")
    assert json.loads((plain / "manifest.json").read_text())["rows"][0]["interpolation"] == "none"
    settings = recipe.generate.model_copy(update={"prompts": ("a fox in rain",), "interpolation": "dis"})
    context = context_of("generate", workspace, recipe.model_copy(update={"generate": settings}), reports)
    report = generate.run(context)
    [row] = json.loads((context.folder / "manifest.json").read_text())["rows"]
    assert row["interpolation"].startswith("DIS flow") and report.models["interpolation"] == row["interpolation"]
    frames, rate = read_video(context.folder / row["smooth"])
    assert len(frames) == 25 == row["smooth_frames"] and rate == 24  # 3 (9 - 1) + 1
    assert len(read_video(context.folder / row["stage2"])[0]) == 9
    rife = settings.model_copy(update={"interpolation": "rife"})
    with pytest.raises(UserError, match=r"interpolation_weights is None; name RIFE 4\.6"):
        generate.run(context_of("generate", workspace, recipe.model_copy(update={"generate": rife}), reports))


def test_rewritten_prompts_are_sampled_and_recorded(
    trained: tuple[Workspace, Recipe, dict[str, Report]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers that the folder holds are used, so no server is asked; without one, the mistake is one line."""
    workspace, recipe, reports = trained
    server = PromptRewriteConfig(base_url="http://127.0.0.1:9/v1", model="m", key_variable=None, timeout_s=2)
    settings = recipe.generate.model_copy(update={"prompts": ("a short fox",), "rewriting": server})
    context = context_of("generate", workspace, recipe.model_copy(update={"generate": settings}), reports)
    with pytest.raises(UserError, match=r"generate\.rewriting: http://127\.0\.0\.1:9.*cannot be reached"):
        generate.run(context)
    (context.folder / "rewritten.json").write_text(json.dumps({"a short fox": "a long caption of a fox"}))
    generate.run(context)
    [row] = json.loads((context.folder / "manifest.json").read_text())["rows"]
    assert (row["prompt"], row["sampled_prompt"]) == ("a short fox", "a long caption of a fox")


def test_workers_are_used_where_they_help(trained: tuple[Workspace, Recipe, dict[str, Report]]) -> None:
    _, recipe, _ = trained

    def workers(items: int, **runtime: object) -> tuple[str, int]:
        chosen = generate.spread_workers(recipe.model_copy(update={"runtime": recipe.runtime.model_copy(update=runtime)}), items)
        return chosen.backend, chosen.count

    assert workers(4) == ("local", 1) and workers(8) == ("ray", 2)
    assert workers(2, gpus_per_model_worker=1, workers=8) == ("ray", 8)  # map_tasks starts no more than there are items
    assert workers(1, gpus_per_model_worker=1) == ("local", 1) and workers(99, workers=1) == ("local", 1)
    assert workers(99, backend="local") == ("local", 1)


@pytest.mark.parametrize("backend", ["local", pytest.param("ray", marks=pytest.mark.story)])
def test_prompts_spread_over_workers_give_the_same_videos(
    backend: str, trained: tuple[Workspace, Recipe, dict[str, Report]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers, threads of this process or Ray's; what is handed to them survives pickling."""
    prompts = ("a red fox", "a green frog", "a grey seal")
    folder, alone = generated(trained, *prompts)
    rows = (folder / "manifest.json").read_text()
    (folder / "manifest.json").unlink()
    for preview in (folder.parent / "previews").iterdir():
        preview.unlink()
    map_tasks = generate.map_tasks

    def pickled(build: Callable[[], object], *others: object) -> object:
        return map_tasks(pickle.loads(pickle.dumps(build)), *others)  # type: ignore[arg-type]

    monkeypatch.setattr(generate, "map_tasks", pickled)
    monkeypatch.setattr(generate, "spread_workers", lambda *_: Workers(backend, 2))
    _, spread = generated(trained, *prompts)
    assert spread.counts["generated"] == 3 and spread.digest == alone.digest
    assert (folder / "manifest.json").read_text() == rows
