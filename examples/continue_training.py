"""Go on training the released Stage I on a clip of your own: a new LoRA on the base with the released one merged in.

    python examples/continue_training.py flashvideo-folder mine.mp4 --prompt "a red fox ..." --out my-lora --steps 200

It shows the objective and the files in thirty lines. For a data set, name `my-lora/base` as stage1.base_weights of a recipe and
run `flashvideo train stage1`, which adds curation, ranks, checkpoints and validation.
"""

from __future__ import annotations

from pathlib import Path

import torch
from loading import DEBUG_PREVIEW, PREVIEW, load, parser

from flashvideo.cascade import enlarge, seeded
from flashvideo.config import LoraConfig
from flashvideo.models.lora import add_lora, save_adapter, save_base
from flashvideo.models.transformer import count_parameters, save_transformer
from flashvideo.models.vae import pixels_to_video
from flashvideo.objectives.batch import Batch
from flashvideo.objectives.diffusion import DiffusionObjective
from flashvideo.video_files import read_video


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("video", type=Path, help="at least 49 frames at 8 Hz")
    options.add_argument("--prompt", required=True)
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--steps", type=int, default=200)
    options.add_argument("--rank", type=int, default=128)
    given = options.parse_args(arguments)
    cascade, shape = load(given), DEBUG_PREVIEW if given.debug else PREVIEW
    model = cascade.stage1
    assert model is not None, "the folder has no Stage I"
    save_transformer(model, given.out / "base")

    frames, _ = read_video(given.video)
    video = enlarge(pixels_to_video(frames[: shape.frames])[None], shape.height, shape.width).to(given.device)
    clean = cascade.vae.encode(video).mean * cascade.scales[1]
    text = cascade.text_encoder.encode([given.prompt]).embeddings

    lora = LoraConfig(rank=given.rank, alpha=1.0, targets="paper")
    add_lora(model, lora)
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    print(f"training {count_parameters(model, trainable_only=True):,} weights")
    optimizer = torch.optim.AdamW(trained, lr=4e-5, betas=(0.9, 0.95), weight_decay=1e-4)
    objective = DiffusionObjective(cascade.diffusion)
    dtype = next(model.parameters()).dtype
    for step in range(given.steps):
        batch = Batch(("mine",), clean.clone(), text.clone(), torch.zeros(1, dtype=torch.int64), 1, seeded([given.seed + step]))
        loss = objective.losses(model, batch.to(torch.device(given.device), dtype)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 0.1)
        optimizer.step()
        optimizer.zero_grad()
        print(f"train_step {step + 1}: loss {loss.item():.4f}")
    save_adapter(model, given.out / "adapter", lora)
    save_base(given.out / "adapter", model.config, str((given.out / "base").resolve()))


if __name__ == "__main__":
    main()
