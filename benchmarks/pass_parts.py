"""The decode pass over some files in this process, and what each part of it costs; prints JSON. Started by curate_1080p.py.

    python benchmarks/pass_parts.py THREADS FILE...

With one thread everything runs in one thread, so the parts add up to the whole; the clock around them costs about 1 %.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import curation.decode_pass as decode_pass
import curation.scores.motion as motion
from curation.config import DecodeConfig, MotionConfig, ShotsConfig
from curation.decode_pass import run_pass
from curation.passes import PassTask
from curation.shots import CutDetector
from curation.tracks import TrackWriter, read_clip_track
from curation.video import probe

PARTS: tuple[tuple[str, Any, str], ...] = (
    ("small picture, change, luma, black", decode_pass._Pass, "_measure"),
    ("cuts (PySceneDetect)", CutDetector, "push"),
    ("sampled pictures, sharpness", decode_pass._Pass, "_sample"),
    ("key frames, hashes, bars, thumbnails", decode_pass._Pass, "_clip"),
    ("track written (zstd)", TrackWriter, "_flush"),
)


def cpu_s() -> float:
    """Of this process, all threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def clocked(spent: dict[str, float], name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function; its CPU seconds go to spent[name]."""

    def timed(*arguments: Any) -> Any:
        begin = time.thread_time_ns()
        try:
            return function(*arguments)
        finally:
            spent[name] = spent.get(name, 0.0) + (time.thread_time_ns() - begin) / 1e9

    return timed


def main() -> None:
    threads, files = int(sys.argv[1]), sys.argv[2:]
    tasks, spent = [], dict[str, float]()
    with tempfile.TemporaryDirectory(prefix="pass_parts_") as folder:
        for number, file in enumerate(files):
            rate = probe(file).frame_rate_hz or 25.0
            tasks.append(PassTask(file, f"{number:032}", "video", rate, DecodeConfig(threads=threads), ShotsConfig(), Path(folder)))
        warm = PassTask(files[0], "f" * 32, "video", 25.0, DecodeConfig(threads=threads), ShotsConfig(), Path(folder))
        run_pass(warm)  # what libraries load at first use
        for name, owner, method in PARTS:
            setattr(owner, method, clocked(spent, name, getattr(owner, method)))
        before, begin = cpu_s(), time.perf_counter()
        results = [run_pass(task) for task in tasks]
        whole, wall_s = cpu_s() - before, time.perf_counter() - begin
        before = cpu_s()
        pairs, flow = 0, motion.DisFlow()
        for task, result in zip(tasks, results, strict=True):
            for clip in result.clips:
                track = read_clip_track(task.tracks, task.source_id, clip.clip_id, clip.start_us, clip.end_us)
                pairs += motion.measure_motion(track, flow, MotionConfig().max_pairs).pairs
        scored = cpu_s() - before
    frames = sum(result.decoded_frames for result in results)
    print(json.dumps({"frames": frames, "cpu_s": whole, "wall_s": wall_s, "parts": spent, "motion_cpu_s": scored, "pairs": pairs}))


if __name__ == "__main__":
    main()
