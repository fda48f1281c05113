"""The protocol of a VBench evaluation: everything that changes a number besides the videos and the networks. Light.

Sources: Vchitect/VBench, commit 45e79ec (vbench, vbench2_beta_long); torchvision.io.write_video with PyAV before and
after PyAV dropped its default bit rate (re-encoding).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal

from pydantic import model_validator

from flashvideo.evaluation.results import Record

Suite = Literal["vbench", "vbench_long"]
ReEncode = Literal["none", "1.024M", "crf23"]

QUIRKS = ("color", "spatial_relationship", "appearance_style")
"""Dimensions that a protocol without the reference's quirks may score otherwise: the first two by their rule, in vbench_long all
three by averaging clips within their video first. (So it averages the others too; a run under --corrected has them all.)"""
RULES_VERSION = "1"
"""Bumped when code shared by several dimensions (decoding, clips, re-encoding) changes a number."""


class VBenchProtocol(Record):
    """How VBench's numbers are made. Two results compare only where the digests are equal."""

    suite: Suite
    """vbench: whole videos. vbench_long: clips of 2 s or 10 s, slow-fast fusion."""
    re_encode: ReEncode = "none"
    """What happens to a clip before it is scored. 1.024M: H.264 at 1.024 Mbit/s, what write_video did in the leaderboard's
    time; crf23: what it does with a newer PyAV."""
    repeatable: bool = True
    """Re-encoding without the decisions of x264's lookahead. The reference's settings (False) give other bits in every
    third call or so; on 24 frames of 720p they are 0.15 dB and 4 % of detail below the repeatable ones."""
    antialias: bool = False
    """Antialiased resizing where the reference resizes without (DINO, CLIP, MUSIQ, ViCLIP)."""
    faithful: bool = True
    """The reference's quirks are kept: colour compares with the first detection's class, spatial relations have no
    direction, fps is truncated, clips are averaged flat. False: what the metric says it does."""
    slow_fast: bool = True
    """vbench_long: consistency is fused with that of the clips' first frames (the reference's --dev_flag)."""
    static_filter: bool = True
    """Temporal flickering counts the first 5 static videos (vbench_long: clips) of a prompt only."""
    prompts: Literal["short", "long"]
    """The list that the videos were sampled from. Scoring uses the short prompt always."""
    prompts_sha256: str
    """sha256 of that list's file."""
    rules_version: str = RULES_VERSION

    @model_validator(mode="after")
    def _consistent(self) -> VBenchProtocol:
        if self.suite == "vbench" and self.re_encode != "none":
            raise ValueError(f"re_encode is {self.re_encode}, but plain VBench scores the files themselves; use none, or vbench_long")
        return self

    def corrected(self) -> VBenchProtocol:
        """The same without the reference's quirks."""
        return self.model_copy(update={"faithful": False})

    @property
    def digest(self) -> str:
        """First 16 hex digits of the sha256 of every field."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()[:16]

    def described(self) -> dict[str, object]:
        """The fields and the digest, as they go into every result."""
        return {**self.model_dump(mode="json"), "digest": self.digest}


def file_sha256(path: Path) -> str:
    """sha256 of a file, hex. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
