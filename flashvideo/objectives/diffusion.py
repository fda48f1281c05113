"""Stage I's objective: v-prediction on a zero-terminal-SNR schedule.

x_t = alpha x + sigma n, v = alpha n - sigma x; the loss is the mean squared error of v. The released loss,
1 / (1 - alpha^2) (x0_hat - x0)^2, is the same number (code: VideoDiffusionLoss).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flashvideo.config import DiffusionConfig
from flashvideo.objectives.batch import Batch, normal_like, uniform


def alphas_cumprod(config: DiffusionConfig) -> Tensor:
    """Cumulative product of 1 - beta, scaled-linear betas, shifted, before the zero-SNR rescale: fp64 (num_timesteps,)."""
    root = torch.linspace(config.beta_start**0.5, config.beta_end**0.5, config.num_timesteps, dtype=torch.float64)
    products = torch.cumprod(1.0 - root**2, dim=0)
    shift = config.snr_shift_scale
    return products / (shift + (1.0 - shift) * products)


def zero_terminal_snr(products: Tensor) -> Tensor:
    """sqrt(products) moved and stretched so that the first entry stays and the last is 0: alphas, fp32.

    In fp32, as the released code, so that the table agrees with it to the last digit. Source: arXiv 2305.08891, algorithm 1.
    """
    roots = products.float().sqrt()
    first, last = roots[0], roots[-1]
    return (roots - last) * first / (first - last)


def alpha_table(config: DiffusionConfig) -> Tensor:
    """alpha of every step 0 .. num_timesteps - 1, fp32, falling from 0.9996 to 0; sigma is sqrt(1 - alpha^2).

    Also the table of Stage II's latent degradation. Entry 675 is 0.263959.
    """
    return zero_terminal_snr(alphas_cumprod(config))


def sigmas_of(alphas: Tensor) -> Tensor:
    """sqrt(1 - alpha^2), in fp64 inside."""
    return (1.0 - alphas.double() ** 2).clamp_min(0.0).sqrt().float()


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, ...) on like's device, fp32, to multiply B T C H W."""
    return values.to(like.device, torch.float32).view(-1, *[1] * (like.ndim - 1))


def mean_squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Per-sample mean, fp32, shape (B,)."""
    return (prediction.float() - target.float()).square().flatten(1).mean(1)


class DiffusionObjective:
    """Stage I's training loss (objectives.batch.Objective)."""

    def __init__(self, config: DiffusionConfig) -> None:
        self.config = config
        self.alphas = alpha_table(config)

    def timesteps(self, batch: Batch) -> Tensor:
        """One step in 0 .. num_timesteps - 1 a sample, int64 (B,) on the CPU; one uniform number of each generator.

        Stratified: sample i of a global batch of n draws from the i-th of n equal parts of the range (code:
        uniform_sampling), so that every global batch covers all noise levels.
        """
        draw = uniform(batch.generators)
        if self.config.timestep_sampling == "stratified":
            draw = (batch.positions.cpu() + draw.double()) / batch.global_size
        return (draw * self.config.num_timesteps).long().clamp_max(self.config.num_timesteps - 1)

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Per-sample v-MSE, fp32 (B,). Draws the timestep, then the noise."""
        return self.losses_at(model, batch, self.timesteps(batch))

    def losses_at(self, model: nn.Module, batch: Batch, timesteps: Tensor) -> Tensor:
        """Per-sample v-MSE at given timesteps (B,), for validation: the batch's generators only draw the noise."""
        return self.judged_at(model, batch, timesteps)[0]

    def judged_at(self, model: nn.Module, batch: Batch, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """`losses_at`, and the clean latents that the prediction implies, alpha x_t - sigma v: B T C H W."""
        clean = batch.clean.float()
        noise = normal_like(clean, batch.generators)
        alpha = self.alphas[timesteps.cpu()]
        sigma = per_sample(sigmas_of(alpha), clean)
        alpha = per_sample(alpha, clean)
        noisy = alpha * clean + sigma * noise
        velocity = alpha * noise - sigma * clean
        prediction = model(noisy.to(batch.clean.dtype), batch.text, timesteps.to(clean.device, torch.float32))
        return mean_squared_error(prediction, velocity), alpha * noisy - sigma * prediction.detach().float()
