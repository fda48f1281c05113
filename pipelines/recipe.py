"""The recipe: one frozen object with every number of a run. Load, override, check, fingerprint.

Light: pydantic and the packages' `config` modules only. Presets are Python functions in
`pipelines/recipes/`; a recipe also loads from YAML or JSON, whose keys are laid over a preset
(`preset: debug`). `--set a.b=value` overrides one key; entries of lists go by index or by name
(`stage2.phases.3.iterations`, `stage2.phases.preference.iterations`).
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import json
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from curation.config import CurationConfig, Settings
from flashvideo.config import (
    EvaluationConfig,
    GenerateConfig,
    LatentsConfig,
    Stage1Config,
    Stage2Config,
    SweepConfig,
    TextEncoderConfig,
    VaeConfig,
)

PRESETS = ("debug", "single_gpu", "paper")
ABLATIONS = ("full_finetune", "sincos", "pixel_only", "five_frames", "no_preference")
"""What may stand behind a preset's name after a +, several too (functions in `pipelines/recipes/ablations.py`)."""


class RecipeError(ValueError):
    """A user's mistake in a recipe; the message is one clear line."""


class RuntimeConfig(Settings):
    """Where and how wide a run executes. Never part of a fingerprint: results do not depend on it."""

    runner: str = "ray"
    """ray: every job is a Ray job. local: every job is a child process."""
    backend: str = "ray"
    """Inside a job: ray spreads the work over Ray workers; local keeps it in the job's process tree; torchrun is local, but
    for training, whose ranks you start (the job says with which command)."""
    ray_address: str | None = None
    """http(s)://host:8265 of a cluster's job server. None: a local Ray is started and stopped with the run."""
    ray_object_store_bytes: int = 200_000_000
    workers: int = 2
    """Worker processes for curation, generation and evaluation."""
    gpus_per_model_worker: float = 0
    worker_memory_bytes: int = 3_000_000_000
    job_retries: int = 1
    """Times that the flow runs a failed job again."""
    stop_grace_s: float = 10.0


class Recipe(Settings):
    """The complete configuration of a run."""

    name: str
    sources: tuple[str, ...] = ()
    """Files, folders, globs or lists (.txt, .csv, .parquet) of videos and images, as paths or addresses. Empty: the rendered samples."""
    seed: int = 0
    curation: CurationConfig = CurationConfig()
    vae: VaeConfig = VaeConfig()
    text_encoder: TextEncoderConfig = TextEncoderConfig()
    latents: LatentsConfig = LatentsConfig()
    stage1: Stage1Config = Stage1Config()
    stage2: Stage2Config = Stage2Config()
    generate: GenerateConfig = GenerateConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    sweep: SweepConfig = SweepConfig()
    runtime: RuntimeConfig = Field(default=RuntimeConfig())
    labels: str | None = None
    """Digest of people's labels when the run began, filled in by it: what is said meanwhile waits for the next. None: as they are now."""

    @model_validator(mode="after")
    def _sizes_divide(self) -> Recipe:
        checks = [("stage1", self.stage1.batch_size, self.stage1.engine)]
        for index, phase in enumerate(self.stage2.phases):
            checks.append((f"stage2.phases.{index}", phase.batch_size, self.stage2.engine))
            if phase.images and phase.image_batch_size is not None:
                checks.append((f"stage2.phases.{index} (images)", phase.image_batch_size, self.stage2.engine))
        for where, batch_size, engine in checks:
            if batch_size % engine.num_ranks:
                raise ValueError(
                    f"{where}: batch size {batch_size} does not divide over {engine.num_ranks} ranks; "
                    f"use {max(1, batch_size // engine.num_ranks) * engine.num_ranks}"
                )
        for where, transformer in (("stage1", self.stage1.transformer), ("stage2", self.stage2.transformer)):
            if transformer.text_embed_dim != self.text_encoder.embed_dim:
                raise ValueError(
                    f"{where}.transformer.text_embed_dim = {transformer.text_embed_dim} but text_encoder.embed_dim = "
                    f"{self.text_encoder.embed_dim}; they must be equal"
                )
        if self.runtime.runner not in ("ray", "local") or self.runtime.backend not in ("ray", "local", "torchrun"):
            raise ValueError("runtime.runner is ray or local; runtime.backend also torchrun")
        return self


def preset(name: str) -> Recipe:
    """The preset recipe of that name (a function in `pipelines/recipes/<name>.py`), changed by the ablations behind it."""
    base, *changes = name.split("+")
    if base not in PRESETS:
        raise RecipeError(f"no recipe named {base!r}{did_you_mean(base, PRESETS)}; presets: {', '.join(PRESETS)}")
    recipe: Recipe = getattr(importlib.import_module(f"pipelines.recipes.{base}"), base)()
    for change in changes:
        if change not in ABLATIONS:
            raise RecipeError(f"no ablation named {change!r}{did_you_mean(change, ABLATIONS)}; ablations: {', '.join(ABLATIONS)}")
        recipe = getattr(importlib.import_module("pipelines.recipes.ablations"), change)(recipe)
    return recipe.model_copy(update={"name": name})


def load(source: str, overrides: tuple[str, ...] = (), **fields: Any) -> Recipe:
    """A recipe from a preset's name or a YAML/JSON file, with `key=value` overrides and whole fields laid over it.

    Raises RecipeError with one line for every mistake: misspelt keys (with "did you mean"), bad values,
    sizes that do not divide.
    """
    if source.endswith((".yaml", ".yml", ".json")):
        data = _read_file(Path(source))
        base = preset(data.pop("preset")).model_dump(mode="python") if "preset" in data else {}
        tree = _merge(base, data, ())
    else:
        tree = preset(source).model_dump(mode="python")
    if overrides:
        tree = _tree(_validated(tree))
    for override in overrides:
        _override(tree, override)
    return _validated(tree | {key: value for key, value in fields.items() if value is not None})


def _validated(tree: dict[str, Any]) -> Recipe:
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(_one_line(error)) from None


def _tree(value: Any) -> Any:
    """Settings as plain values with every field, those too that a dump leaves out at their default."""
    if isinstance(value, BaseModel):
        return {name: _tree(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, tuple | list):
        return type(value)(_tree(entry) for entry in value)
    return {key: _tree(entry) for key, entry in value.items()} if isinstance(value, dict) else value


def dump(recipe: Recipe) -> str:
    """The whole recipe as JSON; `load` reads it back equal."""
    return recipe.model_dump_json(indent=1)


def fingerprint(*facts: Any) -> str:
    """First 16 hex of the sha256 of the facts' canonical JSON (settings objects included)."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=_plain).encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} has no place in a fingerprint")


def _read_file(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text())
    except OSError as error:
        raise RecipeError(f"recipe file {path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"recipe file {path} is not valid YAML or JSON: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise RecipeError(f"recipe file {path} must hold a mapping of keys, found {type(data).__name__}")
    return data


def _merge(base: dict[str, Any], over: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merge(merged[key], value, (*path, key))
        else:
            merged[key] = value
    return merged


def _override(tree: dict[str, Any], text: str) -> None:
    key, equals, raw = text.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set {text!r}: write key=value, e.g. stage1.iterations=200")
    try:
        value = yaml.safe_load(raw)
        if isinstance(value, str):  # YAML reads 1e-4 as text
            value = float(value) if _is_number(value) else value
    except yaml.YAMLError:
        value = raw
    node: Any = tree
    parts = key.split(".")
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        if isinstance(node, dict):
            if part not in node:
                raise RecipeError(f"--set {key}: no key {part!r}{did_you_mean(part, node)}{_known(parts[:depth], node)}")
            if last:
                node[part] = value
            else:
                node[part] = list(node[part]) if isinstance(node[part], tuple) else node[part]
                node = node[part]
        elif isinstance(node, list):
            index = _entry(node, part, key)
            if last:
                node[index] = value
            else:
                node = node[index]
        else:
            raise RecipeError(f"--set {key}: {'.'.join(parts[:depth])} is a value ({node!r}), it has no key {part!r}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _entry(entries: list[Any], part: str, key: str) -> int:
    names = [entry.get("name") if isinstance(entry, dict) else None for entry in entries]
    if part in names:
        return names.index(part)
    if part.isdigit() and int(part) < len(entries):
        return int(part)
    known = ", ".join(str(name) for name in names if name)
    raise RecipeError(f"--set {key}: no entry {part!r} among {len(entries)} (0 to {len(entries) - 1}{'; ' + known if known else ''})")


def did_you_mean(word: str, known: Any) -> str:
    """The end of a message about an unknown word: the nearest known one, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f'; did you mean "{close[0]}"?' if close else ""


def _known(parts: list[str], node: dict[str, Any]) -> str:
    where = ".".join(parts) or "the recipe"
    return f" ({where} has: {', '.join(node)})"


def _one_line(error: ValidationError) -> str:
    lines = []
    for entry in error.errors():
        where = ".".join(str(part) for part in entry["loc"])
        if entry["type"] == "extra_forbidden":
            *parents, key = entry["loc"]
            lines.append(f"unknown key {where!r}{did_you_mean(str(key), _fields_at(tuple(parents)))}")
        else:
            message = entry["msg"].removeprefix("Value error, ")
            lines.append(f"{where}: {message}" if where else message)
    return "recipe: " + "; ".join(lines)


def _fields_at(path: tuple[Any, ...]) -> list[str]:
    """Field names of the settings class found by walking the path from Recipe."""
    model: Any = Recipe
    for part in path:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        arguments = [a for a in getattr(annotation, "__args__", ()) if isinstance(a, type) and issubclass(a, BaseModel)]
        model = arguments[0] if arguments else annotation
    return list(model.model_fields)
