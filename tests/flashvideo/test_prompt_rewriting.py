"""Prompt rewriting against a server of our own on this machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from flashvideo.config import PromptRewriteConfig
from flashvideo.prompt_rewriting import PromptRewriteError, PromptRewriter


class Server(ThreadingHTTPServer):
    """Answers every request with `answer`; keeps what was asked."""

    daemon_threads = True
    asked: list[tuple[str, str | None, dict[str, Any]]]
    answer: tuple[int, str]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, self.headers["Authorization"], body))
        status, text = self.server.answer
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


def completion(text: str) -> str:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), Handler)
    server.asked, server.answer = [], (200, completion(" A red fox\n walks through deep snow. "))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def config_of(server: Server, **settings: Any) -> PromptRewriteConfig:
    return PromptRewriteConfig(base_url=f"http://127.0.0.1:{server.server_port}/v1", model="small", **settings)


def test_short_prompts_are_rewritten_and_long_ones_kept(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUR_KEY", "secret")
    long = "word " * 60
    rewriter = PromptRewriter(config_of(server, key_variable="OUR_KEY"))
    assert rewriter(["a fox", long]) == ["A red fox walks through deep snow.", long]
    [(path, key, body)] = server.asked
    assert path == "/v1/chat/completions" and key == "Bearer secret"
    assert body["model"] == "small" and body["temperature"] == 0 and body["messages"][-1] == {"role": "user", "content": "a fox"}
    assert "secret" not in rewriter.name and "secret" not in config_of(server, key_variable="OUR_KEY").model_dump_json()


def test_a_server_without_a_key_gets_none(server: Server) -> None:
    PromptRewriter(config_of(server, key_variable=None))(["a fox"])
    assert server.asked[0][1] is None


def test_a_missing_key_is_said_before_anything_is_asked(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OUR_KEY", raising=False)
    with pytest.raises(PromptRewriteError, match="environment variable OUR_KEY is not set"):
        PromptRewriter(config_of(server, key_variable="OUR_KEY"))
    assert server.asked == []


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((500, "out of memory"), "answered 500: out of memory"),
        ((200, "<html>"), "gave no chat completion: <html>"),
        ((200, "{}"), "gave no chat completion"),
        ((200, completion("  ")), "empty caption for the prompt 'a fox'"),
    ],
)
def test_a_bad_answer_is_an_error_with_the_server(answer: tuple[int, str], message: str, server: Server) -> None:
    server.answer = answer
    with pytest.raises(PromptRewriteError, match=message):
        PromptRewriter(config_of(server, key_variable=None))(["a fox"])


def test_an_absent_server_is_an_error_with_its_address() -> None:
    config = PromptRewriteConfig(base_url="http://127.0.0.1:9/v1", model="small", key_variable=None, timeout_s=2)
    with pytest.raises(PromptRewriteError, match=r"127\.0\.0\.1:9/v1/chat/completions cannot be reached"):
        PromptRewriter(config)(["a fox"])
