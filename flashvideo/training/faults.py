"""What is done about a train_step that goes wrong: a loss or gradient that is not finite, or a loss far above its like.

Every rank sees the same losses and the same gradient norm and therefore decides the same. A train_step's draws follow
from its number, so a rewound run would meet the same fault again: what it leaves out is what led there.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flashvideo.config import SpikeConfig


class TrainingFault(RuntimeError):
    """A train_step that must not count; the message names its samples."""


class NonFiniteLossError(TrainingFault):
    """A loss is NaN or infinite."""


class NonFiniteGradientError(TrainingFault):
    """The gradient is NaN or infinite though the losses are not."""


class LossSpikeError(TrainingFault):
    """A loss is far above those before it."""


class FaultGuard:
    """Finds faults, and remembers what a resumed run must know of them: recent losses, train_steps left out."""

    def __init__(self, config: SpikeConfig, state: dict[str, Any] | None = None) -> None:
        """`state`: what `state()` gave at the checkpoint."""
        state = state or {"recent": {}, "left_out": [], "faults": 0}
        self.config = config
        self._recent: dict[str, list[float]] = {kind: list(losses) for kind, losses in state["recent"].items()}
        self.left_out: set[int] = set(state["left_out"])
        self.faults: int = state["faults"]

    def state(self) -> dict[str, Any]:
        """JSON values for the checkpoint."""
        return {"recent": self._recent, "left_out": sorted(self.left_out), "faults": self.faults}

    def of_losses(self, losses: Tensor, ids: Sequence[str], modality: str) -> TrainingFault | None:
        """The fault in the losses of a global batch (by place, all ranks'), or None."""
        bad = (~torch.isfinite(losses)).nonzero().flatten().tolist()
        if bad:
            named = ", ".join(f"{ids[place]} ({losses[place].item()})" for place in bad[:8])
            return NonFiniteLossError(
                f"{len(bad)} of {len(ids)} losses are not finite: {named}. Look at these samples, or lower optimizer.learning_rate"
            )
        recent = self._recent.get(modality, [])
        if self.config.loss_factor is None or len(recent) < self.config.window:
            return None
        loss, usual = losses.mean().item(), statistics.median(recent)
        if loss <= self.config.loss_factor * usual:
            return None
        worst = losses.argsort(descending=True)[:8].tolist()
        named = ", ".join(f"{ids[place]} ({losses[place].item():.4g})" for place in worst)
        return LossSpikeError(
            f"the loss is {loss:.4g}, more than {self.config.loss_factor:g} times the median {usual:.4g} of the last {len(recent)} "
            f"{modality} train_steps; highest: {named}. Look at these samples, or lower optimizer.learning_rate"
        )

    def of_gradient(self, grad_norm: float, ids: Sequence[str]) -> TrainingFault | None:
        """The fault in a gradient norm, or None."""
        if torch.isfinite(torch.tensor(grad_norm)):
            return None
        more = f" and {len(ids) - 8} more" if len(ids) > 8 else ""
        return NonFiniteGradientError(
            f"the gradient is not finite though every loss is; the batch holds {', '.join(ids[:8])}{more}. "
            "Look at these samples, lower optimizer.learning_rate, or set engine.spikes.policy to skip"
        )

    def count(self, fault: TrainingFault, where: str) -> None:
        """One more fault. Raises it under `stop`, or when there were more than `at_most`; `where` stands in front."""
        self.faults += 1
        if self.config.policy == "stop":
            raise type(fault)(f"{where}: {fault}")
        if self.faults > self.config.at_most:
            raise type(fault)(f"{where}: fault {self.faults}, more than engine.spikes.at_most = {self.config.at_most}: {fault}")

    def rewind(self, state: dict[str, Any], left_out: range) -> None:
        """Back to a checkpoint's state, with more train_steps left out; faults stay counted."""
        earlier = FaultGuard(self.config, state)
        self._recent, self.left_out = earlier._recent, self.left_out | earlier.left_out | set(left_out)

    def accept(self, loss: float, modality: str) -> None:
        """A train_step that counted."""
        if self.config.loss_factor is not None:
            recent = self._recent.setdefault(modality, [])
            recent.append(loss)
            del recent[: -self.config.window]
