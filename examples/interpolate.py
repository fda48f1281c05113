"""8 -> 24 frames a second.

python examples/interpolate.py fox.mp4 --out fox24.mp4                          optical flow, no weights
python examples/interpolate.py fox.mp4 --out fox24.mp4 --rife flownet.pkl       RIFE 4.6
"""

from __future__ import annotations

import argparse
from pathlib import Path

from flashvideo.sampling.interpolation import build_interpolator, interpolate
from flashvideo.video_files import read_video, write_video


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rife", help="RIFE 4.6's flownet.pkl")
    given = parser.parse_args(arguments)
    interpolator = build_interpolator("rife" if given.rife else "dis", given.rife)
    assert interpolator is not None
    frames, rate = read_video(given.video)
    smooth = interpolate(frames, interpolator, factor=3)
    write_video(given.out, smooth, frame_rate_hz=3 * rate, crf=12)
    print(f"{len(frames)} frames -> {len(smooth)} by {interpolator.name}: {given.out}")


if __name__ == "__main__":
    main()
