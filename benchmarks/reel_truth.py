"""The real reel against its truth: cuts, motion per shot, bars of the last shot, repeats of the 8 fps shot.

    nice .venv/bin/python benchmarks/reel_truth.py

Reads ../shared/corpus/reel_1080p24.mp4 and reel_truth.json through the jobs ingest, detect_shots and score. The exit code
is 1 when a line is not as it must be.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import av
import numpy as np
from printed_table import print_table

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from curated import curate, recipe_of
from generated_films import CORPUS

from curation.store import Store
from pipelines.artifacts import Workspace

THRESHOLD = 1.1
"""px at 360 px short side per 1/8 s (4.1)."""
STILL, SLOW, BOXED = 2, 3, 5
"""Places of the bottles, the 8 fps source and Sintel among the shots."""
BANDS = ((0, 132), (132, 230), (230, 850), (850, 948), (948, 1080))
"""Lines of the last shot: the reel's own bars, what the truth calls picture, the picture, and back again."""
BLACK = 30
"""Luma on the 0-255 scale that no black line reaches."""


def line_brightness(path: Path, first: int, end: int) -> np.ndarray:
    """Per picture line the brightest luma over frames [first, end)."""
    brightest = np.zeros(0)
    with av.open(str(path)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if first <= index < end:
                lines = frame.to_ndarray(format="gray").max(axis=1)
                brightest = np.maximum(brightest, lines) if len(brightest) else lines
    return brightest


def cut_rows(truth: dict[str, Any], source: dict[str, Any]) -> list[list[object]]:
    found = [round(cut / 1e6 * truth["fps"]) for cut in source["cuts_us"]]
    rows: list[list[object]] = [["cut", "truth", "found", "off by", "as it must be"]]
    for number, wanted in enumerate(truth["cuts"], start=1):
        nearest = min(found, key=lambda cut: abs(cut - wanted)) if found else None
        off = "none" if nearest is None else str(nearest - wanted)
        rows.append([number, wanted, nearest, off, yes(nearest is not None and abs(nearest - wanted) <= 1)])
    false = [cut for cut in found if all(abs(cut - wanted) > 1 for wanted in truth["cuts"])]
    return [*rows, ["false", "none", false or "none", "", yes(not false)]]


def shot_rows(truth: dict[str, Any], clips: list[dict[str, Any]]) -> list[list[object]]:
    rows: list[list[object]] = [["shot", f"motion (threshold {THRESHOLD})", "camera", "repeats", "bars top/bottom px", "as it must be"]]
    for place, (shot, clip) in enumerate(zip(truth["shots"], clips, strict=True)):
        moves = clip["motion_proxy"] >= THRESHOLD
        bars = clip["letterbox_top_px"], clip["letterbox_bottom_px"]
        good = moves == (place != STILL)
        if place == SLOW:
            good &= abs(clip["repeated_ratio"] - 2 / 3) < 0.02
        if place == BOXED:
            good &= max(abs(bar - 230) for bar in bars) <= 2
        what = shot["what"].split(",")[0].split(" (")[0]
        rows.append(
            [what, round(clip["motion_proxy"], 3), clip["camera_move"], f"{clip['repeated_ratio']:.1%}", f"{bars[0]}/{bars[1]}", yes(good)]
        )
    return rows


def bar_rows(lines: np.ndarray) -> list[list[object]]:
    """What the pixels say of the last shot's bars, which the truth gives as 132 px."""
    rows: list[list[object]] = [["lines of the last shot", "brightest luma of any frame", "lines that are black throughout"]]
    for first, end in BANDS:
        part = lines[first:end]
        rows.append([f"{first}-{end - 1}", f"{part.min()}-{part.max()}", f"{int((part < BLACK).sum())} of {len(part)}"])
    return rows


def yes(good: bool) -> str:
    return "yes" if good else "NO"


def main() -> int:
    reel = CORPUS / "reel_1080p24.mp4"
    if not reel.is_file():
        sys.exit(f"no corpus at {CORPUS}")
    truth = json.loads((CORPUS / "reel_truth.json").read_text())
    with tempfile.TemporaryDirectory(prefix="reel_truth_") as folder:
        workspace = Workspace(folder)
        curate(workspace, recipe_of((str(reel),)))
        store = Store.open(workspace.store)
        [source] = store.read("sources").to_pylist()
        clips = sorted(store.read("clips").to_pylist(), key=lambda clip: clip["start_us"])
    tables = [cut_rows(truth, source), shot_rows(truth, clips)]
    for rows in tables:
        print_table(rows)
    last = truth["shots"][BOXED]
    lines = line_brightness(reel, last["start"], last["end"])
    print_table(bar_rows(lines))
    bright = np.flatnonzero(lines >= BLACK)
    found = f"{bright[0]} and {len(lines) - 1 - bright[-1]}"
    print(f"The truth says bars of 132 px, the pixels say {found}: the reel added 132 to a film that has bars of its own")
    print(f"(2.35:1 in 16:9), so {bright[-1] - bright[0] + 1} lines are picture. The score cuts off what is black.")
    return 0 if all(row[-1] == "yes" for rows in tables for row in rows[1:]) else 1


if __name__ == "__main__":
    sys.exit(main())
