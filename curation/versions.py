"""Versions of what reads and measures: bumped when equal settings come out differently. Light: imports nothing.

They stand in the lineage of what is written, so exactly that is stale, and in the job's fingerprint, so the job runs.
"""

from __future__ import annotations

PROBE_VERSION = "2"
PASS_VERSION = "3"
"""Of tracks and clips."""
SCORE_VERSIONS = {
    "health": "1",
    "motion_proxy": "6",
    "motion_raft": "1",
    "aesthetic_proxy": "1",
    "aesthetic": "2",
    "embedding": "2",
    "quality": "1",
    "text_overlay": "1",
    "dedup": "1",
    "semantic": "1",
}
"""By step; quality: every pyiqa metric."""
