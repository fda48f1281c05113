"""Sweeps over a trained root: cells, resuming, truth, other tools' folders, the hand-over. Real models at toy size."""

from __future__ import annotations

import csv
import json
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from trained_root import FULL, context_of, finish_training, make_root, moving_texture, small_recipe

from curation.video import read_clip
from flashvideo.evaluation.sweeps import SweepName, SweepResults
from flashvideo.evaluation.video_metrics import VideoMetrics
from flashvideo.models.transformer import CogVideoXTransformer
from flashvideo.training.checkpoints import Checkpoints
from flashvideo.training.pieces import Piece, write_pieces
from flashvideo.video_files import read_video, write_video
from pipelines import evaluate, generate, sweep
from pipelines.artifacts import Workspace
from pipelines.executor import WorkerDied, Workers, map_tasks
from pipelines.job import UserError
from pipelines.plan import JOBS, job_spec
from pipelines.recipe import fingerprint, preset
from pipelines.sweep_cells import Trained, cells_of, choose_items, chosen_sweeps, parse_folders, twin_recipe, with_values
from pipelines.trained_models import load_cascade

VALUES = ("sweep.nfe=[1,2,4]", "sweep.guidance=[1,3]", "sweep.noise=[2,3,700]", "sweep.resolution=[[64,96],[80,112]]")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Four sampling steps, guidance 1, noise step 3; a hand-over checkpoint of other weights."""
    folder = tmp_path_factory.mktemp("sweep")
    workspace = make_root(folder)
    recipe = small_recipe(folder / "sources", *VALUES)
    phases = (recipe.stage2.phases[0].model_copy(update={"name": "before", "subset": None}), recipe.stage2.phases[0])
    recipe = recipe.model_copy(update={"stage2": recipe.stage2.model_copy(update={"phases": phases})})
    return Trained(recipe, workspace, finish_training(workspace, recipe))


def done(trained: Trained, *names: str, folders: dict[str, Path] | None = None) -> list[SweepResults]:
    plans, left_out = sweep.plans_of([chosen_sweeps(name)[0] for name in names], trained, folders or {})
    assert left_out == []
    return sweep.sweep(plans)


@pytest.fixture(scope="module")
def nfe(trained: Trained) -> SweepResults:
    return done(trained, "nfe")[0]


def test_a_row_for_every_value_beside_the_papers(trained: Trained, nfe: SweepResults) -> None:
    assert [row.label for row in nfe.rows] == ["input", "codec", "truth", "1", "2", "4"]
    assert all(row.quality.clips == 2 for row in nfe.rows)
    assert [row.reference for row in nfe.rows] == [True, True, True, False, False, False]
    row = nfe.row("4")
    assert row is not None and row.published[""]["MUSIQ"] == 58.69 and row.value == 4
    assert row.quality.psnr_db is not None and row.quality.gradient_ratio is not None and row.time is not None
    assert len({row.protocol_digest for row in nfe.rows}) == 6 and row.protocol_digest == fingerprint(row.protocol)
    with open(trained.folder / "nfe" / "table.csv") as file:
        table = list(csv.DictReader(file))
    paper = [line for line in table if line["whose"] == "paper"]
    assert [line["NFE"] for line in paper] == ["1", "2", "4", "3", "5", "6", "7", "8"] and paper[2]["NIQE"] == "4.501"


def test_the_cell_at_the_recipes_settings_is_the_evaluate_jobs_enhanced_clip(trained: Trained, nfe: SweepResults) -> None:
    """Four steps is what the recipe samples with: the same pixels, though encoded apart."""
    context = trained.context()
    cascade = load_cascade(trained.workspace, trained.recipe, trained.reports, torch.device("cpu"), with_stage1=False)
    tools = evaluate.Tools(cascade, cascade, VideoMetrics(trained.recipe.evaluation, 8, torch.device("cpu")), torch.device("cpu"))
    items, _ = choose_items(trained)
    assert items[0].clip is not None
    clip = items[0].clip
    truth, _ = read_clip(clip["uri"], clip["start_us"], clip["end_us"], 8, 9, FULL.height, FULL.width)
    frames = evaluate.enhance_truth(context, tools, dict(clip), truth)
    for kind, label in (("enhanced", "4"), ("input", "input"), ("codec", "codec"), ("truth", "truth")):
        row = nfe.row(label)
        assert row is not None
        with Image.open(trained.folder / "cells" / row.protocol_digest / f"{items[0].name}.png") as picture:
            assert np.array_equal(np.asarray(picture), frames[kind][4]), kind


def test_a_relaunch_computes_nothing_and_a_lost_item_only_itself(trained: Trained, nfe: SweepResults) -> None:
    def times() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in sorted((trained.folder / "cells").rglob("*.json"))}

    before = times()
    assert done(trained, "nfe") == [nfe]
    assert times() == before
    row = nfe.row("2")
    assert row is not None
    lost = sorted((trained.folder / "cells" / row.protocol_digest).glob("*.png"))[0].with_suffix(".json")
    lost.unlink()
    (again,) = done(trained, "nfe")
    assert [path for path, when in times().items() if before[path] != when] == [lost]
    assert [entry.quality for entry in again.rows] == [entry.quality for entry in nfe.rows]


def test_two_workers_give_the_numbers_of_one(trained: Trained, nfe: SweepResults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads of this process; what Ray would hand to its workers and back survives pickling."""
    kept = trained.folder.rename(tmp_path / "sweep")

    def pickled(build: Any, items: Any, workers: Workers) -> Iterator[tuple[int, Any]]:
        for index, result in map_tasks(*pickle.loads(pickle.dumps((build, items))), workers):
            yield index, pickle.loads(pickle.dumps(result))

    monkeypatch.setattr(generate, "map_tasks", pickled)
    monkeypatch.setattr(sweep, "spread_workers", lambda recipe, items: Workers("local", 2))
    (again,) = done(trained, "nfe")
    assert [row.quality for row in again.rows] == [row.quality for row in nfe.rows]
    trained.folder.rename(tmp_path / "again")
    kept.rename(trained.folder)


def test_an_item_whose_worker_died_is_missing_in_every_row_and_every_row_says_so(
    trained: Trained, nfe: SweepResults, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It dies at a new value, when the others' numbers are there: they are not means over other clips than the new row's."""
    two = Trained(
        trained.recipe.model_copy(update={"sweep": trained.recipe.sweep.model_copy(update={"nfe": (1, 2, 3)})}),
        trained.workspace,
        trained.reports,
    )
    spread = sweep.spread

    def dying(build: Any, tasks: Any, workers: Workers) -> Iterator[tuple[int, Any]]:
        yield from spread(build, tasks[:-1], workers)
        yield len(tasks) - 1, WorkerDied("the worker process died 2 times on this item: killed")

    monkeypatch.setattr(sweep, "spread", dying)
    (results,) = done(two, "nfe")
    assert [(row.label, row.quality.clips, row.asked) for row in results.rows] == [
        (label, 1, 2) for label in ("input", "codec", "truth", "1", "2", "3")
    ]
    assert results.incomplete == results.rows
    with open(trained.folder / "nfe" / "table.csv") as file:
        assert {line["videos"] for line in csv.DictReader(file) if line["whose"] != "paper"} == {"1 of 2"}
    (said,) = [note for note in results.notes if "left out" in note]
    assert said.startswith("clip") and "every row" in said and "died 2 times" in said
    monkeypatch.undo()
    (whole,) = done(two, "nfe")  # the same command again
    assert whole.incomplete == () and [row.quality.clips for row in whole.rows] == [2] * 6
    assert whole.rows[0].quality == nfe.rows[0].quality


def test_a_row_that_lacks_a_clip_says_so_and_strict_sweeps_end_with_1(
    trained: Trained, nfe: SweepResults, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = nfe.row("2")
    assert row is not None
    file = sorted((trained.folder / "cells" / row.protocol_digest).glob("0*.json"))[0]
    kept = file.read_text()
    file.write_text(json.dumps(json.loads(kept) | {"quality": None, "problem": "niqe is not finite on flat frames"}))
    monkeypatch.setattr(Trained, "of", lambda recipe, workspace: Trained(recipe, workspace, trained.reports))
    for strict in (False, True):
        recipe = trained.recipe.model_copy(update={"sweep": trained.recipe.sweep.model_copy(update={"strict": strict})})
        monkeypatch.setattr(sweep, "load", lambda *_, recipe=recipe: recipe)
        given = sweep.parser().parse_args(["nfe", "--root", str(trained.workspace.root)])
        if strict:
            with pytest.raises(SystemExit, match="1"):
                sweep.sweep_root(given)
        else:
            sweep.sweep_root(given)
        said = capsys.readouterr().out
        assert said.count("1 of 2") == 1 and "niqe is not finite on flat frames" in said
    file.write_text(kept)


def test_numbers_that_cannot_be_written_end_the_sweep_and_leave_no_clip_out(trained: Trained, nfe: SweepResults) -> None:
    """As of a full disk: the same OSError while a clip is read leaves that clip out."""
    row = nfe.row("2")
    assert row is not None
    folder = trained.folder / "cells" / row.protocol_digest
    kept = folder.rename(folder.with_suffix(".kept"))
    folder.write_text("a file where the cell's folder should be")
    with pytest.raises(FileExistsError):
        done(trained, "nfe")
    folder.unlink()
    kept.rename(folder)


def test_numbers_of_another_clip_under_the_same_name_are_not_used(trained: Trained, nfe: SweepResults) -> None:
    row = nfe.row("1")
    assert row is not None
    file = sorted((trained.folder / "cells" / row.protocol_digest).glob("0*.json"))[0]
    kept = file.read_text()
    file.write_text(json.dumps(json.loads(kept) | {"identity": "another", "quality": None}))
    assert done(trained, "nfe")[0].row("1").quality == row.quality  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def handed_over(trained: Trained) -> CogVideoXTransformer:
    """The phase before's weights, in two pieces as two ranks write them."""
    from pipelines.sweep_cells import handover_folder

    model = CogVideoXTransformer(trained.recipe.stage2.transformer.model_copy(update={"seed": 9}))
    checkpoints = Checkpoints(handover_folder(trained) / "checkpoints", 1)
    halves: tuple[list[Piece], list[Piece]] = ([], [])
    for name, parameter in model.named_parameters():
        flat, middle = parameter.detach().flatten(), parameter.numel() // 2
        halves[0].append(Piece(name, 0, {"weight": flat[:middle]}))
        halves[1].append(Piece(name, middle, {"weight": flat[middle:]}))
    for rank in (0, 1):
        write_pieces(checkpoints.part(5), rank, halves[rank], 5)
    checkpoints.commit(5, {})
    return model


def test_sweeps_share_the_cells_that_they_have_in_common(trained: Trained, handed_over: CogVideoXTransformer) -> None:
    items, _ = choose_items(trained)
    names: tuple[SweepName, ...] = ("nfe", "guidance", "noise", "resolution", "preference", "enhancers")
    keys = {name: {cell.label: cell.key for cell in cells_of(name, trained, items, {})} for name in names}
    common = keys["nfe"]["4"]
    assert [keys[name][label] for name, label in zip(names[1:], ("1", "3", "64x96", "after", "ours"), strict=True)] == [common] * 5
    assert len({key for cells in keys.values() for key in cells.values()}) == 6 + 1 + 2 + 4 + 1  # before, and a second size with references


def test_before_the_preference_phase_is_the_handed_over_model(trained: Trained, handed_over: CogVideoXTransformer) -> None:
    from pipelines.sweep_cells import check_handover
    from pipelines.sweep_worker import load_pieces

    loaded = load_pieces(CogVideoXTransformer(trained.recipe.stage2.transformer), check_handover(trained))
    assert all(torch.equal(value, handed_over.state_dict()[name]) for name, value in loaded.state_dict().items())
    (results,) = done(trained, "preference")
    before, after = results.row("before"), results.row("after")
    assert before is not None and after is not None and before.quality.gradient != after.quality.gradient
    assert before.published[""]["NIQE"] == 4.667 and "before" in before.protocol["stage2"]


def test_the_two_degradations_are_two_trained_models_at_equal_settings(trained: Trained) -> None:
    """Table 6: the other Stage II is the root's own of the recipe + pixel_only; without DEG_latent nothing is added to its input."""
    with pytest.raises(UserError, match=r"trained with pixel degradation is not in .*train stage2 --set stage2\.latent_degradation=false"):
        sweep.plans_of(["degradation"], trained, {})
    pixel_only = twin_recipe(trained.recipe)
    reports = finish_training(trained.workspace, pixel_only, stage2_seed=4)
    reports["train_stage2"] = reports["train_stage2"].model_copy(update={"digest": "of other weights"})
    trained.workspace.finish(job_spec("train_stage2"), reports["train_stage2"])
    (results,) = done(trained, "degradation")
    assert [row.label for row in results.rows] == ["input", "codec", "truth", "pixel", "pixel + latent"]
    none, pixel, both = (results.row(label) for label in ("input", "pixel", "pixel + latent"))
    assert none is not None and pixel is not None and both is not None
    assert [row.published[""]["MUSIQ"] for row in (none, pixel, both)] == [23.61, 49.12, 55.45]
    assert both.protocol["latent_degradation"] and not pixel.protocol["latent_degradation"]
    assert pixel.quality.gradient != both.quality.gradient
    assert "the paper's Table 6 is on 5 frames, this Stage II on 9" in " ".join(results.notes)
    (turned,) = done(Trained(pixel_only, trained.workspace, reports), "degradation")  # from the other recipe: the same cells
    assert [(row.protocol_digest, row.quality) for row in turned.rows] == [(row.protocol_digest, row.quality) for row in results.rows]
    shutil.rmtree(trained.workspace.folder("train_stage2", reports["train_stage2"].fingerprint))


def test_without_the_hand_over_the_sweep_says_what_is_missing(trained: Trained, tmp_path: Path) -> None:
    other = trained.recipe.model_copy(update={"seed": 5})
    with pytest.raises(UserError, match=r"phase before handed over is not there.*flashvideo train stage2"):
        sweep.plans_of(["preference"], Trained(other, trained.workspace, trained.reports), {})
    plans, left_out = sweep.plans_of(["preference", "nfe", "stages"], Trained(other, trained.workspace, trained.reports), {})
    assert [plan.name for plan in plans] == ["nfe"] and "handed over" in left_out[0] and "generate is not done" in left_out[1]
    single = trained.recipe.stage2.model_copy(update={"phases": trained.recipe.stage2.phases[-1:]})
    with pytest.raises(UserError, match=r"stage2\.phases has 1"):
        sweep.plans_of(
            ["preference"], Trained(trained.recipe.model_copy(update={"stage2": single}), trained.workspace, trained.reports), {}
        )


def test_truth_at_another_size_only_where_the_source_has_it(trained: Trained) -> None:
    """The sources have 96 x 144 px: 80 x 112 has truth, 112 x 160 has none, and no fidelity."""
    config = trained.recipe.sweep.model_copy(update={"resolution": ((80, 112), (112, 160))})
    (results,) = done(Trained(trained.recipe.model_copy(update={"sweep": config}), trained.workspace, trained.reports), "resolution")
    small, large = results.row("80x112"), results.row("112x160")
    assert small is not None and large is not None
    assert small.quality.psnr_db is not None and small.quality.gradient_ratio is not None
    assert large.quality.clips == 2 and large.quality.psnr_db is None and large.quality.gradient_ratio is None
    assert results.row("truth 112x160") is None and any("112x160" in note and "no truth" in note for note in results.notes)


# ---- other tools -----------------------------------------------------------------------------------------------------


def test_another_tools_folder_is_a_column(trained: Trained, tmp_path: Path) -> None:
    """A tool that gives truth back has truth's sharpness; one with other names and sizes is scored without truth."""
    done(trained, "enhancers")
    inputs = sorted((trained.folder / "enhancers" / "inputs").glob("*.mp4"))
    assert read_video(inputs[0])[0].shape == (9, 8, 12, 3) and len(inputs) == 2  # 64 x 96 shrunk by 8
    items, _ = choose_items(trained)
    perfect, strange = tmp_path / "perfect", tmp_path / "strange"
    for item in items[:1]:
        assert item.clip is not None
        truth, _ = read_clip(item.clip["uri"], item.clip["start_us"], item.clip["end_us"], 8, 9, FULL.height, FULL.width)
        write_video(perfect / f"{item.name}.mp4", truth, 8, 0)
    write_video(strange / "film.mp4", moving_texture(3)[:12, :48, :64], 8, 4)
    (results,) = done(trained, "enhancers", folders={"Perfect": perfect, "Strange": strange})
    good, odd = results.row("Perfect"), results.row("Strange")
    assert good is not None and odd is not None
    assert good.quality.gradient_ratio == pytest.approx(1, abs=0.05)
    assert good.quality.psnr_db is not None and good.quality.psnr_db > 25  # its file is yuv420
    assert good.quality.clips == 1 and odd.quality.psnr_db is None and odd.quality.gradient_ratio is None
    said = " ".join(results.notes)
    assert "inputs for another tool: sweep/enhancers/inputs" in said
    assert "1 of 2 items have no video named after them" in said and "Strange: none of its 1 videos is named after an item" in said
    assert "48x64 px, resized to 64x96" in said
    ours = results.row("ours")
    assert ours is not None and ours.published[""]["MUSIQ"] == 58.69


def test_dovers_columns_are_the_papers_convention_and_named_as_a_stand_in(trained: Trained) -> None:
    evaluation = trained.recipe.evaluation.model_copy(update={"dover": "stand_in"})
    config = trained.recipe.sweep.model_copy(update={"nfe": (1,)})
    recipe = trained.recipe.model_copy(update={"evaluation": evaluation, "sweep": config})
    (results,) = done(Trained(recipe, trained.workspace, trained.reports), "nfe")
    row = results.row("1")
    assert row is not None and row.protocol["dover"] == ["stand_in"]
    with open(trained.folder / "nfe" / "table.csv") as file:
        (line,) = [line for line in csv.DictReader(file) if line["NFE"] == "1" and line["whose"] == "ours"]
    assert float(line["DOVER technical"]) == pytest.approx(row.quality.metrics["dover_master technical"], rel=1e-3)
    assert not [name for name in line if name.startswith("DOVER") and name not in ("DOVER technical", "DOVER aesthetic")]


@pytest.mark.parametrize(
    ("text", "said"),
    [("out", "write LABEL=DIR"), ("A=nowhere", "there is no folder"), ("ours=.", "'ours' is taken"), ("A=empty", "holds no video")],
)
def test_folders_that_are_no_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said):
        parse_folders([text])


# ---- mistakes, settings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("nfe", "1,x", "valid integer"),
        ("nfe", "0", "greater than or equal to 1"),
        ("nfe", "", "valid tuple"),
        ("noise", "1000", "less than or equal to 999"),
        ("resolution", "256", "256x448"),
        ("stages", "1", "has no values"),
    ],
)
def test_values_that_do_not_fit_are_mistakes(name: str, values: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        with_values(preset("debug").sweep, name, values)


def test_values_take_the_place_of_the_recipes() -> None:
    config = preset("debug").sweep
    assert with_values(config, "guidance", "1, 2.5").guidance == (1, 2.5)
    assert with_values(config, "resolution", "256x448,336x592").resolution == ((256, 448), (336, 592))


def test_a_misspelt_sweep_gets_the_nearest() -> None:
    with pytest.raises(UserError, match='did you mean "guidance"'):
        chosen_sweeps("guidence")
    assert len(chosen_sweeps("all")) == 8


def test_steps_outside_of_what_was_trained_are_said(trained: Trained) -> None:
    (plan,), _ = sweep.plans_of(["noise"], trained, {})
    assert "trained with noise steps 2-6, in the last phase 2-6" in plan.notes
    assert "noise steps 700 lie outside of what it was trained with (sweep.noise)" in plan.notes


def test_no_jobs_fingerprint_knows_of_sweeps(trained: Trained) -> None:
    changed = trained.recipe.model_copy(update={"sweep": trained.recipe.sweep.model_copy(update={"nfe": (3,), "inputs": "prompts"})})
    assert all(fingerprint(job.settings(changed)) == fingerprint(job.settings(trained.recipe)) for job in JOBS)


def test_an_untrained_root_is_a_mistake(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not done.*no Stage II to sweep"):
        Trained.of(trained.recipe, Workspace(tmp_path / "empty"))


def test_a_finished_stage2_that_the_recipe_names_no_more_goes_by_its_fingerprint(trained: Trained) -> None:
    other = trained.recipe.model_copy(update={"stage2": trained.recipe.stage2.model_copy(update={"seed": 77})})
    fingerprint_of = trained.reports["train_stage2"].fingerprint
    with pytest.raises(UserError, match=f"no Stage II to sweep.*--stage2 {fingerprint_of}"):
        Trained.of(other, trained.workspace)
    found = Trained.at(other, trained.workspace, fingerprint_of)
    assert {name: found.reports[name] for name in ("select", "precompute_latents", "train_stage2")} == {
        name: trained.reports[name] for name in ("select", "precompute_latents", "train_stage2")
    }
    with pytest.raises(UserError, match=r"train_stage2 is not finished.*0123456789abcdef"):
        Trained.at(other, trained.workspace, "0123456789abcdef")


# ---- the generate job's videos ---------------------------------------------------------------------------------------


def test_the_stages_and_prompts_are_the_generate_jobs(trained: Trained) -> None:
    """Table 2's rows are the generated videos; Stage II at the recipe's settings makes the same pixels again."""
    context = context_of("generate", trained.workspace, trained.recipe, trained.reports)
    report = generate.run(context)
    trained.workspace.finish(job_spec("generate"), report)
    whole = Trained(trained.recipe, trained.workspace, trained.reports | {"generate": report})
    (stages,) = done(whole, "stages")
    assert [(row.label, row.quality.clips) for row in stages.rows] == [("Stage I", 2), ("Stage II", 2)]
    assert stages.rows[1].published[""]["NIQE"] == 5.38 and stages.rows[0].quality.psnr_db is None
    prompts = trained.recipe.sweep.model_copy(update={"inputs": "prompts", "nfe": (4,)})
    (results,) = done(Trained(trained.recipe.model_copy(update={"sweep": prompts}), trained.workspace, whole.reports), "nfe")
    assert [row.label for row in results.rows] == ["input", "4"]
    row = generate.read_manifest(context.folder)["rows"][0]
    item = json.loads((trained.folder / "cells" / results.rows[1].protocol_digest / (results.strips[0].item + ".json")).read_text())
    assert item["pixels"] == row["stage2_pixels"]
