"""Schedules: the curation flow served through Prefect on this machine, one run at a time per root.

On a cluster the same flow is deployed to a work pool; see infra/prefect/.
"""

from __future__ import annotations

import contextlib
import os
import signal
from datetime import timedelta
from pathlib import Path

from orchestration.lock import hold_root
from orchestration.services import PrefectServer, keep_loopback_direct, prefect_settings
from pipelines.artifacts import Workspace, write_atomically
from pipelines.job import UserError
from pipelines.recipe import Recipe, dump


def schedule_curation(recipe: Recipe, workspace: Workspace, cron: str | None, every_s: float | None) -> None:
    """Serves the curation flow until Ctrl-C or SIGTERM. Every firing curates what is new in the sources.

    The server is the one that PREFECT_API_URL names, else our own with its data in the root. Raises UserError when
    the root has a schedule already, cannot be written, or the cron line means nothing.
    """
    keep_loopback_direct()
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")
    server = None
    if "PREFECT_API_URL" not in os.environ:
        server = PrefectServer(workspace.root / "schedule", workspace.prefect_home, schedules=True)
    else:
        os.environ.update(prefect_settings(Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser()))
    if cron is not None:
        _check_cron(cron)
    with hold_root(workspace.root / "schedule", "flashvideo schedule"):
        recipe_file = workspace.root / "schedule" / "recipe.json"
        write_atomically(recipe_file, dump(recipe))
        try:
            if server is not None:
                server.start()
                print(f"Prefect: {server.wait_ready().removesuffix('/api')} (data in {workspace.prefect_home})", flush=True)
            _serve(recipe, workspace, recipe_file, cron, every_s)
        finally:
            if server is not None:
                server.stop()


def _check_cron(cron: str) -> None:
    from prefect.client.schemas.schedules import CronSchedule
    from pydantic import ValidationError

    try:
        CronSchedule(cron=cron)
    except ValidationError as error:
        raise UserError(
            f'--cron "{cron}": {error.errors()[0]["msg"]}; five fields are wanted, e.g. "0 2 * * *" (02:00 every day)'
        ) from None


def _serve(recipe: Recipe, workspace: Workspace, recipe_file: Path, cron: str | None, every_s: float | None) -> None:
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.types.entrypoint import EntrypointType

    from orchestration.flows import curate

    when = f'cron "{cron}"' if cron is not None else f"every {every_s:g} s"
    print(f"curate is scheduled: {when}; recipe {recipe.name}, root {workspace.root}; Ctrl-C ends the schedule", flush=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts it in the background ignores SIGINT
    with contextlib.suppress(KeyboardInterrupt):
        curate.serve(
            name=f"curate-{workspace.root.name}",
            cron=cron,
            interval=timedelta(seconds=every_s) if every_s is not None else None,
            parameters={"root": str(workspace.root), "recipe": str(recipe_file)},
            global_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW),
            limit=1,
            print_starting_message=False,
            entrypoint_type=EntrypointType.MODULE_PATH,
        )
    print("the schedule has ended", flush=True)
