"""Files behind an address (s3://, gs://, https:// and what else fsspec knows): listed there, read from a cached copy here. Light.

A video is read several times and out of order, so it is downloaded whole, once per machine, and every reader opens the
copy. Credentials come from the usual places only (AWS_* and ~/.aws, Google's application default, ~/.netrc); an address
that carries one is refused, and what a server says is printed without them. s3 and gs go through pyarrow's own clients
(in every installation, AWS's and Google's SDKs), https through fsspec's, other protocols through fsspec's packages.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import posixpath
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from curation.sources import SourceError, SourceFile, is_remote, suffix_of
from curation.whole_files import write_text

ATTEMPTS = 3
"""Downloads of one file before it is given up, waiting 1 s and 2 s between."""
ASKERS = 16
"""Files of a list whose size and time are asked for at once."""
FREE_SHARE = 0.05
"""Of the disk, kept free: older copies go first."""
IN_USE_S = 600.0
"""A copy that was opened this recently is not thrown away."""
_SECRETS = re.compile(r"signature|token|secret|password|credential|^sig$|^key$|api_?key|access_?key", re.IGNORECASE)
_HTTP = ("http", "https")


class RemoteError(OSError):
    """A remote file that cannot be read; the message is one clear line."""


@dataclass(frozen=True)
class Copy:
    """A remote file's bytes on this machine."""

    path: Path
    bytes: int
    modified_ns: int
    sha256: str


def check_address(uri: str) -> None:
    """Raises SourceError for an address that carries a credential; its text is not repeated."""
    parts = urlsplit(uri)
    if "@" in parts.netloc:
        raise SourceError(f"an address of {parts.scheme}://…@{parts.hostname} carries a user or password; put it into ~/.netrc")
    named = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True) if _SECRETS.search(name)]
    if parts.scheme in _HTTP and named:
        raise SourceError(
            f"an address of {parts.scheme}://{parts.hostname} carries a credential ({named[0]}=…), which tables and logs would keep; "
            "name the object itself (s3://, gs://) or download it"
        )


def list_remote(address: str) -> list[tuple[SourceFile, bool]]:
    """(file, named directly) for an address of a file, a folder (https: ending in /) or a pattern. Raises SourceError."""
    check_address(address)
    with _as_source_error(address):
        files, inner = _filesystem(address)
        if _has_magic(address):
            matches = _matches(files, inner)
            if not matches:
                raise SourceError(f"source pattern {address} matches no file")
            return [(_source_file(files, address, info), False) for info in matches]
        folder = inner.endswith("/") if _scheme(address) in _HTTP else files.info(inner)["type"] == "directory"
        if not folder:
            return [(_source_file(files, address, files.info(inner)), True)]
        below = [info for info in _under(files, inner.rstrip("/")) if not _hidden(info["name"], inner)]
        return [(_source_file(files, address, info), False) for info in below]


def list_each(addresses: Sequence[str]) -> list[SourceFile]:
    """The files at these addresses, in their order, several asked for at once. Raises SourceError at the first that is absent."""

    def one(address: str) -> SourceFile:
        check_address(address)
        with _as_source_error(address):
            files, inner = _filesystem(address)
            return _source_file(files, address, files.info(inner))

    with ThreadPoolExecutor(ASKERS) as askers:
        return list(askers.map(one, addresses))


def local_path(uri: str) -> Path:
    """Where the file's bytes lie here: the path itself, or the copy of a remote file (made if absent). Raises RemoteError."""
    return fetch(uri).path if is_remote(uri) else Path(uri)


def fetch(uri: str, version: tuple[int, int] | None = None, verify: bool = False) -> Copy:
    """The copy of a remote file. Raises RemoteError.

    `version` (bytes, modified_ns) is what the listing said: an older copy is replaced, and a file that has changed since
    is an error. Without it a copy that exists is taken as it is and nobody is asked. `verify` reads it once more
    against its hash.
    """
    path = cache_folder() / (hashlib.sha256(uri.encode()).hexdigest()[:32] + suffix_of(uri))
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f".{path.name}.lock"), "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        copy = _kept(path)
        if copy is not None and version in (None, (copy.bytes, copy.modified_ns)) and (not verify or _sha256(path) == copy.sha256):
            os.utime(path)
            return copy
        return _download(uri, path, version)


def cache_folder() -> Path:
    """Where copies lie: $FLASHVIDEO_CACHE, else flashvideo/ in the user's cache folder. Of the machine, not of the run."""
    named = os.environ.get("FLASHVIDEO_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flashvideo" / "remote"


# ---- copies ------------------------------------------------------------------------------------------------------


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _kept(path: Path) -> Copy | None:
    """The copy, when it and its record are whole."""
    try:
        record = json.loads(_record(path).read_text())
        size = path.stat().st_size
    except (OSError, ValueError):
        return None
    return Copy(path, size, record["modified_ns"], record["sha256"]) if size == record["bytes"] else None


def _download(uri: str, path: Path, version: tuple[int, int] | None) -> Copy:
    part = path.with_name(f".{path.name}.part")
    for attempt in range(1, ATTEMPTS + 1):
        try:
            copy = _attempt(uri, path, part, version)
            break
        except RemoteError:
            raise
        except SourceError as error:
            raise RemoteError(str(error)) from None
        except Exception as error:
            if attempt == ATTEMPTS or isinstance(error, FileNotFoundError | PermissionError):
                raise RemoteError(f"{uri} cannot be read ({attempt} attempts): {_said(error)}") from None
            time.sleep(2.0 ** (attempt - 1))
        finally:
            part.unlink(missing_ok=True)
    return copy


def _attempt(uri: str, path: Path, part: Path, version: tuple[int, int] | None) -> Copy:
    files, inner = _filesystem(uri)
    found = _source_file(files, uri, files.info(inner))
    if version not in (None, (found.bytes, found.modified_ns)):
        raise RemoteError(f"{uri} has changed since it was listed ({(version or (0, 0))[0]} bytes then, {found.bytes} now); run again")
    _make_room(path.parent, found.bytes)
    files.get_file(inner, str(part))
    arrived = part.stat().st_size
    if arrived != found.bytes:
        raise OSError(f"{arrived} of {found.bytes} bytes arrived")
    copy = Copy(path, found.bytes, found.modified_ns, _sha256(part))
    _record(path).unlink(missing_ok=True)
    os.replace(part, path)
    facts = {"uri": uri, "bytes": copy.bytes, "modified_ns": copy.modified_ns, "sha256": copy.sha256}
    write_text(_record(path), json.dumps(facts))
    return copy


def _make_room(folder: Path, wanted: int) -> None:
    """Throws away the copies that were opened longest ago, until the file fits. Raises RemoteError when it cannot."""
    disk = shutil.disk_usage(folder)
    short = wanted + int(FREE_SHARE * disk.total) - disk.free
    if short <= 0:
        return
    copies = sorted((path.stat().st_mtime, path) for path in folder.iterdir() if path.suffix != ".json" and not path.name.startswith("."))
    for opened, path in copies:
        if short <= 0 or time.time() - opened < IN_USE_S:
            break
        short -= path.stat().st_size
        _record(path).unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    if short > 0:
        raise RemoteError(
            f"{folder} has {disk.free / 1e9:.1f} GB free; a file of {wanted / 1e9:.1f} GB must fit and {FREE_SHARE:.0%} of the disk "
            "stay free: set FLASHVIDEO_CACHE to a folder on a larger disk"
        )


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- servers -----------------------------------------------------------------------------------------------------


def _scheme(uri: str) -> str:
    return uri.split("://", 1)[0].lower()


def _filesystem(uri: str) -> tuple[Any, str]:
    """(fsspec's file system, the path in it). Raises SourceError for a protocol or package that is absent."""
    import fsspec

    scheme = _scheme(uri)
    if scheme in ("s3", "gs", "gcs"):
        return _object_store(scheme, uri)
    try:
        # trust_env: proxies and ~/.netrc, as other tools read them
        options = {"client_kwargs": {"trust_env": True}} if scheme in _HTTP else {}
        files = fsspec.filesystem(scheme, **options)
    except ImportError as error:
        extra = "; install fsspec[http]" if scheme in _HTTP else ""
        raise SourceError(f"{scheme}:// needs a package that is not installed{extra}: {_said(error)}") from None
    except ValueError:
        raise SourceError(f"{scheme}:// is no protocol that is known; use a path, s3://, gs:// or https://") from None
    return files, files._strip_protocol(uri)


def _object_store(scheme: str, uri: str) -> tuple[Any, str]:
    from fsspec.implementations.arrow import ArrowFSWrapper
    from pyarrow import fs

    kind = "S3FileSystem" if scheme == "s3" else "GcsFileSystem"
    if not hasattr(fs, kind):
        raise SourceError(f"{scheme}:// needs a pyarrow that was built with {kind}; install pyarrow's own wheel")
    inner = uri.split("://", 1)[1]
    if scheme == "s3":
        # AWS's own names for an S3 that is not Amazon's (MinIO, Ceph, a test server); pyarrow takes it as an argument only.
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        bucket = inner.split("/", 1)[0]
        store = fs.S3FileSystem(endpoint_override=endpoint) if endpoint else fs.FileSystem.from_uri(f"s3://{bucket}")[0]
        return ArrowFSWrapper(store), inner
    return ArrowFSWrapper(fs.GcsFileSystem()), inner


def _has_magic(address: str) -> bool:
    return any(mark in address for mark in ("*" if _scheme(address) in _HTTP else "*?["))


def _matches(files: Any, pattern: str) -> list[dict[str, Any]]:
    from fsspec.utils import glob_translate

    root = re.split(r"[*?\[]" if "://" not in pattern else r"\*", pattern, maxsplit=1)[0].rpartition("/")[0]
    wanted = re.compile(glob_translate(pattern))
    return [info for info in _under(files, root) if wanted.match(info["name"])]


def _under(files: Any, folder: str) -> list[dict[str, Any]]:
    """Every file below a folder, sorted. fsspec's own walk leaves out what it may not read; here that is an error."""
    found = files.find(folder, detail=True, on_error="raise")
    if not found:
        files.info(folder)  # says whether it is absent or only empty
    missing = [name for name, info in found.items() if info.get("size") is None]
    facts = {name: {**info, **(files.info(name) if name in missing else {}), "name": name} for name, info in found.items()}
    return [facts[name] for name in sorted(facts) if facts[name]["type"] == "file"]


def _hidden(name: str, folder: str) -> bool:
    return any(part.startswith(".") for part in posixpath.relpath(name, folder.rstrip("/")).split("/"))


def _source_file(files: Any, address: str, info: dict[str, Any]) -> SourceFile:
    uri = info["name"] if "://" in info["name"] else f"{_scheme(address)}://{info['name']}"
    if info.get("size") is None:
        raise SourceError(f"{uri}: the server does not say how long the file is; download it and name the copy")
    return SourceFile(uri, int(info["size"]), _modified_ns(info))


def _modified_ns(info: dict[str, Any]) -> int:
    """The time of change; where a server names only a version (ETag), a number of that. 0: it says neither."""
    for name in ("mtime", "LastModified", "last_modified", "Last-Modified", "created"):
        value = info.get(name)
        if isinstance(value, str):
            value = parsedate_to_datetime(value)
        if isinstance(value, datetime):
            return int(value.timestamp() * 1_000_000) * 1000
    version = info.get("ETag") or info.get("etag")
    return int.from_bytes(hashlib.sha256(str(version).encode()).digest()[:7], "big") if version else 0


@contextmanager
def _as_source_error(address: str) -> Iterator[None]:
    """Whatever a server or its client raises, as one line."""
    try:
        yield
    except SourceError:
        raise
    except FileNotFoundError:
        raise SourceError(f"source {address} does not exist") from None
    except Exception as error:
        raise SourceError(f"source {address} cannot be listed: {_said(error)}") from None


def _said(error: BaseException) -> str:
    """The first line of an error, at most 300 characters, without the values of credentials in the environment."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    for name, value in os.environ.items():
        if len(value) >= 6 and re.search(r"SECRET|TOKEN|PASSWORD|ACCESS_KEY|API_KEY", name):
            text = text.replace(value, "***")
    return text if len(text) <= 300 else text[:299] + "…"
