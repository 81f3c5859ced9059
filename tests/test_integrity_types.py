"""Rows of random types in Postgres against what anchorpy reads: no false alarm, and no change that is not seen.

Each example is one load: a program of several events with random fields, of two IDL versions between which their types
change, with addresses as text or as bytea.
"""

import json

import uho_native
from events import CHUNK, Record, discriminator, load, program_of, signature_of
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from psycopg import sql
from services import fresh_warehouse
from solders.signature import Signature
from test_random_idls import KINDS, Fields, definitions, fields_spelled, known_to_anchorpy, packed, values_of

from uho_pipelines.integrity.chain import ChainRecord, ChainTransaction
from uho_pipelines.integrity.comparison import compare
from uho_pipelines.integrity.independent_decoding import IndependentDecoder
from uho_pipelines.integrity.stored import read_slots
from uho_pipelines.warehouse import connect, read_plan
from uho_pipelines.warehouse.ledger import fix_chunk_slots

CHANGE = 150
"""From this slot on the second IDL version holds."""

EVENTS = 6
"""Of each program."""


def readable(fields, older):
    """Whether the kernel takes an event of these fields: it refuses sequences of elements that have no size."""
    try:
        uho_native.Decoder(bytes(32), [(0, "random.json", idl_of({"Said": fields}, older))])
    except uho_native.IdlError as error:
        assert "elements of no size" in str(error)  # noqa: PT017 - anything else is a defect
        return False
    return True


def idl_of(events, older):
    """An IDL of events by name."""
    kinds = [kind for fields in events.values() for kind in fields.kinds]
    types = list({each["name"]: each for kind in kinds for each in definitions(kind, older)}.values())
    spelled = {name: fields_spelled(fields, older) for name, fields in events.items()}
    if older:
        shown = [
            {"name": name, "fields": [{**field, "index": False} for field in fields]}
            for name, fields in spelled.items()
        ]
        document = {"version": "0.1.0", "name": "demo", "instructions": [], "events": shown, "types": types}
        return json.dumps({**document, "metadata": {"address": "1" * 32}}).encode()
    structs = [{"name": name, "type": {"kind": "struct", "fields": fields}} for name, fields in spelled.items()]
    document = {
        "address": "1" * 32,
        "metadata": {"name": "demo", "version": "0.1.0", "spec": "0.1.0"},
        "instructions": [],
        "events": [{"name": name, "discriminator": list(discriminator(name))} for name in events],
        "types": [*types, *structs],
    }
    return json.dumps(document).encode()


@st.composite
def programs(draw, *, all_types):
    """A program and its records: each event by both versions, in a transaction of its own."""
    older = draw(st.booleans())
    kinds = KINDS if all_types else KINDS.filter(lambda kind: known_to_anchorpy(kind, older))
    several = st.lists(kinds, min_size=1, max_size=4).map(lambda kinds: Fields(tuple(kinds), named=True))
    readables = several.filter(lambda fields: readable(fields, older))
    versions = [{f"Event{place}": draw(readables) for place in range(EVENTS)} for _ in range(2)]
    program = program_of(
        (0, idl_of(versions[0], older)), (CHANGE, idl_of(versions[1], older)), bytea=draw(st.booleans())
    )
    records = []
    for version, first_slot in zip(versions, (CHUNK.start, CHANGE), strict=True):
        for place, (name, fields) in enumerate(version.items()):
            payload = discriminator(name) + packed(fields, draw(values_of(fields)))
            records.append(Record(first_slot + place, payload))
    return program, records


def transaction(record):
    """A record's transaction, as a node would tell of it."""
    signature = str(Signature(signature_of(record)))
    said = (ChainRecord(record.event_index, "cpi", record.payload),)
    return ChainTransaction(signature, record.slot, record.tx_index, record.block_time, False, False, said)


def compared(connection, program, records):
    """Compare each record's transaction with its row; slot to comparison."""
    decoder = IndependentDecoder(program)
    stored = read_slots(connection, read_plan(connection, program), program, {record.slot for record in records})
    found = {}
    for record in records:
        said = transaction(record)
        found[record.slot] = compare(said, stored[record.slot][said.signature], program, decoder)
    return found


def loaded(postgres, program, records):
    """Load the records into an empty warehouse; return its URL."""
    url = fresh_warehouse(postgres, "integrity_types")
    with connect(url, application_name="test") as connection:
        fix_chunk_slots(connection, program.network, CHUNK.slots)
    load(url, program, *records)
    return url


@settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck))
@given(made=programs(all_types=True))
def test_rows_of_any_type_are_verified_or_not_comparable_and_never_a_false_alarm(postgres, made):
    program, records = made
    with connect(loaded(postgres, program, records), application_name="test") as connection:
        for comparison in compared(connection, program, records).values():
            assert comparison.outcome != "mismatch", comparison.differences
            event(comparison.outcome)
            if comparison.outcome == "not comparable":
                assert comparison.reason.startswith(("anchorpy", "a value of the type")), comparison.reason


@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(made=programs(all_types=False))
def test_rows_of_types_that_anchorpy_knows_are_verified_but_for_what_it_does_not_say(postgres, made):
    program, records = made
    with connect(loaded(postgres, program, records), application_name="test") as connection:
        for comparison in compared(connection, program, records).values():
            if comparison.outcome != "verified":
                assert comparison.outcome == "not comparable", comparison.differences
                assert comparison.reason.startswith(("anchorpy reads no NaN", "anchorpy does not say which option"))


OTHERWISE = {
    "text": "{0} || 'x'",
    "boolean": "NOT {0}",
    "bytea": "{0} || '\\x00'::bytea",
    "jsonb": "jsonb_build_array({0})",
    "real": "CASE WHEN abs({0}) < 1e30 THEN '1e31'::real ELSE 0 END",
    "double precision": "CASE WHEN abs({0}) < 1e30 THEN 1e31 ELSE 0 END",
}
"""Another value of a column, by its type; for what is not here, a number, one nearer to zero."""


@settings(max_examples=2, deadline=None, suppress_health_check=list(HealthCheck))
@given(made=programs(all_types=False))
def test_each_changed_value_is_a_mismatch_that_names_its_field(postgres, made):
    program, records = made
    with connect(loaded(postgres, program, records), application_name="test") as connection:
        verified = {
            slot for slot, found in compared(connection, program, records).items() if found.outcome == "verified"
        }
        for table in read_plan(connection, program).tables.values():
            for field, column in table.field_columns.items():
                name, other = (
                    sql.Identifier(column),
                    OTHERWISE.get(table.kinds[column], "{0} + CASE WHEN {0} > 0 THEN -1 ELSE 1 END"),
                )
                change = sql.SQL("UPDATE {} SET {} = {} WHERE {} IS NOT NULL RETURNING slot").format(
                    sql.Identifier(table.schema, table.name), name, sql.SQL(other).format(name), name
                )
                with connection.transaction(force_rollback=True):
                    changed = {slot for (slot,) in connection.execute(change)}
                    for slot, found in compared(connection, program, records).items():
                        if slot in verified & changed:
                            assert found.outcome == "mismatch"
                            (difference,) = found.differences
                            assert difference.field in (field, field.rpartition("__")[0])
                        elif slot in verified:
                            assert found.outcome == "verified", found.differences
