"""How fast a model trains: tokens, model FLOPs with attention counted, share of the device's peak."""

from __future__ import annotations

from typing import NamedTuple

from flashvideo.config import TransformerConfig
from flashvideo.objectives.batch import Batch


class Throughput(NamedTuple):
    """Of one train_step."""

    tokens_per_s: float
    """Of all ranks, text included."""
    teraflops_per_rank: float
    """Model FLOPs a second: forward and backward, not what is computed twice by recomputation."""
    mfu: float | None
    """Share of engine.watch.peak_teraflops; None: not stated."""


def sample_tokens(config: TransformerConfig, batch: Batch) -> int:
    """Tokens of one sample, text included."""
    _, frames, _, height, width = batch.clean.shape
    return int(frames * (height // config.patch_size) * (width // config.patch_size) + batch.text.shape[1])


def model_flops(config: TransformerConfig, tokens: int, adapters: bool) -> float:
    """Forward (24 N d^2 L + 4 N^2 d L) and backward of one sample: twice that; frozen matrices, which have no gradient, only once."""
    d, layers = config.hidden_size, config.num_layers
    return (2 if adapters else 3) * 24.0 * tokens * d**2 * layers + 3 * 4.0 * tokens**2 * d * layers


def throughput(
    config: TransformerConfig, batch: Batch, adapters: bool, num_ranks: int, seconds: float, peak_teraflops: float | None
) -> Throughput:
    """Of a train_step whose global batch this is a part of."""
    tokens = sample_tokens(config, batch)
    teraflops = model_flops(config, tokens, adapters) * batch.global_size / num_ranks / seconds / 1e12
    return Throughput(tokens * batch.global_size / seconds, teraflops, teraflops / peak_teraflops if peak_teraflops else None)
