"""The review page: labels that survive a kill, the queue and its head, agreement, clips that play, and who may ask."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import cv2
import httpx
import numpy as np
import pyarrow as pa
import pytest
from fastapi.testclient import TestClient
from generated_films import moving, texture, write_film

from curation.config import PolicyConfig, Rule
from curation.expression import QueryError
from curation.policy import preferred
from curation.query import open_dataset
from curation.review import agreement
from curation.review.command import print_summary
from curation.review.head import Targets, auc, cross_validate, features_of, fit, targets_of, train
from curation.review.labels import KEEP, PAIR, Label, LabelBook, ReviewError, labels_digest, pair_of, read_labels, recover
from curation.review.queue import FRONT, Queue, by_uncertainty, diverse, next_pairs, read_pool
from curation.review.server import ASSETS, Access, address_of, host_of, listen, make_app
from curation.review.session import ReviewSettings, Session
from curation.schema import CLIPS, EMBEDDING_WIDTH
from curation.store import Store
from curation.video import decode, probe
from orchestration.review import next_command, run_review
from orchestration.runs import open_run
from pipelines import select
from pipelines.artifacts import Report, Workspace
from pipelines.job import UserError
from pipelines.plan import job_spec
from pipelines.recipe import preset

REPOSITORY = Path(__file__).resolve().parents[2]
SECOND = 1_000_000
NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
COMMAND = "flashvideo curate --root ROOT"


def label(clip_id: str, annotator: str, value: float | None, kind: str = KEEP, second: int = 0) -> Label:
    return Label(clip_id, annotator, kind, value, NOW.replace(second=second % 60, minute=second // 60))


@pytest.fixture(scope="module")
def made_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five clips of two films (H.264, and MPEG-4 that browsers do not play), an image, one without its file; all kept. Cut already."""
    root = tmp_path_factory.mktemp("review")
    films = [write_film(root / "pan.mp4", moving(64, 96, 72, (1, 0), seed=1)), root / "old.avi"]
    writer = cv2.VideoWriter(str(films[1]), cv2.VideoWriter.fourcc(*"MJPG"), 24, (96, 64))
    for picture in moving(64, 96, 48, (2, 0), seed=2):
        writer.write(np.ascontiguousarray(picture[..., ::-1]))
    writer.release()
    cv2.imwrite(str(root / "still.png"), texture(40, 60, 1))
    rows = [  # clip, file, start, end, motion, looks
        ("c1", films[0], 0, SECOND, 1.0, 5.0),
        ("c2", films[0], SECOND, 2 * SECOND, 2.0, 6.0),
        ("c3", films[1], 0, SECOND, 5.0, 3.0),
        ("c4", films[1], SECOND, 2 * SECOND, 9.0, 4.0),
        ("c5", root / "still.png", 0, 0, None, 7.0),
        ("c6", root / "gone.mp4", 0, SECOND, 1.5, 2.0),
    ]
    store = Store.open(root / "store")
    store.upsert(
        "clips",
        pa.table(
            {
                "clip_id": [row[0] for row in rows],
                "uri": [str(row[1]) for row in rows],
                "source_id": [row[1].stem for row in rows],
                "media_type": ["image" if row[1].suffix == ".png" else "video" for row in rows],
                "start_us": [row[2] for row in rows],
                "end_us": [row[3] for row in rows],
                "duration_s": [(row[3] - row[2]) / SECOND for row in rows],
                "motion_proxy": pa.array([row[4] for row in rows], pa.float32()),
                "aesthetic_proxy": pa.array([row[5] for row in rows], pa.float32()),
                "state": ["kept"] * 6,
                "split": ["train"] * 6,
                "caption": ["a </script><b>film</b>"] * 6,
            }
        ),
    )
    uris = sorted({str(row[1]) for row in rows})
    store.upsert("sources", pa.table({"uri": uris, "source_id": [Path(uri).stem for uri in uris], "present": [True] * 4}))
    (root / "tracks" / "thumbs").mkdir(parents=True)
    cv2.imwrite(str(root / "tracks" / "thumbs" / "c1.jpg"), texture(36, 64, 3))
    with sitting(root, "cutter", "clip_id != 'c6'") as session:
        for clip_id in ("c1", "c2", "c3", "c4"):
            session.preview(clip_id)
    return root


@pytest.fixture
def root(made_root: Path, tmp_path: Path) -> Path:
    """The made root, to write to."""
    shutil.copytree(made_root, tmp_path / "root")
    return tmp_path / "root"


@contextmanager
def sitting(root: Path, annotator: str = "anna", where: str = "clip_id != 'c6'", **settings: object) -> Iterator[Session]:
    """A sitting over the clips whose files are there."""
    session = Session(
        ReviewSettings(
            root, annotator, where, next_command=COMMAND, motion_edges=(2.0, 4.0), motion_words=("low", "some", "much"), **settings
        )
    )  # type: ignore[arg-type]
    try:
        yield session
    finally:
        session.close()


@contextmanager
def page(session: Session, host: str = "127.0.0.1") -> Iterator[tuple[TestClient, Access]]:
    """A browser with the page open."""
    access = Access(host)
    with TestClient(make_app(session, access), base_url="http://127.0.0.1:8000", headers={"X-Review-Token": access.token}) as client:
        yield client, access


def rows(root: Path) -> dict[tuple[str, str, str], float | None]:
    return {each.key: each.value for each in read_labels(Store.open(root / "store"))}


# ---- labels


def test_many_labels_make_one_version_and_are_on_disk_before_it(root: Path) -> None:
    store = Store.open(root / "store")
    before = store.version("labels")
    book = LabelBook(store, root / "review", "anna")
    for clip_id, value in (("c1", 1.0), ("c2", 0.0), ("c1", 0.0), ("c3", None)):
        book.set(clip_id, KEEP, value)
    assert rows(root) == {} and book.waiting == 4
    assert [line.split(",")[0] for line in next((root / "review").glob("*.jsonl")).read_text().splitlines()] == [
        '["c1"',
        '["c2"',
        '["c1"',
        '["c3"',
    ]
    assert book.commit() == 3
    assert rows(root) == {("c1", "anna", KEEP): 0.0, ("c2", "anna", KEEP): 0.0, ("c3", "anna", KEEP): None}
    assert store.version("labels") == before + 1
    assert book.waiting == 0 and book.commit() == 0
    book.remove("c2", KEEP)
    book.close()
    assert set(rows(root)) == {("c1", "anna", KEEP), ("c3", "anna", KEEP)}
    assert list((root / "review").glob("*.jsonl")) == []


def test_a_dead_sittings_labels_are_recovered_and_a_torn_line_is_none(root: Path) -> None:
    store = Store.open(root / "store")
    book = LabelBook(store, root / "review", "it's anna")
    book.set("c1", KEEP, 1.0)
    book.set("c2", KEEP, 1.0)
    book.remove("c2", KEEP)
    segment = next((root / "review").glob("*.jsonl"))
    with segment.open("a") as file:
        file.write('["c3", "it')  # the writer died within this line, before the page was answered
    assert recover(store, root / "review") == 0, "her process lives"
    with pytest.raises(ReviewError, match="it's anna is reviewing"):
        LabelBook(store, root / "review", "it's anna")
    assert book._lock is not None
    book._lock.close()  # what the end of a process does
    assert recover(store, root / "review") == 3
    assert rows(root) == {("c1", "it's anna", KEEP): 1.0}
    assert not segment.exists()
    for name in ("", " ", "x" * 65, "a\nb"):
        with pytest.raises(ReviewError, match="printable"):
            LabelBook(store, root / "review", name)


def test_kill_9_loses_no_label_and_ctrl_c_ends_in_order(root: Path) -> None:
    """The real command, twice: killed after three labels; then it recovers them, goes on, and ends by Ctrl-C."""
    with running(root) as (process, client):
        assert client.get("/api/state").json()["items"][0][0]["clip_id"] == "c5"
        for clip_id, value in (("c5", 1.0), ("c2", 0.0), ("c1", None)):
            client.post("/api/judge", json={"clip_id": clip_id, "value": value}).raise_for_status()
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
    assert rows(root) == {}, "they waited for their commit"
    with running(root) as (process, client):
        state = client.get("/api/state").json()
        assert (state["progress"]["done"], state["items"][0][0]["clip_id"]) == (3, "c4")
        client.post("/api/judge", json={"clip_id": "c4", "value": 1.0}).raise_for_status()
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "1 kept; 2 left. The labels are in the store." in said
    assert "flashvideo curate --root" in said and "preference_subset=labels" in said
    expected = {"c5": 1.0, "c2": 0.0, "c1": None, "c4": 1.0}
    assert rows(root) == {(clip_id, "anna", KEEP): value for clip_id, value in expected.items()}
    assert list((root / "review").glob("*.jsonl")) == []


@contextmanager
def running(root: Path) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    command = [sys.executable, "-m", "orchestration.cli", "review", "--root", str(root), "--annotator", "anna", "--order=-aesthetic_proxy"]
    process = subprocess.Popen(
        [*command, "--no-browser"], cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    )
    try:
        assert process.stdout is not None
        address = next(found.group(1) for line in process.stdout if (found := re.search(r"review: (http://127\.0\.0\.1:\d+/)", line)))
        with httpx.Client(base_url=address, timeout=60) as client:
            token = re.search(r'name="review-token" content="([^"]+)"', client.get("/").text)
            assert token is not None
            client.headers["X-Review-Token"] = token.group(1)
            yield process, client
    finally:
        process.kill()
        process.wait(timeout=30)


def test_keys_of_the_page(root: Path) -> None:
    """Keep, drop, skip, undo; a label that was changed comes back as it was; skipping says nothing about the clip."""
    with sitting(root, order="clip_id") as session, page(session) as (client, _):

        def judge(clip_id: str, value: float | None) -> list[str]:
            answer = client.post("/api/judge", json={"clip_id": clip_id, "value": value})
            return [item[0]["clip_id"] for item in answer.json()["items"]]

        assert judge("c1", 1.0) == ["c2", "c3", "c4", "c5"]
        assert judge("c2", None) == ["c3", "c4", "c5"]
        assert judge("c1", 0.0) == ["c3", "c4", "c5"]
        assert client.post("/api/undo").json()["undone"] == ["c1"]
        assert session.book.get("c1").value == 1.0  # type: ignore[union-attr]
        answer = client.post("/api/undo").json()
        assert answer["undone"] == ["c2"] and answer["items"][0][0]["clip_id"] == "c2"
        progress = answer["progress"]
        assert (progress["done"], progress["left"], progress["kept_share"]) == (1, 4, 1.0)
        assert judge("c2", None) == ["c3", "c4", "c5"]
        clip = client.get("/api/state").json()["items"][0][0]
        assert (clip["motion_word"], clip["name"], clip["caption"]) == ("much", "old.avi", "a </script><b>film</b>")
        assert [(score["name"], score["value"]) for score in clip["scores"]] == [("motion_proxy", 5.0), ("aesthetic_proxy", 3.0)]
        assert client.post("/api/judge", json={"clip_id": "c3", "value": 0.7}).status_code == 400
        assert client.post("/api/judge", json={"clip_id": "nobody", "value": 1.0}).json() == {"error": "no clip 'nobody'"}
    assert rows(root) == {("c1", "anna", KEEP): 1.0, ("c2", "anna", KEEP): None}


def test_pairs_have_one_row_whichever_side_a_clip_was_on(root: Path) -> None:
    assert pair_of("b", "a", 1.0) == ("a", f"{PAIR}b", 0.0) and pair_of("a", "b", 1.0) == ("a", f"{PAIR}b", 1.0)
    with sitting(root, kind="pair") as session, page(session) as (client, _):
        state = client.get("/api/state").json()
        assert state["progress"] == {"done": 0, "left": 3, "total": 3, "kept_share": None, "per_minute": None}
        (left, right), following = ([clip["clip_id"] for clip in item] for item in state["items"])
        assert len({left, right, *following}) == 4
        answer = client.post("/api/compare", json={"left": left, "right": right, "value": 1.0}).json()
        assert [clip["clip_id"] for clip in answer["items"][0]] == following
        first = pair_of(left, right, 1.0)
        client.post("/api/compare", json={"left": following[0], "right": following[1], "value": 0.5})
        answer = client.post("/api/undo").json()
        assert [clip["clip_id"] for clip in answer["items"][0]] == following
        assert client.post("/api/compare", json={"left": left, "right": left, "value": 1.0}).status_code == 400
    assert rows(root) == {(first[0], "anna", first[1]): first[2]}


# ---- the head and the queue


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """41 clips of 8 sources whose embeddings turn from one direction (clip 00) to another (clip 40), with a source's own noise."""
    root = tmp_path_factory.mktemp("embedded")
    random = np.random.default_rng(0)
    ids = [f"{index:02d}" for index in range(41)]
    angle = np.linspace(0, np.pi / 2, 41)
    vectors = random.normal(0, 0.002, (41, EMBEDDING_WIDTH)) + random.normal(0, 0.002, (8, EMBEDDING_WIDTH))[np.arange(41) % 8]
    vectors[:, 0] += np.cos(angle)
    vectors[:, 1] += np.sin(angle)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float16).reshape(-1)), EMBEDDING_WIDTH)
    sources = [f"s{index % 8}" for index in range(41)]
    table = pa.table({"clip_id": ids, "source_id": sources, "uri": sources, "state": ["kept"] * 41, "embedding": column})
    Store.open(root / "store").upsert("clips", table)
    return root


def test_the_uncertain_clip_is_between_what_was_kept_and_what_was_dropped(embedded: Path) -> None:
    pool = read_pool(open_dataset(embedded / "store").clips, "uncertain", None)
    assert pool.features.names == f"CLIP embedding ({EMBEDDING_WIDTH})" and pool.features.unknown == 0
    labels = [label(f"{index:02d}", "anna", float(index > 20)) for index in (*range(0, 12), *range(29, 41))]
    head = train(pool.features, targets_of(labels, pool.place), pool.sources)
    assert head is not None
    order = [pool.ids[place] for place in by_uncertainty(head.probabilities(pool.features), pool.ids)]
    solution = fit(pool.features.values, targets_of(labels, pool.place), (-head.weights, 3.0))
    assert np.allclose(solution[0], head.weights, atol=1e-4) and solution[1] == pytest.approx(head.intercept, abs=1e-4), "one solution"
    assert set(order[:5]) == {"18", "19", "20", "21", "22"}
    assert set(order[-4:]) <= {f"{index:02d}" for index in (*range(8), *range(33, 41))}
    assert (head.check.accuracy, head.check.auc, head.check.always) == (1.0, 1.0, 0.5)
    assert head.check.labels == 24 and head.check.folds == 5


def test_comparisons_alone_teach_the_direction(embedded: Path) -> None:
    pool = read_pool(open_dataset(embedded / "store").clips, "uncertain", None)
    pairs = [(3, 30), (35, 8), (1, 22), (39, 5), (12, 33), (27, 10), (2, 18), (37, 14)]
    labels = []
    for a, b in pairs:
        clip_id, kind, value = pair_of(f"{a:02d}", f"{b:02d}", float(a > b))
        labels.append(label(clip_id, "anna", value, kind))
    head = train(pool.features, targets_of([*labels, label("00", "ben", 0.5, f"{PAIR}01")], pool.place), pool.sources)
    assert head is not None
    chance = head.probabilities(pool.features)
    by_id = [chance[pool.place[f"{index:02d}"]] for index in range(41)]
    assert np.median(by_id) == pytest.approx(0.5)
    assert np.corrcoef(by_id, range(41))[0, 1] > 0.98
    assert head.check.pairs == 8 and head.check.pairs_right == 1.0 and head.check.accuracy is None


def test_the_check_does_not_count_what_is_known_by_heart() -> None:
    """Every source looks like itself alone and has one answer: seen clips are told apart, unseen sources cannot be."""
    values = np.eye(10, dtype=np.float32)[np.arange(40) % 10]
    targets = Targets(np.arange(40), np.full(40, -1), (np.arange(40) % 10 < 5).astype(float))
    check = cross_validate(values, targets, [f"s{index % 10}" for index in range(40)])
    assert check.labels == 40 and check.accuracy is not None and check.accuracy <= 0.5
    alone = cross_validate(values, targets, ["s"] * 40)
    assert alone.accuracy is None and "one source" in alone.why_not


def test_auc_by_hand() -> None:
    assert auc(np.array([1.0, 2.0, 3.0, 4.0]), np.array([False, True, False, True])) == 0.75
    assert auc(np.array([1.0, 1.0]), np.array([False, True])) == 0.5
    assert auc(np.array([1.0]), np.array([True])) is None


def test_nothing_is_trained_on_too_few_or_equal_labels(embedded: Path) -> None:
    pool = read_pool(open_dataset(embedded / "store").clips, "uncertain", None)

    def trained(values: list[float | None]) -> bool:
        labels = [label(f"{index:02d}", "anna", value) for index, value in enumerate(values)]
        return train(pool.features, targets_of(labels, pool.place), pool.sources) is not None

    assert not trained([1, 0, 1, 0, 1, 0, 1]) and not trained([1] * 20) and not trained([1, 0, 1, 0, 1, 0, 1, None])
    assert trained([1, 0, 1, 0, 1, 0, 1, 0])


def test_scores_stand_in_for_the_embedding(made_root: Path) -> None:
    clips = open_dataset(made_root / "store").clips.to_arrow().drop_columns(["embedding"])
    features = features_of(clips)
    assert features.names == "scores: motion_proxy, aesthetic_proxy" and features.unknown == 1
    assert features.values.shape == (6, 2)
    assert features.values[4, 0] == 0, "the image has no motion: the average clip's"


def test_diverse_takes_every_class_in_turn_and_duplicates_last() -> None:
    table = pa.Table.from_pylist(
        [
            {"clip_id": f"{index:02d}", "source_id": f"s{index % 4}", "motion_proxy": float(index % 4), "aesthetic_proxy": 5.0}
            | {"duplicate_cluster": "00" if index in (0, 4, 8) else None}
            for index in range(16)
        ],
        schema=CLIPS,
    )
    order = diverse(table).tolist()
    assert sorted(order) == list(range(16)) and order == diverse(table).tolist()
    assert len({index % 4 for index in order[:4]}) == 4 and len({index % 4 for index in order[4:8]}) == 4
    assert set(order[-2:]) < {0, 4, 8}


def test_a_pool_is_the_first_clips_of_its_order(made_root: Path) -> None:
    clips = open_dataset(made_root / "store").clips
    pool = read_pool(clips, "-aesthetic_proxy", 2)
    assert pool.ids == ["c5", "c2"] and pool.matching == 6
    with pytest.raises(QueryError, match="did you mean aesthetic"):
        read_pool(clips, "-asthetic", None)
    with pytest.raises(QueryError, match="no clip to review: none of 6 has state = 'new'"):
        read_pool(clips.where("state = 'new'"), "diverse", None)


def test_the_front_stays_and_one_in_ten_is_anothers(embedded: Path) -> None:
    pool = read_pool(open_dataset(embedded / "store").clips, "clip_id", None)
    queue, mine, others = Queue(pool), set[str](), {"00", "01", "02"}
    assert queue.ahead(mine, others) == ["03", "04", "05", "06"]
    queue.reorder(np.arange(41)[::-1])
    mine.add("04")
    assert queue.ahead(mine, others) == ["03", "05", "06", "40"]
    queue.put_back("04")
    assert queue.ahead(set(), others) == ["04", "03", "05", "06", "40"][: FRONT + 1]
    seen: list[str] = []
    while front := queue.ahead(mine, others):
        seen.append(front[0])
        mine.add(front[0])
    assert len(seen) == len(set(seen)) and set(seen) | {"04"} == set(pool.ids)
    assert [seen.index(clip_id) for clip_id in ("02", "01", "00")] == sorted(seen.index(clip_id) for clip_id in others)
    assert seen.index("02") < 10, "not only at the end"


def test_pairs_are_near_each_other_and_new(embedded: Path) -> None:
    pool = read_pool(open_dataset(embedded / "store").clips, "clip_id", 6)
    chance = np.array([0.1, 0.9, 0.5, 0.12, 0.88, 0.45])
    order = np.arange(6)
    pairs = next_pairs(pool, order, chance, Counter(), set(), 3)
    assert {frozenset(pair) for pair in pairs} == {frozenset(("00", "03")), frozenset(("01", "04")), frozenset(("02", "05"))}
    again = next_pairs(pool, order, chance, Counter({"00": 1, "03": 1}), {frozenset(("01", "04"))}, 1)
    assert [frozenset(pair) for pair in again] == [frozenset(("01", "02"))]
    assert next_pairs(pool, order[:2], None, Counter(), {frozenset(("00", "01"))}, 1) == []


# ---- agreement


def test_kappa_by_hand() -> None:
    """20 both keep, 5 only the first, 10 only the second, 15 neither: p_o = 0.7, p_e = 0.5 * 0.6 + 0.5 * 0.4 = 0.5."""
    pairs = [(True, True)] * 20 + [(True, False)] * 5 + [(False, True)] * 10 + [(False, False)] * 15
    assert agreement.cohens_kappa(pairs) == pytest.approx(0.4)
    labels = [label(f"{index}", name, float(vote)) for index, pair in enumerate(pairs) for name, vote in zip(("a", "b"), pair, strict=True)]
    labels += [label("0", "c", None), label("0", "a", 1.0, f"{PAIR}1"), label("99", "a", 1.0)]
    (found,) = agreement.agreements(labels)
    assert (found.names, found.clips, found.share, found.kappa) == (("a", "b"), 50, 0.7, pytest.approx(0.4))
    assert len(agreement.disputes(labels)) == 15
    assert agreement.disputes(labels)[0] == agreement.Dispute("20", ("a",), ("b",))
    assert agreement.cohens_kappa([(True, True)] * 3) is None
    assert agreement.cohens_kappa([(True, False), (False, True)]) == -1


def test_the_summary_on_the_page_and_in_the_terminal(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, votes in (("anna", "110-"), ("ben", "100-")):
        with sitting(root, name) as session:
            for index, vote in enumerate(votes, start=1):
                session.judge(f"c{index}", None if vote == "-" else float(vote))
    with sitting(root, "carl") as session, page(session) as (client, _):
        found = client.get("/api/summary").json()
    assert found["subset"] == {"chosen": 1, "not_kept": 0, "size": 50_000}
    assert [(each["name"], each["kept"], each["dropped"], each["skipped"]) for each in found["annotators"]] == [
        ("anna", 2, 1, 1),
        ("ben", 1, 2, 1),
    ]
    assert [dispute["clip"]["name"] for dispute in found["disputes"]] == ["pan.mp4"]
    print_summary(root, 12, COMMAND)
    said = capsys.readouterr().out
    assert re.search(r"^anna and ben +3 +67% +0\.40$", said, re.M)
    assert "1 kept clips of 12 wanted" in said
    assert re.search(r"c2 +pan.mp4 1\.00-2\.00 s +keep: anna; drop: ben", said)


# ---- the server


def test_clips_play_from_any_byte(made_root: Path) -> None:
    with sitting(made_root, "player", "clip_id is not null") as session, page(session) as (client, _):
        whole = client.get("/clip/c2")
        assert (whole.status_code, whole.headers["content-type"], whole.headers["accept-ranges"]) == (200, "video/mp4", "bytes")
        part = client.get("/clip/c2", headers={"Range": "bytes=10-29"})
        assert (part.status_code, part.headers["content-range"]) == (206, f"bytes 10-29/{len(whole.content)}")
        assert part.content == whole.content[10:30]
        tail = client.get("/clip/c2", headers={"Range": "bytes=-5"})
        assert tail.status_code == 206 and tail.content == whole.content[-5:]
        assert client.get("/clip/c2", headers={"Range": f"bytes={len(whole.content)}-"}).status_code == 416
        assert client.get("/clip/c5").content == (made_root / "still.png").read_bytes()
        assert client.get("/clip/c5").headers["content-type"] == "image/png"
        assert client.get("/thumb/c1").headers["content-type"] == "image/jpeg" and client.get("/thumb/c2").status_code == 404
        gone = client.get("/clip/c6")
        assert gone.status_code == 422 and gone.json()["code"] == "missing"
        assert client.get("/api/clip/c6").status_code == 422, "and is not cut again at once"
        assert client.get("/api/clip/c2").json() == {"how": "the source's own packets (h264)"}
        assert "(the source is mjpeg)" in client.get("/api/clip/c3").json()["how"]
    for clip_id in ("c2", "c3"):
        path = next((made_root / "review" / "clips").glob(f"{clip_id}.*.mp4"))
        assert sum(event.frame is not None and 0 <= event.time_us < SECOND for event in decode(str(path))) == 24
        facts = probe(str(path))
        assert (facts.codec, facts.pixel_format) == ("h264", "yuv420p")


@pytest.mark.parametrize(
    "path", ["/clip/..%2f..%2fpan.mp4", "/clip/%2fetc%2fpasswd", "/thumb/..%2fc1", "/assets/..%2fserver.py", "/clip/c1%00"]
)
def test_no_path_comes_from_the_browser(made_root: Path, path: str) -> None:
    with sitting(made_root, "thief") as session, page(session) as (client, _):
        assert client.get(path).status_code == 404


def test_who_may_ask(root: Path) -> None:
    with sitting(root) as session, page(session) as (client, access):
        other = client.get("/api/state", headers={"Host": "evil.example:8000"})
        assert other.status_code == 421 and "items" not in other.json()
        for host in ("localhost:9", "127.0.0.1", "[::1]:80"):
            assert client.get("/api/facts", headers={"Host": host}).status_code == 200, host
        for token in ("", "wrong", access.token[:-1]):
            refused = client.post("/api/judge", json={"clip_id": "c1", "value": 1.0}, headers={"X-Review-Token": token})
            assert refused.status_code == 403
        assert session.book.labels() == []
        answer = client.get("/")
        assert (
            "default-src 'none'" in answer.headers["content-security-policy"] and "unsafe" not in answer.headers["content-security-policy"]
        )
        assert access.token in answer.text and answer.headers["cache-control"] == "no-store"


def test_beyond_loopback_everything_wants_the_key(root: Path) -> None:
    with sitting(root) as session, page(session, "192.0.2.7") as (client, access):
        assert access.key is not None and address_of("192.0.2.7", 80, access) == f"http://192.0.2.7:80/?key={access.key}"
        assert [client.get(path).status_code for path in ("/", "/browse", "/api/state", "/clip/c1", "/?key=wrong")] == [403] * 5
        assert client.get("/", headers={"Host": "evil.example"}, params={"key": access.key}).status_code == 421
        assert client.get("/api/state", params={"key": access.key}).status_code == 403, "only the address that was printed"
        assert client.get("/", params={"key": access.key}).status_code == 200
        assert client.get("/api/state").status_code == 200, "by the cookie"
    assert Access("127.0.0.1").key is None and Access("::1").key is None and Access("0.0.0.0").key is not None
    assert [host_of(header) for header in ("A.b:1", "[::1]:2", "::1", "x")] == ["a.b", "::1", "::1", "x"]
    with listen("127.0.0.1", 0) as taken, pytest.raises(ReviewError, match="in use; give another"):
        listen("127.0.0.1", taken.getsockname()[1])


def test_the_page_loads_nothing_from_elsewhere_and_runs_no_text() -> None:
    folder = REPOSITORY / "curation" / "review"
    for name in ("page.html", *ASSETS):
        text = (folder / name).read_text()
        assert re.findall(r"https?:|//[a-z]+\.|@import|innerHTML|outerHTML|insertAdjacent|eval\(|document\.write", text) == [], name
    assert re.findall(r"\son\w+=|style=|<script>|<style>", (folder / "page.html").read_text()) == []


def test_browsing_is_a_question_and_never_code(made_root: Path) -> None:
    with sitting(made_root, "looker") as session, page(session) as (client, _):

        def ids(**question: object) -> list[str]:
            return [clip["clip_id"] for clip in client.get("/api/browse", params=question).json()["clips"]]

        assert ids(where="motion_proxy >= 1.5", order="-motion_proxy") == ["c4", "c3", "c2", "c6"]
        assert ids(order="clip_id", offset=2, limit=3) == ["c3", "c4", "c5"]
        assert ids(labelled="keep") == []
        client.post("/api/judge", json={"clip_id": "c3", "value": 1.0})
        assert ids(labelled="keep") == ["c3"]
        for where, said in (
            ("motoin_proxy > 1", "did you mean motion_proxy"),
            ("1 = 1", "names no column"),
            ("state = 'kept'; drop table clips", "cannot read"),
        ):
            refused = client.get("/api/browse", params={"where": where})
            assert refused.status_code == 400 and said in refused.json()["error"], where
        assert client.get("/api/browse", params={"order": "nothing"}).status_code == 400
        assert client.get("/api/browse", params={"limit": 100_000}).status_code == 400
        client.post("/api/undo")


# ---- what comes of it


def test_select_takes_the_clips_that_people_chose(root: Path) -> None:
    workspace, spec = Workspace(root), job_spec("select")
    recipe = preset("paper")
    policy = PolicyConfig(rules=(Rule(name="looks", column="aesthetic_proxy", at_least=3),), preference_subset="labels")
    recipe = recipe.model_copy(update={"curation": recipe.curation.model_copy(update={"policy": policy})})
    upstream = {"caption": Report(job="caption", fingerprint="f", digest="d")}
    store = Store.open(workspace.store)

    def selected() -> tuple[str, set[str]]:
        name = workspace.job_fingerprint(recipe, spec, upstream)
        selection = select.select(store, policy)
        select.write(store, selection)
        return name, set(store.read("clips", ["clip_id"], "subsets has 'preference'")["clip_id"].to_pylist())

    with open_run(workspace, recipe, "curate") as run:
        begun = run.recipe
    assert json.loads((root / "recipe.json").read_text())["labels"] is None, "the next run looks anew"
    before, chosen = selected()
    assert chosen == set() and labels_digest(workspace.store) is None
    for annotator, votes in (("anna", {"c1": 1.0, "c2": 1.0, "c3": 0.0, "c6": 1.0}), ("ben", {"c2": 0.0, "c5": 1.0, "c4": None})):
        with sitting(root, annotator, "clip_id is not null") as session:
            for clip_id, value in votes.items():
                session.judge(clip_id, value)
    after, chosen = selected()
    assert chosen == {"c1", "c5"}, "c2 is disputed, c6 does not pass the policy"
    assert after != before, "labels make select run again"
    assert workspace.job_fingerprint(begun, spec, upstream) == before, "but not in the midst of a run"
    store.compact()
    assert selected() == (after, {"c1", "c5"})
    kept = store.read("clips", where="state = 'kept'")
    assert preferred(kept, store.read("labels"), policy) == chosen


def test_a_mistake_is_one_line(root: Path, tmp_path: Path) -> None:
    def mistake(folder: Path, **options: object) -> str:
        given = {"where": "state = 'kept'", "annotator": "anna", "kind": "keep", "order": "diverse", "limit": None} | options
        with pytest.raises((UserError, QueryError)) as error:
            run_review(preset("debug"), Workspace(folder), summary=False, host="127.0.0.1", port=0, browser=False, **given)  # type: ignore[arg-type]
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "there is no store at" in mistake(tmp_path / "nothing")
    assert "--kind both: keep or pair" in mistake(root, kind="both")
    assert "did you mean aesthetic" in mistake(root, where="asthetic > 5")
    with closing(LabelBook(Store.open(root / "store"), root / "review", "anna")):
        assert "anna is reviewing" in mistake(root)
    assert next_command(preset("paper"), Workspace(tmp_path / "a b")).startswith("flashvideo curate --root '")
    assert "--set curation.policy.preference_subset=labels" in next_command(preset("debug"), Workspace(tmp_path))
