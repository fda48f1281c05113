"""The plan's formulas beside the known figures of the paper's models (specification 6.2 and 6.3): FLOPs, seconds, GPU-hours, memory.

    python benchmarks/plan_agreement.py

Exit code 1 where one is further off than 3 % and than half of its figure's last printed digit. No GPU, no torch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from printed_table import print_table

from flashvideo.config import STAGE2_TRANSFORMER, EngineConfig, FrameShape, TransformerConfig
from orchestration.budget import memories, on_gpus, phase_costs
from orchestration.cost import (
    Rates,
    attention_flops,
    decode_flops,
    encode_flops,
    forward_seconds,
    linear_flops,
    step_seconds,
    t5_xxl_flops,
)
from pipelines.recipe import load

TOLERANCE, TEXT = 0.03, 226
TERA, GIB = 1e12, 2**30
STAGE1 = TransformerConfig()
RATES = Rates()
LOW, PATCH, FULL = (FrameShape(frames=49, height=h, width=w) for h, w in ((256, 480), (528, 960), (1072, 1920)))
IMAGE, LARGE_IMAGE = (FrameShape(frames=1, height=h, width=w) for h, w in ((528, 960), (1072, 1920)))
TWO_K = FrameShape(frames=49, height=1440, width=2560)


@dataclass(frozen=True)
class Figure:
    """A known number as it is printed, and the plan's."""

    section: str
    what: str
    printed: str
    planned: float

    @property
    def known(self) -> float:
        return float(self.printed.replace(",", ""))

    @property
    def off(self) -> float:
        return self.planned / self.known - 1

    @property
    def digit(self) -> float:
        """Half of the last digit that is printed."""
        return 0.5 * 10.0 ** -len(self.printed.partition(".")[2])

    @property
    def agrees(self) -> bool:
        return abs(self.off) <= TOLERANCE or abs(self.planned - self.known) <= self.digit


def flops() -> Iterator[Figure]:
    """6.2, TFLOP."""
    rows = (
        ("Stage I", STAGE1, LOW, "61.5", "21.6", "83.1"),
        ("5B", STAGE1, FrameShape(frames=49, height=480, width=720), "169", "163", "332"),
        ("5B", STAGE1, FULL, "996", "5,662", "6,659"),
        ("Stage II", STAGE2_TRANSFORMER, IMAGE, "5.9", "1.1", "7.0"),
        ("Stage II", STAGE2_TRANSFORMER, PATCH, "68.9", "155.3", "224.3"),
        ("Stage II", STAGE2_TRANSFORMER, FULL, "278.0", "2,527.9", "2,806"),
        ("Stage II", STAGE2_TRANSFORMER, FrameShape(frames=49, height=1088, width=1920), "282.2", "2,603.7", "2,886"),
        ("Stage II", STAGE2_TRANSFORMER, FrameShape(frames=5, height=1072, width=1920), "43.3", "61.3", "104.6"),
        ("Stage II", STAGE2_TRANSFORMER, TWO_K, "497", "8,094", "8,591"),
    )
    for name, config, shape, linear, attention, whole in rows:
        tokens = shape.num_tokens + TEXT
        once, both = linear_flops(config, tokens) / TERA, attention_flops(config, tokens) / TERA
        for part, printed, planned in (("linear", linear, once), ("attention", attention, both), ("forward", whole, once + both)):
            yield Figure("6.2", f"{name} {_size(shape)} {part}, TFLOP", printed, planned)
    for shape, encode, decode in (
        (LOW, "53", "112"),
        (PATCH, "219", "462"),
        (FULL, "887", "1,876"),
        (IMAGE, "7.0", "11.0"),
        (LARGE_IMAGE, "28.5", "44.7"),
    ):
        yield Figure("6.2", f"VAE encode {_size(shape)}, TFLOP", encode, encode_flops(shape) / TERA)
        yield Figure("6.2", f"VAE decode {_size(shape)}, TFLOP", decode, decode_flops(shape) / TERA)
    yield Figure("6.2", "T5-XXL, 226 tokens, TFLOP", "2.1", t5_xxl_flops(TEXT) / TERA)


def seconds() -> Iterator[Figure]:
    """6.3, of one H200."""
    forwards = {shape: forward_seconds(STAGE2_TRANSFORMER, shape.num_tokens + TEXT, RATES) for shape in (FULL, TWO_K)}
    first = forward_seconds(STAGE1, LOW.num_tokens + TEXT, RATES)
    yield Figure("6.3", "Stage I forward, s", "0.121", first)
    yield Figure("6.3", "Stage I, 50 steps guided, s", "12.1", 100 * first)
    yield Figure("6.3", "Stage I, 51 steps guided, s", "12.4", 102 * first)
    yield Figure("6.3", "Stage II forward 1080p, s", "5.44", forwards[FULL])
    yield Figure("6.3", "Stage II 1080p, 4 steps guided, s", "43.5", 8 * forwards[FULL])
    yield Figure("6.3", "Stage II 1080p, 5 steps guided, s", "54.4", 10 * forwards[FULL])
    yield Figure("6.3", "Stage II 1080p, 4 steps unguided, s", "21.8", 4 * forwards[FULL])
    yield Figure("6.3", "Stage II 2K, 4 steps guided, s", "135", 8 * forwards[TWO_K])
    yield Figure("6.3", "VAE encode 1080p, s", "1.8", encode_flops(FULL) / TERA / RATES.convolution)
    yield Figure("6.3", "VAE decode 1080p, s", "3.8", decode_flops(FULL) / TERA / RATES.convolution)
    for name, config, shape, again, kept, batch, all_of_it in (
        ("Stage I", STAGE1, LOW, "0.455", "0.334", 32, "14.6"),
        ("Stage II image", STAGE2_TRANSFORMER, IMAGE, "0.041", "0.031", 64, "2.6"),
        ("Stage II 540p", STAGE2_TRANSFORMER, PATCH, "1.95", "1.55", 64, "124.5"),
        ("Stage II 1080p", STAGE2_TRANSFORMER, FULL, "27.4", "21.9", 64, "1,752"),
    ):
        recomputed, plain = (
            step_seconds(
                config, shape.num_tokens + TEXT, EngineConfig(activation_checkpointing=recompute), RATES, adapters=config is STAGE1
            )
            for recompute in (True, False)
        )
        yield Figure("6.3", f"{name} step, batch 1, recompute, s", again, recomputed)
        yield Figure("6.3", f"{name} step, batch 1, no recompute, s", kept, plain)
        yield Figure("6.3", f"{name} step, batch {batch}, GPU-s", all_of_it, batch * recomputed)


def hours() -> Iterator[Figure]:
    """6.3, the recipe `paper` on 64 GPUs."""
    costs = phase_costs(on_gpus(load("paper"), 64), RATES)
    for cost, (printed, encode) in zip(costs, (("202", "47"), ("18", "12"), ("699", "316"), ("2,434", "315"), ("341", "44")), strict=True):
        yield Figure("6.3", f"{cost.name}, H200-hours", printed, cost.gpu_hours)
        yield Figure("6.3", f"{cost.name}, encoding anew, H200-hours", encode, cost.encode_gpu_hours)
    yield Figure("17", "phases 1-4, H200-hours", "3,500", sum(cost.gpu_hours for cost in costs[1:]))
    yield Figure("17", "phases 1-4, encoding anew, H200-hours", "690", sum(cost.encode_gpu_hours for cost in costs[1:]))
    yield Figure("6.3", "Stage I on 8 GPUs, days", "1.1", costs[0].gpu_hours / 8 / 24)


def memory() -> Iterator[Figure]:
    """6.3, one rank, batch 1."""
    first, _, patch, full, _ = (row.memory for row in memories(on_gpus(load("paper"), 1)))
    official = memories(on_gpus(load("paper", ("stage1.lora.targets=official",)), 1))[0].memory
    plain = ("stage1.full_finetune=true", "stage1.engine.activation_checkpointing=false", "stage2.engine.activation_checkpointing=false")
    whole, *_, kept = (row.memory for row in memories(on_gpus(load("paper", plain), 1)))
    for what, printed, planned in (
        ("Stage II states", "25.3", full.states),
        ("Stage I states, all weights trained", "83", whole.states),
        ("Stage I frozen weights", "10.4", first.frozen),
        ("Stage I adapters, paper set", "7.5", first.states - first.frozen),
        ("Stage I adapters, official set", "5.0", official.states - official.frozen),
        ("Stage II 540p activations kept", "2.8", patch.kept),
        ("Stage II 540p a block's peak", "2", patch.peak_block),
        ("Stage II 1080p activations kept", "11.2", full.kept),
        ("Stage II 1080p a block's peak", "8.2", full.peak_block),
        ("Stage II 1080p, no recompute", "247", kept.kept),
        ("Stage I activations kept", "1.6", first.kept),
        ("Stage I a block's peak", "0.8", first.peak_block),
        ("Stage I, no recompute", "34", whole.kept),
    ):
        yield Figure("6.3", f"{what}, GiB", printed, planned / GIB)


def _size(shape: FrameShape) -> str:
    return f"{shape.frames}x{shape.height}x{shape.width}"


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    figures = [*flops(), *seconds(), *hours(), *memory()]
    rows: list[tuple[object, ...]] = [("section", "what", "known", "plan", "off, %", "agrees")]
    for figure in figures:
        agrees = "yes" if abs(figure.off) <= TOLERANCE else "to its last digit" if figure.agrees else "NO"
        rows.append((figure.section, figure.what, figure.printed, f"{figure.planned:.4g}", f"{figure.off * 100:+.2f}", agrees))
    print_table(rows)
    close = sum(abs(figure.off) <= TOLERANCE for figure in figures)
    rounded = [figure for figure in figures if figure.agrees and abs(figure.off) > TOLERANCE]
    print(f"{len(figures)} figures: {close} within 3 %, {len(rounded)} more within half of their last digit")
    return 0 if all(figure.agrees for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
