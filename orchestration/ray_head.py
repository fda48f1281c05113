"""A local Ray for one run, bound to the loopback interface: `python -m orchestration.ray_head ...`.

It starts what `ray start --head` starts, in the same way, with two differences that have no public switch in
Ray 2.60: the job agent takes a free port (52365 is fixed in `ray.init`, so a second Ray on the machine could not
take jobs), and there is no Ray-client server (50 MB). Everything ends with this process: Ray binds its services to
their parent's life, and this process ends with the run (`leash.py`).
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import time
from pathlib import Path

from pipelines.artifacts import write_atomically


def main() -> None:
    """Starts Ray, writes its addresses to --ready, stays until SIGTERM or until a service dies (exit code 1)."""
    parser = argparse.ArgumentParser(prog="python -m orchestration.ray_head", description="A local Ray for one run.")
    parser.add_argument("--folder", type=Path, required=True, help="Ray's temporary folder; short, it holds unix sockets")
    parser.add_argument("--ready", type=Path, required=True, help="JSON file with the addresses, written when Ray is up")
    parser.add_argument("--cpus", type=int, required=True)
    parser.add_argument("--object-store-bytes", type=int, required=True)
    parser.add_argument("--dashboard-port", type=int, required=True)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        _serve(arguments)
    finally:
        shutil.rmtree(arguments.folder, ignore_errors=True)


def _serve(arguments: argparse.Namespace) -> None:
    from ray._private.node import Node
    from ray._private.parameter import RayParams
    from ray._private.utils import write_ray_address

    parameters = RayParams(
        node_ip_address="127.0.0.1",
        num_cpus=arguments.cpus,
        object_store_memory=arguments.object_store_bytes,
        temp_dir=str(arguments.folder),
        include_dashboard=True,  # it holds the job server
        dashboard_host="127.0.0.1",
        dashboard_port=arguments.dashboard_port,
        dashboard_agent_listen_port=0,
        no_monitor=True,  # no autoscaler
    )
    node = Node(parameters, head=True, shutdown_at_exit=False, spawn_reaper=True)
    try:
        write_ray_address(node.address, str(arguments.folder))  # or a job would join any other Ray of this machine
        facts = {"address": f"http://{node.address_info['webui_url']}", "gcs": node.address, "session": node.get_session_dir_path()}
        write_atomically(arguments.ready, json.dumps(facts))
        while not node.dead_processes():
            time.sleep(0.5)
        names = ", ".join(kind for kind, _ in node.dead_processes())
        print(f"Ray's {names} ended; logs in {node.get_logs_dir_path()}", file=sys.stderr)
        sys.exit(1)
    finally:
        node.kill_all_processes(check_alive=False, allow_graceful=True)


if __name__ == "__main__":
    main()
