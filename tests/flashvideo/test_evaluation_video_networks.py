"""UMT and ViCLIP against the still-image networks that they are for one frame, with random weights."""

from __future__ import annotations

import pytest
import torch

from flashvideo.evaluation.networks.umt import UmtActions, build_umt, kinetics_labels, umt_positions
from flashvideo.evaluation.networks.viclip import Viclip, ViclipEncoder, ViclipShape


def parameters(module: torch.nn.Module) -> float:
    return sum(weight.numel() for weight in module.parameters()) / 1e6


# ---- UMT

SMALL = {"image_size": 32, "num_frames": 1, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}


@pytest.fixture
def vit():
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    model = VisionTransformer(
        img_size=32, patch_size=16, embed_dim=32, depth=2, num_heads=2, num_classes=5, class_token=False, global_pool="avg", fc_norm=True
    )
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    for block in model.blocks:
        block.attn.qkv.bias.data[32:64] = 0  # UMT's keys have no bias
    return model.eval()


def as_umt(vit) -> dict[str, torch.Tensor]:
    state = dict(vit.state_dict())
    for block in range(2):
        bias = state.pop(f"blocks.{block}.attn.qkv.bias")
        state[f"blocks.{block}.attn.q_bias"], state[f"blocks.{block}.attn.v_bias"] = bias[:32], bias[64:]
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].unsqueeze(2)
    return state


def test_umt_of_one_frame_is_timms_vit(vit):
    umt = UmtActions(build_umt(as_umt(vit), num_labels=5, **SMALL), tuple("abcde"), "random")
    pictures = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(umt(pictures.unsqueeze(2)), vit(pictures), rtol=1e-4, atol=1e-5)


def test_umts_own_state_is_loaded_strictly(vit):
    state = as_umt(vit)
    state.pop("head.bias")
    with pytest.raises(ValueError, match="do not fit UMT's VideoMAE"):
        build_umt(state, num_labels=5, **SMALL)
    with pytest.raises(ValueError, match=r"blocks\.0\.gamma_1 is no weight of UMT's ViT"):
        build_umt({**as_umt(vit), "blocks.0.gamma_1": torch.ones(32)}, num_labels=5, **SMALL)
    with pytest.raises(ValueError, match="positions are"):
        build_umt({**as_umt(vit), "pos_embed": torch.zeros(1, 9, 32)}, num_labels=5, **SMALL)


def test_the_sinusoid_is_stretched_from_8_frames():
    table = umt_positions(8 * 4, 6, frames=8)
    assert table[0, 0].tolist() == [0, 1, 0, 1, 0, 1]
    assert table[0, 5, 0] == pytest.approx(torch.sin(torch.tensor(5.0)).item())  # token 5, first channel
    stretched = umt_positions(16 * 4, 6)
    assert stretched.shape == (1, 64, 6)
    both = table.reshape(8, 4, 6)
    torch.testing.assert_close(stretched.reshape(16, 4, 6)[0], both[0])
    torch.testing.assert_close(stretched.reshape(16, 4, 6)[1], 0.75 * both[0] + 0.25 * both[1])
    with pytest.raises(ValueError, match="no whole number"):
        umt_positions(33, 6)


def test_a_state_without_positions_gets_the_sinusoid(vit):
    state = as_umt(vit)
    del state["pos_embed"]
    model = build_umt(state, num_labels=5, **SMALL | {"num_frames": 16})
    torch.testing.assert_close(model.videomae.embeddings.position_embeddings, umt_positions(16 * 4, 32))


def test_labels_come_in_order(tmp_path):
    (tmp_path / "k.txt").write_text("Marching\t1\nriding a bike\t0\n")
    assert kinetics_labels(tmp_path / "k.txt") == ("riding a bike", "marching")
    (tmp_path / "k.txt").write_text("marching\t1\n")
    with pytest.raises(ValueError, match="not numbered from 0"):
        kinetics_labels(tmp_path / "k.txt")
    with pytest.raises(ValueError, match="a tab and its number"):
        kinetics_labels(tmp_path / "absent.txt")


# ---- ViCLIP

TINY = ViclipShape(
    image=32,
    patch=16,
    frames=1,
    vision_width=16,
    vision_layers=2,
    vision_heads=2,
    text_width=16,
    text_layers=2,
    text_heads=2,
    vocabulary=10,
    text_tokens=8,
    output=8,
)


@pytest.fixture
def clip():
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    layers = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = layers | {"vocab_size": 10, "eos_token_id": 9, "max_position_embeddings": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=layers | {"image_size": 32, "patch_size": 16}, projection_dim=8)).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return model


def blocks(state: dict[str, torch.Tensor], theirs: str, ours: str) -> dict[str, torch.Tensor]:
    found = {}
    for layer in range(2):
        a, b = f"{theirs}.encoder.layers.{layer}", f"{ours}.transformer.resblocks.{layer}"
        for kind in ("weight", "bias"):
            found[f"{b}.attn.in_proj_{kind}"] = torch.cat([state[f"{a}.self_attn.{part}_proj.{kind}"] for part in "qkv"])
            names = {"attn.out_proj": "self_attn.out_proj", "ln_1": "layer_norm1", "ln_2": "layer_norm2"}
            for new, old in (names | {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}).items():
                found[f"{b}.{new}.{kind}"] = state[f"{a}.{old}.{kind}"]
    return found


def as_viclip(clip, shape: ViclipShape = TINY) -> Viclip:
    state = clip.state_dict()
    vision, text = "vision_model", "text_model"
    mapped = blocks(state, vision, "vision_encoder") | blocks(state, text, "text_encoder")
    mapped |= {
        "vision_encoder.conv1.weight": state[f"{vision}.embeddings.patch_embedding.weight"].unsqueeze(2),
        "vision_encoder.class_embedding": state[f"{vision}.embeddings.class_embedding"],
        "vision_encoder.positional_embedding": state[f"{vision}.embeddings.position_embedding.weight"],
        "vision_encoder.temporal_positional_embedding": torch.zeros(1, shape.frames, 16),
        "vision_encoder.proj": state["visual_projection.weight"].T,
        "text_encoder.token_embedding.weight": state[f"{text}.embeddings.token_embedding.weight"],
        "text_encoder.positional_embedding": state[f"{text}.embeddings.position_embedding.weight"],
        "text_encoder.text_projection": state["text_projection.weight"].T,
        "temp": torch.tensor(0.01),
    }
    for kind in ("weight", "bias"):
        mapped[f"vision_encoder.ln_pre.{kind}"] = state[f"{vision}.pre_layrnorm.{kind}"]
        mapped[f"vision_encoder.ln_post.{kind}"] = state[f"{vision}.post_layernorm.{kind}"]
        mapped[f"text_encoder.ln_final.{kind}"] = state[f"{text}.final_layer_norm.{kind}"]
    model = Viclip(shape)
    model.load_state_dict(mapped, strict=True)
    return model


class Ids:
    def __call__(self, texts, padding, truncation, max_length, return_tensors):
        assert (padding, truncation, max_length, return_tensors) == (True, True, 32, "pt")
        return {"input_ids": torch.tensor([[0, 3, 5, 9, 9, 9], [0, 4, 4, 2, 7, 9]])}


def test_viclip_of_one_frame_is_clip(clip):
    encoder = ViclipEncoder(as_viclip(clip), "random", Ids())
    pictures = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        vision = clip.visual_projection(clip.vision_model(pixel_values=pictures).pooler_output)
        text = clip.text_projection(clip.text_model(input_ids=Ids()([], True, True, 32, "pt")["input_ids"]).pooler_output)
    torch.testing.assert_close(encoder(pictures.unsqueeze(1)), vision, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(encoder.text(["a", "b"]), text, rtol=1e-4, atol=1e-4)


def test_time_is_seen_through_its_embedding_alone(clip):
    shape = TINY._replace(frames=3)
    model = as_viclip(clip, shape)
    encoder = ViclipEncoder(model, "random", Ids())
    film = torch.randn(1, 3, 3, 32, 32)

    def change() -> float:
        return (encoder(film) - encoder(film.flip(1))).abs().max().item()

    without = change()
    assert without < 1e-4
    model.vision_encoder.temporal_positional_embedding.data.normal_(std=5)
    assert change() > 100 * without


def test_parameter_counts_are_the_published_ones():
    with torch.device("meta"):
        viclip = Viclip()
        umt = build_umt()
    assert parameters(viclip.vision_encoder) == pytest.approx(304, abs=1)
    assert parameters(viclip.text_encoder) == pytest.approx(124, abs=1)
    assert parameters(umt) == pytest.approx(304, abs=1)
