"""The process of ours that curate_1080p.py measures: imports, then the jobs. `curate_jobs.py ROOT SOURCES BACKEND WORKERS`.

Apart from curate_1080p.py, which holds what judges the answers (scipy alone is 60 MB) and renders the set.
"""

from __future__ import annotations

import json
import sys
import time

from curation import store
from curation.held_off_pandas import hold_off_pandas
from pipelines import detect_shots, ingest, score
from pipelines.artifacts import Workspace
from pipelines.job import run_job
from pipelines.recipe import load


def main(root: str, sources: str, backend: str, workers: str) -> None:
    """Prints when the imports were done and when the jobs were, each a line of JSON."""
    settings = (
        "curation.quality.metrics=[]", "curation.shots.min_duration_s=2.0", "curation.shots.clip_duration_s=6.125",
        "curation.decode.threads=1", "curation.decode.key_frame_short_side_px=720", "curation.max_failed_share=1.0",
        f"runtime.backend={backend}", f"runtime.workers={workers}",
    )  # fmt: skip
    hold_off_pandas()  # as pipelines.job does
    recipe = load("debug", settings, sources=(sources,))
    store.lance()  # what the jobs will import, so that start-up holds it
    print(json.dumps({"ready": time.monotonic()}), flush=True)
    for name, job in (("ingest", ingest), ("detect_shots", detect_shots), ("score", score)):
        run_job(name, job.run, recipe, Workspace(root), "bench")
    print(json.dumps({"done": time.monotonic()}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
