"""The assets, materialized in this process: a made-up sidecar, a real Postgres, real runs."""

import json
from urllib.parse import urlsplit

import dagster as dg
import pytest
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import execute_run_iterator
from pydantic import SecretStr
from streams import (
    CHUNK_SLOTS,
    IDL,
    Answer,
    chunk_items,
    encode,
    error_item,
    fake_sidecar,
    make_records,
    make_settings,
    program_id,
    stream_of,
)

from uho_pipelines import assets, materialization, retries
from uho_pipelines.assets import events_key, idl_key, records_key
from uho_pipelines.chunks import Chunk
from uho_pipelines.definitions import build_definitions
from uho_pipelines.lake import Lake
from uho_pipelines.registry import load_registry
from uho_pipelines.warehouse import connect
from uho_pipelines.warehouse.connection import WarehouseUnreachableError

ALPHA, BETA = program_id("alpha"), program_id("beta")
CHUNK = Chunk(CHUNK_SLOTS, CHUNK_SLOTS)

PROGRAM = """\
program_id: {id}
network: sim
owner: demo
first_slot: 0
last_slot: 299
scan_group: pair
idls:
  - {{from_slot: 0, file: idl.json}}
"""


@pytest.fixture
def sidecar(monkeypatch):
    monkeypatch.setattr("uho_pipelines.archive.CONNECT_RETRY_SECONDS", 0.0)
    monkeypatch.setattr(materialization.time, "sleep", lambda _: None)
    with fake_sidecar() as fake:
        yield fake


@pytest.fixture
def settings(sidecar, warehouse, tmp_path):
    for name, identity in (("alpha", ALPHA), ("beta", BETA)):
        folder = tmp_path / "programs" / name
        folder.mkdir(parents=True)
        (folder / "program.yaml").write_text(PROGRAM.format(id=identity))
        (folder / "idl.json").write_text(json.dumps({**IDL, "address": str(identity)}))
    return make_settings(tmp_path, sidecar.url, programs_dir=tmp_path / "programs", postgres_url=warehouse)


@pytest.fixture
def programs(settings):
    return {program.name: program for program in load_registry(settings).programs}


@pytest.fixture
def instance():
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def run(settings, instance):
    """Materialize assets of one chunk in one run of this process, with the executor of the definitions."""

    def execute(*keys, chunk=CHUNK, config=None):
        job = build_definitions(settings).resolve_implicit_global_asset_job_def()
        subset = job.get_subset(asset_selection=set(keys))
        dagster_run = instance.create_run_for_job(
            job_def=subset,
            asset_selection=frozenset(keys),
            tags={"dagster/partition": chunk.key},
            run_config=config or {},
        )
        for _ in execute_run_iterator(InMemoryJob(subset), dagster_run, instance):
            pass
        return Outcome(instance, dagster_run.run_id)

    return execute


class Outcome:
    """What a run left in Dagster."""

    def __init__(self, instance, run_id):
        self.instance = instance
        self.run_id = run_id
        self.events = [event.dagster_event for event in instance.all_logs(run_id) if event.is_dagster_event]
        self.messages = [event.user_message for event in instance.all_logs(run_id)]

    @property
    def succeeded(self):
        return self.instance.get_run_by_id(self.run_id).is_success

    @property
    def materialized(self):
        return {
            event.asset_key: event.step_materialization_data.materialization
            for event in self.events
            if event.is_step_materialization
        }

    @property
    def checks(self):
        evaluations = [
            event.asset_check_evaluation_data
            for event in self.events
            if event.event_type_value == "ASSET_CHECK_EVALUATION"
        ]
        return {(evaluation.asset_key, evaluation.check_name): evaluation for evaluation in evaluations}

    @property
    def failures(self):
        return [event.step_failure_data.error_display_string for event in self.events if event.is_step_failure]

    def progress(self, program):
        lines = [json.loads(message) for message in self.messages if message.startswith("{")]
        return [line for line in lines if line["program"] == program.key]


def rows(warehouse, query):
    with connect(warehouse, application_name="test") as connection:
        return connection.execute(query).fetchall()


def test_records_and_events_of_a_chunk_are_made_in_one_run(run, programs, warehouse, settings):
    alpha = programs["alpha"]
    outcome = run(records_key(alpha), events_key(alpha))
    assert outcome.succeeded, outcome.failures
    assert set(outcome.materialized) == {records_key(alpha), events_key(alpha)}
    assert rows(warehouse, "SELECT slot, amount FROM demo_sim_alpha.happened ORDER BY slot") == [
        (slot, slot) for slot in range(CHUNK.start, CHUNK.end)
    ]
    checks = outcome.checks
    assert {check.partition for check in checks.values()} == {CHUNK.key}
    beside = checks.pop((events_key(alpha), "integrity"))
    assert not beside.passed, "no RPC node is set"
    assert not beside.blocking
    assert all(check.passed and check.blocking for check in checks.values())
    assert set(checks) == {(records_key(alpha), "completeness"), (events_key(alpha), "skip_rate")}
    records = outcome.materialized[records_key(alpha)].metadata
    assert (records["records"].value, records["transactions scanned"].value) == (CHUNK_SLOTS, 10 * CHUNK_SLOTS)
    assert {record.data["what"] for record in records["certificate"].records} >= {"blocks", "tail", "verify"}
    events = outcome.materialized[events_key(alpha)].metadata
    assert events["rows per event"].value == {"Happened": CHUNK_SLOTS}
    lines = outcome.progress(alpha)
    assert set(lines[0]) == {
        *("jobId", "program", "chunk", "currentSlot", "eventsWritten", "eventsSkipped", "skipRate", "elapsed")
    }
    assert [line["currentSlot"] for line in lines[:5]] == [120, 140, 160, 180, 200]


def test_a_chunk_that_takes_long_shows_on_its_page_how_far_it_is(run, programs, monkeypatch):
    alpha = programs["alpha"]
    outcome = run(records_key(alpha), events_key(alpha))
    observed = [event for event in outcome.events if event.event_type_value == "ASSET_OBSERVATION"]
    assert {event.asset_key for event in observed} == {idl_key(alpha)}, "a short one does not: events cost"
    monkeypatch.setattr(assets, "OBSERVED_EVERY_SECONDS", 0.0)
    config = {"ops": {"demo_sim_pair_records": {"config": {"start_over": True}}}}
    outcome = run(records_key(alpha), events_key(alpha), config=config)
    observations = [
        event.asset_observation_data.asset_observation
        for event in outcome.events
        if event.event_type_value == "ASSET_OBSERVATION"
    ]
    assert {observation.partition for observation in observations} == {CHUNK.key}
    read = [seen for seen in observations if seen.asset_key == records_key(alpha)]
    assert [seen.metadata["slot reached"].value for seen in read] == [120, 140, 160, 180, 200]
    assert read[0].metadata["done %"].value == 20.0
    assert read[-1].metadata["archive bytes/s"].value > 0
    loaded = [seen for seen in observations if seen.asset_key == events_key(alpha)]
    assert loaded[-1].metadata["events so far"].value == CHUNK.slots


def test_programs_of_a_group_are_read_in_one_stream(run, programs, sidecar, warehouse):
    alpha, beta = programs["alpha"], programs["beta"]
    outcome = run(records_key(alpha), records_key(beta), events_key(alpha), events_key(beta))
    assert outcome.succeeded, outcome.failures
    assert [request["programIds"] for request in sidecar.requests] == [[str(ALPHA), str(BETA)]]
    assert rows(warehouse, "SELECT count(*) FROM demo_sim_beta.happened") == [(CHUNK_SLOTS,)]


def test_one_program_of_a_group_can_be_read_alone(run, programs, sidecar):
    outcome = run(records_key(programs["beta"]))
    assert outcome.succeeded, outcome.failures
    assert [request["programIds"] for request in sidecar.requests] == [[str(BETA)]]


def test_one_programs_fault_leaves_the_others_alone(run, programs, settings, warehouse):
    alpha, beta = programs["alpha"], programs["beta"]
    blocked = Lake(settings).chunk(alpha, CHUNK)
    path = blocked.files.local / blocked.folder
    path.parent.mkdir(parents=True)
    path.write_text("a file where the folder should be")
    outcome = run(records_key(alpha), records_key(beta), events_key(alpha), events_key(beta))
    assert not outcome.succeeded
    assert set(outcome.materialized) == {records_key(beta), events_key(beta)}
    assert "sim/demo/alpha" in outcome.failures[0]
    assert rows(warehouse, "SELECT count(*) FROM demo_sim_beta.happened") == [(CHUNK_SLOTS,)]
    assert rows(warehouse, "SELECT program, records_state FROM uho.chunk ORDER BY program") == [
        ("alpha", "failed"),
        ("beta", "complete"),
    ]


def test_events_alone_read_no_archive(run, programs, sidecar, warehouse):
    alpha = programs["alpha"]
    run(records_key(alpha))
    outcome = run(events_key(alpha))
    assert outcome.succeeded, outcome.failures
    assert len(sidecar.requests) == 1


def test_events_without_records_say_what_to_do(run, programs):
    outcome = run(events_key(programs["alpha"]))
    assert "Materialize its records first" in outcome.failures[0]


def test_a_stream_that_breaks_is_resumed_from_what_was_kept(run, programs, sidecar, warehouse):
    alpha = programs["alpha"]

    def answer(body):
        messages = stream_of(body).messages
        whole = sum(len(message) for message in messages)
        return Answer(messages, cut_after=whole // 2) if len(sidecar.requests) == 1 else Answer(messages)

    sidecar.answer = answer
    outcome = run(records_key(alpha), events_key(alpha))
    assert outcome.succeeded, outcome.failures
    assert [request["startSlot"] for request in sidecar.requests] == [100, 120]
    assert rows(warehouse, "SELECT count(*) FROM demo_sim_alpha.happened") == [(CHUNK_SLOTS,)]


def test_a_fault_that_will_not_pass_is_not_tried_again(run, programs, sidecar, warehouse):
    sidecar.answer = lambda _: Answer(
        encode([*chunk_items(100, 200, [ALPHA])[:4], error_item("cid_mismatch", "offset 7")])
    )
    outcome = run(records_key(programs["alpha"]))
    assert len(sidecar.requests) == 1
    assert "cid_mismatch: offset 7\nThis does not pass by itself, so it was not tried again" in outcome.failures[0]
    assert rows(warehouse, "SELECT records_state, records_error FROM uho.chunk") == [
        ("failed", "cid_mismatch: offset 7")
    ]


def test_an_archive_that_always_breaks_is_given_up(run, programs, sidecar):
    sidecar.answer = lambda body: Answer(stream_of(body).messages[:2])
    outcome = run(records_key(programs["alpha"]))
    assert "stream_cut_short" in outcome.failures[0]
    assert "This can pass, but did not" in outcome.failures[0]
    assert len(sidecar.requests) == materialization.STREAM_ATTEMPTS


def test_a_warehouse_that_restarts_is_asked_again_and_one_that_refuses_us_is_not(programs, settings, monkeypatch):
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda _: None)
    url = settings.postgres_url.get_secret_value()
    for wrong, notices, told in (
        (url.replace(urlsplit(url).password, "hunter2"), 0, "This does not pass by itself"),
        (f"postgresql://uho@/uho?host={settings.home}", retries.POSTGRES_ATTEMPTS - 1, "This can pass, but did not"),
    ):
        heard = []
        reporter = materialization.Reporter(notice=heard.append)
        elsewhere = settings.model_copy(update={"postgres_url": SecretStr(wrong)})
        with pytest.raises(WarehouseUnreachableError) as caught:
            materialization.read_records(elsewhere, [programs["alpha"]], CHUNK, reporter)
        assert len(heard) == notices
        assert all("Postgres ended a connection (the warehouse at" in notice for notice in heard)
        assert caught.value.__notes__[0].startswith(told)
        assert "hunter2" not in "".join(heard) + str(caught.value)


def test_kept_parts_that_differ_make_the_chunk_start_over_and_say_so(run, programs, sidecar):
    alpha = programs["alpha"]
    sidecar.answer = lambda body: stream_of(body, records=lambda slots, ids: make_records(slots, ids, per_slot=2))
    run(records_key(alpha))
    sidecar.answer = stream_of
    outcome = run(records_key(alpha))
    assert outcome.succeeded, outcome.failures
    assert [request["startSlot"] for request in sidecar.requests] == [100, 180, 100]
    metadata = outcome.materialized[records_key(alpha)].metadata
    assert metadata["records"].value == CHUNK_SLOTS
    assert "differ from what was kept" in metadata["started over"].value


def test_starting_over_can_be_configured(run, programs, sidecar):
    alpha = programs["alpha"]
    run(records_key(alpha))
    run(records_key(alpha))
    config = {"ops": {"demo_sim_pair_records": {"config": {"start_over": True}}}}
    outcome = run(records_key(alpha), config=config)
    assert outcome.succeeded, outcome.failures
    assert [request["startSlot"] for request in sidecar.requests] == [100, 180, 100]


def test_an_unproven_tail_warns_and_does_not_block(run, programs, sidecar):
    alpha = programs["alpha"]
    sidecar.answer = lambda body: stream_of(body, tail="unproven")
    outcome = run(records_key(alpha), events_key(alpha))
    assert outcome.succeeded, outcome.failures
    check = outcome.checks[records_key(alpha), "completeness"]
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert "next epoch" in check.description


def undecodable(share):
    def records(slots, ids):
        return make_records(slots, ids, decodable=lambda slot: slot % 100 >= share)

    return records


def test_too_many_undecodable_records_fail_the_chunk_and_keep_its_old_rows(run, programs, sidecar, warehouse):
    alpha = programs["alpha"]
    run(records_key(alpha), events_key(alpha))
    sidecar.answer = lambda body: stream_of(body, records=undecodable(26))
    config = {"ops": {"demo_sim_pair_records": {"config": {"start_over": True}}}}
    outcome = run(records_key(alpha), events_key(alpha), config=config)
    assert not outcome.succeeded
    assert set(outcome.materialized) == {records_key(alpha)}
    check = outcome.checks[events_key(alpha), "skip_rate"]
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert check.target_materialization_data is not None
    assert "26.0%" in check.description
    assert rows(warehouse, "SELECT count(*) FROM demo_sim_alpha.happened") == [(CHUNK_SLOTS,)]
    state, counts = rows(warehouse, "SELECT events_state, events_counts FROM uho.chunk")[0]
    assert (state, counts["undecodable"], counts["decoded"]) == ("failed", 26, 74)
    assert rows(warehouse, "SELECT count(*) FROM uho.quarantine") == [(0,)]


def test_some_undecodable_records_warn_and_are_quarantined(run, programs, sidecar, warehouse):
    alpha = programs["alpha"]
    sidecar.answer = lambda body: stream_of(body, records=undecodable(10))
    outcome = run(records_key(alpha), events_key(alpha))
    assert outcome.succeeded, outcome.failures
    check = outcome.checks[events_key(alpha), "skip_rate"]
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    table = check.metadata["undecodable by discriminator"].records
    assert table[0].data["event"] == "Happened"
    assert rows(warehouse, "SELECT count(*) FROM demo_sim_alpha.happened") == [(90,)]
    assert rows(warehouse, "SELECT count(*) FROM uho.quarantine") == [(10,)]


def test_too_many_undecodable_records_halt_the_program_and_leave_others_alone(run, programs, sidecar, warehouse):
    alpha, beta = programs["alpha"], programs["beta"]
    sidecar.answer = lambda body: stream_of(
        body, records=undecodable(26) if str(ALPHA) in body["programIds"] else make_records
    )
    run(records_key(alpha), events_key(alpha))
    outcome = run(events_key(alpha), chunk=CHUNK)
    assert not outcome.succeeded
    assert f"{alpha.key} is halted: Chunk {CHUNK.key}: 26 of 100 records" in outcome.failures[0]
    assert f"uho clear-halt {alpha.key} --reason" in outcome.failures[0]
    assert run(records_key(beta), events_key(beta)).succeeded


def test_a_repair_shows_on_the_pages_of_the_chunk(run, programs, sidecar, settings, instance, warehouse):
    alpha = programs["alpha"]
    sidecar.answer = lambda body: stream_of(body, records=undecodable(10))
    run(records_key(alpha), events_key(alpha))
    job = build_definitions(settings).resolve_job_def("repair")
    done = job.execute_in_process(
        instance=instance, run_config={"ops": {"repair_quarantined": {"config": {"program": alpha.key}}}}
    )
    (check,) = done.get_asset_check_evaluations()
    assert (check.check_name, check.partition, check.passed) == ("skip_rate", CHUNK.key, False)
    assert check.target_materialization_data is not None
    (observed,) = done.asset_observations_for_node("repair_quarantined")
    assert {name: value.value for name, value in observed.metadata.items()} == {
        "quarantined before": 10,
        "quarantined after": 10,
        "decoded": 0,
    }


def test_the_schedule_verifies_what_is_due_and_names_what_is_damaged(run, programs, settings, instance, warehouse):
    alpha = programs["alpha"]
    definitions = build_definitions(settings)
    schedule, job = definitions.resolve_schedule_def("verify_little_by_little"), definitions.resolve_job_def("verify")
    with dg.build_schedule_context(instance=instance) as context:
        assert schedule.evaluate_tick(context).skip_message == "every chunk was verified within a week"
        run(records_key(alpha), events_key(alpha))
        assert len(schedule.evaluate_tick(context).run_requests) == 1
        with connect(warehouse, application_name="test") as connection:
            connection.execute("DELETE FROM demo_sim_alpha.happened WHERE slot = 150")
        done = job.execute_in_process(instance=instance, raise_on_error=False)
        assert not done.success
        (failed,) = [event for event in done.all_events if event.is_step_failure]
        told = failed.step_failure_data.user_failure_data.description
        assert f"`uho replay {alpha.key} {CHUNK.options}`" in told
        assert schedule.evaluate_tick(context).skip_message is not None


def test_altered_lake_parts_are_not_loaded(run, programs, settings, warehouse):
    alpha = programs["alpha"]
    run(records_key(alpha), events_key(alpha))
    folder = Lake(settings).chunk(alpha, CHUNK)
    part = folder.files.local / folder.folder / folder.complete_manifest().stretches[2].file
    content = bytearray(part.read_bytes())
    content[len(content) // 3] ^= 1
    part.write_bytes(content)
    outcome = run(events_key(alpha))
    assert "is not what was written" in outcome.failures[0]
    assert rows(warehouse, "SELECT count(*) FROM demo_sim_alpha.happened") == [(CHUNK_SLOTS,)]
    assert run(records_key(alpha), events_key(alpha)).succeeded


def test_a_changed_idl_puts_finished_events_out_of_date(run, programs, settings, instance):
    alpha = programs["alpha"]
    run(records_key(alpha), events_key(alpha))
    provenance = instance.get_latest_materialization_event(events_key(alpha)).asset_materialization.tags
    assert provenance[f"dagster/input_data_version/{'/'.join(idl_key(alpha).path)}"] == alpha.idl_hash
    observed = instance.get_latest_data_version_record(idl_key(alpha)).asset_event
    assert observed.tags["dagster/data_version"] == alpha.idl_hash


def test_a_cancelled_run_ends_the_sidecars_job_and_keeps_what_was_kept(programs, settings, sidecar, warehouse):
    sidecar.answer = lambda body: Answer(stream_of(body).messages, hang_after=6)

    class Cancelled(BaseException):
        pass

    def cancel(_):
        raise Cancelled

    reporter = materialization.Reporter(progress=cancel)
    with pytest.raises(Cancelled):
        materialization.read_records(settings, [programs["alpha"]], CHUNK, reporter)
    assert sidecar.client_left.wait(60)
    assert Lake(settings).chunk(programs["alpha"], CHUNK).manifest().position == 120
    assert rows(warehouse, "SELECT records_state, records_error FROM uho.chunk") == [("pending", None)]


def test_failed_transactions_become_rows_where_the_program_asks_for_them(run, programs, settings, sidecar, warehouse):
    path = settings.programs_dir / "alpha" / "program.yaml"
    path.write_text(path.read_text() + "include_failed: true\n")
    outcome = run(records_key(programs["alpha"]), events_key(programs["alpha"]))
    assert outcome.succeeded, outcome.failures
    assert rows(warehouse, "SELECT DISTINCT failed, truncated FROM demo_sim_alpha.happened") == [(False, False)]
