"""What one writes by hand in an afternoon: PySceneDetect for the cuts, a second decode for motion, hashes. Prints JSON.

    python benchmarks/peers/scene_loop.py FOLDER        (needs scenedetect, opencv, av; nothing of ours)

Per file: sha256; `scenedetect.detect` with its AdaptiveDetector; then PyAV once more, two frames a second at 360 px short side,
Farneback between neighbours, mean per scene; a difference hash of each scene's middle. A file that raises is called broken.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import scenedetect

SHORT_SIDE_PX, SAMPLES_HZ, TICKS_HZ = 360, 2.0, 8.0
HASH_BITS = 6


def scenes_of(path: Path) -> list[tuple[float, float]]:
    """(start, end) in seconds."""
    found = scenedetect.detect(str(path), scenedetect.AdaptiveDetector(), start_in_scene=True)
    return [(start.seconds, end.seconds) for start, end in found]


def motion_of(path: Path, scenes: list[tuple[float, float]]) -> tuple[list[float | None], list[int]]:
    """Mean flow per scene in px at 360 px per 1/8 s, and a hash of the sample nearest to each scene's middle."""
    flows: list[list[float]] = [[] for _ in scenes]
    middles: list[tuple[float, int]] = [(1e9, 0) for _ in scenes]
    last: tuple[int, np.ndarray] | None = None
    wanted_s = 0.0
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        for frame in container.decode(video=0):
            if frame.time is None or frame.time < wanted_s - 1e-3:
                continue
            wanted_s += 1 / SAMPLES_HZ
            scale = SHORT_SIDE_PX / min(frame.width, frame.height)
            grey = cv2.resize(
                frame.to_ndarray(format="gray"), (round(frame.width * scale), round(frame.height * scale)), interpolation=cv2.INTER_AREA
            )
            scene = next((place for place, (start, end) in enumerate(scenes) if start <= frame.time < end), None)
            if scene is None:
                continue
            if last is not None and last[0] == scene:
                flow = cv2.calcOpticalFlowFarneback(last[1], grey, None, 0.5, 3, 15, 3, 5, 1.2, 0)
                flows[scene].append(float(np.hypot(flow[..., 0], flow[..., 1]).mean()) * SAMPLES_HZ / TICKS_HZ)
            distance = abs(frame.time - sum(scenes[scene]) / 2)
            if distance < middles[scene][0]:
                small = cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA)
                bits = np.packbits(small[:, 1:] > small[:, :-1])
                middles[scene] = distance, int.from_bytes(bits.tobytes(), "big")
            last = scene, grey
    return [float(np.mean(values)) if values else None for values in flows], [value for _, value in middles]


def main() -> None:
    answer: dict[str, Any] = {"scenes": {}, "damaged": [], "duplicates": {}}
    bytes_seen: dict[str, str] = {}
    hashes_seen: dict[str, list[int]] = {}
    for path in sorted(Path(sys.argv[1]).iterdir()):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest in bytes_seen:
            answer["duplicates"][path.name] = bytes_seen[digest]
            continue
        bytes_seen[digest] = path.name
        try:
            scenes = scenes_of(path)
            motion, hashes = motion_of(path, scenes)
        except Exception as error:
            answer["damaged"].append(path.name)
            print(f"{path.name}: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        answer["scenes"][path.name] = [[*scene, value] for scene, value in zip(scenes, motion, strict=True)]
        for other, theirs in hashes_seen.items():
            near = [a for a, b in zip(hashes, theirs, strict=False) if (a ^ b).bit_count() <= HASH_BITS]
            if len(hashes) == len(theirs) == len(near):
                answer["duplicates"][path.name] = other
                break
        hashes_seen.setdefault(path.name, hashes)
    answer["versions"] = {"scenedetect": scenedetect.__version__, "opencv": cv2.__version__, "av": av.__version__}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
