"""A 1080p set whose every answer is known: cuts, motion, damage and duplicates. Rendered once into a folder.

    python benchmarks/curation_set.py FOLDER

Films of four shots (a still one, pans, tilts, zooms) over textures as rich as natural pictures, with grain, H.264 at CRF 20; one
copied byte for byte, two encoded again, five broken. `truth.json` beside `files/` says what is in them; speeds are in the score's
unit, px at 360 px short side per 1/8 s.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from generated_films import moving

HEIGHT, WIDTH = 1080, 1920
RATES_HZ = (24, 30, 25, 24, 30)
SHOTS = (
    (("still", 0.0, 2.5), ("right", 0.8, 3.0), ("in", 3.0, 2.5), ("left", 6.0, 2.5)),
    (("down", 1.3, 3.0), ("out", 1.2, 2.5), ("right", 9.0, 2.5), ("still", 0.0, 2.5)),
    (("up", 2.0, 2.5), ("left", 0.6, 3.0), ("in", 6.0, 2.5), ("right", 4.0, 2.5)),
    (("in", 1.6, 2.5), ("still", 0.0, 2.5), ("down", 7.5, 2.5), ("left", 2.5, 3.0)),
    (("right", 1.0, 3.0), ("out", 4.5, 2.5), ("up", 5.0, 2.5), ("in", 0.7, 2.5)),
)
"""Per film: how the camera moves, how fast, and for how many seconds."""
DIRECTIONS = {"right": (1, 0), "left": (-1, 0), "down": (0, 1), "up": (0, -1)}
TICKS_HZ = 8
GRAIN = 2.0
"""Standard deviation of the luma noise, of 255."""


def mean_distance_px() -> float:
    """Of a pixel from the centre of a 640x360 picture: what an enlargement by 1 displaces it on average."""
    y, x = np.mgrid[0:360, 0:640]
    return float(np.hypot(x + 0.5 - 320, y + 0.5 - 180).mean())


def shot_frames(move: str, speed_px: float, duration_s: float, rate_hz: int, seed: int) -> Iterator[np.ndarray]:
    """uint8 H W 3 of one shot, without grain."""
    number = round(duration_s * rate_hz)
    if move in ("in", "out"):
        enlargement = 1 + (1 if move == "in" else -1) * speed_px / mean_distance_px()  # per 1/8 s
        return moving(HEIGHT, WIDTH, number, zoom=enlargement ** (TICKS_HZ / rate_hz), seed=seed, slope=0.0)
    step = speed_px * HEIGHT / 360 * TICKS_HZ / rate_hz
    right, down = DIRECTIONS.get(move, (0, 0))
    return moving(HEIGHT, WIDTH, number, (right * step, down * step), seed=seed, slope=0.0)


def with_grain(frames: Iterator[np.ndarray], seed: int) -> Iterator[np.ndarray]:
    """Every frame with other noise: a window somewhere in one large field of it."""
    drawn = np.random.default_rng(seed)
    field = drawn.normal(0, GRAIN, (HEIGHT + 64, WIDTH + 64, 1)).round().astype(np.int16).repeat(3, axis=2)
    for frame in frames:
        y, x = drawn.integers(0, 64, 2)
        yield cv2.add(frame, field[y : y + HEIGHT, x : x + WIDTH], dtype=cv2.CV_8U)


def encode(path: Path, frames: Iterator[np.ndarray], rate_hz: int, crf: int = 20, front: bool = False) -> None:
    """H.264, BT.709; `front`: the index stands before the pictures, so that a file cut short can be opened."""
    options = {"movflags": "faststart"} if front else {}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=rate_hz)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        stream.codec_context.colorspace = 1
        stream.options = {"preset": "veryfast", "crf": str(crf), "g": "48"}
        for index, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="yuv420p", dst_colorspace="ITU709")
            picture.pts = index
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def decoded(path: Path) -> Iterator[np.ndarray]:
    """Its frames as RGB."""
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24")


def render(folder: Path) -> dict[str, Any]:
    """Writes `files/` and `truth.json` where they are not there, or were made by another version of this file; the truth."""
    version = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    truth_path, files = folder / "truth.json", folder / "files"
    if truth_path.is_file():
        truth: dict[str, Any] = json.loads(truth_path.read_text())
        if truth["version"] == version:
            return truth
    files.mkdir(parents=True, exist_ok=True)
    for old in files.iterdir():
        old.unlink()
    rows = [_film(files, number) for number in range(len(SHOTS))]
    rows += _duplicates(files, rows)
    rows += _damaged(files, rows)
    truth = {"version": version, "files": {row.pop("name"): row for row in rows}}
    truth_path.write_text(json.dumps(truth, indent=1))
    return truth


def _film(files: Path, number: int) -> dict[str, Any]:
    rate = RATES_HZ[number]
    shots, start_s, frames = [], 0.0, []
    for place, (move, speed, duration_s) in enumerate(SHOTS[number]):
        end_s = start_s + round(duration_s * rate) / rate
        shots.append({"start_s": start_s, "end_s": end_s, "move": move, "speed_px": speed})
        frames.append(shot_frames(move, speed, duration_s, rate, seed=10 * number + place))
        start_s = end_s
    name = f"film_{number}.mp4"
    encode(files / name, with_grain((frame for shot in frames for frame in shot), number), rate, front=number == 0)
    return {"name": name, "kind": "film", "rate_hz": rate, "duration_s": start_s, "shots": shots}


def _duplicates(files: Path, films: list[dict[str, Any]]) -> list[dict[str, Any]]:
    (files / "z_copy_of_film_1.mp4").write_bytes((files / "film_1.mp4").read_bytes())
    rows = [{**films[1], "name": "z_copy_of_film_1.mp4", "kind": "bytes", "of": "film_1.mp4"}]
    for number, crf in ((2, 27), (3, 32)):
        name = f"z_again_film_{number}.mp4"
        encode(files / name, decoded(files / f"film_{number}.mp4"), RATES_HZ[number], crf)
        rows.append({**films[number], "name": name, "kind": "re-encoded", "of": f"film_{number}.mp4"})
    return rows


def _damaged(files: Path, films: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Cut short with its index and without; random bytes in the middle; a header that says nothing; no bytes at all."""
    draw = random.Random(5)
    front, back = (files / "film_0.mp4").read_bytes(), (files / "film_4.mp4").read_bytes()
    holed = bytearray((files / "film_1.mp4").read_bytes())
    for share in (0.3, 0.5, 0.6):
        place = round(len(holed) * share)
        holed[place : place + 20_000] = draw.randbytes(20_000)
    broken = {
        "broken_cut_short.mp4": (front[: round(len(front) * 0.6)], 0.6 * films[0]["duration_s"], "film_0.mp4"),
        "broken_no_index.mp4": (back[: round(len(back) * 0.7)], 0.0, "film_4.mp4"),
        "broken_middle.mp4": (bytes(holed), films[1]["duration_s"], "film_1.mp4"),
        "broken_empty.mp4": (b"", 0.0, None),
        "broken_text.mp4": (b"this was a film once\n", 0.0, None),
    }
    rows = []
    for name, (data, length, of) in broken.items():
        (files / name).write_bytes(data)
        rows.append({"name": name, "kind": "damaged", "rate_hz": 24, "duration_s": length, "shots": [], "of": of})
    return rows


if __name__ == "__main__":
    made = render(Path(sys.argv[1]))["files"]
    print(f"{len(made)} files, {sum(row['duration_s'] for row in made.values()):.0f} s of video")
