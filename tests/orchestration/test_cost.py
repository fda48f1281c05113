"""Formulas of the plan, against the real classes and the spec's table of known sizes (training.md 6.2, 6.3)."""

from __future__ import annotations

from typing import Any

import pytest

from flashvideo.config import STAGE2_TRANSFORMER, EngineConfig, FrameShape, LoraConfig, TransformerConfig
from orchestration.budget import memories, on_gpus, phase_costs, storage
from orchestration.cost import (
    Rates,
    attention_flops,
    decode_flops,
    encode_flops,
    forward_flops,
    forward_seconds,
    linear_flops,
    lora_parameters,
    parameters,
    rank_memory,
    step_seconds,
    t5_xxl_flops,
    train_flops,
)
from pipelines.recipe import load

STAGE1 = TransformerConfig()
TEXT = 226


def within(value: float, figure: float, digits: float = 0.0) -> None:
    """`digits`: half of the figure's last digit, where that is more than 3 %."""
    assert value == pytest.approx(figure, rel=0.03, abs=digits)


@pytest.mark.parametrize("config", [STAGE1, STAGE2_TRANSFORMER, load("debug").stage1.transformer, load("debug").stage2.transformer])
def test_parameters_equal_the_real_transformers(config: TransformerConfig):
    import torch

    from flashvideo.models.transformer import CogVideoXTransformer

    with torch.device("meta"):
        real = sum(weight.numel() for weight in CogVideoXTransformer(config).parameters())
    assert parameters(config) == real


@pytest.mark.parametrize("targets", ["paper", "official"])
def test_adapters_equal_the_real_ones(targets: str):
    from flashvideo.models.lora import add_lora, lora_state
    from flashvideo.models.transformer import CogVideoXTransformer

    config, lora = load("debug").stage1.transformer, LoraConfig(rank=8, alpha=8, targets=targets)
    model = CogVideoXTransformer(config)
    add_lora(model, lora)
    assert lora_parameters(config, lora) == sum(weight.numel() for weight in lora_state(model).values())


@pytest.mark.parametrize(
    ("config", "frames", "height", "width", "linear", "attention", "whole"),
    [
        (STAGE1, 49, 256, 480, 61.5, 21.6, 83.1),
        (STAGE1, 49, 480, 720, 169, 163, 332),
        (STAGE1, 49, 1072, 1920, 996, 5_662, 6_659),
        (STAGE2_TRANSFORMER, 1, 528, 960, 5.9, 1.1, 7.0),
        (STAGE2_TRANSFORMER, 49, 528, 960, 68.9, 155.3, 224.3),
        (STAGE2_TRANSFORMER, 49, 1072, 1920, 278.0, 2_527.9, 2_806),
        (STAGE2_TRANSFORMER, 49, 1088, 1920, 282.2, 2_603.7, 2_886),
        (STAGE2_TRANSFORMER, 5, 1072, 1920, 43.3, 61.3, 104.6),
        (STAGE2_TRANSFORMER, 49, 1440, 2560, 497, 8_094, 8_591),
    ],
)
def test_forward_flops_are_the_specs(
    config: TransformerConfig, frames: int, height: int, width: int, linear: float, attention: float, whole: float
):
    """TFLOP of training.md 6.2, all of its transformer rows."""
    tokens = FrameShape(frames=frames, height=height, width=width).num_tokens + TEXT
    within(linear_flops(config, tokens) / 1e12, linear)
    within(attention_flops(config, tokens) / 1e12, attention)
    assert forward_flops(config, tokens) / 1e12 == pytest.approx(whole, rel=0.005)


def test_training_counts_backward_and_recompute():
    linear, attention = linear_flops(STAGE1, 100), attention_flops(STAGE1, 100)
    kept, again = EngineConfig(activation_checkpointing=False), EngineConfig(activation_checkpointing=True)
    assert train_flops(STAGE1, 100, kept, adapters=False) == 3 * (linear + attention)
    assert train_flops(STAGE1, 100, again, adapters=False) == 4 * (linear + attention)
    assert train_flops(STAGE1, 100, again, adapters=True) == 3 * linear + 4 * attention
    selective = EngineConfig(activation_checkpointing=True, keep_attention=True)
    assert train_flops(STAGE1, 100, selective, adapters=False) == 4 * linear + 3 * attention


def test_memory_of_one_rank_is_the_specs():
    """Full training in bf16 takes 16 bytes a weight; activations of 1080p with recompute 11.2 GiB kept and 8.2 at the peak."""
    tokens = FrameShape(frames=49, height=1072, width=1920).num_tokens + TEXT
    memory = rank_memory(STAGE2_TRANSFORMER, tokens, EngineConfig(num_ranks=1), None)
    assert memory.states == 16 * parameters(STAGE2_TRANSFORMER)
    assert memory.states / 2**30 == pytest.approx(25.3, abs=0.1)
    assert memory.activations / 2**30 == pytest.approx(11.2 + 8.2, abs=0.1)
    kept = rank_memory(STAGE2_TRANSFORMER, tokens, EngineConfig(num_ranks=1, activation_checkpointing=False), None)
    assert (kept.activations - memory.activations) / 2**30 == pytest.approx(247 - 11.2, abs=2)


# ---- the specification's figures (training.md 6.2 and 6.3), within 3 % ---------------------------------------------


@pytest.mark.parametrize(
    ("frames", "height", "width", "encode", "decode"),
    [(49, 256, 480, 53, 112), (49, 528, 960, 219, 462), (49, 1072, 1920, 887, 1876), (1, 528, 960, 7.0, 11.0), (1, 1072, 1920, 28.5, 44.7)],
)
def test_autoencoder_flops_are_the_specs(frames: int, height: int, width: int, encode: float, decode: float):
    shape = FrameShape(frames=frames, height=height, width=width)
    within(encode_flops(shape) / 1e12, encode)
    within(decode_flops(shape) / 1e12, decode)


def test_text_encoder_flops_are_the_specs():
    within(t5_xxl_flops(TEXT) / 1e12, 2.1)


@pytest.mark.parametrize(
    ("config", "shape", "seconds", "step", "step_without_recompute"),
    [
        (STAGE1, FrameShape(frames=49, height=256, width=480), 0.121, 0.455, 0.334),
        (STAGE2_TRANSFORMER, FrameShape(frames=1, height=528, width=960), None, 0.041, 0.031),
        (STAGE2_TRANSFORMER, FrameShape(frames=49, height=528, width=960), None, 1.95, 1.55),
        (STAGE2_TRANSFORMER, FrameShape(frames=49, height=1072, width=1920), 5.44, 27.4, 21.9),
    ],
)
def test_seconds_on_an_h200_are_the_specs(
    config: TransformerConfig, shape: FrameShape, seconds: float | None, step: float, step_without_recompute: float
):
    tokens, adapters = shape.num_tokens + TEXT, config is STAGE1
    if seconds is not None:
        within(forward_seconds(config, tokens, Rates()), seconds)
    for recompute, wanted in ((True, step), (False, step_without_recompute)):
        engine = EngineConfig(activation_checkpointing=recompute)
        within(step_seconds(config, tokens, engine, Rates(), adapters=adapters), wanted)


def test_sampling_seconds_on_an_h200_are_the_specs():
    """Two forwards a step: Stage I's 50 steps 12.1 s, Stage II's 4 steps 43.5 s, at 2K 135 s; the autoencoder 1.8 and 3.8 s."""
    full, larger = FrameShape(frames=49, height=1072, width=1920), FrameShape(frames=49, height=1440, width=2560)
    first = FrameShape(frames=49, height=256, width=480)
    for config, shape, steps, seconds in (
        (STAGE1, first, 50, 12.1),
        (STAGE2_TRANSFORMER, full, 4, 43.5),
        (STAGE2_TRANSFORMER, larger, 4, 135),
    ):
        within(2 * steps * forward_seconds(config, shape.num_tokens + TEXT, Rates()), seconds)
    within(encode_flops(full) / 1e12 / Rates().convolution, 1.8)
    within(decode_flops(full) / 1e12 / Rates().convolution, 3.8)


def test_gpu_seconds_of_a_global_batch_are_the_specs():
    """32 of Stage I 14.6; 64 of Stage II 2.6 (images), 124.5 (540p), 1,752 (1080p)."""
    recipe = load("paper")
    engine, second = EngineConfig(activation_checkpointing=True), recipe.stage2.transformer
    first = step_seconds(STAGE1, recipe.stage1.shape.num_tokens + TEXT, engine, Rates(), adapters=True)
    within(32 * first, 14.6)
    for phase, seconds in zip(recipe.stage2.phases[:3], (2.6, 124.5, 1_752), strict=True):
        within(64 * step_seconds(second, phase.shape.num_tokens + TEXT, engine, Rates(), adapters=False), seconds)


def test_gpu_hours_of_the_papers_recipe_on_64_gpus_are_the_specs():
    """Transformer, then encoding of every sample: Stage I 202 and 47; phases 18 and 12, 699 and 316, 2434 and 315, 341 and 44."""
    costs = phase_costs(on_gpus(load("paper"), 64), Rates())
    figures = [(202, 47, 0), (18, 12, 0.5), (699, 316, 0), (2434, 315, 0), (341, 44, 0)]
    assert [cost.ranks for cost in costs] == [32, 64, 64, 64, 64]
    for cost, (gpu_hours, encode, digits) in zip(costs, figures, strict=True):
        within(cost.gpu_hours, gpu_hours, digits)
        within(cost.encode_gpu_hours, encode, digits)
    within(sum(cost.gpu_hours for cost in costs[1:]), 3500, 50)  # "phases 1-4 = 3,500 H200-hours", to two digits
    within(sum(cost.encode_gpu_hours for cost in costs[1:]), 690)
    within(costs[0].gpu_hours / 8 / 24, 1.1, 0.05)  # "1.1 days on 8"


def test_memory_by_part_is_the_specs():
    """GiB. States at one rank; activations do not depend on the ranks."""
    recipe = on_gpus(load("paper"), 1)
    first, image, patch, full, _ = (row.memory for row in memories(recipe))
    gib = 2**30
    within(full.states / gib, 25.3)
    within(first.frozen / gib, 10.4)
    within((first.states - first.frozen) / gib, 7.5)
    for memory, kept, peak in ((patch, 2.8, 2), (full, 11.2, 8.2), (first, 1.6, 0.8)):
        within(memory.kept / gib, kept)
        within(memory.peak_block / gib, peak)
    lora = {"stage1.lora.targets=official": 5.0}
    for override, figure in lora.items():
        official = memories(on_gpus(load("paper", (override,)), 1))[0].memory
        within((official.states - official.frozen) / gib, figure)
    whole = ("stage1.full_finetune=true", "stage1.engine.activation_checkpointing=false", "stage2.engine.activation_checkpointing=false")
    first, *_, full = (row.memory for row in memories(on_gpus(load("paper", whole), 1)))
    within(first.states / gib, 83)
    within(first.kept / gib, 34)
    within(full.kept / gib, 247)
    assert image.kept < patch.kept


def test_ranks_are_what_the_batches_and_the_gpus_allow():
    """Batches 32 and 64: 48 GPUs serve 32 ranks; images of 2 x 64 change nothing, of 96 they allow 32."""
    assert [row.ranks for row in memories(on_gpus(load("paper"), 48))] == [32, 32, 32, 32, 32]
    assert memories(on_gpus(load("paper"), 128))[1].ranks == 64
    odd = load("paper", ("stage2.phases.image_patches.image_batch_size=192", "stage2.phases.mixed_patches.batch_size=192"))
    assert memories(on_gpus(odd, 128))[1].ranks == 64
    assert memories(on_gpus(load("paper", ("stage2.phases.0.image_batch_size=64",)), 3))[1].ranks == 2


def test_storage_counts_every_crop_and_copy():
    """Paper, bf16 mean and log variance: 16 x 2 x 2 bytes a latent place; Stage I whole, 540p crops x 4 and 1080p, clean and degraded."""
    recipe = load("paper")
    copies = 1 + recipe.stage2.pixel_degradation.cached_variants
    crops = recipe.latents.patches_per_clip
    places = 13 * 32 * 60 + crops * copies * 13 * 66 * 120 + copies * 13 * 134 * 240
    disk = storage(recipe)
    assert disk.latents["video"] == 64 * places
    assert disk.checkpoints["Stage II"] == 12 * parameters(STAGE2_TRANSFORMER)
    averaged = load("paper", ("stage2.optimizer.ema_decay=0.999",))
    assert storage(averaged).checkpoints["Stage II"] == 16 * parameters(STAGE2_TRANSFORMER)


# ---- measured small cases ----------------------------------------------------------------------------------------


TINY = TransformerConfig(flavour="debug", num_layers=2, num_attention_heads=2, text_embed_dim=32, time_embed_dim=64)
TINY_TOKENS = 2 * 4 * 5 + 6


def counted(model: Any, backward: bool) -> int:
    """FLOPs of the blocks' attention and feed-forward as torch counts them, on 2 x 4 x 5 patches and 6 text tokens."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    inputs = (torch.zeros(1, 2, 16, 8, 10), torch.zeros(1, 6, 32), torch.zeros(1))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        output = model(*inputs)
        if backward:
            output.sum().backward()
    found = counter.get_flop_counts()
    return sum(count for name, by_operator in found.items() if name.endswith((".attn1", ".ff")) for count in by_operator.values())


def test_flops_are_what_torch_counts():
    from flashvideo.models.lora import add_lora
    from flashvideo.models.transformer import CogVideoXTransformer
    from flashvideo.training.activations import prepare_blocks

    kept, again = EngineConfig(activation_checkpointing=False), EngineConfig(activation_checkpointing=True)
    assert counted(CogVideoXTransformer(TINY), backward=False) == forward_flops(TINY, TINY_TOKENS)
    assert counted(CogVideoXTransformer(TINY), backward=True) == train_flops(TINY, TINY_TOKENS, kept, adapters=False)
    recomputed = CogVideoXTransformer(TINY)
    prepare_blocks(recomputed, again)
    assert counted(recomputed, backward=True) == train_flops(TINY, TINY_TOKENS, again, adapters=False)
    adapted = CogVideoXTransformer(TINY)
    add_lora(adapted, LoraConfig(rank=1, alpha=1))  # its own small matrices are counted too
    assert counted(adapted, backward=True) == pytest.approx(train_flops(TINY, TINY_TOKENS, kept, adapters=True), rel=0.03)


@pytest.mark.parametrize(("recompute", "tolerance"), [(True, 1e-9), (False, 0.03)])
def test_activations_of_a_block_are_what_autograd_keeps(recompute: bool, tolerance: float):
    """What four blocks keep more than two, in bf16."""
    import torch

    from flashvideo.models.transformer import CogVideoXTransformer

    def kept_bytes(layers: int) -> int:
        model = CogVideoXTransformer(TINY.model_copy(update={"num_layers": layers})).bfloat16()
        model.activation_checkpointing = recompute
        own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
        kept: dict[int, torch.Tensor] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.untyped_storage().data_ptr() not in own:
                kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = model(torch.randn(1, 2, 16, 64, 80).bfloat16(), torch.randn(1, 6, 32).bfloat16(), torch.zeros(1))
        assert output.requires_grad
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())

    engine = EngineConfig(num_ranks=1, activation_checkpointing=recompute)
    tokens = 2 * 32 * 40 + 6
    memory = rank_memory(TINY, tokens, engine, None)
    assert (kept_bytes(4) - kept_bytes(2)) / 2 == pytest.approx(memory.kept / TINY.num_layers, rel=tolerance)


def test_zero_shares_the_states_over_the_ranks():
    weights = parameters(STAGE2_TRANSFORMER)
    states = [rank_memory(STAGE2_TRANSFORMER, 1, EngineConfig(zero_stage=stage, num_ranks=4), None).states for stage in (0, 1, 2, 3)]
    assert states == [16 * weights, (4 + 3) * weights, (2 + 3.5) * weights, 4 * weights]


def test_frozen_weights_take_no_gradient():
    lora = LoraConfig()
    memory = rank_memory(STAGE1, 1, EngineConfig(num_ranks=1), lora)
    assert memory.states == 2 * parameters(STAGE1) + 16 * lora_parameters(STAGE1, lora)
    assert 2 * parameters(STAGE1) / 2**30 == pytest.approx(10.4, abs=0.05)
    assert 16 * lora_parameters(STAGE1, lora) / 2**30 == pytest.approx(7.5, abs=0.05)
