"""Our transformer against diffusers' class at the same shapes in one run: one table of medians and ratios.

    .venv/bin/python benchmarks/transformer_speed.py [--device cuda] [--runs 7] [--threads 2]

Stock is what the released pipeline's calls amount to: `get_3d_rotary_pos_embed` for the grid, then
CogVideoXTransformer3DModel. The runs alternate, so that a machine that slows down slows both. fp32 and small shapes on
a CPU; bf16 and Stage II's width on a GPU. Below 1.00 ours is quicker.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flashvideo.config import TransformerConfig
from flashvideo.models.transformer import CogVideoXTransformer, to_diffusers

SHAPES = {
    "cpu": [(1, 2, 3, 32, 48), (2, 2, 5, 32, 60), (1, 6, 1, 64, 112)],
    "cuda": [(2, 4, 13, 32, 60), (2, 4, 13, 66, 120), (1, 4, 1, 66, 120)],
}
"""Batch, layers, latent frames, height, width."""
HEADS = {"cpu": 6, "cuda": 30}
TEXT_TOKENS = 226


def stock_model(ours: CogVideoXTransformer, device: torch.device, dtype: torch.dtype) -> Any:
    """diffusers' class with our weights and the released last norm (eps 1e-6)."""
    from diffusers import CogVideoXTransformer3DModel

    config = ours.config
    model = CogVideoXTransformer3DModel(
        num_attention_heads=config.num_attention_heads, num_layers=config.num_layers, use_rotary_positional_embeddings=True
    )
    model.load_state_dict(to_diffusers(ours.state_dict()), strict=True)
    model.norm_out.norm.eps = 1e-6
    return model.to(device, dtype)


def stock_forward(model: Any, latents: Tensor, text: Tensor, timestep: Tensor) -> Tensor:
    from diffusers.models.embeddings import get_3d_rotary_pos_embed

    frames, _, height, width = latents.shape[1:]
    grid = (height // 2, width // 2)
    rotary = get_3d_rotary_pos_embed(64, None, grid, frames, grid_type="slice", max_size=grid, device=latents.device)
    output: Tensor = model(latents, text, timestep, image_rotary_emb=rotary, return_dict=False)[0]
    return output


def timed(call: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def alternate(ours: Callable[[], object], stock: Callable[[], object], runs: int, device: torch.device) -> tuple[float, float]:
    """Median seconds of each, taken in turns after a warm-up."""
    pairs = [(timed(ours, device), timed(stock, device)) for _ in range(runs + 1)][1:]
    return statistics.median(one for one, _ in pairs), statistics.median(other for _, other in pairs)


def measure(shape: tuple[int, ...], runs: int, device: torch.device) -> None:
    batch, layers, frames, height, width = shape
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = CogVideoXTransformer(TransformerConfig(num_layers=layers, num_attention_heads=HEADS[device.type])).to(device, dtype)
    stock = stock_model(model, device, dtype)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(batch, frames, 16, height, width, generator=generator).to(device, dtype)
    text = torch.randn(batch, TEXT_TOKENS, 4096, generator=generator).to(device, dtype)
    timestep = torch.full((batch,), 500.0, device=device)
    with torch.no_grad():
        error = float((model(latents, text, timestep) - stock_forward(stock, latents, text, timestep)).abs().max())

    def ours_forward() -> None:
        with torch.no_grad():
            model(latents, text, timestep)

    def theirs_forward() -> None:
        with torch.no_grad():
            stock_forward(stock, latents, text, timestep)

    def ours_both() -> None:
        model(latents, text, timestep).float().square().mean().backward()
        model.zero_grad()

    def theirs_both() -> None:
        stock_forward(stock, latents, text, timestep).float().square().mean().backward()
        stock.zero_grad()

    tokens = TEXT_TOKENS + frames * (height // 2) * (width // 2)
    for name, ours, theirs in (("forward", ours_forward, theirs_forward), ("forward + backward", ours_both, theirs_both)):
        seconds, stock_seconds = alternate(ours, theirs, runs, device)
        ratio = seconds / stock_seconds
        print(
            f"| {batch} x {tokens} tokens, {layers} layers | {name} | {seconds:.4f} | {stock_seconds:.4f} | {ratio:.2f} | {error:.1e} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    print(f"{device}, {arguments.threads} threads, {HEADS[device.type]} heads of 64, median of {arguments.runs}")
    print("| shape | pass | ours, s | diffusers, s | ratio | max abs difference |")
    print("|---|---|---|---|---|---|")
    for shape in SHAPES[device.type]:
        measure(shape, arguments.runs, device)


if __name__ == "__main__":
    main()
