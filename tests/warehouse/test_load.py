"""Loading a chunk: replaced whole or not at all, by one attempt at a time, to the last digit."""

import hashlib
import os
import signal
import threading
import time
from decimal import Decimal

import psycopg
import pytest
import uho_native
from made_up import CHUNK, COUNTS, EVERYTHING, NEXT, SIMPLE, everything, load, program_of, records, rows, simple

from uho_pipelines.decoding import decode, decoder_for
from uho_pipelines.warehouse import chunk_load, connect, ensure_tables, find_damage, migrate
from uho_pipelines.warehouse import load as load_module
from uho_pipelines.warehouse.ledger import AttemptFencedError, begin_attempt, fail_attempt
from uho_pipelines.warehouse.load import ConnectionBusyError, RowsMisplacedError

PROGRAM = program_of({"Simple": SIMPLE, "Other": SIMPLE})
AMOUNTS = "SELECT slot, amount FROM demo_sim_alpha.simple ORDER BY slot"


@pytest.fixture
def open_load(warehouse):
    """A function that begins an attempt and returns it with its connection, plan and decoder."""
    connections = []

    def begin(program=PROGRAM, chunk=CHUNK, url=warehouse):
        connection = connect(url, application_name="test")
        connections.append(connection)
        decoder = decoder_for(program)
        attempt = begin_attempt(connection, program, chunk, "events")
        plan = ensure_tables(connection, program, decoder.tables())
        return connection, plan, decoder, attempt

    yield begin
    for connection in connections:
        connection.close()


def test_a_chunk_loaded_twice_has_the_same_rows_and_digests(warehouse):
    payloads = [simple(amount) for amount in range(50)]
    first = load(warehouse, PROGRAM, payloads)
    before = rows(warehouse, AMOUNTS)
    second = load(warehouse, PROGRAM, payloads)
    assert first == second
    assert first.rows == {"Simple": 50, "Other": 0}
    assert rows(warehouse, AMOUNTS) == before
    assert len(before) == 50


def test_a_chunk_is_replaced_and_its_neighbours_stay(warehouse):
    load(warehouse, PROGRAM, [simple(1)] * 100)
    load(warehouse, PROGRAM, [simple(2)] * 100, chunk=NEXT)
    result = load(warehouse, PROGRAM, [simple(3, "Other")])
    assert result.rows == {"Simple": 0, "Other": 1}
    assert rows(warehouse, AMOUNTS) == [(slot, 2) for slot in range(200, 300)]
    assert rows(warehouse, "SELECT slot, amount FROM demo_sim_alpha.other") == [(100, 3)]


def test_extreme_values_are_stored_to_the_last_digit(warehouse):
    program = program_of({"Everything": EVERYTHING})
    extremes = [
        everything(
            amount=2**64 - 1,
            wide=2**128 - 1,
            signed=-(2**63),
            ratio=float("nan"),
            small=float("inf"),
            label="a\0b",
            blob=b"\0\xff",
            maybe=2**64 - 1,
            many=(2**64 - 1,),
            words=("\0", "\\u0000"),
        ),
        everything(amount=0, ratio=-0.0, small=1e-45),
    ]
    load(warehouse, program, extremes)
    highest, lowest = rows(
        warehouse,
        "SELECT amount, wide, signed, ratio::text, small::text, label, blob, who, flag, maybe, many, words "
        "FROM demo_sim_alpha.everything ORDER BY slot",
    )
    assert highest[:5] == (2**64 - 1, 2**128 - 1, -(2**63), "NaN", "Infinity")
    assert highest[5:9] == ("a\\u0000b", b"\0\xff", "US517G5965aydkZ46HS38QLi7UQiSojurfbQfKCELFx", True)
    assert highest[9:] == (Decimal(2**64 - 1), [str(2**64 - 1)], ["\\u0000", "\\u0000"])
    assert lowest[0] == 0
    assert lowest[3:5] == ("-0", "1e-45")
    assert lowest[9] is None
    assert find_damage_in(warehouse, program) == []


def test_leaving_without_commit_changes_nothing(warehouse, open_load):
    load(warehouse, PROGRAM, [simple(1)])
    connection, plan, decoder, attempt = open_load()
    with chunk_load(connection, plan, PROGRAM, CHUNK, attempt) as unfinished:
        unfinished.write(decode(decoder, PROGRAM, records(PROGRAM, [simple(2)] * 10)))
        unfinished._copy_all()
    assert rows(warehouse, AMOUNTS) == [(100, 1)]


def test_an_interrupted_load_changes_nothing(warehouse, open_load):
    load(warehouse, PROGRAM, [simple(1)])
    connection, plan, decoder, attempt = open_load()

    def interrupted():
        with chunk_load(connection, plan, PROGRAM, CHUNK, attempt) as begun:
            begun.write(decode(decoder, PROGRAM, records(PROGRAM, [simple(2)])))
            begun._copy_all()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert rows(warehouse, AMOUNTS) == [(100, 1)]


def test_an_attempt_that_was_taken_over_before_its_load_is_refused(warehouse, open_load):
    connection, plan, _, attempt = open_load()
    load(warehouse, PROGRAM, [simple(1)])
    with (
        pytest.raises(AttemptFencedError, match="demo/alpha chunk 0000000100: another attempt at its events"),
        chunk_load(connection, plan, PROGRAM, CHUNK, attempt),
    ):
        pytest.fail("a load of a fenced attempt must not begin")
    assert rows(warehouse, AMOUNTS) == [(100, 1)]


def test_of_two_loads_at_once_the_later_waits_and_replaces_the_earlier(warehouse, open_load):
    connection, plan, decoder, attempt = open_load()
    with chunk_load(connection, plan, PROGRAM, CHUNK, attempt) as earlier:
        later = threading.Thread(target=load, args=(warehouse, PROGRAM, [simple(2)]))
        later.start()
        wait_for_a_lock(warehouse)
        earlier.write(decode(decoder, PROGRAM, records(PROGRAM, [simple(1)] * 3)))
        earlier.commit(COUNTS, "1" * 32)
    later.join(30)
    assert rows(warehouse, AMOUNTS) == [(100, 2)]
    # What the earlier one does after it was fenced counts no more.
    with connect(warehouse, application_name="test") as other:
        fail_attempt(other, PROGRAM, CHUNK, attempt, "events", "too late")
    assert rows(warehouse, "SELECT events_state, events_error FROM uho.chunk") == [("complete", None)]


def test_chunks_of_one_program_load_side_by_side(warehouse, open_load):
    connection, plan, decoder, attempt = open_load()
    with chunk_load(connection, plan, PROGRAM, CHUNK, attempt) as slow:
        slow.write(decode(decoder, PROGRAM, records(PROGRAM, [simple(1)])))
        slow._copy_all()
        load(warehouse, PROGRAM, [simple(2)], chunk=NEXT)
        assert rows(warehouse, AMOUNTS) == [(200, 2)]
        slow.commit(COUNTS, "1" * 32)
    assert rows(warehouse, AMOUNTS) == [(100, 1), (200, 2)]


def test_batches_that_interleave_tables_are_copied_within_bounds(warehouse, open_load, monkeypatch):
    monkeypatch.setattr(load_module, "TABLE_BYTES", 2_000)
    monkeypatch.setattr(load_module, "GATHERED_BYTES", 3_000)
    monkeypatch.setattr(load_module, "PIECE_BYTES", 500)
    connection, plan, decoder, attempt = open_load()
    most = 0
    with chunk_load(connection, plan, PROGRAM, CHUNK, attempt) as many:
        for slot in range(100, 200, 10):
            events = ("Simple", "Other") * 5
            batch = records(PROGRAM, [simple(slot, event) for event in events], first_slot=slot)
            many.write(decode(decoder, PROGRAM, batch))
            most = max(most, sum(target.waiting for target in many._targets()))
        result = many.commit(COUNTS, "1" * 32)
    assert result.rows == {"Simple": 50, "Other": 50}
    assert 0 < most < 3_000


def test_rows_outside_of_the_chunk_are_refused(warehouse):
    with pytest.raises(RowsMisplacedError, match="101 rows of Simple were written and 100 lie in"):
        load(warehouse, PROGRAM, [simple(1)] * 101)
    assert rows(warehouse, AMOUNTS) == []


TRIGGER = """
    CREATE FUNCTION demo_sim_alpha.meddle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {} END $$;
    CREATE TRIGGER meddle BEFORE INSERT ON demo_sim_alpha.simple FOR EACH ROW EXECUTE FUNCTION demo_sim_alpha.meddle()
"""


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("IF NEW.slot = 105 THEN RETURN NULL; END IF; RETURN NEW;", 9),
        ("IF NEW.slot = 105 THEN NEW.slot := 1000; END IF; RETURN NEW;", 9),
        (
            "IF NEW.event_index = 0 THEN INSERT INTO demo_sim_alpha.simple VALUES "
            "(NEW.slot, NEW.tx_index, 7, NEW.signature, NEW.source, NEW.block_time, 1); END IF; RETURN NEW;",
            20,
        ),
    ],
)
def test_a_table_that_keeps_other_rows_than_were_sent_is_refused(warehouse, body, found):
    load(warehouse, PROGRAM, [simple(1)], chunk=NEXT)
    execute(warehouse, TRIGGER.format(body))
    with pytest.raises(RowsMisplacedError, match=f"10 rows of Simple were written and {found} lie in"):
        load(warehouse, PROGRAM, [simple(1)] * 10)
    assert rows(warehouse, AMOUNTS) == [(200, 1)]


def test_a_table_that_alters_values_is_found_by_its_digest(warehouse):
    load(warehouse, PROGRAM, [simple(1)], chunk=NEXT)
    execute(warehouse, TRIGGER.format("NEW.amount := 2; RETURN NEW;"))
    load(warehouse, PROGRAM, [simple(1)] * 10)
    (damage,) = find_damage_in(warehouse, PROGRAM)
    assert (damage.event, damage.rows_loaded, damage.rows_found) == ("Simple", 10, 10)


def execute(url, statement):
    with connect(url, application_name="test") as connection:
        connection.execute(statement)


def test_rows_of_events_that_the_idl_dropped_are_removed_with_their_chunk(warehouse):
    load(warehouse, PROGRAM, [simple(1, "Other")] * 2)
    load(warehouse, PROGRAM, [simple(1, "Other")] * 2, chunk=NEXT)
    load(warehouse, program_of({"Simple": SIMPLE}), [simple(1)])
    assert rows(warehouse, "SELECT slot FROM demo_sim_alpha.other ORDER BY slot") == [(200,), (201,)]


def test_quarantine_is_replaced_with_its_chunk_and_says_why(warehouse):
    load(warehouse, PROGRAM, [b"unknown discriminator", simple(1) + b"\0", simple(1)])
    load(warehouse, PROGRAM, [b"another unknown"], chunk=NEXT)
    query = "SELECT slot, length, split_part(reason, ':', 1), discriminator FROM uho.quarantine ORDER BY slot"
    assert rows(warehouse, query) == [
        (100, 21, "unknown_discriminator", b"unknown "),
        (101, 17, "trailing_bytes", hashlib.sha256(b"event:Simple").digest()[:8]),
        (200, 15, "unknown_discriminator", b"another "),
    ]
    assert load(warehouse, PROGRAM, [simple(1)]).quarantined == 0
    assert [row[0] for row in rows(warehouse, query)] == [200]


def test_a_program_may_stop_asking_for_failed_transactions(warehouse):
    program = program_of({"Simple": SIMPLE}, include_failed=True)
    load(warehouse, program, [simple(1)], failed=True)
    assert rows(warehouse, "SELECT failed, truncated FROM demo_sim_alpha.simple") == [(True, False)]
    load(warehouse, program_of({"Simple": SIMPLE}), [simple(1)], chunk=NEXT)
    assert rows(warehouse, "SELECT failed FROM demo_sim_alpha.simple ORDER BY slot") == [(True,), (None,)]


def test_a_connection_with_a_transaction_of_its_own_is_refused(warehouse, open_load):
    connection, plan, _, attempt = open_load()
    connection.execute("SELECT 1")
    with (
        pytest.raises(ConnectionBusyError, match="is in a transaction already"),
        chunk_load(connection, plan, PROGRAM, CHUNK, attempt),
    ):
        pass


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_postgres_that_ends_within_a_copy_leaves_the_chunk_as_it_was(expendable, open_load, monkeypatch, how):
    url = expendable.url("uho")
    migrate(url)
    load(url, PROGRAM, [simple(1)])
    connection, plan, decoder, attempt = open_load(url=url)

    def end_it():
        if how == "stopped":
            expendable.stop()
        else:
            os.kill(expendable.process.pid, signal.SIGKILL)
            expendable.process.wait()
        return b"\xff\xff"

    def cut():
        with chunk_load(connection, plan, PROGRAM, CHUNK, attempt) as begun:
            begun.write(decode(decoder, PROGRAM, records(PROGRAM, [simple(2)] * 100)))
            begun._copy_all()
            monkeypatch.setattr(uho_native, "copy_trailer", end_it)
            begun.write(decode(decoder, PROGRAM, records(PROGRAM, [simple(2, "Other")] * 100)))
            begun.commit(COUNTS, "2" * 32)

    with pytest.raises(psycopg.OperationalError):
        cut()
    monkeypatch.undo()
    expendable.start()
    assert rows(url, AMOUNTS) == [(100, 1)]
    assert rows(url, "SELECT count(*) FROM demo_sim_alpha.other") == [(0,)]
    assert rows(
        url, "SELECT loaded_digest, sum(row_count) FROM uho.chunk JOIN uho.chunk_table USING (chunk_start) GROUP BY 1"
    ) == [("1" * 32, 1)]
    assert load(url, PROGRAM, [simple(3)]).rows["Simple"] == 1


def find_damage_in(url, program):
    with connect(url, application_name="test") as connection:
        return find_damage(connection, program, CHUNK)


def wait_for_a_lock(url):
    """Return once a session waits for a lock."""
    deadline = time.monotonic() + 60
    while not rows(url, "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"):
        assert time.monotonic() < deadline, "nobody waits for a lock"
        time.sleep(0.02)
