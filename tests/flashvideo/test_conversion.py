"""Released names <-> diffusers' layout: bit for bit, strict, at tiny and (names and shapes) at real size.

The released keys are written out here again from spec model.md 2.1, independently of the tables.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from flashvideo import convert
from flashvideo.config import STAGE2_TRANSFORMER, TransformerConfig
from flashvideo.models import conversion
from flashvideo.models.conversion import (
    SAT_PREFIX,
    adapter_table,
    export_transformer,
    export_vae,
    import_transformer,
    import_vae,
    rename_all,
    restore_all,
    transformer_table,
)
from flashvideo.models.lora import load_adapter
from flashvideo.models.transformer import CogVideoXTransformer, load_transformer, to_diffusers
from flashvideo.models.weight_files import WeightsError, read_tensors

CHILD = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), "OMP_NUM_THREADS": "1"}

TINY = TransformerConfig(flavour="5b", num_layers=2, num_attention_heads=1, text_embed_dim=12, time_embed_dim=16)
TINY2 = TINY.model_copy(update={"flavour": "2b", "noise_strength_embedding": True, "num_frames_embedding": True})


def released_shapes(config: TransformerConfig, rank: int = 0) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a released transformer, LoRA with `rank` > 0 (official set)."""
    d, e, text = config.hidden_size, config.time_embed_dim, config.text_embed_dim
    shapes: dict[str, tuple[int, ...]] = {"transformer.position_embeddings.weight": (64, d)}

    def linear(name: str, rows: int, columns: int, parts: int = 0) -> None:
        if not (rank and parts):
            shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (rows, columns), (rows,)
            return
        shapes[f"{name}.original.weight"], shapes[f"{name}.original.bias"] = (rows, columns), (rows,)
        for part in range(parts):
            shapes[f"{name}.matrix_A.{part}"], shapes[f"{name}.matrix_B.{part}"] = (rank, columns), (rows // parts, rank)

    def norm(name: str, size: int) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (size,)

    shapes["mixins.patch_embed.proj.weight"], shapes["mixins.patch_embed.proj.bias"] = (d, 16, 2, 2), (d,)
    linear("mixins.patch_embed.text_proj", d, text)
    embeddings = ["time_embed"]
    embeddings += ["ref_step_time_embedding"] if config.noise_strength_embedding else []
    embeddings += ["time_size_embedding"] if config.num_frames_embedding else []
    for name in embeddings:
        linear(f"{name}.0", e, d)
        linear(f"{name}.2", e, e)
    for layer in range(config.num_layers):
        block = f"transformer.layers.{layer}"
        norm(f"{block}.input_layernorm", d)
        norm(f"{block}.post_attention_layernorm", d)
        linear(f"{block}.attention.query_key_value", 3 * d, d, 3)
        linear(f"{block}.attention.dense", d, d, 1)
        linear(f"{block}.mlp.dense_h_to_4h", 4 * d, d)
        linear(f"{block}.mlp.dense_4h_to_h", d, 4 * d)
        linear(f"mixins.adaln_layer.adaLN_modulations.{layer}.1", 12 * d, e, 1)
        norm(f"mixins.adaln_layer.query_layernorm_list.{layer}", 64)
        norm(f"mixins.adaln_layer.key_layernorm_list.{layer}", 64)
    norm("transformer.final_layernorm", d)
    norm("mixins.final_layer.norm_final", d)
    linear("mixins.final_layer.adaLN_modulation.1", 2 * d, e)
    linear("mixins.final_layer.linear", 64, d)
    return shapes


def released_state(config: TransformerConfig, rank: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {SAT_PREFIX + name: torch.randn(shape, generator=generator).bfloat16() for name, shape in released_shapes(config, rank).items()}


def write(path: Path, state: dict[str, Tensor]) -> Path:
    torch.save({"module": state}, path)
    return path


@pytest.mark.parametrize(("config", "rank"), [(TINY, 4), (TINY, 0), (TINY2, 0)], ids=["stage1", "base", "stage2"])
def test_there_and_back_keeps_every_bit(config: TransformerConfig, rank: int, tmp_path: Path) -> None:
    state = released_state(config, rank)
    found = import_transformer(write(tmp_path / "in.pt", state), tmp_path / "out")
    assert (found.num_layers, found.noise_strength_embedding) == (config.num_layers, config.noise_strength_embedding)
    assert (tmp_path / "out" / "adapter").is_dir() == (rank > 0)
    export_transformer(tmp_path / "out", tmp_path / "back.pt")
    back = torch.load(tmp_path / "back.pt", weights_only=True)["module"]
    del state[SAT_PREFIX + "transformer.position_embeddings.weight"]  # the drop list
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], value) and back[key].dtype == value.dtype for key, value in state.items())


@pytest.mark.parametrize(("config", "rank"), [(TransformerConfig(), 128), (STAGE2_TRANSFORMER, 0)], ids=["stage1", "stage2"])
def test_real_names_and_shapes_map_onto_the_whole_network(config: TransformerConfig, rank: int) -> None:
    state = {name: torch.empty(shape, device="meta") for name, shape in released_shapes(config, rank).items()}
    del state["transformer.position_embeddings.weight"]
    adapters = {name: value for name, value in state.items() if ".matrix_" in name}
    base = {name: value for name, value in state.items() if name not in adapters}
    ours = dict(rename_all(base, transformer_table(config, rank > 0), "released"))
    with torch.device("meta"):
        wanted = to_diffusers(CogVideoXTransformer(config).state_dict())
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in wanted.items()}
    if rank:
        peft = dict(rename_all(adapters, adapter_table(config.num_layers), "released"))
        assert sum(value.numel() for value in adapters.values()) == 333_053_952  # spec: official SAT
        assert sum(value.numel() for value in peft.values()) == 335_806_464 and len(peft) == 504


def test_the_imported_adapter_computes_what_the_released_one_does(tmp_path: Path) -> None:
    """One adaptive-norm linear and the fused q, k, v, by the released formula: x W' + (x A') B' alpha / r, alpha 1."""
    state = released_state(TINY, 4)
    import_transformer(write(tmp_path / "in.pt", state), tmp_path / "out")
    model = load_transformer(tmp_path / "out" / "transformer")
    load_adapter(model, tmp_path / "out" / "adapter")
    released = {key.removeprefix(SAT_PREFIX): value.float() for key, value in state.items()}
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
    name = "mixins.adaln_layer.adaLN_modulations.1.1"
    twelve = x @ released[f"{name}.original.weight"].T + released[f"{name}.original.bias"]
    twelve = (twelve + x @ released[f"{name}.matrix_A.0"].T @ released[f"{name}.matrix_B.0"].T / 4).chunk(12, dim=1)
    block = model.transformer_blocks[1]
    torch.testing.assert_close(block.norm1.linear(x), torch.cat([twelve[i] for i in (0, 1, 2, 6, 7, 8)], 1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(block.norm2.linear(x), torch.cat([twelve[i] for i in (3, 4, 5, 9, 10, 11)], 1), atol=1e-5, rtol=1e-5)
    y = torch.randn(3, 64, generator=torch.Generator().manual_seed(2))
    name = "transformer.layers.0.attention.query_key_value"
    expected = y @ released[f"{name}.original.weight"].T + released[f"{name}.original.bias"]
    expected += torch.cat([y @ released[f"{name}.matrix_A.{i}"].T @ released[f"{name}.matrix_B.{i}"].T for i in range(3)], 1) / 4
    torch.testing.assert_close(model.transformer_blocks[0].attn1.to_qkv(y), expected, atol=1e-4, rtol=1e-5)


KEY = SAT_PREFIX + "transformer.layers.1.mlp.dense_4h_to_h.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", r"1 missing: transformer\.layers\.1\.mlp\.dense_4h_to_h\.weight"),
        ("unknown", r"1 unknown: ema\.decay"),
        ("misshapen", r"1 misshapen: transformer\.layers\.1\.mlp\.dense_4h_to_h\.weight \(64, 255\) \(want \(64, 256\)\)"),
        ("stranger", r"1 keys do not begin with .*: optimizer\.step"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_with_the_key(change: str, message: str, tmp_path: Path) -> None:
    state = released_state(TINY, 4)
    if change == "missing":
        del state[KEY]
    elif change == "misshapen":
        state[KEY] = state[KEY][:, :-1].clone()
    else:
        state[SAT_PREFIX + "ema.decay" if change == "unknown" else "optimizer.step"] = torch.zeros(1)
    with pytest.raises(WeightsError, match=message):
        import_transformer(write(tmp_path / "in.pt", state), tmp_path / "out")
    assert not (tmp_path / "out" / "transformer" / "config.json").exists()


def test_an_adapter_that_the_released_layout_cannot_hold_is_refused() -> None:
    shapes = {name: shape for name, shape in released_shapes(TINY, 4).items() if ".matrix_" in name}
    adapters = {name: torch.randn(shape) for name, shape in shapes.items()}
    peft = dict(rename_all(adapters, adapter_table(2), "released"))
    untied = "base_model.model.transformer_blocks.0.norm2.linear.lora_A.weight"
    peft[untied] = peft[untied] + 1
    with pytest.raises(WeightsError, match=r"norm1\.linear.* and .*norm2\.linear.* differ.*merge"):
        dict(restore_all(peft, adapter_table(2), "ours"))


# ---- the autoencoder -----------------------------------------------------------------------------------------------


def released_vae_shapes(width: int = 8, levels: tuple[int, ...] = (1, 2, 2, 4), blocks: int = 3) -> dict[str, tuple[int, ...]]:
    """Names and shapes of 3d-vae.pt: an encoder with plain norms, a decoder with norms that see the latents."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name: str, rows: int, columns: int, kernel: tuple[int, ...]) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (rows, columns, *kernel), (rows,)

    def norm(name: str, size: int, spatial: bool) -> None:
        if not spatial:
            shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (size,)
            return
        shapes[f"{name}.norm_layer.weight"] = shapes[f"{name}.norm_layer.bias"] = (size,)
        for part in ("conv_y", "conv_b"):
            conv(f"{name}.{part}.conv", size, 16, (1, 1, 1))

    def resnet(name: str, inputs: int, outputs: int, spatial: bool) -> None:
        norm(f"{name}.norm1", inputs, spatial)
        conv(f"{name}.conv1.conv", outputs, inputs, (3, 3, 3))
        norm(f"{name}.norm2", outputs, spatial)
        conv(f"{name}.conv2.conv", outputs, outputs, (3, 3, 3))
        if inputs != outputs:
            conv(f"{name}.nin_shortcut", outputs, inputs, (1, 1, 1))

    widths = [width * factor for factor in levels]
    conv("encoder.conv_in.conv", width, 3, (3, 3, 3))
    now = width
    for level, size in enumerate(widths):
        for block in range(blocks):
            resnet(f"encoder.down.{level}.block.{block}", now, size, False)
            now = size
        if level < 3:
            conv(f"encoder.down.{level}.downsample.conv", size, size, (3, 3))
    for side, spatial in (("encoder", False), ("decoder", True)):
        for block in (1, 2):
            resnet(f"{side}.mid.block_{block}", widths[-1], widths[-1], spatial)
    norm("encoder.norm_out", widths[-1], False)
    conv("encoder.conv_out.conv", 32, widths[-1], (3, 3, 3))
    conv("decoder.conv_in.conv", widths[-1], 16, (3, 3, 3))
    for level in reversed(range(4)):
        for block in range(blocks + 1):
            resnet(f"decoder.up.{level}.block.{block}", now, widths[level], True)
            now = widths[level]
        if level > 0:
            conv(f"decoder.up.{level}.upsample.conv", now, now, (3, 3))
    norm("decoder.norm_out", width, True)
    conv("decoder.conv_out.conv", 3, width, (3, 3, 3))
    return shapes


def released_vae(path: Path) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(shape, generator=generator) for name, shape in released_vae_shapes().items()}
    torch.save({"state_dict": {**state, "loss.logvar": torch.zeros(()), "loss.discriminator.main.0.weight": torch.ones(2)}}, path)
    return state


def test_autoencoder_there_and_back_keeps_every_bit(tmp_path: Path) -> None:
    state = released_vae(tmp_path / "vae.pt")
    import_vae(tmp_path / "vae.pt", tmp_path / "out")
    export_vae(tmp_path / "out", tmp_path / "back.pt")
    back = torch.load(tmp_path / "back.pt", weights_only=True)["state_dict"]
    assert back.keys() == state.keys() and all(torch.equal(back[key], value) for key, value in state.items())


def test_imported_autoencoder_is_read_by_diffusers(tmp_path: Path) -> None:
    from flashvideo.models.vae import CogVideoXAutoencoder

    released_vae(tmp_path / "vae.pt")
    import_vae(tmp_path / "vae.pt", tmp_path / "out")
    vae = CogVideoXAutoencoder.from_folder(tmp_path / "out" / "vae", "inference")
    assert vae.decode(torch.zeros(1, 1, 16, 2, 2)).shape == (1, 3, 1, 16, 16)


def test_real_autoencoder_names_cover_diffusers_class(tmp_path: Path) -> None:
    """215,583,907 parameters at the released width, every name mapped."""
    from diffusers import AutoencoderKLCogVideoX

    from flashvideo.models.conversion import vae_name

    shapes = released_vae_shapes(width=128)
    with torch.device("meta"):
        wanted = AutoencoderKLCogVideoX().state_dict()
    assert {vae_name(name): shape for name, shape in shapes.items()} == {name: tuple(value.shape) for name, value in wanted.items()}
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 215_583_907


def test_an_autoencoder_with_a_missing_key_is_refused(tmp_path: Path) -> None:
    state = released_vae(tmp_path / "vae.pt")
    del state["decoder.up.2.block.1.norm1.conv_b.conv.bias"]
    torch.save({"state_dict": state}, tmp_path / "vae.pt")
    with pytest.raises(WeightsError, match=r"1 missing: decoder\.up\.2\.block\.1\.norm1\.conv_b\.conv\.bias"):
        import_vae(tmp_path / "vae.pt", tmp_path / "out")


# ---- every key -----------------------------------------------------------------------------------------------------


def refusal(path: Path, entry: str, state: dict[str, Tensor], convert: Callable[[Path, Path], object]) -> str:
    """What is said of a checkpoint with this state; the file is never written, only its content is handed over."""
    content = {entry: state}
    with pytest.MonkeyPatch.context() as patch, pytest.raises(WeightsError) as caught:
        patch.setattr(conversion, "load_released", lambda _: content)
        convert(path, path.parent / "out")
    assert not (path.parent / "out").exists()  # checked before anything is written
    return str(caught.value)


def longer(tensor: Tensor) -> Tensor:
    return torch.zeros(tensor.shape[0] + 12, *tensor.shape[1:], dtype=tensor.dtype)


@pytest.mark.parametrize(("config", "rank"), [(TINY, 4), (TINY2, 0)], ids=["stage1", "stage2"])
def test_every_missing_extra_or_misshapen_key_is_named(config: TransformerConfig, rank: int, tmp_path: Path) -> None:
    state = released_state(config, rank)
    del state[SAT_PREFIX + "transformer.position_embeddings.weight"]
    for key, value in state.items():
        name = re.escape(key.removeprefix(SAT_PREFIX))
        without = {other: tensor for other, tensor in state.items() if other != key}
        assert re.search(rf"1 missing: {name}$", refusal(tmp_path / "x.pt", "module", without, import_transformer)), key
        wrong = state | {key: longer(value)}
        assert re.search(rf"1 misshapen: {name} \(", refusal(tmp_path / "x.pt", "module", wrong, import_transformer)), key
        strange = state | {f"{key}.ema": value}
        assert re.search(rf"1 unknown: {name}\.ema$", refusal(tmp_path / "x.pt", "module", strange, import_transformer)), key


def test_missing_extra_or_misshapen_keys_of_the_autoencoder_are_named(tmp_path: Path) -> None:
    state = {name: torch.zeros(shape) for name, shape in released_vae_shapes(blocks=2).items()}
    for key, value in list(state.items())[::23]:  # every check builds diffusers' class
        name = re.escape(key)
        without = {other: tensor for other, tensor in state.items() if other != key}
        assert re.search(rf"1 missing: {name}$", refusal(tmp_path / "x.pt", "state_dict", without, import_vae)), key
        assert re.search(rf"1 misshapen: {name} \(", refusal(tmp_path / "x.pt", "state_dict", state | {key: longer(value)}, import_vae)), (
            key
        )
        assert re.search(rf"1 unknown: {name}\.ema$", refusal(tmp_path / "x.pt", "state_dict", state | {f"{key}.ema": value}, import_vae))


# ---- CogVideoX as a starting point -----------------------------------------------------------------------------------


def cogvideox_folder(folder: Path, rotary: bool, shards: int = 2) -> dict[str, Tensor]:
    """A tiny diffusers transformer folder in shards, the 2B kind with its sincos buffer."""
    from safetensors.torch import save_file

    model = CogVideoXTransformer(TINY)
    state = {key: value.clone().bfloat16() for key, value in to_diffusers(model.state_dict()).items()}
    if not rotary:
        state["patch_embed.pos_embedding"] = torch.ones(1, 30, 64).bfloat16()
    folder.mkdir(parents=True)
    names = list(state)
    weight_map = {}
    for shard in range(shards):
        file = f"diffusion_pytorch_model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        save_file({name: state[name].contiguous() for name in names[shard::shards]}, folder / file)
        weight_map |= dict.fromkeys(names[shard::shards], file)
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    sizes = {"num_layers": 2, "num_attention_heads": 1, "text_embed_dim": 12, "time_embed_dim": 16}
    values = {"_class_name": "CogVideoXTransformer3DModel", "use_rotary_positional_embeddings": rotary, **sizes}
    (folder / "config.json").write_text(json.dumps(values))
    return state


def test_a_2b_folder_becomes_stage2_with_rope_and_fresh_embeddings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = cogvideox_folder(tmp_path / "CogVideoX-2b" / "transformer", rotary=False)
    with caplog.at_level("INFO", logger="flashvideo"):
        lines = convert.run("cogvideox", str(tmp_path / "out"), [tmp_path / "CogVideoX-2b"])
    assert "CogVideoX-2B, Stage II" in lines[0]
    assert "patch_embed.pos_embedding dropped, RoPE takes its place" in caplog.text
    assert "no noise_strength_embedding and num_frames_embedding: initialised" in caplog.text
    model = load_transformer(tmp_path / "out" / "transformer_2")
    assert model.config.noise_strength_embedding and model.config.num_frames_embedding
    ours = to_diffusers(model.state_dict())
    assert all(torch.equal(ours[key], value.float()) for key, value in state.items() if key != "patch_embed.pos_embedding")
    for extra in (model.noise_strength_embedding, model.num_frames_embedding):
        assert extra is not None
        assert torch.equal(extra.linear_1.weight, model.time_embedding.linear_1.weight)
        assert not extra.linear_2.weight.any() and not extra.linear_2.bias.any()
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert index == {
        "_class_name": "FlashVideoCascade",
        "transformer_2": ["flashvideo", "CogVideoXTransformer"],
        "scheduler_2": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    }


def test_a_5b_folder_becomes_stage1s_base_bit_for_bit(tmp_path: Path) -> None:
    state = cogvideox_folder(tmp_path / "transformer", rotary=True)
    convert.run("cogvideox", str(tmp_path / "out"), [tmp_path / "transformer"])
    ours = read_tensors(tmp_path / "out" / "transformer", "diffusion_pytorch_model.safetensors")
    assert ours.keys() == state.keys() and all(torch.equal(ours[key], value) for key, value in state.items())


def test_a_cogvideox_folder_that_lacks_a_key_is_refused_with_it(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    cogvideox_folder(tmp_path / "transformer", rotary=False, shards=1)
    [shard] = (tmp_path / "transformer").glob("*.safetensors")
    state = load_file(shard)
    save_file({key: value for key, value in state.items() if key != "proj_out.bias"}, shard)
    with pytest.raises(WeightsError, match=r"1 missing: proj_out\.bias$"):
        convert.run("cogvideox", str(tmp_path / "out"), [tmp_path / "transformer"])


# ---- the command ---------------------------------------------------------------------------------------------------


def test_both_stages_go_into_one_pipeline_folder_and_back(tmp_path: Path) -> None:
    states = {"stage1.pt": released_state(TINY, 4), "stage2.pt": released_state(TINY2)}
    for name, state in states.items():
        write(tmp_path / name, state)
    convert.run("official", str(tmp_path / "out"), [tmp_path / name for name in states])
    parts = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert parts == ["adapter", "model_index.json", "scheduler", "scheduler_2", "transformer", "transformer_2"]
    (tmp_path / "back").mkdir()
    convert.run(str(tmp_path / "out"), "official", [tmp_path / "back" / name for name in states])
    for name, state in states.items():
        back = torch.load(tmp_path / "back" / name, weights_only=True)["module"]
        del state[SAT_PREFIX + "transformer.position_embeddings.weight"]
        assert back.keys() == state.keys() and all(torch.equal(back[key], value) for key, value in state.items())


def test_the_schedulers_are_the_samplers_tables(tmp_path: Path) -> None:
    """diffusers' own classes, built from the folders: Stage I's alphas, Stage II's grid at S = 4."""
    from diffusers import CogVideoXDPMScheduler, FlowMatchEulerDiscreteScheduler

    from flashvideo.config import DiffusionConfig, Stage2SamplingConfig
    from flashvideo.objectives.diffusion import alpha_table

    ours = CogVideoXDPMScheduler.from_config(convert.stage1_scheduler(DiffusionConfig()))
    torch.testing.assert_close(ours.alphas_cumprod.sqrt().float(), alpha_table(DiffusionConfig()), atol=1e-6, rtol=0)
    euler = FlowMatchEulerDiscreteScheduler.from_config(convert.stage2_scheduler(Stage2SamplingConfig()))
    euler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    torch.testing.assert_close(euler.timesteps, torch.tensor([1000.0, 882.353, 714.286, 454.545]), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "official", "--to", "out", "none.pt"], "no file none.pt"),
        (["--from", "official", "--to", "out", "text.pt"], "text.pt is not a checkpoint"),
        (["--from", "official", "--to", "out", "odd.pt"], "1 missing: mixins.final_layer.linear.bias"),
        (["--from", "official", "--to", "out", "empty.pt"], "empty.pt has the entries model; want module"),
        (["--from", "out", "--to", "official", "other.pt"], "the name must hold stage1, stage2 or vae"),
        (["--from", "out", "--to", "official", "stage1.pt"], "no file out/transformer/config.json"),
        (["--from", "cogvideox", "--to", "out", "nowhere"], "no file nowhere/config.json"),
        (["--from", "here", "--to", "there", "x"], "one of them is official"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistakes_are_one_line_and_exit_code_2(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.pt").write_text("hello")
    state = released_state(TINY)
    del state[SAT_PREFIX + "mixins.final_layer.linear.bias"]
    write(Path("odd.pt"), state)
    torch.save({"model": {}}, "empty.pt")
    monkeypatch.setattr(sys, "argv", ["convert", *arguments])
    with pytest.raises(SystemExit) as stopped:
        convert.main()
    said = capsys.readouterr().err.strip()
    assert stopped.value.code == 2 and message in said and len(said.splitlines()) == 1


STREAMING = """
import re, sys
from pathlib import Path
from flashvideo import convert
peak = lambda: 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])  # not getrusage: it inherits
before = peak()
convert.run(sys.argv[1], sys.argv[2], [Path(sys.argv[3])])
print(peak() - before)
"""


def test_conversion_needs_less_memory_than_one_and_a_third_files(tmp_path: Path) -> None:
    """In a child process, there and back: memory above what the imports take, for a file of 160 MB."""
    config = TransformerConfig(flavour="5b", num_layers=12, num_attention_heads=8, text_embed_dim=512)
    write(tmp_path / "stage1.pt", released_state(config, 16))
    size = (tmp_path / "stage1.pt").stat().st_size
    assert size > 150e6
    for arguments in (("official", "out", "stage1.pt"), ("out", "official", "stage1.back.pt")):
        done = subprocess.run(
            [sys.executable, "-c", STREAMING, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=300, env=CHILD
        )
        assert done.returncode == 0, done.stderr
        share = int(done.stdout.split()[-1]) / size
        print(f"{arguments[0]} -> {arguments[1]}: {size / 1e6:.0f} MB file, {share:.2f} of it in memory at most")
        assert share < 1.3
