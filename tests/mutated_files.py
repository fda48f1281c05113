"""Files that are broken on purpose, the same ones for the same seed: bit flips, truncations, spliced headers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

KINDS = ("bit_flips", "header_flips", "truncation", "spliced_header", "hole")
HEAD_BYTES = 4096
"""Where most containers keep what says how to read the rest."""


def mutate(kind: str, data: bytes, other: bytes, draw: random.Random) -> bytes:
    """The file, broken in one way; `other` is the file that a header is taken from."""
    if kind == "truncation":
        return data[: draw.randrange(1, len(data))]
    if kind == "spliced_header":
        return other[: draw.randrange(16, min(HEAD_BYTES, len(other)))] + data[draw.randrange(0, min(HEAD_BYTES, len(data))) :]
    broken = bytearray(data)
    if kind == "hole":  # a stretch of random bytes anywhere
        length = draw.randrange(1, max(2, len(data) // 8))
        start = draw.randrange(0, len(data) - length + 1)
        broken[start : start + length] = draw.randbytes(length)
        return bytes(broken)
    reach = min(HEAD_BYTES, len(data)) if kind == "header_flips" else len(data)
    for _ in range(draw.randrange(1, 64)):
        broken[draw.randrange(reach)] ^= 1 << draw.randrange(8)
    return bytes(broken)


def write_mutations(folder: Path, originals: Sequence[Path], number: int, seed: int) -> dict[str, str]:
    """Writes `number` broken files, kinds and originals in turn; returns file name -> kind."""
    draw = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    contents = [path.read_bytes() for path in originals]
    kinds = {}
    for index in range(number):
        kind = KINDS[index % len(KINDS)]
        place = index // len(KINDS) % len(originals)
        other = contents[draw.randrange(len(contents))]
        name = f"{index:03}_{kind}{originals[place].suffix}"
        (folder / name).write_bytes(mutate(kind, contents[place], other, draw))
        kinds[name] = kind
    return kinds
