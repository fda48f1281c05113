"""What the jobs after training load: the run's two stages, its autoencoder and text encoder, and what they are called."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.artifacts import Report, Workspace
from pipelines.job import UserError
from pipelines.recipe import Recipe

if TYPE_CHECKING:
    import torch

    from flashvideo.cascade import FlashVideoCascade


def model_device(recipe: Recipe) -> torch.device:
    """A GPU where the recipe asks for one, else the CPU (with the engine's number of threads). Raises UserError without a GPU."""
    import torch

    if recipe.runtime.gpus_per_model_worker > 0:
        if not torch.cuda.is_available():
            raise UserError(
                f"runtime.gpus_per_model_worker = {recipe.runtime.gpus_per_model_worker:g} but this process sees no GPU; set it to 0"
            )
        return torch.device("cuda")
    if recipe.stage2.engine.torch_threads is not None:
        torch.set_num_threads(recipe.stage2.engine.torch_threads)
    return torch.device("cpu")


def stage1_folder(workspace: Workspace, reports: Mapping[str, Report]) -> Path:
    """Stage I's adapter and base.json."""
    return workspace.folder("train_stage1", reports["train_stage1"].fingerprint) / "stage1"


def stage2_folder(workspace: Workspace, reports: Mapping[str, Report]) -> Path:
    """Stage II in diffusers' layout."""
    return workspace.folder("train_stage2", reports["train_stage2"].fingerprint) / "stage2"


def vae_folder(workspace: Workspace, reports: Mapping[str, Report]) -> Path:
    """The autoencoder that made the run's latents."""
    return workspace.folder("precompute_latents", reports["precompute_latents"].fingerprint) / "vae"


def load_cascade(
    workspace: Workspace, recipe: Recipe, reports: Mapping[str, Report], device: torch.device, with_stage1: bool = True
) -> FlashVideoCascade:
    """The run's cascade. `reports`: the finished jobs by name; bf16 transformers on a GPU where the recipe trains in bf16."""
    import torch

    from flashvideo.cascade import FlashVideoCascade

    half = device.type == "cuda" and recipe.stage2.engine.precision == "bf16"
    return FlashVideoCascade.from_folders(
        stage1_folder(workspace, reports) if with_stage1 else None,
        stage2_folder(workspace, reports),
        vae_folder(workspace, reports),
        recipe.vae,
        recipe.text_encoder,
        device=device,
        dtype=torch.bfloat16 if half else torch.float32,
        stage1_sampling=recipe.generate.stage1,
        stage2_sampling=recipe.generate.stage2,
        diffusion=recipe.stage1.objective,
        latent_degradation=recipe.stage2.latent_degradation,
    )


def model_names(cascade: FlashVideoCascade, recipe: Recipe, workspace: Workspace, reports: Mapping[str, Report]) -> dict[str, str]:
    """Role -> what fills it, stand-ins named as such."""
    names = {
        "stage2": f"{recipe.stage2.transformer.flavour} transformer, from {recipe.stage2.init_weights or 'a seeded random start'}",
        "vae": _named(cascade.vae.name, cascade.vae.is_stand_in, "AutoencoderKLCogVideoX"),
        "text_encoder": _named(cascade.text_encoder.name, cascade.text_encoder.is_stand_in, "T5 v1.1-XXL"),
    }
    if cascade.stage1 is not None:
        base = stage1_folder(workspace, reports) / "base.json"
        weights = json.loads(base.read_text())["weights"] if base.is_file() else "all weights trained"
        start = weights or "a seeded random base (stand-in for CogVideoX-5B)"
        names["stage1"] = f"{recipe.stage1.transformer.flavour} transformer, LoRA rank {recipe.stage1.lora.rank} on {start}"
    return names


def _named(name: str, is_stand_in: bool, real: str) -> str:
    return f"{name} (stand-in for {real})" if is_stand_in else name


def item_seed(*facts: object) -> int:
    """A seed that depends on the item's content, not on its place: 63 bits of the sha256 of the facts' JSON."""
    return int.from_bytes(hashlib.sha256(json.dumps(facts).encode()).digest()[:8], "big") >> 1
