import itertools
import json
import math
from collections import Counter

import pytest
import torch

from flashvideo.config import PixelDegradationConfig
from flashvideo.objectives.degradation import (
    Blur,
    Codec,
    Degradation,
    DegradationError,
    Draws,
    Jpeg,
    Noise,
    Resize,
    blur_by,
    compress_video,
    convolve,
    draw_degradation,
    gaussian_kernel,
    jpeg,
    poisson_noise,
    resize,
    sinc_kernel,
)

CONFIG = PixelDegradationConfig()
ALWAYS_STRONG = PixelDegradationConfig(strong_probability=1.0)


def scene(frames: int = 3, height: int = 36, width: int = 50) -> torch.Tensor:
    """A smooth picture with some texture, moving a little: T C H W in [0, 1]."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    waves = [0.5 + 0.3 * torch.sin((x + t) / 3.0) * torch.cos(y / 5.0) for t in range(frames)]
    return torch.stack(waves)[:, None].repeat(1, 3, 1, 1) * torch.tensor([1.0, 0.8, 0.6]).view(1, 3, 1, 1)


def drawn(config: PixelDegradationConfig, number: int, variant: int = 1, frames: int = 3, strength: float = 1.0) -> Degradation:
    return draw_degradation(config, seed=5, sample_id=f"clip{number}", variant=variant, num_frames=frames, strength=strength)


def test_the_weak_branch_is_one_resize_with_the_recorded_factor() -> None:
    degradation = draw_degradation(ALWAYS_STRONG, seed=5, sample_id="clip1", variant=0, num_frames=3, branch="weak")
    (operation,) = degradation.operations
    assert degradation.branch == "weak" and isinstance(operation, Resize)
    factor = 1 / operation.scale
    assert 4 <= factor <= 8
    assert torch.equal(degradation.apply(scene()), blur_by(scene(), factor))


def test_equal_keys_give_equal_pixels_and_other_variants_do_not() -> None:
    for number in range(12):
        once, again, other = (drawn(ALWAYS_STRONG, number, variant).apply(scene()) for variant in (1, 1, 2))
        assert torch.equal(once, again)
        assert not torch.equal(once, other)


@pytest.mark.parametrize("frames", [1, 3])
def test_the_strong_branch_keeps_size_and_range(frames: int) -> None:
    for number in range(12):
        worse = drawn(ALWAYS_STRONG, number, frames=frames).apply(scene(frames, 37, 51))
        assert worse.shape == (frames, 3, 37, 51)
        assert worse.min() >= 0 and worse.max() <= 1
        assert not torch.equal(worse, scene(frames, 37, 51))


def test_draws_follow_the_configured_shares_and_ranges() -> None:
    many = [drawn(CONFIG, number) for number in range(2_000)]
    strong = [entry for entry in many if entry.branch == "strong"]
    assert len(strong) / len(many) == pytest.approx(0.5, abs=0.04)
    factors = [1 / entry.operations[0].scale for entry in many if entry.branch == "weak" and isinstance(entry.operations[0], Resize)]
    assert min(factors) >= 4 and max(factors) <= 8 and sum(factors) / len(factors) == pytest.approx(6, abs=0.15)
    kinds = Counter(entry.operations[0].kind for entry in strong if isinstance(entry.operations[0], Blur))
    for kind, share in CONFIG.blur_kernels.items():
        assert kinds[kind] / len(strong) == pytest.approx(share, abs=0.05)
    codecs = [operation for entry in strong for operation in entry.operations if isinstance(operation, Codec)]
    assert all(0.05 <= codec.bits_per_pixel <= 0.5 for codec in codecs)
    assert {codec.name for codec in codecs} == set(CONFIG.video_codecs)


def test_images_are_never_sent_through_a_video_codec_and_always_through_jpeg() -> None:
    for number in range(50):
        operations = drawn(ALWAYS_STRONG, number, frames=1).operations
        assert sum(isinstance(operation, Jpeg) for operation in operations) == 3  # both orders and the last compression
        assert not any(isinstance(operation, Codec) for operation in operations)


def test_strength_narrows_the_ranges_from_the_mild_end() -> None:
    for number in range(100):
        for operation in drawn(ALWAYS_STRONG, number, strength=0.5).operations:
            if isinstance(operation, Noise) and operation.kind == "gaussian":
                assert max(operation.strength) <= 1 + (30 - 1) / 2
            if isinstance(operation, Jpeg):
                assert min(operation.quality) >= 95 - (95 - 30) / 2
            if isinstance(operation, Blur) and operation.kind != "sinc":
                assert max(operation.sigma_x) <= 0.2 + (3.0 - 0.2) / 2


def test_a_walk_stays_in_its_range_and_moves_by_at_most_its_step() -> None:
    values = Draws("walk").walk(0.0, 1.0, 0.2, 500)
    assert min(values) >= 0 and max(values) <= 1
    steps = [abs(after - before) for before, after in itertools.pairwise(values)]
    assert 0.1 < max(steps) <= 0.2


def test_gaussian_kernels_sum_to_one_and_turn() -> None:
    wide = gaussian_kernel(11, 3.0, 1.0, 0.0, 1.0, plateau=False)
    tall = gaussian_kernel(11, 3.0, 1.0, math.pi / 2, 1.0, plateau=False)
    assert wide.sum().item() == pytest.approx(1, abs=1e-6)
    assert torch.allclose(wide.T, tall, atol=1e-7)
    assert wide[5, 7] / wide[5, 5] == pytest.approx(math.exp(-0.5 * (2 / 3) ** 2), rel=1e-5)


def test_the_sinc_kernel_keeps_slow_waves_and_stops_fast_ones() -> None:
    kernel = sinc_kernel(21, math.pi / 3)[None]
    x = torch.arange(64.0).expand(1, 3, 64, 64)
    for frequency, passes in ((math.pi / 12, True), (math.pi * 0.75, False)):
        wave = 0.5 + 0.4 * torch.cos(frequency * x)
        kept = convolve(wave, kernel)[0, 0, 32, 12:52].std() / wave[0, 0, 32, 12:52].std()
        assert kept > 0.9 if passes else kept < 0.1


def test_a_kernel_of_one_pixel_changes_nothing() -> None:
    kernel = torch.zeros(3, 5, 5)
    kernel[:, 2, 2] = 1
    assert torch.allclose(convolve(scene(), kernel), scene(), atol=1e-6)


def test_poisson_noise_has_no_bias_and_grows_with_light() -> None:
    generator = torch.Generator().manual_seed(0)
    dark, bright = torch.full((1, 3, 200, 200), 0.1), torch.full((1, 3, 200, 200), 0.9)
    noises = [poisson_noise(light, generator) for light in (dark, bright)]
    assert abs(noises[1].mean().item()) < 0.01
    assert noises[1].std() / noises[0].std() == pytest.approx(3, rel=0.05)  # sqrt(0.9 / 0.1)


def test_jpeg_is_milder_at_higher_quality() -> None:
    errors = [(jpeg(scene(1), [quality]) - scene(1)).square().mean() for quality in (20, 90)]
    assert 0 < errors[1] < errors[0] / 2


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_video_compression_keeps_frames_and_size_and_costs_quality(codec: str) -> None:
    clip = scene(9, 65, 81)
    errors = []
    for bits_per_pixel in (0.1, 4.0):
        worse = compress_video(clip, codec, bits_per_pixel)
        assert worse.shape == clip.shape
        errors.append((worse - clip).square().mean().item())
    assert 0 < errors[1] < errors[0]
    assert torch.equal(compress_video(clip, codec, 0.2), compress_video(clip, codec, 0.2))


def test_an_encoder_that_is_not_there_is_named() -> None:
    with pytest.raises(DegradationError, match=r"no encoder libx999.*video_codecs"):
        compress_video(scene(), "libx999", 0.1)


def test_a_video_of_another_layout_is_refused() -> None:
    with pytest.raises(DegradationError, match="float T 3 H W"):
        drawn(CONFIG, 0).apply(torch.zeros(3, 36, 50, 3))


def test_blur_by_lowers_detail_and_leaves_flat_pictures() -> None:
    flat = torch.full((2, 3, 32, 48), 0.25)
    assert torch.allclose(blur_by(flat, 8.0), flat, atol=1e-6)
    assert blur_by(scene(), 8.0).std() < blur_by(scene(), 2.0).std() < scene().std()


def test_resizing_to_the_same_size_is_nothing() -> None:
    assert resize(scene(), 36, 50, "bicubic") is not None
    assert torch.equal(resize(scene(), 36, 50, "bicubic"), scene())


def test_the_record_is_json_with_every_operation() -> None:
    degradation = drawn(ALWAYS_STRONG, 3)
    record = json.loads(json.dumps(degradation.record()))
    assert record["recipe"] == "deg_pixel_v1" and record["key"] == [5, "clip3", 1]
    assert len(record["operations"]) == len(degradation.operations)
    assert record["operations"][0]["operation"] == "blur" and record["operations"][0]["size"] in CONFIG.blur_sizes
