"""Records computed from the sidecar's NDJSON by a second implementation, which shares nothing with the first.

It reads what a person reads: one JSON line per matched transaction. Tests compare its records with the Arrow stream's.
"""

import base64
import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

CPI_EVENT_TAG = bytes.fromhex("e445a52e51cb9a1d")
INVOKE = re.compile(r"Program (\S+) invoke \[(\d+)\]")
ENDED = re.compile(r"Program (\S+) (?:success|failed.*)", re.DOTALL)


@dataclass(frozen=True)
class IndependentRecord:
    """A record as this implementation sees it; `source` is `log` or `cpi`."""

    slot: int
    tx_index: int
    event_index: int
    signature: str
    block_time: int | None
    program: str
    source: str
    payload: bytes
    failed: bool
    truncated: bool


def spoken_payloads(logs: list[str], program: str) -> Iterator[bytes]:
    """Yield what `program` said in `Program data:` lines, following invocations as the runtime wrote them."""
    speaking: list[str] = []
    for line in logs:
        if invoked := INVOKE.fullmatch(line):
            depth = int(invoked[2])
            speaking = [*speaking[: depth - 1], invoked[1]]
        elif (ended := ENDED.fullmatch(line)) and speaking and speaking[-1] == ended[1]:
            speaking.pop()
        elif line.startswith("Program data: ") and speaking and speaking[-1] == program:
            fields = line.removeprefix("Program data: ").split(" ")
            try:
                yield b"".join(base64.b64decode(field, validate=True) for field in fields)
            except binascii.Error:
                continue


def records_of(transaction: dict[str, Any], program: str) -> list[IndependentRecord]:
    """Return the records of `program` in one NDJSON transaction: log records first, then CPI events."""
    logs: list[str] = transaction["logs"] or []
    keys: list[str] = transaction["accountKeys"]
    payloads = [("log", payload) for payload in spoken_payloads(logs, program)]
    for inner in transaction["innerInstructions"] or []:
        for instruction in inner["instructions"]:
            data = base64.b64decode(instruction["data"])
            if keys[instruction["programIdIndex"]] == program and data.startswith(CPI_EVENT_TAG):
                payloads.append(("cpi", data[len(CPI_EVENT_TAG) :]))
    return [
        IndependentRecord(
            slot=transaction["slot"],
            tx_index=transaction["txIndex"],
            event_index=event_index,
            signature=transaction["signature"],
            block_time=transaction["blockTime"],
            program=program,
            source=source,
            payload=payload,
            failed=transaction["err"] is not None,
            truncated="Log truncated" in logs,
        )
        for event_index, (source, payload) in enumerate(payloads)
    ]
