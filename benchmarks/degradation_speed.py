"""Speed of DEG_pixel: CPU seconds a clip, of the weak and the strong branch, at the shapes of training.

python benchmarks/degradation_speed.py [--clips 4] [--shapes 1x528x960 9x256x448 49x528x960]

CPU seconds of one thread, so that other work on the machine does not count; clips/s/core is their inverse.
"""

from __future__ import annotations

import argparse
import time

import torch

from flashvideo.config import PixelDegradationConfig
from flashvideo.objectives.degradation import Branch, draw_degradation


def cpu_seconds(shape: tuple[int, int, int], strong: bool, clips: int) -> list[float]:
    """Of each clip: drawing and applying. The first of all is a warm-up and not counted."""
    config = PixelDegradationConfig()
    branch: Branch = "strong" if strong else "weak"
    frames, height, width = shape
    picture = torch.rand(1, 3, height // 8, width // 8, generator=torch.Generator().manual_seed(0))
    clip = torch.nn.functional.interpolate(picture, (height, width), mode="bicubic").clamp(0, 1).repeat(frames, 1, 1, 1)
    seconds = []
    for number in range(clips + 1):
        begin = time.process_time()
        draw_degradation(config, seed=0, sample_id=f"clip{number}", variant=0, num_frames=frames, branch=branch).apply(clip)
        seconds.append(time.process_time() - begin)
    return seconds[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--shapes", nargs="+", default=["1x528x960", "9x256x448", "49x528x960"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| frames x height x width | branch | CPU s a clip (mean, worst) | clips/s/core |\n|---|---|---|---|")
    for name in arguments.shapes:
        frames, height, width = (int(side) for side in name.split("x"))
        for strong in (False, True):
            seconds = cpu_seconds((frames, height, width), strong, arguments.clips)
            mean = sum(seconds) / len(seconds)
            print(f"| {name} | {'strong' if strong else 'weak'} | {mean:.2f}, {max(seconds):.2f} | {1 / mean:.2f} |", flush=True)


if __name__ == "__main__":
    main()
