"""`uho decode`: what a payload means, and which bytes say so."""

import base64
import json
import struct

import pytest
from events import discriminator, idl
from typer.testing import CliRunner

from uho_pipelines.cli import app
from uho_pipelines.idl.payload import (
    CPI_EVENT_TAG,
    IdlUnreadableError,
    PayloadUnreadableError,
    decode_payload,
    parse_payload,
)

FIELDS = {"amount": "u64", "memo": "string", "pairs": {"vec": {"option": "u16"}}, "who": "pubkey"}
PAYLOAD = (
    discriminator("Said")
    + struct.pack("<QI", 2**64 - 1, 5)
    + b"hello"
    + struct.pack("<IBBH", 2, 0, 1, 65_535)
    + bytes(32)
)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "said.json"
    path.write_bytes(idl({"Said": FIELDS}))
    return path


def test_the_fields_take_every_byte_and_say_which(file):
    shown = decode_payload([file], PAYLOAD, explain=True)
    fields = {"amount": str(2**64 - 1), "memo": "hello", "pairs": [None, 65_535], "who": "1" * 32}
    assert (shown["event"], shown["idl"], shown["fields"]) == ("Said", "said.json", fields)
    places = [(part["field"], part["start"], part["end"]) for part in shown["bytes"]]
    assert places == [
        ("discriminator", 0, 8),
        ("amount", 8, 16),
        ("memo", 16, 25),
        ("pairs", 25, 33),
        ("who", 33, 65),
    ]
    assert "".join(part["hex"] for part in shown["bytes"]) == PAYLOAD.hex()
    tagged = decode_payload([file], CPI_EVENT_TAG + PAYLOAD, explain=True)
    assert [part["start"] for part in tagged["bytes"]] == [0, 8, 16, 24, 33, 41]
    assert "".join(part["hex"] for part in tagged["bytes"]) == (CPI_EVENT_TAG + PAYLOAD).hex()


def test_versions_are_oldest_first_and_the_one_that_fits_is_named(file, tmp_path):
    newer = tmp_path / "newer.json"
    newer.write_bytes(idl({"Said": {**FIELDS, "fee": "u64"}}))
    assert decode_payload([file, newer], PAYLOAD)["idl"] == "said.json"
    assert decode_payload([file, newer], PAYLOAD + bytes(8))["fields"]["fee"] == "0"


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (PAYLOAD[:12], "truncated_payload: field `amount` at byte 8 needs 8 bytes, 4 left (event `Said` of said.json)"),
        (PAYLOAD + b"\0\0", "trailing_bytes: 2 left at byte 65"),
        (PAYLOAD[:29] + b"\7" + PAYLOAD[30:], "invalid_value: field `pairs` at byte 29: 7 is no option tag"),
        (b"\1" * 20, "unknown_discriminator"),
        (b"", "unknown_discriminator"),
    ],
)
def test_errors_name_field_offset_and_reason(file, payload, words):
    with pytest.raises(PayloadUnreadableError) as caught:
        decode_payload([file], payload)
    assert words in str(caught.value)


def test_payloads_are_read_as_people_paste_them():
    for text in (PAYLOAD.hex(), PAYLOAD.hex().upper(), f"0x{PAYLOAD.hex()}\n", base64.b64encode(PAYLOAD).decode()):
        assert parse_payload(text) == PAYLOAD
    spaced = " ".join(PAYLOAD.hex()[place : place + 8] for place in range(0, 130, 8))
    assert parse_payload(spaced) == PAYLOAD
    with pytest.raises(PayloadUnreadableError, match="neither hexadecimal nor base64"):
        parse_payload("what?")


def test_files_that_are_no_idl_are_refused_by_name(tmp_path, file):
    with pytest.raises(IdlUnreadableError, match=r"nothing\.json: No such file"):
        decode_payload([tmp_path / "nothing.json"], PAYLOAD)
    file.write_bytes(b"{")
    with pytest.raises(IdlUnreadableError, match=r"said\.json: "):
        decode_payload([file], PAYLOAD)


def test_the_command_reads_arguments_and_standard_input(file):
    for arguments, entered in (([PAYLOAD.hex()], None), (["-"], base64.b64encode(PAYLOAD).decode())):
        result = CliRunner().invoke(app, ["decode", "--idl", str(file), *arguments], input=entered)
        assert (result.exit_code, json.loads(result.stdout)["event"]) == (0, "Said")
