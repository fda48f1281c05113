"""Local servers for tests of remote sources: the reading half of S3's REST protocol (ListObjectsV2, HeadObject, GetObject), and HTTP.

The clients are the real ones (AWS's SDK inside pyarrow, aiohttp inside fsspec). moto is not in the lock, so the server's
half of the protocol is ours; signatures are demanded but not recomputed.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from hashlib import md5
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


@dataclass
class Bucket:
    """Objects by key, and what was asked."""

    objects: dict[str, tuple[bytes, float]] = field(default_factory=dict)
    """Key -> bytes, time of change in s since 1970."""
    reads: list[str] = field(default_factory=list)
    """Keys of every GetObject, in order."""
    cut_short: int = 0
    """So many GetObjects end in the middle of the body."""
    forbidden: bool = False


@contextmanager
def s3_server() -> Iterator[tuple[str, dict[str, Bucket]]]:
    """(endpoint URL, buckets by name) while it runs."""
    buckets: dict[str, Bucket] = {}
    with _serving(functools.partial(_S3Handler, buckets)) as url:
        yield url, buckets


@contextmanager
def http_server(folder: Path) -> Iterator[str]:
    """URL of a plain file server over a folder, with index pages."""
    with _serving(functools.partial(_FileHandler, directory=str(folder))) as url:
        yield url


@contextmanager
def _serving(handler: Any) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _FileHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


class _S3Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, buckets: dict[str, Bucket], *arguments: Any) -> None:
        self._buckets = buckets
        super().__init__(*arguments)

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        address = urlsplit(self.path)
        name, _, key = unquote(address.path).lstrip("/").partition("/")
        bucket = self._buckets.get(name)
        if bucket is None:
            return self._error(404, "NoSuchBucket")
        if bucket.forbidden or not self.headers.get("Authorization", "").startswith("AWS4-HMAC-SHA256 Credential="):
            return self._error(403, "AccessDenied")
        query = {name: values[0] for name, values in parse_qs(address.query, keep_blank_values=True).items()}
        if not key:
            return self._send(200, _listing(name, bucket, query) if "list-type" in query else b"", {"Content-Type": "application/xml"})
        if key not in bucket.objects:
            return self._error(404, "NoSuchKey")
        return self._object(bucket, key)

    def _object(self, bucket: Bucket, key: str) -> None:
        data, modified = bucket.objects[key]
        headers = {"ETag": f'"{md5(data).hexdigest()}"', "Last-Modified": formatdate(modified, usegmt=True), "Content-Type": "video/mp4"}
        wanted, status = self.headers.get("Range"), 200
        if self.command == "GET":
            bucket.reads.append(key)
            if wanted:
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                end = min(int(last or len(data)), len(data) - 1)
                headers["Content-Range"], status = f"bytes {first}-{end}/{len(data)}", 206
                data = data[int(first) : end + 1]
        self._send(status, data, headers, cut=self.command == "GET" and bucket.cut_short > 0)
        if self.command == "GET" and bucket.cut_short:
            bucket.cut_short -= 1

    def _error(self, status: int, code: str) -> None:
        self._send(status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode(), {"Content-Type": "application/xml"})

    def _send(self, status: int, body: bytes, headers: dict[str, str], cut: bool = False) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.close_connection = True


def _listing(name: str, bucket: Bucket, query: dict[str, str]) -> bytes:
    """ListObjectsV2 in pages of two, so that the client has to follow."""
    prefix, delimiter, start = query.get("prefix", ""), query.get("delimiter", ""), query.get("continuation-token", "")
    entries: dict[str, str] = {}
    for key, (data, modified) in sorted(bucket.objects.items()):
        if not key.startswith(prefix):
            continue
        below = key[len(prefix) :]
        if delimiter and delimiter in below:
            folder = prefix + below.split(delimiter)[0] + delimiter
            entries[folder] = f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>"
            continue
        time = _iso(modified)
        entries[key] = f"<Contents><Key>{escape(key)}</Key><LastModified>{time}</LastModified><Size>{len(data)}</Size></Contents>"
    left = [entry for entry in sorted(entries) if entry > start] if start else sorted(entries)
    page, more = left[:2], len(left) > 2
    token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
    return (
        '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>{name}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(page)}</KeyCount><MaxKeys>2</MaxKeys>"
        f"<IsTruncated>{'true' if more else 'false'}</IsTruncated>{token}{''.join(entries[entry] for entry in page)}</ListBucketResult>"
    ).encode()


def _iso(seconds: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
