"""The cascade at debug size: shapes, seeds, independence of the two stages, loading from folders."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from flashvideo.cascade import FlashVideoCascade, attention_options, enlarge, seeded, stage2_prompt
from flashvideo.config import (
    AttentionConfig,
    FrameShape,
    LoraConfig,
    Stage1SamplingConfig,
    Stage2SamplingConfig,
    TextEncoderConfig,
    TransformerConfig,
    VaeConfig,
)
from flashvideo.models.lora import add_lora, merge_lora, save_adapter, save_base
from flashvideo.models.text_encoder import build_text_encoder
from flashvideo.models.transformer import CogVideoXTransformer, save_transformer
from flashvideo.models.vae import PatchPcaAutoencoder
from flashvideo.models.window_attention import Window
from flashvideo.motion import clip_motion_px

TINY = TransformerConfig(flavour="debug", num_layers=1, num_attention_heads=1, text_embed_dim=16, time_embed_dim=16)
TINY2 = TINY.model_copy(update={"noise_strength_embedding": True, "num_frames_embedding": True, "seed": 1})
VAE = VaeConfig(kind="patch_pca", scale_stage1=None, scale_stage2=None)
TEXT = TextEncoderConfig(kind="debug_t5", max_length=24, embed_dim=16)
SMALL, LARGE = FrameShape(frames=9, height=16, width=32), FrameShape(frames=9, height=64, width=112)
SAMPLING1, SAMPLING2 = Stage1SamplingConfig(num_steps=3), Stage2SamplingConfig(num_steps=2, guidance_scale=2.0, noise_step=110)
PROMPTS = ["a fox", "a boat"]


def codec() -> PatchPcaAutoencoder:
    noise = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
    return PatchPcaAutoencoder.fit([noise])


@pytest.fixture(scope="module")
def cascade() -> FlashVideoCascade:
    return FlashVideoCascade(
        CogVideoXTransformer(TINY).eval(),
        CogVideoXTransformer(TINY2).eval(),
        codec(),
        build_text_encoder(TEXT),
        vae_config=VAE,
        stage1_sampling=SAMPLING1,
        stage2_sampling=SAMPLING2,
    )


def test_preview_and_enhance_give_videos_of_the_asked_sizes(cascade: FlashVideoCascade) -> None:
    preview, video = cascade(PROMPTS, SMALL, LARGE, seeded([1, 2]))
    assert preview.shape == (2, 3, 9, 16, 32) and video.shape == (2, 3, 9, 64, 112)
    for result in (preview, video):
        assert result.dtype == torch.float32 and result.min() >= -1 and result.max() <= 1 and result.std() > 0
    levels = (preview + 1) * 127.5
    assert (levels - levels.round()).abs().max() > 0.1  # not rounded to 8 bits on the way to Stage II


def test_the_same_seed_gives_the_same_video_in_any_batch(cascade: FlashVideoCascade) -> None:
    both = cascade.preview(PROMPTS, SMALL, seeded([1, 2]))
    alone = cascade.preview(PROMPTS[1:], SMALL, seeded([2]))
    torch.testing.assert_close(both[1:], alone, atol=1e-4, rtol=0)
    assert (cascade.preview(PROMPTS[1:], SMALL, seeded([3])) - alone).abs().max() > 0.05


def test_enhancing_does_not_sample_stage1_again(cascade: FlashVideoCascade) -> None:
    only_stage2 = FlashVideoCascade(None, cascade.stage2, cascade.vae, cascade.text_encoder, vae_config=VAE, stage2_sampling=SAMPLING2)
    preview = cascade.preview(PROMPTS, SMALL, seeded([1, 2]))
    video = only_stage2.enhance(preview, PROMPTS, LARGE, seeded([5, 6]))
    assert torch.equal(video, cascade.enhance(preview, PROMPTS, LARGE, seeded([5, 6])))
    with pytest.raises(ValueError, match="without Stage I"):
        only_stage2.preview(PROMPTS, SMALL, seeded([1, 2]))


def test_motion_word_goes_in_front_of_stage2s_prompt(cascade: FlashVideoCascade, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stage2_prompt("a fox", "very low") == "very low motion,a fox"
    seen: list[str] = []
    encode: Callable[..., object] = cascade.text_encoder.encode
    monkeypatch.setattr(cascade.text_encoder, "encode", lambda texts: seen.extend(texts) or encode(texts))
    cascade(PROMPTS[:1], SMALL, LARGE, seeded([1]), motion="high")
    assert seen == ["a fox", "high motion,a fox"]


def test_progress_counts_the_steps_of_each_stage(cascade: FlashVideoCascade) -> None:
    seen: list[tuple[int, int]] = []
    cascade(PROMPTS[:1], SMALL, LARGE, seeded([1]), progress=lambda *now: seen.append(now))
    assert seen == [(1, 3), (2, 3), (3, 3), (1, 2), (2, 2)]


def test_a_video_that_does_not_fit_is_refused_with_its_size(cascade: FlashVideoCascade) -> None:
    with pytest.raises(ValueError, match=r"\(1, 3, 17, 16, 32\).*9 frames"):
        cascade.enhance(torch.zeros(1, 3, 17, 16, 32), PROMPTS[:1], LARGE, seeded([1]))


def test_enlarging_keeps_a_constant_and_a_ramp() -> None:
    ramp = torch.arange(8.0).view(1, 1, 1, 1, 8).expand(1, 3, 2, 4, 8)
    larger = enlarge(ramp, 16, 32)
    assert larger.shape == (1, 3, 2, 16, 32)
    torch.testing.assert_close(larger[0, 0, 0, 0, 4:-4].diff(), torch.full((23,), 0.25))
    assert torch.equal(larger[:, :, 0], larger[:, :, 1])


def test_folders_load_into_the_same_cascade(cascade: FlashVideoCascade, tmp_path: Path) -> None:
    lora = LoraConfig(rank=2, alpha=2)
    stage1 = add_lora(CogVideoXTransformer(TINY), lora)
    with torch.no_grad():
        for name, parameter in stage1.named_parameters():
            if name.endswith("lora_B"):
                parameter.fill_(0.05)
    save_base(tmp_path / "stage1", TINY, None)
    save_adapter(stage1, tmp_path / "stage1", lora)
    assert cascade.stage2 is not None
    save_transformer(cascade.stage2, tmp_path / "stage2")
    codec().save(tmp_path / "vae")
    loaded = FlashVideoCascade.from_folders(
        tmp_path / "stage1", tmp_path / "stage2", tmp_path / "vae", VAE, TEXT, stage1_sampling=SAMPLING1, stage2_sampling=SAMPLING2
    )
    built = FlashVideoCascade(
        merge_lora(stage1).eval(),
        cascade.stage2,
        cascade.vae,
        cascade.text_encoder,
        vae_config=VAE,
        stage1_sampling=SAMPLING1,
        stage2_sampling=SAMPLING2,
    )
    for ours, theirs in zip(loaded(PROMPTS, SMALL, LARGE, seeded([1, 2])), built(PROMPTS, SMALL, LARGE, seeded([1, 2])), strict=True):
        assert torch.equal(ours, theirs)


def panning(speed_px: int) -> torch.Tensor:
    """One smooth picture, 256x384, that moves right by so many pixels a frame: 1 3 9 256 384."""
    noise = torch.rand(1, 3, 20, 60, generator=torch.Generator().manual_seed(4))
    wide = torch.nn.functional.interpolate(noise, size=(256, 768), mode="bicubic").clamp(0, 1)[0] * 2 - 1
    return torch.stack([wide[..., 200 - speed_px * i : 584 - speed_px * i] for i in range(9)], dim=1)[None]


@pytest.mark.parametrize("speed_px", [0, 4, 10])
def test_motion_is_measured_in_pixels_at_360_short_side(speed_px: int) -> None:
    assert clip_motion_px(panning(speed_px)[0]) == pytest.approx(speed_px * 360 / 256, abs=0.4)
    assert clip_motion_px(panning(speed_px)[0], frame_rate_hz=24) == pytest.approx(3 * speed_px * 360 / 256, abs=1.2)


def test_window_follows_the_clip_that_moves_most() -> None:
    config = AttentionConfig(kind="window", window=(3, 3, 3), tile=(1, 2, 2), head_chunk=1)
    shape = FrameShape(frames=9, height=256, width=384)
    still, slow, quick = panning(0), panning(4), panning(10)
    assert attention_options(config, still, shape).window == Window((3, 3, 3), (1, 2, 2))
    assert attention_options(config, torch.cat([still, slow]), shape).window == Window((3, 5, 5), (1, 2, 2))
    assert attention_options(config, torch.cat([still, quick]), shape) == (None, 1)
    assert attention_options(AttentionConfig(), quick, shape) == (None, None)


def test_windowed_enhancement_differs_and_a_window_over_everything_does_not(cascade: FlashVideoCascade) -> None:
    def enhanced(attention: AttentionConfig) -> torch.Tensor:
        sampling = SAMPLING2.model_copy(update={"attention": attention})
        windowed = FlashVideoCascade(None, cascade.stage2, cascade.vae, cascade.text_encoder, vae_config=VAE, stage2_sampling=sampling)
        return windowed.enhance(still, PROMPTS[:1], LARGE, seeded([5]))

    still = torch.zeros(1, 3, 9, 16, 32)
    full = enhanced(AttentionConfig())
    torch.testing.assert_close(enhanced(AttentionConfig(kind="window", window=(5, 15, 15), tile=(1, 2, 2))), full, atol=1e-4, rtol=0)
    assert (enhanced(AttentionConfig(kind="window", window=(1, 1, 1), tile=(1, 1, 1))) - full).abs().max() > 1e-3
