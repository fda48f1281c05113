"""Backend `http`: any OpenAI-compatible server (vLLM, SGLang, Ollama, a cloud). Key frames go as JPEG data URLs.

Requests run side by side up to `max_in_flight`; 429, 5xx, timeouts, broken connections and malformed answers are
tried again with growing, jittered pauses (Retry-After is obeyed); every other 4xx is final. Answers are cached on
disk by clip, model, prompt and frames, so a relaunch asks for nothing twice but what was refused. The key comes from
FLASHVIDEO_CAPTION_API_KEY, goes into a header, and is taken out of every message.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx

from curation.captions.caption import Caption, CaptionRequest, CaptionSetupError
from curation.captions.checks import is_refusal
from curation.captions.frames import read_key_frames
from curation.captions.responses import ResponseCache
from curation.config import CaptionConfig
from curation.step import StepError

VERSION = "1"
KEY_VARIABLE = "FLASHVIDEO_CAPTION_API_KEY"
MAX_TOKENS = 400
FIRST_PAUSE_S, LONGEST_PAUSE_S, LONGEST_RETRY_AFTER_S = 0.5, 30.0, 600.0
RETRIED = frozenset([408, 409, 425, 429])
"""Beside every 5xx."""
STOPPED = frozenset(["stop", "eos_token", "end_turn", "stop_sequence"])
"""finish_reason of a whole answer, in the servers' dialects."""
EXCERPT = 200
CHECK_TIMEOUT_S = 10.0


class _RetryError(Exception):
    def __init__(self, code: str, message: str, pause_s: float | None = None) -> None:
        super().__init__(message)
        self.code, self.pause_s = code, pause_s


def server_url(config: CaptionConfig) -> str:
    """The server's address without a slash at its end. Raises CaptionSetupError when address or model is not set."""
    if not config.model:
        raise CaptionSetupError("caption.backend=http wants caption.model, the model's name at the server")
    if not (config.base_url or "").startswith(("http://", "https://")):
        raise CaptionSetupError(f"caption.backend=http wants caption.base_url, e.g. http://127.0.0.1:8000/v1; it is {config.base_url!r}")
    return str(config.base_url).rstrip("/")


def check_server(config: CaptionConfig) -> None:
    """Asks for the list of models. Raises CaptionSetupError when nothing answers there or the key is not accepted."""
    url = f"{server_url(config)}/models"
    try:
        status = httpx.get(url, headers=_headers(), timeout=CHECK_TIMEOUT_S).status_code
    except (httpx.RequestError, httpx.InvalidURL) as error:
        raise CaptionSetupError(f"no caption server answers at {url} ({type(error).__name__}); start it, or set caption.base_url") from None
    if status in (401, 403):
        given = f"the key in {KEY_VARIABLE}" if os.environ.get(KEY_VARIABLE) else f"a request without a key ({KEY_VARIABLE} is not set)"
        raise CaptionSetupError(f"{url} does not accept {given} (status {status})")


def _headers() -> dict[str, str]:
    key = os.environ.get(KEY_VARIABLE)
    return {"Authorization": f"Bearer {key}"} if key else {}


class HttpCaptioner:
    """Describes clips by a vision-language model behind HTTP.

    StepError: caption_busy, caption_server_error, caption_timeout, caption_unreachable, caption_malformed (after
    `attempts` requests); caption_rejected (at once); no_track, no_key_frames.
    """

    def __init__(self, config: CaptionConfig, tracks: Path, cache: Path, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Raises CaptionSetupError when base_url or model is not set. `sleep` is replaced in tests."""
        self._url = server_url(config)
        self._config, self._tracks, self._cache, self._sleep = config, tracks, ResponseCache(cache), sleep

    def __call__(self, requests: list[CaptionRequest]) -> list[Caption | StepError]:
        return asyncio.run(self._all(requests))

    async def _all(self, requests: list[CaptionRequest]) -> list[Caption | StepError]:
        gate = asyncio.Semaphore(self._config.max_in_flight)
        unlimited = httpx.Limits(max_connections=None)  # the gate is the limit; httpx would queue all above 100 out of the deadline's sight
        async with httpx.AsyncClient(headers=_headers(), limits=unlimited, timeout=None) as client:

            async def one(request: CaptionRequest) -> Caption | StepError:
                async with gate:  # also bounds how many clips' frames are in memory
                    return await self._describe(client, request)

            return list(await asyncio.gather(*(one(request) for request in requests)))

    async def _describe(self, client: httpx.AsyncClient, request: CaptionRequest) -> Caption | StepError:
        try:
            body = self._body([key.jpeg for key in read_key_frames(self._tracks, request).keys])
            question = json.dumps(body, sort_keys=True)
            caption = self._cache.get(request.clip_id, question)
            if caption is None:
                caption = await self._ask_until_answered(client, body, random.Random(request.clip_id))
                if not is_refusal(caption):  # asked again, it may be answered
                    self._cache.put(request.clip_id, question, caption)
            return caption
        except StepError as error:
            return error

    async def _ask_until_answered(self, client: httpx.AsyncClient, body: dict[str, Any], jitter: random.Random) -> Caption:
        """`jitter`: seeded by the clip; clips that failed together must not return together."""
        pause, attempts = FIRST_PAUSE_S, self._config.attempts
        for attempt in range(1, attempts + 1):
            try:
                return await self._ask(client, body)
            except _RetryError as error:
                if attempt == attempts:
                    raise self._final(error.code, f"{error} ({attempts} attempts, caption.attempts)") from None
                asked = min(LONGEST_RETRY_AFTER_S, error.pause_s or 0.0)
                await self._sleep(max(asked, min(LONGEST_PAUSE_S, jitter.uniform(pause / 2, pause * 1.5))))
                pause *= 2
            except StepError as error:
                raise self._final(error.code, str(error)) from None
        raise AssertionError("attempts is at least 1")

    def _final(self, code: str, message: str) -> StepError:
        """The clip's error, without the key: a server may repeat it."""
        key = os.environ.get(KEY_VARIABLE)
        return StepError(code, f"{self._config.model} at {self._url}: {message.replace(key, '***') if key else message}")

    async def _ask(self, client: httpx.AsyncClient, body: dict[str, Any]) -> Caption:
        try:
            async with asyncio.timeout(self._config.timeout_s):  # httpx's own limits are per packet: a trickle would never end
                response = await client.post(f"{self._url}/chat/completions", json=body)
        except TimeoutError:
            raise _RetryError("caption_timeout", f"no answer in {self._config.timeout_s:g} s (caption.timeout_s)") from None
        except httpx.RequestError as error:
            raise _RetryError("caption_unreachable", f"{type(error).__name__} {error}".rstrip()) from None
        return parse_answer(response)

    def _body(self, jpegs: list[bytes]) -> dict[str, Any]:
        pictures = [
            {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"}} for jpeg in jpegs
        ]
        content = [*pictures, {"type": "text", "text": self._config.prompt}]
        return {"model": self._config.model, "messages": [{"role": "user", "content": content}], "max_tokens": MAX_TOKENS, "temperature": 0}


def parse_answer(response: httpx.Response) -> Caption:
    """The caption of a server's answer. Raises _RetryError for what may pass, StepError `caption_rejected` for what will not."""
    status, excerpt = response.status_code, " ".join(response.text[:EXCERPT].split())
    if status in RETRIED or status >= 500:
        code = "caption_busy" if status == 429 else "caption_server_error"
        raise _RetryError(code, f"status {status}: {excerpt}", _retry_after_s(response.headers.get("retry-after", "")))
    if status != 200:
        raise StepError("caption_rejected", f"status {status}: {excerpt}")
    try:
        choice = response.json()["choices"][0]
        message, finish = choice["message"], choice["finish_reason"]
        refusal = message.get("refusal")
        text = str(refusal) if refusal else _text_of(message["content"]).strip()
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise _RetryError("caption_malformed", f"answer is no chat completion ({type(error).__name__}: {error}): {excerpt}") from None
    if finish == "content_filter":
        return Caption(text or "(content filter)", refused=True)
    if finish != "length" and finish not in STOPPED:
        raise _RetryError(
            "caption_malformed", f"finish_reason is {finish!r}; known are length, content_filter, {', '.join(sorted(STOPPED))}"
        )
    if not text:
        raise _RetryError("caption_malformed", f"answer holds no text: {excerpt}")
    return Caption(text, "length" if finish == "length" else "stop", refused=bool(refusal))


def _text_of(content: Any) -> str:
    """Text of a message: a string, a list of parts, or null (nothing said). Raises TypeError for anything else."""
    if isinstance(content, list):
        return " ".join(str(part["text"]) for part in content if part["type"] == "text")
    if content is not None and not isinstance(content, str):
        raise TypeError(f"content is {type(content).__name__}")
    return content or ""


def _retry_after_s(value: str) -> float | None:
    """Seconds that the server asks to wait, given as a number or a date. None where it says nothing readable."""
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
