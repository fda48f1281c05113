"""The select job on a store filled by hand: verdicts, split, releases, and what it says when nothing is left."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from curation import policy
from curation.config import PolicyConfig, Rule
from curation.schema import CLIPS
from curation.store import Store
from pipelines import select
from pipelines.artifacts import Report, Workspace
from pipelines.job import JobContext, Progress, UserError
from pipelines.plan import job_spec
from pipelines.recipe import Recipe, load, preset
from pipelines.selection import Verdicts, content_hash, sorted_places

RULES = (
    Rule(name="motion", column="motion_proxy", at_least=1.1, media="video"),
    Rule(name="looks", column="aesthetic_proxy", at_least=3),
    Rule(name="duplicate", column="is_duplicate", at_most=0),
)
SOURCES = [  # uri, source_id, present, status
    ("/v/s1.mp4", "s1", True, "split"),
    ("/v/s2.mp4", "s2", True, "split"),
    ("/v/s3.mp4", "s3", True, "split"),
    ("/v/gone.mp4", "gone", False, "split"),
    ("/v/bad.mp4", "bad", True, "failed"),
    ("/old/moved.mp4", "moved", False, "split"),
    ("/new/moved.mp4", "moved", True, "duplicate"),
]
CLIP_ROWS = [  # clip, source, motion, looks, duplicate, caption
    ("a1", "s1", 2.0, 5.0, 0, "one"),
    ("a2", "s1", 0.5, 5.0, 0, "two"),
    ("b1", "s2", 3.0, 6.0, 0, "three"),
    ("b2", "s2", 3.0, 2.0, 0, "four"),
    ("c1", "s3", 3.0, 4.0, 0, "five"),
    ("c2", "s3", None, 4.0, 0, "six"),
    ("c3", "s3", 0.1, 4.0, 1, "seven"),
    ("d1", "gone", 3.0, 6.0, 0, "eight"),
    ("e1", "bad", 3.0, 6.0, 0, "nine"),
    ("f1", "moved", 3.0, 6.0, 0, "ten"),
]
STATES = {
    "a1": ("kept", None),
    "a2": ("rejected", "motion"),
    "b1": ("kept", None),
    "b2": ("rejected", "looks"),
    "c1": ("kept", None),
    "c2": ("failed", "motion:unknown"),
    "c3": ("rejected", "motion,duplicate"),
    "d1": ("rejected", "absent"),
    "e1": ("failed", "source:failed"),
    "f1": ("kept", None),
}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = Workspace(tmp_path / "root")
    workspace.root.mkdir()
    fill(Store.open(workspace.store))
    return workspace


def fill(store: Store) -> None:
    store.upsert(
        "sources",
        pa.table(
            {
                "uri": [row[0] for row in SOURCES],
                "source_id": [row[1] for row in SOURCES],
                "present": [row[2] for row in SOURCES],
                "status": [row[3] for row in SOURCES],
            }
        ),
    )
    names = ["clip_id", "source_id", "motion_proxy", "aesthetic_proxy", "is_duplicate", "caption"]
    columns = {name: pa.array([row[i] for row in CLIP_ROWS], CLIPS.field(name).type) for i, name in enumerate(names)}
    uris = {source: uri for uri, source, _, status in SOURCES if status != "duplicate"}
    columns["uri"] = pa.array([uris[row[1]] for row in CLIP_ROWS])
    columns["media_type"] = pa.array(["video"] * len(CLIP_ROWS))
    columns["duration_s"] = pa.array([3600.0] * len(CLIP_ROWS))
    store.upsert("clips", pa.table(columns))
    store.append_errors([{"job": "score", "step": "motion", "clip_id": "c2", "code": "too_few_frames", "message": "m", "run_id": "r"}])


def recipe(rules: tuple[Rule, ...] = RULES, **policy: object) -> Recipe:
    base = preset("debug")
    settings = {"held_out_share": 0.25, "preference_subset": "top_aesthetic", "preference_size": 2, **policy}
    config = PolicyConfig.model_validate({"rules": rules, **settings})
    return base.model_copy(update={"curation": base.curation.model_copy(update={"policy": config})})


def run(workspace: Workspace, chosen: Recipe | None = None) -> Report:
    folder = workspace.folder("select", "fp")
    folder.mkdir(parents=True, exist_ok=True)
    return select.run(JobContext(chosen or recipe(), workspace, job_spec("select"), "fp", folder, Progress(None, "select")))


def clips(workspace: Workspace, *columns: str) -> dict[str, tuple[object, ...]]:
    rows = Store.open(workspace.store).read("clips", ["clip_id", *columns]).to_pylist()
    return {row["clip_id"]: tuple(row[name] for name in columns) for row in rows}


def test_states_reasons_and_counts(workspace: Workspace) -> None:
    report = run(workspace)
    assert clips(workspace, "state", "reject_reason") == STATES
    wanted = {"in": 10, "kept": 4, "rejected": 4, "failed": 2, "train": 3, "val": 1, "preference": 2}
    assert {name: report.counts[name] for name in wanted} == wanted
    assert report.counts["rejected by motion"] == 3
    assert report.headline["beside_rules"] == {"absent": 1, "source:failed": 1, "caption:unknown": 0}
    assert [row["left"] for row in report.headline["funnel"]] == [7, 6, 6]
    assert report.headline["hours"] == 4.0
    assert report.warnings == []


def test_the_address_of_a_moved_file_is_brought_up_to_date(workspace: Workspace) -> None:
    run(workspace)
    assert clips(workspace, "uri")["f1"] == ("/new/moved.mp4",)
    assert clips(workspace, "uri")["d1"] == ("/v/gone.mp4",)


def test_a_source_is_never_on_both_sides_and_its_rejected_clips_have_its_side(workspace: Workspace) -> None:
    run(workspace)
    sides: dict[str, set[object]] = {}
    for clip, (source, split) in clips(workspace, "source_id", "split").items():
        sides.setdefault(str(source), set()).add(split)
        assert clip
    assert all(len(side) == 1 for side in sides.values())
    assert sides["gone"] == {None}


def test_the_preference_stand_in_names_itself(workspace: Workspace) -> None:
    report = run(workspace)
    subsets = clips(workspace, "subsets", "split", "state")
    chosen = {clip for clip, (names, _, _) in subsets.items() if names == ["preference"]}
    best = sorted((row for row in CLIP_ROWS if subsets[row[0]][1:] == ("train", "kept")), key=lambda row: (-(row[3] or 0), row[0]))
    assert chosen == {row[0] for row in best[:2]}
    assert "aesthetic_proxy (stand-in for people)" in report.models["policy"]


def test_running_again_writes_no_clip_and_names_the_same_release(workspace: Workspace) -> None:
    first = run(workspace)
    store = Store.open(workspace.store)
    before, version = store.read("clips"), store.version("clips")
    second = run(workspace)
    assert second.digest == first.digest
    assert second.outputs == first.outputs
    assert store.version("clips") == version
    assert store.read("clips").equals(before)


def test_equal_work_elsewhere_has_equal_names(workspace: Workspace, tmp_path: Path) -> None:
    other = Workspace(tmp_path / "other")
    other.root.mkdir()
    store = Store.open(other.store)
    fill(store)
    assert run(other).outputs["tag"] == run(workspace).outputs["tag"]
    assert store.read("clips").equals(Store.open(workspace.store).read("clips"))


@pytest.mark.parametrize("rows", [1, 3])
def test_the_size_of_a_batch_changes_nothing(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """Sources, duplicates and a moved file on both sides of a cut; selected at first, and again with another threshold."""
    other = Workspace(tmp_path / "other")
    other.root.mkdir()
    clusters = {"clip_id": ["a1", "b1", "c1"], "duplicate_cluster": ["a1", "a1", "a1"]}
    for place in (workspace, other):
        if place is other:
            fill(Store.open(other.store))
        Store.open(place.store).merge_columns("clips", pa.table(clusters))
    for chosen in (recipe(), recipe((RULES[0].model_copy(update={"at_least": 0.3}), *RULES[1:]))):
        whole = run(workspace, chosen)
        with monkeypatch.context() as patch:
            patch.setattr("pipelines.selection.READ_ROWS", rows)
            parts = run(other, chosen)
        assert (parts.digest, parts.counts, parts.outputs, parts.headline) == (whole.digest, whole.counts, whole.outputs, whole.headline)
        assert Store.open(other.store).read("clips").equals(Store.open(workspace.store).read("clips"))


def test_a_changed_threshold_makes_another_release_and_the_old_one_stays(workspace: Workspace) -> None:
    first = run(workspace)
    second = run(workspace, recipe((RULES[0].model_copy(update={"at_least": 2.5}), *RULES[1:])))
    assert first.digest != second.digest
    store = Store.open(workspace.store)
    assert store.count("clips", "state = 'kept'", tag=first.outputs["tag"]) == 4
    assert store.count("clips", "state = 'kept'", tag=second.outputs["tag"]) == 3
    cards = {name: tag.card for name, tag in store.tags().items()}
    assert cards[first.outputs["tag"]]["policy"]["rules"][0]["at_least"] == 1.1
    assert cards[second.outputs["tag"]] | {"kept": 3, "rows": 10, "hours": 3.0, "videos": 3, "images": 0} == cards[second.outputs["tag"]]


def test_the_split_survives_a_change_of_mind(workspace: Workspace) -> None:
    run(workspace)
    before = clips(workspace, "split")
    run(workspace, recipe((RULES[0].model_copy(update={"at_least": 2.5}), *RULES[1:])))
    run(workspace)
    assert clips(workspace, "split") == before


def test_a_policy_that_keeps_the_same_clips_has_the_same_digest(workspace: Workspace) -> None:
    first = run(workspace)
    second = run(workspace, recipe((RULES[0].model_copy(update={"at_least": 1.2}), *RULES[1:])))
    assert second.digest == first.digest  # nothing downstream is redone
    assert second.outputs["tag"] != first.outputs["tag"]  # but the policy is another


def test_a_new_caption_changes_the_digest(workspace: Workspace) -> None:
    first = run(workspace)
    Store.open(workspace.store).merge_columns("clips", pa.table({"clip_id": ["a1"], "caption": ["another"]}))
    assert run(workspace).digest != first.digest


def test_more_text_than_one_array_holds_has_the_same_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Captions in pieces, as they come when they pass the limit."""
    texts = pa.chunked_array([["a", "é", None], ["", "longer"]])
    monkeypatch.setattr("curation.policy.TEXT_LIMIT_BYTES", 1)
    pieces, whole = policy.whole_column(pa.table({"caption": texts}), "caption"), texts.combine_chunks()
    assert pieces.type == pa.large_string()
    monkeypatch.setattr("pipelines.selection.HASHED_ROWS", 2)

    def digest(values: pa.Array, *order: int) -> str:
        return content_hash(pa.array(order), [("caption", values)])

    assert digest(pieces, 4, 0, 2, 1, 3) == digest(whole, 4, 0, 2, 1, 3)
    assert (
        digest(pieces.slice(1), 3, 0, 1, 2) == digest(whole.slice(1), 3, 0, 1, 2) == digest(whole.take(pa.array([4, 1, 2, 3])), 0, 1, 2, 3)
    )
    assert digest(pieces, 4, 0, 2, 1, 3) != digest(whole, 4, 0, 2, 3, 1)


def test_a_digest_tells_orders_apart_where_values_are_alike() -> None:
    """Numbers that compare as equal, or as nothing, are other bytes in another place."""
    for name, values in (
        ("motion_proxy", [float("nan"), 1.0]),
        ("motion_proxy", [0.0, -0.0]),
        ("motion_proxy", [0.0, None]),
        ("shot", [1, 2]),
    ):
        column = pa.array(values, CLIPS.field(name).type)
        assert content_hash(pa.array([0, 1]), [(name, column)]) != content_hash(pa.array([1, 0]), [(name, column)])
    nothing = pa.nulls(3, pa.float32())
    assert content_hash(pa.array([0, 1]), [("motion_raft", nothing)]) == content_hash(
        pa.array([2, 1]), [("motion_raft", nothing.slice(0, 3))]
    )


@pytest.mark.parametrize("ids", [["c" * 16, "a" * 16, "b" * 16], ["same8byt" + "2" * 8, "same8byt" + "1" * 8, "a" * 16], ["b", "aa", "a"]])
def test_ids_sort_as_texts_do(ids: list[str]) -> None:
    assert pa.array(ids).take(sorted_places(pa.array(["before", *ids]).slice(1))).to_pylist() == sorted(ids)


def test_moved_files_with_equal_content_get_their_own_release(workspace: Workspace) -> None:
    first = run(workspace)
    store = Store.open(workspace.store)
    store.merge_columns("sources", pa.table({"uri": ["/v/s1.mp4"], "present": [False]}))
    store.upsert("sources", pa.table({"uri": ["/w/s1.mp4"], "source_id": ["s1"], "present": [True], "status": ["duplicate"]}))
    second = run(workspace)
    assert second.digest == first.digest
    assert second.outputs["tag"] == first.outputs["tag"] + "-2"
    uris = store.read("clips", ["uri"], "clip_id = 'a1'", tag=second.outputs["tag"])["uri"].to_pylist()
    assert uris == ["/w/s1.mp4"]


def test_nothing_kept_says_why_and_what_to_change(workspace: Workspace) -> None:
    strict = RULES[0].model_copy(update={"at_least": 50})
    with pytest.raises(UserError) as caught:
        run(workspace, recipe((strict, *RULES[1:])))
    message = str(caught.value)
    assert "\n" not in message
    assert "kept 0 of 10 clips; turned away by each rule alone: motion 10 (1 unknown), looks 1, duplicate 1, absent 1" in message
    assert "motion (motion_proxy >= 50) removed most" in message
    setting = message.split("--set ")[1]
    assert setting == "curation.policy.rules.motion.at_least=3"
    assert Store.open(workspace.store).count("clips", "reject_reason like '%motion%'") == 10  # people can look
    relaxed = load("debug", (setting,)).curation.policy  # the setting is one that a recipe takes
    assert next(rule for rule in relaxed.rules if rule.name == "motion").at_least == 3


def test_nothing_kept_for_unknown_scores(workspace: Workspace) -> None:
    raft = Rule(name="motion", column="motion_raft", at_least=1.1)
    with pytest.raises(UserError, match=r"motion_raft is unknown for 10 clips: compute it, or --set .*rules\.motion\.unknown=keep"):
        run(workspace, recipe((raft,)))


def test_no_clips_at_all(tmp_path: Path) -> None:
    empty = Workspace(tmp_path / "empty")
    empty.root.mkdir()
    with pytest.raises(UserError, match="select found no clips"):
        run(empty)


def test_a_rule_on_an_unknown_column_is_the_users_mistake(workspace: Workspace) -> None:
    with pytest.raises(UserError, match=r"curation\.policy: unknown column .motoin_proxy.; did you mean motion_proxy"):
        run(workspace, recipe((Rule(name="motion", column="motoin_proxy", at_least=1),)))


def test_one_source_warns_that_nothing_is_held_out(workspace: Workspace) -> None:
    store = Store.open(workspace.store)
    store.delete("clips", "source_id != 's1'")
    report = run(workspace)
    assert report.counts["val"] == 0
    assert "nothing is held out" in report.warnings[0]


def test_resolved_errors_no_longer_fail_a_clip(workspace: Workspace) -> None:
    store = Store.open(workspace.store)
    store.resolve_errors("score", clip_ids=["c2"])
    run(workspace)
    assert clips(workspace, "state", "reject_reason")["c2"] == ("rejected", "motion:unknown")
    store.merge_columns("clips", pa.table({"clip_id": ["c2"], "motion_proxy": pa.array([2.0], pa.float32())}))
    run(workspace)
    assert clips(workspace, "state", "reject_reason")["c2"] == ("kept", None)


@pytest.mark.parametrize("longest", [1, 2])
def test_subsets_that_are_there_get_a_code_each(tmp_path: Path, longest: int) -> None:
    """Of at most one subset a clip nothing is joined; the codes say the same."""
    there = [[], ["preference"], None, ["other"], ["preference"], *([["a", "b"]] if longest == 2 else [])]
    verdicts = Verdicts(Store.open(tmp_path / "store"), PolicyConfig())
    codes = verdicts._subset_codes(pa.array([["cut off"], *there], CLIPS.field("subsets").type).slice(1))
    assert [verdicts.subsets.names()[code] for code in codes] == ["", "preference", None, "other", "preference", "a,b"][: len(there)]
