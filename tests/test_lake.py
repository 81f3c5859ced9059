"""The lake gives back what was written, resumes what can be trusted, and trusts nothing else."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs
from streams import CHECKPOINT_SLOTS, CHUNK_SLOTS, chunk_items, make_program, make_records, make_settings, program_id

from uho_pipelines import lake as lake_module
from uho_pipelines.archive import CHECKPOINT, DONE, RECORD, ArchiveStreamError, Checkpoint, Done
from uho_pipelines.chunks import Chunk
from uho_pipelines.lake import (
    DiskFullError,
    KeptPartsDifferError,
    Lake,
    LakeTakenError,
    PartAlteredError,
    RecordsMissingError,
)

ALPHA, BETA = program_id("alpha"), program_id("beta")
CHUNK = Chunk(CHUNK_SLOTS, CHUNK_SLOTS)


@pytest.fixture
def settings(tmp_path):
    return make_settings(tmp_path)


@pytest.fixture
def folder(settings, tmp_path):
    return Lake(settings).chunk(make_program(tmp_path), CHUNK)


@pytest.fixture
def said():
    return []


@pytest.fixture
def new_writer(folder, settings, said):
    def make(attempt="first", **changes):
        own = settings.model_copy(update=changes)
        return folder.writer(attempt, own, said.append)

    return make


def items_from(start, programs=(ALPHA,), **options):
    return chunk_items(start, CHUNK.end, list(programs), **options)


def feed(writer, items):
    """Give a stream's items to a writer, as `materialization.py` does."""
    for kind, value in items:
        if kind == RECORD:
            writer.write(value)
        elif kind == CHECKPOINT:
            writer.checkpoint(Checkpoint(value["slot"], value["certificate"]))
        elif kind == DONE:
            writer.finish(Done(value["certificate"]))


def write_until(writer, stop, start=CHUNK.start, **options):
    """Write a stream from `start` and leave it after the checkpoint at `stop`."""
    items = items_from(start, **options)
    ends = [index for index, (kind, value) in enumerate(items) if kind == CHECKPOINT and value["slot"] == stop]
    writer.restart(start)
    feed(writer, items[: ends[0] + 1])
    writer.close()


def write_all(writer, **options):
    writer.begin()
    writer.restart(writer.resume_slot)
    feed(writer, items_from(writer.resume_slot, **options))
    writer.close()


def files(folder):
    return folder.files.names(folder.folder)


def path_of(folder, name):
    return folder.files.local / folder.folder / name


def test_what_is_written_comes_back(folder, new_writer):
    write_all(new_writer())
    records = pa.Table.from_batches(list(folder.batches()))
    assert records.equals(pa.Table.from_batches([make_records(range(CHUNK.start, CHUNK.end), [ALPHA])]))
    manifest = folder.complete_manifest()
    assert (manifest.complete, manifest.records) == (True, CHUNK_SLOTS)
    assert (manifest.certificate["startSlot"], manifest.certificate["endSlot"]) == (CHUNK.start, CHUNK.end)
    assert manifest.certificate["programs"][str(ALPHA)]["digest"] == manifest.digest
    assert files(folder) == sorted(["manifest.json", *(stretch.file for stretch in manifest.stretches)])
    assert manifest.stretches[0].file == f"100-120-{manifest.stretches[0].digest}.parquet"


def test_a_stretch_without_records_has_no_file(folder, new_writer):
    write_all(new_writer(), with_records=lambda slot: slot == 140)
    manifest = folder.complete_manifest()
    assert [stretch.file is None for stretch in manifest.stretches] == [True, True, False, True, True]
    assert sum(batch.num_rows for batch in folder.batches()) == CHECKPOINT_SLOTS


def test_a_chunk_without_any_record_is_complete(folder, new_writer):
    write_all(new_writer(), with_records=lambda _: False)
    assert folder.complete_manifest().records == 0
    assert list(folder.batches()) == []


def test_a_row_group_never_splits_a_block(folder, new_writer, monkeypatch):
    monkeypatch.setattr(lake_module, "ROW_GROUP_ROWS", 7)
    writer = new_writer()
    writer.begin()
    writer.restart(CHUNK.start)
    batches = [(RECORD, make_records([slot], [ALPHA], per_slot=5)) for slot in range(CHUNK.start, CHUNK.end)]
    items = items_from(CHUNK.start, records=lambda slots, programs: make_records(slots, programs, per_slot=5))
    stretch = iter(batches)
    for kind, value in items:
        if kind == RECORD:
            feed(writer, [next(stretch) for _ in range(10)])
        else:
            feed(writer, [(kind, value)])
    groups = [set(batch.column("slot").to_pylist()) for batch in folder.batches()]
    assert len(groups) == CHUNK_SLOTS // 2
    assert all(not one & other for index, one in enumerate(groups) for other in groups[:index])


def test_small_batches_share_a_row_group(folder, new_writer):
    write_all(new_writer())
    stretch = folder.complete_manifest().stretches[0]
    assert pq.ParquetFile(path_of(folder, stretch.file)).num_row_groups == 1


def test_an_incomplete_chunk_cannot_be_read(folder, new_writer):
    with pytest.raises(RecordsMissingError, match="no records"):
        list(folder.batches())
    writer = new_writer()
    writer.begin()
    write_until(writer, 140)
    with pytest.raises(RecordsMissingError, match="slot 140"):
        list(folder.batches())


def test_a_retry_reads_the_last_kept_stretch_again_and_goes_on(folder, new_writer, said):
    writer = new_writer()
    writer.begin()
    write_until(writer, 140)
    kept = files(folder)
    retry = new_writer("second")
    retry.begin()
    assert retry.resume_slot == 120
    retry.restart(120)
    feed(retry, items_from(120))
    assert said == []
    assert set(kept) <= set(files(folder))
    manifest = folder.complete_manifest()
    assert manifest.certificate["blocks"] == CHUNK_SLOTS
    assert sum(batch.num_rows for batch in folder.batches()) == CHUNK_SLOTS


def test_a_complete_chunk_is_proved_again_by_its_last_stretch(folder, new_writer):
    write_all(new_writer(), tail="unproven")
    assert folder.complete_manifest().certificate["tail"] == "unproven"
    again = new_writer("second")
    again.begin()
    assert again.resume_slot == CHUNK.end - CHECKPOINT_SLOTS
    write_all(again)
    assert folder.complete_manifest().certificate["tail"] == "proven"


def test_starting_over_can_be_asked_for(folder, new_writer, said):
    write_all(new_writer())
    again = new_writer("second")
    again.begin(start_over=True)
    assert again.resume_slot == CHUNK.start
    assert "as was asked for" in said[0]
    assert files(folder) == ["manifest.json"]


def test_a_stream_that_differs_from_what_was_kept_is_not_mixed_with_it(folder, new_writer, said):
    writer = new_writer()
    writer.begin()
    write_until(writer, 140)
    retry = new_writer("second")
    retry.begin()
    retry.restart(120)
    other = items_from(120, records=lambda slots, programs: make_records(slots, programs, per_slot=2))
    with pytest.raises(KeptPartsDifferError, match=r"\[120, 140\)") as caught:
        feed(retry, other)
    retry.start_over(str(caught.value))
    assert retry.resume_slot == CHUNK.start
    assert "starting over" in said[0]
    assert files(folder) == ["manifest.json"]


def test_garbage_is_removed_at_the_next_attempt(folder, new_writer):
    writer = new_writer()
    writer.begin()
    write_until(writer, 140)
    for name in ("100-120-00000000000000000000000000000000.parquet", ".aside-x", "note.txt"):
        path_of(folder, name).write_bytes(b"x")
    new_writer("second").begin()
    assert len(files(folder)) == 3


def test_what_was_half_written_is_gone_after_closing(folder, new_writer, monkeypatch):
    monkeypatch.setattr(lake_module, "ROW_GROUP_ROWS", 1)
    writer = new_writer()
    writer.begin()
    writer.restart(CHUNK.start)
    feed(writer, items_from(CHUNK.start)[:2])
    assert any(name.startswith(".aside-") for name in files(folder))
    writer.close()
    assert files(folder) == ["manifest.json"]


def last_part(folder):
    return path_of(folder, folder.manifest().stretches[-1].file)


def remove(path):
    path.unlink()


def shorten(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


def other_records(path):
    size = path.stat().st_size
    table = pq.read_table(path)
    pq.write_table(table.slice(0, 1), path, compression="zstd", use_compliant_nested_type=False)
    path.write_bytes(path.read_bytes().ljust(size, b"\0"))


@pytest.mark.parametrize("alter", [remove, shorten, flip_a_byte, other_records])
def test_an_altered_last_part_makes_the_chunk_start_over(folder, new_writer, said, alter):
    writer = new_writer()
    writer.begin()
    write_until(writer, 140)
    alter(last_part(folder))
    retry = new_writer("second")
    retry.begin()
    assert retry.resume_slot == CHUNK.start
    assert "starting over" in said[0]


@pytest.mark.parametrize("alter", [remove, shorten, flip_a_byte, other_records])
def test_an_altered_part_is_noticed_while_reading_and_remembered(folder, new_writer, said, alter):
    write_all(new_writer())
    alter(path_of(folder, folder.complete_manifest().stretches[1].file))
    with pytest.raises(PartAlteredError, match=r"120-140-.*uho backfill sim/demo/alpha --from-slot 100 --to-slot 199"):
        list(folder.batches())
    with pytest.raises(PartAlteredError):
        folder.complete_manifest()
    retry = new_writer("second")
    retry.begin()
    assert retry.resume_slot == CHUNK.start
    assert "found altered" in said[0]


@pytest.mark.parametrize("content", [b"", b"{}", b"[1", b'{"schemaVersion": 2}'])
def test_a_manifest_that_cannot_be_read_makes_the_chunk_start_over(folder, new_writer, said, content):
    write_all(new_writer())
    path_of(folder, "manifest.json").write_bytes(content)
    retry = new_writer("second")
    retry.begin()
    assert (retry.resume_slot, files(folder)) == (CHUNK.start, ["manifest.json"])
    assert "cannot be read" in said[0]


def gap(manifest):
    del manifest["stretches"][1]


def other_program(manifest):
    manifest["program"] = "sim/demo/beta"


def path_outside(manifest):
    manifest["stretches"][0]["file"] = "../../other"


@pytest.mark.parametrize("change", [gap, other_program, path_outside])
def test_a_manifest_that_is_not_this_chunks_counts_as_none(folder, new_writer, change):
    write_all(new_writer())
    path = path_of(folder, "manifest.json")
    manifest = json.loads(path.read_bytes())
    change(manifest)
    path.write_text(json.dumps(manifest))
    assert folder.manifest() is None


def test_another_verification_cannot_be_joined_to_what_was_kept(folder, new_writer, said, settings):
    writer = new_writer()
    writer.begin()
    write_until(writer, 140)
    network = settings.network("sim").model_copy(update={"verify": "off"})
    new_writer("second", networks={"sim": network}).begin()
    assert "verify was full and is off" in said[0]


def test_a_later_attempt_ends_an_earlier_one(new_writer):
    earlier = new_writer()
    earlier.begin()
    new_writer("second").begin()
    with pytest.raises(LakeTakenError):
        write_until(earlier, 120)


def test_records_that_are_not_the_certificates_are_refused(new_writer):
    writer = new_writer()
    writer.begin()
    writer.restart(CHUNK.start)
    items = items_from(CHUNK.start)
    with pytest.raises(ArchiveStreamError, match="differ from their certificate") as caught:
        feed(writer, [items[0], items[1], items[3]])
    assert caught.value.can_pass


def test_a_done_that_does_not_continue_what_was_kept_is_refused(new_writer):
    writer = new_writer()
    writer.begin()
    write_until(writer, 180)
    writer.restart(160)
    items = items_from(160)
    broken = {**items[-1][1]["certificate"], "firstBlock": {"slot": 160, "parentSlot": 158}}
    with pytest.raises(ArchiveStreamError) as caught:
        feed(writer, [*items[:-1], (DONE, {"certificate": broken})])
    assert caught.value.code == "certificate_broken"


def test_of_a_shared_stream_each_program_keeps_its_own(settings, tmp_path, said):
    lake = Lake(settings)
    folders = [lake.chunk(make_program(tmp_path, name), CHUNK) for name in ("alpha", "beta")]
    writers = [folder.writer("first", settings, said.append) for folder in folders]
    for writer in writers:
        writer.begin()
        writer.restart(CHUNK.start)
        feed(writer, items_from(CHUNK.start, (ALPHA, BETA)))
    for folder, program in zip(folders, (ALPHA, BETA), strict=True):
        expected = pa.Table.from_batches([make_records(range(CHUNK.start, CHUNK.end), [program])])
        assert pa.Table.from_batches(list(folder.batches())).equals(expected)
        assert list(folder.complete_manifest().certificate["programs"]) == [str(program)]


def test_a_full_disk_is_said_before_the_chunk_begins(settings):
    lake = Lake(settings.model_copy(update={"disk_reserve_bytes": 2**60}))
    with pytest.raises(DiskFullError, match="UHO_DISK_RESERVE_BYTES"):
        lake.require_space(1)
    Lake(settings).require_space(1)


def test_a_remote_lake_behaves_the_same(settings, tmp_path, said):
    # pyarrow's filesystems share one interface; a local one under another root stands for S3.
    lake = Lake(settings)
    (tmp_path / "bucket").mkdir()
    lake.files.local, lake.files.remote, lake.files.root = None, fs.LocalFileSystem(), str(tmp_path / "bucket")
    folder = lake.chunk(make_program(tmp_path), CHUNK)
    (tmp_path / "bucket" / folder.folder).mkdir(parents=True)
    writer = folder.writer("first", settings, said.append)
    write_all(writer)
    assert sum(batch.num_rows for batch in folder.batches()) == CHUNK_SLOTS
    folder.files.write(f"{folder.folder}/garbage", b"x")
    folder.writer("second", settings, said.append).begin()
    assert "garbage" not in files(folder)
    assert list((tmp_path / "scratch").iterdir()) == []
    assert lake.files.free_bytes() is None
