"""The training jobs on a small root: from the store's latents to adapters, phases and reports."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from latent_root import FULL, PATCH, TAG, context_of, finish, latent_recipe, make_latent_root
from PIL import Image
from safetensors.torch import load_file

from curation.store import Store
from flashvideo.models.lora import load_stage1
from flashvideo.models.transformer import load_transformer
from flashvideo.models.vae import load_autoencoder
from flashvideo.training.batches import seeded
from flashvideo.training.metrics import read_losses
from pipelines import precompute_latents, train_stage1, train_stage2
from pipelines.artifacts import Workspace
from pipelines.job import UserError
from pipelines.latent_loader import LatentSamples
from pipelines.latent_plan import phase_profile, stage1_profile
from pipelines.plan import job_spec
from pipelines.recipe import Recipe, fingerprint
from pipelines.sample_lists import Release, held_out_samples, samples_of, write_samples
from pipelines.trained_models import vae_folder

RECIPE = latent_recipe()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = make_latent_root(tmp_path_factory.mktemp("training"))
    context = context_of("precompute_latents", workspace, RECIPE)
    finish(context, precompute_latents.run(context))
    return workspace


def release_of(root: Workspace, recipe: Recipe = RECIPE) -> tuple[Store, Release, float]:
    context = context_of("train_stage2", root, recipe)
    store = Store.open(root.store)
    return store, Release.read(store, recipe, context.upstream), float(context.upstream["precompute_latents"].headline["scale_stage2"])


def test_samples_are_clips_or_crops_of_the_split_and_subset(root: Workspace) -> None:
    store, release, _ = release_of(root)
    assert samples_of(store, release, stage1_profile(RECIPE), "train").num_rows == 4
    crops = samples_of(store, release, phase_profile(RECIPE, 1, "video"), "train")
    assert crops["sample_id"].to_pylist()[:2] == [f"{0:032x}/crop0", f"{0:032x}/crop1"] and crops.num_rows == 8
    assert [len(tensors) for tensors in crops["degraded_tensors"].to_pylist()] == [RECIPE.stage2.pixel_degradation.cached_variants] * 8
    whole = samples_of(store, release, phase_profile(RECIPE, 2, "video"), "train", subset="preference")
    assert whole["sample_id"].to_pylist() == [f"{0:032x}"]
    held_out, what = held_out_samples(store, release, phase_profile(RECIPE, 2, "video"))
    assert held_out["sample_id"].to_pylist() == [f"{4:032x}"] and what == "held-out clips"


def test_a_sample_is_the_scaled_latents_with_its_generators_draws(root: Workspace, tmp_path: Path) -> None:
    store, release, scale = release_of(root)
    table = samples_of(store, release, phase_profile(RECIPE, 2, "video"), "train")
    samples = LatentSamples(write_samples(tmp_path / "samples.arrow", [table]), root.root, scale, (16, 64), RECIPE.stage2.pixel_degradation)
    first, again, other = (samples.read("video", 1, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.clean, again.clean) and not torch.equal(first.clean, other.clean)
    row = table.to_pylist()[1]
    mean = load_file(root.root / row["clean_shard"])[row["clean_tensor"]][0].float()
    assert first.clean.shape == FULL.latent_shape[:1] + (16,) + FULL.latent_shape[1:]
    assert torch.allclose(first.clean, mean * scale, atol=0.02)  # the stand-in's posterior is narrow
    picked = set()
    for seed in range(40):
        degraded = samples.read("video", 1, seeded(seed)).degraded
        assert degraded is not None
        distances = [
            (load_file(root.root / shard)[tensor][0].float() * scale - degraded).abs().max().item()
            for shard, tensor in zip(row["degraded_shards"], row["degraded_tensors"], strict=True)
        ]
        picked.add(distances.index(min(distances)))
        assert min(distances) < 0.02
    assert picked == set(range(RECIPE.stage2.pixel_degradation.cached_variants))


def test_stage2_reads_the_motion_word_and_stage1_the_caption(root: Workspace, tmp_path: Path) -> None:
    store, release, scale = release_of(root)
    texts = []
    for profile in (stage1_profile(RECIPE), phase_profile(RECIPE, 2, "video")):
        table = samples_of(store, release, profile, "train")
        path = write_samples(tmp_path / "samples.arrow", [table])
        degradation = RECIPE.stage2.pixel_degradation if profile.stage == 2 else None
        texts.append(LatentSamples(path, root.root, scale, (16, 64), degradation).read("video", 0, seeded(0)).text)
    assert texts[0].shape == texts[1].shape == (16, 64)
    assert texts[0].any() and not torch.equal(*texts)


def test_a_clip_without_a_caption_trains_the_unconditional_branch(root: Workspace, tmp_path: Path) -> None:
    store, release, scale = release_of(root)
    release.clips[f"{0:032x}"]["caption"] = None
    table = samples_of(store, release, stage1_profile(RECIPE), "train")
    sample = LatentSamples(write_samples(tmp_path / "s.arrow", [table]), root.root, scale, (16, 64)).read("video", 0, seeded(0))
    assert sample.text.shape == (16, 64) and not sample.text.any()


def test_stage1_leaves_an_adapter_that_loads_and_its_losses(root: Workspace) -> None:
    context = context_of("train_stage1", root, RECIPE)
    report = finish(context, train_stage1.run(context))
    model = load_stage1(context.folder / "stage1")
    assert model.config.num_layers == 1
    assert [line["train_step"] for line in read_losses(context.folder / "losses.jsonl")] == [1, 2, 3, 4]
    validation = json.loads((context.folder / "validation.json").read_text())
    assert report.headline["validation_before"] == validation["before"] and validation["samples"] == 1
    assert report.headline["validated_on"] == "held-out clips" and report.outputs["tag"] == TAG
    sampling = json.loads((context.folder / "samples" / "sampling.json").read_text())
    assert (sampling["num_steps"], sampling["guidance_scale"], sampling["sample_ids"]) == (10, 2.0, [f"{4:032x}"])
    with Image.open(context.folder / "samples" / "step-00000004.jpg") as sheet:  # sampled, then true: first, middle, last frame
        grey = np.asarray(sheet.convert("L")).astype(float)
    assert grey.shape == (PATCH.height, 6 * PATCH.width)
    scale = float(context.upstream["precompute_latents"].headline["scale_stage1"])
    held_out = LatentSamples(context.folder / train_stage1.HELD_OUT_FILE, root.root, scale, (16, 64)).read("video", 0, seeded(0))
    clip = train_stage1.decoder_of(load_autoencoder(vae_folder(root, context.upstream), RECIPE.vae), scale)(held_out.clean[None])
    for part, place in zip(np.split(grey, 6, axis=1)[3:], (0, PATCH.frames // 2, PATCH.frames - 1), strict=True):
        assert np.abs(part - np.asarray(Image.fromarray(clip[place]).convert("L"))).mean() < 4 < part.std()
    (newest,) = (context.folder / "checkpoints").glob("step-00000004")
    facts = json.loads((newest / "checkpoint.json").read_text())["facts"]
    assert facts["tag"] == TAG and Recipe.model_validate(facts["recipe"]) == context.recipe
    assert facts["order"]["num_videos"] == 4 and facts["order"]["phase"] == "stage1"
    again = train_stage1.run(context)  # relaunched after its end: nothing is trained, the same is reported
    assert again.digest == report.digest


def test_stage2_trains_its_phases_and_a_changed_last_phase_keeps_the_others(root: Workspace) -> None:
    context = context_of("train_stage2", root, RECIPE)
    report = finish(context, train_stage2.run(context))
    assert report.counts["phases"] == 3 and report.counts["phases_reused"] == 0
    lines = read_losses(context.folder / "losses.jsonl")
    assert [line["phase"] for line in lines] == ["images"] * 3 + ["patches"] * 3 + ["preference"] * 4
    assert load_transformer(context.folder / "stage2").config.noise_strength_embedding
    assert list(report.headline["validation_by_phase"]) == ["images", "patches", "preference"]
    sheets = sorted(path.name for path in (context.folder / "samples").iterdir())
    assert sheets == ["1-images-step-00000003.jpg", "2-patches-step-00000003.jpg", "3-preference-step-00000004.jpg"]
    with Image.open(context.folder / "samples" / sheets[-1]) as sheet:  # degraded, enhanced, true
        pixels = np.asarray(sheet.convert("RGB")).astype(float)
    assert pixels.shape == (FULL.height, 3 * FULL.width, 3)
    degraded, _, true = np.split(pixels, 3, axis=1)
    assert np.abs(np.diff(true, axis=1)).mean() > 1.2 * np.abs(np.diff(degraded, axis=1)).mean()

    longer = RECIPE.stage2.phases[-1].model_copy(update={"iterations": 5})
    changed = latent_recipe(stage2=RECIPE.stage2.model_copy(update={"phases": (*RECIPE.stage2.phases[:-1], longer)}))
    second = context_of("train_stage2", root, changed)
    kept = train_stage2.run(second)
    assert kept.counts["phases_reused"] == 2 and kept.digest != report.digest
    assert read_losses(second.folder / "losses.jsonl")[:6] == lines[:6]


def test_other_ranks_and_watching_go_on_in_the_same_folders_and_other_precision_does_not() -> None:
    def with_engine(**settings: Any) -> Recipe:
        stages = {name: getattr(RECIPE, name) for name in ("stage1", "stage2")}
        return latent_recipe(
            **{name: stage.model_copy(update={"engine": stage.engine.model_copy(update=settings)}) for name, stage in stages.items()}
        )

    def names(recipe: Recipe) -> list[str]:
        jobs = [fingerprint(job_spec(name).settings(recipe)) for name in ("train_stage1", "train_stage2")]
        return jobs + train_stage2.phase_fingerprints(recipe, "x")

    for settings in ({"log_every": 7}, {"num_ranks": 2}, {"zero_stage": 1}, {"loader_workers": 2}):
        assert names(with_engine(**settings)) == names(RECIPE)
    assert not set(names(with_engine(precision="bf16"))) & set(names(RECIPE))


def test_an_empty_subset_says_what_to_change(root: Workspace) -> None:
    last = RECIPE.stage2.phases[-1].model_copy(update={"subset": "nobody"})
    recipe = latent_recipe(stage2=RECIPE.stage2.model_copy(update={"phases": (*RECIPE.stage2.phases[:-1], last)}))
    with pytest.raises(UserError, match=r"phase preference trains on videos of the subset 'nobody'.*stage2.phases.preference.subset"):
        train_stage2.run(context_of("train_stage2", root, recipe))
