"""What the doctor finds."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestration.doctor import direct_requirements, examine, locked_versions, missing_files, wanted_weights
from pipelines.artifacts import Workspace
from pipelines.recipe import load


def test_the_debug_recipe_runs_whole_without_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    findings = examine(load("debug"), Workspace(tmp_path / "root"))
    assert [finding for finding in findings if finding.state == "missing"] == []
    assert any("named stand-ins" in finding.found for finding in findings)


def test_every_direct_package_is_in_the_lock():
    lock = Path(__file__).resolve().parents[2] / "requirements.lock"
    locked = locked_versions(lock.read_text())
    names = direct_requirements()
    assert {"ray", "prefect", "lancedb", "torch"} <= set(names)
    assert [name for name in names if name.lower().replace("_", "-") not in locked] == []


def test_the_papers_weights_are_named_file_by_file(tmp_path: Path):
    found = {entry.key: entry for entry in wanted_weights(load("paper", (f"vae.weights={tmp_path}",)))}
    assert missing_files(found["vae.weights"]) == [f"{tmp_path}/config.json", f"{tmp_path}/*.safetensors"]
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    assert missing_files(found["vae.weights"]) == []
    assert missing_files(found["curation.motion.raft_weights"]) == [
        "curation.motion.raft_weights is not set (raft_large_C_T_SKHT_V2-ff5fadd5.pth (torchvision))"
    ]
    assert {"text_encoder.weights", "stage1.base_weights", "stage2.init_weights", "curation.aesthetic.head_weights"} <= set(found)


def test_frame_metrics_and_dover_are_named_by_their_files(tmp_path: Path):
    given = ("evaluation.frame_metrics=[musiq,niqe,piqe]", "evaluation.dover=command", "evaluation.dover_command=[no-such-dover]")
    without = {finding.what: finding for finding in examine(load("debug", given), Workspace(tmp_path / "root"))}
    assert without["pyiqa metrics"].found.startswith("musiq, niqe download weights")
    assert (without["DOVER"].state, without["DOVER"].found) == ("missing", "no-such-dover is no program")
    assert without["VBench's evaluator"].state == "note"
    [entry] = wanted_weights(load("debug", (*given, f"evaluation.frame_weights={tmp_path}")))
    assert missing_files(entry) == [f"{tmp_path}/musiq_koniq_ckpt-e95806b9.pth", f"{tmp_path}/niqe_modelparameters.mat"]


def test_what_cannot_be_reached_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    (tmp_path / "file").write_text("")
    recipe = load("debug", ("runtime.ray_address=http://127.0.0.1:9",))
    missing = {finding.what for finding in examine(recipe, Workspace(tmp_path / "file" / "root")) if finding.state == "missing"}
    assert missing == {"Ray", "Prefect", "run root"}
