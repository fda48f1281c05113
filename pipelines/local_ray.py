"""Ray for one job: the cluster's, or a lean one that is started here and ends with the job.

`ray.init` starts, beside the two daemons and the two agents that workers need, an API server (without its dashboard, for usage
statistics only), an autoscaler's monitor and a log monitor: 180 MB, and 2 of 6 CPU seconds. Ray 2.60 has no public switch for
them (`RayParams` has two), so the node is started as `ray.init` starts it, without the three.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray's switch: "0" binds every service to 127.0.0.1."""


@contextmanager
def ray_connected(object_store_bytes: int, cpus: int) -> Iterator[Any]:
    """Ray, connected: to the cluster of RAY_ADDRESS where that is set (a job has it), else to one started for this call."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    own = not os.environ.get("RAY_ADDRESS")
    if own:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # bound to 127.0.0.1; Ray 2.60 would make a token file in the home folder
    import ray

    if ray.is_initialized():
        yield ray
    elif own:
        with _own_ray(object_store_bytes, cpus):
            yield ray
    else:
        with _connection("auto"):
            yield ray


@contextmanager
def _connection(address: str) -> Iterator[None]:
    import ray

    ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _own_ray(object_store_bytes: int, cpus: int) -> Iterator[None]:
    """The node's processes, which the kernel ends with this one, and a connection to them."""
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    class LeanNode(Node):
        def start_api_server(self, *, include_dashboard: bool | None, raise_on_failure: bool) -> None:
            self._webui_url = ""

    parameters = RayParams(
        num_cpus=cpus,
        object_store_memory=object_store_bytes,
        include_dashboard=False,
        include_log_monitor=False,
        no_monitor=True,
    )
    with bound_to_this_machine():
        node = LeanNode(parameters, head=True, shutdown_at_exit=False, spawn_reaper=True)
        try:
            with _connection(node.address):
                yield
        finally:
            node.kill_all_processes(check_alive=False, allow_graceful=True)


@contextmanager
def bound_to_this_machine() -> Iterator[None]:
    """For this process, which may have imported Ray before, and those that it starts."""
    from ray._private import ray_constants

    given, before = os.environ.get(LOOPBACK), ray_constants.ENABLE_RAY_CLUSTER
    os.environ[LOOPBACK], ray_constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        if given is None:
            del os.environ[LOOPBACK]
        else:
            os.environ[LOOPBACK] = given
