"""An accepted preview (or any mp4 of 8k+1 frames at 8 Hz) -> 1080p. Stage I does not run again.

python examples/enhance.py flashvideo-folder previews/2.safetensors --out fox.mp4
python examples/enhance.py flashvideo-folder mine.mp4 --prompt "a red fox ..." --out fox.mp4
"""

from __future__ import annotations

from pathlib import Path

from loading import DEBUG_FULL, DEBUG_STEPS, FULL, load, parser

from flashvideo.cascade import Previews, load_previews, seeded
from flashvideo.device_memory import plan_memory, table
from flashvideo.models.vae import pixels_to_video, video_to_pixels
from flashvideo.video_files import read_video, write_video


def read(path: Path, prompt: str | None, seed: int) -> Previews:
    """The kept preview, or the frames of a video file."""
    if path.suffix == ".safetensors":
        return load_previews(path)
    if prompt is None:
        raise SystemExit(f"{path} says no prompt; give --prompt")
    frames, _ = read_video(path)
    return Previews(pixels_to_video(frames)[None], [prompt], [seed])


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("video", type=Path)
    options.add_argument("--prompt")
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--motion", default="medium", choices=["very low", "low", "medium", "high", "very high"])
    given = options.parse_args(arguments)
    if not given.debug:
        print("peak memory:", table(plan_memory(given.offload, FULL)))
    cascade, kept = load(given), read(given.video, given.prompt, given.seed)
    shape, steps = (DEBUG_FULL, DEBUG_STEPS) if given.debug else (FULL, 4)
    video = cascade.enhance(
        kept.video, kept.prompts, shape, seeded(kept.seeds), given.motion, num_steps=steps, guidance_scale=13.0, noise_step=675
    )
    write_video(given.out, video_to_pixels(video[0]), frame_rate_hz=8, crf=12)
    print(given.out)


if __name__ == "__main__":
    main()
