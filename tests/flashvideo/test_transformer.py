"""The transformer: sizes, behaviour over shapes, files. Equality with diffusers is in test_diffusers_parity.py."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from flashvideo.config import STAGE2_TRANSFORMER, TransformerConfig
from flashvideo.models.transformer import (
    CogVideoXTransformer,
    build_transformer,
    count_parameters,
    load_transformer,
    save_transformer,
    sinusoid,
)
from flashvideo.models.weight_files import WeightsError

TINY = TransformerConfig(flavour="debug", num_layers=2, num_attention_heads=2, text_embed_dim=24, time_embed_dim=32)
TINY2 = TINY.model_copy(update={"noise_strength_embedding": True, "num_frames_embedding": True})


def inputs(frames: int, height: int, width: int, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(frames * 10_000 + height * 100 + width)
    latents = torch.randn(batch, frames, 16, height, width, generator=generator)
    return latents, torch.randn(batch, 5, 24, generator=generator), torch.linspace(3.5, 900, batch)


def wake(model: CogVideoXTransformer) -> CogVideoXTransformer:
    """Stage II's extra embeddings start without effect; random last layers make tests see them."""
    with torch.no_grad():
        for extra in (model.noise_strength_embedding, model.num_frames_embedding):
            if extra is not None:
                extra.linear_2.weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    return model


@pytest.mark.parametrize(
    ("config", "count"), [(TransformerConfig(), 5_570_283_072), (STAGE2_TRANSFORMER, 1_696_276_288)], ids=["stage1", "stage2"]
)
def test_released_sizes_have_the_released_number_of_parameters(config: TransformerConfig, count: int) -> None:
    with torch.device("meta"):
        assert count_parameters(CogVideoXTransformer(config)) == count


def test_initialisation_is_seeded_and_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    one, two = CogVideoXTransformer(TINY), CogVideoXTransformer(TINY)
    other = CogVideoXTransformer(TINY.model_copy(update={"seed": 1}))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.proj_out.weight, other.proj_out.weight)


def test_resolutions_that_alternate_give_what_fresh_models_give() -> None:
    """The released code caches its rotary table without the shape it was made for."""
    shapes = [(1, 4, 6), (3, 8, 4), (3, 4, 6), (1, 8, 8), (1, 4, 6), (3, 8, 4)]
    model = wake(CogVideoXTransformer(TINY2)).eval()
    noise_step = torch.tensor([675.0, 700.0])
    with torch.no_grad():
        for shape in shapes:
            latents, text, timestep = inputs(*shape)
            fresh = wake(CogVideoXTransformer(TINY2)).eval()
            output = model(latents, text, timestep, noise_step)
            assert output.shape == latents.shape
            assert torch.equal(output, fresh(latents, text, timestep, noise_step))


def test_samples_of_a_batch_do_not_see_each_other() -> None:
    model = CogVideoXTransformer(TINY).eval()
    latents, text, timestep = inputs(3, 4, 6)
    with torch.no_grad():
        together = model(latents, text, timestep)
        alone = model(latents[1:], text[1:], timestep[1:])
    torch.testing.assert_close(together[1:], alone, atol=1e-6, rtol=0)


def test_positions_matter() -> None:
    model = CogVideoXTransformer(TINY).eval()
    latents, text, timestep = inputs(3, 4, 4)
    with torch.no_grad():
        flipped = model(latents.flip(1), text, timestep).flip(1)
        assert (flipped - model(latents, text, timestep)).abs().max() > 1e-3


def test_stage2_embeddings_start_without_effect_and_learn() -> None:
    model = CogVideoXTransformer(TINY2)
    latents, text, timestep = inputs(1, 4, 4)
    low, high = (model(latents, text, timestep, torch.full((2,), step)) for step in (600.0, 900.0))
    assert torch.equal(low, high)
    low.square().mean().backward()
    assert model.noise_strength_embedding is not None and model.num_frames_embedding is not None
    for extra in (model.noise_strength_embedding, model.num_frames_embedding):
        gradient = extra.linear_2.weight.grad
        assert gradient is not None and gradient.abs().max() > 0
    wake(model)
    assert not torch.equal(model(latents, text, timestep, torch.full((2,), 600.0)), model(latents, text, timestep, torch.full((2,), 900.0)))


def test_noise_step_is_wanted_exactly_when_the_model_embeds_it() -> None:
    latents, text, timestep = inputs(1, 4, 4)
    with pytest.raises(ValueError, match="noise_step is missing"):
        CogVideoXTransformer(TINY2)(latents, text, timestep)
    with pytest.raises(ValueError, match="noise_step is given"):
        CogVideoXTransformer(TINY)(latents, text, timestep, timestep)


def test_latents_that_do_not_fit_are_refused_with_their_size() -> None:
    _, text, timestep = inputs(1, 4, 4)
    with pytest.raises(ValueError, match=r"\(2, 1, 16, 5, 4\)"):
        CogVideoXTransformer(TINY)(torch.zeros(2, 1, 16, 5, 4), text, timestep)
    with pytest.raises(ValueError, match="text is"):
        CogVideoXTransformer(TINY)(torch.zeros(1, 1, 16, 4, 4), text, timestep[:1])


def test_activation_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = CogVideoXTransformer(TINY)
        model.activation_checkpointing = checkpointing
        latents, text, timestep = inputs(3, 4, 4)
        model(latents, text, timestep).square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(a is not None and b is not None and torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_sinusoid_keeps_fractions_of_a_timestep_in_fp32() -> None:
    features = sinusoid(torch.tensor([675.0, 675.25], dtype=torch.float32), 8)
    torch.testing.assert_close(features[:, 0], torch.cos(torch.tensor([675.0, 675.25])))
    torch.testing.assert_close(features[:, 4], torch.sin(torch.tensor([675.0, 675.25])))


@pytest.mark.parametrize("config", [TINY, TINY2], ids=["stage1", "stage2"])
def test_saving_and_loading_keeps_every_bit(config: TransformerConfig, tmp_path: Path) -> None:
    model = CogVideoXTransformer(config)
    save_transformer(model, tmp_path)
    loaded = load_transformer(tmp_path)
    assert loaded.config == config
    state = loaded.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "diffusion_pytorch_model.safetensors"}


def rewrite(folder: Path, change: str) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    key = "transformer_blocks.1.attn1.to_k.weight"
    if change == "missing":
        del state[key]
    elif change == "unknown":
        state["ema.decay"] = torch.zeros(1)
    else:
        state[key] = state[key][:-1].clone()
    save_file(state, path)


@pytest.mark.parametrize(
    ("change", "name"),
    [("missing", "to_k.weight"), ("unknown", "ema.decay"), ("misshapen", r"to_k.weight \(127, 128\) \(want \(128, 128\)\)")],
)
def test_loading_is_strict_and_names_the_key(change: str, name: str, tmp_path: Path) -> None:
    save_transformer(CogVideoXTransformer(TINY), tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(WeightsError, match=f"1 {change}: .*{name}"):
        load_transformer(tmp_path)


def test_another_network_is_refused(tmp_path: Path) -> None:
    save_transformer(CogVideoXTransformer(TINY), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["_flashvideo"]
    config["patch_size_t"] = 2
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="patch_size_t = 2"):
        load_transformer(tmp_path)


def test_stage2_starts_from_weights_without_its_extra_embeddings(tmp_path: Path) -> None:
    base = CogVideoXTransformer(TINY)
    save_transformer(base, tmp_path)
    model = build_transformer(TINY2, tmp_path)
    latents, text, timestep = inputs(1, 4, 4)
    with torch.no_grad():
        assert torch.equal(model(latents, text, timestep, timestep), base(latents, text, timestep))
    assert model.noise_strength_embedding is not None
    assert torch.equal(model.noise_strength_embedding.linear_1.weight, base.time_embedding.linear_1.weight)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"nowhere/config\.json"):
        load_transformer(tmp_path / "nowhere")
