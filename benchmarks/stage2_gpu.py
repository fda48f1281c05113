"""Stage II on a GPU at the released size: attention backends, one forward, and a four-step guided enhance.

    .venv/bin/python benchmarks/stage2_gpu.py [--skip-enhance]

Random weights (speed does not depend on them), bf16, 49 frames. TFLOP/s count 24 N d^2 L + 4 N^2 d L (N with text); the
ceiling is a bf16 matmul of 8192^3 measured here. "Enhance" is 4 steps x 2 guidance branches of the transformer, one
branch after the other, plus decoding to pixels with the full-size autoencoder; the paper's 72.2 s is 4 steps at
1072x1920. Prints one line and exits 0 where there is no CUDA device.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from flashvideo.config import STAGE2_TRANSFORMER, AttentionConfig, FrameShape, Stage2SamplingConfig
from flashvideo.models.transformer import CogVideoXTransformer
from flashvideo.models.vae import CogVideoXAutoencoder
from flashvideo.models.window_attention import AttentionOptions, choose_window
from flashvideo.sampling.stage2 import enhance_latents

TEXT_TOKENS = 226
PAPER_SECONDS = 72.2
SHAPES = (FrameShape(height=528, width=960), FrameShape(height=1072, width=1920))
BACKENDS = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)
DEVICE = torch.device("cuda")
DTYPE = torch.bfloat16


def timed_seconds(call: Callable[[], object], runs: int = 3) -> list[float]:
    """After one warm-up; a GPU is waited for."""
    seconds = []
    for _ in range(runs + 1):
        _wait()
        start = time.perf_counter()
        call()
        _wait()
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def median_seconds(call: Callable[[], object], runs: int = 3) -> float:
    """Of `timed_seconds`."""
    return statistics.median(timed_seconds(call, runs))


def matmul_ceiling() -> float:
    """TFLOP/s of a large bf16 matmul."""
    one, other = (torch.randn(8192, 8192, device=DEVICE, dtype=DTYPE) for _ in range(2))
    return 2 * 8192**3 / median_seconds(lambda: one @ other, 20) / 1e12


def forward_teraflop(tokens: int) -> float:
    width, layers = STAGE2_TRANSFORMER.hidden_size, STAGE2_TRANSFORMER.num_layers
    return (24 * tokens * width**2 * layers + 4 * tokens**2 * width * layers) / 1e12


def print_row(name: str, shape: FrameShape, seconds: float, teraflop: float, ceiling: float) -> None:
    rate = teraflop / seconds
    print(f"| {name} | {shape.frames}x{shape.height}x{shape.width} | {seconds:.3f} | {rate:.0f} | {rate / ceiling:.0%} |", flush=True)


def print_attention(shape: FrameShape, ceiling: float) -> None:
    """One layer's attention with each backend that takes it."""
    tokens, heads = shape.num_tokens + TEXT_TOKENS, STAGE2_TRANSFORMER.num_attention_heads
    query, key, value = (torch.randn(1, heads, tokens, 64, device=DEVICE, dtype=DTYPE) for _ in range(3))
    teraflop = 4 * tokens**2 * heads * 64 / 1e12
    for backend in BACKENDS:
        try:
            with sdpa_kernel(backend):
                seconds = median_seconds(lambda: F.scaled_dot_product_attention(query, key, value))
        except RuntimeError as error:
            print(f"| attention, {backend.name} | {shape.height}x{shape.width} | not available: {str(error).splitlines()[0][:80]} | | |")
            continue
        print_row(f"attention, {backend.name}", shape, seconds, teraflop, ceiling)


def print_forward(model: CogVideoXTransformer, shape: FrameShape, ceiling: float) -> None:
    """The whole transformer: each full-attention backend, then the window of a slow clip."""
    frames, height, width = shape.latent_shape
    latents = torch.randn(1, frames, 16, height, width, device=DEVICE, dtype=DTYPE)
    text = torch.randn(1, TEXT_TOKENS, 4096, device=DEVICE, dtype=DTYPE)
    moment, noise_step = torch.tensor([500.0], device=DEVICE), torch.tensor([675.0], device=DEVICE)
    teraflop = forward_teraflop(shape.num_tokens + TEXT_TOKENS)
    for backend in BACKENDS:
        try:
            with sdpa_kernel(backend):
                seconds = median_seconds(lambda: model(latents, text, moment, noise_step), 2)
        except RuntimeError as error:
            print(f"| forward, {backend.name} | {shape.height}x{shape.width} | not available: {str(error).splitlines()[0][:80]} | | |")
            continue
        print_row(f"forward, {backend.name}", shape, seconds, teraflop, ceiling)
    options = AttentionOptions(choose_window(0.0, (frames, height // 2, width // 2), AttentionConfig(kind="window")))
    seconds = median_seconds(lambda: model(latents, text, moment, noise_step, options), 2)
    print(f"| forward, window (7, 11, 11) | {shape.frames}x{shape.height}x{shape.width} | {seconds:.3f} | | |", flush=True)


def print_enhance(model: CogVideoXTransformer, shape: FrameShape) -> None:
    """Four guided steps and decoding, with PyTorch's own choice of backend and with the one that is quickest on Hopper."""
    from diffusers import AutoencoderKLCogVideoX

    frames, height, width = shape.latent_shape
    degraded = torch.randn(1, frames, 16, height, width)
    text = torch.randn(1, TEXT_TOKENS, 4096)
    config = Stage2SamplingConfig(num_steps=4)

    def sample() -> torch.Tensor:
        return enhance_latents(model, degraded, text, config, [torch.Generator().manual_seed(0)], sequential_guidance=True)

    for name, backends in (("default", list(BACKENDS)), ("cuDNN", [SDPBackend.CUDNN_ATTENTION])):
        try:
            with sdpa_kernel(backends):
                seconds = median_seconds(sample, 1)
        except RuntimeError as error:
            print(f"| enhance, {name} | {shape.height}x{shape.width} | not available: {str(error).splitlines()[0][:80]} | | |")
            continue
        note = f"{seconds / PAPER_SECONDS:.2f} of the paper's {PAPER_SECONDS} s" if shape.height == 1072 else ""
        print(f"| enhance, 4 steps guided, {name} | {shape.height}x{shape.width} | {seconds:.1f} | {note} | |", flush=True)
    latents = sample()
    with torch.device(DEVICE):
        network = AutoencoderKLCogVideoX().eval().requires_grad_(False)
    vae = CogVideoXAutoencoder(torch.nn.Module.to(network, torch.float16), "inference", "random weights", None)
    plan = vae.plan_decode(tuple(latents.shape))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    seconds = median_seconds(lambda: vae.decode(latents), 1)
    measured = torch.cuda.max_memory_allocated() - before
    planned = plan.pass_bytes + plan.result_bytes
    print(
        f"| decode, {len(plan.tiles)} tiles | {shape.height}x{shape.width} | {seconds:.1f} | "
        f"{measured / 1e9:.1f} GB, planned {planned / 1e9:.1f} | |"
    )


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--skip-enhance", action="store_true", help="only attention and single forwards")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device")
        return 0
    ceiling = matmul_ceiling()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}: bf16 matmul {ceiling:.0f} TFLOP/s")
    print("| what | shape | seconds | TFLOP/s | of the matmul ceiling |")
    print("|---|---|---|---|---|")
    with torch.device("meta"):
        model = CogVideoXTransformer(STAGE2_TRANSFORMER)
    model = model.to_empty(device=DEVICE).to(DTYPE).eval()
    for weight in model.parameters():
        weight.normal_(0, 0.02)
    for shape in SHAPES:
        print_attention(shape, ceiling)
        print_forward(model, shape, ceiling)
        if not arguments.skip_enhance:
            print_enhance(model, shape)
    return 0


if __name__ == "__main__":
    sys.exit(main())
