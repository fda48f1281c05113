"""What a file is: its content hash and its probe, each file a named outcome.

The hash is read here; the probe runs in a child process with a deadline and a memory cap, because a demuxer or
decoder may hang or crash on a hostile file.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

from curation.config import DecodeConfig
from curation.remote import RemoteError, fetch
from curation.sources import SourceFile, is_remote
from curation.step import Lineage
from curation.supervised import Failure, SupervisedFunction
from curation.versions import PROBE_VERSION
from curation.video import Probe


def ingest_lineage() -> Lineage:
    """What made the probe columns of `sources`."""
    return Lineage("ingest", "probe", PROBE_VERSION, "PyAV")


@dataclass(frozen=True)
class IngestResult:
    """One file's content hash, and what it is or why it cannot be read."""

    file: SourceFile
    source_id: str | None
    """None when the file could not be read at all."""
    probe: Probe | None
    failure: Failure | None

    def row(self) -> dict[str, Any]:
        """The file's row of `sources`; status probed or failed (duplicates are known only among all rows)."""
        row: dict[str, Any] = {
            "uri": self.file.uri,
            "source_id": self.source_id,
            "dataset": self.file.dataset,
            "present": True,
            "status": "failed" if self.probe is None else "probed",
            "bytes": self.file.bytes,
            "modified_ns": self.file.modified_ns,
            "ingest_run": ingest_lineage().run_id,
        }
        if self.probe is not None:
            facts = asdict(self.probe)
            facts.pop("packets")
            row |= facts
        return row


class Ingester:
    """Hashes and probes one file after the other; holds the child process."""

    def __init__(self, config: DecodeConfig) -> None:
        self._probe = SupervisedFunction("curation.video:probe", config.deadline_s, config.memory_bytes, config.attempts)

    def __call__(self, file: SourceFile) -> IngestResult:
        try:
            source_id = _content_hash(file)
        except RemoteError as error:
            return IngestResult(file, None, None, Failure("unreachable", str(error), 1, 0.0))
        except OSError as error:
            return IngestResult(file, None, None, Failure("unreadable", f"{file.uri}: {error.strerror}", 1, 0.0))
        found = self._probe(file.uri)
        if isinstance(found, Failure):
            return IngestResult(file, source_id, None, found)
        return IngestResult(file, source_id, found, None)

    def close(self) -> None:
        self._probe.close()


def _content_hash(file: SourceFile) -> str:
    """Downloads a remote file first, outside the probe's deadline; its copy is read once more against its hash."""
    if is_remote(file.uri):
        return fetch(file.uri, (file.bytes, file.modified_ns), verify=True).sha256[:32]
    return hash_file(file.uri)


def hash_file(path: str) -> str:
    """First 32 hex of the sha256 of the file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


def mark_duplicates(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with `status` and `duplicate_of` set: of probed files with equal bytes the first by uri is the original.

    A row that was a duplicate and is none any more becomes probed again; originals that are split, or that the decode
    pass failed on, stay so.
    """
    originals: dict[str, str] = {}
    marked = []
    for row in sorted(rows, key=lambda row: str(row["uri"])):
        row = dict(row)
        if row["media_type"] is not None:
            original = originals.setdefault(row["source_id"], row["uri"])
            if original != row["uri"]:
                row["status"], row["duplicate_of"] = "duplicate", original
            else:
                row["duplicate_of"] = None
                row["status"] = "probed" if row["status"] == "duplicate" else row["status"]
        marked.append(row)
    return marked
