"""A few crashes of `uho backfill` at random points; `make crash` has hundreds. What it compares would be noticed."""

import random
import time

import pytest
from crash_result import compare_with_truth
from crash_storm import stage, storm

from uho_pipelines.lake import Lake
from uho_pipelines.warehouse import connect

SEED = 20_261_123


@pytest.fixture(scope="module")
def on(tmp_path_factory):
    """What a backfill of two chunks needs."""
    folder = tmp_path_factory.mktemp("storm")
    for path in (folder, folder.parent):
        path.chmod(0o711)
    with stage(folder, seed=7, chunks=2) as on:
        yield on


def test_a_backfill_that_is_crashed_again_and_again_ends_with_the_truth(on):
    result = storm(on, random.Random(SEED), crashes=3, deadline=time.monotonic() + 60)
    assert result.is_true, "\n".join(result.sentences())
    assert result.crashes.total() >= 1
    assert result.compared.rows > 0
    assert result.compared.certificates == 2 * result.rounds


def test_what_a_crash_could_leave_behind_is_noticed(on):
    def compared():
        return compare_with_truth(on.settings, on.archive, on.program, on.chunks)

    assert compared().differences == []
    table = f"{on.program.schema_name}.order_placed"
    one = f"{table} WHERE ctid = (SELECT min(ctid) FROM {table})"
    with connect(on.url, application_name="test") as connection:
        connection.execute(f"CREATE TABLE kept AS SELECT * FROM {one}")
        connection.execute(f"DELETE FROM {one}")
        connection.commit()
        assert (compared().lost, compared().doubled) == (1, 0)
        connection.execute(f"INSERT INTO {table} SELECT * FROM kept")
        connection.execute("UPDATE kept SET event_index = event_index + 1000")
        connection.execute(f"INSERT INTO {table} SELECT * FROM kept")
        connection.commit()
        assert (compared().lost, compared().doubled) == (0, 1)
        connection.execute(f"DELETE FROM {table} WHERE event_index >= 1000")
        connection.execute("DROP TABLE kept")
        connection.commit()
    assert compared().differences == []

    folder = Lake(on.settings).chunk(on.program, on.chunks[1])
    manifest = folder.complete_manifest()
    certificate = {**manifest.certificate, "transactions": manifest.certificate["transactions"] - 1}
    folder.write_manifest(manifest.model_copy(update={"certificate": certificate}))
    assert compared().wrong_certificates == 1
    folder.write_manifest(manifest)
    (folder.files.local / folder.folder / ".aside-left").touch()
    (left,) = compared().differences
    assert ".aside-left" in left
