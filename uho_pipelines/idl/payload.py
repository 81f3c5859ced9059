"""`uho decode`: one payload by IDL files, as JSON, with the bytes that each field came from.

What belongs here: reading what a person pastes, and showing what it means. What bytes mean is the native module's
business, the same that decodes whole chunks.
"""

import base64
import binascii
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uho_native

from uho_pipelines.errors import UhoError
from uho_pipelines.registry import IDL_BYTES

CPI_EVENT_TAG = bytes.fromhex("e445a52e51cb9a1d")
"""What `emit_cpi!` puts before an event: instruction data is often pasted with it."""


class IdlUnreadableError(UhoError):
    """An IDL file that cannot be read or makes no decoder."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the IDL cannot be used: {reason}")


class PayloadUnreadableError(UhoError):
    """Text that is no payload, or a payload that no IDL decodes."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the payload cannot be decoded: {reason}")


def read_idl(path: Path) -> bytes:
    """Return the bytes of an IDL file.

    Raises:
        IdlUnreadableError: it cannot be read, or is larger than an IDL may be.
    """
    try:
        with path.open("rb") as file:
            content = file.read(IDL_BYTES + 1)
    except OSError as error:
        raise IdlUnreadableError(f"{path}: {error.strerror or type(error).__name__}") from None
    if len(content) > IDL_BYTES:
        raise IdlUnreadableError(f"{path} has more than {IDL_BYTES:,} bytes")
    return content


def make_decoder(versions: Sequence[tuple[int, str, bytes]], program: bytes = bytes(32)) -> uho_native.Decoder:
    """Return the decoder of IDL versions: first slot, label, content.

    Raises:
        IdlUnreadableError: they make none.
    """
    try:
        return uho_native.Decoder(program, list(versions))
    except uho_native.IdlError as error:
        raise IdlUnreadableError(str(error)) from None


def parse_payload(text: str) -> bytes:
    """Return the bytes that `text` writes in hexadecimal (with or without 0x), else in base64.

    Raises:
        PayloadUnreadableError: it is neither.
    """
    text = "".join(text.split())
    if re.fullmatch(r"(?:0x)?(?:[0-9a-fA-F]{2})+", text):
        return bytes.fromhex(text.removeprefix("0x"))
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise PayloadUnreadableError("it is neither hexadecimal nor base64") from None


def decode_payload(files: Sequence[Path], payload: bytes, *, explain: bool = False) -> dict[str, Any]:
    """Return the event of a payload: `files` are versions of one program's IDL, oldest first; the last is in force.

    Values are as in JSON columns: integers of 64 bits and wider as text, bytes in hexadecimal, U+0000 as `\\u0000`.
    With `explain`, each field comes with its bytes: offsets from the start of the payload, the end exclusive.

    Raises:
        IdlUnreadableError: a file cannot be used.
        PayloadUnreadableError: no version uses every byte; the message names field, offset and reason.
    """
    decoder = make_decoder([(slot, path.name, read_idl(path)) for slot, path in enumerate(files)])
    tagged = payload.startswith(CPI_EVENT_TAG)
    event = payload.removeprefix(CPI_EVENT_TAG)
    try:
        explained = decoder.explain(event, len(files) - 1)
    except uho_native.PayloadError as error:
        raise PayloadUnreadableError(str(error)) from None
    shift = len(CPI_EVENT_TAG) if tagged else 0
    shown: dict[str, Any] = {
        "event": explained["event"],
        "idl": explained["idl"],
        "fields": {name: json.loads(value) for name, _, _, value in explained["fields"]},
    }
    if explain:
        head = [("discriminator", 0, explained["discriminator_bytes"], None)]
        places = [("emit_cpi tag", -shift, 0, None)] if tagged else []
        shown["bytes"] = [
            {
                "field": name,
                "start": start + shift,
                "end": end + shift,
                "hex": payload[start + shift : end + shift].hex(),
                **({} if value is None else {"value": json.loads(value)}),
            }
            for name, start, end, value in [*places, *head, *explained["fields"]]
        ]
    return shown
