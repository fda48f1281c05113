"""The documents are true: their commands parse, their map is the tree, their links resolve, their results were measured."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
from importlib.metadata import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from command_lines import bash_lines, check_flashvideo, commands_in

from curation.samples import FILMS, STILLS
from pipelines.plan import JOB_NAMES
from pipelines.recipe import PRESETS, preset

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "infra" / "README.md"])
MEASURED = ROOT / "docs" / "measured.json"


def section(text: str, title: str) -> str:
    """The text under `## title`, up to the next heading of that depth."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    assert found, f"no section {title}"
    return found.group(1)


def rows(markdown: str) -> list[list[str]]:
    """Cells of the table rows, without header and rule."""
    lines = [line for line in markdown.splitlines() if line.startswith("|")][2:]
    return [[cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def tracked() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout: the tree cannot be told from what was made in it")
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


# ---- commands

MAKE_TARGETS = set(re.findall(r"^([a-z]+):(?!=)", MAKEFILE, re.M))


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if "```bash" in path.read_text()], ids=lambda path: path.name)
def test_commands_parse(path):
    """Every `make` and `flashvideo` line of the bash blocks."""
    commands = [command for line in bash_lines(path.read_text()) for command in commands_in(line)]
    assert commands
    for tool, *words in commands:
        if tool == "make":
            assert {word for word in words if re.fullmatch("[a-z]+", word)} <= MAKE_TARGETS, words
        if tool == "flashvideo":
            check_flashvideo(words)


def test_a_wrong_command_is_noticed():
    with pytest.raises(Exception, match="--recipees"):
        check_flashvideo(["retrain", "--recipees", "debug"])
    with pytest.raises(AssertionError, match="has no command retain"):
        check_flashvideo(["retain"])


def test_make_targets_that_are_named_in_text_exist():
    for path in DOCUMENTS:
        named = set(re.findall(r"`make ([a-z]+)", path.read_text()))
        assert named <= MAKE_TARGETS, path.name


def test_every_make_target_says_what_it_does_and_is_phony():
    described = set(re.findall(r"^([a-z]+):.*## \S", MAKEFILE, re.M))
    phony = set(re.search(r"^\.PHONY: (.+)$", MAKEFILE, re.M).group(1).split())  # type: ignore[union-attr]
    assert described == phony == MAKE_TARGETS


def test_the_table_of_commands_is_the_command_line():
    import typer

    from orchestration.cli import app

    cells = " ".join(row[0] for row in rows(section(README, "Commands")))
    named = set(re.findall(r"flashvideo ([a-z]+)", cells))
    assert named == set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def test_ci_runs_the_readmes_commands():
    lines = (ROOT / ".ci/run").read_text().splitlines()
    assert [line for line in lines if line.startswith("make ")] == ["make check", "make test"]
    assert "set -euo pipefail" in lines and (ROOT / ".ci/run").stat().st_mode & 0o111


# ---- the map


def test_the_map_is_the_tree():
    block = re.search(r"```\n(.*?)```", section(README, "Map"), re.S).group(1)  # type: ignore[union-attr]
    mapped: list[str] = []
    parents: dict[int, str] = {}
    for line in block.splitlines():
        depth = len(line) - len(line.lstrip())
        name, _, about = line.strip().partition(" ")
        assert about.strip(), f"{name} is not explained"
        parents[depth] = name
        mapped.append("".join(parents[level] for level in sorted(parents) if level < depth and depth > 0) + name)
    files = [name for name in tracked() if not name.startswith(".")]
    top = {name if "/" not in name else name.split("/")[0] + "/" for name in files}
    packages = {str(Path(name).parent) + "/" for name in files if name.endswith("__init__.py")}
    inner = {folder for folder in packages if folder.count("/") > 1}
    assert sorted(mapped) == sorted(top | inner)


def test_files_that_are_named_exist():
    """`folder/file.py` in backticks, in every document."""
    missing = []
    for path in DOCUMENTS:
        for name in re.findall(
            r"`((?:flashvideo|curation|pipelines|orchestration|infra|tests|benchmarks|docs)/[\w./-]+)`", path.read_text()
        ):
            if not (ROOT / name).exists() and not (ROOT / "flashvideo" / name).exists():
                missing.append(f"{path.name}: {name}")
    assert missing == []


def test_links_resolve():
    broken = []
    for path in DOCUMENTS:
        for link in re.findall(r"\]\(([^)#\s]+)", path.read_text()):
            if "://" not in link and not (path.parent / link).exists():
                broken.append(f"{path.name}: {link}")
    assert broken == []


# ---- what is said about the code


def settings_named(text: str) -> set[str]:
    return set(
        re.findall(r"[`\s]((?:curation|vae|text_encoder|stage1|stage2|evaluation|generate|latents|runtime)\.[a-z0-9_.]+)(?=[=`])", text)
    )


def test_settings_that_are_named_exist():
    named = set().union(*(settings_named(path.read_text()) for path in DOCUMENTS))
    assert len(named) >= 10
    for key in named:
        node: Any = preset("debug").model_dump()
        for part in key.split("."):
            if isinstance(node, list | tuple):
                entries = {entry["name"]: entry for entry in node}
                node = entries[part] if part in entries else node[int(part)]
            else:
                assert part in node, f"{key}: no setting {part}"
                node = node[part]


def test_recipes_are_described():
    text = section(README, "Recipes")
    assert all(f"`{name}`" in text for name in PRESETS)


def test_jobs_stand_in_the_readmes_order():
    picture = re.search(r"```\n(raw video.*?)```", README, re.S).group(1)  # type: ignore[union-attr]
    assert [word for word in re.findall(r"[a-z_0-9]+", picture) if word in JOB_NAMES] == [
        *JOB_NAMES[:7], "generate", "evaluate", "train_stage2",
    ]  # fmt: skip


def test_numbers_of_samples():
    assert "fifteen clips" in README and len(FILMS) == 15 and len(STILLS) == 5


WORDS = (
    "Stage I, Stage II",
    "phase",
    "step",
    "job",
    "recipe",
    "flavour",
    "source, shot, clip",
    "score, policy",
    "latent, model input",
    "t",
)


def test_words_are_explained_once():
    assert [row[0] for row in rows(section(README, "Words"))] == list(WORDS)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_no_other_stage(path):
    """Stage is FlashVideo's word: I or II, or `stage1`, `stage2`, `zero_stage`."""
    prose = re.sub(r"```.*?```|`[^`]*`", "", path.read_text(), flags=re.S)
    others = [match for match in re.findall(r"\b[Ss]tages?\b[^.|\n]{0,12}", prose) if not re.match(r"Stage I", match)]
    allowed = ("two-stage", "both stages", "one stage", "train stage1", "one loop for both stages")
    rest = [match for match in others if not any(match.split()[0].rstrip(",;:.") in phrase for phrase in allowed)]
    assert rest == []


def test_licences_are_said():
    text = section(README, "Licences")
    assert "PolyForm Noncommercial" in text and "pyiqa" in text
    assert metadata("pyiqa")["License-Expression"] == "PolyForm-Noncommercial-1.0.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text().splitlines()[0]
    assert 'license = "Apache-2.0"' in (ROOT / "pyproject.toml").read_text()


def test_stand_ins_of_debug_are_named():
    text = section(README, "Limits")
    recipe = preset("debug")
    assert recipe.vae.kind == "patch_pca" and "PCA patch codec" in text
    assert recipe.text_encoder.kind == "debug_t5" and "byte tokens" in text
    assert not recipe.curation.motion.raft and not recipe.curation.aesthetic.laion
    assert "`motion_proxy`" in text and "`aesthetic_proxy`" in text
    assert recipe.curation.policy.preference_subset == "top_aesthetic" and "human-preference subset" in text
    assert recipe.stage1.base_weights is None and "seeded base model" in text


# ---- results


def record_run() -> ModuleType:
    spec = importlib.util.spec_from_file_location("record_run", ROOT / "benchmarks" / "record_run.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readmes_results_are_the_measured_ones():
    """docs/measured.json is written by benchmarks/record_run.py from finished runs; the README holds exactly its table."""
    assert MEASURED.is_file(), "record a run: .venv/bin/python benchmarks/record_run.py runs/debug"
    measured = json.loads(MEASURED.read_text())
    assert record_run().with_results(README, measured) == README
    assert len(measured["runs"]) >= 1 and all(run["wall_s"] > 0 for run in measured["runs"])


def test_a_changed_number_in_the_readme_is_noticed():
    measured = {
        "recipe": "debug", "recorded": "2026-11-20", "commit": "abc1234",
        "machine": {"cpu": "a CPU", "cores": 2, "memory_bytes": 24_000_000_000, "gpu": None},
        "runs": [{"started": "", "wall_s": 300.0, "peak_memory_bytes": 6_000_000_000}],
        "rows": [["clips kept", "40 of 50"]],
    }  # fmt: skip
    module = record_run()
    text = module.with_results(README, measured)
    assert "| clips kept | 40 of 50 |" in text and "| wall time, set-up done | 5.0 min |" in text and "| 6.0 GB |" in text
    assert module.with_results(text, measured) == text
    assert module.with_results(text.replace("40 of 50", "41 of 50"), measured) == text
    with pytest.raises(SystemExit, match="has no section between"):
        module.with_results("# nothing here", measured)


# ---- the record


def test_decisions_are_numbered_and_whole():
    paths = sorted((ROOT / "docs/decisions").glob("*.md"))
    assert [int(path.name[:4]) for path in paths] == list(range(1, len(paths) + 1))
    for number, path in enumerate(paths, start=1):
        text = path.read_text()
        assert text.startswith(f"# {number}. ")
        assert all(f"**{word}.**" in text for word in ("Decision", "Why", "Price")), path.name


def test_the_log_is_dated_newest_first():
    dates = re.findall(r"^## (.+)$", (ROOT / "docs/log.md").read_text(), re.M)
    assert dates and all(re.fullmatch(r"\d{4}-\d\d-\d\d", date) for date in dates)
    assert dates == sorted(dates, reverse=True)


def test_the_changelog_has_an_open_section():
    assert section((ROOT / "CHANGELOG.md").read_text(), "Unreleased").strip()
