"""`flashvideo convert` as a child process: the weights' libraries stay out of the command line's."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def convert(source: str, target: str, files: Sequence[Path]) -> int:
    """Runs `python -m flashvideo.convert` in the foreground; returns its exit code (0, 1, or 2 for a user's mistake)."""
    command = [sys.executable, "-m", "flashvideo.convert", "--from", source, "--to", target, "--", *map(str, files)]
    process = subprocess.Popen(command)
    try:
        return process.wait()
    except KeyboardInterrupt:
        return process.wait()
