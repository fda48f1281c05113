"""Enhancing with attention inside 3D windows, chosen by the clip's motion, beside full attention.

    python examples/window_attention.py flashvideo-folder previews/2.safetensors

The released model was trained with full attention: this prints how far the two videos are apart.
"""

from __future__ import annotations

from pathlib import Path

from loading import DEBUG_FULL, DEBUG_STEPS, FULL, load, parser

from flashvideo.cascade import attention_options, load_previews, seeded
from flashvideo.config import AttentionConfig


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("preview", type=Path)
    given = options.parse_args(arguments)
    cascade, kept = load(given), load_previews(given.preview)
    shape, steps = (DEBUG_FULL, DEBUG_STEPS) if given.debug else (FULL, 4)
    full = cascade.enhance(kept.video, kept.prompts, shape, seeded(kept.seeds), num_steps=steps)
    window = AttentionConfig(kind="window", window=(7, 11, 11))
    cascade.stage2_sampling = cascade.stage2_sampling.model_copy(update={"attention": window})
    windowed = cascade.enhance(kept.video, kept.prompts, shape, seeded(kept.seeds), num_steps=steps)
    print("chosen for this clip:", attention_options(window, kept.video, shape))
    print(f"mean difference to full attention: {(full - windowed).abs().mean():.4f} of 2")


if __name__ == "__main__":
    main()
