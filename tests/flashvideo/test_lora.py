"""LoRA: counts, what trains, merging, files. Equality with peft is in test_diffusers_parity.py."""

from pathlib import Path

import pytest
import torch

from flashvideo.config import LoraConfig, TransformerConfig
from flashvideo.models.lora import (
    add_lora,
    load_adapter,
    load_stage1,
    lora_layers,
    lora_state,
    merge_lora,
    save_adapter,
    save_base,
)
from flashvideo.models.transformer import CogVideoXTransformer, count_parameters, save_transformer
from flashvideo.models.weight_files import WeightsError

TINY = TransformerConfig(flavour="debug", num_layers=2, num_attention_heads=2, text_embed_dim=24, time_embed_dim=32)
CONFIG = LoraConfig(rank=4, alpha=2)


def adapted(config: LoraConfig = CONFIG) -> CogVideoXTransformer:
    """A model whose adapters have an effect (B is zero at first)."""
    model = add_lora(CogVideoXTransformer(TINY), config, seed=3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.lora_B.normal_(0, 0.5, generator=generator)
    return model


def run(model: CogVideoXTransformer) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    latents, text = torch.randn(1, 3, 16, 4, 6, generator=generator), torch.randn(1, 5, 24, generator=generator)
    with torch.no_grad():
        output: torch.Tensor = model(latents, text, torch.tensor([500.0]))
    return output


@pytest.mark.parametrize(("targets", "count", "tensors"), [("paper", 500_957_184, 672), ("official", 335_806_464, 504)])
def test_released_size_has_the_released_number_of_adapter_weights(targets: str, count: int, tensors: int) -> None:
    """official in peft's form; the released checkpoint shares A between norm1 and norm2 and has 333,053,952."""
    with torch.device("meta"):
        model = CogVideoXTransformer(TransformerConfig())
    add_lora(model, LoraConfig.model_validate({"targets": targets}))
    assert count_parameters(model, trainable_only=True) == count
    assert len(lora_state(model)) == tensors


def test_a_fresh_adapter_changes_nothing_and_only_it_trains() -> None:
    plain = run(CogVideoXTransformer(TINY))
    model = add_lora(CogVideoXTransformer(TINY), CONFIG)
    assert torch.equal(run(model), plain)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert names and all(name.endswith((".lora_A", ".lora_B")) for name in names)


def test_the_scale_is_alpha_over_rank() -> None:
    """One linear, by hand: A x = 2, B = 3, alpha / rank = 1/2."""
    base = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(base.weight, 5.0)
    torch.nn.init.zeros_(base.bias)
    from flashvideo.models.lora import LoraLinear

    layer = LoraLinear(base, 1, 1, 0.5, torch.Generator())
    with torch.no_grad():
        layer.lora_A.fill_(2.0)
        layer.lora_B.fill_(3.0)
        assert layer(torch.tensor([[1.0]])).item() == 5.0 + 0.5 * 3.0 * 2.0
        assert layer.delta().item() == 3.0


def test_merging_gives_the_same_outputs_and_a_plain_model() -> None:
    model = adapted()
    before = run(model)
    merge_lora(model)
    assert not lora_layers(model)
    assert model.state_dict().keys() == CogVideoXTransformer(TINY).state_dict().keys()
    torch.testing.assert_close(run(model), before, atol=1e-5, rtol=0)
    assert (before - run(CogVideoXTransformer(TINY))).abs().max() > 1e-2


def test_queries_keys_and_values_have_adapters_of_their_own() -> None:
    keys = lora_state(adapted())
    name = "base_model.model.transformer_blocks.0.attn1.to_{}.lora_A.weight"
    assert keys[name.format("q")].shape == (4, 128)
    assert not torch.equal(keys[name.format("q")], keys[name.format("v")])


@pytest.mark.parametrize("targets", ["paper", "official"])
def test_saving_and_loading_keeps_every_bit(targets: str, tmp_path: Path) -> None:
    config = LoraConfig.model_validate({"rank": 4, "alpha": 2, "targets": targets})
    model = adapted(config)
    save_adapter(model, tmp_path, config)
    other = CogVideoXTransformer(TINY)
    assert load_adapter(other, tmp_path) == config
    assert torch.equal(run(other), run(model))


def test_loading_is_strict_and_names_the_key(tmp_path: Path) -> None:
    save_adapter(adapted(), tmp_path, CONFIG)
    three_layers = CogVideoXTransformer(TINY.model_copy(update={"num_layers": 3}))
    with pytest.raises(WeightsError, match=r"16 missing: .*transformer_blocks\.2"):
        load_adapter(three_layers, tmp_path)


def test_a_model_with_unmerged_adapters_is_not_saved_as_a_base(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="unmerged LoRA"):
        save_transformer(adapted(), tmp_path)
    with pytest.raises(WeightsError, match="already"):
        add_lora(adapted(), CONFIG)


def test_stage1_folder_rebuilds_the_seeded_base(tmp_path: Path) -> None:
    model = adapted()
    save_base(tmp_path, TINY, None)
    save_adapter(model, tmp_path, CONFIG)
    loaded = load_stage1(tmp_path)
    torch.testing.assert_close(run(loaded), run(model), atol=1e-5, rtol=0)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_stage1_folder_points_to_a_base_with_weights(tmp_path: Path) -> None:
    base = CogVideoXTransformer(TINY.model_copy(update={"seed": 7}))
    save_transformer(base, tmp_path / "base")
    model = add_lora(base, CONFIG)
    save_base(tmp_path / "stage1", TINY, str(tmp_path / "base"))
    save_adapter(model, tmp_path / "stage1", CONFIG)
    assert torch.equal(run(load_stage1(tmp_path / "stage1")), run(model))
