"""SQL names for what IDLs call by any name."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uho_pipelines.warehouse.naming import (
    FIXED_COLUMNS,
    LONGEST_NAME,
    SYSTEM_COLUMNS,
    column_name,
    snake_case,
    sql_name,
)

VALID = re.compile(r"[a-z_][a-z0-9_]*")

ANY_NAMES = st.text() | st.text(alphabet="aAbB019_-. ", min_size=1) | st.sampled_from([*FIXED_COLUMNS, "Slot", "xMin"])


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("TradeEvent", "trade_event"),
        ("tradeEvent", "trade_event"),
        ("trade_event", "trade_event"),
        ("AMMSwapV2", "amm_swap_v2"),
        ("SwapV2Event", "swap_v2_event"),
        ("X", "x"),
        ("2Fast", "_2_fast"),
        ("amm::Swap", "amm__swap"),
        ("größe", "gr__e"),
        ("事件", "__"),
        ("", "_"),
        ('"; DROP SCHEMA uho; --', "___drop_schema_uho____"),
        ("select", "select"),
        ("a" * 55, "a" * 55),
        ("a" * 56, "a" * 46 + "_b35439a4"),
        ("a\n", "a_"),
    ],
)
def test_names_are_snake_case_of_plain_letters(name, made):
    assert sql_name(name) == made


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("amount", "amount"),
        ("slot", "event_slot"),
        ("Slot", "event_slot"),
        ("blockTime", "event_block_time"),
        ("failed", "event_failed"),
        ("truncated", "event_truncated"),
        ("xmin", "event_xmin"),
        ("ctid", "event_ctid"),
        ("slots", "slots"),
    ],
)
def test_a_field_called_as_a_fixed_or_system_column_is_the_events(name, column):
    assert column_name(name) == column


def test_a_clash_gets_a_suffix_that_follows_from_the_name_alone():
    first = sql_name("fooBar")
    second = sql_name("foo_bar", {first})
    assert (first, second) == ("foo_bar", "foo_bar_4928cae8")
    assert sql_name("FooBar", {first}) != second


def test_a_clash_of_suffixes_gets_another():
    taken = {"foo_bar", "foo_bar_4928cae8"}
    made = sql_name("foo_bar", taken)
    assert made not in taken
    assert VALID.fullmatch(made)


@given(ANY_NAMES)
def test_every_name_is_valid(name):
    for made in (sql_name(name), column_name(name)):
        assert VALID.fullmatch(made)
        assert len(made.encode()) <= LONGEST_NAME
    assert column_name(name) not in {*FIXED_COLUMNS, *SYSTEM_COLUMNS}


@given(st.lists(ANY_NAMES, unique=True, max_size=40))
def test_names_given_one_after_another_are_unique(names):
    taken: set[str] = set()
    for name in names:
        made = column_name(name, taken)
        assert made not in taken
        assert VALID.fullmatch(made)
        assert len(made.encode()) <= LONGEST_NAME
        assert made not in {*FIXED_COLUMNS, *SYSTEM_COLUMNS}
        taken.add(made)


@given(st.text(alphabet=st.characters(codec="ascii")))
def test_snake_case_keeps_every_character(name):
    assert snake_case(name).replace("_", "") == name.lower().replace("_", "")
    assert snake_case(snake_case(name)) == snake_case(name)
