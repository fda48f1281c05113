"""The Step protocol: one piece of curation work on a batch of rows, knowing nothing of storage or Ray.

A Step reads columns of an Arrow batch and returns the batch of columns that it writes, same rows, same
order. It holds its model in the constructor, on the device that it is given. It never drops a row: a clip
that cannot be scored raises `StepError` (or anything), and the executor (`pipelines/executor.py`), the one
place that catches, reruns that batch row by row, writes nulls and an error row for the rows that fail.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, runtime_checkable

import pyarrow as pa

Batch: TypeAlias = pa.RecordBatch


@dataclass(frozen=True)
class Resources:
    """What one worker of a step asks for."""

    cpus: float = 1.0
    gpus: float = 0.0
    memory_bytes: int = 0


@dataclass(frozen=True)
class Lineage:
    """What made a value. Its id is content-derived, so equal work has an equal id on every machine."""

    job: str
    step: str
    version: str
    """Bumped when the step's code changes what it writes."""
    model: str
    """Name of the model or algorithm; a stand-in says so here."""
    weights_sha256: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    revision: str | None = None
    """Commit of the model's repository (`curation.revisions`). Not in the id: the weights' hash tells models apart."""

    @property
    def parameters_json(self) -> str:
        """Keys in order, so that equal parameters are equal text."""
        return json.dumps(self.parameters, sort_keys=True)

    @property
    def run_id(self) -> str:
        """16 hex characters; equal to the `<score>_run` columns and to the key of the `runs` table."""
        facts = [self.job, self.step, self.version, self.model, self.weights_sha256, self.parameters]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


class StepError(Exception):
    """A row that cannot be done, with a stable code for the errors table (e.g. `too_few_frames`)."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@runtime_checkable
class Step(Protocol):
    """See the module's docstring."""

    name: str
    reads: tuple[str, ...]
    writes: pa.Schema
    resources: Resources
    lineage: Lineage

    def __call__(self, batch: Batch) -> Batch: ...


def scored(scores: Sequence[float | None], lineage: Lineage, schema: pa.Schema) -> Batch:
    """A batch of one score a row (None: unknown) beside what made it; `schema` has these two columns."""
    columns = [pa.array(scores, pa.float32()), pa.array([lineage.run_id] * len(scores), pa.string())]
    return pa.RecordBatch.from_arrays(columns, schema=schema)
