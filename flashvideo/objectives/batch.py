"""What a training objective is given: one rank's part of one global batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass
class Batch:
    """One rank's samples of one train_step's global batch (one micro-batch of it).

    Latents are *model input* (sampled, scaled). Every random draw of an objective comes from the sample's own
    generator, seeded from (recipe seed, train_step, place in the global batch): so the loss does not depend on
    how many ranks share the batch, and a resumed run draws what the uninterrupted one drew.
    """

    sample_ids: tuple[str, ...]
    clean: Tensor
    """B T C H W, model input of the high-quality latents (x1 of Stage II)."""
    text: Tensor
    """B L D, all-zero where dropped."""
    positions: Tensor
    """B, int64: place of each sample in the global batch, for stratified draws."""
    global_size: int
    """Samples in the global batch."""
    generators: tuple[torch.Generator, ...]
    """One CPU generator a sample."""
    degraded: Tensor | None = None
    """Stage II: B T C H W, model input of the pixel-degraded latents, before DEG_latent."""
    degradations: tuple[Mapping[str, Any], ...] = ()
    """Of each sample, where DEG_pixel was drawn on reading it."""

    def to(self, device: torch.device, dtype: torch.dtype) -> Batch:
        """Tensors moved; floating ones cast."""
        return Batch(
            self.sample_ids,
            self.clean.to(device, dtype),
            self.text.to(device, dtype),
            self.positions.to(device),
            self.global_size,
            self.generators,
            None if self.degraded is None else self.degraded.to(device, dtype),
            self.degradations,
        )


def normal_like(reference: Tensor, generators: tuple[torch.Generator, ...]) -> Tensor:
    """Standard normal noise of `reference`'s shape (batch first), sample i from generator i, drawn in fp32 on the CPU."""
    noise = torch.stack([torch.randn(reference.shape[1:], generator=g) for g in generators])
    return noise.to(reference.device, reference.dtype)


def uniform(generators: tuple[torch.Generator, ...]) -> Tensor:
    """One U(0, 1) number per generator, fp32: shape B."""
    return torch.cat([torch.rand(1, generator=g) for g in generators])


class Objective(Protocol):
    """A training loss. Stage I: DiffusionObjective. Stage II: FlowMatchingObjective."""

    def losses(self, model: torch.nn.Module, batch: Batch) -> Tensor:
        """Per-sample loss, fp32, shape B. Uses batch.generators for every draw, always in the same order."""
        ...
