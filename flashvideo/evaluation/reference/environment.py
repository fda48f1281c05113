"""The reference evaluator's own environment: made by uv from requirements.txt, and looked at before it is used. Light.

python -m flashvideo.evaluation.reference.environment DIR
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
HOW_TO_MAKE = "make one (6.3 GB): flashvideo vbench --make-reference DIR, then give DIR/bin/python"
LOOK_TIMEOUT_S = 300
_LOOK = """
import json
from importlib.metadata import version
import vbench, vbench.utils
print("\\n" + json.dumps({name: version(name) for name in ("vbench", "torch", "torchvision", "transformers", "av")}))
"""


class ReferenceMistake(ValueError):
    """The environment cannot be used or made; one clear line."""


def look(python: Path, paths: Sequence[Path] = ()) -> dict[str, str]:
    """Versions of the packages that change numbers. `paths`: for its PYTHONPATH.

    Raises ReferenceMistake for an interpreter that cannot import vbench.
    """
    if not python.is_file():
        raise ReferenceMistake(f"--reference-python {python} is no file; {HOW_TO_MAKE}")
    try:
        answer = subprocess.run(
            [str(python), "-c", _LOOK], capture_output=True, text=True, timeout=LOOK_TIMEOUT_S, check=False, env=surroundings(paths)
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ReferenceMistake(f"--reference-python {python} cannot be run: {error}") from None
    if answer.returncode:
        raise ReferenceMistake(f"--reference-python {python} cannot import vbench ({last_line(answer.stderr)}); {HOW_TO_MAKE}")
    try:
        versions: dict[str, str] = json.loads(answer.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        raise ReferenceMistake(f"--reference-python {python} answers {last_line(answer.stdout)!r}; is it a Python?") from None
    return versions


def surroundings(paths: Sequence[Path], cache: Path | None = None) -> dict[str, str]:
    """The environment variables that the other interpreter runs with."""
    found = {name: value for name, value in os.environ.items() if name not in ("PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV")}
    found["PYTHONPATH"] = os.pathsep.join(str(path.resolve()) for path in paths)
    return found if cache is None else found | {"VBENCH_CACHE_DIR": str(cache.resolve())}


def last_line(text: str) -> str:
    """The last one that is not empty; Python's error messages end so."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no message")


def make(folder: Path) -> Path:
    """Makes the environment with uv and returns its interpreter. Raises ReferenceMistake."""
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.is_file() else shutil.which("uv")
    if uv is None:
        raise ReferenceMistake("uv is not installed beside this Python nor on PATH; it makes the environment: pip install uv")
    python = folder / "bin" / "python"
    for command in (
        [uv, "venv", "--python", "3.11", "--allow-existing", str(folder)],
        [uv, "pip", "install", "--python", str(python), "--no-deps", "-r", str(REQUIREMENTS)],
    ):
        if subprocess.call(command):
            raise ReferenceMistake(f"{' '.join(command[:3])} failed in {folder}; its message is above. The same command goes on from there")
    look(python)
    return python


def main() -> int:
    """Command line."""
    if len(sys.argv) != 2:
        print("usage: python -m flashvideo.evaluation.reference.environment DIR", file=sys.stderr)
        return 2
    try:
        print(make(Path(sys.argv[1])))
    except ReferenceMistake as error:
        print(f"reference: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
