"""Both samplers: the released schedules, an independently written solver, exactness on flows with known answers."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flashvideo.config import DiffusionConfig, FrameShape, Stage1SamplingConfig, Stage2SamplingConfig, TransformerConfig
from flashvideo.models.transformer import CogVideoXTransformer
from flashvideo.objectives.diffusion import alpha_table
from flashvideo.sampling.stage1 import sample_stage1, stage1_schedule
from flashvideo.sampling.stage2 import enhance_latents

# spec model.md 1.5
GUIDANCE = (
    "8.287 4.004 2.404 5.046 6.275 2.003 6.806 1.616 1.024 8.099 8.797 3.026 4.597 1.405 5.099 8.875 1.236 8.84 6.197 8.36 "
    "8.479 8.779 2.283 2.647 3.211 5.766 1.682 1.051 1.435 4.364 8.591 7.591 1.279 8.668 8.612 1.307 3.597 3.248 8.582 7.576 "
    "1.439 5.533 4.378 8.998 3.359 3.415 6.2 1.034 1.0 1.0 1.185"
)
SHAPE = FrameShape(frames=1, height=32, width=48)
TINY = TransformerConfig(flavour="debug", num_layers=1, num_attention_heads=1, text_embed_dim=8, time_embed_dim=16)


def generators(*seeds: int) -> tuple[torch.Generator, ...]:
    return tuple(torch.Generator().manual_seed(seed) for seed in seeds)


class Field(nn.Module):
    """A known network: its config, one parameter for device and dtype, and a function of its input."""

    config = TINY

    def __init__(self) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))
        self.calls: list[tuple[float, float | None, int]] = []

    def forward(
        self, latents: Tensor, text: Tensor, timestep: Tensor, noise_step: Tensor | None = None, attention: object = None
    ) -> Tensor:
        self.calls.append((float(timestep[0]), None if noise_step is None else float(noise_step[0]), len(latents)))
        return self.velocity(latents, text.mean(dim=(1, 2)).view(-1, 1, 1, 1, 1))

    def velocity(self, latents: Tensor, text: Tensor) -> Tensor:
        return torch.zeros_like(latents) + text


def test_the_51_steps_and_their_guidance_are_the_released_ones() -> None:
    steps = stage1_schedule(Stage1SamplingConfig(), DiffusionConfig())
    assert [step.timestep for step in steps[:6]] == [999, 979, 959, 940, 920, 901]
    assert [step.timestep for step in steps[-3:]] == [58, 39, 19]
    assert [round(step.guidance, 3) for step in steps] == [float(value) for value in GUIDANCE.split()]


def test_the_samplers_table_is_the_rescaled_subset_near_the_full_one() -> None:
    steps = stage1_schedule(Stage1SamplingConfig(), DiffusionConfig())
    full = alpha_table(DiffusionConfig())
    difference = max(abs(step.alpha - float(full[step.timestep])) for step in steps)
    assert 5e-4 < difference <= 6.3e-4  # the spec: up to 6.2e-4
    assert steps[0].alpha == 0.0


class Wave(Field):
    """A nonlinear network that depends on the text, so that guidance and history both matter."""

    def velocity(self, latents: Tensor, text: Tensor) -> Tensor:
        return torch.sin(2.0 * latents) + 0.3 * latents + text


def independent_stage1(network: Wave, text: Tensor, generator: torch.Generator, config: Stage1SamplingConfig) -> Tensor:
    """SDE-DPM++(2M) written again in numpy from the paper's formulas (arXiv 2211.01095 and model.md 1.5), in sigma/alpha
    noise levels instead of log-SNR."""
    count = config.num_steps
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    roots = np.sqrt(np.cumprod(1 - betas))
    times = [int(999 - 999 * i / count) for i in range(count)]
    picked = roots[times]
    alphas = (picked - picked[0]) * picked[-1] / (picked[-1] - picked[0])
    full = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
    x = torch.randn(1, 16, 4, 6, generator=generator).numpy()[None].astype(np.float64)
    level = np.array([math.inf if a == 0 else math.sqrt(1 - a * a) / a for a in alphas])  # sigma / alpha
    before = None
    for i, time in enumerate(times):
        snapped = full[np.abs(full - alphas[i]).argmin()]
        g = 1 + config.guidance_scale * (1 - math.cos(math.pi * ((count - time) / count) ** config.guidance_exponent)) / 2

        def denoise(condition: float, now: np.ndarray = x, a: float = snapped) -> np.ndarray:
            return a * now - math.sqrt(1 - a * a) * (np.sin(2 * now) + 0.3 * now + condition)

        unconditional = denoise(0.0)
        clean = unconditional + g * (denoise(float(text.mean())) - unconditional)
        if i == count - 1:
            return torch.from_numpy(clean)
        shrink = level[i + 1] / level[i]  # e^-h
        mean = clean
        if before is not None:
            ratio = math.log(level[i] / level[i + 1]) / math.log(level[i - 1] / level[i])
            mean = clean + 0.5 * ratio * (clean - before)
        sigma, sigma_next = math.sqrt(1 - alphas[i] ** 2), math.sqrt(1 - alphas[i + 1] ** 2)
        noise = torch.randn(1, 16, 4, 6, generator=generator).numpy()[None]
        x = sigma_next / sigma * shrink * x + (1 - shrink**2) * alphas[i + 1] * mean + sigma_next * math.sqrt(1 - shrink**2) * noise
        before = clean
    raise AssertionError


@pytest.mark.parametrize("config", [Stage1SamplingConfig(), Stage1SamplingConfig(num_steps=20, guidance_scale=2.0)], ids=["released", "20"])
def test_stage1_agrees_with_an_independently_written_solver(config: Stage1SamplingConfig) -> None:
    """1e-5 of the result's scale (a nonlinear network amplifies fp32 rounding, so it is compared in fp64)."""
    text = torch.full((1, 2, 8), 0.2)
    ours = sample_stage1(Wave(), text, SHAPE, config, generators(5))  # type: ignore[arg-type]
    theirs = independent_stage1(Wave(), text, generators(5)[0], config)
    assert ours.shape == (1, 1, 16, 4, 6)
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_a_network_that_knows_the_answer_is_sampled_to_it() -> None:
    """v of a point mass at x0 = 0.7, with the alphas that the sampler reads v with: the sample is 0.7 everywhere."""
    config = Stage1SamplingConfig(num_steps=12)
    alphas = {step.timestep: step.network_alpha for step in stage1_schedule(config, DiffusionConfig())}

    class Point(Field):
        def forward(
            self, latents: Tensor, text: Tensor, timestep: Tensor, noise_step: Tensor | None = None, attention: object = None
        ) -> Tensor:
            alpha = alphas[int(timestep[0])]
            sigma = math.sqrt(1 - alpha**2)
            return alpha * (latents - alpha * 0.7) / sigma - sigma * 0.7

    result = sample_stage1(Point(), torch.zeros(2, 2, 8), SHAPE, config, generators(1, 2))  # type: ignore[arg-type]
    torch.testing.assert_close(result, torch.full_like(result, 0.7), atol=1e-5, rtol=0)


def test_a_sample_does_not_depend_on_its_batch_nor_on_how_guidance_is_run() -> None:
    model = CogVideoXTransformer(TINY).eval()
    text = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    config = Stage1SamplingConfig(num_steps=3)
    both = sample_stage1(model, text, SHAPE, config, generators(1, 2))
    second = sample_stage1(model, text[1:], SHAPE, config, generators(2))
    in_turn = sample_stage1(model, text, SHAPE, config, generators(1, 2), sequential_guidance=True)
    torch.testing.assert_close(both[1:], second, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(both, in_turn, atol=1e-4, rtol=1e-4)
    assert (both[0] - both[1]).abs().max() > 0.1


def test_progress_is_told_and_one_generator_a_sample_is_wanted() -> None:
    seen: list[tuple[int, int]] = []
    config = Stage1SamplingConfig(num_steps=3)
    sample_stage1(Field(), torch.zeros(1, 2, 8), SHAPE, config, generators(1), lambda *now: seen.append(now))  # type: ignore[arg-type]
    assert seen == [(1, 3), (2, 3), (3, 3)]
    with pytest.raises(ValueError, match="1 generators for 2 samples"):
        sample_stage1(Field(), torch.zeros(2, 2, 8), SHAPE, config, generators(1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_steps = 2000"):
        stage1_schedule(Stage1SamplingConfig(num_steps=2000), DiffusionConfig())


LATENTS = torch.randn(2, 1, 16, 4, 6, generator=torch.Generator().manual_seed(0))
TEXT = torch.full((2, 2, 8), 0.25)


@pytest.mark.parametrize("steps", [1, 4, 6])
def test_euler_is_exact_on_a_constant_field(steps: int) -> None:
    """z(1) = z(0) + (u + g (c - u)), c = 0.25, u = 0: 13 x 0.25 more, whatever the grid."""
    config = Stage2SamplingConfig(num_steps=steps, noise_step=0)
    result = enhance_latents(Field(), LATENTS, TEXT, config, generators(1, 2), latent_degradation=False)  # type: ignore[arg-type]
    torch.testing.assert_close(result, LATENTS + 13 * 0.25, atol=1e-5, rtol=0)


def test_euler_is_the_hand_computed_product_on_a_linear_field() -> None:
    """dz/dt = -z: every step multiplies by 1 - (t' - t)."""

    class Decay(Field):
        def velocity(self, latents: Tensor, text: Tensor) -> Tensor:
            return -latents

    config = Stage2SamplingConfig(num_steps=4, guidance_scale=1.0)
    result = enhance_latents(Decay(), LATENTS, TEXT, config, generators(1, 2), latent_degradation=False)  # type: ignore[arg-type]
    times = [0.0, 2 / 17, 2 / 7, 6 / 11, 1.0]
    factor = math.prod(1 - (after - before) for before, after in pairwise(times))
    torch.testing.assert_close(result, LATENTS * factor, atol=1e-6, rtol=0)


def test_degraded_latents_are_noised_with_the_released_alpha_and_the_model_is_told() -> None:
    model = Field()
    config = Stage2SamplingConfig(guidance_scale=1.0)
    result = enhance_latents(model, LATENTS, torch.zeros_like(TEXT), config, generators(1, 2))  # type: ignore[arg-type]
    noise = torch.stack([torch.randn(1, 16, 4, 6, generator=g) for g in generators(1, 2)])
    torch.testing.assert_close(result, 0.263959 * LATENTS + 0.964534 * noise, atol=1e-5, rtol=0)
    assert [call[:2] for call in model.calls] == [(pytest.approx(t, abs=0.05), 675.0) for t in (1000, 882.4, 714.3, 454.5)]
    assert all(call[2] == 2 for call in model.calls)  # guidance 1: one branch


def test_official_bf16_rounds_times_and_noise_step_as_the_released_code() -> None:
    model = Field()
    config = Stage2SamplingConfig(num_steps=5, compat="official-bf16")
    result = enhance_latents(model, LATENTS, TEXT, config, generators(1, 2))  # type: ignore[arg-type]
    assert [call[0] for call in model.calls] == [1000, 904, 784, 624, 384]
    assert {call[1] for call in model.calls} == {676.0} and {call[2] for call in model.calls} == {4}
    assert torch.equal(result, result.bfloat16().float())


def test_guidance_in_one_batch_or_in_turn_is_the_same() -> None:
    model = CogVideoXTransformer(TINY.model_copy(update={"noise_strength_embedding": True})).eval()
    text = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    config = Stage2SamplingConfig(num_steps=2)
    batched = enhance_latents(model, LATENTS, text, config, generators(1, 2))
    in_turn = enhance_latents(model, LATENTS, text, config, generators(1, 2), sequential_guidance=True)
    torch.testing.assert_close(batched, in_turn, atol=1e-4, rtol=1e-4)
    unguided = enhance_latents(model, LATENTS, text, config.model_copy(update={"guidance_scale": 1.0}), generators(1, 2))
    assert (batched - unguided).abs().max() > 1e-2
