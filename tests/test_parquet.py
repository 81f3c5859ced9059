"""Decoded events as Parquet: what went in comes back equal, by whichever reader, and files follow loads."""

import json
import math
import struct
from decimal import Decimal
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from events import CHUNK, idl, keep, record, registered, rows, signature_of
from solders.pubkey import Pubkey
from solders.signature import Signature
from streams import make_settings

import uho_pipelines
from uho_pipelines.chunks import Chunk
from uho_pipelines.materialization import Reporter, load_events
from uho_pipelines.reading import ParquetBehindError, UnknownColumnError, UnknownEventError
from uho_pipelines.warehouse import connect, find_damage

NEXT = Chunk(200, 100)

EXTREME = idl(
    {
        "Extreme": {
            "u64": "u64",
            "i64": "i64",
            "u128": "u128",
            "i128": "i128",
            "f32": "f32",
            "f64": "f64",
            "text": "string",
            "data": "bytes",
            "who": "pubkey",
            "flag": "bool",
            "u256": "u256",
            "i256": "i256",
            "maybe": {"option": {"option": {"option": "u64"}}},
            "deep": {"vec": {"option": {"vec": {"option": "u128"}}}},
            "slot": "u64",
        }
    }
)
WHO = bytes(range(32))


def sized(value: bytes) -> bytes:
    return struct.pack("<I", len(value)) + value


def extreme(slot: int, u64: int, i64: int, u128: int, i128: int, real: float, text: str, maybe: int | None):
    """A record of `Extreme`."""
    options = b"\0" if maybe is None else b"\1\1\1" + struct.pack("<Q", maybe)
    deep = struct.pack("<I", 3) + b"\0" + b"\1" + struct.pack("<I", 0) + b"\1" + struct.pack("<I", 2) + b"\0\1"
    return record(
        slot,
        "Extreme",
        struct.pack("<Qq", u64, i64),
        u128.to_bytes(16, "little") + i128.to_bytes(16, "little", signed=True),
        struct.pack("<fd", real, real),
        sized(text.encode()) + sized(text.encode()[:1000]),
        WHO + b"\1" + (2**256 - 1 - u64).to_bytes(32, "little") + (i64 - 2**254).to_bytes(32, "little", signed=True),
        options + deep + u128.to_bytes(16, "little"),
        struct.pack("<Q", u64),
        block_time=None if maybe is None else 1_700_000_000,
    )


VALUES = [
    (110, 2**64 - 1, -(2**63), 2**128 - 1, -(2**127), math.nan, "", 2**64 - 1),
    (111, 0, 2**63 - 1, 0, 2**127 - 1, math.inf, "before\0after", None),
    (112, 2**53 + 1, -1, 2**64, -1, -math.inf, "x" * 10_000_000, 2**53 + 1),
    (113, 2**63, 0, 10**38, -(10**38), -0.0, 'Grüße 世界 🚀 "\\\n', 0),
]


@pytest.fixture
def settings(tmp_path, warehouse):
    return make_settings(tmp_path, programs_dir=tmp_path / "programs", postgres_url=warehouse)


def loaded(settings, program, *records, chunk=CHUNK):
    keep(settings, program, *records, chunk=chunk)
    outcome = load_events(settings, program, chunk, Reporter())
    assert outcome.result is not None
    return outcome


def files(settings):
    root = Path(settings.events_dir)
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def equal_values(frame, *, escaped):
    """Compare a frame with `VALUES`; Postgres cannot hold U+0000, and has six characters for it."""
    assert [int(value) for value in frame["slot"]] == [row[0] for row in VALUES]
    for name, place in (("u64", 1), ("i64", 2), ("event_slot", 1)):
        assert frame[name].tolist() == [row[place] for row in VALUES], name
        assert not pd.api.types.is_float_dtype(frame[name].dtype)
    for name, place in (("u128", 3), ("i128", 4)):
        assert frame[name].tolist() == [Decimal(row[place]) for row in VALUES], name
    assert frame["u256"].tolist() == [str(2**256 - 1 - row[1]) for row in VALUES]
    assert frame["i256"].tolist() == [str(row[2] - 2**254) for row in VALUES]
    for name in ("f32", "f64"):
        assert [struct.pack("<d", value) for value in frame[name]] == [struct.pack("<d", row[5]) for row in VALUES]
    texts = [row[6].replace("\0", "\\u0000") if escaped else row[6] for row in VALUES]
    assert frame["text"].tolist() == texts
    assert [bytes(value) for value in frame["data"]] == [row[6].encode()[:1000] for row in VALUES]
    assert frame["flag"].tolist() == [True] * 4
    assert [None if pd.isna(value) else value for value in frame["maybe"]] == [row[7] for row in VALUES]
    assert frame["deep"].tolist() == [[None, [], [None, str(row[3])]] for row in VALUES]
    assert [pd.isna(value) for value in frame["block_time"]] == [row[7] is None for row in VALUES]


def test_extreme_values_come_back_equal_from_parquet_and_postgres(settings):
    program = registered(settings, "alpha", (0, EXTREME), parquet=True)
    outcome = loaded(settings, program, *(extreme(*values) for values in VALUES))
    assert (outcome.counts.decoded, outcome.parquet_files) == (4, 1)
    for source in ("postgres", "parquet"):
        frame = uho_pipelines.read_events("alpha", "Extreme", source=source, settings=settings)
        equal_values(frame, escaped=source == "postgres")
        assert frame["who"].tolist() == [str(Pubkey.from_bytes(WHO))] * 4
        assert frame["signature"].tolist() == [
            str(Signature.from_bytes(signature_of(extreme(*values)))) for values in VALUES
        ]
    assert files(settings) == [f"sim/demo/alpha/extreme/{CHUNK.key}.parquet"]


def test_duckdb_and_pandas_read_the_folder_as_a_dataset(settings):
    program = registered(settings, "alpha", (0, EXTREME), parquet=True)
    loaded(settings, program, *(extreme(*values) for values in VALUES))
    loaded(settings, program, extreme(250, 7, 7, 7, 7, 7.0, "seven", 7), chunk=NEXT)
    folder = Path(settings.events_dir) / "sim/demo/alpha/extreme"
    with duckdb.connect() as database:
        read = database.sql(
            f"SELECT slot, u64, text, maybe, block_time IS NULL FROM '{folder}/*.parquet' ORDER BY slot"
        )
        assert read.fetchall() == [(row[0], row[1], row[6], row[7], row[7] is None) for row in VALUES] + [
            (250, 7, "seven", 7, False)
        ]
        types = {row[0]: row[1] for row in database.sql(f"DESCRIBE FROM '{folder}/*.parquet'").fetchall()}
    assert (types["u64"], types["i64"], types["who"], types["data"]) == ("UBIGINT", "BIGINT", "VARCHAR", "BLOB")
    # DuckDB's own decimals end at 38 digits. The file is exact; the README says so.
    assert (types["u128"], types["i128"]) == ("DOUBLE", "DOUBLE")
    assert pq.read_schema(folder / f"{CHUNK.key}.parquet").field("u128").type == pa.decimal256(39, 0)
    frame = pd.read_parquet(folder, dtype_backend="pyarrow").sort_values("slot")
    equal_values(frame.head(4).assign(deep=[json.loads(text) for text in frame["deep"].head(4)]), escaped=False)


SIMPLE = {"Simple": {"amount": "u64", "who": "pubkey"}, "Other": {"amount": "u64"}}


def simple(slot, amount, event="Simple"):
    return record(slot, event, struct.pack("<Q", amount), WHO if event == "Simple" else b"")


def test_files_follow_the_chunk_and_stale_ones_go(settings):
    program = registered(settings, "alpha", (0, idl(SIMPLE)), parquet=True)
    loaded(settings, program, simple(110, 1), simple(111, 2, "Other"))
    loaded(settings, program, simple(210, 3), chunk=NEXT)
    both = [f"sim/demo/alpha/simple/{chunk.key}.parquet" for chunk in (CHUNK, NEXT)]
    assert files(settings) == [f"sim/demo/alpha/other/{CHUNK.key}.parquet", *both]
    # Another load without events of `Other`, and by IDLs that do not have it any more.
    program = registered(settings, "alpha", (0, idl({"Simple": SIMPLE["Simple"]})), parquet=True)
    loaded(settings, program, simple(112, 4))
    assert files(settings) == both
    frame = uho_pipelines.read_events("alpha", "Simple", source="parquet", settings=settings)
    assert frame["amount"].tolist() == [4, 3]
    # Without `parquet: true` a load removes what would be stale.
    program = registered(settings, "alpha", (0, idl({"Simple": SIMPLE["Simple"]})))
    loaded(settings, program, simple(113, 5))
    assert files(settings) == [both[1]]


def test_what_a_process_that_died_left_behind_goes_with_the_next_load_of_its_chunk(settings):
    program = registered(settings, "alpha", (0, idl(SIMPLE)), parquet=True)
    aside = Path(settings.events_dir) / "sim/demo/alpha/.aside"
    aside.mkdir(parents=True)
    for chunk in (CHUNK, NEXT):
        (aside / f"{chunk.key}-left").write_bytes(b"half")
    loaded(settings, program, simple(110, 1))
    assert [path.name for path in aside.iterdir()] == [f"{NEXT.key}-left"]


def test_a_load_that_is_refused_changes_no_file(settings):
    program = registered(settings, "alpha", (0, idl(SIMPLE)), parquet=True)
    loaded(settings, program, simple(110, 1))
    path = Path(settings.events_dir) / files(settings)[0]
    before = path.read_bytes()
    keep(settings, program, *(record(slot, "Simple", b"short") for slot in range(100, 200)))
    assert load_events(settings, program, CHUNK, Reporter()).result is None
    assert (path.read_bytes(), len(files(settings))) == (before, 1)


def test_reading_selects_slots_and_columns_in_order(settings):
    program = registered(settings, "alpha", (0, idl(SIMPLE)), parquet=True)
    loaded(settings, program, *(simple(slot, slot) for slot in range(110, 150)))
    loaded(settings, program, *(simple(slot, slot) for slot in range(200, 220)), chunk=NEXT)
    for source in ("postgres", "parquet"):
        frame = uho_pipelines.read_events(
            "sim/demo/alpha", "Simple", 148, 201, columns=["amount"], source=source, settings=settings
        )
        assert (list(frame.columns), frame["amount"].tolist()) == (["amount"], [148, 149, 200, 201])
        none = uho_pipelines.read_events("alpha", "Simple", 300, source=source, settings=settings)
        assert len(none) == 0
        assert str(none["amount"].dtype) == "uint64[pyarrow]"


def test_what_cannot_be_read_is_refused_by_name(settings):
    program = registered(settings, "alpha", (0, idl(SIMPLE)))
    loaded(settings, program, simple(110, 1))
    with pytest.raises(UnknownEventError, match="no event 'Nothing' that was loaded; it has: Other, Simple"):
        uho_pipelines.read_events("alpha", "Nothing", settings=settings)
    with pytest.raises(UnknownColumnError, match="no column 'price'; it has: slot, "):
        uho_pipelines.read_events("alpha", "Simple", columns=["price"], settings=settings)


def test_parquet_that_lacks_a_loaded_chunk_is_never_read_as_if_it_were_whole(settings):
    program = registered(settings, "alpha", (0, idl(SIMPLE)), parquet=True)
    loaded(settings, program, simple(110, 1))
    loaded(settings, program, simple(210, 2), chunk=NEXT)
    first, second = (Path(settings.events_dir) / path for path in files(settings))
    kept = first.read_bytes()
    first.unlink()
    with pytest.raises(ParquetBehindError, match=rf"of the last load of chunks {CHUNK.key}\. "):
        uho_pipelines.read_events("alpha", "Simple", source="parquet", settings=settings)
    # A file of other records than were loaded last is as bad as none.
    second.write_bytes(kept)
    first.write_bytes(kept)
    with pytest.raises(ParquetBehindError, match=NEXT.key):
        uho_pipelines.read_events("alpha", "Simple", source="parquet", settings=settings)
    assert uho_pipelines.read_events("alpha", "Simple", 0, 199, source="parquet", settings=settings).shape[0] == 1


def test_addresses_and_signatures_are_bytea_where_that_is_asked_for(settings, warehouse):
    program = registered(settings, "alpha", (0, idl(SIMPLE)), parquet=True, bytea=True)
    loaded(settings, program, simple(110, 1), simple(111, 2))
    signature = signature_of(simple(110, 1))
    assert rows(warehouse, "SELECT signature, who, amount FROM demo_sim_alpha.simple WHERE slot = 110") == [
        (signature, WHO, Decimal(1))
    ]
    for source in ("postgres", "parquet"):
        frame = uho_pipelines.read_events("alpha", "Simple", source=source, settings=settings)
        assert (frame["signature"][0], frame["who"].tolist()) == (signature, [WHO, WHO])
    with connect(warehouse, application_name="test") as connection:
        assert find_damage(connection, program, CHUNK) == []
        connection.execute("UPDATE demo_sim_alpha.simple SET signature = 'x' WHERE slot = 110")
        connection.commit()
        assert len(find_damage(connection, program, CHUNK)) == 1
