"""Enhances a user's own videos with a run's trained Stage II.

    python -m pipelines.enhance --root ROOT --recipe RECIPE --out DIR --prompt TEXT VIDEO...

A video is read at the model's frame rate and at the size of Stage II's last phase (scaled to cover it, cut at the
centre), enhanced in windows of that phase's frames, and written beside its enlarged self. A relaunch skips finished
videos and windows. Exit codes: 0; 1 failed; 2 a user's mistake, or a video that cannot be read (the others are done).
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flashvideo.whole_files import writing
from pipelines.artifacts import Report, Workspace
from pipelines.executor import WorkerDied
from pipelines.generate import spread, spread_workers
from pipelines.job import UserError, exit_after, log, write_json
from pipelines.reading import UnreadableItem, reading
from pipelines.recipe import Recipe, fingerprint, load
from pipelines.sweep_cells import Trained, finished_ones
from pipelines.trained_models import item_seed, load_cascade, model_device, model_names

if TYPE_CHECKING:
    from flashvideo.cascade import FlashVideoCascade

MANIFEST = "enhance.json"


@dataclass(frozen=True)
class Window:
    """A stretch of a video that is enhanced together: 8k+1 frames."""

    first: int
    frames: int
    fresh: int
    """Frames at its end that no earlier window has; the last window may overlap the one before. In a video shorter than a
    window: the video's frames, at its beginning; the rest repeats the last of them."""

    @property
    def own(self) -> slice:
        """Places of the fresh frames in the window."""
        return slice(0, self.fresh) if self.first == 0 else slice(self.frames - self.fresh, self.frames)


def enhance(recipe: Recipe, workspace: Workspace, videos: Sequence[Path], prompt: str, out: Path, stage2: str | None = None) -> list[str]:
    """Enhances every video that can be read; returns one line for each that cannot. Raises UserError.

    `stage2`: fingerprint of a finished Stage II that the recipe and the sources name no more, as in a root that was moved.
    Several videos are spread over Ray workers where those help (pipelines.generate.spread_workers).
    """
    reports = Trained.at(recipe, workspace, stage2).reports if stage2 is not None else _trained(recipe, workspace)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}; choose another --out") from None
    rows, why = _finished(out), dict[Path, str]()
    items: list[tuple[Path, str, str]] = []
    for video, name in zip(videos, output_names(videos), strict=True):
        try:
            key = _key(video, prompt, recipe, reports)
        except OSError as error:
            why[video] = str(error)
            continue
        if rows.get(name, {}).get("key") == key and all((out / file).is_file() for file in rows[name]["files"]):
            log.info("%s is enhanced already", video)
        else:
            items.append((video, name, key))
    build = partial(VideoWorker, recipe, workspace.root, reports, prompt, out)
    for index, result in spread(build, items, spread_workers(recipe, len(items))):
        if isinstance(result, WorkerDied | str):
            why[items[index][0]] = result if isinstance(result, str) else result.message
            continue
        rows[items[index][1]], models = result
        write_json(out / MANIFEST, {"models": models, "videos": rows})
    return [f"{video} cannot be enhanced: {why[video]}" for video in videos if video in why]


class VideoWorker:
    """Holds the cascade in one worker and enhances one video at a time."""

    def __init__(self, recipe: Recipe, root: Path, reports: dict[str, Report], prompt: str, out: Path) -> None:
        self._recipe, self._workspace, self._reports = recipe, Workspace(root), reports
        self._prompt, self._out = prompt, out
        self._cascade = load_cascade(self._workspace, recipe, reports, model_device(recipe), with_stage1=False)
        self._models = model_names(self._cascade, recipe, self._workspace, reports)

    def __call__(self, item: tuple[Path, str, str]) -> tuple[dict[str, Any], dict[str, str]] | str:
        """(video, name, key) -> its row and the names of the models, or why the video cannot be read. Raises OSError where
        writing fails."""
        video, name, key = item
        try:
            row = _enhance_one(self._cascade, self._recipe, video, self._prompt, self._out, name, key)
        except UnreadableItem as error:
            return str(error)
        return {"key": key, **row}, self._models


def windows(count: int, size: int) -> list[Window]:
    """Windows of `size` frames (8k+1, or 5) over `count` frames, the last one moved back to end with the video.

    A video shorter than a window gives one window of the next 8k+1 frames.
    """
    if count < size:
        return [Window(0, min(size, -(-(count - 1) // 8) * 8 + 1), count)]
    firsts = [*range(0, count - size, size), count - size]
    ends = [0] + [first + size for first in firsts]
    return [Window(first, size, first + size - end) for first, end in zip(firsts, ends, strict=False)]


def output_names(videos: Sequence[Path]) -> list[str]:
    """A name for each video: its stem, with a hash of its path where two share it."""
    stems = Counter(video.stem for video in videos)
    return [video.stem if stems[video.stem] == 1 else f"{video.stem}-{fingerprint(str(video.resolve()))[:8]}" for video in videos]


def _trained(recipe: Recipe, workspace: Workspace) -> dict[str, Report]:
    reports = {}
    for state in workspace.states(recipe, ["train_stage2"]):
        if state.report is None:
            raise UserError(
                f"{state.spec.name} is not done in {workspace.root}, so there is no Stage II; run: flashvideo train stage2 "
                f"--root {workspace.root}{finished_ones(workspace)}"
            )
        reports[state.spec.name] = state.report
    return reports


def _finished(out: Path) -> dict[str, dict[str, Any]]:
    path = out / MANIFEST
    rows: dict[str, dict[str, Any]] = json.loads(path.read_text())["videos"] if path.is_file() else {}
    return rows


def _key(video: Path, prompt: str, recipe: Recipe, reports: dict[str, Report]) -> str:
    """What the enhanced video depends on."""
    stat = video.stat()
    facts = [str(video.resolve()), stat.st_size, stat.st_mtime_ns, prompt, recipe.generate, recipe.stage2.phases[-1].shape]
    return fingerprint(*facts, recipe.latents.frame_rate_hz, reports["train_stage2"].digest, reports["precompute_latents"].digest)


def _enhance_one(cascade: FlashVideoCascade, recipe: Recipe, video: Path, prompt: str, out: Path, name: str, key: str) -> dict[str, Any]:
    """Writes one video's files; returns its row of the manifest. Raises UnreadableItem."""
    from flashvideo.video_files import beside, write_picture, write_video

    parts = out / f".{name}.{key}.parts"
    parts.mkdir(exist_ok=True)
    before, after, seeds = [], [], []
    for window, pixels in _read(video, recipe):
        seeds.append(item_seed("enhance", recipe.generate.seed, key, window.first))
        part = parts / f"{window.first:06d}.npy"
        if not part.is_file():
            enhanced = _enhance_window(cascade, recipe, pixels, prompt, seeds[-1])
            _save(part, enhanced)
        before.append(pixels[window.own])
        after.append(np.load(part)[window.own])
        log.info("%s: %d frames enhanced", video.name, window.first + window.own.stop)
    frames, input_frames = np.concatenate(after), np.concatenate(before)
    rate, crf = recipe.latents.frame_rate_hz, recipe.generate.video_quality_crf
    both = beside([input_frames, frames])
    files = [f"{name}.enhanced.mp4", f"{name}.beside.mp4", f"{name}.beside.png"]
    write_video(out / files[0], frames, rate, crf)
    write_video(out / files[1], both, rate, crf)
    write_picture(out / files[2], both[len(both) // 2])
    shutil.rmtree(parts)
    return {"video": str(video), "prompt": prompt, "files": files, "frames": len(frames), "frame_rate_hz": rate, "seeds": seeds, "crf": crf}


def _read(video: Path, recipe: Recipe) -> Iterator[tuple[Window, np.ndarray]]:
    """Each window of the video with its pixels, uint8 T H W C. Raises UnreadableItem."""
    with reading():  # what the caller does with a window is not within
        yield from _read_windows(video, recipe)


def _read_windows(video: Path, recipe: Recipe) -> Iterator[tuple[Window, np.ndarray]]:
    from curation.video import MediaError, decode, read_clip

    shape, rate = recipe.stage2.phases[-1].shape, recipe.latents.frame_rate_hz
    events = [(event.time_us, event.frame is not None, event.corrupt) for event in decode(str(video))]
    times = [time_us for time_us, has_frame, _ in events if has_frame]
    if damaged := sum(corrupt for _, _, corrupt in events):
        log.warning("%s: %d of its %d frames are damaged; they are enhanced as they decode", video, damaged, len(events))
    if not times:
        raise MediaError("no_frames", f"{video} holds no frame that can be decoded")
    begin_us = min(times)
    count = math.floor((max(times) - begin_us) / 1e6 * rate + 1e-6) + 1
    for window in windows(count, shape.frames):
        start_us = begin_us + round(window.first * 1e6 / rate)
        there = min(window.frames, count - window.first)
        end_us = start_us + round(there * 1e6 / rate)
        pixels, _ = read_clip(str(video), start_us, end_us, rate, there, shape.height, shape.width)
        yield window, np.pad(pixels, ((0, window.frames - there), (0, 0), (0, 0), (0, 0)), mode="edge")


def _enhance_window(cascade: FlashVideoCascade, recipe: Recipe, pixels: np.ndarray, prompt: str, seed: int) -> np.ndarray:
    """uint8 T H W C, enhanced at its own size."""
    from flashvideo.cascade import seeded
    from flashvideo.models.vae import pixels_to_video, video_to_pixels

    shape = recipe.stage2.phases[-1].shape.model_copy(update={"frames": len(pixels)})
    video = cascade.enhance(pixels_to_video(pixels)[None], [prompt], shape, seeded([seed]), recipe.generate.motion)
    return video_to_pixels(video[0])


def _save(path: Path, frames: np.ndarray) -> None:
    with writing(path) as beside, open(beside, "wb") as file:
        np.save(file, frames)


def main() -> None:
    """Command line; exits the process."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.enhance", description="enhance videos with a run's trained Stage II")
    parser.add_argument("videos", nargs="+", type=Path)
    parser.add_argument("--root", type=Path, required=True, help="run root that holds the trained Stage II")
    parser.add_argument("--recipe", default="debug", help="preset name, or a YAML/JSON file")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, required=True, help="folder for the enhanced videos")
    parser.add_argument("--prompt", required=True, help="what the videos show")
    parser.add_argument("--stage2", metavar="FINGERPRINT", help="a finished folder of artifacts/train_stage2 that the recipe names no more")
    arguments = parser.parse_args()
    failed: list[str] = []

    def body() -> None:
        recipe = load(arguments.recipe, tuple(arguments.overrides))
        failed.extend(enhance(recipe, Workspace(arguments.root), arguments.videos, arguments.prompt, arguments.out, arguments.stage2))

    exit_after("enhance", body)
    for line in failed:
        print(f"enhance: {line}", file=sys.stderr)
    print(f"{len(arguments.videos) - len(failed)} of {len(arguments.videos)} videos enhanced: {arguments.out}")
    sys.exit(2 if failed else 0)


if __name__ == "__main__":
    main()
