"""The page's server. Loopback unless told otherwise; what a browser sends names clips by id and nothing by path.

Guards, in this order: the Host header must be an address or a name of this machine (another site's name that was made to
point here is refused); beyond loopback everything needs the access key, from the address that was printed or from its cookie;
every write needs the token of this sitting, which only a page of this server can read.
"""

from __future__ import annotations

import html
import ipaddress
import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Awaitable, Callable
from importlib import resources
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse
from pydantic import BaseModel

from curation.expression import QueryError
from curation.review.labels import ReviewError
from curation.review.previews import PreviewError
from curation.review.session import Session, UnknownClipError

PAGES = ("/", "/browse", "/summary")
ASSETS = {"review.css": "text/css; charset=utf-8", "review.js": "text/javascript; charset=utf-8"}
COOKIE = "review_key"
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
GOODBYE_S = 2
"""Open transfers get so long when the server ends."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Judgement(BaseModel, extra="forbid"):
    """Keep (1), drop (0) or skip (null)."""

    clip_id: str
    value: float | None


class Comparison(BaseModel, extra="forbid"):
    """Left is better (1), right is (0), a tie (0.5), skip (null)."""

    left: str
    right: str
    value: float | None


class Access:
    """Who may ask: by Host header, by access key beyond loopback, by token for writes."""

    def __init__(self, host: str) -> None:
        self.token = secrets.token_urlsafe(24)
        self.key = None if is_loopback(host) else secrets.token_urlsafe(24)
        """None: only this machine reaches the port."""
        self._names = LOOPBACK_NAMES | ({host.lower(), socket.gethostname().lower(), socket.getfqdn().lower()} if self.key else set())

    def refusal(self, request: Request) -> Response | None:
        """The answer to a request that may not come in."""
        if not self.knows_host(request.headers.get("host", "")):
            return JSONResponse({"error": "this server is not known under that host name; use the address that it printed"}, 421)
        if self.key is not None and not _same(request.cookies.get(COOKIE), self.key):
            if request.method == "GET" and request.url.path == "/" and _same(request.query_params.get("key"), self.key):
                welcome = RedirectResponse("/", 303)
                welcome.set_cookie(COOKIE, self.key, httponly=True, samesite="lax")  # strict would not survive a link in a chat
                return welcome
            return JSONResponse({"error": "this server wants its access key: open the address that it printed, with ?key=..."}, 403)
        if request.method not in ("GET", "HEAD") and not _same(request.headers.get("x-review-token"), self.token):
            return JSONResponse({"error": "a write needs the token of this sitting; reload the page"}, 403)
        return None

    def knows_host(self, header: str) -> bool:
        """A name of this machine. Beyond loopback also any address: it cannot be made to point elsewhere, as a name can."""
        name = host_of(header)
        if name in self._names:
            return True
        return self.key is not None and _is_address(name)


def host_of(header: str) -> str:
    """The name in a Host header, without port and brackets."""
    if header.startswith("["):
        return header[1:].split("]")[0].lower()
    return header.rsplit(":", 1)[0].lower() if header.count(":") == 1 else header.lower()


def is_loopback(host: str) -> bool:
    """True for an address that only this machine reaches."""
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _same(given: str | None, wanted: str) -> bool:
    return given is not None and secrets.compare_digest(given.encode(), wanted.encode())


def make_app(session: Session, access: Access) -> FastAPI:
    """The application: pages, assets, what the page asks, what it writes."""
    app = FastAPI(title="flashvideo review", docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        answer = access.refusal(request) or await call_next(request)
        for name, value in HEADERS.items():
            answer.headers[name] = value
        answer.headers.setdefault("Cache-Control", "no-store")
        return answer

    for error, status in ((QueryError, 400), (ReviewError, 400), (UnknownClipError, 404)):
        app.add_exception_handler(error, _answer_of(status))
    app.add_exception_handler(PreviewError, _unplayable)
    _add_pages(app, access)
    _add_reads(app, session)
    _add_writes(app, session)
    return app


def _answer_of(status: int) -> Callable[[Request, Exception], Response]:
    return lambda request, error: JSONResponse({"error": str(error)}, status)


def _unplayable(request: Request, error: Exception) -> Response:
    assert isinstance(error, PreviewError)
    return JSONResponse({"error": str(error), "code": error.code}, 422)


def _add_pages(app: FastAPI, access: Access) -> None:
    folder = resources.files("curation.review")
    page = folder.joinpath("page.html").read_text("utf-8").replace("{{token}}", html.escape(access.token))
    assets = {name: folder.joinpath(name).read_bytes() for name in ASSETS}

    def show() -> HTMLResponse:
        return HTMLResponse(page)

    for path in PAGES:
        app.get(path)(show)

    @app.get("/assets/{name}")
    def asset(name: str) -> Response:
        if name not in assets:
            return JSONResponse({"error": "no such asset"}, 404)
        return Response(assets[name], media_type=ASSETS[name])


def _add_reads(app: FastAPI, session: Session) -> None:
    """Plain functions: the framework runs them in threads, so a clip that is being cut keeps nobody else waiting."""

    @app.get("/api/facts")
    def facts() -> dict[str, Any]:
        return session.facts()

    @app.get("/api/state")
    def state() -> dict[str, Any]:
        return session.state()

    @app.get("/api/browse")
    def browse(
        where: Annotated[str, Query(max_length=4000)] = "",
        order: Annotated[str, Query(max_length=400)] = "",
        labelled: str = "any",
        offset: int = 0,
        limit: int = 60,
    ) -> dict[str, Any]:
        return session.browse(where, order, labelled, offset, limit)

    @app.get("/api/summary")
    def summary() -> dict[str, Any]:
        return session.summary()

    @app.get("/api/clip/{clip_id}")
    def clip(clip_id: str) -> dict[str, str | None]:
        """How its file was made; null while it is not. At once: a browser has six connections, and labels need one."""
        preview = session.made(clip_id)
        return {"how": preview.how if preview is not None else None}

    @app.get("/clip/{clip_id}")
    def play(clip_id: str) -> Response:
        """The clip's file; ranges are answered with what was asked for."""
        preview = session.preview(clip_id)
        return FileResponse(preview.path, media_type=preview.media_type, headers={"Cache-Control": "private, max-age=86400"})

    @app.get("/thumb/{clip_id}")
    def thumb(clip_id: str) -> Response:
        path = session.thumb(clip_id)
        if path is None:
            return JSONResponse({"error": "no thumbnail"}, 404)
        return FileResponse(path, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=86400"})


def _add_writes(app: FastAPI, session: Session) -> None:
    @app.post("/api/judge")
    def judge(given: Judgement) -> dict[str, Any]:
        if given.value not in (0.0, 1.0, None):
            raise ReviewError(f"value is {given.value}; 1 keeps, 0 drops, null skips")
        session.judge(given.clip_id, given.value)
        return session.state()

    @app.post("/api/compare")
    def compare(given: Comparison) -> dict[str, Any]:
        if given.value not in (0.0, 0.5, 1.0, None) or given.left == given.right:
            raise ReviewError("value is 1 (left is better), 0 (right is), 0.5 (a tie) or null (skip), for two different clips")
        session.compare(given.left, given.right, given.value)
        return session.state()

    @app.post("/api/undo")
    def undo() -> dict[str, Any]:
        return {"undone": session.undo()} | session.state()


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises ReviewError."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        code = getattr(error, "errno", None)
        why = os.strerror(code) if isinstance(code, int) and code > 0 else error
        raise ReviewError(f"cannot listen on {host} port {port}: {why}; give another --host or --port") from None


def serve(session: Session, access: Access, listening: socket.socket, ready: Callable[[], None]) -> None:
    """Serves until Ctrl-C, SIGTERM or SIGHUP; then ends transfers, and the session with every label in the store."""
    config = uvicorn.Config(make_app(session, access), log_level=logging.WARNING, timeout_graceful_shutdown=GOODBYE_S, server_header=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="server")
    ended = threading.Event()
    before = {number: signal.signal(number, lambda *_: ended.set()) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        thread.start()
        ready()
        while thread.is_alive() and not ended.wait(0.2):
            pass
    finally:
        server.should_exit = True
        thread.join()
        session.close()
        for number, handler in before.items():
            signal.signal(number, handler)


def address_of(host: str, port: int, access: Access) -> str:
    """What to open: for `0.0.0.0` and `::` this machine's name."""
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}/" + (f"?key={access.key}" if access.key else "")
