"""Peak memory of evaluating one 1080p video of 49 frames at 8 frames/s in all 16 dimensions, without networks' weights.

    .venv/bin/python benchmarks/evaluation_memory.py

Stand-in networks answer, so what is measured is pixels: the decoder, the frames that are kept, the encoder. Each row is
the highest resident memory of a process of its own; the first one only imports.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from printed_table import print_table

FRAMES, RATE_HZ, HEIGHT, WIDTH = 49, 8, 1080, 1920
LIMIT_MB = 1500
"""Megabytes (10^6) that issue 6 allows."""
CASES = {
    "imports alone": (),
    "vbench": ("vbench", "none"),
    "vbench_long": ("vbench_long", "none"),
    "vbench_long, 1.024 Mbit/s": ("vbench_long", "1.024M"),
    "vbench_long, crf 23": ("vbench_long", "crf23"),
}
LOOKED_FOR = {
    "object_class": {"object": "person"},
    "multiple_objects": {"object": "person and dog"},
    "color": {"color": "red"},
    "spatial_relationship": {
        "spatial_relationship": {"object_a": "person", "object_b": "dog", "relationship": "on the left of"},
    },
    "scene": {"scene": {"scene": "red"}},
    "appearance_style": {"appearance_style": "blue"},
}


def write_film(path: Path, frames: int = FRAMES) -> None:
    """A pan over texture with noise, which compresses badly."""
    import numpy as np

    from flashvideo.video_files import write_video

    draws = np.random.default_rng(0)
    field = np.kron(draws.integers(0, 256, (72, 130, 3)), np.ones((16, 16, 1), np.uint8)).astype(np.int16)
    film = np.stack(
        [
            (field[t : t + HEIGHT, 2 * t : 2 * t + WIDTH] + draws.integers(-12, 13, (HEIGHT, WIDTH, 1), dtype=np.int16))
            .clip(0, 255)
            .astype(np.uint8)
            for t in range(frames)
        ]
    )
    write_video(path, film, RATE_HZ, 23)


def evaluate(film: Path, suite: str, re_encode: str) -> int:
    """Scores the film in 16 dimensions; returns how many it was scored in."""
    import torch

    from flashvideo.evaluation.evaluator import Evaluator
    from flashvideo.evaluation.networks.stand_ins import stand_in_networks
    from flashvideo.evaluation.protocol import VBenchProtocol
    from flashvideo.evaluation.rules import build_rules
    from flashvideo.evaluation.score_store import ScoreStore
    from flashvideo.evaluation.scores import Prompt
    from flashvideo.evaluation.suite import VideoItem
    from flashvideo.evaluation.totals import DIMENSIONS

    torch.set_num_threads(1)
    protocol = VBenchProtocol.model_validate({"suite": suite, "re_encode": re_encode, "prompts": "short", "prompts_sha256": "0" * 64})
    prompt = Prompt(text="a person is marching", dimensions=DIMENSIONS, auxiliary=LOOKED_FOR)
    item = VideoItem(path=film, prompt=prompt, dimensions=DIMENSIONS, index=0)
    with tempfile.TemporaryDirectory() as folder:
        judge = Evaluator(protocol, build_rules(stand_in_networks(), protocol), ScoreStore(Path(folder)))
        tally = judge.evaluate([item])
        for problem in tally.problems:
            print(problem.message, file=sys.stderr)
        return sum(judge.score_of(item, name) is not None for name in DIMENSIONS)


def child(film: Path, case: str) -> None:
    import flashvideo.evaluation.evaluator
    import flashvideo.evaluation.networks.stand_ins  # noqa: F401

    begin = time.monotonic()
    given = CASES[case]
    scored = evaluate(film, *given) if given else 0
    status = Path("/proc/self/status").read_text()  # getrusage's maximum is inherited from the parent
    [kilobytes] = re.findall(r"VmHWM:\s+(\d+)", status)
    peak = 1024 * int(kilobytes)
    print(f"{peak / 1e6:.0f} {scored} {time.monotonic() - begin:.1f}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--child", nargs=2, metavar=("FILM", "CASE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(Path(options.child[0]), options.child[1])
        return 0
    rows: list[list[object]] = [["case", "dimensions scored", "peak memory, MB", "above imports, MB", "seconds"]]
    worst = base = 0
    with tempfile.TemporaryDirectory() as folder:
        film = Path(folder) / "film.mp4"
        write_film(film)
        for case in CASES:
            command = [sys.executable, __file__, "--child", str(film), case]
            text = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
            peak = int(text[0])
            base = base or peak
            worst = max(worst, peak)
            rows.append([case, text[1], peak, peak - base, text[2]])
    print(f"one video of {FRAMES} frames, {WIDTH}x{HEIGHT}, {RATE_HZ} frames/s, stand-in networks\n")
    print_table(rows)
    print(f"limit {LIMIT_MB} MB: {'kept' if worst < LIMIT_MB else 'BROKEN'}")
    return 0 if worst < LIMIT_MB else 1


if __name__ == "__main__":
    sys.exit(main())
