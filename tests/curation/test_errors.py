"""Error rows by code."""

from __future__ import annotations

from pathlib import Path

import pytest

from curation.errors import ErrorCode, errors_by_code
from curation.expression import QueryError
from curation.store import Store

PROBE = {"job": "ingest", "step": "probe", "run_id": "p"}
MOTION = {"job": "score", "step": "motion_proxy", "run_id": "m"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Three files that are no video, one of them readable since; a clip too short."""
    store = Store.open(tmp_path / "store")
    store.append_errors(
        [PROBE | {"uri": f"/{name}.mp4", "code": "no_video_stream", "message": f"/{name}.mp4: sound only"} for name in "cab"]
    )
    store.append_errors([MOTION | {"uri": "/d.mp4", "clip_id": "d0", "code": "too_few_frames", "message": "3 frames"}])
    store.resolve_errors("ingest", uris=["/a.mp4"])
    return store


def brief(found: list[ErrorCode]) -> list[tuple[str, str, int, int, list[str]]]:
    return [(each.code, each.step, each.open, each.resolved, [row["uri"] for row in each.examples]) for each in found]


def test_codes_are_counted_and_open_rows_are_the_examples(store: Store) -> None:
    assert brief(errors_by_code(store)) == [
        ("no_video_stream", "probe", 2, 1, ["/b.mp4", "/c.mp4"]),
        ("too_few_frames", "motion_proxy", 1, 0, ["/d.mp4"]),
    ]
    assert brief(errors_by_code(store, "no_video_stream", examples=1)) == [("no_video_stream", "probe", 2, 1, ["/b.mp4"])]


def test_one_code_of_two_steps_is_two_groups(store: Store) -> None:
    store.append_errors([PROBE | {"uri": "/e.mp4", "code": "too_few_frames", "message": "0 frames"}])
    assert [(each.job, each.open) for each in errors_by_code(store, "too_few_frames")] == [("ingest", 1), ("score", 1)]


def test_an_unknown_code_names_those_that_are_there(store: Store, tmp_path: Path) -> None:
    with pytest.raises(QueryError, match=r"no error has the code .it's.; codes: no_video_stream, too_few_frames"):
        errors_by_code(store, "it's")
    with pytest.raises(QueryError, match="there is no error"):
        errors_by_code(Store.open(tmp_path / "empty"), "deadline")
    assert errors_by_code(Store.open(tmp_path / "empty")) == []
