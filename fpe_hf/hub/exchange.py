"""Exchanges with the Hub that are tried again where that may help, and fail in clear words."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from json import JSONDecodeError
from typing import TypeVar

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

from ..errors import HubError

logger = logging.getLogger("fpe_hf")

T = TypeVar("T")

ATTEMPTS = 4
_TRANSIENT = (408, 429, 500, 502, 503, 504)
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 60.0
_HIDDEN = "<token>"


def exchange(what: str, action: Callable[[], T], *, token: object = None, retry: bool = True) -> T:
    """Carries out an exchange with the Hub.

    Args:
        what: What it does, for messages: `"pushing to 'user/name'"`.
        action: The exchange. It must be safe to repeat unless `retry` is false.
        token: What must not appear in a message, if it is a text.
        retry: Try again when the Hub is busy, fails, or the connection breaks.

    Raises:
        HubError: The Hub refused, or could not be reached in `ATTEMPTS` attempts.
    """
    attempts = ATTEMPTS if retry else 1
    for attempt in range(1, attempts + 1):
        try:
            return action()
        except Exception as error:
            cause = _cause(error)
            if cause is None:
                raise
            message = _hide(f"{what} failed: {_explain(cause)}", token)
            if attempt == attempts or not _is_transient(cause):
                raise HubError(message) from error
            wait = _wait(cause, attempt)
            logger.warning("%s Trying again in %.0f s.", message, wait)
            time.sleep(wait)
    raise AssertionError("unreachable")


def _cause(error: BaseException) -> BaseException | None:
    """What the client says went wrong, from under what it was wrapped in."""
    kinds = (
        HfHubHTTPError,
        httpx.TransportError,
        OfflineModeIsEnabled,
        HFValidationError,
        JSONDecodeError,
    )
    return next((link for link in _chain(error) if isinstance(link, kinds)), None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _is_transient(cause: BaseException) -> bool:
    if isinstance(cause, HfHubHTTPError):
        return cause.response.status_code in _TRANSIENT
    return isinstance(cause, (httpx.TransportError, JSONDecodeError))


def _wait(cause: BaseException, attempt: int) -> float:
    """Seconds to wait: what the Hub asks for, else longer each time."""
    if isinstance(cause, HfHubHTTPError):
        asked = cause.response.headers.get("Retry-After", "")
        if asked.isdigit():
            return min(float(asked), _LONGEST_WAIT)
    return _FIRST_WAIT * 2.0 ** (attempt - 1)


def _explain(cause: BaseException) -> str:
    if isinstance(cause, OfflineModeIsEnabled):
        return "offline mode is on; unset HF_HUB_OFFLINE."
    if isinstance(cause, HFValidationError):
        return f"{cause}"
    if isinstance(cause, httpx.TransportError):
        return f"the connection broke ({type(cause).__name__}: {cause})."
    if isinstance(cause, JSONDecodeError):
        return "the Hub answered with something that is not JSON."
    assert isinstance(cause, HfHubHTTPError)
    status = cause.response.status_code
    said = cause.server_message or "no reason given"
    return f"the Hub answered {status} ({said}).{_advice(cause, status)}"


def _advice(cause: HfHubHTTPError, status: int) -> str:
    login = "`hf auth login`, the variable HF_TOKEN, or the argument `token`"
    if isinstance(cause, GatedRepoError):
        return f" Ask for access on its page, then give your token: {login}."
    if isinstance(cause, RevisionNotFoundError):
        return " There is no such branch, tag or commit."
    if isinstance(cause, RepositoryNotFoundError):
        return f" Check the name. A private repository needs a token that may read it: {login}."
    if status == 401:
        return f" Log in: {login}."
    if status == 403:
        return " The token must have the right to write there."
    if status == 412:
        return " Someone else has pushed meanwhile; push again."
    return ""


def _hide(text: str, token: object) -> str:
    return text.replace(token, _HIDDEN) if isinstance(token, str) and token else text
