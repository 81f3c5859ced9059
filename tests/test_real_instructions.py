"""Real instructions through the whole path: what solders and anchorpy make of the wire transactions is what the tables
hold.

The other side starts from `getTransaction` answers: solders reads message and metadata, the test walks them, anchorpy's
own instruction coder decodes the data, and the IDL's account lists are read here from its JSON. Nothing of it is ours.
"""

import base64
import dataclasses
import json
import re
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from anchorpy import InstructionCoder
from anchorpy.idl_adapter import Idl
from psycopg.rows import dict_row
from services import SECRET, fresh_warehouse, running_sidecar, shared_data
from solders.pubkey import Pubkey
from solders.transaction import VersionedTransaction

from uho_pipelines.chunks import Chunk
from uho_pipelines.lake import Lake
from uho_pipelines.materialization import Reporter, load_events, read_records
from uho_pipelines.reading import read_events
from uho_pipelines.registry import load_registry
from uho_pipelines.settings import NetworkSettings, Settings
from uho_pipelines.verification import verify_chunk
from uho_pipelines.warehouse import connect, read_plan

PROGRAMS = {
    "whirlpool": ("whirLbMiicVdio4qvUfM5KAg6Ct8VwpYzGff3uctyCc", "whirlpool__*__d611acdb.json"),
    "pump_amm": ("pAMMBay6oceH9fJKBRHGP5D4bD4sWpmSwMn52FMfXEA", "pump_amm__*__f3e83176.json"),
    "pump": ("6EF8rrecthR5Dkzon8Nwu78hRvfCKubJ14M5uBEwF6P", "pump__*__312051ac.json"),
}
EVENTS_ALONE = "pump"
"""A program of the same scan group that does not ask for its instructions."""

CHUNKS = [Chunk(start, 100_000) for start in (345_600_000, 345_700_000, 345_800_000)]
EVENT_TAG = bytes.fromhex("e445a52e51cb9a1d")
BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


@dataclasses.dataclass
class Expected:
    """An instruction as the wire has it: its key and path, and what anchorpy and the IDL's JSON say of it."""

    key: tuple[int, int, int]
    signature: str
    path: list[int]
    name: str | None
    arguments: dict[str, Any]
    accounts: dict[str, str | None]
    given: int
    remaining: list[str]
    data: bytes
    failed: bool


@pytest.fixture(scope="module")
def data():
    return shared_data()


@pytest.fixture(scope="module")
def settings(data, postgres, tmp_path_factory):
    home = tmp_path_factory.mktemp("instructions")
    for name, (program_id, pattern) in PROGRAMS.items():
        folder = home / "programs" / name
        folder.mkdir(parents=True)
        idl = next(data.glob(f"idl/{pattern}"))
        (folder / idl.name).write_bytes(idl.read_bytes())
        fields = {
            "program_id": program_id,
            "network": "mainnet",
            "owner": "test",
            "first_slot": CHUNKS[0].start,
            "last_slot": CHUNKS[-1].end - 1,
            "scan_group": "real",
            "parquet": True,
            "idls": [{"from_slot": 0, "file": idl.name}],
        }
        if name != EVENTS_ALONE:
            fields["records"] = ["events", "instructions"]
        (folder / "program.yaml").write_text(yaml.safe_dump(fields))
    archive = str(data / "archive")
    with running_sidecar({"mainnet": archive}, home / "sidecar.log") as sidecar:
        yield Settings(
            home=home,
            sidecar_url=sidecar.url,
            sidecar_secret=SECRET,
            postgres_url=fresh_warehouse(postgres, "real_instructions"),
            programs_dir=home / "programs",
            networks={"mainnet": NetworkSettings(archive_url=archive, chunk_slots=100_000, checkpoint_slots=10_000)},
        )


@pytest.fixture(scope="module")
def programs(settings):
    registry = load_registry(settings)
    assert not registry.faults
    return {program.name: program for program in registry.programs}


@pytest.fixture(scope="module")
def outcomes(settings, programs):
    """Every chunk read, all programs in one stream, and loaded; `{(program, chunk start): outcome}`."""
    found = {}
    for chunk in CHUNKS:
        for outcome in read_records(settings, list(programs.values()), chunk, Reporter()):
            assert outcome.error is None, outcome.error
            found[outcome.program.name, chunk.start] = load_events(settings, outcome.program, chunk, Reporter())
    return found


def snake(name):
    return re.sub(r"(?<=[a-z0-9])([A-Z])|(?<=[A-Z])([A-Z])(?=[a-z])", lambda found: f"_{found[0]}", name).lower()


def unbase58(text):
    number = 0
    for letter in text:
        number = number * 58 + BASE58.index(letter)
    zeros = len(text) - len(text.lstrip("1"))
    return b"\0" * zeros + number.to_bytes((number.bit_length() + 7) // 8, "big")


def idl_accounts(items, prefix=""):
    """Yield (name, whether it is optional) of an IDL's account list, groups taken apart."""
    for item in items:
        name = prefix + snake(item["name"])
        if "accounts" in item:
            yield from idl_accounts(item["accounts"], f"{name}_")
        else:
            yield name, bool(item.get("isOptional") or item.get("optional"))


def plain(value):
    """Return what anchorpy read in the form that tables keep."""
    if isinstance(value, Pubkey):
        return str(value)
    if isinstance(value, bytes):
        return value
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def same(actual, expected):
    """Return whether a value of Postgres is anchorpy's: jsonb has wide integers as text."""
    if isinstance(actual, Decimal) or (isinstance(actual, str) and isinstance(expected, int)):
        return Decimal(actual) == Decimal(expected)
    if isinstance(actual, dict):
        if dataclasses.is_dataclass(expected):  # what anchorpy makes of a defined struct
            fields = {snake(field.name): getattr(expected, field.name) for field in dataclasses.fields(expected)}
            return actual.keys() == fields.keys() and all(same(actual[key], fields[key]) for key in actual)
        return list(actual) == [type(expected).__name__]  # an enum: it has a class per variant
    if isinstance(actual, list):
        return len(actual) == len(expected) and all(map(same, actual, expected))
    return actual == expected


@pytest.fixture(scope="module")
def wire(data):
    """Every own instruction of each program, from the wire transactions, depth first."""
    lines = (data / "rpc" / "transactions-800.jsonl").read_text().splitlines()
    transactions = [json.loads(line) for line in lines]
    return {name: list(instructions_of(data, transactions, *PROGRAMS[name])) for name in PROGRAMS}


def instructions_of(data: Path, transactions, program_id, pattern):
    text = next(data.glob(f"idl/{pattern}")).read_text()
    coder = InstructionCoder(Idl.from_json(text))
    named = {snake(item["name"]): list(idl_accounts(item["accounts"])) for item in json.loads(text)["instructions"]}
    for line in transactions:
        transaction = VersionedTransaction.from_bytes(base64.b64decode(line["transaction"][0]))
        meta = line["meta"]
        keys = [str(key) for key in transaction.message.account_keys]
        loaded = meta.get("loadedAddresses") or {"writable": [], "readonly": []}
        keys += [*loaded["writable"], *loaded["readonly"]]
        inner = {group["index"]: group["instructions"] for group in meta["innerInstructions"] or []}
        place = 0
        for top, instruction in enumerate(transaction.message.instructions):
            calls = [([top], instruction.program_id_index, bytes(instruction.accounts), bytes(instruction.data))]
            calls += [
                ([top, nth], call["programIdIndex"], bytes(call["accounts"]), unbase58(call["data"]))
                for nth, call in enumerate(inner.get(top, []))
            ]
            for path, program, accounts, body in calls:
                index, place = place, place + 1
                if keys[program] != program_id or (len(path) > 1 and body.startswith(EVENT_TAG)):
                    continue
                given = [keys[account] for account in accounts]
                name, arguments = None, {}
                if body[:8] in coder.sighash_layouts:
                    name = coder.sighash_to_name[body[:8]]
                    read = coder.sighash_layouts[body[:8]]
                    value = read.parse(body[8:])
                    assert read.build(value) == body[8:], "anchorpy did not use every byte"
                    arguments = {snake(key): plain(item) for key, item in dict(value).items() if key != "_io"}
                wanted = named.get(name, [])
                yield Expected(
                    key=(line["slot"], line["transactionIndex"], index),
                    signature=line["signature"],
                    path=path,
                    name=name,
                    arguments=arguments,
                    accounts={
                        account: None if nth >= len(given) or (optional and given[nth] == program_id) else given[nth]
                        for nth, (account, optional) in enumerate(wanted)
                    },
                    given=len(given),
                    remaining=given[len(wanted) :],
                    data=body,
                    failed=meta["err"] is not None,
                )


def stored(settings, program):
    """Return the rows of a program's instruction tables as `{(instruction, key): row}`."""
    found = {}
    with connect(settings.postgres_url.get_secret_value(), application_name="test") as connection:
        for name, table in read_plan(connection, program).tables.items():
            if not table.is_instruction:
                continue
            query = psycopg.sql.SQL("SELECT * FROM {}").format(psycopg.sql.Identifier(table.schema, table.name))
            with connection.cursor(row_factory=dict_row) as cursor:
                for row in cursor.execute(query):
                    key = (row["slot"], row["tx_index"], row["instruction_index"])
                    found[name.removeprefix("instruction:"), key] = row
    return found


@pytest.mark.parametrize("name", ["whirlpool", "pump_amm"])
def test_rows_are_what_other_libraries_read_from_the_wire(settings, programs, outcomes, wire, name):
    expected = {(item.name, item.key): item for item in wire[name] if not item.failed and item.name is not None}
    found = stored(settings, programs[name])
    assert found.keys() == expected.keys()
    assert len(found) > 15
    for key, row in found.items():
        item = expected[key]
        assert row["signature"] == item.signature
        assert row["instruction_path"] == item.path
        assert row["accounts_given"] == item.given
        assert (row["remaining_accounts"] or []) == item.remaining
        for account, address in item.accounts.items():
            assert row[f"account_{account}"] == address, (key, account)
        for argument, value in item.arguments.items():
            assert same(row[argument], value), (key, argument, row[argument], value)
        fixed = {"slot", "tx_index", "instruction_index", "signature", "instruction_path", "accounts_given"}
        fixed |= {"remaining_accounts", "block_time", *item.arguments}
        assert row.keys() == fixed | {f"account_{account}" for account in item.accounts}


@pytest.mark.parametrize("name", ["whirlpool", "pump_amm"])
def test_every_instruction_is_a_row_left_out_or_quarantined(settings, programs, outcomes, wire, name):
    found = Counter()
    for chunk in CHUNKS:
        counts = outcomes[name, chunk.start].counts.instructions
        found += Counter(records=counts.records, decoded=counts.decoded, undecodable=counts.undecodable)
        found += Counter(failed=counts.failed_left_out, foreign=counts.foreign, short=counts.short_of_accounts)
    of_wire = wire[name]
    assert found["records"] == len(of_wire)
    assert found["failed"] == sum(item.failed for item in of_wire)
    assert found["decoded"] == sum(not item.failed and item.name is not None for item in of_wire)
    assert found["undecodable"] == sum(not item.failed and item.name is None for item in of_wire)
    assert found["foreign"] == 0


def test_the_lake_has_every_instruction_with_its_data_and_accounts(settings, programs, outcomes, wire):
    for name, items in wire.items():
        rows = [
            row
            for chunk in CHUNKS
            for batch in Lake(settings).chunk(programs[name], chunk).batches()
            for row in batch.to_pylist()
        ]
        told = {(row["slot"], row["tx_index"], row["event_index"]): row for row in rows if row["source"] == 2}
        if name == EVENTS_ALONE:
            assert items
            assert rows
            assert not told
            assert "accounts" not in rows[0]
            continue
        assert told.keys() == {item.key for item in items}
        for item in items:
            row = told[item.key]
            assert (row["payload"], row["instruction_path"]) == (item.data, item.path)
            assert len(row["accounts"]) == 32 * item.given
        assert all(row["accounts"] is None for row in rows if row["source"] < 2)


def test_both_frames_are_equal_and_verification_finds_nothing(settings, programs, outcomes, wire):
    named = Counter(item.name for item in wire["whirlpool"] if not item.failed)
    ((frequent, count),) = named.most_common(1)
    assert count > 1
    swaps = [item for item in wire["whirlpool"] if item.name == frequent and not item.failed]
    frames = [
        read_events("whirlpool", f"ix_{frequent}", source=source, settings=settings)
        for source in ("postgres", "parquet")
    ]
    assert frames[0].equals(frames[1])
    keys = list(zip(*(frames[0][name] for name in ("slot", "tx_index", "instruction_index")), strict=True))
    assert keys == sorted(item.key for item in swaps)
    with connect(settings.postgres_url.get_secret_value(), application_name="test") as connection:
        for name in ("whirlpool", "pump_amm"):
            for chunk in CHUNKS:
                verified = verify_chunk(connection, settings, programs[name], chunk)
                assert not verified.findings, verified.findings
