"""The ledger: who owns a chunk, what is known of it whatever became of the latest attempt, and what is proven."""

import threading
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from made_up import CHUNK, COUNTS, NEXT, SIMPLE, certificate, load, program_of, prove, rows, simple

from uho_pipelines.chunks import Chunk
from uho_pipelines.warehouse import connect, migrate
from uho_pipelines.warehouse.chain import read_chain
from uho_pipelines.warehouse.ledger import (
    AttemptFencedError,
    CertificateMismatchError,
    ChunkSlotsFixedError,
    ProgramChangedError,
    begin_attempt,
    clear_halt,
    fail_attempt,
    finish_records,
    fix_chunk_slots,
    get_halt,
    get_tip,
    leave_attempt,
    owns_attempt,
    register_program,
    set_halt,
    set_tip,
)

PROGRAM = program_of({"Simple": SIMPLE})
STATUS = "SELECT status FROM uho.chunk_status ORDER BY program, chunk_start"
RANGES = "SELECT start_slot, last_slot, chunks, events FROM uho.proven_ranges"


@pytest.fixture
def ledger(warehouse):
    with connect(warehouse, application_name="test") as connection:
        yield connection


def test_the_tip_never_moves_back(ledger):
    assert get_tip(ledger, "sim") is None
    set_tip(ledger, "sim", 500)
    set_tip(ledger, "sim", 400)
    assert get_tip(ledger, "sim") == 500
    fix_chunk_slots(ledger, "sim", 100)
    set_tip(ledger, "sim", 600)
    assert get_tip(ledger, "sim") == 600


def test_the_chunk_size_is_fixed_at_first_use(ledger):
    fix_chunk_slots(ledger, "sim", 100)
    fix_chunk_slots(ledger, "sim", 100)
    with pytest.raises(ChunkSlotsFixedError, match="Set UHO_NETWORKS__SIM__CHUNK_SLOTS=100"):
        fix_chunk_slots(ledger, "sim", 200)
    with pytest.raises(ChunkSlotsFixedError):
        begin_attempt(ledger, PROGRAM, Chunk(0, 200), "records")


def test_a_folder_cannot_become_another_program(ledger):
    fix_chunk_slots(ledger, "sim", 100)
    register_program(ledger, PROGRAM)
    with pytest.raises(ProgramChangedError, match="Give the other program a folder of its own"):
        register_program(ledger, program_of({"Simple": SIMPLE}, program_id="1" * 32))


@pytest.mark.parametrize("stage", ["records", "events"])
def test_a_new_attempt_fences_the_older_ones_of_its_stage_alone(ledger, stage):
    other = "events" if stage == "records" else "records"
    first = begin_attempt(ledger, PROGRAM, CHUNK, stage)
    beside = begin_attempt(ledger, PROGRAM, CHUNK, other)
    second = begin_attempt(ledger, PROGRAM, CHUNK, stage)
    with pytest.raises(AttemptFencedError):
        owns_attempt(ledger, PROGRAM, CHUNK, first, stage)
    owns_attempt(ledger, PROGRAM, CHUNK, second, stage)
    owns_attempt(ledger, PROGRAM, CHUNK, beside, other)


def test_of_attempts_that_begin_at_once_one_owns_the_chunk(warehouse):
    attempts = []

    def begin():
        with connect(warehouse, application_name="test") as connection:
            attempts.append(begin_attempt(connection, PROGRAM, CHUNK, "records"))

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(set(attempts)) == 8
    ((owner,),) = rows(warehouse, "SELECT records_attempt FROM uho.chunk")
    assert owner in attempts


def test_a_fenced_attempt_finishes_and_fails_nothing(warehouse, ledger):
    first = begin_attempt(ledger, PROGRAM, CHUNK, "records")
    begin_attempt(ledger, PROGRAM, CHUNK, "records")
    fail_attempt(ledger, PROGRAM, CHUNK, first, "records", "late")
    with pytest.raises(AttemptFencedError):
        finish_records(ledger, PROGRAM, CHUNK, first, certificate(PROGRAM))
    assert rows(warehouse, "SELECT records_state, records_error, certificate FROM uho.chunk") == [
        ("running", None, None)
    ]


def test_what_fails_after_an_attempt_completed_does_not_undo_it(warehouse, ledger):
    attempt = begin_attempt(ledger, PROGRAM, CHUNK, "records")
    finish_records(ledger, PROGRAM, CHUNK, attempt, certificate(PROGRAM))
    fail_attempt(ledger, PROGRAM, CHUNK, attempt, "records", "afterwards")
    assert rows(warehouse, "SELECT records_state, records_error FROM uho.chunk") == [("complete", None)]


def test_an_attempt_that_was_interrupted_leaves_its_stage_pending_unless_it_is_no_longer_its(warehouse, ledger):
    first = begin_attempt(ledger, PROGRAM, CHUNK, "records")
    second = begin_attempt(ledger, PROGRAM, CHUNK, "records")
    leave_attempt(ledger, PROGRAM, CHUNK, first, "records")
    assert rows(warehouse, "SELECT records_state FROM uho.chunk") == [("running",)]
    leave_attempt(ledger, PROGRAM, CHUNK, second, "records")
    assert rows(warehouse, "SELECT records_state, records_error FROM uho.chunk") == [("pending", None)]


def test_errors_and_counts_may_hold_what_postgres_takes_not(warehouse, ledger):
    attempt = begin_attempt(ledger, PROGRAM, CHUNK, "events")
    counts = {"a\0b": ["\\u0000", "\\\0", "é\0"]}
    fail_attempt(ledger, PROGRAM, CHUNK, attempt, "events", "x\0y" + "z" * 3_000, counts)
    ((error, kept),) = rows(warehouse, "SELECT events_error, events_counts FROM uho.chunk")
    assert error == "x\\u0000y" + "z" * (2_000 - 8)
    assert kept == {"a\\u0000b": ["\\u0000", "\\\\u0000", "é\\u0000"]}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"startSlot": 0}, r"is of slots \[0, 200\)"),
        ({"endSlot": 300}, r"is of slots \[100, 300\)"),
        ({"programs": {}}, "says nothing of"),
    ],
)
def test_a_certificate_of_something_else_proves_nothing(ledger, changes, reason):
    attempt = begin_attempt(ledger, PROGRAM, CHUNK, "records")
    with pytest.raises(CertificateMismatchError, match=reason):
        finish_records(ledger, PROGRAM, CHUNK, attempt, certificate(PROGRAM, **changes))


def test_a_chunk_is_proven_when_its_records_and_its_events_are(warehouse):
    with connect(warehouse, application_name="test") as connection:
        begin_attempt(connection, PROGRAM, CHUNK, "records")
    assert rows(warehouse, STATUS) == [("no records",)]
    prove(warehouse, PROGRAM)
    assert rows(warehouse, STATUS) == [("not loaded",)]
    assert rows(warehouse, RANGES) == []
    load(warehouse, PROGRAM, [simple(1)] * 7)
    assert rows(warehouse, STATUS) == [("proven",)]
    assert rows(warehouse, RANGES) == [(100, 199, 1, 7)]


@pytest.mark.parametrize("stage", ["records", "events"])
@pytest.mark.parametrize("end", ["running", "failed"])
def test_a_later_attempt_that_does_not_complete_hides_nothing(warehouse, stage, end):
    prove(warehouse, PROGRAM)
    load(warehouse, PROGRAM, [simple(1)])
    with connect(warehouse, application_name="test") as connection:
        attempt = begin_attempt(connection, PROGRAM, CHUNK, stage)
        if end == "failed":
            fail_attempt(connection, PROGRAM, CHUNK, attempt, stage, "broken", COUNTS | {"records": 99})
    assert rows(warehouse, RANGES) == [(100, 199, 1, 1)]
    assert rows(warehouse, f"SELECT {stage}_state, error FROM uho.chunk_status") == [
        (end, "broken" if end == "failed" else None)
    ]
    assert rows(warehouse, "SELECT loaded_counts FROM uho.chunk") == [(COUNTS,)]


def test_records_that_were_read_again_and_differ_make_the_events_outdated(warehouse):
    prove(warehouse, PROGRAM)
    load(warehouse, PROGRAM, [simple(1)])
    prove(warehouse, PROGRAM, digest="2" * 32)
    assert rows(warehouse, STATUS) == [("outdated",)]
    assert rows(warehouse, RANGES) == []
    assert rows(warehouse, "SELECT amount FROM demo_sim_alpha.simple") == [(1,)], (
        "the rows stay until they are replaced"
    )
    load(warehouse, PROGRAM, [simple(2)], digest="2" * 32)
    assert rows(warehouse, STATUS) == [("proven",)]
    prove(warehouse, PROGRAM, digest="2" * 32)
    assert rows(warehouse, STATUS) == [("proven",)], "the same records need no new load"


@pytest.mark.parametrize(
    "changes",
    [
        {"tail": "unproven"},
        {"tail": "unread"},
        {"tail": None},
        {"verify": "matched"},
        {"verify": "off"},
        {"unresolvedLookups": 1},
        {"unrecorded": 1},
        {"unrecorded": None},
    ],
)
def test_a_certificate_that_leaves_something_open_proves_nothing(warehouse, changes):
    prove(warehouse, PROGRAM, **changes)
    load(warehouse, PROGRAM, [simple(1)])
    assert rows(warehouse, STATUS) == [("unproven",)]
    assert rows(warehouse, RANGES) == []


def test_metadata_that_only_other_transactions_lack_leaves_nothing_open(warehouse):
    prove(warehouse, PROGRAM, missingMetadata=7)
    load(warehouse, PROGRAM, [simple(1)])
    assert rows(warehouse, STATUS) == [("proven",)]


def test_ranges_are_merged_where_chunks_touch_and_kept_apart_where_not(warehouse):
    other = program_of({"Simple": SIMPLE}, name="beta")
    for start in (0, 100, 200, 400, 500, 900):
        prove(warehouse, PROGRAM, Chunk(start, 100))
        load(warehouse, PROGRAM, [simple(1)] * (1 + start // 100), chunk=Chunk(start, 100))
    prove(warehouse, PROGRAM, Chunk(600, 100))
    prove(warehouse, other, Chunk(300, 100))
    load(warehouse, other, [], chunk=Chunk(300, 100))
    assert rows(warehouse, "SELECT program, start_slot, last_slot, chunks, events FROM uho.proven_ranges") == [
        ("alpha", 0, 299, 3, 6),
        ("alpha", 400, 599, 2, 11),
        ("alpha", 900, 999, 1, 10),
        ("beta", 300, 399, 1, 0),
    ]


def test_certificates_are_only_appended_to(warehouse):
    prove(warehouse, PROGRAM)
    prove(warehouse, PROGRAM, NEXT)
    prove(warehouse, PROGRAM)
    assert rows(
        warehouse,
        "SELECT number, chunk_start, previous_hash = coalesce(lag(hash) OVER (ORDER BY number), repeat('0', 64)), "
        "hash = uho.certificate_hash(line) FROM uho.certificate line ORDER BY number",
    ) == [(1, CHUNK.start, True, True), (2, NEXT.start, True, True), (3, CHUNK.start, True, True)]
    assert rows(warehouse, "SELECT chunk_start, certificate_number FROM uho.chunk ORDER BY 1") == [
        (CHUNK.start, 3),
        (NEXT.start, 2),
    ]
    for statement in (
        "UPDATE uho.certificate SET attempt = NULL",
        "DELETE FROM uho.certificate",
        "TRUNCATE uho.certificate",
    ):
        with (
            connect(warehouse, application_name="test") as connection,
            pytest.raises(psycopg.errors.InsufficientPrivilege, match=r"uho\.certificate is only appended to"),
        ):
            connection.execute(statement)


def test_certificates_are_numbered_in_the_order_in_which_they_are_committed(warehouse):
    chunks = [Chunk(start, 100) for start in range(0, 2_000, 100)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda chunk: prove(warehouse, PROGRAM, chunk), chunks))
    with connect(warehouse, application_name="test") as connection:
        chain = read_chain(connection, PROGRAM)
    assert (chain.lines, chain.faults, chain.scars) == (20, {}, [])


@pytest.mark.parametrize(
    ("statement", "number", "said"),
    [
        ("UPDATE uho.certificate SET record_count = 2 WHERE number = 2", 2, "its hash is not that of its content"),
        ("DELETE FROM uho.certificate WHERE number = 3", 3, "is gone"),
        ("DELETE FROM uho.certificate WHERE number = 1", 1, "is gone"),
        (
            "UPDATE uho.certificate line SET hash = uho.certificate_hash(ROW(line.network, owner, program, number, "
            "chunk_start, chunk_end, attempt, completed_at, 2, records_digest, certificate, previous_hash, '')"
            "::uho.certificate), record_count = 2 WHERE number = 2",
            2,
            "line 3 holds another hash of it",
        ),
        (
            "UPDATE uho.certificate line SET hash = uho.certificate_hash(ROW(line.network, owner, program, number, "
            "chunk_start, chunk_end, attempt, completed_at, 2, records_digest, certificate, previous_hash, '')"
            "::uho.certificate), record_count = 2 WHERE number = 3",
            3,
            "uho.program holds another hash of it",
        ),
    ],
)
def test_an_edited_or_deleted_line_is_found(warehouse, statement, number, said):
    for start in (0, 100, 200):
        prove(warehouse, PROGRAM, Chunk(start, 100))
    with connect(warehouse, application_name="test") as connection:
        connection.execute("ALTER TABLE uho.certificate DISABLE TRIGGER appended_only")
        assert connection.execute(statement).rowcount == 1
        connection.execute("ALTER TABLE uho.certificate ENABLE TRIGGER appended_only")
        connection.commit()
        chain = read_chain(connection, PROGRAM)
        assert list(chain.faults) == [number]
        assert said in chain.faults[number]
        connection.execute("UPDATE uho.chunk SET certificate_number = NULL")
        connection.commit()
        assert read_chain(connection, PROGRAM).faults == {}
        assert len(read_chain(connection, PROGRAM).scars) == 1


def test_a_halt_stands_for_the_idl_versions_that_failed(ledger):
    other = program_of({"Simple": SIMPLE}, {"Simple": {"amount": "u8"}})
    begin_attempt(ledger, PROGRAM, CHUNK, "events")
    assert get_halt(ledger, PROGRAM) is None
    assert clear_halt(ledger, PROGRAM, "ada", "we know") is False
    set_halt(ledger, PROGRAM, CHUNK, "30 % do not decode")
    set_halt(ledger, PROGRAM, NEXT, "so it is here")
    assert get_halt(ledger, PROGRAM) == "30 % do not decode"
    assert get_halt(ledger, other) is None, "a new IDL version lifts it"
    assert clear_halt(ledger, other, "ada", "we know") is True
    assert get_halt(ledger, PROGRAM) is None


def test_migrations_that_run_at_once_and_again_change_nothing(warehouse):
    prove(warehouse, PROGRAM)
    failures = []

    def attempt():
        try:
            migrate(warehouse)
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=attempt) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert rows(warehouse, STATUS) == [("not loaded",)]
