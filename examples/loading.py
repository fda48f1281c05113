"""What the examples share: their options, and the cascade of a pipeline folder.

`--debug` is for a folder with the stand-in text encoder (tests, machines without weights); its sizes come with it.
"""

from __future__ import annotations

import argparse

import torch

from flashvideo.cascade import FlashVideoCascade
from flashvideo.config import FrameShape, TextEncoderConfig
from flashvideo.device_memory import OFFLOAD_MODES

PREVIEW, FULL = FrameShape(frames=49, height=256, width=480), FrameShape(frames=49, height=1072, width=1920)
DEBUG_PREVIEW, DEBUG_FULL = FrameShape(frames=9, height=32, width=48), FrameShape(frames=9, height=64, width=96)
DEBUG_STEPS = 2


def parser(text: str | None) -> argparse.ArgumentParser:
    """With the options that all share."""
    result = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("folder", help="pipeline folder, as flashvideo convert writes it")
    result.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    result.add_argument("--offload", default="none", choices=list(OFFLOAD_MODES), help="by the card's memory")
    result.add_argument("--seed", type=int, default=0)
    result.add_argument("--debug", action="store_true", help="a folder of tiny models with the stand-in text encoder")
    return result


def load(given: argparse.Namespace) -> FlashVideoCascade:
    """The cascade on the chosen device: bf16 transformers on a GPU."""
    cascade = FlashVideoCascade.from_pretrained(
        given.folder,
        device=given.device,
        dtype=torch.bfloat16 if given.device != "cpu" else torch.float32,
        offload=given.offload,
        text_encoder=TextEncoderConfig(kind="debug_t5", embed_dim=16, max_length=24) if given.debug else None,
    )
    cascade.progress_bars = True
    return cascade
