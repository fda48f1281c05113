"""For tests of captions: tracks with painted key frames, requests, and a chat server that answers by a script."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from curation.captions.attributes import NEEDED
from curation.captions.caption import CaptionRequest
from curation.tracks import TrackFacts, TrackWriter

cv2.setNumThreads(1)  # as the executor sets it; idle threads spin

WIDTH, HEIGHT = 640, 360
RED, GREEN, BLUE, WHITE, BLACK = (200, 20, 20), (20, 180, 20), (20, 40, 200), (250, 250, 250), (0, 0, 0)


def painted(*stripes: tuple[int, int, int]) -> np.ndarray:
    """Upright stripes of equal width, uint8 H W 3 RGB."""
    return np.repeat(np.array(stripes, np.uint8)[None], HEIGHT, 0).repeat(WIDTH // len(stripes), 1)


def jpeg(picture: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def write_track(
    tracks: Path, source_id: str, clips: dict[str, list[np.ndarray]], bars_px: tuple[int, int, int, int] = (0, 0, 0, 0)
) -> None:
    """A track with these key frames per clip."""
    facts = TrackFacts(source_id, WIDTH, HEIGHT, WIDTH, HEIGHT, False, 0.2126, 0.0722, 41_667)
    with TrackWriter(tracks, facts) as writer:
        for clip_id, pictures in clips.items():
            writer.keys(
                {"clip_id": clip_id, "time_us": place * 100_000, "jpeg": jpeg(picture), "bars_px": list(bars_px), "hash": bytes(8)}
                for place, picture in enumerate(pictures)
            )


def request_of(clip_id: str, source_id: str = "s1", uri: str = "/v/s1.mp4", **facts: Any) -> CaptionRequest:
    known = {"media_type": "video", "duration_s": 1.0, "width": 1920, "height": 1080}
    return CaptionRequest(clip_id, source_id, uri, 0, 1_000_000, dict.fromkeys(NEEDED) | known | facts)


@dataclass
class Answer:
    """What the server says to one request."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    trickle_s: float = 0.0
    """Pause after each byte of the body."""


def said(content: Any, finish: str | None = "stop", **message: Any) -> Answer:
    """A chat completion."""
    choice = {"message": {"role": "assistant", "content": content, **message}, "finish_reason": finish}
    return Answer(200, json.dumps({"choices": [choice]}).encode())


@dataclass
class Chat:
    """A running server's address and what it was asked."""

    url: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    most_at_once: int = 0


@contextmanager
def chat_server(answer: Callable[[int, dict[str, Any]], Answer]) -> Iterator[Chat]:
    """A server whose answer to the i-th chat request with that body is `answer(i, body)`; GET answers 200."""
    lock, at_once = threading.Lock(), 0

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(answer(-1, {}))

        def do_POST(self) -> None:
            nonlocal at_once
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(chat.requests)
                chat.requests.append(body)
                chat.headers.append(dict(self.headers))
                at_once += 1
                chat.most_at_once = max(chat.most_at_once, at_once)
            try:
                self._send(answer(number, body))
            finally:
                with lock:
                    at_once -= 1

        def _send(self, said: Answer) -> None:
            try:
                self.send_response(said.status)
                for name, value in {**said.headers, "Content-Length": str(len(said.body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                for place in range(len(said.body)) if said.trickle_s else ():
                    self.wfile.write(said.body[place : place + 1])
                    time.sleep(said.trickle_s)
                if not said.trickle_s:
                    self.wfile.write(said.body)
            except (BrokenPipeError, ConnectionResetError):
                pass  # the client has given up, as some tests want

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    chat = Chat(f"http://127.0.0.1:{server.server_address[1]}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield chat
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
