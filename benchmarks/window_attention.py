"""Attention inside 3D windows against full attention: one table of computed shares and times.

    .venv/bin/python benchmarks/window_attention.py [--device cuda] [--threads 2]

First what is computed at the paper's shapes (arithmetic, any machine), then times of one attention (forward, bf16 on a
GPU, fp32 on a CPU, where the grids are smaller), the median of several runs after a warm-up that compiles.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from flashvideo.models.window_attention import Window, window_plan

TEXT_TOKENS = 226
SHARE_GRIDS = {"49x528x960": (13, 33, 60), "49x1072x1920": (13, 67, 120), "49x1440x2560": (13, 90, 160)}
WINDOWS = [(7, 11, 11), (7, 19, 19), (7, 29, 29)]
TILES = [(2, 8, 8), (4, 4, 8), (1, 8, 16)]
TIMED = {"cpu": ((5, 48, 80), 1, torch.float32, 3), "cuda": ((13, 67, 120), 30, torch.bfloat16, 10)}
"""Grid, heads, dtype, runs."""


def median_seconds(call: Callable[[], object], runs: int, device: torch.device) -> float:
    seconds = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def print_shares() -> None:
    print("| video | window | tile | exact window | computed | computed pairs, x 1e9 |")
    print("|---|---|---|---|---|---|")
    for name, grid in SHARE_GRIDS.items():
        for size in WINDOWS:
            for tile in TILES if size == WINDOWS[0] else TILES[:1]:
                plan = window_plan(grid, TEXT_TOKENS, Window(size, tile), torch.device("cpu"))
                pairs = (TEXT_TOKENS + math.prod(grid)) ** 2 * plan.computed_share / 1e9
                print(f"| {name} | {size} | {tile} | {plan.window_share:.2%} | {plan.computed_share:.2%} | {pairs:.2f} |")


@torch.inference_mode()
def print_times(device: torch.device) -> None:
    grid, heads, dtype, runs = TIMED[device.type]
    tokens = TEXT_TOKENS + math.prod(grid)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, heads, tokens, 64, generator=generator).to(device, dtype) for _ in range(3))
    full = median_seconds(lambda: F.scaled_dot_product_attention(query, key, value), runs, device)
    print(f"\n{device}: {grid} tokens + {TEXT_TOKENS} text, {heads} heads of 64, {dtype}, median of {runs}")
    print("| attention | computed | seconds | of full | what the share would be worth |")
    print("|---|---|---|---|---|")
    print(f"| full (SDPA) | 100% | {full:.4f} | 1.00 | |")
    for size in [(3, 5, 5), *WINDOWS[:2]] if device.type == "cpu" else WINDOWS:
        for exact in (False, True):
            plan = window_plan(grid, TEXT_TOKENS, Window(size, exact=exact), device)
            seconds = median_seconds(lambda plan=plan: plan.attend(query, key, value), runs, device)  # type: ignore[misc]
            name = f"{size} {'exact' if exact else 'tiles'}"
            print(f"| {name} | {plan.computed_share:.2%} | {seconds:.4f} | {seconds / full:.2f} | {plan.computed_share:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print_shares()
    print_times(torch.device(arguments.device))


if __name__ == "__main__":
    main()
