"""Stage II's objective and path: straight lines from degraded latents to clean ones.

    t = 0: x0, the degraded end (pixel-degraded latents after DEG_latent)
    t = 1: x1, the clean end (latents of the high-quality video)
    x_t = (1 - t) x0 + t x1,   velocity = x1 - x0,   the model is given timestep 1000 (1 - t)

This is the one place that defines t. Source: FlashVideo 3.3 and its released code. Algorithm 1 line 11 of the paper
prints the loss as ||Z_HR - Z_t||^2; that is a misprint, the target is x1 - x0.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flashvideo.config import DiffusionConfig
from flashvideo.objectives.batch import Batch, normal_like, uniform
from flashvideo.objectives.diffusion import alpha_table, mean_squared_error, per_sample, sigmas_of

TIMESTEPS = 1000.0


def model_timestep(t: Tensor) -> Tensor:
    """The timestep that the model is given for t: 1000 at the degraded end, 0 at the clean end."""
    return TIMESTEPS - TIMESTEPS * t


def shift_time(t: Tensor, shift: float) -> Tensor:
    """t warped towards the degraded end: 1 - s (1 - t) / (1 + (s - 1) (1 - t)); s = 1 leaves it (code: shift_t)."""
    rest = 1 - t
    return 1 - shift * rest / (1 + (shift - 1) * rest)


def time_grid(num_steps: int, shift: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """num_steps + 1 times from 0 to 1, shifted, computed in `dtype` (bf16 rounds as the released code does)."""
    return shift_time(torch.linspace(0, 1, num_steps + 1, dtype=dtype), shift)


def degrade_latents(latents: Tensor, noise: Tensor, alphas: Tensor) -> Tensor:
    """DEG_latent: alpha z + sqrt(1 - alpha^2) n, fp32, with one alpha a sample (B,)."""
    return per_sample(alphas, latents) * latents.float() + per_sample(sigmas_of(alphas), latents) * noise.float()


class FlowMatchingObjective:
    """Stage II's training loss (objectives.batch.Objective)."""

    def __init__(
        self,
        noise_steps: tuple[int, int],
        latent_degradation: bool = True,
        time_shift: float | None = None,
        table: Tensor | None = None,
    ) -> None:
        """`noise_steps`: inclusive range of DEG_latent's step, indices of `table` (default: the released alpha table).

        Without `latent_degradation` (Table 6's ablation) x0 is the pixel-degraded latents as they are, and the model is
        told noise step 0. Raises ValueError for a range outside the table.
        """
        self.table = alpha_table(DiffusionConfig()) if table is None else table
        low, high = noise_steps
        if not 0 <= low <= high < len(self.table):
            raise ValueError(f"noise_steps {noise_steps} must rise and lie in 0..{len(self.table) - 1}")
        self.noise_steps = noise_steps
        self.latent_degradation = latent_degradation
        self.time_shift = time_shift

    def draw_noise_steps(self, batch: Batch) -> Tensor:
        """One noise step a sample, int64 (B,) on the CPU: the range is cut into global_size parts, sample i draws in part i."""
        low, high = self.noise_steps
        place = (batch.positions.cpu() + uniform(batch.generators).double()) / batch.global_size
        return low + (place * (high - low + 1)).long().clamp_max(high - low)

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Per-sample MSE of the velocity, fp32 (B,). Draws the noise step, then t, then DEG_latent's noise."""
        noise_steps = self.draw_noise_steps(batch)
        t = uniform(batch.generators)
        if self.time_shift is not None:
            t = shift_time(t, self.time_shift)
        return self.losses_at(model, batch, t, noise_steps)

    def losses_at(self, model: nn.Module, batch: Batch, t: Tensor, noise_steps: Tensor) -> Tensor:
        """As `losses`, at given t (B,) and noise steps (B,), for validation: the generators only draw the noise."""
        return self.judged_at(model, batch, t, noise_steps)[0]

    def judged_at(self, model: nn.Module, batch: Batch, t: Tensor, noise_steps: Tensor) -> tuple[Tensor, Tensor]:
        """`losses_at`, and the clean latents that the prediction implies, x_t + (1 - t) v: B T C H W."""
        if batch.degraded is None:
            raise ValueError(f"Stage II needs degraded latents; the batch of {', '.join(batch.sample_ids[:3])} has none")
        clean, start = batch.clean.float(), batch.degraded.float()
        if self.latent_degradation:
            start = degrade_latents(start, normal_like(start, batch.generators), self.table[noise_steps.cpu()])
        else:
            noise_steps = torch.zeros_like(noise_steps)
        weight = per_sample(t, clean)
        between = (1 - weight) * start + weight * clean
        prediction = model(
            between.to(batch.clean.dtype),
            batch.text,
            model_timestep(t.to(clean.device, torch.float32)),
            noise_steps.to(clean.device, torch.float32),
        )
        return mean_squared_error(prediction, clean - start), between + (1 - weight) * prediction.detach().float()
