"""Decodes every file of a folder that opens, with two threads and nothing else: what no curation can go below. Prints JSON.

python benchmarks/peers/bare_decode.py FILE...        (needs av)
"""

from __future__ import annotations

import json
import resource
import sys
import time

import av


def cpu_s() -> float:
    """Of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def decode(path: str) -> int:
    """Frames of the file."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = 2
        return sum(1 for _ in container.decode(stream))


if __name__ == "__main__":
    before, begin = cpu_s(), time.perf_counter()
    frames = sum(decode(path) for path in sys.argv[1:])
    print(json.dumps({"frames": frames, "cpu_s": cpu_s() - before, "wall_s": time.perf_counter() - begin}))
