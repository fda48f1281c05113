"""Every script of examples/ runs at debug size, one after the other, as a user would: convert, preview, enhance, ..."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from flashvideo.cascade import load_previews
from flashvideo.config import TransformerConfig
from flashvideo.convert import export_official, finish_folder
from flashvideo.models.lora import add_lora, load_stage1, read_adapter_config, save_adapter
from flashvideo.models.transformer import CogVideoXTransformer, save_transformer
from flashvideo.models.vae import PatchPcaAutoencoder
from flashvideo.video_files import read_video, write_video

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
TINY = TransformerConfig(flavour="debug", num_layers=1, num_attention_heads=1, text_embed_dim=16, time_embed_dim=16)
TINY2 = TINY.model_copy(update={"noise_strength_embedding": True, "num_frames_embedding": True, "seed": 1})

torch.set_num_threads(1)


def example(name: str) -> ModuleType:
    """The script as a module; its folder is where its imports are found, as when it is run."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(EXAMPLES))
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """stage1.pt and stage2.pt of tiny networks through examples/convert.py, and a codec fitted on noise."""
    made = tmp_path_factory.mktemp("made")
    from flashvideo.config import LoraConfig

    lora = LoraConfig(rank=2, alpha=1, targets="official")
    save_transformer(CogVideoXTransformer(TINY), made / "start" / "transformer")
    adapted = add_lora(CogVideoXTransformer(TINY), lora)
    for block in adapted.transformer_blocks:  # the released layout shares A between the two adaptive norms
        with torch.no_grad():
            block.norm2.linear.lora_A.copy_(block.norm1.linear.lora_A)
    save_adapter(adapted, made / "start" / "adapter", lora)
    save_transformer(CogVideoXTransformer(TINY2), made / "start" / "transformer_2")
    export_official(made / "start", [made / "stage1.pt", made / "stage2.pt"])
    example("convert").main(
        [str(made / "stage1.pt"), str(made / "stage2.pt"), "--to", str(made / "folder"), "--back", str(made / "again.stage2.pt")]
    )
    clip = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
    PatchPcaAutoencoder.fit([clip]).save(made / "folder" / "vae")
    finish_folder(made / "folder")
    return made / "folder"


@pytest.fixture(scope="module")
def previews(folder: Path) -> Path:
    example("preview").main(
        [str(folder), "a red fox", "--seeds", "1", "2", "--out", str(folder.parent / "previews"), "--debug", "--device", "cpu"]
    )
    return folder.parent / "previews"


def test_convert_writes_the_folder_and_the_same_file_back(folder: Path) -> None:
    assert {"transformer", "adapter", "transformer_2", "scheduler", "scheduler_2", "model_index.json"} <= {p.name for p in folder.iterdir()}
    first, again = (torch.load(folder.parent / name, weights_only=True)["module"] for name in ("stage2.pt", "again.stage2.pt"))
    assert first.keys() == again.keys() and all(torch.equal(first[key], again[key]) for key in first)


def test_preview_keeps_one_video_a_seed(previews: Path) -> None:
    one, two = load_previews(previews / "1.safetensors"), load_previews(previews / "2.safetensors")
    assert one.video.shape == (1, 3, 9, 32, 48) and (one.prompts, one.seeds) == (["a red fox"], [1])
    assert not torch.equal(one.video, two.video) and read_video(previews / "1.mp4")[0].shape == (9, 32, 48, 3)


def test_enhance_takes_a_kept_preview_or_a_video(folder: Path, previews: Path, tmp_path: Path) -> None:
    common = ["--debug", "--device", "cpu"]
    example("enhance").main(
        [str(folder), str(previews / "1.safetensors"), "--out", str(tmp_path / "kept.mp4"), *common, "--offload", "24gb"]
    )
    example("enhance").main([str(folder), str(previews / "1.mp4"), "--prompt", "a red fox", "--out", str(tmp_path / "file.mp4"), *common])
    for name in ("kept.mp4", "file.mp4"):
        frames, rate = read_video(tmp_path / name)
        assert frames.shape == (9, 64, 96, 3) and rate == 8


def test_interpolate_triples_the_rate(previews: Path, tmp_path: Path) -> None:
    example("interpolate").main([str(previews / "1.mp4"), "--out", str(tmp_path / "smooth.mp4")])
    frames, rate = read_video(tmp_path / "smooth.mp4")
    assert len(frames) == 25 and rate == 24


def test_window_attention_says_what_it_chose(folder: Path, previews: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example("window_attention").main([str(folder), str(previews / "1.safetensors"), "--debug", "--device", "cpu"])
    said = capsys.readouterr().out
    assert "chosen for this clip: AttentionOptions" in said and "mean difference to full attention" in said


def test_continue_training_writes_an_adapter_on_the_merged_base(folder: Path, tmp_path: Path) -> None:
    write_video(tmp_path / "mine.mp4", np.random.default_rng(1).integers(0, 256, (9, 32, 48, 3), dtype=np.uint8), 8, 12)
    arguments = [
        str(folder),
        str(tmp_path / "mine.mp4"),
        "--prompt",
        "a fox",
        "--out",
        str(tmp_path / "lora"),
        "--steps",
        "3",
        "--rank",
        "2",
    ]
    example("continue_training").main([*arguments, "--debug", "--device", "cpu"])
    assert read_adapter_config(tmp_path / "lora" / "adapter").targets == "paper"
    trained, base = load_stage1(tmp_path / "lora" / "adapter"), load_stage1(tmp_path / "lora" / "base")
    assert not torch.equal(trained.transformer_blocks[0].attn1.to_qkv.weight, base.transformer_blocks[0].attn1.to_qkv.weight)


def test_every_example_is_tried() -> None:
    text = Path(__file__).read_text()
    scripts = {path.stem for path in EXAMPLES.glob("*.py")} - {"loading"}
    assert {name for name in scripts if f'example("{name}")' not in text} == set() and len(scripts) >= 6
