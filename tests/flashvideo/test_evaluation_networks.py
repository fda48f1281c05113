"""The reference's networks with random weights: parity where two sides exist, parameter counts, files that are missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from flashvideo.evaluation.dimensions.motion import DynamicDegree
from flashvideo.evaluation.networks.pretrained import (
    AESTHETIC,
    RAFT,
    ClipEncoder,
    DinoEncoder,
    LinearAesthetic,
    MusiqQuality,
    RaftFlow,
    dino_positions,
    load_networks,
)
from flashvideo.evaluation.protocol import VBenchProtocol
from flashvideo.evaluation.rules import NEEDS, build_rules
from flashvideo.evaluation.scores import ClipFacts, Prompt


def parameters(module: torch.nn.Module) -> float:
    return sum(weight.numel() for weight in module.parameters()) / 1e6


def protocol(**changes: object) -> VBenchProtocol:
    return VBenchProtocol.model_validate({"suite": "vbench", "prompts": "short", "prompts_sha256": "0"} | changes)


def test_raft_sees_minus_one_to_one_and_gives_its_last_of_20_updates(monkeypatch):
    from torchvision.models.optical_flow import raft_large

    torch.manual_seed(0)
    raft = raft_large(weights=None).eval()
    assert parameters(raft) == pytest.approx(5.3, abs=0.05)
    a, b = (torch.randint(0, 256, (1, 3, 128, 136)).float() for _ in range(2))
    monkeypatch.setattr(RaftFlow, "UPDATES", 2)
    flow = RaftFlow("raft", raft, "random")(a, b)
    with torch.inference_mode():
        expected = raft(a / 127.5 - 1, b / 127.5 - 1, num_flow_updates=2)
    assert flow.shape == (1, 2, 128, 136)
    assert len(expected) == 2
    torch.testing.assert_close(flow, expected[-1], rtol=1e-4, atol=1e-3)
    monkeypatch.undo()
    assert RaftFlow.UPDATES == 20


def test_raft_measures_a_clip_whose_sides_are_no_multiples_of_8(monkeypatch):
    from torchvision.models.optical_flow import raft_large

    monkeypatch.setattr(RaftFlow, "UPDATES", 1)
    torch.manual_seed(0)
    measurement = DynamicDegree(RaftFlow("raft", raft_large(weights=None), "random")).start(
        ClipFacts(2, 8, 129, 131), Prompt(text="x", dimensions=("dynamic_degree",))
    )
    for index in range(2):
        measurement.add(index, np.random.default_rng(index).integers(0, 256, (129, 131, 3), dtype=np.uint8))
    assert np.isfinite(measurement.result().extras["pair_scores"]).all()


@pytest.fixture(scope="module")
def small_vit():
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    model = VisionTransformer(img_size=224, patch_size=16, embed_dim=32, depth=2, num_heads=2, num_classes=0)
    return model.eval()


def test_dino_is_timms_class_token_at_224(small_vit):
    pictures = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        torch.testing.assert_close(DinoEncoder("dino", small_vit, "random")(pictures), small_vit(pictures))


def test_dino_takes_wide_pictures_and_floors_their_patches(small_vit):
    """398 px are 24 patches; the last 14 columns are never seen."""
    encoder = DinoEncoder("dino", small_vit, "random")
    pictures = torch.randn(1, 3, 224, 398)
    changed = pictures.clone()
    changed[..., 384:] = 9
    assert encoder(pictures).shape == (1, 32)
    torch.testing.assert_close(encoder(pictures), encoder(changed))
    assert not torch.allclose(encoder(pictures), encoder(pictures.flip(-1)))


def test_dinos_positions_follow_its_scale_not_the_size():
    positions = torch.randn(1, 1 + 14 * 14, 8)
    wide = dino_positions(positions, 14, 24)
    grid = positions[:, 1:].reshape(1, 14, 14, 8).permute(0, 3, 1, 2)
    by_scale = F.interpolate(grid, scale_factor=(14.1 / 14, 24.1 / 14), mode="bicubic").permute(0, 2, 3, 1).flatten(1, 2)
    by_size = F.interpolate(grid, size=(14, 24), mode="bicubic").permute(0, 2, 3, 1).flatten(1, 2)
    assert torch.equal(wide[:, 0], positions[:, 0])
    assert torch.equal(wide[:, 1:], by_scale)
    assert (wide[:, 1:] - by_size).abs().max() > 1e-2
    assert dino_positions(positions, 14, 14) is positions


def test_the_real_dino_has_86_million_parameters():
    import timm

    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224.dino", pretrained=False, num_classes=0)
    assert parameters(model) == pytest.approx(85.8, abs=0.1)


def test_musiq_scores_frame_by_frame():
    from pyiqa.archs.musiq_arch import MUSIQ

    torch.manual_seed(0)
    musiq = MUSIQ(pretrained=False, num_layers=1).eval()
    pictures = torch.rand(2, 3, 96, 160)
    with torch.inference_mode():
        expected = [float(musiq(one[None])) for one in pictures]
    assert MusiqQuality("musiq", musiq, "random")(pictures).tolist() == pytest.approx(expected, rel=1e-5)
    with torch.device("meta"):
        assert parameters(MUSIQ(pretrained=False)) == pytest.approx(27, abs=0.6)


class Words:
    """A tokenizer of three words."""

    def __call__(self, texts, padding, truncation, max_length, return_tensors):
        assert (padding, truncation, max_length, return_tensors) == (True, True, 77, "pt")
        from transformers import BatchEncoding

        ids = torch.tensor([[0, *(3 + len(word) % 5 for word in text.split()[:2]), 9] for text in texts])
        return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def test_clip_features_are_its_own_logits():
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    text = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 10,
        "eos_token_id": 9,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 16,
    }
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).eval()
    encoder = ClipEncoder("clip", model, "random", Words())
    pictures = torch.randn(3, 3, 32, 32)
    tokens = Words()(["oil painting", "a cat"], True, True, 77, "pt")
    with torch.inference_mode():
        expected = model(pixel_values=pictures, **tokens).logits_per_image / model.logit_scale.exp()
    ours = F.normalize(encoder(pictures), dim=-1) @ F.normalize(encoder.text(["oil painting", "a cat"]), dim=-1).T
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_the_aesthetic_head_is_one_layer():
    layer = torch.nn.Linear(768, 1)
    features = torch.randn(3, 768)
    torch.testing.assert_close(LinearAesthetic("laion", layer, "random")(features), layer(features)[:, 0])


# ---- weights


def test_every_missing_file_is_named(tmp_path):
    networks = load_networks(tmp_path)
    assert networks.present() == {}
    rules = build_rules(networks, protocol())
    assert rules.dimensions == {}
    assert set(rules.absent) == set(NEEDS)
    assert rules.absent["subject_consistency"] == (
        f"{tmp_path / 'dino_vitbase16_pretrain.pth'} is missing (dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain)"
    )
    assert "AMT-S" in rules.absent["motion_smoothness"]
    assert rules.absent["temporal_flickering"].startswith(str(tmp_path / RAFT.name))


def test_without_the_filter_flickering_needs_nothing(tmp_path):
    rules = build_rules(load_networks(tmp_path), protocol(static_filter=False))
    assert list(rules.dimensions) == ["temporal_flickering"]


def test_weights_load_from_the_folder_and_name_the_network(tmp_path):
    from torchvision.models.optical_flow import raft_large

    torch.manual_seed(0)
    raft = raft_large(weights=None)
    torch.save(raft.state_dict(), tmp_path / RAFT.name)
    layer = torch.nn.Linear(768, 1)
    torch.save(layer.state_dict(), tmp_path / AESTHETIC.name)
    networks = load_networks(tmp_path)
    assert set(networks.present()) == {"flow", "aesthetic"}
    assert torch.equal(networks.aesthetic.module.weight, layer.weight)
    assert len(networks.flow.identity) == 64
    rules = build_rules(networks, protocol())
    assert list(rules.dimensions) == ["temporal_flickering", "dynamic_degree"]
    assert not any(one.is_stand_in for rule in rules.dimensions.values() for one in rule.networks.values())


def test_weights_that_do_not_fit_are_refused(tmp_path):
    torch.save(torch.nn.Linear(3, 1).state_dict(), tmp_path / AESTHETIC.name)
    with pytest.raises(ValueError, match=r"sa_0_4_vit_l_14_linear\.pth does not fit Linear: size mismatch for weight"):
        load_networks(tmp_path)
    Path(tmp_path / AESTHETIC.name).write_bytes(b"not weights")
    with pytest.raises(ValueError, match="cannot be read as weights"):
        load_networks(tmp_path)
    (tmp_path / AESTHETIC.name).unlink()
    (tmp_path / "clip-vit-base-patch32").mkdir()
    with pytest.raises(ValueError, match="clip-vit-base-patch32 cannot be loaded"):
        load_networks(tmp_path)


def test_slow_fast_needs_two_more():
    from flashvideo.evaluation.networks.interfaces import Networks
    from flashvideo.evaluation.networks.stand_ins import stand_in_networks

    networks = Networks(**{key: value for key, value in stand_in_networks().present().items() if key != "dreamsim"})
    rules = build_rules(networks, protocol(suite="vbench_long"))
    assert rules.absent == {"background_consistency": "no network for dreamsim"}
    assert list(rules.across) == ["subject_consistency"]
    assert build_rules(networks, protocol(suite="vbench_long", slow_fast=False)).absent == {}
