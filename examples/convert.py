"""The released checkpoints -> a pipeline folder, and one of them back.

    python examples/convert.py stage1.pt stage2.pt --to flashvideo-folder

The same as `flashvideo convert --from official stage1.pt stage2.pt --to flashvideo-folder`. 3d-vae.pt goes the same way.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from flashvideo.convert import export_official, import_official


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--to", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--back", type=Path, metavar="FILE", help="write this one again from the folder; its name holds stage1, stage2 or vae"
    )
    given = parser.parse_args(arguments)
    for line in import_official(given.files, given.to):
        print(line)
    if given.back is not None:
        for line in export_official(given.to, [given.back]):
            print(line)


if __name__ == "__main__":
    main()
