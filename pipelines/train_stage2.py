"""Job train_stage2: the curriculum of phases, each in a folder of its own that later runs use again.

artifacts/train_stage2/phases/<phase fingerprint>/ holds a phase's checkpoints, losses and samples. A phase's
fingerprint chains the one before it, its own settings, what all phases share and the latents that it reads; so a
changed phase 4 keeps phases 1-3.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from curation.store import Store
from flashvideo.config import EngineConfig, Stage2Config
from pipelines.artifacts import Report, ends_and_middle
from pipelines.job import JobContext, UserError, main
from pipelines.latent_plan import Media, degrades_while_training, held_out_media, phase_profile
from pipelines.plan import LOGISTICS
from pipelines.ranks import RankRequest, start_ranks
from pipelines.recipe import Recipe, fingerprint
from pipelines.train_stage1 import HELD_OUT_FILE, TRAIN_FILE, decoder_of, finished_report, rank_request
from pipelines.trained_models import vae_folder

SHEETS = "samples"

if TYPE_CHECKING:
    import pyarrow as pa

    from flashvideo.training.engine import Ranks
    from pipelines.sample_lists import Release


def run(context: JobContext) -> Report:
    """Lists every phase's samples, starts the ranks once for all phases, reports the validation loss before and after."""
    from pipelines.sample_lists import Release, held_out_samples, write_samples

    recipe, folder = context.recipe, context.folder
    store = Store.open(context.workspace.store, create=False)
    release = Release.read(store, recipe, context.upstream)
    names = phase_fingerprints(recipe, context.upstream["precompute_latents"].digest)
    phases = [folder.parent / "phases" / name for name in names]
    reused = sum((phase / "phase.json").is_file() for phase in phases)
    rows = 0
    for index, phase in enumerate(phases):
        phase.mkdir(parents=True, exist_ok=True)
        tables = phase_tables(store, release, recipe, index)
        write_samples(phase / TRAIN_FILE, tables)
        rows = max(rows, sum(table.num_rows for table in tables))
    last = len(phases) - 1
    held_out, held_out_is = held_out_samples(store, release, phase_profile(recipe, last, held_out_media(recipe)))
    write_samples(folder / HELD_OUT_FILE, [held_out])
    scale = float(context.upstream["precompute_latents"].headline["scale_stage2"])
    vae = str(vae_folder(context.workspace, context.upstream))
    settings = {"scale": scale, "phases": [str(phase) for phase in phases], "vae": vae, "tag": release.tag}
    start_ranks(rank_request(context, settings), recipe, recipe.stage2.engine)
    join_losses(phases, folder / "losses.jsonl")
    shown_sheets(recipe, phases, folder / SHEETS)
    report = finished_report(context, "stage2", rows, held_out_is, release.tag)
    report.counts["phases"], report.counts["phases_reused"] = len(phases), reused
    report.headline["validation_by_phase"] = validation_by_phase(recipe, phases)
    return report


def phase_fingerprints(recipe: Recipe, latents_digest: str) -> list[str]:
    """Name of every phase's folder."""
    config = recipe.stage2
    names: list[str] = []
    for phase in config.phases:
        names.append(fingerprint(names[-1:], phase, shared_settings(config), recipe.seed, latents_digest))
    return names


def shared_settings(config: Stage2Config) -> dict[str, object]:
    """What every phase depends on; copies of DEG_pixel that are kept are in the latents' digest."""
    settings = config.model_dump(mode="json", exclude={"phases", "engine", "pixel_degradation", "validation_samples"})
    if config.pixel_degradation.copies == "on_the_fly":
        settings["pixel_degradation"] = config.pixel_degradation.model_dump(mode="json")
    return settings | {"engine": config.engine.model_dump(mode="json", exclude=set(LOGISTICS))}


def phase_tables(store: Store, release: Release, recipe: Recipe, index: int) -> list[pa.Table]:
    """The samples that a phase trains on, images first. Raises UserError where a kind that it asks for has none."""
    from pipelines.sample_lists import samples_of

    phase = recipe.stage2.phases[index]
    wanted: list[Media] = (["image"] if phase.images else []) + (["video"] if phase.videos else [])  # type: ignore[assignment]
    tables = []
    for media in wanted:
        table = samples_of(store, release, phase_profile(recipe, index, media), "train", phase.subset)
        if table.num_rows == 0:
            of_subset = f" of the subset {phase.subset!r}" if phase.subset else ""
            raise UserError(
                f"phase {phase.name} trains on {media}s{of_subset}, but no kept training clip is one"
                + (
                    f"; label clips, change curation.policy.preference_subset, or set stage2.phases.{phase.name}.subset"
                    if of_subset
                    else ""
                )
            )
        tables.append(table)
    return tables


def engine_of(recipe: Recipe) -> EngineConfig:
    """The engine that the ranks of this job join with."""
    return recipe.stage2.engine


def train(request: RankRequest, recipe: Recipe, ranks: Ranks, progress: Callable[[int, int, str, str], None]) -> None:
    """One rank's work."""
    from flashvideo.models.vae import load_autoencoder
    from flashvideo.training.stage2 import Phase, train_stage2
    from pipelines.degraded_reads import DegradedReads, SharedAutoencoder
    from pipelines.latent_loader import LatentSamples

    text_shape = (recipe.text_encoder.max_length, recipe.text_encoder.embed_dim)

    vae = SharedAutoencoder(lambda: load_autoencoder(request.settings["vae"], recipe.vae, ranks.device))
    scale, config = request.settings["scale"], recipe.stage2.pixel_degradation

    def source(path: Path, index: int, keep: bool = False) -> LatentSamples:
        reads = None
        if degrades_while_training(recipe):
            kinds: tuple[Media, ...] = ("image", "video")
            reads = DegradedReads(recipe, {media: phase_profile(recipe, index, media) for media in kinds}, vae, ranks.device, keep)
        return LatentSamples(path, Path(request.root), scale, text_shape, config, reads)

    folders = [Path(folder) for folder in request.settings["phases"]]
    phases = [
        Phase(phase, folder, source(folder / TRAIN_FILE, index))
        for index, (phase, folder) in enumerate(zip(recipe.stage2.phases, folders, strict=True))
    ]
    held_out = source(Path(request.folder) / HELD_OUT_FILE, len(phases) - 1, keep=True)
    decode, folder = decoder_of(vae, scale), Path(request.folder)
    train_stage2(
        recipe.stage2, recipe.seed, phases, held_out, folder, ranks, progress, lambda latents: decode(latents)[0], request.provenance
    )


def shown_sheets(recipe: Recipe, phases: list[Path], folder: Path) -> None:
    """Copies each phase's first, middle and newest sheet into the job's folder, for the report: <place>-<phase>-step-<n>.jpg."""
    for place, (phase, path) in enumerate(zip(recipe.stage2.phases, phases, strict=True), 1):
        for sheet in ends_and_middle(sorted((path / SHEETS).glob("step-*.jpg"))):
            folder.mkdir(exist_ok=True)
            shutil.copyfile(sheet, folder / f"{place}-{phase.name}-{sheet.name}")


def join_losses(phases: list[Path], path: Path) -> None:
    """losses.jsonl of the job: the phases' lines, one after the other."""
    from flashvideo.training.metrics import write_lines

    write_lines(path, [line for phase in phases for line in (phase / "losses.jsonl").read_text().splitlines()])


def validation_by_phase(recipe: Recipe, phases: list[Path]) -> dict[str, float]:
    """Validation loss after each phase."""
    import json

    losses = [json.loads((phase / "phase.json").read_text())["validation"] for phase in phases]
    return dict(zip([phase.name for phase in recipe.stage2.phases], losses, strict=True))


if __name__ == "__main__":
    main("train_stage2", run)
