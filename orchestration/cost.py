"""What training costs, by formula from the configuration alone: parameters, FLOPs, memory. No torch.

Formulas: FLOPs of a forward = 24 N d^2 L + 4 N^2 d L (N tokens with text, d width, L blocks); the others are in the
functions. A test checks the counts against the real classes and the rest against `docs`' table of known sizes.
"""

from __future__ import annotations

from dataclasses import dataclass

from flashvideo.config import EngineConfig, LoraConfig, TransformerConfig

PEAK_BLOCK_TENSORS = 22
"""Tensors of N x d that one block holds at its peak in backward (measured on both stages' sizes: 8.2 GiB at 1080p)."""


def parameters(config: TransformerConfig) -> int:
    """Weights of the transformer."""
    d, t, patch = config.hidden_size, config.time_embed_dim, config.patch_size**2 * config.in_channels
    embeddings = 1 + config.noise_strength_embedding + config.num_frames_embedding
    block = _linear(t, 6 * d) * 2 + 2 * d * 2 + _linear(d, 3 * d) + _linear(d, d) + 2 * 2 * config.attention_head_dim
    block += _linear(d, 4 * d) + _linear(4 * d, d)
    ends = _linear(patch, d) + _linear(config.text_embed_dim, d) + embeddings * (_linear(d, t) + _linear(t, t))
    ends += 2 * d + _linear(t, 2 * d) + 2 * d + _linear(d, patch)
    return config.num_layers * block + ends


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def lora_parameters(config: TransformerConfig, lora: LoraConfig) -> int:
    """Weights of the adapters: rank x (inputs + outputs) for each adapted linear."""
    d, t = config.hidden_size, config.time_embed_dim
    sides = 4 * (d + d) + 2 * (t + 6 * d)  # q, k, v, out; the two adaptive norms
    if lora.targets == "paper":
        sides += 2 * (d + 4 * d)
    return config.num_layers * lora.rank * sides


def forward_flops(config: TransformerConfig, tokens: int) -> float:
    """Of one sample of `tokens` tokens, text included."""
    d, layers = config.hidden_size, config.num_layers
    return 24.0 * tokens * d**2 * layers + 4.0 * tokens**2 * d * layers


def train_flops(config: TransformerConfig, tokens: int, engine: EngineConfig, *, adapters: bool) -> float:
    """Of forward and backward of one sample: 3 forwards, 2 where the weights are frozen; one more with recompute."""
    forwards = (2 if adapters else 3) + engine.activation_checkpointing
    return forwards * forward_flops(config, tokens)


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank."""

    states: float
    """Weights, gradients, optimizer."""
    activations: float

    @property
    def total(self) -> float:
        return self.states + self.activations


def rank_memory(config: TransformerConfig, tokens: int, engine: EngineConfig, lora: LoraConfig | None) -> Memory:
    """Estimate for one rank. `tokens`: of one sample, text included. `lora` None: every weight is trained."""
    total = parameters(config)
    trained = total if lora is None else lora_parameters(config, lora)
    width = 2 if engine.precision == "bf16" else 4
    master = 12 if engine.precision == "bf16" else 8  # fp32 copy (bf16 only) and Adam's two moments
    frozen = 0 if lora is None else total * width
    shards = engine.num_ranks
    weights = trained * width / (shards if engine.zero_stage == 3 else 1)
    gradients = trained * width / (shards if engine.zero_stage >= 2 else 1)
    optimizer = 0.0 if engine.cpu_offload else trained * master / (shards if engine.zero_stage >= 1 else 1)
    tensor = float(tokens) * config.hidden_size * width * engine.micro_batch_size
    kept = config.num_layers if engine.activation_checkpointing else config.num_layers * PEAK_BLOCK_TENSORS
    return Memory(frozen + weights + gradients + optimizer, tensor * (kept + PEAK_BLOCK_TENSORS))
