"""How samples fall on chunks, what a program said, what a node may do, and the simulator's chain against its rows."""

import base64
import random
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rpc_nodes import simulated_node
from services import SECRET, fresh_warehouse, running_sidecar, simulate

from uho_pipelines.checks import integrity
from uho_pipelines.chunks import program_chunks
from uho_pipelines.integrity.anchorpy_values import Address, Nested, Single
from uho_pipelines.integrity.chain import ChainRecord, decode_base58, logged_payloads
from uho_pipelines.integrity.check import check_chunk
from uho_pipelines.integrity.comparison import same, without_twins
from uho_pipelines.integrity.outcome import NotChecked
from uho_pipelines.integrity.rpc import RpcClient
from uho_pipelines.integrity.sampling import Job, share_of
from uho_pipelines.materialization import Reporter, load_events, read_records
from uho_pipelines.registry import load_registry
from uho_pipelines.settings import NetworkSettings, Settings

ALL = 10_000
US = "Us11111111111111111111111111111111111111111"
THEM = "Them111111111111111111111111111111111111111"


@given(st.integers(1, 300), st.integers(1, 200))
def test_a_jobs_samples_are_spread_over_its_chunks_at_least_one_each(chunks, samples):
    shares = [share_of(Job("job", place, chunks), samples) for place in range(chunks)]
    counts = [share.samples for share in shares]
    assert min(counts) >= 1
    assert sum(counts) == max(chunks, samples)
    assert max(counts) - min(counts) <= 1
    assert 0 <= sum(share.stored for share in shares) - sum(share.chain for share in shares) <= 1


def test_a_demo_has_two_or_three_a_chunk_and_a_chunk_alone_all_fifty():
    assert {share_of(Job("job", place, 24), 50).samples for place in range(24)} == {2, 3}
    assert share_of(Job("run"), 50) == share_of(Job("run", 0, 1), 50)
    assert (share_of(Job("run"), 50).stored, share_of(Job("run"), 50).chain) == (25, 25)


def data(payload):
    return f"Program data: {base64.b64encode(payload).decode()}"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([f"Program {US} invoke [1]", data(b"one"), f"Program {US} success", data(b"nobody")], [b"one"]),
        (
            [
                *(f"Program {THEM} invoke [1]", data(b"theirs"), f"Program {US} invoke [2]", data(b"ours")),
                *(f"Program {US} failed: custom program error: 0x1", data(b"theirs"), f"Program {THEM} success"),
            ],
            [b"ours"],
        ),
        # What a program logs itself is no line of the runtime's.
        ([f"Program {US} invoke [1]", f"Program log: Program {US} success", data(b"one")], [b"one"]),
        # An end that was not logged: the depth says who speaks.
        (
            [f"Program {US} invoke [1]", f"Program {THEM} invoke [2]", f"Program {US} invoke [2]", data(b"one")],
            [b"one"],
        ),
        ([f"Program {US} invoke [1]", "Program data: AAAA BBBB", "Program data: no base64!"], [b"\0\0\0\x04\x10A"]),
        # Behind the cut a line counts only when the next stack line fits.
        ([f"Program {US} invoke [1]", "Log truncated", data(b"one"), f"Program {US} success"], [b"one"]),
        ([f"Program {US} invoke [1]", "Log truncated", data(b"one"), f"Program {THEM} success"], []),
        ([f"Program {US} invoke [1]", "Log truncated", data(b"one")], []),
    ],
)
def test_only_what_the_program_itself_said_is_a_record(lines, said):
    assert list(logged_payloads(lines, US)) == said


def test_twins_are_one_event_and_the_surplus_of_either_side_stays():
    records = [
        ChainRecord(i, s, p) for i, (s, p) in enumerate([("log", b"a"), ("log", b"a"), ("log", b"b"), ("cpi", b"a")])
    ]
    assert [record.event_index for record in without_twins(records)] == [1, 2, 3]


@given(st.binary(max_size=80))
def test_base58_is_read_back(content):
    text = "1" * (len(content) - len(content.lstrip(b"\0")))
    number, digits = int.from_bytes(content), ""
    while number:
        number, digit = divmod(number, 58)
        digits = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"[digit] + digits
    assert decode_base58(text + digits) == content


@pytest.mark.parametrize(
    ("stored", "chain", "equal"),
    [
        (Decimal(2**64 - 1), 2**64 - 1, True),
        (Decimal(2**64 - 1), 2**64 - 2, False),
        (-1, 2**64 - 1, False),
        (True, 1, False),
        (1, True, False),
        (None, 0, False),
        (0, None, False),
        ("0", 0, False),
        (0.0, -0.0, False),
        (-0.0, -0.0, True),
        (0.1, Single(0.10000000149011612), True),
        (0.1, 0.10000000149011612, False),
        (b"\1", b"\1", True),
        (US, Address(US), True),
        ({"a": "1", "b": [None, 1]}, Nested({"a": "1", "b": [None, 1]}), True),
        ({"order_id": "1"}, Nested({"orderId": "1"}), True),
        ({"a": 1}, Nested({"a": "1"}), False),
        ({"a": 1, "b": 2}, Nested({"a": 1}), False),
        ([1, True], Nested([1, 1]), False),
        ({"Limit": {}}, Nested({"Market": {}}), False),
        ([1e308], Nested([1e308]), True),
        ([0], Nested([-0.0]), True),
        (["Infinity"], Nested(["Infinity"]), True),
    ],
)
def test_values_are_the_same_exactly(stored, chain, equal):
    assert same(stored, chain) is equal


def test_nothing_but_scheme_and_host_of_a_node_is_shown():
    node = RpcClient("https://user:password@rpc.example:8899/v2/secret?api-key=secret", 1, 1, 1)
    assert node.shown == "https://rpc.example:8899"


@pytest.fixture(scope="module")
def loaded(postgres, tmp_path_factory):
    """Settings of a warehouse with one chunk of a simulated archive."""
    home = tmp_path_factory.mktemp("simulated")
    archive = simulate(home / "sim", first_slot=1_292_200, last_slot=1_292_549)
    with running_sidecar({"sim": str(archive)}, home / "sidecar.log") as sidecar:
        settings = Settings(
            home=home,
            sidecar_url=sidecar.url,
            sidecar_secret=SECRET,
            postgres_url=fresh_warehouse(postgres, "integrity_simulated"),
            programs_dir=archive / "programs",
            integrity_samples=ALL,
            integrity_blocks=1_000,
        )
        programs = load_registry(settings).programs
        for chunk in program_chunks(settings, programs[0], None):
            for outcome in read_records(settings, programs, chunk, Reporter()):
                assert outcome.error is None, outcome.error
                load_events(settings, outcome.program, chunk, Reporter())
        yield settings


def checked(settings, url, *, samples=ALL, seed=1):
    """Compare the chunk of both programs with the node at `url`; return the results."""
    network = {**settings.network("sim").model_dump(), "rpc_url": url}
    changed = settings.model_copy(
        update={"networks": {"sim": NetworkSettings(**network)}, "integrity_samples": samples}
    )
    results = []
    for program in load_registry(settings).programs:
        for chunk in program_chunks(settings, program, None):
            job = Job("test")
            result = check_chunk(changed, changed.postgres_url.get_secret_value(), program, chunk, job, seed=seed)
            assert not isinstance(result, NotChecked)
            results.append(result)
    return results


def total(results):
    return {name: sum(result.counts()[name] for result in results) for name in results[0].counts()}


def test_every_transaction_of_the_simulated_chain_is_verified_but_for_what_anchorpy_refuses(loaded):
    with simulated_node(loaded.home / "sim") as url:
        results = checked(loaded, url)
    counts = total(results)
    assert (counts["mismatch"], counts["not served"]) == (0, 0)
    assert counts["verified"] > 200
    # NaN is the one value that it does not read.
    reasons = {s.comparison.reason for r in results for s in r.samples if s.outcome == "not comparable"}
    assert reasons == {"anchorpy reads no NaN, and a payload of OrderFilled has one"}
    assert counts["not comparable"] < counts["verified"] / 10
    rows = sum(s.comparison.events for result in results for s in result.samples if s.side == "chain")
    assert rows > 500
    for result in results:
        assert not integrity(result).errors
        assert not integrity(result).warnings


def test_the_simulators_faults_come_out_as_what_they_are(loaded):
    with simulated_node(loaded.home / "sim", ["missing@4", "altered@7", "status=429@3", "status=503@5"]) as url:
        results = checked(loaded, url, samples=120)
    counts = total(results)
    assert all(counts[name] > 5 for name in ("verified", "mismatch", "not served")), counts
    for result in results:
        assert integrity(result).errors
        for sample in result.samples:
            assert (sample.outcome == "mismatch") == bool(sample.comparison.differences)


def test_a_few_random_samples_are_drawn_from_both_sides(loaded):
    with simulated_node(loaded.home / "sim") as url:
        for result in checked(loaded, url, samples=6, seed=random.randrange(2**60)):
            assert [sample.side for sample in result.samples] == ["stored"] * 3 + ["chain"] * 3
            assert total([result])["mismatch"] == 0
