"""What a sweep will cost, before it starts: forwards, FLOPs, frames scored, and seconds from what was measured in the root."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from flashvideo.evaluation.sweeps import MISSING, Table, markdown, shown
from flashvideo.training.throughput import model_flops
from pipelines.sweep_cells import Cell, Item, Trained, work_of
from pipelines.sweep_worker import kept

if TYPE_CHECKING:
    from pipelines.sweep import Plan

CPU_SECONDS_1080P = {"musiq": 10.2, "maniqa": 68.5, "clipiqa": 9.3, "niqe": 3.5}
"""Of one 1072x1920 frame on two cores (measured once with random weights); scaled by pixels where nothing is measured here."""
PIXELS_1080P = 1072 * 1920


def forwards(cell: Cell) -> int:
    """Forwards of the transformer for one video: two a step with guidance, one at guidance 1."""
    if cell.sampling is None:
        return 0
    return cell.sampling.num_steps * (1 if cell.sampling.guidance_scale == 1 else 2)


def video_teraflops(cell: Cell, trained: Trained) -> float:
    """Of the transformer for one video (full attention; forward = 24 N d^2 L + 4 N^2 d L a forward)."""
    tokens = cell.shape.num_tokens + trained.recipe.text_encoder.max_length
    return forwards(cell) * model_flops(trained.recipe.stage2.transformer, tokens, adapters=False) / 3 / 1e12


class Rates:
    """Seconds a TFLOP and seconds a scored frame, from finished cells of this root; else from training and from a table."""

    def __init__(self, trained: Trained, pairs: Sequence[tuple[Item, Cell]]) -> None:
        sampling, scoring = [], []
        for item, cell in pairs:
            found = kept(cell, item, trained.folder)
            if found is None or found["quality"] is None:
                continue
            if cell.kind == "enhanced":
                sampling.append((found["times"]["sample_s"] + found["times"]["decode_s"]) / video_teraflops(cell, trained))
            scoring.append(found["times"]["measure_s"] / len(range(0, found["frames"], trained.recipe.evaluation.frame_stride)))
        self.source = "from finished cells of this root"
        self.seconds_per_teraflop = statistics.median(sampling) if sampling else _training_rate(trained)
        if not sampling:
            self.source = "from the training's throughput; not the autoencoder"
        self.seconds_per_frame = statistics.median(scoring) if scoring else None

    def seconds(self, cell: Cell, trained: Trained, count: int) -> float | None:
        """Of so many videos; None where there is nothing to go by."""
        if self.seconds_per_teraflop is None:
            return None
        stride = trained.recipe.evaluation.frame_stride
        frames = len(range(0, cell.shape.frames, stride))
        per_frame = self.seconds_per_frame
        if per_frame is None:
            pixels = cell.shape.height * cell.shape.width / PIXELS_1080P
            per_frame = sum(CPU_SECONDS_1080P.get(name, 0.0) for name in trained.recipe.evaluation.frame_metrics) * pixels
        return count * (video_teraflops(cell, trained) * self.seconds_per_teraflop + frames * per_frame)


def _training_rate(trained: Trained) -> float | None:
    """Seconds a TFLOP of one rank while Stage II was trained; None without its log."""
    path = trained.workspace.folder("train_stage2", trained.reports["train_stage2"].fingerprint) / "losses.jsonl"
    if not path.is_file():
        return None
    rates = [entry["teraflops_per_rank"] for entry in map(json.loads, path.read_text().splitlines()) if entry.get("teraflops_per_rank")]
    return 1 / statistics.median(rates) if rates else None


def print_costs(plans: Sequence[Plan], trained: Trained) -> None:
    """Every cell of every plan; a cell that two sweeps share costs once."""
    rates = Rates(trained, [pair for plan in plans for pair in plan.pairs])
    seen: set[str] = set()
    total, unknown = 0.0, 0
    for plan in plans:
        rows = []
        for cell in plan.cells:
            items = [item for item, other in work_of([cell], plan.items) if other is cell]
            left = sum(kept(cell, item, trained.folder) is None for item in items) if cell.key not in seen else 0
            shared = cell.key in seen
            seen.add(cell.key)
            seconds = rates.seconds(cell, trained, left)
            unknown += seconds is None and left > 0
            total += seconds or 0.0
            state = "shared" if shared else f"{len(items) - left} of {len(items)} done"
            tera = video_teraflops(cell, trained)
            frames = left * len(range(0, cell.shape.frames, trained.recipe.evaluation.frame_stride))
            size = f"{cell.shape.frames}x{cell.shape.height}x{cell.shape.width}"
            forward = str(forwards(cell)) if cell.sampling else MISSING
            rows.append(
                (cell.label, cell.kind, size, state, forward, shown(tera or None, ".3g"), str(frames), shown(seconds, ".0f"), cell.key)
            )
        columns = ("cell", "kind", "frames x px", "state", "forwards a video", "TFLOP a video", "frames to score", "s to do", "protocol")
        print(f"\n{plan.name} (the paper's Table {plan.table}): {plan.inputs}\n")
        print(markdown(Table(columns, tuple(rows))))
        for note in plan.notes:
            print(f"note: {note}")
    print(f"about {total:.0f} s to do, {rates.source}" + (f"; {unknown} cells have no estimate yet" if unknown else ""))
