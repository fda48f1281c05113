"""The stand-in autoencoder and what both share. diffusers' class behind CogVideoXAutoencoder: test_diffusers_parity.py."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from flashvideo.config import VaeConfig
from flashvideo.models.vae import (
    LatentPosterior,
    PatchPcaAutoencoder,
    load_autoencoder,
    model_input_scale,
    pixels_to_video,
    video_to_pixels,
)
from flashvideo.models.weight_files import WeightsError


def waves(seed: int, frames: int = 9, height: int = 64, width: int = 96) -> npt.NDArray[np.uint8]:
    """A smooth clip: three colour waves that drift."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    clip = np.zeros((frames, height, width, 3))
    for channel in range(3):
        for _ in range(2):
            fx, fy, speed, phase = rng.uniform(-0.25, 0.25), rng.uniform(-0.25, 0.25), rng.uniform(-0.5, 0.5), rng.uniform(0, 6)
            for frame in range(frames):
                clip[frame, :, :, channel] += np.sin(fx * x + fy * y + speed * frame + phase)
    return (127.5 + 60 * clip).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def codec() -> PatchPcaAutoencoder:
    return PatchPcaAutoencoder.fit([waves(seed) for seed in range(16)])


def psnr_db(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(10 * torch.log10(4 / (a - b).square().mean()))


@pytest.mark.parametrize("frames", [1, 9, 17])
def test_unseen_smooth_clips_come_back_at_30_db_or_better(codec: PatchPcaAutoencoder, frames: int) -> None:
    video = pixels_to_video(waves(99, frames=frames))[None]
    latents = codec.encode(video).mean
    assert latents.shape == (1, (frames - 1) // 4 + 1, 16, 8, 12)
    decoded = codec.decode(latents)
    assert decoded.shape == video.shape
    assert psnr_db(decoded, video) >= 30


def test_what_the_basis_spans_comes_back_exactly(codec: PatchPcaAutoencoder) -> None:
    latents = torch.randn(2, 3, 16, 2, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(codec.encode(codec.decode(latents)).mean, latents, atol=1e-4, rtol=0)


def test_frames_of_a_group_and_patches_are_put_back_where_they_were(codec: PatchPcaAutoencoder) -> None:
    """A change in frame 5 (second group) in the patch at row 3, column 2 moves that latent only."""
    video = pixels_to_video(waves(5))[None]
    changed = video.clone()
    changed[:, :, 5, 24:32, 16:24] += 0.5
    moved = (codec.encode(changed).mean - codec.encode(video).mean).abs().sum(2)[0]
    assert moved[2, 3, 2] > 0.01
    moved[2, 3, 2] = 0
    assert moved.max() < 1e-5


def test_a_still_clip_has_latents_of_one_size_in_its_first_frame_and_after(codec: PatchPcaAutoencoder) -> None:
    still = np.repeat(waves(7, frames=1), 9, axis=0)
    power = codec.encode(pixels_to_video(still)[None]).mean.square().mean(dim=(0, 2, 3, 4))
    assert 0.8 < float(power[1] / power[0]) < 1.25


def test_fitting_is_deterministic_with_canonical_signs(codec: PatchPcaAutoencoder) -> None:
    again = PatchPcaAutoencoder.fit([waves(seed) for seed in range(16)])
    assert again.identity == codec.identity
    for name in ("first_basis", "group_basis"):
        basis = codec._state[name]
        assert (basis.gather(1, basis.abs().argmax(1, keepdim=True)) > 0).all()
        torch.testing.assert_close(basis @ basis.T, torch.eye(16), atol=1e-5, rtol=0)
    assert PatchPcaAutoencoder.fit([waves(seed) for seed in range(15)]).identity != codec.identity


def test_scaled_latents_have_unit_spread_by_one_global_factor(codec: PatchPcaAutoencoder) -> None:
    config = VaeConfig(kind="patch_pca", scale_stage1=None, scale_stage2=1.5)
    scale = model_input_scale(config, codec, 1)
    videos = torch.stack([pixels_to_video(waves(seed)) for seed in range(16)])
    scaled = codec.encode(videos).mean * scale
    assert 0.9 < scaled.std() < 1.1
    channels = scaled.std(dim=(0, 1, 3, 4))
    assert channels.max() / channels.min() > 2  # not whitened
    assert model_input_scale(config, codec, 2) == 1.5


def test_sampling_uses_one_generator_a_sample_and_stays_near_the_mean(codec: PatchPcaAutoencoder) -> None:
    posterior = codec.encode(torch.stack([pixels_to_video(waves(seed)) for seed in (1, 2)]))

    def generators(*seeds: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    sampled = posterior.sample(generators(1, 2))
    second = LatentPosterior(posterior.mean[1:], posterior.logvar[1:]).sample(generators(2))
    assert torch.equal(sampled[1:], second)
    assert 0 < (sampled - posterior.mean).abs().max() < 0.01
    wide = LatentPosterior(torch.zeros(1, 1, 16, 8, 8), torch.full((1, 1, 16, 8, 8), np.log(4.0))).sample(generators(0))
    assert 1.8 < wide.std() < 2.2  # std is exp(logvar / 2)


def test_saving_and_loading_keeps_the_latents(codec: PatchPcaAutoencoder, tmp_path: Path) -> None:
    codec.save(tmp_path)
    loaded = load_autoencoder(tmp_path, VaeConfig(kind="patch_pca"))
    assert loaded.identity == codec.identity and loaded.is_stand_in and loaded.name == "PatchPcaAutoencoder"
    video = pixels_to_video(waves(3))[None]
    assert torch.equal(loaded.encode(video).mean, codec.encode(video).mean)


def test_tensors_other_than_config_says_are_refused(codec: PatchPcaAutoencoder, tmp_path: Path) -> None:
    codec.save(tmp_path)
    PatchPcaAutoencoder.fit([waves(50)]).save(tmp_path / "other")
    (tmp_path / "other" / "patch_pca.safetensors").replace(tmp_path / "patch_pca.safetensors")
    with pytest.raises(WeightsError, match="identity"):
        load_autoencoder(tmp_path, VaeConfig(kind="patch_pca"))


@pytest.mark.parametrize("shape", [(1, 3, 6, 64, 64), (1, 3, 8, 64, 64), (1, 3, 9, 60, 64), (1, 1, 9, 64, 64)], ids=str)
def test_videos_of_the_wrong_size_are_refused(codec: PatchPcaAutoencoder, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="need"):
        codec.encode(torch.zeros(shape))


def test_five_frames_are_two_latents_and_five_frames_again(codec: PatchPcaAutoencoder) -> None:
    latents = codec.encode(pixels_to_video(waves(3, frames=5))[None]).mean
    assert latents.shape[1] == 2 and codec.decode(latents).shape[2] == 5


def test_latents_without_frames_are_refused(codec: PatchPcaAutoencoder) -> None:
    with pytest.raises(ValueError, match="at least one frame"):
        codec.decode(torch.zeros(1, 0, 16, 4, 4))


def test_fitting_on_images_only_says_what_is_missing() -> None:
    with pytest.raises(ValueError, match="none of 2 clips has 5 frames"):
        PatchPcaAutoencoder.fit([waves(1, frames=1), waves(2, frames=1)])


def test_pixels_survive_the_way_to_video_and_back() -> None:
    clip = waves(1)
    assert np.array_equal(video_to_pixels(pixels_to_video(clip)), clip)
    assert pixels_to_video(np.array([[[[0, 255, 128]]]], np.uint8)).flatten().tolist() == pytest.approx([-1, 1, 128 / 127.5 - 1], abs=1e-6)
