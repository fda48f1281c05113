"""Which commit of its repository a downloaded model is, as the Hugging Face client left it on disk. Light; nothing is asked of a server.

Source: huggingface_hub, file_download.py (cache: models--OWNER--NAME/snapshots/COMMIT/FILE) and _local_folder.py
(--local-dir: .cache/huggingface/download/FILE.metadata, whose first line is the commit).
"""

from __future__ import annotations

import re
from pathlib import Path

_COMMIT = re.compile(r"[0-9a-f]{40}")


def revision_of(path: Path, file: str = "config.json") -> str | None:
    """Commit of a model's folder (or of a weights file), 40 hex; None where nothing on disk says it.

    `file`: the one of a folder's files that is asked about.
    """
    whole = (path / file if path.is_dir() else path).absolute()
    for folder in whole.parents:
        if folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name):
            return folder.name
        told = folder / ".cache" / "huggingface" / "download" / whole.relative_to(folder).with_name(f"{whole.name}.metadata")
        if told.is_file():
            commit = told.read_text(errors="replace").partition("\n")[0].strip()
            return commit if _COMMIT.fullmatch(commit) else None
    return None
