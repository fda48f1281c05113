"""Degraded ends made while training: the latents that precompute_latents would have kept, trained on by any number of threads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from latent_root import context_of, finish, latent_recipe, make_latent_root
from safetensors import safe_open

from curation.store import Store
from flashvideo.models.vae import load_autoencoder
from flashvideo.objectives.degradation import draw_degradation
from flashvideo.training.batches import seeded
from flashvideo.training.metrics import read_losses
from pipelines import precompute_latents, train_stage2
from pipelines.artifacts import Report, Workspace
from pipelines.degraded_reads import DegradedReads, SharedAutoencoder
from pipelines.latent_loader import LatentSamples
from pipelines.latent_plan import phase_profile
from pipelines.plan import job_spec
from pipelines.recipe import Recipe, fingerprint
from pipelines.sample_lists import Release, samples_of, write_samples

CPU = torch.device("cpu")


def recipe(copies: str, **engine: Any) -> Recipe:
    """Every copy of a clip but the first is strong, and every second read is."""
    plain = latent_recipe()
    degradation = plain.stage2.pixel_degradation.model_copy(update={"copies": copies, "strong_probability": 0.5})
    settings = plain.stage2.engine.model_copy(update=engine)
    return latent_recipe(stage2=plain.stage2.model_copy(update={"pixel_degradation": degradation, "engine": settings}))


FLY, KEPT = recipe("on_the_fly"), recipe("cached")


def encoded(folder: Path, of: Recipe) -> tuple[Workspace, Report]:
    workspace = make_latent_root(folder)
    context = context_of("precompute_latents", workspace, of)
    return workspace, finish(context, precompute_latents.run(context))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Report]:
    return encoded(tmp_path_factory.mktemp("on_the_fly"), FLY)


def rows_of(workspace: Workspace, phase: int, media: str) -> list[dict[str, Any]]:
    release = Release.read(Store.open(workspace.store), FLY, context_of("train_stage2", workspace, FLY).upstream)
    rows: list[dict[str, Any]] = samples_of(Store.open(workspace.store), release, phase_profile(FLY, phase, media), "train").to_pylist()
    return rows


def reads_of(workspace: Workspace, report: Report, phase: int, keep: bool = False) -> DegradedReads:
    vae = SharedAutoencoder(lambda: load_autoencoder(workspace.root / report.outputs["vae"], FLY.vae))
    return DegradedReads(FLY, {media: phase_profile(FLY, phase, media) for media in ("image", "video")}, vae, CPU, keep)


def test_clean_latents_alone_are_kept_and_do_not_depend_on_the_degradation(root: tuple[Workspace, Report]) -> None:
    variants = Store.open(root[0].store).read("latents", ["variant"])["variant"].to_pylist()
    assert {variant.rpartition("/")[2] for variant in variants} == {"clean"}
    for of, same in ((FLY, True), (KEPT, False)):
        blurred = of.stage2.pixel_degradation.model_copy(update={"blur_sigma_1": (1.0, 2.0)})
        other = latent_recipe(stage2=of.stage2.model_copy(update={"pixel_degradation": blurred}))
        assert (
            fingerprint(job_spec("precompute_latents").settings(other)) == fingerprint(job_spec("precompute_latents").settings(of))
        ) == same
        assert train_stage2.phase_fingerprints(other, "latents")[0] != train_stage2.phase_fingerprints(of, "latents")[0] or not same


def test_equal_draws_give_the_latents_that_would_have_been_kept(root: tuple[Workspace, Report], tmp_path: Path) -> None:
    """Whole pictures, crops of videos, and crops of the middle frame of a video and of a still."""
    workspace, _ = encoded(tmp_path, KEPT)
    kept = {
        (row["clip_id"], row["profile"].split("/", 1)[1].rpartition("/8fps")[0], row["variant"]): row
        for row in Store.open(workspace.store).read("latents").to_pylist()
    }
    compared = 0
    for phase, media in ((0, "image"), (1, "video"), (2, "video")):
        reads = reads_of(*root, phase)
        for row in rows_of(root[0], phase, media)[-2:]:
            for variant, branch in ((0, "weak"), (1, "strong")):
                latents, record = reads.made(row, variant, branch)
                copy = f"degraded{variant}" if row["crop"] is None else f"crop{row['crop']}/degraded{variant}"
                stored = kept[row["clip"]["clip_id"], phase_profile(FLY, phase, media).name, copy]
                with safe_open(workspace.root / stored["shard"], framework="pt") as file:
                    assert torch.equal(latents, file.get_tensor(stored["tensor"]))
                assert json.loads(stored["degradation"])["key"] == record["key"] and record["branch"] == branch
                compared += 1
    assert compared == 12


def test_a_read_is_its_generators_and_its_record_gives_the_draw_again(root: tuple[Workspace, Report], tmp_path: Path) -> None:
    workspace, report = root
    path = write_samples(tmp_path / "samples.arrow", [samples_of_phase(workspace)])
    degradation = FLY.stage2.pixel_degradation
    samples = LatentSamples(path, workspace.root, 1.0, (16, 64), degradation, reads_of(workspace, report, 2))
    held = LatentSamples(path, workspace.root, 1.0, (16, 64), degradation, reads_of(workspace, report, 2, keep=True))
    first, again, kept, other = (
        source.read("video", 1, seeded(seed)) for source, seed in ((samples, 1), (samples, 1), (held, 1), (samples, 2))
    )
    assert first.degraded is not None and again.degraded is not None and kept.degraded is not None and other.degraded is not None
    assert torch.equal(first.degraded, again.degraded) and torch.equal(first.degraded, kept.degraded)
    assert not torch.equal(first.degraded, other.degraded) and torch.equal(held.read("video", 1, seeded(1)).clean, first.clean)
    record = first.degradation
    assert record is not None and record == again.degradation and record["sample_id"] == f"{1:032x}"
    seed, name, variant = record["key"]
    assert name == f"{1:032x}/video"
    assert draw_degradation(degradation, seed=seed, sample_id=name, variant=variant, num_frames=9).branch == record["branch"]


def samples_of_phase(workspace: Workspace) -> Any:
    release = Release.read(Store.open(workspace.store), FLY, context_of("train_stage2", workspace, FLY).upstream)
    return samples_of(Store.open(workspace.store), release, phase_profile(FLY, 2, "video"), "train")


def trained(folder: Path, of: Recipe) -> tuple[list[dict[str, Any]], list[dict[str, Any]], str]:
    """Lines of losses, of degradations, and the digest of the weights."""
    workspace, _ = encoded(folder, of)
    context = context_of("train_stage2", workspace, of)
    report = train_stage2.run(context)
    names = train_stage2.phase_fingerprints(of, context.upstream["precompute_latents"].digest)
    drawn = [line for name in names for line in read_losses(context.folder.parent / "phases" / name / "degradations.jsonl")]
    return read_losses(context.folder / "losses.jsonl"), drawn, report.digest


def test_training_records_its_draws_and_loader_threads_change_nothing(tmp_path: Path) -> None:
    losses, drawn, digest = trained(tmp_path / "none", FLY)
    assert [line["train_step"] for line in drawn] == [line["train_step"] for line in losses] == [1, 2, 3, 1, 2, 3, 1, 2, 3, 4]
    assert [len(line["samples"]) for line in drawn] == [4] * 6 + [2] * 4
    variants = [tuple(sample["key"]) for line in drawn for sample in line["samples"]]
    assert len(set(variants)) == len(variants) == 32  # a new draw at every read
    assert {sample["branch"] for line in drawn for sample in line["samples"]} == {"weak", "strong"}
    more = trained(tmp_path / "two", recipe("on_the_fly", loader_workers=2))
    assert [line["loss"] for line in more[0]] == [line["loss"] for line in losses]
    assert more[1:] == (drawn, digest)
