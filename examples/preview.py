"""Prompt -> 270p previews, one a seed, kept for enhancing.

python examples/preview.py flashvideo-folder "a red fox ..." --seeds 1 2 3 --out previews
"""

from __future__ import annotations

from pathlib import Path

from loading import DEBUG_PREVIEW, DEBUG_STEPS, PREVIEW, load, parser

from flashvideo.cascade import save_previews, seeded
from flashvideo.models.vae import video_to_pixels
from flashvideo.video_files import write_video


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("prompt")
    options.add_argument("--seeds", type=int, nargs="+", default=[0])
    options.add_argument("--out", type=Path, required=True)
    given = options.parse_args(arguments)
    cascade = load(given)
    for seed in given.seeds:
        shape, steps = (DEBUG_PREVIEW, DEBUG_STEPS) if given.debug else (PREVIEW, None)
        preview = cascade.preview(given.prompt, shape, seeded([seed]), num_steps=steps)
        save_previews(given.out / f"{seed}.safetensors", preview, [given.prompt], [seed])  # what examples/enhance.py takes
        write_video(given.out / f"{seed}.mp4", video_to_pixels(preview[0]), frame_rate_hz=8, crf=12)  # what you look at
        print(f"seed {seed}: {given.out / f'{seed}.mp4'}")


if __name__ == "__main__":
    main()
