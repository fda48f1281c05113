"""Stage I's sampler: text -> 270p latents, SDE-DPM++(2M) with dynamic guidance.

Source: the released code's VPSDEDPMPP2MSampler and DynamicCFG (51 steps, scale 8, exponent 5).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from flashvideo.config import DiffusionConfig, FrameShape, Stage1SamplingConfig
from flashvideo.models.transformer import CogVideoXTransformer
from flashvideo.objectives.batch import normal_like
from flashvideo.objectives.diffusion import alpha_table, alphas_cumprod, zero_terminal_snr

Progress = Callable[[int, int], None]
"""Called as (steps done, steps in all)."""


class Stage1Step(NamedTuple):
    """One evaluation of the network."""

    timestep: int
    """What the network is given."""
    alpha: float
    """Of the sampler's own table: the zero-SNR rescale of the subset of steps."""
    network_alpha: float
    """The nearest entry of the full table, with which v becomes x0."""
    guidance: float


def guidance_at(timestep: int, config: Stage1SamplingConfig) -> float:
    """1 + scale (1 - cos(pi ((S - timestep) / S)^exponent)) / 2, timestep in 0..999.

    The released code measures S in sampler steps and the timestep in 0..999, so the "schedule" jumps between 1 and
    1 + scale: 8.287, 4.004, 2.404, 5.046, ... Kept, because the released results were made so.
    """
    base = (config.num_steps - timestep) / config.num_steps
    power = math.copysign(abs(base) ** config.guidance_exponent, base)
    return 1.0 + config.guidance_scale * (1.0 - math.cos(math.pi * power)) / 2.0


def stage1_schedule(config: Stage1SamplingConfig, diffusion: DiffusionConfig) -> list[Stage1Step]:
    """The steps from pure noise (timestep 999) down.

    Raises ValueError when there are more steps than the table has.
    """
    steps, last = config.num_steps, diffusion.num_timesteps - 1
    if not 1 <= steps <= diffusion.num_timesteps:
        raise ValueError(f"num_steps = {steps} must lie in 1..{diffusion.num_timesteps}")
    timesteps = np.linspace(last, 0, steps, endpoint=False).astype(int)
    subset = alphas_cumprod(diffusion)[torch.from_numpy(timesteps[::-1].copy())]
    alphas = zero_terminal_snr(subset).flip(0) if steps > 1 else torch.zeros(1)
    table = alpha_table(diffusion)
    nearest = table[(table[None] - alphas[:, None]).abs().argmin(1)]
    return [Stage1Step(int(t), float(a), float(n), guidance_at(int(t), config)) for t, a, n in zip(timesteps, alphas, nearest, strict=True)]


@torch.no_grad()
def sample_stage1(
    model: CogVideoXTransformer,
    text: Tensor,
    shape: FrameShape,
    config: Stage1SamplingConfig,
    generators: Sequence[torch.Generator],
    progress: Progress | None = None,
    diffusion: DiffusionConfig | None = None,
    sequential_guidance: bool = False,
    in_channels: int | None = None,
) -> Tensor:
    """Model input (B, T, C, H, W) of new videos, fp32 on the model's device; divide by the scale before decoding.

    text: (B, L, D) embeddings; the unconditional branch is all-zero. One CPU generator a sample, so a sample does not
    depend on its batch. `sequential_guidance` runs the two branches one after the other (half the memory). `in_channels`:
    the model's, where it is wrapped and its config out of reach. Raises ValueError unless there is one generator a text.
    """
    check_generators(text, generators)
    steps = stage1_schedule(config, diffusion or DiffusionConfig())
    device, dtype = next(model.parameters()).device, next(model.parameters()).dtype
    text = text.to(device, dtype)
    frames, height, width = shape.latent_shape
    like = torch.empty(len(text), frames, in_channels or model.config.in_channels, height, width, device=device)
    x = normal_like(like, tuple(generators))
    previous: Tensor | None = None
    for index, step in enumerate(steps):
        timestep = torch.full((len(text),), float(step.timestep), device=device)

        def predict(branch: Tensor, now: Tensor = x, moment: Tensor = timestep) -> Tensor:
            copies = len(branch) // len(now)
            velocity: Tensor = model(now.to(dtype).repeat(copies, 1, 1, 1, 1), branch, moment.repeat(copies))
            return velocity.float()

        velocity = guided(predict, text, step.guidance, sequential_guidance)
        clean = step.network_alpha * x - math.sqrt(1.0 - step.network_alpha**2) * velocity
        if index + 1 == len(steps):
            x = clean
        else:
            drift = second_order(steps, index, clean, previous)
            x = _advance(x, drift, step.alpha, steps[index + 1].alpha, normal_like(x, tuple(generators)))
        previous = clean
        if progress is not None:
            progress(index + 1, len(steps))
    return x


def guided(predict: Callable[[Tensor], Tensor], text: Tensor, guidance: float, sequential: bool) -> Tensor:
    """u + guidance (c - u) of a prediction for text (c) and for the all-zero text (u), in predict's dtype.

    `predict` takes the text of one or of both branches (text, then zeros) and repeats its other inputs to fit. At
    guidance 1 the unconditional branch is not run. v, x0 and the flow's velocity are all linear in one another, so
    guiding any of them is guiding the others.
    """
    if guidance == 1.0:
        return predict(text)
    zeros = torch.zeros_like(text)
    if sequential:
        conditional, unconditional = predict(text), predict(zeros)
    else:
        conditional, unconditional = predict(torch.cat([text, zeros])).chunk(2)
    return unconditional + guidance * (conditional - unconditional)


def second_order(steps: Sequence[Stage1Step], index: int, clean: Tensor, previous: Tensor | None) -> Tensor:
    """(1 + 1/2r) x0 - (1/2r) x0_before, r = the step before over this step, in log-SNR; x0 itself at the first step."""
    if previous is None:
        return clean
    before, now, after = (_log_snr(steps[place].alpha) for place in (index - 1, index, index + 1))
    half = (after - now) / (2.0 * (now - before))
    return (1.0 + half) * clean - half * previous


def _advance(x: Tensor, drift: Tensor, alpha: float, alpha_next: float, noise: Tensor) -> Tensor:
    """One step of the SDE solver, from alpha to alpha_next."""
    h = _log_snr(alpha_next) - _log_snr(alpha)
    sigma, sigma_next = math.sqrt(1.0 - alpha**2), math.sqrt(1.0 - alpha_next**2)
    keep = sigma_next / sigma * math.exp(-h)
    return keep * x - math.expm1(-2.0 * h) * alpha_next * drift + sigma_next * math.sqrt(-math.expm1(-2.0 * h)) * noise


def _log_snr(alpha: float) -> float:
    """ln(alpha / sigma); -inf for pure noise."""
    return math.log(alpha / math.sqrt(1.0 - alpha**2)) if alpha > 0 else -math.inf


def check_generators(text: Tensor, generators: Sequence[torch.Generator]) -> None:
    """Raises ValueError unless there is one generator a sample."""
    if len(generators) != len(text):
        raise ValueError(f"{len(generators)} generators for {len(text)} samples; give one a sample")
