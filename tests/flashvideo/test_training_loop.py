"""The loop under DeepSpeed on one CPU rank: exact resume, equal losses at every ZeRO stage. More ranks: test_training_resume.py."""

import json
from pathlib import Path

import pytest
import torch
from tiny_training import engine_config, run_rank
from tiny_training import loss_lines as losses
from tiny_training import weight_digests as weights

from flashvideo.config import OptimizerConfig
from flashvideo.objectives.batch import Batch
from flashvideo.training.checkpoints import CheckpointError
from flashvideo.training.loop import scheduled_rate
from flashvideo.training.metrics import LossLog, read_losses, write_lines
from flashvideo.training.pieces import PieceFolder
from flashvideo.training.stage2 import objective_of
from pipelines.recipe import load


class Interrupted(Exception):
    pass


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stage II, two phases, one rank, ZeRO 2."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    run_rank(2, folder, engine_config(1, 2), folder / "meeting")
    return folder


@pytest.mark.parametrize("train_step", [2, 4, 9])
def test_a_run_stopped_anywhere_goes_on_exactly(tmp_path: Path, uninterrupted: Path, train_step: int) -> None:
    def stop(done: int, total: int, unit: str, note: str) -> None:
        if done == train_step:
            raise Interrupted

    with pytest.raises(Interrupted):
        run_rank(2, tmp_path, engine_config(1, 2), tmp_path / "first", progress=stop)
    run_rank(2, tmp_path, engine_config(1, 2), tmp_path / "second")
    assert losses(tmp_path, "images", "mixed") == losses(uninterrupted, "images", "mixed")
    assert weights(tmp_path / "stage2") == weights(uninterrupted / "stage2")


def test_finished_phases_are_not_trained_again(uninterrupted: Path, tmp_path: Path) -> None:
    done: list[int] = []
    before = weights(uninterrupted / "stage2")
    run_rank(2, uninterrupted, engine_config(1, 2), tmp_path / "meeting", progress=lambda *state: done.append(state[0]))
    assert done == [] and weights(uninterrupted / "stage2") == before


@pytest.mark.parametrize(("zero_stage", "micro_batch_size"), [(0, 2), (1, 4), (3, 2)])
def test_zero_stages_and_micro_batches_train_alike(tmp_path: Path, uninterrupted: Path, zero_stage: int, micro_batch_size: int) -> None:
    run_rank(2, tmp_path, engine_config(1, zero_stage, micro_batch_size=micro_batch_size), tmp_path / "meeting")
    mine, reference = losses(tmp_path, "images", "mixed"), losses(uninterrupted, "images", "mixed")
    assert [line[3] for line in mine] == pytest.approx([line[3] for line in reference], rel=1e-5)
    assert [line[4] for line in mine] == pytest.approx([line[4] for line in reference], rel=1e-3)


def test_stage2_trains_the_order_and_kinds_of_its_phases(uninterrupted: Path) -> None:
    lines = losses(uninterrupted, "images", "mixed")
    assert [line[1] for line in lines] == ["images"] * 6 + ["mixed"] * 6
    assert [line[6] for line in lines[:6]] == ["image"] * 6 and sorted(line[6] for line in lines[6:9]) == ["image", "video", "video"]
    validation = json.loads((uninterrupted / "validation.json").read_text())
    assert validation["after"] < validation["before"] and list(validation["by_bin"]) == [f"t {t}" for t in (0.1, 0.3, 0.5, 0.7, 0.9)]


def test_stage1_trains_only_the_adapter_and_resumes_exactly_in_bf16(tmp_path: Path) -> None:
    def stop(done: int, total: int, unit: str, note: str) -> None:
        if done == 7:
            raise Interrupted

    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    whole.mkdir(), stopped.mkdir()
    config = engine_config(1, 2, "bf16")
    run_rank(1, whole, config, whole / "meeting")
    with pytest.raises(Interrupted):
        run_rank(1, stopped, config, stopped / "first", progress=stop)
    run_rank(1, stopped, config, stopped / "second")
    assert losses(stopped) == losses(whole) and len(losses(whole)) == 10
    assert weights(stopped / "stage1") == weights(whole / "stage1")
    assert sorted(weights(whole / "stage1")) == ["adapter_config.json", "adapter_model.safetensors", "base.json"]
    validation = json.loads((whole / "validation.json").read_text())
    assert validation["after"] < validation["before"] and validation["samples"] == 3


def test_a_checkpoint_of_another_order_of_samples_is_refused(tmp_path: Path) -> None:
    """As from a dataset that lost a clip under the same folder: the samples to come would be others."""

    def stop(done: int, total: int, unit: str, note: str) -> None:
        if done == 5:
            raise Interrupted

    with pytest.raises(Interrupted):
        run_rank(1, tmp_path, engine_config(1, 2), tmp_path / "first", progress=stop)
    written = tmp_path / "checkpoints" / "step-00000004" / "checkpoint.json"
    state = json.loads(written.read_text())
    assert state["facts"]["order"]["num_videos"] == 6
    state["facts"]["order"]["num_videos"] = 7
    written.write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match=r"step-00000004 was written with another order of samples \(num_videos 7 and 6\); delete"):
        run_rank(1, tmp_path, engine_config(1, 2), tmp_path / "second")


def test_stage1_checkpoints_hold_adapters_only(tmp_path: Path) -> None:
    run_rank(1, tmp_path, engine_config(1, 2), tmp_path / "meeting")
    stored = PieceFolder(tmp_path / "checkpoints" / "step-00000010")
    for kind in ("weight", "exp_avg", "exp_avg_sq"):
        assert stored.names(kind) and all(".lora_" in name for name in stored.names(kind))


def test_phase_3_of_the_paper_changes_its_noise_range_at_iteration_1000() -> None:
    """600-900 for the first 1,000 iterations, 650-750 from then on; 64 stratified draws come near both ends."""
    config = load("paper").stage2
    objective_at = objective_of(config, config.phases[2])
    generators = tuple(torch.Generator().manual_seed(seed) for seed in range(64))
    latents = torch.zeros(64, 1, 1, 1, 1)
    batch = Batch(("",) * 64, latents, torch.zeros(64, 1, 1), torch.arange(64), 64, generators)
    for train_step, (low, high) in ((0, (600, 900)), (999, (600, 900)), (1_000, (650, 750)), (4_999, (650, 750))):
        steps = objective_at(train_step).draw_noise_steps(batch)
        width = (high - low + 1) / 64
        assert low <= steps.min() < low + width and high - width < steps.max() <= high


def test_the_learning_rate_warms_up_and_stays_or_falls() -> None:
    constant = OptimizerConfig(learning_rate=1.0, warmup_steps=3)
    assert [scheduled_rate(constant, train_step, 10) for train_step in (0, 2, 3, 9)] == [0.25, 0.75, 1.0, 1.0]
    cosine = OptimizerConfig(learning_rate=1.0, schedule="cosine")
    assert scheduled_rate(cosine, 0, 10) == 1.0
    assert scheduled_rate(cosine, 5, 10) == pytest.approx(0.55)
    assert scheduled_rate(cosine, 10, 10) == pytest.approx(0.1)


def test_the_loss_log_forgets_what_came_after_the_checkpoint_and_half_lines(tmp_path: Path) -> None:
    path = tmp_path / "losses.jsonl"
    write_lines(path, [json.dumps({"train_step": train_step}) for train_step in range(1, 6)])
    path.write_text(path.read_text() + '{"train_st')
    LossLog(path).resume(3)
    assert [line["train_step"] for line in read_losses(path)] == [1, 2, 3]
