"""Frames a second and memory of every metric on 1080p frames: one table, each row a process of its own on one thread.

    .venv/bin/python benchmarks/evaluation_speed.py [--frames 16] [--repeats 3] [--reference-python ENV/bin/python]

stand-in: VBench's rule with a closed-form network, so what is timed is decoding's aftermath, resizing and arithmetic. weight-free:
no network at all. random: the real network with random weights, on few frames. The limit that no metric can pass is the
first row, decoding alone; with --reference-python VBench's own temporal flickering is timed in the same run, with as many
decoding threads as OpenCV takes by itself and with one, beside ours with its decoding. Frames a second are medians over
repeats of the time inside the metric; memory is above that of decoding alone.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from evaluation_memory import HEIGHT, LOOKED_FOR, RATE_HZ, WIDTH, write_film
from printed_table import print_table

RANDOM = ("dino", "clip_b", "clip_l", "musiq_spaq", "raft_270p", "pyiqa musiq", "pyiqa niqe", "pyiqa piqe")
"""Networks with random weights (piqe has none, niqe's statistics are made up)."""
RANDOM_FRAMES = 2
FREE, WHOLE = "temporal_flickering (no static filter)", "temporal_flickering, decoding included"
REFERENCE = """
import json, sys, time
import cv2
from vbench.temporal_flickering import cal_score
cv2.setNumThreads(1)
seconds = []
for _ in range(int(sys.argv[2])):
    begin = time.perf_counter()
    score = cal_score(sys.argv[1])
    seconds.append(time.perf_counter() - begin)
import re
peak = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
threads = int(cv2.VideoCapture(sys.argv[1]).get(cv2.CAP_PROP_N_THREADS))
print(json.dumps({"seconds": seconds, "score": score, "peak": peak, "threads": threads}))
"""


def peak_mb() -> float:
    """The highest resident memory of this process so far, MB."""
    [kilobytes] = re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(kilobytes) * 1024 / 1e6


def decode(film: Path) -> float:
    """Seconds for every frame."""
    from flashvideo.evaluation.video_frames import decoded_frames

    begin = time.perf_counter()
    for _ in decoded_frames(film):
        pass
    return time.perf_counter() - begin


def re_encode(film: Path) -> float:
    """Seconds of writing the frames again at 1.024 Mbit/s and decoding them, decoding the film apart."""
    from flashvideo.evaluation.video_frames import ClipWriter, decoded_frames, encodable

    writer, seconds = ClipWriter("1.024M", True, RATE_HZ, HEIGHT, WIDTH), 0.0
    for frame in decoded_frames(film):
        begin = time.perf_counter()
        writer.add(encodable(frame))
        seconds += time.perf_counter() - begin
    begin = time.perf_counter()
    for _ in writer.frames():
        pass
    return seconds + time.perf_counter() - begin


def whole_flickering(film: Path) -> tuple[float, float]:
    """Seconds of temporal flickering with its decoding, and the score."""
    from flashvideo.evaluation.dimensions.flickering import FlickeringMeasurement
    from flashvideo.evaluation.video_frames import decoded_frames

    begin = time.perf_counter()
    measurement = FlickeringMeasurement(None)
    for index, frame in enumerate(decoded_frames(film)):
        measurement.add(index, frame)
    score = measurement.result().value
    return time.perf_counter() - begin, score


def dimension(film: Path, name: str) -> float:
    """Seconds inside one dimension's rule with its stand-in network."""
    from flashvideo.evaluation.networks.stand_ins import stand_in_networks
    from flashvideo.evaluation.protocol import VBenchProtocol
    from flashvideo.evaluation.rules import build_rules
    from flashvideo.evaluation.scores import ClipFacts, Prompt
    from flashvideo.evaluation.video_frames import decoded_frames, probe

    free = name.endswith(" (no static filter)")
    name = name.removesuffix(" (no static filter)")
    protocol = VBenchProtocol(suite="vbench", prompts="short", prompts_sha256="0" * 64, static_filter=not free)
    rule = build_rules(stand_in_networks(), protocol).dimensions[name]
    facts = probe(film)
    prompt = Prompt(text="a person is marching", dimensions=(name,), auxiliary=LOOKED_FOR)
    measurement = rule.start(ClipFacts(facts.frames, facts.frame_rate_hz, facts.height, facts.width), prompt)
    seconds = 0.0
    for index, frame in enumerate(decoded_frames(film)):
        begin = time.perf_counter()
        measurement.add(index, frame)
        seconds += time.perf_counter() - begin
    begin = time.perf_counter()
    measurement.result()
    return seconds + time.perf_counter() - begin


def random_network(film: Path, name: str) -> Callable[[], float]:
    """Seconds a call on RANDOM_FRAMES frames, preprocessing included."""
    from itertools import islice

    from flashvideo.evaluation.video_frames import decoded_frames

    frames = list(islice(decoded_frames(film), RANDOM_FRAMES))
    score = _pyiqa(name.removeprefix("pyiqa ")) if name.startswith("pyiqa ") else _network(name)

    def timed() -> float:
        begin = time.perf_counter()
        for frame in frames:
            score(frame)
        return time.perf_counter() - begin

    return timed


def _network(name: str) -> Callable[[np.ndarray], Any]:
    import torch

    from flashvideo.evaluation.dimensions.frame_choice import clip_pixels, dino_pixels, musiq_pixels
    from flashvideo.evaluation.networks import pretrained

    if name == "dino":
        import timm

        dino = pretrained.DinoEncoder("dino", timm.create_model("vit_base_patch16_224.dino", pretrained=False, num_classes=0), "random")
        return lambda frame: dino(dino_pixels(frame, False)[None])
    if name.startswith("clip"):
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        large = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14}
        config = CLIPVisionConfig(projection_dim=768, **large) if name == "clip_l" else CLIPVisionConfig()
        clip = pretrained.ClipEncoder(name, CLIPVisionModelWithProjection(config), "random", None)
        return lambda frame: clip(clip_pixels(frame, False)[None])
    if name == "musiq_spaq":
        from pyiqa.archs.musiq_arch import MUSIQ

        musiq = pretrained.MusiqQuality("musiq", MUSIQ(pretrained=False), "random")
        return lambda frame: musiq(musiq_pixels(frame, False)[None])
    from torchvision.models.optical_flow import raft_large

    raft = pretrained.RaftFlow("raft", raft_large(weights=None), "random")
    pair = torch.rand(1, 3, 272, 480) * 255
    return lambda frame: raft(pair, pair.flip(-1))


def _pyiqa(name: str) -> Callable[[np.ndarray], Any]:
    import scipy.io
    import torch

    from flashvideo.evaluation.frame_quality import FrameMetrics

    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder)
        if name == "niqe":
            spread = np.random.default_rng(0).normal(size=(200, 36))
            made = {"mu_prisparam": spread.mean(0)[None], "cov_prisparam": np.cov(spread.T)}
            scipy.io.savemat(weights / "niqe_modelparameters.mat", made)
        if name == "musiq":
            from pyiqa.archs.musiq_arch import MUSIQ

            torch.save(MUSIQ(pretrained=False).state_dict(), weights / "musiq_koniq_ckpt-e95806b9.pth")
        metrics = FrameMetrics((name,), torch.device("cpu"), weights)
    return lambda frame: metrics(frame[None])


def child(film: Path, row: str, repeats: int) -> None:
    """Prints seconds a repeat, and memory above decoding's."""
    import torch

    from flashvideo.evaluation.large_blocks import return_large_blocks

    torch.set_num_threads(1)
    return_large_blocks()
    decode(film)
    base = peak_mb()
    if row == "decoding":
        call: Callable[[], float] = lambda: decode(film)  # noqa: E731
    elif row == "re-encoding":
        call = lambda: re_encode(film)  # noqa: E731
    elif row in RANDOM:
        call = random_network(film, row)
    elif row == WHOLE:
        print(f"ours: {whole_flickering(film)[1]!r}", file=sys.stderr)
        call = lambda: whole_flickering(film)[0]  # noqa: E731
    else:
        call = lambda: dimension(film, row)  # noqa: E731
    with torch.inference_mode():
        seconds = [call() for _ in range(repeats)]
    print(json.dumps({"seconds": seconds, "peak": peak_mb(), "above": peak_mb() - base}))


def main() -> None:
    from flashvideo.evaluation.totals import DIMENSIONS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--reference-python", type=Path)
    parser.add_argument("--only", nargs="*", help="these rows")
    parser.add_argument("--child", nargs=2, metavar=("FILM", "ROW"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(Path(options.child[0]), options.child[1], options.repeats)
        return
    rows = [*(options.only or ("decoding", "re-encoding", FREE, WHOLE, *DIMENSIONS, *RANDOM))]
    table: list[list[object]] = [["metric", "kind", "frames", "frames/s", "spread", "peak, MB", "above decoding, MB"]]
    with tempfile.TemporaryDirectory() as folder:
        film = Path(folder) / "film.mp4"
        write_film(film, options.frames)
        for row in rows:
            frames = RANDOM_FRAMES if row in RANDOM else options.frames
            kind = (
                "no network" if row in ("decoding", "re-encoding", FREE, WHOLE, "pyiqa piqe") else "random" if row in RANDOM else "stand-in"
            )
            command = [sys.executable, __file__, "--child", str(film), row, "--repeats", str(1 if row in RANDOM else options.repeats)]
            answer = subprocess.run(command, check=False, capture_output=True, text=True)
            if answer.returncode:
                table.append([row, kind, frames, "failed:", (answer.stderr.strip().splitlines() or ["no message"])[-1], "", ""])
                continue
            found = json.loads(answer.stdout.splitlines()[-1])
            table.append([row, kind, frames, *_rate(frames, found["seconds"]), round(found["peak"]), round(found["above"])])
            print(row, answer.stderr.strip() if row == WHOLE else "", file=sys.stderr, flush=True)
        for threads in (None, 1) if options.reference_python is not None else ():
            command = [str(options.reference_python), "-c", REFERENCE, str(film), str(options.repeats)]
            setting = {} if threads is None else {"OPENCV_FFMPEG_THREADS": str(threads)}
            answer = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | setting)
            found = json.loads(answer.stdout.splitlines()[-1])
            print(f"vbench: {found['score']!r}", file=sys.stderr)
            name = f"vbench 0.1.5: temporal_flickering, decoding included, {found['threads']} decoding threads"
            table.append([name, "reference", options.frames, *_rate(options.frames, found["seconds"]), round(found["peak"]), "–"])
    print(f"{WIDTH}x{HEIGHT}, one thread a process; raft_270p: pairs of 480x272\n")
    print_table(table)


def _rate(frames: int, seconds: list[float]) -> tuple[str, str]:
    """Median frames a second, and least to most."""
    rates = [frames / one for one in seconds]
    return f"{statistics.median(rates):.2f}", f"{min(rates):.2f}-{max(rates):.2f}"


if __name__ == "__main__":
    main()
