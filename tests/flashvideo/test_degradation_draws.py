"""10,000 draws of DEG_pixel against the configured distributions, and equal pixels wherever a key is drawn.

Shares are held to 4.5 standard deviations of a binomial, continuous values to a Kolmogorov distance of 2.2 / sqrt(n)
(each about 1 in 10,000 by chance; the draws are seeded, so the test does not flicker).
"""

import hashlib
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import pytest
import torch

from flashvideo.config import PixelDegradationConfig
from flashvideo.objectives.degradation import (
    Blur,
    Codec,
    Degradation,
    Jpeg,
    Noise,
    Operation,
    Resize,
    cached_branches,
    draw_degradation,
    drawn_copy,
)

CONFIG = PixelDegradationConfig()
DRAWS = 10_000
T = TypeVar("T")
REPOSITORY = Path(__file__).resolve().parents[2]


class Strong(NamedTuple):
    """A strong branch's operations, by part; a clip's."""

    first: list[Operation]
    second: list[Operation]
    final: list[Operation]


def split(operations: Sequence[Operation]) -> Strong:
    """Every order has one Noise; the compressions right after it are its own, but a Codec after the second one is the final part's."""
    first, second = (place for place, operation in enumerate(operations) if isinstance(operation, Noise))
    ends = []
    for place, own in ((first, (Jpeg, Codec)), (second, (Jpeg,))):
        end = place + 1
        while end < len(operations) and isinstance(operations[end], own):
            end += 1
        ends.append(end)
    return Strong(list(operations[: ends[0]]), list(operations[ends[0] : ends[1]]), list(operations[ends[1] :]))


@pytest.fixture(scope="module")
def drawn() -> list[Degradation]:
    """Of clips of two frames."""
    return [draw_degradation(CONFIG, seed=11, sample_id=f"clip{number}", variant=1, num_frames=2) for number in range(DRAWS)]


@pytest.fixture(scope="module")
def strong(drawn: list[Degradation]) -> list[Strong]:
    return [split(entry.operations) for entry in drawn if entry.branch == "strong"]


def of_kind(operations: Sequence[Operation], kind: type[T]) -> list[T]:
    return [operation for operation in operations if isinstance(operation, kind)]


def check_share(count: int, total: int, share: float) -> None:
    assert abs(count - total * share) < 4.5 * math.sqrt(total * share * (1 - share)), f"{count} of {total}, {share} asked for"


def check_shares(counts: Mapping[T, int], weights: Mapping[T, float]) -> None:
    total, sum_of_weights = sum(counts.values()), sum(weights.values())
    assert set(counts) == set(weights)
    for name, weight in weights.items():
        check_share(counts[name], total, weight / sum_of_weights)


def check_uniform(values: Sequence[float], bounds: tuple[float, float], scale: Callable[[float], float] = float) -> None:
    """Kolmogorov's distance between the values and U(bounds), both through `scale`."""
    low, high = scale(bounds[0]), scale(bounds[1])
    places = sorted((scale(value) - low) / (high - low) for value in values)
    assert places[0] >= -1e-9 and places[-1] <= 1 + 1e-9 and len(places) > 300
    number = len(places)
    distance = max(max(abs(place - index / number), abs(place - (index + 1) / number)) for index, place in enumerate(places))
    assert distance < 2.2 / math.sqrt(number), f"distance {distance:.4f} of {number} values in {bounds}"


def test_branches_and_the_weak_factor(drawn: list[Degradation]) -> None:
    weak = [entry for entry in drawn if entry.branch == "weak"]
    check_share(DRAWS - len(weak), DRAWS, CONFIG.strong_probability)
    check_uniform([1 / resize.scale for entry in weak for resize in of_kind(entry.operations, Resize)], CONFIG.downscale)
    assert all(len(entry.operations) == 1 for entry in weak)


@pytest.mark.parametrize(("share", "kept"), [(0.5, 4), (0.15, 2), (1.0, 3), (0.0, 3), (0.5, 1)])
def test_kept_copies_are_read_in_the_configured_shares(share: float, kept: int) -> None:
    """One weak copy and strong ones: 10,000 reads hold both branches in their shares, and every copy of a branch alike."""
    config = PixelDegradationConfig(strong_probability=share, cached_variants=kept)
    branches = cached_branches(config)
    generator = torch.Generator().manual_seed(3)
    counts = Counter(drawn_copy(config, kept, generator) for _ in range(DRAWS))
    if kept == 1 or share in (0.0, 1.0):
        assert branches == [None] * kept  # drawn for each clip
        check_shares(counts, dict.fromkeys(range(kept), 1.0)) if kept > 1 else None
        return
    assert branches == ["weak"] + ["strong"] * (kept - 1)
    check_shares(counts, {0: 1 - share} | dict.fromkeys(range(1, kept), share / (kept - 1)))


def test_a_given_branch_leaves_the_other_draws_alone() -> None:
    drawn = [draw_degradation(CONFIG, seed=11, sample_id=f"clip{number}", variant=1, num_frames=2) for number in range(20)]
    for number, entry in enumerate(drawn):
        again = draw_degradation(CONFIG, seed=11, sample_id=f"clip{number}", variant=1, num_frames=2, branch=entry.branch)
        assert again == entry


@pytest.mark.parametrize("order", ["first", "second"])
def test_blurs(strong: list[Strong], order: str) -> None:
    blurs = [blur for entry in strong for blur in of_kind(getattr(entry, order), Blur)]
    if order == "first":
        assert len(blurs) == len(strong)
    else:
        check_share(len(blurs), len(strong), CONFIG.second_blur_probability)
    check_shares(Counter(blur.kind for blur in blurs), CONFIG.blur_kernels)
    check_shares(Counter(str(blur.size) for blur in blurs), {str(size): 1.0 for size in CONFIG.blur_sizes})
    gaussian = [blur for blur in blurs if blur.kind != "sinc"]
    bounds = CONFIG.blur_sigma_1 if order == "first" else CONFIG.blur_sigma_2
    check_uniform([blur.sigma_x[0] for blur in gaussian], bounds)
    check_uniform([blur.sigma_y[0] for blur in gaussian if blur.kind == "aniso"], bounds)
    check_uniform([blur.angle[0] for blur in gaussian if blur.kind == "aniso"], (-math.pi, math.pi))
    assert all(blur.sigma_x == blur.sigma_y for blur in gaussian if blur.kind.endswith("_iso") or blur.kind == "iso")
    check_uniform([blur.beta[0] for blur in gaussian if blur.kind == "generalized_iso"], CONFIG.generalized_beta)
    check_uniform([blur.beta[0] for blur in gaussian if blur.kind == "plateau_iso"], CONFIG.plateau_beta)
    sinc = [blur for blur in blurs if blur.kind == "sinc"]
    assert all(CONFIG.sinc_omega_small[0] <= blur.omega[0] <= math.pi for blur in sinc if blur.size < 13)
    assert all(CONFIG.sinc_omega_large[0] <= blur.omega[0] <= math.pi for blur in sinc)


@pytest.mark.parametrize("order", ["first", "second"])
def test_resizes(strong: list[Strong], order: str) -> None:
    resizes = [resize for entry in strong for resize in of_kind(getattr(entry, order), Resize)]
    modes, up, down = (
        (CONFIG.resize_modes_1, CONFIG.resize_up_1, CONFIG.resize_down_1)
        if order == "first"
        else (CONFIG.resize_modes_2, CONFIG.resize_up_2, CONFIG.resize_down_2)
    )
    enlarged = [resize.scale for resize in resizes if resize.scale > 1]
    shrunk = [resize.scale for resize in resizes if resize.scale <= 1]
    counts = {"up": len(enlarged), "down": len(shrunk), "keep": len(strong) - len(resizes)}
    check_shares(counts, dict(zip(counts, modes, strict=True)))
    check_uniform(enlarged, up)
    check_uniform(shrunk, down)
    check_shares(Counter(resize.mode for resize in resizes), {"bilinear": 1, "area": 1, "bicubic": 1})


@pytest.mark.parametrize("order", ["first", "second"])
def test_noises(strong: list[Strong], order: str) -> None:
    noises = [noise for entry in strong for noise in of_kind(getattr(entry, order), Noise)]
    assert len(noises) == len(strong)
    share = CONFIG.gaussian_noise_probability
    check_shares(Counter(noise.kind for noise in noises), {"gaussian": share, "poisson": 1 - share})
    check_share(sum(noise.gray for noise in noises), len(noises), CONFIG.gray_noise_probability)
    sigma, scale = (CONFIG.noise_sigma_1, CONFIG.poisson_scale_1) if order == "first" else (CONFIG.noise_sigma_2, CONFIG.poisson_scale_2)
    check_uniform([noise.strength[0] for noise in noises if noise.kind == "gaussian"], sigma)
    check_uniform([noise.strength[0] for noise in noises if noise.kind == "poisson"], scale)


def test_compressions(strong: list[Strong]) -> None:
    for part in ("first", "second"):
        pictures = [jpeg for entry in strong for jpeg in of_kind(getattr(entry, part), Jpeg)]
        check_share(len(pictures), len(strong), CONFIG.jpeg_probability)
        check_uniform([jpeg.quality[0] for jpeg in pictures], CONFIG.jpeg_quality)
    for part in ("first", "final"):
        codecs = [codec for entry in strong for codec in of_kind(getattr(entry, part), Codec)]
        check_share(len(codecs), len(strong), CONFIG.video_compression_probability)
        check_shares(Counter(codec.name for codec in codecs), CONFIG.video_codecs)
        check_uniform([codec.bits_per_pixel for codec in codecs], CONFIG.bits_per_pixel, math.log)


def test_the_final_part(strong: list[Strong]) -> None:
    shrinks = [resize for entry in strong for resize in of_kind(entry.final, Resize)]
    assert len(shrinks) == len(strong) and all(resize.of_original for resize in shrinks)
    check_uniform([1 / resize.scale for resize in shrinks], CONFIG.downscale)
    sinc = [blur for entry in strong for blur in of_kind(entry.final, Blur)]
    check_share(len(sinc), len(strong), CONFIG.final_sinc_probability)
    assert all(blur.kind == "sinc" for blur in sinc)
    check_uniform([blur.omega[0] for blur in sinc], CONFIG.final_sinc_omega)
    both = [entry.final for entry in strong if of_kind(entry.final, Codec)]
    check_share(sum(isinstance(final[0], Codec) for final in both), len(both), 0.5)


def test_walks_keep_to_their_steps(drawn: list[Degradation]) -> None:
    noises = [noise for entry in drawn for noise in of_kind(entry.operations, Noise) if noise.kind == "gaussian"]
    steps = [noise.strength[1] - noise.strength[0] for noise in noises]
    inside = [step for noise, step in zip(noises, steps, strict=True) if 1.2 < noise.strength[0] < 24.8]
    check_uniform(inside, (-CONFIG.walk.noise_sigma, CONFIG.walk.noise_sigma))


# ------------------------------------------------------------------------------------------------------- equal pixels

WORKER = """
import sys
sys.path.insert(0, {tests!r})
from test_degradation_draws import pixels_of
print("\\n".join(pixels_of(number) for number in range({count})))
"""


def pixels_of(number: int) -> str:
    """Digest of a strongly degraded made-up clip."""
    config = PixelDegradationConfig(strong_probability=1.0)
    clip = torch.rand(3, 3, 36, 50, generator=torch.Generator().manual_seed(number))
    worse = draw_degradation(config, seed=3, sample_id=f"clip{number}", variant=1, num_frames=3).apply(clip)
    return hashlib.sha256(worse.numpy().tobytes()).hexdigest()


def test_equal_seeds_give_equal_pixels_on_any_worker() -> None:
    """In this thread, in three threads, and in another process with two torch threads and another hash seed."""
    count = 16
    reference = [pixels_of(number) for number in range(count)]
    assert len(set(reference)) == count
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(pixels_of, reversed(range(count)))) == reference[::-1]
    environment = os.environ | {"OMP_NUM_THREADS": "2", "PYTHONHASHSEED": "7", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", WORKER.format(tests=str(Path(__file__).parent), count=count)]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert printed.split() == reference
