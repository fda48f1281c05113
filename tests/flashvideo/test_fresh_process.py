"""One process that alternates shapes against processes that see one shape each. The released code fails this: its rotary
table is cached without the shape that it was made for."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor

from flashvideo.config import Stage2SamplingConfig, TransformerConfig
from flashvideo.models.transformer import CogVideoXTransformer
from flashvideo.models.window_attention import AttentionOptions, Window
from flashvideo.sampling.stage2 import enhance_latents

RESOLUTIONS = [(8, 12), (12, 8), (6, 20)]
FRAMES = [1, 3]
SHAPES = list(itertools.product(FRAMES, RESOLUTIONS))
TINY = TransformerConfig(
    flavour="debug",
    num_layers=2,
    num_attention_heads=2,
    text_embed_dim=24,
    time_embed_dim=32,
    noise_strength_embedding=True,
    num_frames_embedding=True,
)


def outputs(model: CogVideoXTransformer, frames: int, height: int, width: int) -> Tensor:
    """Two steps of Stage II, full and windowed, for seeded inputs of that shape."""
    generator = torch.Generator().manual_seed(7)
    degraded = torch.randn(1, frames, 16, height, width, generator=generator)
    text = torch.randn(1, 5, 24, generator=generator)
    results = []
    for window in (None, Window((3, 3, 5), (1, 2, 4))):
        seeded = [torch.Generator().manual_seed(1)]
        config = Stage2SamplingConfig(num_steps=2)
        results.append(enhance_latents(model, degraded, text, config, seeded, attention=AttentionOptions(window)))
    return torch.stack(results)


def write_each_shape_in_a_process_of_its_own(folder: Path) -> None:
    """Forks once a shape, before any model has been made, so no child has seen another shape."""
    from torch.nn.attention.flex_attention import flex_attention

    one = torch.zeros(1, 1, 1, 16)
    flex_attention(one, one, one)  # torch's first call imports for seconds: here, not in every child
    torch.set_num_threads(1)
    children = []
    for index, (frames, size) in enumerate(SHAPES):
        child = os.fork()
        if child == 0:
            torch.save(outputs(CogVideoXTransformer(TINY).eval(), frames, *size), folder / f"{index}.pt")
            os._exit(0)
        children.append(child)
    failed = [child for child in children if os.waitpid(child, 0)[1] != 0]
    assert not failed, failed


def test_alternating_shapes_in_one_process_equals_fresh_processes_exactly(tmp_path: Path) -> None:
    subprocess.run([sys.executable, __file__, str(tmp_path)], check=True, timeout=300)
    model = CogVideoXTransformer(TINY).eval()
    for _ in range(2):  # the second round meets every cache filled
        for index, (frames, size) in enumerate(SHAPES):
            fresh = torch.load(tmp_path / f"{index}.pt", weights_only=True)
            assert torch.equal(outputs(model, frames, *size), fresh), (frames, size)


if __name__ == "__main__":
    write_each_shape_in_a_process_of_its_own(Path(sys.argv[1]))
