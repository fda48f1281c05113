"""What can be switched on: averaged weights, loader threads, memory check, selective recomputation, compile, watching."""

import json
import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_training import TINY, MadeUpLatents, Run, engine_config, loss_lines, losses_of, run_rank, weight_digests
from torch import Tensor, nn

from flashvideo.config import EngineConfig, LoraConfig, OptimizerConfig, Stage1Config, TransformerConfig
from flashvideo.models.transformer import CogVideoXTransformer
from flashvideo.objectives.flow_matching import FlowMatchingObjective
from flashvideo.training.activations import prepare_blocks
from flashvideo.training.batches import BatchOrder, BatchReader, LatentSample, Modality, fixed_batches
from flashvideo.training.engine import Engine, joined
from flashvideo.training.metrics import Validation, read_losses, sharpness, validate
from flashvideo.training.pieces import write_pieces
from flashvideo.training.prefetch import Prefetcher
from flashvideo.training.stage1 import scale_warning
from flashvideo.training.stage2 import flow_bins
from flashvideo.training.throughput import model_flops, throughput
from orchestration.cost import train_flops


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stage II with nothing switched on, one rank."""
    folder = tmp_path_factory.mktemp("plain")
    run_rank(2, folder, engine_config(1, 2), folder / "meeting")
    return folder


def same_as(plain: Path, folder: Path) -> bool:
    """Equal losses, gradient norms and weights, to the last bit."""
    return loss_lines(folder, "images", "mixed") == loss_lines(plain, "images", "mixed") and (
        weight_digests(folder / "stage2") == weight_digests(plain / "stage2")
    )


# ------------------------------------------------------------------------------------------------------ averaged weights


@pytest.mark.parametrize(("zero_stage", "precision"), [(0, "fp32"), (0, "bf16"), (1, "bf16"), (2, "fp32"), (3, "fp32")])
def test_the_average_follows_its_formula_and_the_weights_come_back(tmp_path: Path, zero_stage: int, precision: str) -> None:
    """One weight, gradient 1 at every step: w_n = w_0 - n lr, and the average by hand."""
    config = engine_config(1, zero_stage, precision)
    optimizer = OptimizerConfig(learning_rate=0.5, clip_grad_norm=1e9, weight_decay=0.0, ema_decay=0.3)
    with joined(config, 0, 1, f"file://{tmp_path}/meeting") as ranks:
        engine = Engine(nn.Linear(1, 1, bias=False).to(torch.bfloat16 if precision == "bf16" else torch.float32), optimizer, config, ranks)
        (weight,) = engine._masters()
        weight.data.view(-1)[:1] = 1.0
        engine._averages[0].view(-1)[:1] = 1.0
        average, value = 1.0, 1.0
        for number in range(1, 4):
            engine.backward(engine.model(torch.ones(1, 1, dtype=engine.dtype)).sum(), last=True)
            engine.step(0.5)
            value -= 0.5
            decay = min(0.3, (1 + number) / (10 + number))
            average = decay * average + (1 - decay) * value
            assert weight.view(-1)[0].item() == pytest.approx(value, abs=1e-4)
        assert engine._averages[0].view(-1)[0].item() == pytest.approx(average, abs=1e-4)
        own = weight.detach().clone()
        with engine.averaged(), engine.whole_model() as model:
            (shown,) = model.parameters()
            assert shown.item() == pytest.approx(average, abs=5e-3 if precision == "bf16" else 1e-4)
        assert torch.equal(engine._masters()[0], own)
        engine.close()


def test_the_average_is_saved_beside_and_resumed_on_other_ranks(tmp_path: Path) -> None:
    whole, stopped = Run(tmp_path / "whole", 1, ema_decay=0.9), Run(tmp_path / "stopped", 1, ema_decay=0.9, kill_at=9)
    whole.finish()
    stopped.die()
    Run(stopped.folder, 1, num_ranks=1, ema_decay=0.9).finish()
    mine, reference = (load_file(run.folder / "stage1_ema" / "adapter_model.safetensors") for run in (stopped, whole))
    raw = load_file(whole.folder / "stage1" / "adapter_model.safetensors")
    assert all(torch.allclose(mine[name], reference[name], rtol=1e-4, atol=1e-6) for name in reference)
    assert any(not torch.allclose(raw[name], reference[name], rtol=1e-3) for name in reference)
    assert '"after_ema"' in (whole.folder / "validation.json").read_text()


def test_an_average_changes_nothing_of_the_training(tmp_path: Path, plain: Path) -> None:
    run_rank(2, tmp_path, engine_config(1, 2), tmp_path / "meeting", ema_decay=0.9)
    assert same_as(plain, tmp_path)
    assert weight_digests(tmp_path / "stage2_ema").keys() == weight_digests(tmp_path / "stage2").keys()


# ------------------------------------------------------------------------------------------------ checkpoints meanwhile


def test_checkpoints_written_meanwhile_hold_the_state_of_their_train_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is slow: the checkpoint of train_step 4 is written when train_step 7 is done, and still that of 4."""
    at_once, meanwhile = tmp_path / "at once", tmp_path / "meanwhile"
    for folder in (at_once, meanwhile):
        folder.mkdir()
    run_rank(1, at_once, engine_config(1, 2, keep_checkpoints=9), at_once / "meeting")
    reached = threading.Event()

    def slow(*arguments: Any) -> None:
        if "step-00000004" in str(arguments[0]):
            assert reached.wait(60)
        write_pieces(*arguments)

    def watch(done: int, total: int, unit: str, note: str) -> None:
        folders = sorted(path.name for path in (meanwhile / "checkpoints").glob("step-*"))
        assert done >= 7 or folders == []
        if done == 7:
            reached.set()

    monkeypatch.setattr("flashvideo.training.engine.write_pieces", slow)
    run_rank(1, meanwhile, engine_config(1, 2, async_checkpoints=True, keep_checkpoints=9), meanwhile / "meeting", progress=watch)
    for name in ("step-00000004", "step-00000008", "step-00000010"):
        mine, reference = (folder / "checkpoints" / name / "state-00000.safetensors" for folder in (meanwhile, at_once))
        assert mine.read_bytes() == reference.read_bytes()
    assert loss_lines(meanwhile) == loss_lines(at_once)


def test_a_run_killed_while_it_writes_goes_on_exactly(tmp_path: Path) -> None:
    whole, killed = Run(tmp_path / "whole", 1), Run(tmp_path / "killed", 1, kill_at=5, settings={"async_checkpoints": True})
    whole.finish()
    killed.die()
    Run(killed.folder, 1, settings={"async_checkpoints": True}).finish()
    assert loss_lines(killed.folder) == loss_lines(whole.folder)
    assert weight_digests(killed.folder / "stage1") == weight_digests(whole.folder / "stage1")


# ------------------------------------------------------------------------------------------------------------- prefetch


class Light:
    """Samples of one number, for counting."""

    def ids(self, modality: Modality) -> list[str]:
        return [f"{modality}-{index}" for index in range(31 if modality == "image" else 17)]

    def read(self, modality: Modality, index: int, generator: torch.Generator) -> LatentSample:
        return LatentSample(torch.rand(1, 1, 1, 1, generator=generator), torch.ones(1, 1))


def first_ids(num_ranks: int, workers: int, count: int = 1_000) -> tuple[list[str], list[float]]:
    """The first sample ids in the order of the global batches, each with its draw."""
    order = BatchOrder(seed=5, phase="mixed", num_images=31, num_videos=17, images=1, videos=2, batch_size=6)
    readers = [BatchReader(Light(), order, 0.1, rank, num_ranks, 2) for rank in range(num_ranks)]
    loaders = [Prefetcher(reader, workers, 200) for reader in readers]
    ids, draws = [], []
    for train_step in range(-(-count // 6)):
        for loader in loaders:
            with_ids = loader.micro_batches(train_step)
            ids += [sample for batch in with_ids for sample in batch.sample_ids]
            draws += [value for batch in with_ids for value in batch.clean.flatten().tolist()]
    for loader in loaders:
        loader.__exit__(None, None, None)
    return ids[:count], draws[:count]


def test_the_first_thousand_samples_are_the_same_for_any_ranks_and_workers() -> None:
    reference = first_ids(1, 0)
    assert len(reference[0]) == 1_000 and len(set(reference[1])) > 990
    for num_ranks in (1, 2):
        for workers in (0, 1, 3):
            assert first_ids(num_ranks, workers) == reference
    kinds = [sample.split("-")[0] for sample in reference[0][: 6 * 165]]
    assert kinds.count("video") == 2 * kinds.count("image") == 660


def test_loader_threads_change_nothing_and_the_stall_is_recorded(tmp_path: Path, plain: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        run_rank(2, tmp_path, engine_config(1, 2, loader_workers=3), tmp_path / "meeting")
    assert same_as(plain, tmp_path)
    for line in read_losses(tmp_path / "mixed" / "losses.jsonl"):
        assert line["stall_share"] == line["wait_seconds"] / line["seconds"] and 0 <= line["stall_share"] < 1
    assert "Stage II, mixed: waited for batches" in caplog.text and "3 loader workers" in caplog.text


def test_a_loader_jumps_where_the_trainer_jumps_and_passes_errors_on() -> None:
    order = BatchOrder(seed=5, phase="x", num_images=0, num_videos=17, batch_size=2)
    with Prefetcher(BatchReader(Light(), order, 0.0, 0, 1, 2), 2, 9) as loader:
        direct = Prefetcher(loader.reader, 0, 9)
        for train_step in (0, 1, 5, 2, 8):
            assert loader.micro_batches(train_step)[0].sample_ids == direct.micro_batches(train_step)[0].sample_ids
        assert not loader._ahead  # nothing at or after the end is read

    class Broken(Light):
        def read(self, modality: Modality, index: int, generator: torch.Generator) -> LatentSample:
            raise OSError("shard is gone")

    with Prefetcher(BatchReader(Broken(), order, 0.0, 0, 1, 2), 2, 9) as loader, pytest.raises(OSError, match="shard is gone"):
        loader.micro_batches(0)


# ---------------------------------------------------------------------------------------------- memory, activations, compile


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_the_memory_check_tries_every_shape_of_every_phase_first_and_leaves_no_trace(
    tmp_path: Path, plain: Path, caplog: pytest.LogCaptureFixture, zero_stage: int
) -> None:
    with caplog.at_level(logging.INFO):
        run_rank(2, tmp_path, engine_config(1, zero_stage, memory_check=True), tmp_path / "meeting")
    said = [record.getMessage() for record in caplog.records if record.name == "flashvideo"]
    assert said[:3] == [
        "Stage II, images: a micro-batch of 2 images of (1, 16, 4, 6) latents fits",
        "Stage II, mixed: a micro-batch of 2 images of (1, 16, 4, 6) latents fits",
        "Stage II, mixed: a micro-batch of 2 videos of (3, 16, 4, 6) latents fits",
    ]
    if zero_stage == 2:
        assert same_as(plain, tmp_path)
    assert losses_of(loss_lines(tmp_path, "images", "mixed")) == pytest.approx(losses_of(loss_lines(plain, "images", "mixed")), rel=1e-5)


def test_a_shape_that_does_not_fit_is_named_before_any_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = FlowMatchingObjective.losses

    def losses(self: FlowMatchingObjective, model: nn.Module, batch: Any) -> Tensor:
        if batch.clean.shape[1] == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return right(self, model, batch)

    monkeypatch.setattr(FlowMatchingObjective, "losses", losses)
    with pytest.raises(MemoryError, match=r"Stage II, mixed: a micro-batch of 2 videos of \(3, 16, 4, 6\) latents does not fit"):
        run_rank(2, tmp_path, engine_config(1, 2, memory_check=True), tmp_path / "meeting")
    assert not (tmp_path / "images" / "losses.jsonl").exists()


class CountAttention(torch.utils._python_dispatch.TorchDispatchMode):
    """How often attention is computed forward."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += func is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
        return func(*args, **(kwargs or {}))


def backward_of(settings: dict[str, Any]) -> tuple[int, int, list[Tensor]]:
    """(times that attention was computed, bytes kept for backward, gradients) of two blocks."""
    config = TransformerConfig(
        num_layers=2, num_attention_heads=2, attention_head_dim=16, text_embed_dim=8, time_embed_dim=16, rope_axes=(4, 6, 6)
    )
    model = CogVideoXTransformer(config)
    prepare_blocks(model, EngineConfig.model_validate(settings))
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    generator = torch.Generator().manual_seed(0)
    latents, text = torch.randn(2, 3, 16, 8, 8, generator=generator), torch.randn(2, 4, 8, generator=generator)
    with CountAttention() as counted:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = model(latents, text, torch.tensor([10.0, 900.0]))
        output.square().mean().backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return counted.calls, sum(kept.values()), gradients


def test_selective_recomputation_keeps_attention_and_little_else() -> None:
    everything = backward_of({"activation_checkpointing": False})
    selective = backward_of({"keep_attention": True})
    nothing = backward_of({})
    assert (everything[0], selective[0], nothing[0]) == (2, 2, 4)  # two blocks; whole recomputation attends again
    assert nothing[1] < everything[1] / 2 and selective[1] < everything[1] / 2
    for other in (selective, nothing):
        assert all(torch.equal(mine, reference) for mine, reference in zip(other[2], everything[2], strict=True))


def test_selective_recomputation_trains_the_same(tmp_path: Path, plain: Path) -> None:
    run_rank(2, tmp_path, engine_config(1, 2, activation_checkpointing=True, keep_attention=True), tmp_path / "meeting")
    assert losses_of(loss_lines(tmp_path, "images", "mixed")) == pytest.approx(losses_of(loss_lines(plain, "images", "mixed")), rel=1e-5)
    with pytest.raises(ValueError, match="keep_attention = true does not work with zero_stage = 3"):
        engine_config(1, 3, keep_attention=True)


def gradients_of(settings: dict[str, Any]) -> list[Tensor]:
    """Of one block of the tiny model."""
    model = CogVideoXTransformer(TINY.model_copy(update={"num_layers": 1}))
    prepare_blocks(model, EngineConfig.model_validate(settings))
    generator = torch.Generator().manual_seed(0)
    latents, text = torch.randn(2, 3, 16, 4, 6, generator=generator), torch.randn(2, 4, 8, generator=generator)
    model(latents, text, torch.tensor([10.0, 900.0])).square().mean().backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("settings", [{"activation_checkpointing": False}, {"keep_attention": True}, {}])
def test_compiled_blocks_compute_the_same(monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]) -> None:
    """One whole graph a block, by the backend that runs it as it is: capture is what a block can break."""
    compile_block, compiled = nn.Module.compile, []

    def capture(block: nn.Module) -> None:
        compiled.append(block)
        compile_block(block, backend="eager", fullgraph=settings.get("activation_checkpointing") is False)

    monkeypatch.setattr(nn.Module, "compile", capture)
    mine, reference = gradients_of(settings | {"compile_blocks": True}), gradients_of({"activation_checkpointing": False})
    assert len(compiled) == 1 and len(mine) == len(reference)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(mine, reference, strict=True))


# ------------------------------------------------------------------------------------------------------------- watching


class Answer(nn.Module):
    """Predicts `share` of the velocity that leads to the true latents; the rest is towards zero."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share, self.clean, self.weight = share, torch.zeros(0), nn.Parameter(torch.zeros(1))

    def forward(self, latents: Tensor, text: Tensor, timestep: Tensor, noise_step: Tensor) -> Tensor:
        t = 1 - timestep.view(-1, 1, 1, 1, 1) / 1000
        return (self.share * self.clean - latents) / (1 - t)


@pytest.mark.parametrize(("share", "collapsed"), [(1.0, False), (0.5, False), (0.05, True)])
def test_the_collapse_detector_measures_spread_and_sharpness_of_the_outputs(tmp_path: Path, share: float, collapsed: bool) -> None:
    """x_t + (1 - t) v = share x1: both ratios are the share, at every t."""
    bins = flow_bins(FlowMatchingObjective((50, 200)))
    model = Answer(share)

    def batches() -> list[Any]:
        own = fixed_batches(MadeUpLatents(1), "video", 9, 1)
        model.clean = own[0].clean
        return own

    with joined(engine_config(1, 0), 0, 1, f"file://{tmp_path}/meeting") as ranks:
        engine = Engine(model, OptimizerConfig(), engine_config(1, 0), ranks)
        validation = validate(engine, batches, bins)
        engine.close()
    assert list(validation.std_ratio.values()) == pytest.approx([share] * 5, rel=1e-3)
    assert list(validation.sharpness_ratio.values()) == pytest.approx([share] * 5, rel=1e-3)
    said = validation.collapsed(0.3)
    assert (said is not None) == collapsed
    if said is not None:
        assert "at t 0.5 the clean estimates have 0.05 of truth's spread and 0.05 of its sharpness" in said


def test_sharpness_is_the_mean_step_between_neighbours() -> None:
    ramp = torch.arange(4.0).repeat(3, 1) + 10 * torch.arange(3.0)[:, None]
    assert sharpness(ramp.view(1, 1, 1, 3, 4)).tolist() == [11.0]


def test_a_blurred_output_of_the_right_spread_is_a_collapse() -> None:
    values = {"low": 1.0, "middle": 0.9, "high": 1.0}
    validation = Validation(0.1, dict.fromkeys(values, 0.1), 4, "middle", std_ratio=values, sharpness_ratio=values | {"middle": 0.1})
    assert validation.collapsed(0.3) is not None and validation.collapsed(0.05) is None


def test_bins_at_the_ends_of_the_noise_range_are_shown_and_leave_the_mean_alone(tmp_path: Path) -> None:
    config = engine_config(1, 0, watch={"noise_step_bins": True, "peak_teraflops": 1e-3})
    plain, extra = (flow_bins(FlowMatchingObjective((50, 200)), more) for more in (False, True))
    with joined(config, 0, 1, f"file://{tmp_path}/meeting") as ranks:
        model = CogVideoXTransformer(TINY.model_copy(update={"noise_strength_embedding": True}))
        engine = Engine(model, OptimizerConfig(), config, ranks)
        few, more = (validate(engine, lambda: fixed_batches(MadeUpLatents(2), "video", 9, 2), bins) for bins in (plain, extra))
        engine.close()
    assert list(more.by_bin)[5:] == ["noise step 50", "noise step 200"] and more.by_bin["noise step 50"] != more.by_bin["noise step 200"]
    assert (few.loss, few.middle) == (more.loss, more.middle) == (few.loss, "t 0.5")


def test_throughput_counts_attention_and_text_and_agrees_with_the_plan() -> None:
    """3 x 2 x 3 patches and 4 text tokens: 22 tokens; width 16, 2 blocks."""
    (batch,) = fixed_batches(MadeUpLatents(1), "video", 9, 1)
    batch.global_size = 8
    flops = 24 * 22 * 16**2 * 2 + 4 * 22**2 * 16 * 2
    speed = throughput(TINY, batch, adapters=False, num_ranks=2, seconds=0.5, peak_teraflops=1e-3)
    assert speed.tokens_per_s == 22 * 8 / 0.5
    assert speed.teraflops_per_rank == pytest.approx(3 * flops * 8 / 2 / 0.5 / 1e12)
    assert speed.mfu == pytest.approx(speed.teraflops_per_rank / 1e-3)
    for adapters in (False, True):
        engine = EngineConfig(activation_checkpointing=False)
        assert model_flops(TINY, 22, adapters) == train_flops(TINY, 22, engine, adapters=adapters)


def test_validations_and_scalars_are_written_at_intervals_and_cut_by_a_resume(tmp_path: Path, plain: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

    class Interrupted(Exception):
        pass

    def stop(done: int, total: int, unit: str, note: str) -> None:
        if done == 12:
            raise Interrupted

    config = engine_config(1, 2, watch={"tensorboard": True, "validate_every": 3})
    with pytest.raises(Interrupted):
        run_rank(2, tmp_path, config, tmp_path / "first", progress=stop)
    run_rank(2, tmp_path, config, tmp_path / "second")
    assert same_as(plain, tmp_path)
    for phase in ("images", "mixed"):
        lines = read_losses(tmp_path / phase / "validations.jsonl")
        assert [line["train_step"] for line in lines] == [3, 6]
        assert set(lines[0]) >= {"loss", "by_bin", "std_ratio", "sharpness_ratio", "collapsed"}
        events = EventAccumulator(str(tmp_path / phase / "tensorboard"))
        events.Reload()
        shown = {event.step: event.value for event in events.Scalars("train/loss")}
        assert shown == pytest.approx({line[2]: line[3] for line in loss_lines(tmp_path, phase)})
        assert [event.step for event in events.Scalars("std_ratio/t 0.5")][-1] == 6
        assert all(event.value > 0 for event in events.Scalars("train/tokens_per_s"))


def test_sheets_of_samples_are_made_at_intervals_and_change_no_weight(tmp_path: Path, plain: Path) -> None:
    """Every 4 of 6 train_steps and at the end; two rows of degraded, enhanced, true, each 4 x 6 here (one pixel a latent)."""
    shapes = []

    def first_frame(latents: Tensor) -> np.ndarray:
        shapes.append(tuple(latents.shape))
        grey = (latents[0, 0, 0].clamp(-1, 1) * 127 + 128).byte().numpy()
        return np.repeat(grey[:, :, None], 3, axis=2)

    config = engine_config(1, 2, watch={"sample_every": 4, "samples": 2})
    run_rank(2, tmp_path, config, tmp_path / "meeting", first_frame=first_frame)
    assert same_as(plain, tmp_path)
    for phase in ("images", "mixed"):
        assert sorted(path.name for path in (tmp_path / phase / "samples").iterdir()) == ["step-00000004.jpg", "step-00000006.jpg"]
    with Image.open(tmp_path / "mixed" / "samples" / "step-00000006.jpg") as sheet:
        assert sheet.size == (3 * 6, 2 * 4)
    assert set(shapes) == {(1, 1, 16, 4, 6)} and len(shapes) == 4 * 2 * 3


def greys(latents: Tensor) -> np.ndarray:
    """One pixel a latent: T H W 3."""
    grey = (latents[0, :, 0].clamp(-1, 1) * 127 + 128).byte().numpy()
    return np.repeat(grey[..., None], 3, axis=-1)


@pytest.mark.parametrize(("zero_stage", "precision"), [(2, "fp32"), (2, "bf16"), (3, "fp32")])
def test_stage1_samples_captions_at_intervals_and_changes_no_weight(tmp_path: Path, zero_stage: int, precision: str) -> None:
    """Every 4 and every 5 of 10 train_steps: two clips, three frames sampled and three true; the last sheet is the same of both."""
    run_rank(1, tmp_path / "plain", engine_config(1, zero_stage, precision), tmp_path / "meeting-0")
    for every, steps in ((4, [4, 8, 10]), (5, [5, 10])):
        folder = tmp_path / f"every-{every}"
        watch = {"sample_every": every, "samples": 2, "sample_steps": 3, "sample_guidance": 2.0}
        run_rank(1, folder, engine_config(1, zero_stage, precision, watch=watch), tmp_path / f"meeting-{every}", decode=greys)
        assert loss_lines(folder) == loss_lines(tmp_path / "plain")
        assert weight_digests(folder / "stage1") == weight_digests(tmp_path / "plain" / "stage1")
        assert sorted(path.name for path in (folder / "samples").glob("*.jpg")) == [f"step-{step:08d}.jpg" for step in steps]
    four, five = (tmp_path / name / "samples" / "step-00000010.jpg" for name in ("every-4", "every-5"))
    assert four.read_bytes() == five.read_bytes() != (tmp_path / "every-5" / "samples" / "step-00000005.jpg").read_bytes()
    with Image.open(four) as sheet:
        assert sheet.size == (6 * 6, 2 * 4)
    settings = json.loads((tmp_path / "every-4" / "samples" / "sampling.json").read_text())
    assert settings == {"num_steps": 3, "guidance_scale": 2.0, "guidance_exponent": 5.0, "sample_ids": ["video-0", "video-1"]}


@pytest.mark.parametrize("stage", [1, 2])
def test_sheets_need_a_decoder(tmp_path: Path, stage: int) -> None:
    with pytest.raises(ValueError, match=r"sample_every needs the autoencoder"):
        run_rank(stage, tmp_path, engine_config(1, 2, watch={"sample_every": 4}), tmp_path / "meeting")


def test_adapters_with_too_large_an_update_are_warned_of() -> None:
    """alpha 64 at rank 128 is 64 times the released 1/128; a random base has nothing to lose."""
    released = Stage1Config(base_weights="weights")
    assert scale_warning(released) is None
    large = released.model_copy(update={"lora": LoraConfig(rank=128, alpha=64)})
    assert "64 times as far" in (scale_warning(large) or "")
    assert scale_warning(large.model_copy(update={"base_weights": None})) is None
    assert scale_warning(large.model_copy(update={"full_finetune": True})) is None
    slower = OptimizerConfig(learning_rate=4e-6)
    assert scale_warning(large.model_copy(update={"optimizer": slower})) is None
