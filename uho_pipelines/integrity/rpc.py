"""Asking a Solana RPC node: JSON-RPC 2.0 in batches, slowly enough, again where it can help, and never for too long.

What belongs here: the transport. The node is not ours: its answers are hostile, and its URL is often a credential, so
nothing but scheme and host is ever said of it, and no error of the HTTP library, which would quote the URL, gets out.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import requests
from tenacity import RetryCallState, RetryError, Retrying, retry_if_exception_type, stop_after_attempt

ANSWER_BYTES = 64 * 1024 * 1024
"""An HTTP answer may have so many bytes; a full block of mainnet has about five million."""

BATCH_CALLS = 10
"""So many calls share a request."""

ATTEMPTS = 4
"""A call that can help to be made again is made so many times in all."""

LONGEST_PAUSE = 30.0
"""Seconds between two attempts at most, whatever `Retry-After` says."""

PIECE_BYTES = 64 * 1024

PASSING_STATUSES = {408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524}
"""HTTP statuses that may be others a moment later."""

PASSING_CODES = {-32_005, -32_429, -32_603, -32_016, -32_014}
"""JSON-RPC errors of nodes that may be gone a moment later: behind, too many requests, internal error, minimum context
slot not reached, status not yet available."""


@dataclass(frozen=True)
class Call:
    """A method and its parameters."""

    method: str
    parameters: tuple[Any, ...] = ()


@dataclass(frozen=True)
class NotServed:
    """There is no answer of the node, and why."""

    reason: str


class _AgainError(Exception):
    """Another attempt may help; `after`: seconds that the node asked to wait."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        self.reason = reason
        self.after = after
        super().__init__(reason)


class _RefusedError(Exception):
    """No other attempt helps."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


@dataclass
class RpcClient:
    """A node at `url`; `calls_per_second` and `seconds` (in all, from now on) bound what is asked of it."""

    url: str
    calls_per_second: float
    timeout_seconds: float
    seconds: float
    http_requests: int = 0
    """Made so far, those made again included."""
    attempts_again: int = 0
    """Of these, those made again."""
    _session: requests.Session = field(default_factory=requests.Session)
    _batches: bool = True
    _silent: str = ""
    """Why nothing more is asked: the node did not answer however often it was asked."""

    def __post_init__(self) -> None:
        self._deadline = time.monotonic() + self.seconds
        self._free_at = 0.0

    def __enter__(self) -> "RpcClient":
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    @property
    def shown(self) -> str:
        """What may be said of the node: where it is, without anything that could be a key."""
        parts = urlsplit(self.url)
        port = f":{parts.port}" if parts.port else ""
        return f"{parts.scheme}://{parts.hostname or ''}{port}"

    @property
    def seconds_left(self) -> float:
        """How long the node may still be asked."""
        return max(0.0, self._deadline - time.monotonic())

    def ask(self, calls: Sequence[Call]) -> list[Any]:
        """Return the result of each call, or `NotServed`: a call that fails leaves the others alone."""
        results: list[Any] = []
        for start in range(0, len(calls), BATCH_CALLS):
            group = calls[start : start + BATCH_CALLS]
            results.extend(self._ask_group(group) if self._batches else self._ask_singly(group))
        return results

    def _ask_group(self, calls: Sequence[Call]) -> list[Any]:
        try:
            return self._ask_until_answered(calls)
        except _RefusedError as refused:
            if len(calls) == 1:
                return [NotServed(refused.reason)]
            # Many nodes take no batches: this one is asked call by call from now on.
            self._batches = False
            return self._ask_singly(calls)

    def _ask_singly(self, calls: Sequence[Call]) -> list[Any]:
        results: list[Any] = []
        for call in calls:
            try:
                results.extend(self._ask_until_answered([call]))
            except _RefusedError as refused:
                results.append(NotServed(refused.reason))
        return results

    def _ask_until_answered(self, calls: Sequence[Call]) -> list[Any]:
        results: dict[int, Any] = {}
        again = Retrying(
            retry=retry_if_exception_type(_AgainError),
            stop=self._stop,
            wait=_pause,
            reraise=False,
        )
        try:
            again(self._attempt, calls, results)
        except RetryError as error:
            last = error.last_attempt.exception()
            reason = last.reason if isinstance(last, _AgainError) else "it did not answer"
            if not results:
                self._silent = reason
            for place in range(len(calls)):
                results.setdefault(place, NotServed(reason))
        return [results[place] for place in range(len(calls))]

    def _stop(self, state: RetryCallState) -> bool:
        return stop_after_attempt(ATTEMPTS)(state) or _pause(state) >= self.seconds_left

    def _attempt(self, calls: Sequence[Call], results: dict[int, Any]) -> None:
        """Make the calls that have no result yet; `_AgainError` when one of them still has none."""
        open_calls = [place for place in range(len(calls)) if place not in results]
        if self._silent:
            results.update(dict.fromkeys(open_calls, NotServed(self._silent)))
            return
        answers = self._post([_document(place, calls[place]) for place in open_calls])
        reason = ""
        for place in open_calls:
            answer = answers.get(place)
            if answer is None:
                reason = "it left a call without an answer"
            elif "error" in answer:
                code, text = _error_of(answer["error"])
                if code in PASSING_CODES:
                    reason = text
                else:
                    results[place] = NotServed(text)
            else:
                results[place] = answer.get("result")
        if reason:
            raise _AgainError(reason)

    def _post(self, documents: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
        """Send the documents in one request; return the answers by id."""
        if self.seconds_left <= 0:
            raise _RefusedError("the time for asking it was over")
        self._wait_for_turn(len(documents))
        self.http_requests += 1
        body = json.dumps(documents if len(documents) > 1 else documents[0])
        try:
            answer = json.loads(self._exchange(body))
        except requests.Timeout:
            raise _AgainError(f"no answer within {self.timeout_seconds:g} s") from None
        except requests.RequestException as error:
            raise _AgainError(f"the connection failed ({type(error).__name__})") from None
        except (ValueError, RecursionError):
            raise _AgainError("its answer is no JSON") from None
        if isinstance(answer, dict) and len(documents) > 1:
            code, text = _error_of(answer.get("error"))
            raise _AgainError(text) if code in PASSING_CODES else _RefusedError(text)
        items: list[Any] = answer if isinstance(answer, list) else [answer]
        answers: dict[int, dict[str, Any]] = {}
        for item in items:
            if isinstance(item, dict) and type(item.get("id")) is int:
                answers[item["id"]] = item
        return answers

    def _exchange(self, body: str) -> bytes:
        timeout = max(0.1, min(self.timeout_seconds, self.seconds_left))
        with self._session.post(
            self.url,
            data=body.encode(),
            headers={"Content-Type": "application/json"},
            timeout=timeout,
            allow_redirects=False,
            stream=True,
        ) as response:
            status = response.status_code
            if status in PASSING_STATUSES:
                raise _AgainError(f"HTTP {status}", _seconds(response.headers.get("Retry-After")))
            if status != requests.codes.ok:
                raise _RefusedError(f"HTTP {status}")
            received = bytearray()
            for piece in response.iter_content(PIECE_BYTES):
                received += piece
                if len(received) > ANSWER_BYTES:
                    raise _RefusedError(f"its answer has more than {ANSWER_BYTES:,} bytes")
                if self.seconds_left <= 0:
                    raise _RefusedError("the time for asking it was over")
            return bytes(received)

    def _wait_for_turn(self, calls: int) -> None:
        now = time.monotonic()
        if self._free_at > now:
            time.sleep(min(self._free_at - now, self.seconds_left))
        self._free_at = max(now, self._free_at) + calls / self.calls_per_second


def _pause(state: RetryCallState) -> float:
    """Return the seconds before the next attempt: what the node asked for, else 0.5 s, doubling."""
    error = state.outcome.exception() if state.outcome is not None else None
    asked = error.after if isinstance(error, _AgainError) else None
    doubling = 0.5 * 2 ** (state.attempt_number - 1)
    return min(LONGEST_PAUSE, doubling if asked is None else asked)


def _document(identity: int, call: Call) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": identity, "method": call.method, "params": list(call.parameters)}


def _seconds(retry_after: str | None) -> float | None:
    """Return `Retry-After` in seconds; None where it is a date or absent."""
    try:
        return max(0.0, float(retry_after)) if retry_after is not None else None
    except ValueError:
        return None


def _error_of(error: object) -> tuple[int, str]:
    """Return code and text of a JSON-RPC error; its message is the node's own words, so it is left out."""
    if not isinstance(error, dict):
        return 0, "its answer is no JSON-RPC"
    code: Any = error.get("code")
    known = {
        -32_001: "it has cleaned up the block",
        -32_004: "it has no such block",
        -32_005: "it is behind or asks for fewer requests",
        -32_007: "it skipped the slot, or lost the block",
        -32_009: "it skipped the slot, or its long-term storage lost the block",
        -32_011: "it keeps no history of transactions",
        -32_015: "it knows a transaction version that is not read here",
        -32_429: "it asks for fewer requests",
    }
    number = code if isinstance(code, int) and not isinstance(code, bool) else 0
    return number, f"{known.get(number, 'it answered with an error')} (code {number})"
