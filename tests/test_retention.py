"""Old runs are forgotten, and no partition loses its state by it."""

import dagster as dg
import pytest
import yaml
from dagster._core.test_utils import instance_for_test
from services import PROJECT, fresh_database

from uho_pipelines.retention import forget_old_runs

PARTITIONS = dg.StaticPartitionsDefinition(["0000000000", "0000000100"])
ONE, OTHER = PARTITIONS.get_partition_keys()
KEY = dg.AssetKey(["sim", "demo", "alpha_events"])


SPEC = dg.AssetCheckSpec("skip_rate", asset=KEY, partitions_def=PARTITIONS)


class Chunk(dg.Config):
    """Whether it goes well."""

    well: bool = True


@dg.asset(key=KEY, partitions_def=PARTITIONS, check_specs=[SPEC])
def events(context: dg.AssetExecutionContext, config: Chunk):
    context.log.info("a line that tells how it goes")
    yield dg.AssetCheckResult(passed=config.well, check_name="skip_rate")
    if not config.well:
        raise dg.Failure("no", allow_retries=False)
    yield dg.MaterializeResult(metadata={"events": 7})


@pytest.fixture
def instance(postgres, monkeypatch):
    url = fresh_database(postgres, "retention").replace("postgresql://", "postgresql+psycopg2://")
    monkeypatch.setenv("UHO_DAGSTER_POSTGRES_URL", url)
    storage = yaml.safe_load((PROJECT / "dagster.yaml").read_text())["storage"]
    with instance_for_test(overrides={"storage": storage}) as instance:
        yield instance


def run(instance, partition, *, well=True):
    config = {"ops": {events.op.name: {"config": {"well": well}}}}
    outcome = dg.materialize(
        [events], instance=instance, partition_key=partition, raise_on_error=False, run_config=config
    )
    assert outcome.success is well
    return outcome.run_id


def test_what_a_partition_rests_on_stays_and_the_rest_goes(instance):
    @dg.job
    def looking():
        pass

    superseded = run(instance, ONE)
    newest = run(instance, ONE)
    failed = run(instance, OTHER, well=False)
    other = looking.execute_in_process(instance=instance).run_id
    assert forget_old_runs(instance, days=1, runs=100).looked_at == 0, "they are young"
    events_before = len(instance.all_logs(newest))

    found = forget_old_runs(instance, days=0, runs=100)
    assert (found.looked_at, found.deleted, found.thinned) == (4, 2, 2)
    assert not instance.has_run(superseded)
    assert not instance.has_run(other)
    left = instance.all_logs(newest)
    assert len(left) <= events_before / 2
    assert instance.get_materialized_partitions(KEY) == {ONE}
    (record,) = instance.fetch_materializations(dg.AssetRecordsFilter(KEY, asset_partitions=[ONE]), limit=5).records
    assert (record.run_id, record.asset_materialization.metadata["events"].value) == (newest, 7)
    evaluations = [entry for entry in left if entry.dagster_event.event_type_value == "ASSET_CHECK_EVALUATION"]
    assert len(evaluations) == 1
    assert instance.has_run(failed), "the newest word on its partition: it shows as failed"

    run(instance, OTHER)
    found = forget_old_runs(instance, days=0, runs=100)
    assert (found.deleted, found.thinned) == (1, 1)
    assert not instance.has_run(failed)
    assert instance.get_materialized_partitions(KEY) == {ONE, OTHER}


def test_a_look_goes_on_where_the_last_one_ended_and_begins_anew_at_the_end(instance):
    for _ in range(5):
        run(instance, ONE)
    first = forget_old_runs(instance, days=0, runs=3)
    assert (first.looked_at, first.deleted, first.again) == (3, 3, False)
    kept = [record.dagster_run.run_id for record in instance.get_run_records()]
    second = forget_old_runs(instance, days=0, runs=3)
    assert (second.looked_at, second.deleted, second.again) == (2, 1, True)
    third = forget_old_runs(instance, days=0, runs=3)
    assert (third.looked_at, third.deleted, third.thinned) == (1, 0, 0)
    assert [record.dagster_run.run_id for record in instance.get_run_records()] == kept[:1]
