"""Backend `http`: any OpenAI-compatible server (vLLM, SGLang, Ollama, a cloud). Key frames go as JPEG data URLs.

Requests run side by side up to `max_in_flight`; 429, 5xx, timeouts and broken connections are tried again with
growing, jittered pauses (Retry-After is obeyed); a malformed answer is tried again too; other refusals are final.
Answers are cached on disk by clip, model, prompt and frames, so a relaunch asks for nothing twice. The key comes from
FLASHVIDEO_CAPTION_API_KEY.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from curation.captions.caption import Caption, CaptionRequest
from curation.captions.prompt import prompt_hash
from curation.config import CaptionConfig
from curation.step import Lineage, StepError
from curation.tracks import read_clip_track

KEY_VARIABLE = "FLASHVIDEO_CAPTION_API_KEY"
MAX_TOKENS = 400
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0


class _RetryError(Exception):
    def __init__(self, code: str, message: str, pause_s: float | None = None) -> None:
        super().__init__(message)
        self.code, self.pause_s = code, pause_s


class HttpCaptioner:
    """Describes clips by a vision-language model behind HTTP."""

    def __init__(self, config: CaptionConfig, tracks: Path, cache: Path, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Raises StepError when base_url or model is not set. `sleep` is replaced in tests."""
        if not config.base_url or not config.model:
            raise StepError(
                "not_configured", "caption.backend=http wants caption.base_url (e.g. http://127.0.0.1:8000/v1) and caption.model"
            )
        self._config, self._tracks, self._cache, self._sleep = config, tracks, cache, sleep
        self.lineage = http_lineage(config)

    def __call__(self, requests: list[CaptionRequest]) -> list[Caption | StepError]:
        return asyncio.run(self._all(requests))

    async def _all(self, requests: list[CaptionRequest]) -> list[Caption | StepError]:
        import httpx

        key = os.environ.get(KEY_VARIABLE)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx.Limits(max_connections=self._config.max_in_flight)
        gate = asyncio.Semaphore(self._config.max_in_flight)
        async with httpx.AsyncClient(headers=headers, limits=limits, timeout=self._config.timeout_s) as client:

            async def one(request: CaptionRequest) -> Caption | StepError:
                async with gate:  # also bounds how many clips' frames are in memory
                    return await self._describe(client, request)

            return list(await asyncio.gather(*(one(request) for request in requests)))

    async def _describe(self, client: Any, request: CaptionRequest) -> Caption | StepError:
        track = read_clip_track(self._tracks, request.source_id, request.clip_id, request.start_us, request.end_us, read="keys")
        body = self._body([frame.jpeg for frame in track.keys])
        place = self._cache / f"{_cache_key(request.clip_id, body)}.json"
        if place.is_file():
            return Caption(**json.loads(place.read_text()))
        try:
            caption = await self._ask_until_answered(client, body)
        except _RetryError as error:
            return StepError(error.code, f"{self._config.base_url}: {error} ({self._config.attempts} attempts)")
        except StepError as error:
            return error
        _write(place, json.dumps(vars(caption)))
        return caption

    async def _ask_until_answered(self, client: Any, body: dict[str, Any]) -> Caption:
        pause = FIRST_PAUSE_S
        for attempt in range(1, self._config.attempts + 1):
            try:
                return await self._ask(client, body)
            except _RetryError as error:
                if attempt == self._config.attempts:
                    raise
                jittered = random.uniform(pause / 2, pause * 1.5)  # clients that failed together must not return together
                await self._sleep(min(LONGEST_PAUSE_S, error.pause_s if error.pause_s is not None else jittered))
                pause *= 2
        raise AssertionError("attempts is at least 1")

    async def _ask(self, client: Any, body: dict[str, Any]) -> Caption:
        import httpx

        try:
            response = await client.post(f"{str(self._config.base_url).rstrip('/')}/chat/completions", json=body)
        except httpx.TimeoutException:
            raise _RetryError("caption_timeout", f"no answer in {self._config.timeout_s:g} s (caption.timeout_s)") from None
        except httpx.TransportError as error:
            raise _RetryError("caption_unreachable", f"{type(error).__name__}: {error}") from None
        if response.status_code == 429 or response.status_code >= 500:
            raise _RetryError("caption_busy", f"status {response.status_code}", _retry_after(response.headers.get("retry-after")))
        if response.status_code != 200:
            raise StepError("caption_refused", f"{self._config.base_url}: status {response.status_code}: {response.text[:200]}")
        try:
            choice = response.json()["choices"][0]
            text = str(choice["message"]["content"]).strip()
            finish = "length" if choice.get("finish_reason") == "length" else "stop"
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise _RetryError(
                "caption_malformed", f"answer is no chat completion ({type(error).__name__}): {response.text[:200]}"
            ) from None
        if not text:
            raise _RetryError("caption_malformed", "answer holds no text")
        return Caption(text, str(self._config.model), prompt_hash(self._config.prompt), finish)

    def _body(self, jpegs: list[bytes]) -> dict[str, Any]:
        pictures = [
            {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"}} for jpeg in jpegs
        ]
        content = [*pictures, {"type": "text", "text": self._config.prompt}]
        return {"model": self._config.model, "messages": [{"role": "user", "content": content}], "max_tokens": MAX_TOKENS, "temperature": 0}


def http_lineage(config: CaptionConfig) -> Lineage:
    """What made the captions: the model's name and the prompt; the server's address does not count."""
    return Lineage("caption", "http", "1", str(config.model), parameters={"prompt": config.prompt, "max_tokens": MAX_TOKENS})


def _cache_key(clip_id: str, body: dict[str, Any]) -> str:
    return hashlib.sha256((clip_id + json.dumps(body, sort_keys=True)).encode()).hexdigest()[:32]


def _retry_after(value: str | None) -> float | None:
    try:
        return None if value is None else max(0.0, float(value))
    except ValueError:  # a date: our own pauses are fine
        return None


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    beside.write_text(text)
    os.replace(beside, path)
