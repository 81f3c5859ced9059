"""Dagster's storage keeps its connections, shares them within a process, and replaces those that died."""

import dagster as dg
import psycopg
import pytest
import yaml
from dagster._core.events import EngineEventData
from dagster._core.test_utils import instance_for_test
from services import PROJECT, fresh_database


@dg.job
def nothing() -> None:
    """Is never run."""


@pytest.fixture
def connections(expendable, monkeypatch):
    """The storage of `dagster.yaml` on a server that may be killed, and how many connections are open to it."""
    url = fresh_database(expendable, "dagster_storage")
    monkeypatch.setenv("UHO_DAGSTER_POSTGRES_URL", url.replace("postgresql://", "postgresql+psycopg2://"))

    def count():
        with psycopg.connect(expendable.url("postgres")) as connection:
            query = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'dagster_storage'"
            return connection.execute(query).fetchone()[0]

    return count


@pytest.fixture
def configured():
    return {"storage": yaml.safe_load((PROJECT / "dagster.yaml").read_text())["storage"]}


def test_many_instances_of_one_process_share_few_connections_that_survive_a_restart(
    connections, configured, expendable
):
    with instance_for_test(overrides=configured) as instance:
        run = instance.create_run_for_job(nothing)
        for _ in range(5):
            with dg.DagsterInstance.from_ref(instance.get_ref()) as other:
                other.report_engine_event("said", run, EngineEventData({}))
                assert len(other.get_run_records()) == 1
        assert 1 <= connections() <= 3, "kept, and not one for each instance"
        expendable.stop()
        expendable.start()
        instance.report_engine_event("said", run, EngineEventData({}))
        said = [entry for entry in instance.all_logs(run.run_id) if entry.message == "said"]
        assert len(said) == 6
