"""data-juicer over a folder of videos with its own executor; prints JSON. Runs in data-juicer's interpreter, needs nothing of ours.

    python benchmarks/peers/juicer_videos.py FOLDER WORK_FOLDER WORKERS

Resolution filter, video_deduplicator, video_split_by_scene (its defaults; FFmpeg from imageio-ffmpeg), Farneback motion score with
size=360 and two frames a second. The bounds are so wide that only what cannot be read falls out. Left out: the aesthetics
filter, which needs weights from the hub, and the duration filter, which needs an ffprobe binary.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import cv2
import imageio_ffmpeg

SAMPLES_HZ, TICKS_HZ = 2.0, 8.0
OPERATORS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("video_resolution_filter", {"min_width": 1, "min_height": 1}),
    ("video_deduplicator", {}),
    ("video_split_by_scene_mapper", {}),
    ("video_motion_score_filter", {"min_score": 0.0, "size": 360, "sampling_fps": SAMPLES_HZ}),
)


def run(films: list[Path], work: Path, workers: int) -> list[dict[str, Any]]:
    """The rows that come out."""
    from data_juicer.config import init_configs
    from data_juicer.core import DefaultExecutor

    listing = work / "films.jsonl"
    listing.write_text("".join(json.dumps({"text": "", "videos": [str(film)]}) + "\n" for film in films))
    settings = {"video_split_by_scene_mapper": {"save_dir": str(work / "scenes")}}
    config = {
        "project_name": "films",
        "dataset_path": str(listing),
        "export_path": str(work / "out.jsonl"),
        "work_dir": str(work / "work"),
        "np": workers,
        "use_cache": False,
        "keep_stats_in_res_ds": True,
        "skip_op_error": True,
        "process": [{name: {**given, **settings.get(name, {})}} for name, given in OPERATORS],
    }
    path = work / "recipe.json"
    path.write_text(json.dumps(config))
    DefaultExecutor(init_configs(["--config", str(path)])).run()
    return [json.loads(line) for line in (work / "out.jsonl").read_text().splitlines()]


def lengths_s(files: list[str]) -> list[float]:
    """Of the scene files that it wrote."""
    found = []
    for name in files:
        capture = cv2.VideoCapture(name)
        found.append(capture.get(cv2.CAP_PROP_FRAME_COUNT) / max(capture.get(cv2.CAP_PROP_FPS), 1e-9))
        capture.release()
    return found


def main() -> None:
    folder, work, workers = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    tools = work / "bin"
    tools.mkdir(parents=True)
    (tools / "ffmpeg").symlink_to(imageio_ffmpeg.get_ffmpeg_exe())
    os.environ["PATH"] = f"{tools}{os.pathsep}{os.environ['PATH']}"
    films = sorted(folder.iterdir())
    rows = run(films, work, workers)
    scenes: dict[str, Any] = {}
    for row in rows:
        source = Path(row.get("__dj__source_file__", row["videos"])[0]).name
        scores = row["__dj__stats__"]["video_motion_score"]
        start, spans = 0.0, []
        for length, score in zip(lengths_s(row["videos"]), scores, strict=True):
            spans.append([start, start + length, None if score < 0 else score * SAMPLES_HZ / TICKS_HZ])
            start += length
        scenes[source] = spans
    gone = sorted(film.name for film in films if film.name not in scenes)
    print(json.dumps({"scenes": scenes, "gone": gone}), file=sys.__stdout__)  # it takes sys.stdout for its log


if __name__ == "__main__":
    main()
