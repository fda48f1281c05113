"""Where the scalars of one run of the loop go beside losses.jsonl: TensorBoard, Weights & Biases. On the first rank."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

from flashvideo.config import WandbConfig, WatchConfig
from flashvideo.whole_files import write_text

log = logging.getLogger("flashvideo")

RUN_FILE = "wandb.json"
"""Beside losses.jsonl: the run's id at Weights & Biases, under which a restart goes on."""


class Sink(Protocol):
    """One place that scalars go to."""

    def add(self, train_step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class Scalars:
    """Every sink that is asked for."""

    def __init__(self, folder: Path, config: WatchConfig, train_step: int, about: Mapping[str, Any]) -> None:
        """Scalars after `train_step` are an earlier attempt's; `about` is what a run is listed with.

        Raises RuntimeError where a package that is asked for is not installed.
        """
        missing = missing_package(config)
        if missing is not None:
            raise RuntimeError(missing)
        self._sinks: list[Sink] = []
        if config.tensorboard:
            self._sinks.append(TensorBoard(folder / "tensorboard", train_step))
        if config.wandb.mode != "off":
            self._sinks.append(Wandb(folder, config.wandb, about))

    def add(self, train_step: int, group: str, values: Mapping[str, float]) -> None:
        """`<group>/<name>` at a train_step (counted from 1, as in losses.jsonl)."""
        for sink in self._sinks:
            sink.add(train_step, {f"{group}/{name}": value for name, value in values.items()})

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()


def missing_package(config: WatchConfig) -> str | None:
    """What to say of a sink that is asked for and whose package is not installed, or None."""
    wanted = {"tensorboard": (config.tensorboard, "tensorboard", "false"), "wandb.mode": (config.wandb.mode != "off", "wandb", "off")}
    for setting, (is_wanted, package, without) in wanted.items():
        try:
            if is_wanted:
                version(package)
        except PackageNotFoundError:
            return f"engine.watch.{setting} needs the package {package}, which is not installed; install it, or set it to {without}"
    return None


class TensorBoard:
    """A folder of event files."""

    def __init__(self, folder: Path, train_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder), purge_step=train_step + 1)

    def add(self, train_step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, train_step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """One run at Weights & Biases; every attempt goes on in it.

    A server that cannot be reached never stops training: it is said once, and the scalars lie in `folder`/wandb for
    `wandb sync`. Train_steps that the server has of an earlier attempt are not sent again; they are the same.
    """

    def __init__(self, folder: Path, config: WandbConfig, about: Mapping[str, Any]) -> None:
        self._folder, self._timeout_s = folder, config.timeout_s
        self._run = self._tried(
            config, config.mode, about, f"it is kept in {self._kept} instead; send it later: wandb sync {self._kept}/*run-*"
        )
        if self._run is None:
            self._freed()
            self._run = self._tried(config, "offline", about, "nothing goes there; losses.jsonl holds everything")

    @property
    def _kept(self) -> Path:
        return self._folder / "wandb"

    def _tried(self, config: WandbConfig, mode: str, about: Mapping[str, Any], otherwise: str) -> Any:
        """The run, or None where it cannot begin, which is said."""
        try:
            return self._begun(config, mode, about)
        except Exception as error:  # of many kinds: no key, no such entity, no network, a service that died
            self._said(error, otherwise)
            return None

    def _freed(self) -> None:
        """Ends the service process: it holds the id of a run that could not begin, or is dead."""
        import wandb

        with suppress(Exception):
            wandb.teardown()

    def _begun(self, config: WandbConfig, mode: str, about: Mapping[str, Any]) -> Any:
        import wandb

        settings = wandb.Settings(
            init_timeout=self._timeout_s,
            login_timeout=self._timeout_s,  # at a terminal it asks for a key
            finish_timeout=self._timeout_s,
            finish_timeout_raises=True,
            reinit="create_new",
            silent=True,
            console="off",  # what follows says more of the machine and its people than a loss needs
            disable_git=True,
            disable_code=True,
            x_disable_meta=True,
            x_save_requirements=False,
        )
        return wandb.init(
            project=config.project,
            entity=config.entity,
            dir=self._folder,
            id=run_id(self._folder),
            name=f"stage {about['stage']}, {about['phase']}, {self._folder.name}",
            group=f"stage {about['stage']}",
            config=dict(about),
            mode=mode,
            resume="allow",
            settings=settings,
        )

    def add(self, train_step: int, values: Mapping[str, float]) -> None:
        if self._run is None or train_step < self._run.starting_step:
            return
        try:
            self._run.log(dict(values), step=train_step)
        except Exception as error:  # its service process is gone
            self._said(error, "nothing more goes there; losses.jsonl holds everything")
            self._run = None

    def close(self) -> None:
        if self._run is None:
            return
        try:
            self._run.finish()
        except Exception as error:  # TimeoutError, or its service process is gone
            self._said(error, f"what it lacks lies in {self._kept}; send it later: wandb sync {self._kept}/*run-*")

    def _said(self, error: Exception, after: str) -> None:
        what = " ".join(str(error).split())[:300] or type(error).__name__
        log.warning("Weights & Biases (engine.watch.wandb): %s; training goes on, %s", what, after)


def run_id(folder: Path) -> str:
    """The id of a folder's run, made once: its fingerprint, and 8 random digits, since equal runs of two roots are two."""
    path = folder / RUN_FILE
    if not path.is_file():
        write_text(path, json.dumps({"id": f"{folder.name}-{secrets.token_hex(4)}"}), flushed=True)
    made: str = json.loads(path.read_text())["id"]
    return made
