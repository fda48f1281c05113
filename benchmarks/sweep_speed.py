"""How long the sweep over NFE 1-8 takes on a finished root, against one process a cell and against the matmul's own speed.

    .venv/bin/python benchmarks/sweep_speed.py --root ROOT [--recipe FILE] [--stage2 FINGERPRINT] [--repeats 3] [--no-peer]

Runs `python -m pipelines.sweep nfe` from nothing (the root's artifacts are linked into an empty one; ROOT stays as it is),
each time in a new process, imports and models included. The peer does the same cells one process each, as a loop over a
command would. The limit: the transformer's FLOPs at the rate of a plain matrix product with as many threads.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from printed_table import print_table

from flashvideo.config import FrameShape
from flashvideo.training.throughput import model_flops
from pipelines.recipe import Recipe, load

VALUES = tuple(range(1, 9))


def linked(root: Path, parent: Path) -> Path:
    """A root with the same artifacts, store and tracks, and no sweep."""
    own = parent / root.name
    own.mkdir()
    for path in root.iterdir():
        if path.name not in ("sweep", "run.lock", "recipe.json"):
            (own / path.name).symlink_to(path)
    return own


def timed_sweep(root: Path, recipe: str, values: str, stage2: str | None) -> float:
    """Wall seconds of one command. Raises SystemExit with the command's last line where it fails."""
    command = [sys.executable, "-m", "pipelines.sweep", "nfe", "--root", str(root), "--recipe", recipe, "--values", values]
    command += ["--stage2", stage2] if stage2 is not None else []
    begin = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(done.stderr.strip().splitlines()[-1])
    return time.monotonic() - begin


def cells(root: Path) -> list[dict[str, Any]]:
    """Every item's numbers at every cell, with the cell's protocol."""
    found = []
    for folder in sorted((root / "sweep" / "cells").iterdir()):
        protocol = json.loads((folder / "cell.json").read_text())
        found += [json.loads(path.read_text()) | {"protocol": protocol} for path in folder.glob("*.json") if path.name != "cell.json"]
    return found


def matmul_flops_per_s(threads: int) -> float:
    """Of a 1024 x 1024 product in fp32, the best of 20."""
    torch.set_num_threads(threads)
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    best = min(_seconds(a, b) for _ in range(20))
    return 2 * 1024**3 / best


def _seconds(a: torch.Tensor, b: torch.Tensor) -> float:
    begin = time.perf_counter()
    torch.matmul(a, b)
    return time.perf_counter() - begin


def parts_table(found: list[dict[str, Any]], wall: float) -> list[list[object]]:
    """Where the seconds of one sweep went."""
    sums = {part: sum(entry["times"].get(part, 0.0) for entry in found) for part in ("sample_s", "decode_s", "measure_s")}
    sums["encode_s"] = sum(
        max(entry["times"]["encode_s"] for entry in found if entry["item"] == item) for item in {e["item"] for e in found}
    )
    rest = wall - sum(sums.values())
    names = {"sample_s": "transformer", "decode_s": "autoencoder, decoding", "encode_s": "autoencoder and text, encoding"}
    names |= {"measure_s": "metrics"}
    rows: list[list[object]] = [["part of one sweep", "s", "share"]]
    rows += [[names[part], seconds, f"{seconds / wall:.0%}"] for part, seconds in sums.items()]
    return [*rows, ["imports, models, decoding clips, files", rest, f"{rest / wall:.0%}"], ["wall", wall, "100%"]]


def cell_table(found: list[dict[str, Any]], recipe: Recipe, flops_per_s: float) -> list[list[object]]:
    """Seconds a cell and frames a second; the transformer's share of the matmul's rate."""
    rows: list[list[object]] = [["NFE", "s a cell", "frames/s enhanced", "transformer s a video", "of the matmul's rate"]]
    shape = FrameShape.model_validate(next(entry for entry in found if entry["protocol"]["kind"] == "enhanced")["protocol"]["shape"])
    tokens = shape.num_tokens + recipe.text_encoder.max_length
    forward = model_flops(recipe.stage2.transformer, tokens, adapters=False) / 3
    for value in VALUES:
        own = [entry for entry in found if (entry["protocol"].get("sampling") or {}).get("num_steps") == value]
        times = [entry["times"] for entry in own]
        enhance = sum(time["sample_s"] + time["decode_s"] for time in times)
        whole = enhance + sum(time["measure_s"] for time in times)
        sample = statistics.median(time["sample_s"] for time in times)
        branches = 1 if own[0]["protocol"]["sampling"]["guidance_scale"] == 1 else 2
        share = forward * value * branches / sample / flops_per_s
        rows.append([value, whole, sum(entry["frames"] for entry in own) / enhance, sample, f"{share:.0%}"])
    return rows


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description="Time the sweep over NFE 1-8.")
    parser.add_argument("--root", type=Path, required=True, help="run root that holds a trained Stage II")
    parser.add_argument("--recipe", default=None, help="default: the root's recipe.json")
    parser.add_argument("--stage2", default=None, metavar="FINGERPRINT", help="a finished Stage II that the recipe names no more")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-peer", action="store_true", help="leave one process a cell out")
    arguments = parser.parse_args()
    root = arguments.root.resolve()
    recipe_file = arguments.recipe or str(root / "recipe.json")
    recipe = load(recipe_file)
    text = ",".join(map(str, VALUES))
    walls, peers, found = [], [], []
    for _ in range(arguments.repeats):
        with tempfile.TemporaryDirectory() as folder:
            own = linked(root, Path(folder))
            walls.append(timed_sweep(own, recipe_file, text, arguments.stage2))
            found = cells(own)
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    if not arguments.no_peer:
        with tempfile.TemporaryDirectory() as folder:
            for value in VALUES:
                (Path(folder) / str(value)).mkdir()
                peers.append(timed_sweep(linked(root, Path(folder) / str(value)), recipe_file, str(value), arguments.stage2))
    threads = recipe.stage2.engine.torch_threads or torch.get_num_threads()
    flops_per_s = matmul_flops_per_s(threads)
    wall = statistics.median(walls)
    items = len({entry["item"] for entry in found})
    frames = sum(entry["frames"] for entry in found if entry["protocol"]["kind"] == "enhanced")
    print(f"{items} clips, {frames} frames enhanced, metrics {', '.join(recipe.evaluation.frame_metrics) or 'none'}, {threads} thread(s)")
    rows: list[list[object]] = [["the whole sweep, NFE 1-8", "s", "frames/s", "peak GB"]]
    rows.append([f"one command (median of {len(walls)}: {', '.join(f'{one:.1f}' for one in walls)})", wall, frames / wall, memory])
    if peers:
        rows.append(["one process a cell (once)", sum(peers), frames / sum(peers), "–"])
    print_table(rows)
    print_table(cell_table(found, recipe, flops_per_s))
    print_table(parts_table(found, walls[-1]))
    print(f"matmul, {threads} thread(s): {flops_per_s / 1e9:.0f} GFLOP/s; limit of 5 minutes: {'met' if max(walls) < 300 else 'MISSED'}")


if __name__ == "__main__":
    main()
