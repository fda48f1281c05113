"""A question's rows as a file (json, csv, parquet, lance), and its clips as files or as WebDataset shards. Light: no torch.

Clips are cut one by one in a child process (`curation.cut`) and kept as they are made: the same export again goes on where
it stopped. What could not be cut is listed with its reason, and what had to be encoded says so, beside every clip.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from curation.expression import QueryError, kind_of
from curation.sources import IMAGE_SUFFIXES, is_remote, suffix_of
from curation.whole_files import write_text, writing

if TYPE_CHECKING:
    from curation.cut import CutTask
    from curation.query import Query

ROW_FORMATS = {".json": "json", ".csv": "csv", ".parquet": "parquet", ".lance": "lance"}
"""File name's suffix -> format."""
CLIP_FORMATS = ("clips", "webdataset")
SHARD_CLIPS = 100
"""Clips of a WebDataset shard: some 0.5 GB of copied 1080p."""
VERSION = 1
"""Bumped when equal clips are written in another way."""
CUT_COLUMNS = ("clip_id", "uri", "media_type", "start_us", "end_us", "caption")
CLAIM = "export.json"
Say = Callable[[int, int | None, str], None]
"""Told of progress: done, in all (None: not known), of what."""


@dataclass
class Exported:
    """What an export made; its text is the line to print."""

    path: Path
    format: str
    rows: int = 0
    methods: Counter[str] = field(default_factory=Counter)
    """Clips by how they were cut: copied, encoded, file."""
    why_encoded: Counter[str] = field(default_factory=Counter)
    failed: list[dict[str, str]] = field(default_factory=list)
    """clip_id, code and message of the clips that are absent."""
    bytes: int = 0
    kept: int = 0
    """Clips that an earlier export had made."""
    shards: int = 0

    def __str__(self) -> str:
        if self.format not in CLIP_FORMATS:
            return f"{self.rows} rows: {self.path}"
        how = ", ".join(f"{count} {method}" for method, count in sorted(self.methods.items()))
        parts = [f"{sum(self.methods.values())} of {self.rows} clips" + (f" ({how})" if how else "")]
        parts += [f"in {self.shards} shards"] if self.format == "webdataset" else []
        parts += [f"{self.bytes / 1e6:.1f} MB"] + ([f"{self.kept} were there already"] if self.kept else [])
        lines = [f"{', '.join(parts)}: {self.path}"]
        lines += [f"encoded {count}: {why}" for why, count in self.why_encoded.most_common(3)]
        if self.failed:
            first = self.failed[0]
            lines.append(f"{len(self.failed)} failed, first {first['clip_id']}: {first['code']}: {first['message']} ({self.path / CLAIM})")
        return "\n".join(lines)


def format_of(path: Path | str, format: str | None) -> str:
    """The format that is asked for, or that the file name's suffix says. Raises QueryError."""
    known = (*ROW_FORMATS.values(), *CLIP_FORMATS)
    if format is not None:
        if format not in known:
            raise QueryError(f"no format {format!r} for files; formats: {', '.join(known)}")
        return format
    found = ROW_FORMATS.get(suffix_of(str(path)))
    if found is None:
        raise QueryError(f"cannot tell the format of {path}: end it in {', '.join(ROW_FORMATS)}, or add --format clips or webdataset")
    return found


def export(query: Query, path: Path | str, format: str | None = None, cut: str = "copy", say: Say | None = None) -> Exported:
    """Writes the rows or the clips of a question. Raises QueryError.

    Files are replaced whole; a folder must be new, empty, or hold an earlier part of the same export. Without chosen
    columns json, csv and clips leave the vectors out.
    """
    wanted, target = format_of(path, format), Path(path)
    say = say or (lambda done, total, what: None)
    if cut not in ("copy", "encode"):
        raise QueryError(f"cut is {cut!r}; copy (packets from the key frame on) or encode")
    question = query.words
    if query.chosen is None and wanted not in ("parquet", "lance"):
        query = query.columns(*(field.name for field in query.schema if kind_of(field.type) != "vector"))
    if wanted not in CLIP_FORMATS:
        return Exported(target, wanted, rows=_write_rows(query, target, wanted, say))
    if query.table != "clips":
        raise QueryError(f"format {wanted} cuts clips; the table is {query.table}")
    return _export_clips(query, question, target, wanted, cut, say)


# ---- rows --------------------------------------------------------------------------------------------------------


def _write_rows(query: Query, path: Path, format: str, say: Say) -> int:
    _check_file(path, format)
    counted = _Counted(query.batches(), say)
    with writing(path) as part:
        {"json": _write_json, "csv": _write_csv, "parquet": _write_parquet, "lance": _write_lance}[format](counted, part)
    return counted.rows


def _check_file(path: Path, format: str) -> None:
    folder = path.resolve().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK) or (path.is_dir() and format != "lance"):
        raise QueryError(f"cannot write {path}: {folder} is no folder that can be written to, or the name is a folder's")
    if path.exists() and format == "lance":
        raise QueryError(f"{path} exists; remove it or name another")


class _Counted:
    """The batches of an answer as they are read, counted."""

    def __init__(self, batches: pa.RecordBatchReader, say: Say) -> None:
        self.schema, self.rows = batches.schema, 0
        self._batches, self._say = batches, say

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        for batch in self._batches:
            yield batch
            self.rows += batch.num_rows
            self._say(self.rows, None, "rows")


def _write_json(batches: _Counted, path: Path) -> None:
    """One array, a line a row."""
    from curation.query import plain_rows

    with open(path, "w", encoding="utf-8") as file:
        mark = "[\n"
        for batch in batches:
            for row in plain_rows(pa.Table.from_batches([batch])):
                file.write(mark + json.dumps(row, ensure_ascii=False))
                mark = ",\n"
        file.write("[]\n" if mark == "[\n" else "\n]\n")


def _write_csv(batches: _Counted, path: Path) -> None:
    from curation.query import csv_cells, plain_rows

    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(batches.schema.names)
        for batch in batches:
            writer.writerows(csv_cells(row) for row in plain_rows(pa.Table.from_batches([batch])))


def _write_parquet(batches: _Counted, path: Path) -> None:
    from pyarrow import parquet

    with parquet.ParquetWriter(path, batches.schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def _write_lance(batches: _Counted, path: Path) -> None:
    from curation.store import lance

    lance().write_dataset(pa.RecordBatchReader.from_batches(batches.schema, iter(batches)), str(path), schema=batches.schema)


# ---- clips -------------------------------------------------------------------------------------------------------


def _export_clips(query: Query, question: str, folder: Path, format: str, cut: str, say: Say) -> Exported:
    claim = {"export": VERSION, "format": format, "cut": cut, "question": question, "shard_clips": SHARD_CLIPS}
    _claim(folder, claim)
    chosen = query.chosen or ()
    table = query.columns(*dict.fromkeys([*CUT_COLUMNS, *chosen])).to_arrow()
    made = Exported(folder, format, rows=table.num_rows)
    cutter = _Cutter(cut)
    try:
        (_write_shards if format == "webdataset" else _write_clips)(table, folder, cutter, made, say)
    finally:
        cutter.close()
    finished = {**claim, "clips": made.rows, "cut_by": dict(made.methods), "bytes": made.bytes, "failed": made.failed, "finished": True}
    write_text(folder / CLAIM, json.dumps(finished, indent=1, ensure_ascii=False))
    return made


def _claim(folder: Path, claim: dict[str, Any]) -> None:
    """Makes the folder ours. Raises QueryError where it is somebody else's, or another export's."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        present = [entry.name for entry in folder.iterdir()]
    except OSError as error:
        raise QueryError(f"cannot write to {folder}: {error.strerror}") from None
    if CLAIM in present:
        before = json.loads((folder / CLAIM).read_text())
        other = [name for name, value in claim.items() if before.get(name) != value]
        if other:
            raise QueryError(
                f"{folder} holds another export ({other[0]}: {before.get(other[0])}, now {claim[other[0]]}); name an empty folder"
            )
        return
    if present:
        raise QueryError(f"{folder} is not empty and holds no export of ours ({present[0]}, ...); name an empty folder")
    write_text(folder / CLAIM, json.dumps(claim, indent=1, ensure_ascii=False))


def _write_clips(table: pa.Table, folder: Path, cutter: _Cutter, made: Exported, say: Say) -> None:
    """`<film>_<start in ms>_<clip id>.mp4` and .json a clip; the .json is written last and says that it is whole."""
    for number, row in enumerate(_rows(table)):
        name = f"{_slug(row['uri'])}_{(row['start_us'] or 0) // 1000:08d}_{_key(row['clip_id'])}"
        facts_file = _inside(folder, f"{name}.json")
        facts = _read_facts(facts_file, cutter.digest(row))
        made.kept += facts is not None
        if facts is None:
            facts = cutter.cut(row, _inside(folder, name + _media_suffix(row)))
            if "cut" in facts:
                write_text(facts_file, json.dumps(facts, indent=1, ensure_ascii=False))
        _note(made, facts)
        say(number + 1, table.num_rows, "clips")


def _write_shards(table: pa.Table, folder: Path, cutter: _Cutter, made: Exported, say: Say) -> None:
    """`shard-000000.tar` of `<clip id>.mp4`, .json and .txt (the caption); its .index.json is written last."""
    made.shards = -(-table.num_rows // SHARD_CLIPS)
    for number in range(made.shards):
        rows = list(_rows(table.slice(number * SHARD_CLIPS, SHARD_CLIPS)))
        shard, index = (_inside(folder, f"shard-{number:06d}.{suffix}") for suffix in ("tar", "index.json"))
        digest = hashlib.sha256("".join(map(cutter.digest, rows)).encode()).hexdigest()
        facts = _read_facts(index, digest) if shard.is_file() else None
        if facts is not None:
            made.kept += sum("cut" in clip for clip in facts["clips"])
        else:
            index.unlink(missing_ok=True)
            done = number * SHARD_CLIPS
            clips = _write_shard(rows, shard, cutter, lambda count, done=done: say(done + count, table.num_rows, "clips"))  # type: ignore[misc]
            facts = {"digest": digest, "clips": clips}
            write_text(index, json.dumps(facts, ensure_ascii=False))
        for clip in facts["clips"]:
            _note(made, clip)
        say(min((number + 1) * SHARD_CLIPS, table.num_rows), table.num_rows, "clips")
    for index in sorted(folder.glob("shard-*.index.json")):  # the question has fewer clips than it had
        if int(index.name[6:12]) >= made.shards:
            index.with_name(index.name[:12] + ".tar").unlink(missing_ok=True)
            index.unlink()


def _write_shard(rows: Sequence[dict[str, Any]], shard: Path, cutter: _Cutter, done: Callable[[int], None]) -> list[dict[str, Any]]:
    """Cuts the clips and packs them; the facts of each. Equal clips make equal bytes."""
    facts = []
    with writing(shard) as part, tarfile.open(part, "w", format=tarfile.PAX_FORMAT) as tar:
        for count, row in enumerate(rows):
            key = _key(row["clip_id"])
            media = shard.with_name(f".{key}{_media_suffix(row)}")
            found = cutter.cut(row, media)
            if "cut" in found:
                with open(media, "rb") as file:
                    tar.addfile(_member(key + media.suffix, media.stat().st_size), file)
                texts = {".json": json.dumps(found, ensure_ascii=False)} | ({".txt": row["caption"]} if row["caption"] else {})
                for suffix, text in texts.items():
                    data = text.encode()
                    tar.addfile(_member(key + suffix, len(data)), io.BytesIO(data))
            media.unlink(missing_ok=True)
            facts.append({name: value for name, value in found.items() if name in ("clip_id", "cut", "failed")})
            done(count + 1)
    return facts


def _member(name: str, size: int) -> tarfile.TarInfo:
    """A file of mode 644, without owner or time."""
    member = tarfile.TarInfo(name)
    member.size = size
    return member


class _Cutter:
    """Cuts clips in a child process with the decode pass's deadline and memory cap."""

    def __init__(self, mode: str) -> None:
        from curation.config import DecodeConfig
        from curation.supervised import SupervisedFunction

        limits = DecodeConfig()
        self._mode = mode
        self._run = SupervisedFunction("curation.cut:cut_clip", limits.deadline_s, limits.memory_bytes)

    def digest(self, row: dict[str, Any]) -> str:
        """Names what the clip's export holds."""
        return hashlib.sha256(json.dumps([VERSION, self._mode, row], sort_keys=True).encode()).hexdigest()

    def cut(self, row: dict[str, Any], path: Path) -> dict[str, Any]:
        """The row with `cut` (how), or with `failed` (code, message)."""
        from curation.supervised import Failure

        result = self._fetch_and_cut(row, path)
        facts: dict[str, Any] = {**row, "digest": self.digest(row)}
        if isinstance(result, Failure):
            return facts | {"failed": {"code": result.code, "message": result.message}}
        return facts | {"file": path.name.lstrip("."), "cut": asdict(result)}

    def _fetch_and_cut(self, row: dict[str, Any], path: Path) -> Any:
        from curation.cut import CutTask
        from curation.supervised import Failure

        uri = row["uri"]
        if is_remote(uri):
            from curation.remote import RemoteError, fetch

            try:
                uri = str(fetch(uri).path)
            except RemoteError as error:
                return Failure("unreachable", str(error), 1, 0.0)
        task: CutTask = CutTask(uri, row["media_type"], row["start_us"], row["end_us"], path.resolve(), self._mode)
        return self._run(task)

    def close(self) -> None:
        self._run.close()


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    from curation.query import plain_rows

    for batch in table.to_batches(max_chunksize=1000):
        yield from plain_rows(pa.Table.from_batches([batch]))


def _note(made: Exported, facts: dict[str, Any]) -> None:
    if "failed" in facts:
        made.failed.append({"clip_id": facts["clip_id"], **facts["failed"]})
        return
    cut = facts["cut"]
    made.methods[cut["method"]] += 1
    made.bytes += cut["bytes"]
    if cut["why_encoded"]:
        made.why_encoded[cut["why_encoded"]] += 1


def _read_facts(path: Path, digest: str) -> dict[str, Any] | None:
    """What an earlier export kept of the same rows."""
    try:
        facts: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return facts if facts.get("digest") == digest else None


# ---- names -------------------------------------------------------------------------------------------------------


def _inside(folder: Path, name: str) -> Path:
    """The file of that name in the folder; our names hold no separator and no dots but their suffix's."""
    path = folder / name
    assert path.parent == folder and not name.startswith("."), name
    return path


def _slug(uri: str) -> str:
    """A film's name as letters, digits, _ and -."""
    stem = uri.rsplit("/", 1)[-1].rsplit(".", 1)[0]
    return re.sub(r"[^A-Za-z0-9_-]+", "_", stem).strip("_-")[:60] or "clip"


def _key(clip_id: str) -> str:
    """The clip's id; its hash, should it hold what a file name may not."""
    return clip_id if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", clip_id) else hashlib.sha256(clip_id.encode()).hexdigest()[:32]


def _media_suffix(row: dict[str, Any]) -> str:
    if row["media_type"] != "image":
        return ".mp4"
    suffix = suffix_of(row["uri"])
    return suffix if suffix in IMAGE_SUFFIXES else ".image"
