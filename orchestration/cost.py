"""What training costs, by formula from the configuration alone: parameters, FLOPs, seconds, memory. No torch.

Formulas: FLOPs of a forward = 24 N d^2 L + 4 N^2 d L (N tokens with text, d width, L blocks); the others are in the
functions. Tests check the counts against the real classes and torch's FLOP counter at small sizes, and the results against
a table of known ones at the paper's.
"""

from __future__ import annotations

from dataclasses import dataclass

from flashvideo.config import EngineConfig, FrameShape, LoraConfig, TransformerConfig

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


def linear_flops(config: TransformerConfig, tokens: int) -> float:
    """Of the blocks' matrices in a forward of one sample of `tokens` tokens, text included."""
    return 24.0 * tokens * config.hidden_size**2 * config.num_layers


def attention_flops(config: TransformerConfig, tokens: int) -> float:
    """Of scores and sums over values in a forward of one sample."""
    return 4.0 * tokens**2 * config.hidden_size * config.num_layers


def forward_flops(config: TransformerConfig, tokens: int) -> float:
    """Of one sample of `tokens` tokens, text included."""
    return linear_flops(config, tokens) + attention_flops(config, tokens)


def train_flops(config: TransformerConfig, tokens: int, engine: EngineConfig, *, adapters: bool) -> float:
    """Of forward and backward of one sample: 3 forwards; frozen matrices have no gradient, so 2 of theirs; what is recomputed once more."""
    linear = (2 if adapters else 3) + engine.activation_checkpointing
    attention = 3 + (engine.activation_checkpointing and not engine.keep_attention)
    return linear * linear_flops(config, tokens) + attention * attention_flops(config, tokens)


# ---- seconds -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rates:
    """TFLOP/s of one GPU in bf16. Defaults: an H200."""

    matmul: float = 790.0
    """Measured."""
    attention: float = 497.0
    """FlashAttention 3, forward, head dimension 64, 16k tokens (its paper)."""
    attention_backward: float = 400.0
    """As above; its paper has 474, this is kept low."""
    convolution: float = 500.0
    """Assumed; small chunks reach 150 to 300."""


ATTENTION_BACKWARD = 2.5
"""FLOPs of attention's backward over its forward's: FlashAttention computes the scores once more."""


def forward_seconds(config: TransformerConfig, tokens: int, rates: Rates) -> float:
    """Of one sample on one GPU."""
    return (linear_flops(config, tokens) / rates.matmul + attention_flops(config, tokens) / rates.attention) / 1e12


def step_seconds(config: TransformerConfig, tokens: int, engine: EngineConfig, rates: Rates, *, adapters: bool) -> float:
    """Forward and backward of one sample on one GPU; communication and the optimizer left out."""
    linear = (2 if adapters else 3) + engine.activation_checkpointing
    attention = 1 + (engine.activation_checkpointing and not engine.keep_attention)
    once = attention_flops(config, tokens) / 1e12
    return (
        linear * linear_flops(config, tokens) / rates.matmul / 1e12
        + attention * once / rates.attention
        + ATTENTION_BACKWARD * once / rates.attention_backward
    )


# ---- the other networks ------------------------------------------------------------------------------------------

VAE_CHANNELS, VAE_LAYERS, LATENT_CHANNELS = (128, 256, 256, 512), 3, 16


def encode_flops(shape: FrameShape) -> float:
    """Of CogVideoX's autoencoder on one clip or image: its convolutions, whole pictures, any chunks (4x in time, 8x8 in space)."""
    frames = [shape.frames, (shape.frames - 1) // 2 + 1, shape.latent_shape[0], shape.latent_shape[0]]
    total, inputs = 0.0, VAE_CHANNELS[0]
    for level, channels in enumerate(VAE_CHANNELS):
        voxels = frames[level] * shape.height * shape.width / 4**level
        total += voxels * sum(_residual(inputs if layer == 0 else channels, channels) for layer in range(VAE_LAYERS))
        if level < len(VAE_CHANNELS) - 1:
            total += frames[level + 1] * shape.height * shape.width / 4 ** (level + 1) * 2 * 9 * channels**2
        inputs = channels
    total += voxels * (2 * _residual(inputs, inputs) + _kernel(inputs, 2 * LATENT_CHANNELS))
    return total + shape.frames * shape.height * shape.width * _kernel(3, VAE_CHANNELS[0])


def decode_flops(shape: FrameShape) -> float:
    """As `encode_flops`, back to pixels; every norm also reads the latents (two 1x1 convolutions)."""
    frames = [shape.latent_shape[0], (shape.frames - 1) // 2 + 1, shape.frames, shape.frames]
    channels = VAE_CHANNELS[::-1]
    inputs = channels[0]
    voxels = frames[0] * shape.height * shape.width / 64
    total = voxels * (2 * (_residual(inputs, inputs) + 2 * _norm(inputs)) + _kernel(LATENT_CHANNELS, inputs))
    for level, width in enumerate(channels):
        voxels = frames[level] * shape.height * shape.width / 64 * 4**level
        for layer in range(VAE_LAYERS + 1):
            start = inputs if layer == 0 else width
            total += voxels * (_residual(start, width) + _norm(start) + _norm(width))
        if level < len(channels) - 1:
            total += frames[level + 1] * shape.height * shape.width / 64 * 4 ** (level + 1) * 2 * 9 * width**2
        inputs = width
    return total + voxels * (_norm(inputs) + _kernel(inputs, 3))


def _kernel(inputs: int, outputs: int) -> float:
    """Of a 3x3x3 convolution, a voxel."""
    return 2.0 * 27 * inputs * outputs


def _residual(inputs: int, outputs: int) -> float:
    return _kernel(inputs, outputs) + _kernel(outputs, outputs) + (2.0 * inputs * outputs if inputs != outputs else 0.0)


def _norm(channels: int) -> float:
    return 2 * 2.0 * LATENT_CHANNELS * channels


def t5_xxl_flops(tokens: int) -> float:
    """Of T5 v1.1-XXL's encoder on one text (24 blocks, width 4096, gated feed-forward of 10,240)."""
    return 24 * (2.0 * tokens * (4 * 4096**2 + 3 * 4096 * 10_240) + 4.0 * tokens**2 * 4096)


# ---- memory ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank."""

    frozen: float
    """Weights that are not trained."""
    weights: float
    """Trained ones."""
    gradients: float
    optimizer: float
    """fp32 copy (bf16 only) and AdamW's two moments."""
    kept: float
    """Activations that wait for backward."""
    peak_block: float
    """Of the block that is in backward."""

    @property
    def states(self) -> float:
        return self.frozen + self.weights + self.gradients + self.optimizer

    @property
    def activations(self) -> float:
        return self.kept + self.peak_block

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
    kept = 1 if engine.activation_checkpointing else PEAK_BLOCK_TENSORS
    return Memory(
        float(frozen), weights, gradients, optimizer, kept=tensor * config.num_layers * kept, peak_block=tensor * PEAK_BLOCK_TENSORS
    )
