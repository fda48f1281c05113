"""Stage II's sampler: degraded latents -> clean ones, Euler on the flow in a few steps.

Source: FlashVideo 3.3 and the released code's flow_video.py. t is defined in objectives/flow_matching.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flashvideo.config import DiffusionConfig, Stage2SamplingConfig
from flashvideo.models.transformer import CogVideoXTransformer
from flashvideo.models.window_attention import FULL_ATTENTION, AttentionOptions
from flashvideo.objectives.batch import normal_like
from flashvideo.objectives.diffusion import alpha_table
from flashvideo.objectives.flow_matching import degrade_latents, model_timestep, time_grid
from flashvideo.sampling.stage1 import Progress, check_generators, guided


@torch.no_grad()
def enhance_latents(
    model: CogVideoXTransformer,
    degraded: Tensor,
    text: Tensor,
    config: Stage2SamplingConfig,
    generators: Sequence[torch.Generator],
    progress: Progress | None = None,
    sequential_guidance: bool = False,
    latent_degradation: bool = True,
    attention: AttentionOptions = FULL_ATTENTION,
) -> Tensor:
    """Model input (B, T, C, H, W) of the enhanced videos, fp32 on the model's device.

    degraded: (B, T, C, H, W), model input of the enlarged low-quality videos, before DEG_latent, which is applied here.
    text: (B, L, D). One CPU generator a sample. `sequential_guidance` runs the two branches one after the other; at
    guidance 1 there is one. `latent_degradation=False` fits a model trained without it (Table 6).
    `attention` is one choice for the whole batch (`cascade.attention_options` makes it from `config.attention`). With
    compat "official-bf16" the times, the embedded noise step and the state round as the released code's do.
    """
    check_generators(text, generators)
    rounding = torch.bfloat16 if config.compat == "official-bf16" else torch.float32
    device, dtype = next(model.parameters()).device, next(model.parameters()).dtype
    text, state = text.to(device, dtype), degraded.to(device, rounding)
    noise_step = config.noise_step if latent_degradation else 0
    if latent_degradation:
        alphas = alpha_table(DiffusionConfig())[[noise_step] * len(state)]
        state = degrade_latents(state, normal_like(state, tuple(generators)), alphas).to(rounding)
    embedded_step = torch.tensor(float(noise_step)).to(rounding).float()
    times = time_grid(config.num_steps, config.shift, rounding)
    for index in range(config.num_steps):
        timestep = model_timestep(times[index]).float()

        def predict(branch: Tensor, now: Tensor = state, moment: Tensor = timestep) -> Tensor:
            size = len(branch)
            inputs = now.to(dtype).repeat(size // len(now), 1, 1, 1, 1)
            moments, noise_steps = moment.expand(size).to(device), embedded_step.expand(size).to(device)
            velocity: Tensor = model(inputs, branch, moments, noise_steps, attention)
            return velocity.to(rounding)

        velocity = guided(predict, text, config.guidance_scale, sequential_guidance)
        step = (times[index + 1] - times[index]).to(device)
        state = state + step * velocity
        if progress is not None:
            progress(index + 1, config.num_steps)
    return state.float()
