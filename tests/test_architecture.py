"""The shape of the code: import contracts, light modules, names, lengths. docs/architecture.md states what these enforce."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("flashvideo", "curation", "pipelines", "orchestration")
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "managers"}
LONGEST_FUNCTION_LINES = 70
"""Longer ones are two functions."""


def python_files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


ALL_FILES = [path for package in PACKAGES for path in python_files(package)]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported_modules(tree: ast.AST) -> set[str]:
    """Top-level names of everything that is imported anywhere in the file, in functions too."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


def test_import_contracts_hold():
    """import-linter's contracts in pyproject.toml; its own words where one is broken."""
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([str(linter), "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"Contracts: [1-9]\d* kept, 0 broken", done.stdout), done.stdout


def test_no_file_is_named_after_nothing():
    bad = [
        relative(path) for path in ALL_FILES + python_files("tests") if {path.stem, *path.relative_to(ROOT).parent.parts} & FORBIDDEN_NAMES
    ]
    assert bad == []


def test_init_files_are_empty():
    """So that importing a package costs nothing. curation's holds one function, which imports when it is called."""
    found = [path for path in ALL_FILES if path.name == "__init__.py"]
    assert len(found) >= len(PACKAGES)
    assert [relative(path) for path in found if path.read_text().strip()] == ["curation/__init__.py"]
    code = (
        "import sys; before = set(sys.modules); import curation\n"
        "print(*sorted(name for name in set(sys.modules) - before if name.split('.')[0].lstrip('_') not in sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["curation"]


def test_every_folder_with_code_is_a_package():
    folders = {path.parent for path in ALL_FILES}
    assert sorted(relative(folder) for folder in folders if not (folder / "__init__.py").is_file()) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_functions_stay_short(package):
    lengths = [
        (node.end_lineno - node.lineno + 1, f"{relative(path)}:{node.lineno} {node.name}")
        for path in python_files(package)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None
    ]
    assert lengths
    assert [entry for entry in sorted(lengths, reverse=True) if entry[0] > LONGEST_FUNCTION_LINES] == []


def test_deepspeed_is_imported_in_one_file():
    importers = [relative(path) for path in ALL_FILES if "deepspeed" in imported_modules(ast.parse(path.read_text()))]
    assert importers == ["flashvideo/training/engine.py"]


def test_jobs_and_plan_are_the_same_list():
    """Every job of the plan is a file of pipelines/ with a `run(context)`, and no file with one is left out."""
    from pipelines.plan import JOB_NAMES

    with_run = {
        path.stem
        for path in (ROOT / "pipelines").glob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name == "run"
    }
    assert with_run == set(JOB_NAMES)


LIGHT = {
    "the command line and the flows": ("orchestration.cli", "orchestration.flows"),
    "recipe, plan, artifacts, job": ("pipelines.recipe", "pipelines.plan", "pipelines.artifacts", "pipelines.job"),
    "settings": ("flashvideo.config", "curation.config", "curation.schema", "curation.sources", "curation.samples"),
    "store and query": ("curation.store", "curation.query"),
}
HEAVY = ("torch", "torchvision", "transformers", "diffusers", "deepspeed", "pyiqa", "peft")


@pytest.mark.parametrize("modules", LIGHT.values(), ids=list(LIGHT))
def test_light_modules_pull_in_no_torch(modules):
    """Imported in a fresh interpreter, since this one has torch already."""
    code = (
        f"import importlib, sys\nfor name in {modules!r}:\n    importlib.import_module(name)\n"
        f"print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_settings_import_pydantic_only():
    """What `flashvideo --help` needs of the packages: no array or video library either."""
    code = (
        "import sys, pipelines.recipe, pipelines.plan, pipelines.artifacts\n"
        "print(*sorted({'numpy', 'pyarrow', 'lance', 'lancedb', 'cv2', 'av', 'ray', 'prefect'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_no_path_of_one_machine_is_committed():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout
    bad = []
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if path.is_file() and path.suffix in {".py", ".md", ".toml", ".yaml", ".yml", ".json", ".lock", ".gpu", ".cpu", ""}:
            text = path.read_text(errors="replace")
            bad += [f"{name}: {match}" for match in re.findall(r"/(?:work|home/\w+|Users/\w+)/(?:main|shared)\b\S*", text)]
    assert bad == []
