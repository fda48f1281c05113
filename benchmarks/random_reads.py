"""Random reads of 64 latents: safetensors shards, Lance blobs and webdataset tars, beside the read calls alone; prints a table.

    python benchmarks/random_reads.py
    python benchmarks/random_reads.py --webdataset-python /tmp/webdataset/bin/python

Every row reads the same 64 latents (others in each repeat) out of the same set and ends in an fp32 tensor a latent, as the trainer
wants it; `pread` is the limit, the same bytes out of the safetensors files into one buffer, and nothing else. Cold: the files'
pages are dropped before each repeat and after opening (posix_fadvise; `from disk` is what the kernel then really read for it).
webdataset itself reads a shard from front to back, wids is its random access; both run in an interpreter of their own.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from printed_table import print_table

SIZES = {"0.85 MB": ((2, 13, 16, 32, 32), 192), "3.4 MB": ((2, 13, 16, 64, 64), 96)}
"""(mean and log variance, T, C, H, W) in bf16, and how many are stored."""
WANTED = 64
SHARDS = 8
INSTALL = "uv venv /tmp/webdataset && uv pip install --python /tmp/webdataset/bin/python webdataset wids torch"

NUMBERS = ("open_ms", "seconds", "cpu_seconds", "disk_mb", "files_mb")

Reader = Callable[[Sequence[int]], Iterator[Any]]
"""Indices to fp32 tensors, one at a time, in any order."""


@dataclass(frozen=True)
class Reading:
    """Of 64 latents."""

    name: str
    cold: bool
    open_ms: float
    seconds: float
    cpu_seconds: float
    disk_mb: float
    files_mb: float


@dataclass(frozen=True)
class LatentSet:
    """The stored latents of one size; format by format a folder below."""

    folder: Path
    shape: tuple[int, ...]
    count: int

    @property
    def bytes(self) -> int:
        """Of one latent."""
        size = 2
        for extent in self.shape:
            size *= extent
        return size

    def tensor(self, index: int) -> Any:
        """The latent of that number, bf16."""
        import torch

        return torch.randn(self.shape, generator=torch.Generator().manual_seed(index)).bfloat16()

    def raw(self, index: int) -> bytes:
        import torch

        data: bytes = self.tensor(index).view(torch.int16).numpy().tobytes()
        return data

    def shards(self) -> list[range]:
        """The latents of each shard."""
        share = -(-self.count // SHARDS)
        return [range(first, min(self.count, first + share)) for first in range(0, self.count, share)]

    def place(self, index: int) -> tuple[int, int]:
        """(shard, number in it)."""
        return divmod(index, -(-self.count // SHARDS))


def as_fp32(data: Any, shape: tuple[int, ...]) -> Any:
    """Raw bf16 bytes as the tensor that the trainer wants."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bytes cannot be written to, and nobody will
        return torch.frombuffer(data, dtype=torch.bfloat16).view(shape).float()


# ---- what is written ---------------------------------------------------------------------------------------------


def write_safetensors(latents: LatentSet, folder: Path) -> None:
    from safetensors.torch import save_file

    for number, members in enumerate(latents.shards()):
        save_file({str(index): latents.tensor(index) for index in members}, folder / f"{number}.safetensors")


def write_lance(latents: LatentSet, folder: Path, blobs: bool) -> None:
    os.environ.setdefault("LANCE_LOG", "error")  # it warns of a set that is new
    import lance
    import pyarrow as pa

    for members in latents.shards():
        values = [latents.raw(index) for index in members]
        column = lance.blob_array(values) if blobs else pa.array(values, pa.large_binary())
        field = lance.blob_field("latent") if blobs else pa.field("latent", pa.large_binary())
        table = pa.table([pa.array(members, pa.int64()), column], schema=pa.schema([pa.field("index", pa.int64()), field]))
        lance.write_dataset(table, str(folder / "set.lance"), mode="append", data_storage_version="2.2")


def write_tars(latents: LatentSet, folder: Path) -> None:
    for number, members in enumerate(latents.shards()):
        with tarfile.open(folder / f"{number}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for index in members:
                entry = tarfile.TarInfo(f"{index:06d}.bf16")
                entry.size = latents.bytes
                tar.addfile(entry, io.BytesIO(latents.raw(index)))


# ---- how it is read ----------------------------------------------------------------------------------------------


def pread(latents: LatentSet, folder: Path) -> Reader:
    """The limit: positioned reads into one buffer."""
    files, starts = [], []
    for path in sorted(folder.glob("*.safetensors"), key=lambda path: int(path.stem)):
        files.append(open(path, "rb", buffering=0))  # noqa: SIM115 (open as long as the reader)
        length = int.from_bytes(os.pread(files[-1].fileno(), 8, 0), "little")
        header = json.loads(os.pread(files[-1].fileno(), length, 8))
        starts.append({name: 8 + length + facts["data_offsets"][0] for name, facts in header.items() if name != "__metadata__"})
    buffer = bytearray(latents.bytes)

    def read(indices: Sequence[int]) -> Iterator[Any]:
        for index in indices:
            shard, _ = latents.place(index)
            assert os.preadv(files[shard].fileno(), [buffer], starts[shard][str(index)]) == latents.bytes
            yield buffer

    return read


def pread_fp32(latents: LatentSet, folder: Path) -> Reader:
    limit = pread(latents, folder)
    return lambda indices: (as_fp32(data, latents.shape) for data in limit(indices))


def safetensors(latents: LatentSet, folder: Path) -> Reader:
    """As pipelines/latent_loader.py does."""
    from safetensors import safe_open

    files = [safe_open(folder / f"{number}.safetensors", framework="pt") for number in range(len(latents.shards()))]
    return lambda indices: (files[latents.place(index)[0]].get_tensor(str(index)).float() for index in indices)


def lance_take_blobs(latents: LatentSet, folder: Path) -> Reader:
    import lance

    dataset = lance.dataset(str(folder / "set.lance"))
    return lambda indices: (
        as_fp32(blob.readall(), latents.shape) for blob in dataset.take_blobs("latent", indices=list(indices), buffer_size=0)
    )


def lance_read_blobs(latents: LatentSet, folder: Path) -> Reader:
    """Its batched reader, eight latents a call: a micro-batch."""
    import lance

    dataset = lance.dataset(str(folder / "set.lance"))

    def read(indices: Sequence[int]) -> Iterator[Any]:
        for first in range(0, len(indices), 8):
            for _, data in dataset.read_blobs("latent", indices=list(indices[first : first + 8]), preserve_order=True):
                yield as_fp32(data, latents.shape)

    return read


def lance_column(latents: LatentSet, folder: Path) -> Reader:
    """A plain binary column, eight latents a call."""
    import lance

    dataset = lance.dataset(str(folder / "set.lance"))

    def read(indices: Sequence[int]) -> Iterator[Any]:
        for first in range(0, len(indices), 8):
            column = dataset.take(list(indices[first : first + 8]), columns=["latent"])["latent"]
            for value in column:
                yield as_fp32(value.as_buffer(), latents.shape)

    return read


def webdataset_pass(latents: LatentSet, folder: Path) -> Reader:
    """All shards from front to back, keeping what is wanted: there is no other way in it."""
    import webdataset

    shards = [str(folder / f"{number}.tar") for number in range(len(latents.shards()))]
    dataset = webdataset.WebDataset(shards, shardshuffle=False)

    def read(indices: Sequence[int]) -> Iterator[Any]:
        wanted = set(indices)
        for sample in dataset:
            if int(sample["__key__"]) in wanted:
                yield as_fp32(sample["bf16"], latents.shape)

    return read


def wids(latents: LatentSet, folder: Path) -> Reader:
    """webdataset's random access: the tars mapped, their headers read once."""
    from wids.wids import IndexedTarSamples

    tars = [IndexedTarSamples(path=str(folder / f"{number}.tar")) for number in range(len(latents.shards()))]

    def read(indices: Sequence[int]) -> Iterator[Any]:
        for index in indices:
            shard, place = latents.place(index)
            (data,) = (value for key, value in tars[shard][place].items() if key.endswith("bf16"))
            yield as_fp32(data.getbuffer(), latents.shape)

    return read


WRITERS: dict[str, Callable[[LatentSet, Path], None]] = {
    "safetensors": write_safetensors,
    "lance blobs": lambda latents, folder: write_lance(latents, folder, blobs=True),
    "lance column": lambda latents, folder: write_lance(latents, folder, blobs=False),
    "tar": write_tars,
}
OURS: dict[str, tuple[str, Callable[[LatentSet, Path], Reader]]] = {
    "pread (the limit)": ("safetensors", pread),
    "pread, to fp32": ("safetensors", pread_fp32),
    "safetensors": ("safetensors", safetensors),
    "Lance blobs, take_blobs": ("lance blobs", lance_take_blobs),
    "Lance blobs, read_blobs": ("lance blobs", lance_read_blobs),
    "Lance column, take": ("lance column", lance_column),
}
PEERS: dict[str, tuple[str, Callable[[LatentSet, Path], Reader]]] = {
    "webdataset, one pass": ("tar", webdataset_pass),
    "wids": ("tar", wids),
}


# ---- measuring ---------------------------------------------------------------------------------------------------


def files_of(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def drop_pages(folder: Path) -> None:
    """Takes the folder's files out of the page cache; they must be on the disk and mapped by nobody."""
    for path in files_of(folder):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def disk_bytes() -> int:
    """What the kernel has read from the disk for this process."""
    facts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(facts["read_bytes"])


def measured(name: str, latents: LatentSet, cold: bool, repeat: int) -> Reading:
    """One reading; the reader is opened anew, with its time apart."""
    kind, opening = {**OURS, **PEERS}[name]
    folder = latents.folder / kind
    picks = random.Random(repeat).sample(range(latents.count), WANTED)
    if cold:
        drop_pages(folder)
    begin = time.perf_counter()
    reader = opening(latents, folder)
    open_s = time.perf_counter() - begin
    if cold:
        drop_pages(folder)  # what opening has read ahead
    begin, cpu, disk = time.perf_counter(), time.process_time(), disk_bytes()
    count = sum(1 for _ in reader(picks))
    seconds, cpu_s, disk_mb = time.perf_counter() - begin, time.process_time() - cpu, (disk_bytes() - disk) / 1e6
    assert count == WANTED, f"{name} gave {count} of {WANTED}"
    return Reading(name, cold, open_s * 1e3, seconds, cpu_s, disk_mb, sum(path.stat().st_size for path in files_of(folder)) / 1e6)


def check(name: str, latents: LatentSet) -> None:
    """Every format gives back the latents that were written."""
    import torch

    kind, opening = {**OURS, **PEERS}[name]
    picks = [latents.count - 1, 3] if name != "webdataset, one pass" else [3, latents.count - 1]
    for index, value in zip(picks, opening(latents, latents.folder / kind)(picks), strict=True):
        if name != "pread (the limit)":
            assert torch.equal(value, latents.tensor(index).float()), f"{name}: latent {index} came back changed"


def readings(names: Sequence[str], latents: LatentSet, repeat: int) -> list[Reading]:
    """One reading a format, first cold, then of the same latents warm."""
    import torch

    torch.set_num_threads(1)
    if repeat == 0:
        for name in names:
            check(name, latents)
    return [measured(name, latents, cold, repeat) for cold in (True, False) for name in names]


def peer_readings(python: str | None, latents: LatentSet, repeat: int) -> list[Reading]:
    """The peers' rows, from their own interpreter."""
    if python is None:
        return []
    given = json.dumps({"folder": str(latents.folder), "shape": latents.shape, "count": latents.count, "repeat": repeat})
    done = subprocess.run([python, __file__, "--as-peer", given], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{python} cannot run webdataset: {done.stderr.strip().splitlines()[-1]}; install it with: {INSTALL}")
    return [Reading(**row) for row in json.loads(done.stdout.splitlines()[-1])]


def median(rows: Sequence[Reading]) -> Reading:
    """Of every number apart."""
    middle = {name: statistics.median(getattr(row, name) for row in rows) for name in NUMBERS}
    return Reading(rows[0].name, rows[0].cold, **middle)


def as_peer(given: str) -> None:
    """Inside the peers' interpreter: prints JSON."""
    facts = json.loads(given)
    latents = LatentSet(Path(facts["folder"]), tuple(facts["shape"]), facts["count"])
    print(json.dumps([asdict(row) for row in readings(list(PEERS), latents, facts["repeat"])]))


def compare(size: str, folder: Path, python: str | None, repeats: int) -> None:
    shape, count = SIZES[size]
    latents = LatentSet(folder, shape, count)
    for kind, write in WRITERS.items():
        (folder / kind).mkdir(parents=True)
        write(latents, folder / kind)
    os.sync()
    rows: dict[tuple[str, bool], list[Reading]] = {}
    for repeat in range(repeats):  # in turns, so that a slow minute of the machine is everybody's
        for row in readings(list(OURS), latents, repeat) + peer_readings(python, latents, repeat):
            rows.setdefault((row.name, row.cold), []).append(row)
    print(f"{count} latents of {latents.bytes / 1e6:.3g} MB in {SHARDS} files; {WANTED} read at random, median of {repeats}")
    table: list[tuple[object, ...]] = [
        ("cache", "format", "ms a latent", "MB/s", "CPU ms a latent", "from disk, MB", "open, ms", "files, MB")
    ]
    for row in sorted(map(median, rows.values()), key=lambda row: (not row.cold, row.seconds)):
        table.append(
            (
                "cold" if row.cold else "warm",
                row.name,
                row.seconds / WANTED * 1e3,
                f"{WANTED * latents.bytes / 1e6 / row.seconds:,.0f}",
                row.cpu_seconds / WANTED * 1e3,
                f"{row.disk_mb:.0f}",
                row.open_ms,
                f"{row.files_mb:.1f}",
            )
        )
    print_table(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="a disk to measure; 2 GB are written there and removed (default: the temporary folder)")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--webdataset-python", help="an interpreter with webdataset, wids and torch")
    parser.add_argument("--as-peer", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.as_peer:
        as_peer(options.as_peer)
        return
    for size in SIZES:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            compare(size, Path(folder), options.webdataset_python, options.repeats)
    if options.webdataset_python is None:
        print(f"webdataset: left out; it is not a dependency of this project. {INSTALL}, then --webdataset-python")


if __name__ == "__main__":
    main()
