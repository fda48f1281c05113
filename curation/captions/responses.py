"""Answers of servers, kept on disk: a relaunch asks nothing twice."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from curation.captions.caption import Caption
from curation.whole_files import write_text


class ResponseCache:
    """One JSON file per question (clip, model, prompt, frames, settings), written beside and renamed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, clip_id: str, question: str) -> Caption | None:
        """The kept answer. A file that cannot be read (power loss) counts as absent: the question is asked again."""
        try:
            return Caption(**json.loads(self._path(clip_id, question).read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def put(self, clip_id: str, question: str, caption: Caption) -> None:
        """Keeps an answer."""
        path = self._path(clip_id, question)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(vars(caption)))

    def _path(self, clip_id: str, question: str) -> Path:
        name = hashlib.sha256(f"{clip_id}\n{question}".encode()).hexdigest()[:32]
        return self._folder / name[:2] / f"{name}.json"
