"""What this machine and this configuration can do: `flashvideo doctor`. Looks, changes nothing but a probe file."""

from __future__ import annotations

import netrc
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import psutil

from curation.scores.metric_files import METRIC_FILES
from curation.sources import SourceError, list_sources
from orchestration.services import answers
from pipelines.artifacts import Workspace
from pipelines.plan import JOBS
from pipelines.recipe import Recipe

LOCK = Path(__file__).resolve().parents[1] / "requirements.lock"
ROOT_FREE_BYTES = 5_000_000_000
"""Below this the root's disk is called short: a debug run writes about 1 GB."""


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's table."""

    what: str
    state: Literal["ok", "missing", "note"]
    """missing: the recipe cannot run whole like this. note: worth knowing."""
    found: str
    advice: str = ""


def examine(recipe: Recipe, workspace: Workspace) -> list[Finding]:
    """Every finding, in the order of the table."""
    return [
        *_software(),
        *_machine(recipe, workspace),
        *_sources(recipe, workspace),
        *_addresses(recipe),
        *_wandb(recipe),
        *_weights(recipe),
        *_data(recipe),
    ]


def _software() -> Iterator[Finding]:
    python = platform.python_version()
    yield Finding(f"python {python}", "ok" if sys.version_info[:2] == (3, 11) else "missing", sys.executable, "3.11 is needed: make setup")
    locked = locked_versions(LOCK.read_text()) if LOCK.is_file() else {}
    for name in direct_requirements():
        try:
            found = version(name)
        except PackageNotFoundError:
            yield Finding(name, "missing", "not installed", "make setup")
            continue
        wanted = locked.get(_canonical(name))
        if wanted is not None and found.split("+")[0] != wanted.split("+")[0]:
            yield Finding(name, "note", f"{found}, the lock says {wanted}", "make distclean setup")
        else:
            yield Finding(name, "ok", found)
    if shutil.which("cc") is None and shutil.which("gcc") is None:
        yield Finding("C compiler", "note", "none found", "DeepSpeed compiles its communication kernels at first use")


def direct_requirements() -> list[str]:
    """Names of the packages that this project asks for itself."""
    return [re.split(r"[\s\[<>=!~;]", line, maxsplit=1)[0] for line in requires("flashvideo") or [] if "extra ==" not in line]


def locked_versions(lock: str) -> dict[str, str]:
    """Package -> version, of a requirements.lock."""
    return {_canonical(name): found for name, found in re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", lock, re.MULTILINE)}


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _machine(recipe: Recipe, workspace: Workspace) -> Iterator[Finding]:
    memory = psutil.virtual_memory()
    yield Finding("cores", "ok", str(os.cpu_count()))
    needed = recipe.runtime.workers * recipe.runtime.worker_memory_bytes
    enough = recipe.runtime.ray_address is not None or memory.total >= needed
    yield Finding(
        "memory",
        "ok" if enough else "note",
        f"{memory.total / 1e9:.1f} GB, {memory.available / 1e9:.1f} GB free",
        f"{recipe.runtime.workers} workers may take {needed / 1e9:.1f} GB: lower runtime.workers",
    )
    shared = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0
    yield Finding(
        "shared memory",
        "ok" if shared >= recipe.runtime.ray_object_store_bytes else "note",
        f"{shared / 1e9:.2f} GB free in /dev/shm",
        "lower runtime.ray_object_store_bytes, or give the container more (docker run --shm-size)",
    )
    yield _root(workspace.root)
    yield from _gpus(recipe)


def _root(root: Path) -> Finding:
    existing = next(folder for folder in (root, *root.parents) if folder.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=existing):
            free = shutil.disk_usage(existing).free
    except OSError as error:
        return Finding("run root", "missing", f"{root}: {error.strerror}", "choose another --root")
    return Finding("run root", "ok" if free >= ROOT_FREE_BYTES else "note", f"{root}, {free / 1e9:.1f} GB free", "free some space")


def _gpus(recipe: Recipe) -> Iterator[Finding]:
    wanted = max(spec.demand(recipe).gpus for spec in JOBS)
    found: list[str] = []
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
        found = answer.stdout.strip().splitlines() if answer.returncode == 0 else []
    here = recipe.runtime.ray_address is None
    short = here and len(found) < wanted
    yield Finding(
        "GPU",
        "missing" if short else "ok",
        f"{len(found)} found{': ' + '; '.join(found) if found else ''}; the recipe asks for {wanted:g}{'' if here else ' on the cluster'}",
        "name a cluster in runtime.ray_address, or use the recipe debug",
    )


def _sources(recipe: Recipe, workspace: Workspace) -> Iterator[Finding]:
    if not recipe.sources:
        yield Finding("sources", "ok", f"none given: rendered samples in {workspace.samples}")
        return
    try:
        listing = list_sources(recipe.sources)
        yield Finding("sources", "ok", f"{len(listing.files)} files")
    except SourceError as error:
        yield Finding("sources", "missing", str(error), "give --sources")


def _addresses(recipe: Recipe) -> Iterator[Finding]:
    ray = recipe.runtime.ray_address
    if recipe.runtime.runner == "local":
        yield Finding("Ray", "ok", "not used to run jobs (runtime.runner = local)")
    elif ray is None:
        yield Finding("Ray", "ok", "a local one, started on 127.0.0.1 with every run")
    else:
        reached = answers(f"{ray.rstrip('/')}/api/version")
        yield Finding("Ray", "ok" if reached else "missing", f"{ray} {'answers' if reached else 'does not answer'}", "runtime.ray_address")
    prefect = os.environ.get("PREFECT_API_URL")
    if prefect is None:
        yield Finding("Prefect", "ok", "an embedded server with every run, data in ROOT/prefect (PREFECT_API_URL is not set)")
    else:
        reached = answers(f"{prefect.rstrip('/')}/health")
        words = "answers" if reached else "does not answer"
        yield Finding("Prefect", "ok" if reached else "missing", f"PREFECT_API_URL {prefect} {words}", "start it, or unset PREFECT_API_URL")


def _wandb(recipe: Recipe) -> Iterator[Finding]:
    """Where a stage sends its scalars to Weights & Biases."""
    wanted = {
        f"{name}.engine.watch.wandb": stage.engine.watch.wandb for name, stage in (("stage1", recipe.stage1), ("stage2", recipe.stage2))
    }
    asked = {setting: config for setting, config in wanted.items() if config.mode != "off"}
    if not asked:
        return
    settings = ", ".join(asked)
    try:
        found = version("wandb")
    except PackageNotFoundError:
        advice = 'uv pip install --constraints requirements.lock "wandb==0.31.*", or mode=off'
        yield Finding("wandb", "missing", f"not installed; {settings} asks for it", advice)
        return
    yield Finding("wandb", "ok", f"{found}, for {settings}")
    server = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    if any(config.mode == "online" for config in asked.values()) and not _wandb_key(urlsplit(server).hostname or ""):
        yield Finding(
            "wandb's key", "note", f"none for {server}: the runs are kept offline", "set WANDB_API_KEY, or wandb login (writes ~/.netrc)"
        )


def _wandb_key(host: str) -> bool:
    """Whether there is a key in one of its own two places; it is not looked at."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


# ---- weights -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WantedWeights:
    """Weights that a recipe wants."""

    key: str
    """Setting that names them."""
    path: str | None
    files: tuple[str, ...]
    """What must lie there: names or patterns inside the folder; none: the path is a file."""
    hint: str
    """What the file is called, or where it comes from."""
    without: str
    """What a recipe can do instead."""


SAFETENSORS = ("config.json", "*.safetensors")
FRAME_WEIGHTS = METRIC_FILES
"""Files of evaluation.frame_metrics in evaluation.frame_weights too (flashvideo/evaluation/networks/frame_metrics.py)."""


def wanted_weights(recipe: Recipe) -> list[WantedWeights]:
    """Every file or folder of weights that the recipe's jobs would open."""
    wanted: list[WantedWeights] = []
    curation = recipe.curation
    if curation.motion.raft:
        wanted.append(
            WantedWeights(
                "curation.motion.raft_weights",
                curation.motion.raft_weights,
                (),
                "raft_large_C_T_SKHT_V2-ff5fadd5.pth (torchvision)",
                "curation.motion.raft=false, and a policy rule on motion_proxy",
            )
        )
    if curation.aesthetic.laion:
        without = "curation.aesthetic.laion=false, and a policy rule on aesthetic_proxy"
        clip, head = curation.aesthetic.clip_weights, curation.aesthetic.head_weights
        wanted.append(WantedWeights("curation.aesthetic.clip_weights", clip, SAFETENSORS, "openai/clip-vit-large-patch14", without))
        wanted.append(WantedWeights("curation.aesthetic.head_weights", head, (), "sac+logos+ava1-l14-linearMSE.pth", without))
    if curation.text_overlay.detector is not None:
        hint = "text_detection_en_ppocrv3_2023may.onnx (OpenCV's model zoo)"
        without = "curation.text_overlay.detector=null"
        wanted.append(WantedWeights("curation.text_overlay.detector", curation.text_overlay.detector, (), hint, without))
    if curation.caption.backend == "transformers":
        model, without = curation.caption.model, "curation.caption.backend=attributes"
        wanted.append(WantedWeights("curation.caption.model", model, ("config.json",), "a vision-language model", without))
    if recipe.vae.kind == "cogvideox":
        wanted.append(WantedWeights("vae.weights", recipe.vae.weights, SAFETENSORS, "THUDM/CogVideoX-5b, vae/", "vae.kind=patch_pca"))
    if recipe.text_encoder.kind == "t5":
        files = ("text_encoder/config.json", "text_encoder/*.safetensors", "tokenizer/*")
        without = "text_encoder.kind=debug_t5"
        wanted.append(
            WantedWeights(
                "text_encoder.weights", recipe.text_encoder.weights, files, "THUDM/CogVideoX-5b, text_encoder/, tokenizer/", without
            )
        )
    if recipe.stage1.base_weights is not None or recipe.stage1.transformer.flavour != "debug":
        base = recipe.stage1.base_weights
        wanted.append(WantedWeights("stage1.base_weights", base, SAFETENSORS, "THUDM/CogVideoX-5b, transformer/", "the recipe debug"))
    if recipe.stage2.init_weights is not None:
        init, without = recipe.stage2.init_weights, "stage2.init_weights=null starts from random weights"
        wanted.append(WantedWeights("stage2.init_weights", init, SAFETENSORS, "THUDM/CogVideoX-2b, transformer/", without))
    return wanted + list(_metric_weights(recipe))


def _metric_weights(recipe: Recipe) -> Iterator[WantedWeights]:
    """Those of pyiqa's metrics, where a folder is named."""
    hint = "them (github.com/chaofengc/IQA-PyTorch, release v0.1-weights; RN50.pt: OpenAI's CLIP)"
    quality, evaluation = recipe.curation.quality, recipe.evaluation
    for key, folder, metrics, without in (
        ("curation.quality.weights", quality.weights, quality.metrics, "curation.quality.metrics=[piqe]"),
        ("evaluation.frame_weights", evaluation.frame_weights, evaluation.frame_metrics, "evaluation.frame_metrics=[piqe]"),
    ):
        files = tuple(FRAME_WEIGHTS[name] for name in metrics if name in FRAME_WEIGHTS)
        if folder is not None and files:
            yield WantedWeights(key, folder, files, hint, without)


def missing_files(wanted: WantedWeights) -> list[str]:
    """What is not there, as paths or patterns; the setting's name where no path is given."""
    if wanted.path is None:
        return [f"{wanted.key} is not set ({wanted.hint})"]
    path = Path(wanted.path).expanduser()
    if not wanted.files:
        return [] if path.is_file() else [f"{path} ({wanted.hint})"]
    return [str(path / name) for name in wanted.files if not any(path.glob(name))]


def _weights(recipe: Recipe) -> Iterator[Finding]:
    wanted = wanted_weights(recipe)
    if not wanted:
        yield Finding("weights", "ok", "none wanted: the recipe uses named stand-ins")
    for entry in wanted:
        missing = missing_files(entry)
        if missing:
            yield Finding(entry.key, "missing", f"wanted: {', '.join(missing)}", f"fetch {entry.hint}; without it: {entry.without}")
        else:
            yield Finding(entry.key, "ok", str(entry.path))
    mine = recipe.evaluation.frame_metrics if recipe.evaluation.frame_weights is None else ()
    theirs = recipe.curation.quality.metrics if recipe.curation.quality.weights is None else ()
    others = [name for name in (*theirs, *mine) if name != "piqe"]
    if others:
        advice = "piqe needs none; curation.quality.weights and evaluation.frame_weights name a folder of " + ", ".join(
            FRAME_WEIGHTS.values()
        )
        yield Finding("pyiqa metrics", "note", f"{', '.join(sorted(set(others)))} download weights at first use", advice)
    yield from _dover(recipe)


def _dover(recipe: Recipe) -> Iterator[Finding]:
    if recipe.evaluation.dover == "command":
        program = recipe.evaluation.dover_command[0] if recipe.evaluation.dover_command else None
        found = None if program is None else shutil.which(program)
        yield Finding(
            "DOVER", "ok" if found else "missing", found or f"{program} is no program", "evaluation.dover_command runs your own DOVER"
        )


def _data(recipe: Recipe) -> Iterator[Finding]:
    make = "its environment (6.3 GB) is made by: flashvideo vbench --make-reference DIR"
    yield Finding("VBench's evaluator", "note", "flashvideo vbench --reference-python DIR/bin/python asks it", make)
    folder = recipe.evaluation.vbench_data
    if folder is None:
        yield Finding("VBench data", "note", "evaluation.vbench_data is not set", "the parts that need prompts are left out, and said so")
    else:
        path = Path(folder) / "VBench_full_info.json"
        yield Finding("VBench data", "ok" if path.is_file() else "missing", str(path), "evaluation.vbench_data names its folder")
    if recipe.curation.caption.backend == "http":
        url = urlsplit(recipe.curation.caption.base_url or "")
        reached = url.hostname is not None and _connects(url.hostname, url.port or (443 if url.scheme == "https" else 80))
        yield Finding("captioner", "ok" if reached else "missing", f"{recipe.curation.caption.base_url}", "curation.caption.base_url")


def _connects(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=3):
            return True
    except OSError:
        return False
