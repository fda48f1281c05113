"""Formulas of the plan, against the real classes and the spec's table of known sizes (training.md 6.2, 6.3)."""

from __future__ import annotations

import pytest

from flashvideo.config import STAGE2_TRANSFORMER, EngineConfig, FrameShape, LoraConfig, TransformerConfig
from orchestration.cost import forward_flops, lora_parameters, parameters, rank_memory, train_flops
from pipelines.recipe import load

STAGE1 = TransformerConfig()
TEXT = 226


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
    ("config", "shape", "teraflops"),
    [
        (STAGE1, FrameShape(frames=49, height=256, width=480), 83.1),
        (STAGE2_TRANSFORMER, FrameShape(frames=1, height=528, width=960), 7.0),
        (STAGE2_TRANSFORMER, FrameShape(frames=49, height=528, width=960), 224.3),
        (STAGE2_TRANSFORMER, FrameShape(frames=49, height=1072, width=1920), 2806.0),
    ],
)
def test_forward_flops_are_the_specs(config: TransformerConfig, shape: FrameShape, teraflops: float):
    assert forward_flops(config, shape.num_tokens + TEXT) / 1e12 == pytest.approx(teraflops, rel=0.005)


def test_training_counts_backward_and_recompute():
    forward = forward_flops(STAGE1, 100)
    kept, again = EngineConfig(activation_checkpointing=False), EngineConfig(activation_checkpointing=True)
    assert train_flops(STAGE1, 100, kept, adapters=False) == 3 * forward
    assert train_flops(STAGE1, 100, again, adapters=False) == 4 * forward
    assert train_flops(STAGE1, 100, again, adapters=True) == 3 * forward


def test_memory_of_one_rank_is_the_specs():
    """Full training in bf16 takes 16 bytes a weight; activations of 1080p with recompute 11.2 GiB kept and 8.2 at the peak."""
    tokens = FrameShape(frames=49, height=1072, width=1920).num_tokens + TEXT
    memory = rank_memory(STAGE2_TRANSFORMER, tokens, EngineConfig(num_ranks=1), None)
    assert memory.states == 16 * parameters(STAGE2_TRANSFORMER)
    assert memory.states / 2**30 == pytest.approx(25.3, abs=0.1)
    assert memory.activations / 2**30 == pytest.approx(11.2 + 8.2, abs=0.1)
    kept = rank_memory(STAGE2_TRANSFORMER, tokens, EngineConfig(num_ranks=1, activation_checkpointing=False), None)
    assert (kept.activations - memory.activations) / 2**30 == pytest.approx(247 - 11.2, abs=2)


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
