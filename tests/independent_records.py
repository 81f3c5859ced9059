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
    instruction_path: tuple[int, ...]
    payload: bytes
    failed: bool
    truncated: bool
    epoch: int
    archive_offset: int


class Invocations:
    """Finds the instruction of each invocation that a log tells of, in the order in which both were recorded."""

    def __init__(self, transaction: dict[str, Any]) -> None:
        keys: list[str] = transaction["accountKeys"]
        self.top_level = [keys[item["programIdIndex"]] for item in transaction["instructions"]]
        self.inner: dict[int, list[str]] = {
            group["index"]: [keys[item["programIdIndex"]] for item in group["instructions"]]
            for group in transaction["innerInstructions"] or []
        }
        self.path: tuple[int, ...] = (-1, -1)

    def enter(self, program: str, depth: int) -> tuple[int, ...]:
        """Return the path of the next invocation; programs in between ran without leaving a line.

        Some transactions were recorded without their inner instructions: the path is empty where nothing was recorded.
        """
        top_level, inner = self.path
        if depth == 1:
            top_level = self.top_level.index(program, top_level + 1)
            self.path = (top_level, -1)
            return (top_level,)
        if program not in self.inner.get(top_level, [])[inner + 1 :]:
            return ()
        self.path = (top_level, self.inner[top_level].index(program, inner + 1))
        return self.path


def spoken_payloads(transaction: dict[str, Any], program: str) -> Iterator[tuple[tuple[int, ...], bytes]]:
    """Yield what `program` said in `Program data:` lines and where, following invocations as the runtime wrote them.

    After `Log truncated` lines are missing; what is left is taken for whole.
    """
    invocations = Invocations(transaction)
    speaking: list[tuple[str, tuple[int, ...]]] = []
    for line in transaction["logs"] or []:
        if invoked := INVOKE.fullmatch(line):
            depth = int(invoked[2])
            speaking = [*speaking[: depth - 1], (invoked[1], invocations.enter(invoked[1], depth))]
        elif (ended := ENDED.fullmatch(line)) and speaking and speaking[-1][0] == ended[1]:
            speaking.pop()
        elif line.startswith("Program data: ") and speaking and speaking[-1][0] == program:
            fields = line.removeprefix("Program data: ").split(" ")
            try:
                yield speaking[-1][1], b"".join(base64.b64decode(field, validate=True) for field in fields)
            except binascii.Error:
                continue


def records_of(transaction: dict[str, Any], program: str) -> list[IndependentRecord]:
    """Return the records of `program` in one NDJSON transaction: log records first, then CPI events."""
    logs: list[str] = transaction["logs"] or []
    keys: list[str] = transaction["accountKeys"]
    said = [("log", path, payload) for path, payload in spoken_payloads(transaction, program)]
    for group in transaction["innerInstructions"] or []:
        for place, instruction in enumerate(group["instructions"]):
            data = base64.b64decode(instruction["data"])
            if keys[instruction["programIdIndex"]] == program and data.startswith(CPI_EVENT_TAG):
                said.append(("cpi", (group["index"], place), data[len(CPI_EVENT_TAG) :]))
    return [
        IndependentRecord(
            slot=transaction["slot"],
            tx_index=transaction["txIndex"],
            event_index=event_index,
            signature=transaction["signature"],
            block_time=transaction["blockTime"],
            program=program,
            source=source,
            instruction_path=path,
            payload=payload,
            failed=transaction["err"] is not None,
            truncated="Log truncated" in logs,
            epoch=transaction["epoch"],
            archive_offset=transaction["archiveOffset"],
        )
        for event_index, (source, path, payload) in enumerate(said)
    ]
