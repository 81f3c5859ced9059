"""A program through its IDL versions: simulated, with one version missing, and pump's real history."""

import json
from collections import Counter

import pytest
from events import Record, load, rows
from services import SECRET, fresh_warehouse, running_sidecar, shared_data, simulate
from streams import make_program

from uho_pipelines.checks import version_hints
from uho_pipelines.chunks import Chunk, program_chunks
from uho_pipelines.decoding import Counts, decode, decoder_for, events_by_discriminator
from uho_pipelines.lake import Lake
from uho_pipelines.materialization import Reporter, load_events, read_records
from uho_pipelines.registry import IdlVersion, load_registry
from uho_pipelines.settings import NetworkSettings, Settings
from uho_pipelines.truth import compare_program, read_truth, truth_by_event
from uho_pipelines.warehouse import connect, ensure_tables, find_damage, read_plan

FIRST, LAST = 1_292_200, 1_294_299
SECOND, THIRD = 1_292_911, 1_293_603
"""Slots at which `Deposited` gets a field more, and another type of one. No chunk begins there."""

PUMP = "6EF8rrecthR5Dkzon8Nwu78hRvfCKubJ14M5uBEwF6P"
DEPOSITED = "6f8d1a2da1236439"


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    options = ["--layout-changes", f"{SECOND}..{THIRD}", "--undecodable", "0"]
    return simulate(tmp_path_factory.mktemp("versions"), first_slot=FIRST, last_slot=LAST, options=options)


@pytest.fixture(scope="module")
def settings(archive, postgres, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    with running_sidecar({"sim": str(archive)}, home / "sidecar.log") as sidecar:
        yield Settings(
            home=home,
            sidecar_url=sidecar.url,
            sidecar_secret=SECRET,
            postgres_url=fresh_warehouse(postgres, "versions"),
            programs_dir=archive / "programs",
            networks={"sim": NetworkSettings(chunk_slots=350, checkpoint_slots=50)},
        )


@pytest.fixture(scope="module")
def vault(settings):
    """The program with its three versions, whose records are in the lake."""
    program = load_registry(settings).program("vault")
    for chunk in program_chunks(settings, program, tip=None):
        (outcome,) = read_records(settings, [program], chunk, Reporter())
        assert outcome.error is None
    return program


def counted(settings, program):
    """Decode what the lake has, chunk by chunk."""
    counts = Counts()
    for chunk in program_chunks(settings, program, tip=None):
        for batch in Lake(settings).chunk(program, chunk).batches():
            counts.add(decode(decoder_for(program), program, batch).counts)
    return counts


def test_with_all_three_versions_every_row_is_there_and_nothing_is_in_quarantine(settings, vault, archive):
    by_version = Counter()
    for chunk in program_chunks(settings, vault, tip=None):
        outcome = load_events(settings, vault, chunk, Reporter())
        assert outcome.result is not None
        assert (outcome.counts.undecodable, outcome.counts.fallbacks) == (0, {})
        by_version += outcome.counts.decoded_by
        shown = {row.data["IDL version"] for row in outcome.verdict.metadata["by event and IDL version"].records}
        assert shown == {version for _, version in outcome.counts.decoded_by}
    url = settings.postgres_url.get_secret_value()
    assert rows(url, "SELECT count(*) FROM uho.quarantine") == [(0,)]
    truth = truth_by_event(archive, vault)
    for (slot, _, _), line in truth["Deposited"].items():
        if slot >= THIRD:
            line["fields"][f"amount__{THIRD}"] = line["fields"].pop("amount")
    with connect(url, application_name="test") as connection:
        for comparison in compare_program(connection, vault, read_plan(connection, vault), truth):
            assert comparison.equal, comparison.differences[:3]
    # Counts per version: those of the ledger are those of the truth.
    expected = Counter(
        (line["event"], vault.idls[(line["slot"] >= SECOND) + (line["slot"] >= THIRD)].label)
        for line in read_truth(archive)
        if line["program"] == "vault"
    )
    assert by_version == expected
    query = """
        SELECT d ->> 'event', d ->> 'idl', sum((d ->> 'count')::bigint)::bigint
          FROM uho.chunk, jsonb_array_elements(loaded_counts -> 'decoded_by') d WHERE program = 'vault' GROUP BY 1, 2"""
    assert {(event, idl): count for event, idl, count in rows(url, query)} == expected


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_with_a_version_missing_exactly_its_events_are_undecodable(settings, vault, archive, missing):
    idls = tuple(version for place, version in enumerate(vault.idls) if place != missing)
    lacking = make_program(
        vault.folder, "vault", program_id=vault.program_id, idls=idls, first_slot=FIRST, last_slot=LAST
    )
    counts = counted(settings, lacking)
    start, end = [(FIRST, SECOND), (SECOND, THIRD), (THIRD, LAST + 1)][missing]
    slots = [
        line["slot"]
        for line in read_truth(archive)
        if line["program"] == "vault" and line["event"] == "Deposited" and start <= line["slot"] < end
    ]
    assert len(slots) > 100
    assert counts.undecodable == len(slots)
    assert {discriminator for discriminator, _ in counts.undecodable_by} == {DEPOSITED}
    places = counts.unexplained.values()
    assert (min(place.first_slot for place in places), max(place.last_slot for place in places)) == (
        min(slots),
        max(slots),
    )
    if missing == 1:
        # The first version reads all but the field that the second one added.
        (hint,) = version_hints(counts, events_by_discriminator(lacking))
        assert hint == (
            f"Another IDL version is needed for Deposited ({DEPOSITED}): {len(slots):,} records since slot "
            f"{min(slots)} (to {max(slots)} here), 8 bytes unexplained (trailing_bytes)."
        )


def test_the_quarantine_says_in_sql_what_the_counts_say(settings, vault, archive):
    """A version without `Heartbeat`, a tenth of the events: the chunk loads, and what is left over is in quarantine."""
    documents = [json.loads(version.json) for version in vault.idls]
    for document in documents:
        document["events"] = [event for event in document["events"] if event["name"] != "Heartbeat"]
    idls = tuple(
        IdlVersion(version.from_slot, version.file, json.dumps(document).encode())
        for version, document in zip(vault.idls, documents, strict=True)
    )
    program = make_program(
        vault.folder, "vault", program_id=vault.program_id, idls=idls, first_slot=FIRST, last_slot=LAST
    )
    counts = Counts()
    for chunk in program_chunks(settings, program, tip=None):
        outcome = load_events(settings, program, chunk, Reporter())
        assert outcome.result is not None
        counts.add({**outcome.counts.as_json()})
    (kind,) = counts.undecodable_by
    found = counts.unexplained[kind]
    url = settings.postgres_url.get_secret_value()
    query = (
        "SELECT discriminator, code, records, first_slot, last_slot, least_unexplained_bytes, most_unexplained_bytes "
        "FROM uho.quarantine_kinds"
    )
    assert rows(url, query) == [
        (*kind, counts.undecodable_by[kind], found.first_slot, found.last_slot, found.least, found.most)
    ]
    assert counts.undecodable_by[kind] == len(truth_by_event(archive, vault)["Heartbeat"])


def history(data):
    """Return pump's dated IDLs, oldest first; the slots are made up, their order is real."""
    files = sorted(data.glob("idl/pump__*__20*.json"), key=lambda path: path.name.split("__")[2])
    return [IdlVersion(1_000 * place, path, path.read_bytes()) for place, path in enumerate(files)]


def test_pumps_real_history_migrates_its_tables_in_place(warehouse):
    data = shared_data()
    versions = history(data)
    assert len(versions) > 10
    lines = [json.loads(line) for line in (data / "oracle" / "events-800.jsonl").read_text().splitlines()]
    payloads = [bytes.fromhex(line["hex"]) for line in lines if line["program"] == PUMP]
    known = next(place for place, version in enumerate(versions) if "312051ac" in version.label)
    chunk = Chunk(1_000 * known, 1_000)
    records = [Record(chunk.start + place, payload) for place, payload in enumerate(payloads)]

    def program(count):
        return make_program(data, "pump", program_id=PUMP, idls=tuple(versions[:count]))

    loaded = load(warehouse, program(known + 1), *records, chunk=chunk)
    assert sum(loaded.rows.values()) == len(payloads) > 0
    before: dict[str, dict[str, str]] = {}
    added = []
    for count in range(known + 1, len(versions) + 1):
        with connect(warehouse, application_name="test") as connection:
            plan = ensure_tables(connection, program(count), decoder_for(program(count)).tables())
            after = {event: dict(table.kinds) for event, table in plan.tables.items()}
            for event, kinds in before.items():
                # Nothing that was there goes or changes; what is added is nullable, so old digests hold.
                assert kinds.items() <= after[event].items()
                added += after[event].keys() - kinds.keys()
            assert find_damage(connection, program(count), chunk) == []
        before = after
    assert {"mayhem_mode", "track_volume"} & set(added), added
    # In place or from nothing: the same columns.
    with connect(warehouse, application_name="test") as connection:
        connection.execute("DROP SCHEMA demo_sim_pump CASCADE")
        connection.execute("DELETE FROM uho.sql_name")
        fresh = ensure_tables(connection, program(len(versions)), decoder_for(program(len(versions))).tables())
    assert {event: dict(table.kinds) for event, table in fresh.tables.items()} == before
