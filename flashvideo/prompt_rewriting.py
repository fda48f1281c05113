"""Short prompt -> long one, through any server that speaks OpenAI's chat protocol.

Both stages were trained on long captions only (100 words and more), so short prompts are out of their range.
Source: CogVideoX and FlashVideo rewrite prompts with a language model before sampling (the released README's advice).
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from flashvideo.config import PromptRewriteConfig

INSTRUCTION = (
    "You write captions for a text-to-video model that was trained on long, literal descriptions of six-second clips. Rewrite the "
    "user's prompt as one such caption of 80 to 150 words: the subject and its looks, what it does from beginning to end, the place, "
    "the light, the camera and its movement. Keep everything that the user states, add only what fits, mention no text, music or "
    "feelings, and answer with the caption alone, in English, in one paragraph."
)


class PromptRewriteError(RuntimeError):
    """The server cannot be reached or gave no caption; the message names the server."""


class PromptRewriter:
    """Calls the server for each prompt. Prompts that are long enough stay as they are."""

    def __init__(self, config: PromptRewriteConfig) -> None:
        """The key comes from the environment variable that the config names. Raises PromptRewriteError when that is empty."""
        self.config = config
        self.name = f"{config.model} at {config.base_url}"
        key = os.environ.get(config.key_variable, "") if config.key_variable is not None else None
        if key == "":
            raise PromptRewriteError(f"the environment variable {config.key_variable} is not set; {config.base_url} needs its key there")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    def __call__(self, prompts: Sequence[str]) -> list[str]:
        """The prompts, short ones rewritten, in the same order. Raises PromptRewriteError."""
        return [prompt if len(prompt.split()) >= self.config.long_enough_words else self._rewrite(prompt) for prompt in prompts]

    def _rewrite(self, prompt: str) -> str:
        import httpx

        body = {
            "model": self.config.model,
            "messages": [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": prompt}],
            "temperature": 0.0,
            "seed": self.config.seed,
            "max_tokens": self.config.max_tokens,
        }
        url = self.config.base_url.rstrip("/") + "/chat/completions"
        try:
            answer = httpx.post(url, json=body, headers=self._headers, timeout=self.config.timeout_s)
            answer.raise_for_status()
            text = answer.json()["choices"][0]["message"]["content"]
        except httpx.HTTPStatusError as error:
            raise PromptRewriteError(f"{url} answered {error.response.status_code}: {error.response.text[:200]}") from None
        except httpx.HTTPError as error:
            raise PromptRewriteError(f"{url} cannot be reached: {error}") from None
        except (KeyError, IndexError, TypeError, ValueError):
            raise PromptRewriteError(f"{url} gave no chat completion: {answer.text[:200]}") from None
        caption = " ".join(str(text or "").split())
        if not caption:
            raise PromptRewriteError(f"{url} gave an empty caption for the prompt {prompt[:60]!r}")
        return caption
