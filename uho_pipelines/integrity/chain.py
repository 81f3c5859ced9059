"""What a program said in a transaction, as an RPC node tells of it.

What belongs here: reading the node's answer (with solders), following the log through nested invocations, and the
records that come of it, in their stated order. It shares nothing with the sidecar's extraction but the statement of
what a record is.
"""

import base64
import binascii
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from solders.transaction import VersionedTransaction
from solders.transaction_status import EncodedTransactionWithStatusMeta, UiCompiledInstruction

from uho_pipelines.registry import Program

Source = Literal["log", "cpi"]

CPI_EVENT_TAG = bytes.fromhex("e445a52e51cb9a1d")
"""What the data of a call begins with that carries an Anchor event."""

INVOKED = re.compile(r"Program ([1-9A-HJ-NP-Za-km-z]{32,44}) invoke \[([1-9][0-9]{0,2})\]")
ENDED = re.compile(r"Program ([1-9A-HJ-NP-Za-km-z]{32,44}) (?:success|failed: .*)", re.DOTALL)
DATA = "Program data:"
TRUNCATED = "Log truncated"


class NotComparableError(Exception):
    """Something that cannot be compared, and why; the reason is for people."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


@dataclass(frozen=True)
class ChainRecord:
    """One thing the program said."""

    event_index: int
    source: Source
    payload: bytes


@dataclass(frozen=True)
class ChainTransaction:
    """A transaction as the node tells of it; `tx_index` is None where the node does not say."""

    signature: str
    slot: int
    tx_index: int | None
    block_time: int | None
    failed: bool
    truncated: bool
    records: tuple[ChainRecord, ...]


def read_transaction(
    answer: dict[str, Any], program: Program, *, slot: int, tx_index: int | None, block_time: int | None
) -> ChainTransaction:
    """Return what `program` said in the transaction of a `getTransaction` answer, or of one item of a block's.

    Raises:
        NotComparableError: the answer lacks what is needed, or solders cannot read it.
    """
    if answer.get("meta") is None:
        raise NotComparableError("the node keeps no metadata of the transaction")
    try:
        wanted = {name: answer[name] for name in ("transaction", "meta", "version") if name in answer}
        parsed = EncodedTransactionWithStatusMeta.from_json(json.dumps(wanted))
    except (KeyError, ValueError) as error:
        raise NotComparableError(f"solders cannot read the node's answer ({type(error).__name__})") from None
    transaction, meta = parsed.transaction, parsed.meta
    if not isinstance(transaction, VersionedTransaction) or meta is None or not transaction.signatures:
        raise NotComparableError("the node's answer holds no encoded transaction")
    if meta.log_messages is None or meta.inner_instructions is None:
        raise NotComparableError("the node keeps no log or no inner instructions of the transaction")
    keys = [str(key) for key in transaction.message.account_keys]
    if meta.loaded_addresses is not None:
        keys += [str(key) for key in (*meta.loaded_addresses.writable, *meta.loaded_addresses.readonly)]
    said: list[tuple[Source, bytes]] = []
    said.extend(("log", payload) for payload in logged_payloads(meta.log_messages, program.program_id))
    for group in meta.inner_instructions:
        said.extend(("cpi", payload) for payload in _called(group.instructions, keys, program.program_id))
    return ChainTransaction(
        signature=str(transaction.signatures[0]),
        slot=slot,
        tx_index=tx_index,
        block_time=block_time or None,
        failed=meta.err is not None,
        truncated=TRUNCATED in meta.log_messages,
        records=tuple(ChainRecord(place, source, payload) for place, (source, payload) in enumerate(said)),
    )


def signature_of(answer: dict[str, Any]) -> str:
    """Return the first signature of an encoded transaction; "" where there is none."""
    try:
        sent = base64.b64decode(answer["transaction"][0], validate=True)
        return str(VersionedTransaction.from_bytes(sent).signatures[0])
    except (KeyError, IndexError, TypeError, ValueError):
        return ""


def mentions(answer: dict[str, Any], program: Program) -> bool:
    """Return whether a transaction may mention `program`: its key is among the bytes sent, or was loaded.

    The bytes may hold the key elsewhere; then the transaction says nothing of the program, and that is found.
    """
    try:
        if program.id_bytes in base64.b64decode(answer["transaction"][0], validate=True):
            return True
        loaded = (answer.get("meta") or {}).get("loadedAddresses") or {}
        return any(program.program_id in (loaded.get(name) or ()) for name in ("writable", "readonly"))
    except (KeyError, IndexError, TypeError, AttributeError, binascii.Error):
        return True  # what cannot be read is looked at more closely


def _called(instructions: Sequence[Any], keys: Sequence[str], program_id: str) -> Iterator[bytes]:
    """Yield the payloads of the program's calls to itself."""
    for instruction in instructions:
        if not isinstance(instruction, UiCompiledInstruction):
            raise NotComparableError("the node's answer has parsed instructions where compiled ones were asked for")
        index = instruction.program_id_index
        if index < len(keys) and keys[index] == program_id:
            data = decode_base58(instruction.data)
            if data.startswith(CPI_EVENT_TAG):
                yield data[len(CPI_EVENT_TAG) :]


def logged_payloads(lines: Sequence[str], program_id: str) -> Iterator[bytes]:
    """Yield the payloads of the `Program data:` lines that the program said.

    The depth that `invoke` prints is right even where an end was not logged. Behind `Log truncated` an invocation may
    be missing, so what is said there counts only once the next stack line continues the stack as it is known.
    """
    running: list[str] = []
    truncated = False
    waiting: list[bytes] = []
    for line in lines:
        if line == TRUNCATED:
            truncated = True
        elif invoked := INVOKED.fullmatch(line):
            depth = int(invoked[2])
            if len(running) + 1 == depth:
                yield from waiting
            waiting.clear()
            running = [*running[: depth - 1], invoked[1]]
        elif ended := ENDED.fullmatch(line):
            if running and running[-1] == ended[1]:
                yield from waiting
            waiting.clear()
            while ended[1] in running and running.pop() != ended[1]:
                pass
        elif line.startswith(DATA) and running and running[-1] == program_id:
            payload = _fields(line.removeprefix(DATA).removeprefix(" "))
            if payload is None:
                continue
            if truncated:
                waiting.append(payload)
            else:
                yield payload


def _fields(text: str) -> bytes | None:
    """Return the bytes of a line's base64 fields together; None where one is no base64."""
    try:
        return b"".join(base64.b64decode(part, validate=True) for part in text.split(" "))
    except (binascii.Error, ValueError):
        return None


# The libraries at hand that decode base58 of any length are no longer kept up, and this is all of it.
_BASE58 = {letter: value for value, letter in enumerate("123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz")}

BASE58_CHARACTERS = 20_000
"""An instruction's data has at most so many; the runtime's limit for a call is 10 KiB."""


def decode_base58(text: str) -> bytes:
    """Return the bytes of base58 of any length."""
    if len(text) > BASE58_CHARACTERS:
        raise NotComparableError(f"the node's answer has an instruction of more than {BASE58_CHARACTERS:,} characters")
    number = 0
    try:
        for letter in text:
            number = number * 58 + _BASE58[letter]
    except KeyError:
        raise NotComparableError("the node's answer has an instruction whose data is no base58") from None
    zeros = len(text) - len(text.lstrip("1"))
    return b"\0" * zeros + number.to_bytes((number.bit_length() + 7) // 8, "big")
