import json
from pathlib import Path

import numpy as np
import pytest
import torch
from latent_root import FULL, NUM_CLIPS, PATCH, context_of, finish, latent_recipe, make_latent_root, pixels_psnr_db
from safetensors import safe_open

from curation.store import Store
from curation.video import read_clip
from flashvideo.models.vae import PatchPcaAutoencoder, video_to_pixels
from pipelines.artifacts import Report, Workspace
from pipelines.job import UserError
from pipelines.latent_plan import latent_profiles, motion_word, stage2_text
from pipelines.precompute_latents import run

RECIPE = latent_recipe()
VARIANTS = 1 + RECIPE.stage2.pixel_degradation.cached_variants


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_latent_root(tmp_path_factory.mktemp("latents"))


@pytest.fixture(scope="module")
def report(root: Workspace) -> Report:
    context = context_of("precompute_latents", root, RECIPE)
    return finish(context, run(context))


def rows_of(root: Workspace) -> list[dict[str, object]]:
    return Store.open(root.store).read("latents").to_pylist()


def tensor_of(root: Workspace, row: dict[str, object]) -> torch.Tensor:
    with safe_open(root.root / str(row["shard"]), framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(str(row["tensor"]))
    return tensor


def vae_of(root: Workspace, report: Report) -> PatchPcaAutoencoder:
    return PatchPcaAutoencoder.from_folder(root.root / report.outputs["vae"])


def test_every_clip_has_every_variant_that_training_reads(root: Workspace, report: Report) -> None:
    counts: dict[str, int] = {}
    for row in rows_of(root):
        name = "/".join(str(row["profile"]).split("/")[1:4])
        counts[name] = counts.get(name, 0) + 1
    assert counts == {
        "stage1/video/9x32x48": 5,  # four training videos and the held-out one
        "stage2/image/1x32x48": 5 * 2 * VARIANTS,  # the still and four middle frames, two crops each
        "stage2/video/9x32x48": 4 * 2 * VARIANTS,
        "stage2/video/9x64x96": 5 * VARIANTS,
    }
    assert report.counts["latents"] == sum(counts.values()) and report.counts["failed"] == 0


def test_clean_latents_decode_to_the_clip(root: Workspace, report: Report) -> None:
    row = next(row for row in rows_of(root) if "9x64x96" in str(row["profile"]) and row["variant"] == "clean")
    clip = Store.open(root.store).read("clips", ["uri", "start_us", "end_us"], f"clip_id = '{row['clip_id']}'").to_pylist()[0]
    pixels, times = read_clip(clip["uri"], clip["start_us"], clip["end_us"], 8.0, 9, 64, 96)
    mean, logvar = tensor_of(root, row).float()
    decoded = video_to_pixels(vae_of(root, report).decode(mean[None])[0])
    assert list(mean.shape) == row["shape"] == [3, 16, 8, 12] and logvar.shape == mean.shape
    assert row["frame_times_us"] == times.tolist()
    assert pixels_psnr_db(decoded, pixels) > 18  # noisy blocks; another clip would give 11


def test_a_crop_is_the_part_of_the_picture_that_its_row_names(root: Workspace, report: Report) -> None:
    profile = next(profile for profile in latent_profiles(RECIPE) if profile.is_crop and profile.media == "video")
    assert profile.picture == FULL and profile.shape == PATCH
    row = next(
        row
        for row in rows_of(root)
        if "video/9x32x48" in str(row["profile"]) and row["variant"] == "crop1/clean" and "stage2" in str(row["profile"])
    )
    clip = Store.open(root.store).read("clips", ["uri", "start_us", "end_us"], f"clip_id = '{row['clip_id']}'").to_pylist()[0]
    pixels, _ = read_clip(clip["uri"], clip["start_us"], clip["end_us"], 8.0, 9, 64, 96)
    x, y, width, height = (round(value * 64 / 96) for value in row["crop_px"])  # the 144x96 source is read at 96x64
    assert (height, width) == (32, 48) and x % 8 == y % 8 == 0
    decoded = video_to_pixels(vae_of(root, report).decode(tensor_of(root, row)[0].float()[None])[0])
    assert pixels_psnr_db(decoded, pixels[:, y : y + 32, x : x + 48]) > 18
    other = pixels[:, (y + 16) % 32 : (y + 16) % 32 + 32, x : x + 48]
    assert pixels_psnr_db(decoded, other) < 16


def test_degraded_copies_are_softer_and_tell_how_they_were_made(root: Workspace, report: Report) -> None:
    vae = vae_of(root, report)
    whole = {str(row["variant"]): row for row in rows_of(root) if "9x64x96" in str(row["profile"]) and str(row["clip_id"]).endswith("1")}
    assert sorted(whole) == ["clean", *(f"degraded{number}" for number in range(VARIANTS - 1))]
    detail = {}
    for name, row in whole.items():
        decoded = vae.decode(tensor_of(root, row)[0].float()[None])
        detail[name] = (decoded[..., 1:] - decoded[..., :-1]).abs().mean().item()
    weak = json.loads(str(whole["degraded0"]["degradation"]))
    assert weak["branch"] == "weak" and weak["key"][2] == 0 and whole["clean"]["degradation"] is None
    assert detail["degraded0"] < 0.8 * detail["clean"]


def test_an_interrupted_run_goes_on_with_the_missing_units(root: Workspace, report: Report) -> None:
    context = context_of("precompute_latents", root, RECIPE)
    shards = sorted(context.folder.glob("shard-*.safetensors"))
    assert len(shards) >= 3
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in shards}
    shards[1].with_suffix(".json").unlink()
    again = run(context)
    assert again.digest == report.digest and again.counts == report.counts
    for path in shards:
        assert path.read_bytes() == before[path.name][1]
        assert (path.stat().st_mtime_ns == before[path.name][0]) == (path != shards[1])


def test_equal_sources_give_an_equal_digest_in_another_root(root: Workspace, report: Report, tmp_path: Path) -> None:
    other = make_latent_root(tmp_path)
    again = run(context_of("precompute_latents", other, RECIPE))
    assert again.digest == report.digest
    changed = latent_recipe(seed=1)
    assert run(context_of("precompute_latents", other, changed)).digest != report.digest


def test_a_clip_that_cannot_be_read_is_an_error_row(tmp_path: Path) -> None:
    workspace = make_latent_root(tmp_path)
    (tmp_path / "sources" / "clip2.mp4").write_bytes(b"no video")
    report = run(context_of("precompute_latents", workspace, RECIPE))
    errors = Store.open(workspace.store).read("errors", ["clip_id", "job", "resolved"]).to_pylist()
    assert errors == [{"clip_id": f"{2:032x}", "job": "precompute_latents", "resolved": False}]
    assert report.counts["failed"] == 1 and report.counts["clips"] == NUM_CLIPS - 1


def test_phases_of_images_need_images(tmp_path: Path) -> None:
    recipe = latent_recipe(latents=RECIPE.latents.model_copy(update={"video_frames_as_images": False}))
    workspace = make_latent_root(tmp_path, media_type="video", end_us=1_250_000)
    with pytest.raises(UserError, match=r"training reads stage2/image/1x32x48, .* none .* latents.video_frames_as_images=true"):
        run(context_of("precompute_latents", workspace, recipe))


def test_an_encoder_that_is_missing_is_named_before_anything_is_encoded(root: Workspace) -> None:
    degradation = RECIPE.stage2.pixel_degradation.model_copy(update={"video_codecs": {"libx264": 1.0, "libx999": 1.0}})
    recipe = latent_recipe(stage2=RECIPE.stage2.model_copy(update={"pixel_degradation": degradation}))
    with pytest.raises(UserError, match=r"no encoder libx999; take it out of stage2.pixel_degradation.video_codecs"):
        run(context_of("precompute_latents", root, recipe))


@pytest.mark.parametrize(("score", "word"), [(0.5, "very low"), (2.0, "low"), (5.0, "medium"), (9.0, "high"), (30.0, "very high")])
def test_motion_words_follow_the_edges(score: float, word: str) -> None:
    clip = {"media_type": "video", "motion_raft": None, "motion_proxy": score, "caption": "a cat"}
    assert motion_word(clip, RECIPE.latents) == word
    assert stage2_text(clip, RECIPE.latents, "video") == f"{word} motion,a cat"
    assert stage2_text(clip, RECIPE.latents, "image") == "a cat"


def test_the_report_says_what_was_made(report: Report, root: Workspace) -> None:
    assert report.models["vae"] == "PatchPcaAutoencoder (stand-in)" and "stand-in" in report.models["text_encoder"]
    assert report.headline["scale_stage1"] == pytest.approx(1 / report.headline["latent_std"])
    assert report.headline["codec_psnr_db"] > 15
    assert np.isclose(
        report.headline["bytes"], sum(path.stat().st_size for path in (root.root / report.outputs["shards"]).glob("*.safetensors"))
    )
