"""Runs one dimension of the installed vbench package: REQUEST.json -> ANSWER.json. Not imported by this project.

It is started by the interpreter of the reference's own environment (adapter.py), so it imports nothing of ours. VBench's
command line is passed by: it insists on CUDA, NCCL and shell quoting.

    request: {"exchange": 1, "dimension", "device", "full_info": path of a full_info.json with video_list, "local": bool}
    answer:  {"exchange": 1, "results": {dimension: [score, [{"video_path", "video_results", ...}]]}}
"""

import importlib
import json
import os
import sys
from typing import Any

EXCHANGE = 1


def plain(value: Any) -> Any:
    """numpy's and torch's numbers as Python's."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        request = json.load(file)
    if request["exchange"] != EXCHANGE:
        raise SystemExit(f"the request speaks exchange {request['exchange']}, this runner {EXCHANGE}")
    import torch
    from vbench.utils import init_submodules  # type: ignore[import-not-found]

    name = request["dimension"]
    compute = getattr(importlib.import_module(f"vbench.{name}"), f"compute_{name}")
    submodules = init_submodules([name], local=request["local"], read_frame=False)[name]
    score, videos = compute(request["full_info"], torch.device(request["device"]), submodules)[:2]
    beside = sys.argv[2] + ".part"
    with open(beside, "w", encoding="utf-8") as file:
        json.dump({"exchange": EXCHANGE, "results": {name: [score, videos]}}, file, default=plain)
    os.replace(beside, sys.argv[2])


if __name__ == "__main__":
    main()
