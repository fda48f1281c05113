"""Our networks against diffusers' and peft's on random weights, fp32: max abs error at most 1e-5.

All comparisons are in this file, so that the imports (about 20 s) are paid once.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flashvideo.config import FrameShape, LoraConfig, TransformerConfig, VaeConfig
from flashvideo.models.lora import add_lora, lora_layers, merge_lora, save_adapter
from flashvideo.models.transformer import CogVideoXTransformer, load_transformer, save_transformer
from flashvideo.models.vae import CogVideoXAutoencoder, load_autoencoder, model_input_scale
from flashvideo.models.weight_files import WeightsError
from orchestration.cost import decode_flops, encode_flops

TOLERANCE = 1e-5
SHAPES = [(1, 4, 6), (3, 8, 14), (5, 6, 4), (2, 16, 30)]
STAGE1 = TransformerConfig(flavour="debug", num_layers=3, num_attention_heads=2, text_embed_dim=40, time_embed_dim=64)
STAGE2 = STAGE1.model_copy(update={"noise_strength_embedding": True, "num_frames_embedding": True})


@pytest.fixture(scope="module")
def diffusers_class() -> Any:
    from diffusers import CogVideoXTransformer3DModel

    return CogVideoXTransformer3DModel


def random_model(config: TransformerConfig) -> CogVideoXTransformer:
    """Every parameter random, LayerNorms and the extra embeddings too, so that nothing can hide in a one or a zero."""
    model = CogVideoXTransformer(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(11)
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


def inputs(shape: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(sum(shape))
    latents = torch.randn(2, shape[0], 16, *shape[1:], generator=generator)
    return latents, torch.randn(2, 7, 40, generator=generator), torch.tensor([999.0, 421.5])


def full_text() -> Tensor:
    """226 tokens: diffusers' class without rotary positions adds zeros to exactly so many."""
    return torch.randn(2, 226, 40, generator=torch.Generator().manual_seed(1))


def stock(model: Any, latents: Tensor, text: Tensor, timestep: Tensor) -> Tensor:
    """diffusers' class, called with positions of the real grid."""
    from diffusers.models.embeddings import get_3d_rotary_pos_embed

    _, frames, _, height, width = latents.shape
    grid = (height // 2, width // 2)
    rotary = get_3d_rotary_pos_embed(64, None, grid, frames, grid_type="slice", max_size=grid)
    output: Tensor = model(latents, text, timestep, image_rotary_emb=rotary, return_dict=False)[0]
    return output


def worst(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape and a.std() > 0.1
    return float((a - b).abs().max())


def reload(diffusers_class: Any, folder: Path) -> Any:
    model, report = diffusers_class.from_pretrained(folder, output_loading_info=True)
    model.norm_out.norm.eps = 1e-6
    model.eval().requires_grad_(False)
    return model, report


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_stage1_equals_diffusers_loaded_from_our_folder(diffusers_class: Any, shape: tuple[int, int, int], tmp_path: Path) -> None:
    ours = random_model(STAGE1)
    save_transformer(ours, tmp_path)
    theirs, report = reload(diffusers_class, tmp_path)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert worst(ours(*inputs(shape)), stock(theirs, *inputs(shape))) <= TOLERANCE


@pytest.mark.parametrize("shape", SHAPES[:2], ids=str)
def test_stage2_equals_diffusers_plus_two_embeddings(diffusers_class: Any, shape: tuple[int, int, int], tmp_path: Path) -> None:
    ours = random_model(STAGE2)
    save_transformer(ours, tmp_path)
    theirs, report = reload(diffusers_class, tmp_path)
    assert not report["missing_keys"] and len(report["unexpected_keys"]) == 8
    from diffusers.models.embeddings import get_timestep_embedding

    noise_step, frames = torch.tensor([675.0, 650.0]), torch.full((2,), float(shape[0]))
    time_embedding = theirs.time_embedding.forward

    def with_extras(features: Tensor, condition: Tensor | None = None) -> Tensor:
        def embed(module: Any, values: Tensor) -> Tensor:
            wave = get_timestep_embedding(values, 128, flip_sin_to_cos=True, downscale_freq_shift=0)
            embedded: Tensor = module(wave)
            return embedded

        total: Tensor = (
            time_embedding(features) + embed(ours.noise_strength_embedding, noise_step) + embed(ours.num_frames_embedding, frames)
        )
        return total

    theirs.time_embedding.forward = with_extras
    assert worst(ours(*inputs(shape), noise_step), stock(theirs, *inputs(shape))) <= TOLERANCE


@pytest.mark.parametrize("rotary", [True, False], ids=["5b", "2b"])
def test_a_folder_that_diffusers_wrote_loads_strictly(diffusers_class: Any, rotary: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = diffusers_class(
        num_attention_heads=2, num_layers=2, text_embed_dim=40, time_embed_dim=64, use_rotary_positional_embeddings=rotary
    ).eval()
    theirs.norm_out.norm.eps = 1e-6
    theirs.save_pretrained(tmp_path)
    ours = load_transformer(tmp_path)
    assert ours.config.num_layers == 2 and ours.config.rope_axes == (16, 24, 24)
    latents, text, timestep = inputs((3, 8, 14))
    text = text if rotary else full_text()
    with torch.no_grad():
        expected = stock(theirs, latents, text, timestep) if rotary else theirs(latents, text, timestep, return_dict=False)[0]
        assert worst(ours(latents, text, timestep), expected) <= TOLERANCE


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sinusoidal_positions_equal_diffusers_without_rotary_ones(
    diffusers_class: Any, shape: tuple[int, int, int], tmp_path: Path
) -> None:
    ours = random_model(STAGE1.model_copy(update={"positions": "sincos"}))
    save_transformer(ours, tmp_path)
    theirs, report = reload(diffusers_class, tmp_path)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    latents, _, timestep = inputs(shape)
    text = full_text()
    expected = theirs(latents, text, timestep, return_dict=False)[0]
    assert worst(ours(latents, text, timestep), expected) <= TOLERANCE
    assert load_transformer(tmp_path).config == ours.config
    rotary = random_model(STAGE1)
    assert worst(rotary(latents, text, timestep), expected) > 1e-3


def test_stretched_positions_of_diffusers_pipeline_would_differ(diffusers_class: Any, tmp_path: Path) -> None:
    """Negative control: the comparison sees the rotary grid."""
    from diffusers.models.embeddings import get_3d_rotary_pos_embed

    ours = random_model(STAGE1)
    save_transformer(ours, tmp_path)
    theirs, _ = reload(diffusers_class, tmp_path)
    latents, text, timestep = inputs((2, 16, 30))
    rotary = get_3d_rotary_pos_embed(64, ((0, 0), (30, 45)), (8, 15), 2)
    stretched = theirs(latents, text, timestep, image_rotary_emb=rotary, return_dict=False)[0]
    assert worst(ours(latents, text, timestep), stretched) > 1e-3


@pytest.mark.parametrize("targets", ["paper", "official"])
def test_lora_equals_peft_loaded_from_our_folder(diffusers_class: Any, targets: str, tmp_path: Path) -> None:
    from peft import PeftModel

    config = LoraConfig.model_validate({"rank": 8, "alpha": 4, "targets": targets})
    ours = random_model(STAGE1)
    save_transformer(ours, tmp_path / "base")
    add_lora(ours, config, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for layer in lora_layers(ours).values():
            layer.lora_B.normal_(0, 0.1, generator=generator)
    save_adapter(ours, tmp_path / "adapter", config)
    theirs, _ = reload(diffusers_class, tmp_path / "base")
    plain = stock(theirs, *inputs((3, 8, 14)))
    theirs = PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    with torch.no_grad():
        expected = stock(theirs, *inputs((3, 8, 14)))
        assert worst(plain, expected) > 1e-2
        assert worst(ours(*inputs((3, 8, 14))), expected) <= TOLERANCE
        merged = stock(theirs.merge_and_unload(), *inputs((3, 8, 14)))
        assert worst(merge_lora(ours)(*inputs((3, 8, 14))), merged) <= TOLERANCE


# ---- the autoencoder ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vae_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """diffusers' AutoencoderKLCogVideoX, tiny and random."""
    from diffusers import AutoencoderKLCogVideoX

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vae")
    AutoencoderKLCogVideoX(block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4).save_pretrained(folder)
    return folder


def video(frames: int) -> Tensor:
    return torch.rand(1, 3, frames, 32, 32, generator=torch.Generator().manual_seed(frames)) * 2 - 1


@pytest.mark.parametrize("frames", [1, 9, 17])
def test_cogvideox_autoencoder_has_our_layout_and_counts_frames(vae_folder: Path, frames: int) -> None:
    vae = CogVideoXAutoencoder.from_folder(vae_folder, "inference")
    posterior = vae.encode(video(frames))
    assert posterior.mean.shape == posterior.logvar.shape == (1, (frames - 1) // 4 + 1, 16, 4, 4)
    stock = vae.network.encode(video(frames)).latent_dist
    assert torch.equal(posterior.mean, stock.mean.transpose(1, 2))
    assert vae.decode(posterior.mean).shape == (1, 3, frames, 32, 32)


@pytest.mark.parametrize(("mode", "chunks"), [("inference", [17, 16, 16]), ("training", [13, 12, 12, 12]), ("unsplit", [49])])
def test_chunk_mode_sets_the_temporal_chunks_and_the_identity(vae_folder: Path, mode: str, chunks: list[int]) -> None:
    vae = CogVideoXAutoencoder.from_folder(vae_folder, mode)
    seen: list[int] = []
    encoder = vae.network.encoder.forward

    def watched(sample: Tensor, *arguments: Any, **options: Any) -> Any:
        seen.append(sample.shape[2])
        return encoder(sample, *arguments, **options)

    vae.network.encoder.forward = watched
    vae.encode(video(49)[..., :16, :16])
    assert seen == chunks
    others = [
        CogVideoXAutoencoder.from_folder(vae_folder, other).identity for other in ("inference", "training", "unsplit") if other != mode
    ]
    assert vae.identity not in others


def test_cogvideox_autoencoder_is_saved_as_a_pointer_that_checks_the_weights(vae_folder: Path, tmp_path: Path) -> None:
    config = VaeConfig(chunk_mode="inference")
    vae = CogVideoXAutoencoder.from_folder(vae_folder, "inference")
    vae.save(tmp_path)
    loaded = load_autoencoder(tmp_path, config)
    assert loaded.identity == vae.identity and not loaded.is_stand_in
    with pytest.raises(WeightsError, match="was made with"):
        load_autoencoder(tmp_path, VaeConfig(chunk_mode="training"))
    assert model_input_scale(config, loaded, 1) == 0.7 and model_input_scale(config, loaded, 2) == 1.15258426
    with pytest.raises(ValueError, match="scale_stage1 is None"):
        model_input_scale(VaeConfig(scale_stage1=None), loaded, 1)


def test_cogvideox_autoencoder_loads_strictly(vae_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(vae_folder / "diffusion_pytorch_model.safetensors")
    del state["decoder.conv_out.conv.bias"]
    save_file(state, tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text((vae_folder / "config.json").read_text())
    with pytest.raises(WeightsError, match=r"1 missing: decoder\.conv_out\.conv\.bias"):
        CogVideoXAutoencoder.from_folder(tmp_path, "inference")


@pytest.mark.parametrize("frames", [1, 9])
def test_the_plans_flops_of_the_autoencoder_are_what_torch_counts(diffusers_class: Any, frames: int) -> None:
    """The released sizes on the meta device, 32x48 pixels, one chunk."""
    from diffusers import AutoencoderKLCogVideoX
    from torch.utils.flop_counter import FlopCounterMode

    shape = FrameShape(frames=frames, height=32, width=48)
    with torch.device("meta"):
        model = AutoencoderKLCogVideoX()
        latents, height, width = shape.latent_shape
        for network, values, expected in (
            (model.encoder, torch.empty(1, 3, frames, 32, 48), encode_flops(shape)),
            (model.decoder, torch.empty(1, 16, latents, height, width), decode_flops(shape)),
        ):
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                network(values)
            assert counter.get_total_flops() == pytest.approx(expected, rel=0.005)
