"""Bad losses and gradients, full disks: what stops, what is left out, what is kept."""

import logging
import re
from pathlib import Path

import pytest
import torch
from tiny_training import Run, engine_config, loss_lines, run_rank, spoil_gradients, weight_digests

from flashvideo.config import SpikeConfig
from flashvideo.objectives.diffusion import DiffusionObjective
from flashvideo.objectives.flow_matching import FlowMatchingObjective
from flashvideo.training.checkpoints import CheckpointError, Checkpoints
from flashvideo.training.faults import FaultGuard, LossSpikeError, NonFiniteGradientError, NonFiniteLossError
from flashvideo.training.metrics import read_losses


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Puts back what spoil_gradients changes."""
    for objective in (DiffusionObjective, FlowMatchingObjective):
        monkeypatch.setattr(objective, "losses", objective.losses)
    return monkeypatch


def test_a_loss_that_is_not_finite_stops_with_the_samples(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLossError, match=r"Stage II, images, train_step 2: 2 of 4 losses are not finite: image-3 \(nan\)"):
        run_rank(2, tmp_path, engine_config(1, 2), tmp_path / "meeting", poisoned=True)


def test_a_nan_in_one_ranks_gradient_stops_both_with_the_samples(tmp_path: Path) -> None:
    """Two samples a rank and one micro-batch: the third loss of rank 1 is train_step 3's."""
    run = Run(tmp_path, stage=1, bad_gradient=(1, 2))
    for text in run.fail():
        named = re.search(r"NonFiniteGradientError: Stage I, stage1, train_step 3: the gradient is not finite .* holds (.*)\. Look", text)
        assert named is not None, text
        assert len(named[1].split(", ")) == 4 and named[1].startswith("video-")
    assert [line[2] for line in loss_lines(tmp_path)] == [1, 2]


@pytest.mark.parametrize(("zero_stage", "precision"), [(0, "fp32"), (0, "bf16"), (1, "bf16"), (2, "fp32"), (3, "fp32")])
def test_a_skipped_train_step_changes_nothing(tmp_path: Path, spoil: pytest.MonkeyPatch, zero_stage: int, precision: str) -> None:
    """The NaN comes at train_step 4 of phase images, whose checkpoint must be that of train_step 3."""
    config = engine_config(1, zero_stage, precision, spikes={"policy": "skip"}, checkpoint_every=1, keep_checkpoints=9, micro_batch_size=4)
    spoil_gradients(3)
    run_rank(2, tmp_path, config, tmp_path / "meeting")
    images = tmp_path / "images"
    states = {path.parent.name: path.read_bytes() for path in images.glob("checkpoints/*/state-00000.safetensors")}
    assert states["step-00000004"] == states["step-00000003"] != states["step-00000002"]
    assert [line[2] for line in loss_lines(tmp_path, "images")] == [1, 2, 3, 5, 6]
    (fault,) = read_losses(images / "faults.jsonl")
    assert fault["train_step"] == 4 and fault["policy"] == "skip" and "image-" in fault["fault"]


def test_a_rewound_run_leaves_out_what_led_to_the_fault(tmp_path: Path, spoil: pytest.MonkeyPatch) -> None:
    """Checkpoint at 4, fault at 6: 5 and 6 are left out, and 7 starts from the weights of 4."""
    clean, rewound = tmp_path / "clean", tmp_path / "rewound"
    for folder in (clean, rewound):
        folder.mkdir()
    config = engine_config(1, 2, spikes={"policy": "rewind"}, micro_batch_size=4)
    run_rank(1, clean, config, clean / "meeting")
    spoil_gradients(5)
    run_rank(1, rewound, config, rewound / "meeting")
    assert [line[2] for line in loss_lines(rewound)] == [1, 2, 3, 4, 7, 8, 9, 10]
    assert loss_lines(rewound)[:4] == loss_lines(clean)[:4]
    newest = Checkpoints(rewound / "checkpoints", 2).newest()
    assert newest is not None and newest.facts["faults"] == {"recent": {}, "left_out": [4, 5], "faults": 1}


def test_a_fault_before_the_first_checkpoint_rewinds_to_the_start(tmp_path: Path, spoil: pytest.MonkeyPatch) -> None:
    spoil_gradients(1)
    run_rank(1, tmp_path, engine_config(1, 2, spikes={"policy": "rewind"}, micro_batch_size=4), tmp_path / "meeting")
    assert [line[2] for line in loss_lines(tmp_path)] == list(range(3, 11))


def test_more_faults_than_allowed_stop(tmp_path: Path) -> None:
    """Sample 3 of 6 is NaN, so that every second train_step of 4 or more holds it."""
    config = engine_config(1, 2, spikes={"policy": "skip", "at_most": 2})
    with pytest.raises(NonFiniteLossError, match=r"fault 3, more than engine.spikes.at_most = 2"):
        run_rank(2, tmp_path, config, tmp_path / "meeting", poisoned=True)


def test_a_loss_far_above_its_like_is_a_spike_and_images_are_not_compared_with_videos() -> None:
    guard = FaultGuard(SpikeConfig(policy="skip", loss_factor=3.0, window=3))
    ids = ["a", "b"]
    for loss in (1.0, 1.2, 0.8):
        assert guard.of_losses(torch.tensor([loss, loss]), ids, "video") is None
        guard.accept(loss, "video")
    assert guard.of_losses(torch.tensor([3.0, 3.0]), ids, "video") is None
    fault = guard.of_losses(torch.tensor([0.1, 6.0]), ids, "video")
    assert isinstance(fault, LossSpikeError) and "3.05, more than 3 times the median 1 of the last 3 video" in str(fault)
    assert "highest: b (6), a (0.1)" in str(fault)
    assert guard.of_losses(torch.tensor([60.0, 60.0]), ids, "image") is None
    again = FaultGuard(guard.config, guard.state())
    assert str(again.of_losses(torch.tensor([0.1, 6.0]), ids, "video")) == str(fault)


def test_a_gradient_norm_is_finite_or_a_fault() -> None:
    guard = FaultGuard(SpikeConfig())
    assert guard.of_gradient(1e30, ["a"]) is None
    assert isinstance(guard.of_gradient(float("inf"), ["a"]), NonFiniteGradientError)


def fill_disk_at(folder: Path, train_step: int) -> None:
    """The state file of that checkpoint goes to /dev/full: the disk takes no byte of it."""
    part = Checkpoints(folder / "checkpoints", 2).part(train_step)
    part.mkdir(parents=True)
    (part / "state-00000.safetensors").symlink_to("/dev/full")


def test_a_full_disk_during_a_checkpoint_keeps_the_one_before_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fill(done: int, total: int, unit: str, note: str) -> None:
        if done == 5:
            fill_disk_at(tmp_path, 8)
        if done == 9:
            newest = Checkpoints(tmp_path / "checkpoints", 2).newest()
            assert newest is not None and newest.train_step == 4

    with caplog.at_level(logging.WARNING):
        run_rank(1, tmp_path, engine_config(1, 2), tmp_path / "meeting", progress=fill)
    (said,) = [record.getMessage() for record in caplog.records if "could not be written" in record.getMessage()]
    assert "the checkpoint of train_step 8 could not be written" in said and "No space left on device" in said
    assert "that of train_step 4 is kept, training goes on" in said
    assert [line[2] for line in loss_lines(tmp_path)] == list(range(1, 11))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000004", "step-00000010"]


def test_a_last_checkpoint_that_cannot_be_written_stops_and_a_relaunch_goes_on(tmp_path: Path) -> None:
    def fill(done: int, total: int, unit: str, note: str) -> None:
        if done == 9:
            fill_disk_at(tmp_path, 10)

    with pytest.raises(CheckpointError, match=r"train_step 10 could not be written.*No space left.*free space there and relaunch"):
        run_rank(1, tmp_path, engine_config(1, 2), tmp_path / "first", progress=fill)
    resumed: list[int] = []
    run_rank(1, tmp_path, engine_config(1, 2), tmp_path / "second", progress=lambda *state: resumed.append(state[0]))
    assert resumed == [9, 10]


def test_a_run_whose_newest_checkpoint_is_damaged_goes_on_from_the_one_before_and_ends_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Interrupted(Exception):
        pass

    def stop(done: int, total: int, unit: str, note: str) -> None:
        if done == 9:
            raise Interrupted

    whole, damaged = tmp_path / "whole", tmp_path / "damaged"
    for folder in (whole, damaged):
        folder.mkdir()
    run_rank(1, whole, engine_config(1, 2), whole / "meeting")
    with pytest.raises(Interrupted):
        run_rank(1, damaged, engine_config(1, 2), damaged / "first", progress=stop)
    state = damaged / "checkpoints" / "step-00000008" / "state-00000.safetensors"
    content = bytearray(state.read_bytes())
    content[-1] ^= 1
    state.write_bytes(content)
    resumed: list[int] = []
    with caplog.at_level(logging.WARNING):
        run_rank(1, damaged, engine_config(1, 2), damaged / "second", progress=lambda *said: resumed.append(said[0]))
    assert "step-00000008 is damaged (state-00000.safetensors has other bytes than were written); using the one before it" in caplog.text
    assert resumed[0] == 5
    assert loss_lines(damaged) == loss_lines(whole) and weight_digests(damaged / "stage1") == weight_digests(whole / "stage1")
