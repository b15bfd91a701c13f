"""A client for one purpose: a prompt to any endpoint that speaks OpenAI's chat completions, and its answer."""

from __future__ import annotations

import asyncio
import email.utils
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from qwen_retrieval.errors import EndpointError, needs_extra

with needs_extra("httpx2", "synthesize"):
    import httpx2
with needs_extra("tenacity", "synthesize"):
    import tenacity

Message = dict[str, str]
"""With the keys "role" and "content"."""

ATTEMPTS = 8
"""How often one request is sent while the endpoint is busy or fails: for about two minutes, unless it names a time."""

FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
"""Seconds that the first and the later waits have at most; they are drawn at random below that (full jitter)."""

LONGEST_RETRY_AFTER = 900.0
"""An endpoint that wants to be left alone for more seconds, as for the rest of a day's quota, ends the run."""

_PASSING = {408, 409, 425, 429, *range(500, 600)} - {501, 505}
_BODY = 500  # characters of an answer that an error quotes


class RefusedError(EndpointError):
    """The endpoint refuses this one request (400, 413 or 422), for instance because the document is too long."""


class _Passing(Exception):
    """The same request may succeed later."""

    def __init__(self, reason: str, retry_after: float = 0.0) -> None:
        self.retry_after = retry_after
        super().__init__(reason)


@dataclass(slots=True)
class Usage:
    """What a client has used.

    Attributes:
        requests: Sent, repetitions included.
        retries: Those that repeated one before, because the endpoint was busy or failed.
        prompt_tokens: As far as the endpoint reports them.
        completion_tokens: As far as the endpoint reports them.
    """

    requests: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass
class Chat:
    """A model behind ``POST {url}/chat/completions``. To be used in one event loop, within ``async with``.

    The key is asked for with each request, kept nowhere, and taken out of whatever an error quotes.

    Args:
        url: Up to and with the version, as in "http://localhost:8000/v1".
        model: What the endpoint calls it.
        key: Returns the API key: `environment_key`, or the method of any framework's secret, such as
            ``SecretStr.get_secret_value``; None if the endpoint needs none.
        options: More fields of each request, such as ``{"temperature": 0.7}``.
        timeout: Seconds that an answer may take.
        sleep: Called with the seconds to wait before trying again.

    Attributes:
        usage: What was sent so far.

    Raises:
        ValueError: The URL is none of http or https, or contains a password.
    """

    url: str
    model: str
    key: Callable[[], str] | None = field(default=None, repr=False)
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    timeout: float = 300.0
    sleep: Callable[[float], Awaitable[None]] = field(default=asyncio.sleep, repr=False)
    usage: Usage = field(default_factory=Usage, init=False)
    _client: httpx2.AsyncClient = field(init=False, repr=False)

    def __post_init__(self) -> None:
        url = httpx2.URL(self.url)
        if url.scheme not in ("http", "https") or not url.host:
            raise ValueError('url must look like "http://localhost:8000/v1"')
        if url.userinfo or url.query:
            raise ValueError("url must contain no password and no parameters; give the key as an API key")
        if taken := {"model", "messages", "stream"} & set(self.options):
            raise ValueError(f"options must not contain {', '.join(sorted(taken))}")
        unlimited = httpx2.Limits(max_connections=None)  # the caller bounds how many requests are open
        self._client = httpx2.AsyncClient(timeout=self.timeout, limits=unlimited)

    async def __aenter__(self) -> Chat:
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.__aexit__(kind, error, trace)

    async def ask(self, messages: list[Message]) -> str:
        """The model's answer to a conversation.

        Busy endpoints (429, or any with Retry-After), failing ones (5xx) and lost connections are tried again, after
        the time that Retry-After names or a random one that grows.

        Returns:
            The text of the first choice; "" if there is none, as of a model that used up its tokens for thinking.

        Raises:
            RefusedError: It refuses this request.
            EndpointError: It refuses every request, as for a wrong key, does not speak chat completions, or was busy
                or failing for all of `ATTEMPTS`.
        """
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(_Passing),
            stop=tenacity.stop_after_attempt(ATTEMPTS),
            wait=_wait,
            sleep=self._count_and_sleep,
            reraise=True,
        )
        try:
            return await retrying(self._ask_once, messages)
        except _Passing as reason:
            raise EndpointError(f"{self.url} did not answer, tried {ATTEMPTS} times; the last time: {reason}") from None

    async def _count_and_sleep(self, seconds: float) -> None:
        self.usage.retries += 1
        await self.sleep(seconds)

    async def _ask_once(self, messages: list[Message]) -> str:
        key = self.key() if self.key else ""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        body = {**self.options, "model": self.model, "messages": messages}
        self.usage.requests += 1
        try:
            response = await self._client.post(f"{self.url.rstrip('/')}/chat/completions", json=body, headers=headers)
        except httpx2.TransportError as error:
            raise _Passing(f"{type(error).__name__} {error}".strip()) from None
        if response.status_code != 200:
            raise _error_of(response, key)
        return self._content(response, key)

    def _content(self, response: httpx2.Response, key: str) -> str:
        try:
            value = response.json()
            content = value["choices"][0]["message"]["content"]
            usage = value.get("usage") or {}
        except (ValueError, LookupError, TypeError, AttributeError):
            raise EndpointError(f"{self.url} gives no chat completion, but: {_quoted(response, key)}") from None
        self.usage.prompt_tokens += usage.get("prompt_tokens") or 0
        self.usage.completion_tokens += usage.get("completion_tokens") or 0
        return content if isinstance(content, str) else ""


def environment_key(name: str) -> Callable[[], str]:
    """A `key` for `Chat` that is read from an environment variable; "", and so no key, if that is not set."""
    return lambda: os.environ.get(name, "")


def _error_of(response: httpx2.Response, key: str) -> Exception:
    """What an answer other than 200 means."""
    status = response.status_code
    reason = f"{status} {response.reason_phrase}: {_quoted(response, key)}"
    if status in _PASSING:
        seconds = _retry_after(response.headers)
        if seconds <= LONGEST_RETRY_AFTER:
            return _Passing(reason, seconds)
        return EndpointError(
            f"the endpoint wants to be left alone for {seconds:,.0f} seconds; run again then ({reason})"
        )
    if status in (400, 413, 422):
        return RefusedError(f"refused with {reason}")
    return EndpointError(f"the endpoint refuses: {reason}")


def _quoted(response: httpx2.Response, key: str) -> str:
    text = " ".join(response.text.split())
    text = text.replace(key, "***") if key else text
    return text[:_BODY] or "(empty)"


def _retry_after(headers: httpx2.Headers) -> float:
    """Seconds, from either form of Retry-After (RFC 9110, section 10.2.3); 0 without it or if it cannot be read."""
    value = headers.get("retry-after", "")
    if value.strip().isdecimal():
        return float(value)
    until = _timestamp(value)
    # Against the endpoint's own clock where it says what time it has.
    return max(0.0, until - (_timestamp(headers.get("date", "")) or time.time())) if until else 0.0


def _timestamp(date: str) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(date).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None


def _wait(state: tenacity.RetryCallState) -> float:
    """Never less than the endpoint asks for."""
    backoff = tenacity.wait_random_exponential(multiplier=FIRST_WAIT, max=LONGEST_WAIT)(state)
    error = state.outcome.exception() if state.outcome else None
    return backoff + (error.retry_after if isinstance(error, _Passing) else 0.0)
