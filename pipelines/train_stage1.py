"""Job train_stage1: Stage I's adapter on the base model, from the latents of the release."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curation.store import Store
from flashvideo.config import EngineConfig
from pipelines.artifacts import Report
from pipelines.digests import folder_digest
from pipelines.job import JobContext, main
from pipelines.latent_plan import stage1_profile
from pipelines.ranks import RankRequest, start_ranks
from pipelines.recipe import Recipe
from pipelines.trained_models import vae_folder

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from flashvideo.training.engine import Ranks
    from flashvideo.training.sheets import Decode
    from pipelines.degraded_reads import SharedAutoencoder

TRAIN_FILE, HELD_OUT_FILE = "samples.arrow", "samples_held_out.arrow"


def run(context: JobContext) -> Report:
    """Lists the samples, starts the ranks, reports the validation loss before and after."""
    from pipelines.sample_lists import Release, held_out_samples, require, samples_of, write_samples

    recipe, folder = context.recipe, context.folder
    store = Store.open(context.workspace.store, create=False)
    release = Release.read(store, recipe, context.upstream)
    profile = stage1_profile(recipe)
    train_table = require(samples_of(store, release, profile, "train"), "Stage I", "keep more videos: relax curation.policy or add sources")
    held_out, held_out_is = held_out_samples(store, release, profile)
    write_samples(folder / TRAIN_FILE, [train_table])
    write_samples(folder / HELD_OUT_FILE, [held_out])
    scale = float(context.upstream["precompute_latents"].headline["scale_stage1"])
    settings = {"scale": scale, "vae": str(vae_folder(context.workspace, context.upstream)), "tag": release.tag}
    start_ranks(rank_request(context, settings), recipe, recipe.stage1.engine)
    return finished_report(context, "stage1", train_table.num_rows, held_out_is, release.tag)


def rank_request(context: JobContext, settings: dict[str, Any]) -> RankRequest:
    """What the ranks of this job are given."""
    progress = context.progress.path
    return RankRequest(
        job=context.spec.name,
        recipe=context.recipe.model_dump_json(),
        root=str(context.workspace.root),
        folder=str(context.folder),
        progress=None if progress is None else str(progress),
        settings=settings,
    )


def engine_of(recipe: Recipe) -> EngineConfig:
    """The engine that the ranks of this job join with."""
    return recipe.stage1.engine


def train(request: RankRequest, recipe: Recipe, ranks: Ranks, progress: Callable[[int, int, str, str], None]) -> None:
    """One rank's work."""
    from flashvideo.models.vae import load_autoencoder
    from flashvideo.training.stage1 import train_stage1
    from pipelines.degraded_reads import SharedAutoencoder
    from pipelines.latent_loader import LatentSamples

    folder, root, scale = Path(request.folder), Path(request.root), request.settings["scale"]
    text_shape = (recipe.text_encoder.max_length, recipe.text_encoder.embed_dim)
    samples, held_out = (LatentSamples(folder / name, root, scale, text_shape) for name in (TRAIN_FILE, HELD_OUT_FILE))
    vae = SharedAutoencoder(lambda: load_autoencoder(request.settings["vae"], recipe.vae, ranks.device))
    train_stage1(recipe.stage1, recipe.seed, samples, held_out, folder, ranks, progress, request.provenance, decoder_of(vae, scale))


def decoder_of(vae: SharedAutoencoder, scale: float) -> Decode:
    """Decodes model input with the run's autoencoder."""

    def decode(latents: Tensor) -> np.ndarray:
        import torch

        from flashvideo.models.vae import video_to_pixels

        with torch.no_grad():
            pictures: np.ndarray = video_to_pixels(vae.decode(latents / scale)[0])
        return pictures

    return decode


def finished_report(context: JobContext, name: str, samples: int, held_out_is: str, tag: str) -> Report:
    """The report of either stage, from the files that its ranks wrote."""
    validation = json.loads((context.folder / "validation.json").read_text())
    before, after = validation["before"], validation["after"]
    relative = context.workspace.relative
    averaged = context.folder / f"{name}_ema"
    collapsed = validation["collapsed"]
    return context.report(
        folder_digest(context.folder / name),
        counts={"samples": samples, "validated": validation["samples"]},
        outputs={
            name: relative(context.folder / name),
            "losses": relative(context.folder / "losses.jsonl"),
            "validation": relative(context.folder / "validation.json"),
            "tag": tag,
        }
        | ({averaged.name: relative(averaged)} if averaged.is_dir() else {}),
        models={name: context.recipe.stage1.transformer.flavour if name == "stage1" else context.recipe.stage2.transformer.flavour},
        headline={
            "validation_before": before,
            "validation_after": after,
            "validation_fall": 1 - after / before,
            "validated_on": held_out_is,
        }
        | ({"collapsed": collapsed} if collapsed else {}),
    )


if __name__ == "__main__":
    main("train_stage1", run)
