"""Rows of real transactions against an RPC node that answers with the same chain, decoded by anchorpy."""

import base64
import hashlib
import json
from collections import Counter

import pytest
import yaml
from psycopg import sql
from rpc_nodes import CREDENTIALS, Node, serving
from services import SECRET, fresh_warehouse, running_sidecar, shared_data
from solders.pubkey import Pubkey
from test_real_data import CHUNK_SLOTS, EPOCH_800, PROGRAMS

from uho_pipelines.checks import integrity
from uho_pipelines.integrity.check import check_chunk
from uho_pipelines.integrity.sampling import Job
from uho_pipelines.materialization import Reporter, load_events, read_records
from uho_pipelines.registry import load_registry
from uho_pipelines.settings import NetworkSettings, Settings
from uho_pipelines.warehouse import connect, read_plan

SPEAKING = {name: of for name, of in PROGRAMS.items() if name != "token"}
ALL = 10_000
"""So many samples and blocks are all there are."""


@pytest.fixture(scope="module")
def data():
    return shared_data()


@pytest.fixture(scope="module")
def loaded(data, postgres, tmp_path_factory):
    """Settings of a warehouse with the six programs' events of epoch 800."""
    home = tmp_path_factory.mktemp("integrity")
    for name, (program_id, pattern) in SPEAKING.items():
        folder = home / "programs" / name
        folder.mkdir(parents=True)
        idl = next(data.glob(f"idl/{pattern}"))
        (folder / idl.name).write_bytes(idl.read_bytes())
        fields = {
            "program_id": program_id,
            "network": "mainnet",
            "owner": "test",
            "scan_group": "real",
            "first_slot": EPOCH_800[0].start,
            "idls": [{"from_slot": 0, "file": idl.name}],
        }
        (folder / "program.yaml").write_text(yaml.safe_dump(fields))
    archive = str(data / "archive")
    with running_sidecar({"mainnet": archive}, home / "sidecar.log") as sidecar:
        settings = Settings(
            home=home,
            sidecar_url=sidecar.url,
            sidecar_secret=SECRET,
            postgres_url=fresh_warehouse(postgres, "integrity_real"),
            programs_dir=home / "programs",
            integrity_samples=ALL,
            integrity_blocks=1_000,
            networks={
                "mainnet": NetworkSettings(archive_url=archive, chunk_slots=CHUNK_SLOTS, checkpoint_slots=10_000)
            },
        )
        programs = load_registry(settings).programs
        for chunk in EPOCH_800:
            for outcome in read_records(settings, programs, chunk, Reporter()):
                assert outcome.error is None, outcome.error
                load_events(settings, outcome.program, chunk, Reporter())
        yield settings


@pytest.fixture(scope="module")
def answers(data):
    return [json.loads(line) for line in (data / "rpc" / "transactions-800.jsonl").read_text().splitlines()]


@pytest.fixture
def node(answers):
    with serving(Node(answers)) as node:
        yield node


def check(settings, node, chunk=EPOCH_800[0], *, program="pump_amm", seed=1, **network):
    """Compare everything of a chunk with the node."""
    of_network = {**settings.network("mainnet").model_dump(), "rpc_url": node.url, "rpc_calls_per_second": 100_000}
    changed = settings.model_copy(update={"networks": {"mainnet": NetworkSettings(**of_network | network)}})
    url = settings.postgres_url.get_secret_value()
    found = next(item for item in load_registry(settings).programs if item.name == program)
    return check_chunk(changed, url, found, chunk, Job("test"), seed=seed)


def rows_of(settings, program, condition="true"):
    """Return (event, slot, signature) of a program's rows."""
    with connect(settings.postgres_url.get_secret_value(), application_name="test") as connection:
        return [
            (event, *row)
            for event, table in read_plan(connection, program).tables.items()
            for row in connection.execute(
                sql.SQL("SELECT slot, signature FROM {}").format(sql.Identifier(table.schema, table.name))
            )
        ]


def test_every_row_is_verified_and_nothing_that_was_said_is_missing(loaded, node):
    events = Counter()
    for program in load_registry(loaded).programs:
        signatures = {"stored": set(), "chain": set()}
        for chunk in EPOCH_800:
            outcome = check(loaded, node, chunk, program=program.name)
            assert outcome.blocks_known == outcome.blocks_read == outcome.blocks_proved > 10
            for sample in outcome.samples:
                assert sample.outcome == "verified", sample
                signatures[sample.side].add(sample.signature)
            events[program.name] += sum(s.comparison.events for s in outcome.samples if s.side == "chain")
        stored = rows_of(loaded, program)
        assert signatures["stored"] == signatures["chain"] == {signature for _, _, signature in stored}
        assert events[program.name] == len(stored)
    # As many as Anchor's own decoder found in these transactions.
    assert events.total() == 39
    assert set(events) == set(SPEAKING)


def outcomes(result):
    return {outcome: count for outcome, count in result.counts().items() if count}


def test_one_field_of_one_answer_altered_is_exactly_that_mismatch(loaded, node):
    program = next(item for item in load_registry(loaded).programs if item.name == "whirlpool")
    event, slot, signature = rows_of(loaded, program)[0]
    lines = node.transactions[signature]["meta"]["logMessages"]
    discriminator = hashlib.sha256(f"event:{event}".encode()).digest()[:8]
    (place,) = [
        place
        for place, line in enumerate(lines)
        if line.startswith("Program data: ") and base64.b64decode(line[14:]).startswith(discriminator)
    ]
    payload = bytearray(base64.b64decode(lines[place][14:]))
    payload[8] ^= 1  # the first byte of the first field
    lines[place] = f"Program data: {base64.b64encode(bytes(payload)).decode()}"
    chunk = next(chunk for chunk in EPOCH_800 if chunk.start <= slot < chunk.end)
    found = check(loaded, node, chunk, program="whirlpool")
    assert outcomes(found) == {"mismatch": 2}  # drawn from both sides
    for sample in found.samples:
        assert sample.signature == signature
        (difference,) = sample.comparison.differences
        assert (difference.event, difference.field) == (event, "whirlpool")
        assert str(Pubkey.from_string(difference.stored)) != str(Pubkey.from_string(difference.chain))
    verdict = integrity(found)
    assert verdict.errors
    assert signature in verdict.metadata["differences"].md_str
    others = [other for other in EPOCH_800 if other != chunk]
    assert all(set(outcomes(check(loaded, node, other, program="whirlpool"))) <= {"verified"} for other in others)


def test_a_row_that_is_gone_is_found_from_the_chains_side_and_a_row_too_many_too(loaded, node):
    program = next(item for item in load_registry(loaded).programs if item.name == "whirlpool")
    event, slot, signature = rows_of(loaded, program)[0]
    chunk = next(chunk for chunk in EPOCH_800 if chunk.start <= slot < chunk.end)
    with connect(loaded.postgres_url.get_secret_value(), application_name="test") as connection:
        table = sql.Identifier(program.schema_name, read_plan(connection, program).tables[event].name)
        where = sql.SQL("FROM {} WHERE slot = %s AND signature = %s").format(table)
        connection.execute(sql.SQL("CREATE TEMP TABLE kept AS SELECT * ") + where, [slot, signature])
        connection.execute(sql.SQL("DELETE ") + where, [slot, signature])
        connection.commit()
        try:
            found = check(loaded, node, chunk, program="whirlpool")
        finally:
            connection.execute(sql.SQL("INSERT INTO {} SELECT * FROM kept").format(table))
            connection.commit()
    assert outcomes(found) == {"mismatch": 1}
    (sample,) = found.samples
    assert (sample.side, sample.signature) == ("chain", signature)
    assert [(d.event, d.field, d.stored) for d in sample.comparison.differences] == [(event, "row", "no row")]

    removed = node.transactions.pop(signature)
    found = check(loaded, node, chunk, program="whirlpool")
    by_side = {sample.side: sample for sample in found.samples}
    assert by_side["stored"].outcome == "not served"
    # Where the node has the slot's block without it, the row is one too many.
    if any(item["slot"] == slot for item in node.transactions.values()):
        assert by_side["chain"].outcome == "mismatch"
    node.transactions[signature] = removed
    assert outcomes(check(loaded, node, chunk, program="whirlpool")) == {"verified": 2}


def test_what_the_node_does_not_have_is_not_served_and_warns_when_it_is_most(loaded, node):
    for signature in list(node.transactions)[::2]:
        node.transactions[signature]["meta"] = None
    some = check(loaded, node)
    assert set(outcomes(some)) == {"verified", "not comparable"}
    assert not integrity(some).errors
    node.cleaned_up = True
    none = check(loaded, node)
    assert set(outcomes(none)) == {"not served"}
    verdict = integrity(none)
    assert not verdict.errors
    assert "not served by the RPC node" in verdict.warnings[0]
    assert "its history begins later" in str(verdict.metadata["reasons"])


def test_a_node_that_is_busy_is_asked_again_and_one_that_is_silent_given_up(loaded, node):
    node.failures = [(429, {"Retry-After": "0"}), (503, {}), (502, {})]
    busy = check(loaded, node)
    assert set(outcomes(busy)) == {"verified"}
    assert not integrity(busy).warnings

    node.failures = [(429, {"Retry-After": "0"})] * 1_000
    refused = check(loaded, node)
    assert set(outcomes(refused)) == {"not served"}
    assert "HTTP 429" in str(integrity(refused).metadata["reasons"])
    assert refused.http_requests <= 8

    node.failures, node.silent_seconds = [], 2.0
    quiet = check(loaded, node, rpc_timeout_seconds=0.2)
    assert set(outcomes(quiet)) == {"not served"}
    assert "no answer within 0.2 s" in str(integrity(quiet).metadata["reasons"])
    assert quiet.http_requests <= 8


def test_a_node_without_batches_is_asked_call_by_call(loaded, node):
    node.takes_batches = False
    outcome = check(loaded, node)
    assert set(outcomes(outcome)) == {"verified"}
    assert sum(isinstance(body, list) for body in node.bodies) == 1


def test_without_a_node_nothing_passes(loaded):
    url = loaded.postgres_url.get_secret_value()
    outcome = check_chunk(loaded, url, load_registry(loaded).programs[0], EPOCH_800[0], Job("test"))
    verdict = integrity(outcome)
    assert not verdict.errors
    assert "UHO_NETWORKS__MAINNET__RPC_URL" in verdict.warnings[0]


def test_the_ledger_has_every_sample_and_nothing_has_the_nodes_credentials(loaded, node):
    outcome = check(loaded, node, seed=77)
    with connect(loaded.postgres_url.get_secret_value(), application_name="test") as connection:
        kept = connection.execute(
            "SELECT side, slot, signature, outcome, node, s::text FROM uho.integrity_sample s WHERE seed = 77 "
            "ORDER BY sample"
        ).fetchall()
    assert [row[:4] for row in kept] == [(s.side, s.slot, s.signature, s.outcome) for s in outcome.samples]
    node.failures = [(401, {})] * 100
    shown = [*(row[5] for row in kept), repr(outcome), repr(integrity(outcome)), repr(check(loaded, node))]
    for text in shown:
        assert not any(secret in text for secret in (*CREDENTIALS, "secret-of-the-node"))


def test_the_same_seed_draws_the_same_samples(loaded, node):
    few = loaded.model_copy(update={"integrity_samples": 6})
    first, again, other = (check(few, node, seed=seed).samples for seed in (5, 5, 6))
    assert len(first) == 6
    assert first == again
    assert {(s.side, s.signature) for s in first} != {(s.side, s.signature) for s in other}
