"""Row digests: they find damage, and nothing but damage."""

import pytest
from made_up import CHUNK, EVERYTHING, SIMPLE, everything, load, program_of, rows, simple

from uho_pipelines.warehouse import connect, find_damage

PROGRAM = program_of({"Everything": EVERYTHING})
TABLE = "demo_sim_alpha.everything"


def change(url, statement):
    with connect(url, application_name="test") as connection:
        connection.execute(statement)


def damage(url, program=PROGRAM):
    with connect(url, application_name="test") as connection:
        return [str(found) for found in find_damage(connection, program, CHUNK)]


@pytest.fixture
def loaded(warehouse):
    load(
        warehouse,
        PROGRAM,
        [everything(amount=slot, label=f"text {slot}", ratio=slot / 7, maybe=slot, many=(slot,)) for slot in range(20)],
    )
    assert damage(warehouse) == []
    return warehouse


@pytest.mark.parametrize(
    "statement",
    [
        f"UPDATE {TABLE} SET amount = amount + 1 WHERE slot = 105",
        f"UPDATE {TABLE} SET maybe = NULL WHERE slot = 105",
        f"UPDATE {TABLE} SET flag = NOT flag WHERE slot = 105",
        f"UPDATE {TABLE} SET many = '[]' WHERE slot = 105",
        f"UPDATE {TABLE} SET ratio = ratio + 1e-9 WHERE slot = 105",
        f"UPDATE {TABLE} SET block_time = NULL WHERE slot = 105",
        f"UPDATE {TABLE} SET slot = 150 WHERE slot = 105",
        # Two rows exchange a value: the sum of the values' hashes stays, that of the rows' does not.
        f"UPDATE {TABLE} SET amount = 211 - slot - 100 WHERE slot IN (105, 106)",
        # A value moves to another column of the same type.
        f"UPDATE {TABLE} SET amount = maybe + 0, maybe = wide, wide = amount WHERE slot = 105",
    ],
)
def test_a_changed_value_is_found(loaded, statement):
    change(loaded, statement)
    assert damage(loaded) == [f"Everything (table {TABLE}): loaded were 20 rows, found as many rows, with other values"]


def test_missing_and_added_rows_are_found(loaded):
    change(loaded, f"DELETE FROM {TABLE} WHERE slot = 105")
    assert damage(loaded) == [f"Everything (table {TABLE}): loaded were 20 rows, found 19 rows"]
    change(loaded, f"DROP TABLE {TABLE}")
    assert damage(loaded) == ["Everything (its table is gone): loaded were 20 rows, found 0 rows"]


@pytest.mark.parametrize(
    "statement",
    [
        f"ALTER TABLE {TABLE} ADD COLUMN ours text",
        f"ALTER TABLE {TABLE} ADD COLUMN ours integer NOT NULL DEFAULT 7",
        f"CREATE INDEX ON {TABLE} (signature)",
        f"CLUSTER {TABLE} USING everything_pkey",
        "ALTER DATABASE uho SET timezone = 'Asia/Tokyo'",
        "ALTER DATABASE uho SET extra_float_digits = -10",
    ],
)
def test_what_leaves_values_alone_is_no_damage(loaded, statement):
    try:
        change(loaded, statement)
        assert damage(loaded) == []
    finally:
        change(loaded, "ALTER DATABASE uho RESET ALL")


def test_the_digest_of_a_row_is_what_it_was_in_every_version(warehouse):
    # A digest in the ledger outlives the code that made it: this number may never change.
    load(warehouse, program_of({"Simple": SIMPLE}), [simple(42)])
    assert rows(warehouse, "SELECT row_digest FROM uho.chunk_table") == [("1847591178730203842",)]
