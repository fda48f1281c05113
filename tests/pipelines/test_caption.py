"""The caption job on a store filled by hand: what it writes, what it leaves alone, what it does not ask twice."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest

from curation.schema import CLIPS, SOURCES
from curation.store import Store
from curation.tracks import TrackFacts, TrackWriter
from pipelines import caption
from pipelines.artifacts import Report, Workspace
from pipelines.executor import FailedShareError
from pipelines.job import JobContext, Progress, UserError
from pipelines.plan import job_spec
from pipelines.recipe import load

COLOURS = {"a1": (200, 20, 20), "a2": (20, 180, 20), "b1": (20, 40, 200), "b2": (250, 250, 250)}
SOURCES_OF = {"a1": "a", "a2": "a", "b1": "b", "b2": "b", "g1": "gone"}
GOOD = "Two children fly a kite over a field of wheat in warm evening light."


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Sources a and b with two clips each, and one that is no longer listed."""
    workspace = Workspace(tmp_path / "root")
    store = Store.open(workspace.store)
    sources = [
        {"uri": str(tmp_path / f"{name}.mp4"), "source_id": name, "present": name != "gone", "status": "split", "media_type": "video"}
        for name in ("a", "b", "gone")
    ]
    store.upsert("sources", table(sources, SOURCES))
    clips = [
        {
            "clip_id": clip_id, "source_id": source, "uri": str(tmp_path / f"{source}.mp4"), "media_type": "video", "start_us": 0,
            "end_us": 1_000_000, "duration_s": 1.0, "width": 1920, "height": 1080, "motion_proxy": 2.0, "camera_move": "static",
        }
        for clip_id, source in SOURCES_OF.items()
    ]  # fmt: skip
    store.upsert("clips", table(clips, CLIPS))
    for source in ("a", "b"):
        facts = TrackFacts(source, 320, 180, 320, 180, False, 0.2126, 0.0722, 41_667)
        with TrackWriter(workspace.tracks, facts) as writer:
            for clip_id, colour in COLOURS.items():
                if SOURCES_OF[clip_id] == source:
                    jpeg = cv2.imencode(".jpg", np.full((180, 320, 3), colour[::-1], np.uint8))[1].tobytes()
                    writer.keys([{"clip_id": clip_id, "time_us": 0, "jpeg": jpeg, "bars_px": [0] * 4, "hash": bytes(8)}])
    return workspace


def table(rows: list[dict[str, object]], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=pa.schema([schema.field(name) for name in rows[0]]))


def run(workspace: Workspace, *overrides: str) -> Report:
    recipe = load("debug", ("runtime.backend=local", *(f"curation.{override}" for override in overrides)))
    folder = workspace.folder("caption", "fp")
    folder.mkdir(parents=True, exist_ok=True)
    return caption.run(JobContext(recipe, workspace, job_spec("caption"), "fp", folder, Progress(None, "caption")))


def in_use(workspace: Workspace) -> dict[str, str | None]:
    rows = Store.open(workspace.store).read("clips", ["clip_id", "caption"]).to_pylist()
    return {row["clip_id"]: row["caption"] for row in rows}


def open_errors(workspace: Workspace) -> dict[str, str]:
    rows = Store.open(workspace.store).read("errors", ["clip_id", "code"], "resolved = false").to_pylist()
    return {row["clip_id"]: row["code"] for row in rows}


def versions(workspace: Workspace) -> tuple[int, ...]:
    store = Store.open(workspace.store)
    return tuple(store.version(name) for name in ("clips", "captions", "errors"))


# attributes


def test_every_present_clip_gets_its_sentence_and_row(workspace: Workspace) -> None:
    report = run(workspace)
    texts = in_use(workspace)
    assert texts["a1"] == "A wide video of 1 seconds, in red; the camera stands still and there is moderate motion."
    assert "green" in str(texts["a2"]) and "blue" in str(texts["b1"]) and "white" in str(texts["b2"])
    assert texts["g1"] is None
    store = Store.open(workspace.store)
    [row] = store.read("captions", where="clip_id = 'a1'").to_pylist()
    [run_row] = store.read("runs").to_pylist()
    assert row == {
        "clip_id": "a1", "caption_run": run_row["run_id"], "model": "attributes/1", "prompt_hash": None, "start_us": 0,
        "end_us": 1_000_000, "text": texts["a1"], "finish": "stop", "words": 17, "flags": [],
    }  # fmt: skip
    assert report.counts == {"clips": 4, "described_now": 4, "skipped": 0, "changed": 4, "flagged": 0, "failed": 0}
    assert report.models == {"caption": "attributes/1"} and report.warnings == []


def test_a_second_run_writes_nothing_and_a_changed_fact_rewrites_its_clip(workspace: Workspace) -> None:
    first = run(workspace)
    before = versions(workspace)
    assert run(workspace).digest == first.digest and versions(workspace) == before
    Store.open(workspace.store).merge_columns("clips", pa.table({"clip_id": ["b1"], "camera_move": ["pan left"]}))
    second = run(workspace)
    assert second.counts["changed"] == 1 and second.digest != first.digest
    assert "pans to the left" in str(in_use(workspace)["b1"]) and "stands still" in str(in_use(workspace)["b2"])


def test_a_failed_clip_has_no_caption_and_an_error_until_it_works(workspace: Workspace) -> None:
    run(workspace)
    track = workspace.tracks / "b.keys.arrow"
    away = track.rename(track.with_suffix(".away"))
    report = run(workspace)
    assert report.counts["failed"] == 2 and in_use(workspace)["b1"] is None and in_use(workspace)["a1"] is not None
    assert open_errors(workspace) == {"b1": "no_track", "b2": "no_track"}
    assert Store.open(workspace.store).count("captions") == 2
    away.rename(track)
    assert run(workspace).counts["failed"] == 0
    assert open_errors(workspace) == {} and "blue" in str(in_use(workspace)["b1"])


def test_too_many_failures_fail_the_job_and_say_how_many(workspace: Workspace) -> None:
    (workspace.tracks / "a.keys.arrow").unlink()
    with pytest.raises(FailedShareError, match=r"2 of 4 clips failed \(50%, curation.max_failed_share is 40%\)"):
        run(workspace, "max_failed_share=0.4")
    assert open_errors(workspace) == {"a1": "no_track", "a2": "no_track"}


# sidecar


def test_sidecars_are_read_anew_and_marked_as_of_the_whole_file(workspace: Workspace) -> None:
    folder = workspace.root.parent
    (folder / "a.txt").write_text(GOOD)
    (folder / "b.json").write_text('{"prompt": "A blue sheet hangs in front of a white wall."}')
    report = run(workspace, "caption.backend=sidecar")
    assert in_use(workspace)["a1"] == in_use(workspace)["a2"] == GOOD
    assert report.warnings == ["4 captions were written for a whole file and not for the clip's span"]
    (folder / "a.txt").write_text(f"{GOOD} It is late.")
    (folder / "b.json").unlink()
    assert run(workspace, "caption.backend=sidecar").counts["failed"] == 2
    assert in_use(workspace)["a1"] == f"{GOOD} It is late." and open_errors(workspace) == {"b1": "no_sidecar", "b2": "no_sidecar"}


def test_edited_sidecars_change_the_jobs_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    recipe = load("debug", ("curation.caption.backend=sidecar",), sources=(str(tmp_path / "a.mp4"),))
    upstream = {"score": Report(job="score", fingerprint="f", digest="d")}

    def fingerprint() -> str:
        return Workspace(tmp_path / "root").job_fingerprint(recipe, job_spec("caption"), upstream)

    before = fingerprint()
    assert fingerprint() == before
    (tmp_path / "a.txt").write_text(GOOD)
    assert fingerprint() != before


# http


@contextmanager
def server(texts: list[str]) -> Iterator[tuple[str, list[str]]]:
    """An OpenAI-compatible server that answers with these texts in turn ("": status 500); its address, and what it was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(200, b'{"data": []}')

        def do_POST(self) -> None:
            asked.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            text = texts[len(asked) - 1]
            choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            self._send(200 if text else 500, json.dumps({"choices": [choice]}).encode())

        def _send(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{httpd.server_address[1]}/v1", asked
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()


def through(url: str) -> tuple[str, ...]:
    """One request at a time, asked once: the order of the answers is the order of the clips."""
    return ("caption.backend=http", "caption.model=eye-7b", f"caption.base_url={url}", "caption.attempts=1", "caption.max_in_flight=1")


def test_a_relaunch_asks_only_about_clips_that_failed(workspace: Workspace) -> None:
    with server([GOOD, "", f"{GOOD} Again.", f"{GOOD} Still.", "A late answer about the second clip."]) as (url, asked):
        report = run(workspace, *through(url))
        assert report.counts["failed"] == 1 and len(asked) == 4
        assert open_errors(workspace) == {"a2": "caption_server_error"} and in_use(workspace)["a2"] is None
        report = run(workspace, *through(url))
        assert len(asked) == 5 and report.counts["described_now"] == 1 and report.counts["failed"] == 0
    assert open_errors(workspace) == {} and in_use(workspace)["a2"] == "A late answer about the second clip."


def test_a_lost_table_is_filled_from_the_kept_answers(workspace: Workspace) -> None:
    with server([GOOD, f"{GOOD} B.", f"{GOOD} C.", f"{GOOD} D."]) as (url, asked):
        first = run(workspace, *through(url))
        Store.open(workspace.store).delete("captions", "clip_id != ''")  # as if killed before the first commit
        assert run(workspace, *through(url)).digest == first.digest and len(asked) == 4


def test_a_refusal_is_kept_to_look_at_and_never_used(workspace: Workspace) -> None:
    with server([GOOD, "I'm sorry, I cannot describe people.", f"{GOOD} C.", f"{GOOD} D."]) as (url, asked):
        report = run(workspace, *through(url))
        assert run(workspace, *through(url)).digest == report.digest and len(asked) == 4
    assert in_use(workspace)["a2"] is None and open_errors(workspace) == {"a2": "caption_refusal"}
    [row] = Store.open(workspace.store).read("captions", ["text", "flags"], "clip_id = 'a2'").to_pylist()
    assert row == {"text": "I'm sorry, I cannot describe people.", "flags": ["refusal"]}
    assert report.counts["failed"] == 1 and report.warnings == ["1 captions are flagged refusal"]


def test_captions_of_an_earlier_backend_come_back_without_being_asked_for(workspace: Workspace) -> None:
    with server([GOOD, f"{GOOD} B.", f"{GOOD} C.", f"{GOOD} D."]) as (url, asked):
        run(workspace, *through(url))
        run(workspace)
        assert "in red" in str(in_use(workspace)["a1"])
        run(workspace, *through(url))
        assert in_use(workspace)["a1"] == GOOD and len(asked) == 4


def test_a_server_that_is_not_there_is_a_mistake_before_any_work(workspace: Workspace) -> None:
    with server([]) as (url, _):
        pass
    with pytest.raises(UserError, match="no caption server answers at"):
        run(workspace, *through(url))
    assert open_errors(workspace) == {}


def test_a_missing_local_model_is_a_mistake(workspace: Workspace) -> None:
    with pytest.raises(UserError, match=r"no_such_folder is no folder; it must hold config\.json"):
        run(workspace, "caption.backend=transformers", "caption.model=no_such_folder")
