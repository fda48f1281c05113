"""Checkpoints in, checkpoints out: released files or CogVideoX folders <-> a pipeline folder.

    python -m flashvideo.convert --from official stage1.pt stage2.pt 3d-vae.pt --to DIR
    python -m flashvideo.convert --from DIR --to official stage1.pt
    python -m flashvideo.convert --from cogvideox CogVideoX-2b --to DIR

A pipeline folder, in diffusers' layout (`FlashVideoCascade.from_pretrained` reads it):

    model_index.json
    transformer/    adapter/    scheduler/      Stage I: base, LoRA (peft), sampler
    transformer_2/  scheduler_2/                Stage II
    vae/
    text_encoder/  tokenizer/                   T5 v1.1-XXL; not in the released files, put there by the user

Conversions into one folder add up. Exit codes: 0; 1 failed; 2 a user's mistake (one line that names the keys).
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flashvideo.config import DiffusionConfig, Stage2SamplingConfig
from flashvideo.models.conversion import (
    ADAPTER,
    TRANSFORMER,
    export_transformer,
    export_vae,
    import_cogvideox,
    import_transformer,
    import_vae,
    load_released,
)
from flashvideo.models.weight_files import WeightsError, read_config, write_config

log = logging.getLogger("flashvideo")

TRANSFORMER_2 = "transformer_2"
"""Stage II's folder; diffusers' own name for the second transformer of a pipeline."""

STAGE2_MARK = "model.diffusion_model.ref_step_time_embedding."

PARTS: dict[str, tuple[str, str, str]] = {
    TRANSFORMER: ("config.json", "diffusers", "CogVideoXTransformer3DModel"),
    ADAPTER: ("adapter_config.json", "peft", "LoraModel"),
    "scheduler": ("scheduler_config.json", "diffusers", "CogVideoXDPMScheduler"),
    TRANSFORMER_2: ("config.json", "flashvideo", "CogVideoXTransformer"),
    "scheduler_2": ("scheduler_config.json", "diffusers", "FlowMatchEulerDiscreteScheduler"),
    "vae": ("config.json", "diffusers", "AutoencoderKLCogVideoX"),
    "text_encoder": ("config.json", "transformers", "T5EncoderModel"),
    "tokenizer": ("tokenizer_config.json", "transformers", "T5Tokenizer"),
}
"""Folder -> the file that marks it complete, the library and the class that read it."""


def import_official(files: Sequence[Path], folder: Path) -> list[str]:
    """Converts released checkpoints into a pipeline folder; returns a line for each. What a file is, its keys say.

    Raises WeightsError that names keys.
    """
    lines = []
    for file in files:
        content = load_released(file)
        if "state_dict" in content:
            import_vae(file, folder)
            part, note = "vae", "autoencoder"
        elif "module" in content:
            stage = 2 if any(key.startswith(STAGE2_MARK) for key in content["module"]) else 1
            part = TRANSFORMER_2 if stage == 2 else TRANSFORMER
            config = import_transformer(file, folder, part)
            note = f"Stage {'I' * stage}, {config.num_layers} layers, width {config.hidden_size}"
        else:
            raise WeightsError(
                f"{file} has the entries {', '.join(map(str, content))}; want module (a transformer) or state_dict (the VAE)"
            )
        finish_folder(folder)
        lines.append(f"{file} ({note}) -> {folder / part}")
    return lines


def export_official(folder: Path, files: Sequence[Path]) -> list[str]:
    """Inverse of `import_official`: each file's name says which part it is (it holds stage1, stage2 or vae)."""
    lines = []
    for file in files:
        name = file.name.lower()
        parts = [part for word, part in (("stage1", TRANSFORMER), ("stage2", TRANSFORMER_2), ("vae", "vae")) if word in name]
        if len(parts) != 1:
            raise WeightsError(f"{file}: the name must hold stage1, stage2 or vae, to say which part of {folder} it takes")
        if not file.parent.is_dir():
            raise WeightsError(f"no folder {file.parent} for {file.name}")
        if parts[0] == "vae":
            export_vae(folder, file)
        else:
            export_transformer(folder, file, parts[0])
        lines.append(f"{folder / parts[0]} -> {file}")
    return lines


def import_starting_points(sources: Sequence[Path], folder: Path) -> list[str]:
    """CogVideoX pipeline folders (or their transformer folders) as starting points: 5B of Stage I, 2B of Stage II.

    A pipeline folder's VAE is taken too. Its T5 is not copied (9.5 GB): name the folder as text_encoder.weights, or link
    text_encoder/ and tokenizer/ into the pipeline folder. Raises WeightsError.
    """
    lines = []
    for source in sources:
        transformer = source / TRANSFORMER if (source / TRANSFORMER).is_dir() else source
        rotary = bool(read_config(transformer).get("use_rotary_positional_embeddings", False))
        part = TRANSFORMER if rotary else TRANSFORMER_2
        config = import_cogvideox(transformer, folder, part)
        lines.append(f"{transformer} (CogVideoX-{config.flavour.upper()}, Stage {'I' if rotary else 'II'}) -> {folder / part}")
        if (source / "vae" / "config.json").is_file() and not (folder / "vae" / "config.json").is_file():
            shutil.copytree(source / "vae", folder / "vae", dirs_exist_ok=True)
            lines.append(f"{source / 'vae'} -> {folder / 'vae'}")
        finish_folder(folder)
    return lines


def finish_folder(folder: Path) -> None:
    """Writes the schedulers of the stages that are there, and model_index.json over everything that is there."""
    if (folder / TRANSFORMER / "config.json").is_file():
        write_config(folder / "scheduler", stage1_scheduler(DiffusionConfig()), "scheduler_config.json")
    if (folder / TRANSFORMER_2 / "config.json").is_file():
        write_config(folder / "scheduler_2", stage2_scheduler(Stage2SamplingConfig()), "scheduler_config.json")
    index: dict[str, Any] = {"_class_name": "FlashVideoCascade"}
    index |= {part: [library, name] for part, (mark, library, name) in PARTS.items() if (folder / part / mark).is_file()}
    write_config(folder, index, "model_index.json")


def stage1_scheduler(diffusion: DiffusionConfig) -> dict[str, Any]:
    """Stage I's table as diffusers' nearest scheduler (the released 51 steps are another subset: sampling/stage1.py)."""
    return {
        "_class_name": "CogVideoXDPMScheduler",
        "beta_end": diffusion.beta_end,
        "beta_schedule": "scaled_linear",
        "beta_start": diffusion.beta_start,
        "num_train_timesteps": diffusion.num_timesteps,
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "set_alpha_to_one": True,
        "snr_shift_scale": diffusion.snr_shift_scale,
        "timestep_spacing": "trailing",
    }


def stage2_scheduler(sampling: Stage2SamplingConfig) -> dict[str, Any]:
    """Stage II's Euler grid: sigma = 1 - t, shifted by 2.5."""
    return {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": sampling.shift}


def run(source: str, target: str, files: Sequence[Path]) -> list[str]:
    """What the command line does. Raises WeightsError for mistakes."""
    if target == "official":
        if source in ("official", "cogvideox"):
            raise WeightsError("--to official needs --from DIR, a pipeline folder")
        return export_official(Path(source), files)
    if source == "official":
        return import_official(files, Path(target))
    if source == "cogvideox":
        return import_starting_points(files, Path(target))
    raise WeightsError(f"--from {source} --to {target}: one of them is official, or --from is cogvideox")


def main() -> None:
    """Command line; exits the process."""
    parser = argparse.ArgumentParser(prog="python -m flashvideo.convert", description="released checkpoints <-> a pipeline folder")
    parser.add_argument(
        "files", nargs="+", type=Path, help="released .pt files (read, or written with --to official), or CogVideoX folders"
    )
    parser.add_argument("--from", dest="source", required=True, metavar="official|cogvideox|DIR")
    parser.add_argument("--to", dest="target", required=True, metavar="DIR|official")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        lines = run(arguments.source, arguments.target, arguments.files)
    except WeightsError as error:
        print(f"convert: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"convert: {error.filename or arguments.target}: {error.strerror}", file=sys.stderr)
        sys.exit(2)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
