"""The cascade of a pipeline folder: loading, offload, kept previews, per-call settings, bars."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_cascade import LARGE, PROMPTS, SAMPLING1, SAMPLING2, SMALL, TEXT, TINY, TINY2, codec

from flashvideo.cascade import FlashVideoCascade, load_previews, save_previews, seeded
from flashvideo.config import AttentionConfig, FrameShape, LoraConfig, TransformerConfig, VaeConfig
from flashvideo.convert import finish_folder
from flashvideo.device_memory import OFFLOAD_MODES, OffloadMode, _FlashAttention, forward_bytes, plan_memory
from flashvideo.models.lora import add_lora, load_stage1, save_adapter, save_base
from flashvideo.models.transformer import CogVideoXTransformer, save_transformer
from flashvideo.models.vae_tiling import live_bytes
from flashvideo.models.weight_files import WeightsError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both stages, a Stage I adapter with effect, and the stand-in codec."""
    folder = tmp_path_factory.mktemp("pipeline")
    save_transformer(CogVideoXTransformer(TINY), folder / "transformer")
    lora = LoraConfig(rank=2, alpha=2)
    adapted = add_lora(CogVideoXTransformer(TINY), lora)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if name.endswith("lora_B"):
                parameter.fill_(0.05)
    save_adapter(adapted, folder / "adapter", lora)
    save_base(folder / "adapter", TINY, str(folder / "transformer"))  # the training layout of the same, to compare with
    save_transformer(CogVideoXTransformer(TINY2), folder / "transformer_2")
    codec().save(folder / "vae")
    finish_folder(folder)
    return folder


def load(folder: Path, **settings: str) -> FlashVideoCascade:
    return FlashVideoCascade.from_pretrained(folder, text_encoder=TEXT, stage1_sampling=SAMPLING1, stage2_sampling=SAMPLING2, **settings)


def test_a_pipeline_folder_is_the_cascade_of_its_parts(folder: Path) -> None:
    ours = load(folder)(PROMPTS, SMALL, LARGE, seeded([1, 2]))
    parts = FlashVideoCascade.from_folders(
        folder / "adapter",
        folder / "transformer_2",
        folder / "vae",
        VaeConfig(kind="patch_pca", scale_stage1=None, scale_stage2=None),
        TEXT,
        stage1_sampling=SAMPLING1,
        stage2_sampling=SAMPLING2,
    )
    for mine, theirs in zip(ours, parts(PROMPTS, SMALL, LARGE, seeded([1, 2])), strict=True):
        assert torch.equal(mine, theirs)
    base = load_stage1(folder / "transformer")
    assert not torch.equal(base.proj_out.weight, torch.zeros(())) and not torch.equal(
        ours[0],
        FlashVideoCascade(base, None, parts.vae, parts.text_encoder, vae_config=VaeConfig(scale_stage1=1.0)).preview(
            PROMPTS, SMALL, seeded([1, 2]), num_steps=3
        ),
    )  # the adapter has an effect


def test_a_folder_with_one_stage_only_does_that_stage(folder: Path, tmp_path: Path) -> None:
    for part in ("transformer_2", "vae"):
        shutil.copytree(folder / part, tmp_path / part)
    finish_folder(tmp_path)
    cascade = load(tmp_path)
    assert cascade.stage1 is None
    with pytest.raises(ValueError, match="without Stage I"):
        cascade.preview(PROMPTS, SMALL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("text", r"no text_encoder and no tokenizer .*TextEncoderConfig"),
        ("index", r"no file .*model_index\.json"),
        ("class", "is a folder of CogVideoXPipeline; want FlashVideoCascade"),
    ],
)
def test_an_incomplete_folder_is_refused_with_what_lacks(change: str, message: str, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    index = tmp_path / "copy" / "model_index.json"
    if change == "index":
        index.unlink()
    elif change == "class":
        index.write_text('{"_class_name": "CogVideoXPipeline"}')
    with pytest.raises(WeightsError, match=message):
        FlashVideoCascade.from_pretrained(tmp_path / "copy", text_encoder=None if change == "text" else TEXT)


def test_kept_previews_are_enhanced_to_the_same_video(folder: Path, tmp_path: Path) -> None:
    cascade = load(folder)
    preview = cascade.preview(PROMPTS, SMALL, seeded([1, 2]))
    save_previews(tmp_path / "kept.safetensors", preview, PROMPTS, [1, 2])
    kept = load_previews(tmp_path / "kept.safetensors")
    assert torch.equal(kept.video, preview) and (kept.prompts, kept.seeds) == (PROMPTS, [1, 2])
    later = load(folder)
    later.stage1 = None  # Stage I is not sampled again
    video = later.enhance(kept.video, kept.prompts, LARGE, seeded(kept.seeds))
    assert torch.equal(video, cascade.enhance(preview, PROMPTS, LARGE, seeded([1, 2])))
    with pytest.raises(WeightsError, match="holds no previews"):
        load_previews(folder / "vae" / "patch_pca.safetensors")
    with pytest.raises(ValueError, match="2 videos, 1 prompts"):
        save_previews(tmp_path / "x.safetensors", preview, PROMPTS[:1], [1])


def test_settings_of_a_call_stand_in_for_the_cascades(folder: Path) -> None:
    cascade = load(folder)
    preview = cascade.preview("a fox", SMALL, num_steps=2)
    assert torch.equal(preview, cascade.preview(["a fox"], SMALL, seeded([0]), num_steps=2))
    steps: list[tuple[int, int]] = []
    plain = cascade.enhance(preview, "a fox", LARGE, seeded([0]))
    other = cascade.enhance(preview, "a fox", LARGE, seeded([0]), num_steps=3, noise_step=300, progress=lambda *now: steps.append(now))
    assert steps == [(1, 3), (2, 3), (3, 3)] and not torch.equal(plain, other)
    assert not torch.equal(plain, cascade.enhance(preview, "a fox", LARGE, seeded([0]), guidance_scale=5.0))
    with pytest.raises(ValueError, match="num_steps"):
        cascade.preview("a fox", SMALL, num_steps=0)


def test_a_callback_can_end_the_sampling(folder: Path) -> None:
    class Enough(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise Enough

    with pytest.raises(Enough):
        load(folder).preview("a fox", SMALL, progress=stop)


def test_bars_show_both_stages(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cascade = load(folder)
    cascade.progress_bars = True
    cascade("a fox", SMALL, LARGE)
    shown = capsys.readouterr().out
    assert "Stage I " in shown and "Stage II " in shown and "100%" in shown


# ---- offload -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["80gb", "48gb", "24gb"])
def test_offload_moves_parts_and_keeps_results(mode: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is a CPU here, so what is seen is the order of the moves, and that nothing but them changes."""
    expected = load(folder)("a fox", SMALL, LARGE, seeded([1]))
    cascade = load(folder, offload=mode, device="cpu")
    assert cascade.stage1 is not None and cascade.stage2 is not None
    names = {id(cascade.stage1): "stage1", id(cascade.stage2): "stage2", id(cascade.text_encoder.network): "text"}  # type: ignore[attr-defined]
    moves: list[str] = []
    to: Callable[..., torch.nn.Module] = torch.nn.Module.to

    def recorded(module: torch.nn.Module, *arguments: object, **keywords: object) -> torch.nn.Module:
        if id(module) in names:
            moves.append(names[id(module)])
        return to(module, *arguments, **keywords)

    monkeypatch.setattr(torch.nn.Module, "to", recorded)
    made = cascade("a fox", SMALL, LARGE, seeded([1]))
    stages = ["stage1"] * 2 if OFFLOAD_MODES[mode].stage_leaves else []
    assert moves == ["text", "text", *stages, "text", "text", *[name.replace("1", "2") for name in stages]]  # in and out, in and out
    for ours, theirs in zip(made, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=0)


def test_an_unknown_mode_or_no_device_is_a_mistake(folder: Path) -> None:
    with pytest.raises(ValueError, match="no offload mode '12gb'; have none, 80gb, 48gb, 24gb"):
        load(folder, offload="12gb")
    cascade = load(folder)
    with pytest.raises(ValueError, match="needs a device"):
        FlashVideoCascade(None, cascade.stage2, cascade.vae, cascade.text_encoder, vae_config=VaeConfig(), offload="24gb")


@pytest.mark.parametrize("sequential", [False, True])
def test_calculated_bytes_are_those_of_a_real_forward(sequential: bool) -> None:
    """Two layers on the CPU, counted as they run, against one layer on the meta device."""
    config = TransformerConfig(flavour="debug", num_layers=2, num_attention_heads=4, text_embed_dim=32, time_embed_dim=32)
    shape, batch = FrameShape(frames=9, height=128, width=128), 1 if sequential else 2
    frames, height, width = shape.latent_shape
    model, text, timestep = CogVideoXTransformer(config), torch.zeros(batch, 8, 32), torch.zeros(batch)
    with torch.inference_mode(), live_bytes() as counter, _FlashAttention():
        model(torch.zeros(batch, frames, 16, height, width), text, timestep)
    planned = forward_bytes(config, shape, OffloadMode(sequential_guidance=sequential), 8, torch.float32)
    assert abs(counter.peak - planned) < 0.01 * planned


def test_every_mode_fits_its_card_at_1080p() -> None:
    """With 2 GB left for the CUDA context and workspaces. Meta device: nothing is allocated."""
    plans = {mode: plan_memory(mode, FrameShape()) for mode in OFFLOAD_MODES if mode != "none"}
    for mode, plan in plans.items():
        print(mode, {part: round(size / 1e9, 1) for part, size in plan.items()})
        assert plan["peak"] == max(size for part, size in plan.items() if part != "peak")
        assert plan["peak"] + 2e9 < int(mode.removesuffix("gb")) * 2**30
    assert plans["24gb"]["peak"] < plans["48gb"]["peak"] < plans["80gb"]["peak"]


def test_windows_and_head_chunks_reach_stage2(folder: Path) -> None:
    """A window over everything is full attention; so is any chunk of heads."""
    cascade = load(folder)
    preview = cascade.preview("a fox", SMALL)
    full = cascade.enhance(preview, "a fox", LARGE, seeded([0]))
    window = AttentionConfig(kind="window", window=(31, 31, 31), full_above_motion_px=1e9, head_chunk=1)
    cascade.stage2_sampling = SAMPLING2.model_copy(update={"attention": window})
    torch.testing.assert_close(cascade.enhance(preview, "a fox", LARGE, seeded([0])), full, atol=1e-4, rtol=0)
