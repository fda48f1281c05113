"""What a transformer block keeps for backward, and whether it is compiled.

Three ways, from most memory to least: keep everything; recompute a block but keep its attention (90 % of Stage II's FLOPs
at 1080p are attention's); recompute a block whole. The gradient is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from flashvideo.config import EngineConfig
from flashvideo.models.transformer import CogVideoXTransformer

ATTENTION = [
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
]
"""Operators whose outputs are kept; the unfused form of small CPUs is not among them and is recomputed."""


def prepare_blocks(model: CogVideoXTransformer, config: EngineConfig) -> None:
    """Sets up every block as the engine says."""
    model.activation_checkpointing = config.activation_checkpointing and not config.keep_attention
    for block in model.transformer_blocks:
        if config.activation_checkpointing and config.keep_attention:
            block.forward = partial(_recomputed, block.forward)
        if config.compile_blocks:
            block.compile()


def _recomputed(forward: Callable[..., Any], *inputs: Any) -> Any:
    """A block's forward, recomputed in backward but for its attention."""
    if not torch.is_grad_enabled():
        return forward(*inputs)
    contexts = partial(create_selective_checkpoint_contexts, ATTENTION)
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts)
