"""What comes out of the sidecar's stream is whole and in order, or an error that says what to do."""

import json
import signal

import pyarrow as pa
import pytest
from streams import (
    CHECKPOINT_SLOTS,
    Answer,
    FakeSidecar,
    chunk_items,
    encode,
    error_item,
    fake_sidecar,
    make_records,
    make_settings,
    program_id,
    stream_of,
)

from uho_pipelines import archive
from uho_pipelines.archive import (
    CHECKPOINT,
    DONE,
    RECORD,
    ArchiveClient,
    ArchiveStreamError,
    Checkpoint,
    Done,
    StreamCutShortError,
    archive_tip,
)

ALPHA = program_id("alpha")


@pytest.fixture
def sidecar(monkeypatch):
    monkeypatch.setattr(archive, "CONNECT_RETRY_SECONDS", 0.0)
    with fake_sidecar() as fake:
        yield fake


@pytest.fixture
def client(sidecar: FakeSidecar, tmp_path) -> ArchiveClient:
    return ArchiveClient(make_settings(tmp_path, sidecar.url))


def read(client: ArchiveClient, start: int = 0, end: int = 60) -> list[object]:
    with client.stream("sim", [str(ALPHA)], start, end) as stream:
        return list(stream)


def test_a_stream_yields_batches_checkpoints_and_done_in_order(sidecar, client):
    items = read(client)
    kinds = [type(item).__name__ for item in items]
    assert kinds == [*["RecordBatch", "RecordBatch", "Checkpoint"] * 3, "Done"]
    records = pa.Table.from_batches([item for item in items if isinstance(item, pa.RecordBatch)])
    assert records.equals(pa.Table.from_batches([make_records(range(60), [ALPHA])]))
    assert [item.slot for item in items if isinstance(item, Checkpoint)] == [20, 40, 60]
    assert isinstance(items[-1], Done)
    assert items[-1].certificate["endSlot"] == 60


def test_the_request_names_everything_and_authorizes_itself(sidecar, client):
    read(client)
    assert sidecar.requests == [
        {
            "network": "sim",
            "programIds": [str(ALPHA)],
            "startSlot": 0,
            "endSlot": 60,
            "includeFailed": True,
            "checkpointSlots": CHECKPOINT_SLOTS,
            "verify": "full",
        }
    ]
    assert sidecar.headers[0]["Authorization"] == "Bearer secret"
    assert sidecar.headers[0]["Accept"] == archive.ARROW_STREAM


def test_a_stream_cut_anywhere_is_never_taken_for_whole(sidecar, client):
    messages = encode(chunk_items(0, 60, [ALPHA]))
    ends = [sum(map(len, messages[: index + 1])) for index in range(len(messages))]
    whole_before_done = ends[-2]
    cuts = sorted({*(end + shift for end in ends for shift in (-9, -1, 0, 1)), *range(0, ends[-1], 997)})
    for cut in [cut for cut in cuts if 0 <= cut < whole_before_done]:
        sidecar.answer = lambda _, cut=cut: Answer(messages, cut_after=cut)
        with pytest.raises(StreamCutShortError) as caught:
            read(client)
        assert caught.value.can_pass, cut


def test_a_clean_end_without_done_is_a_failure(sidecar, client):
    sidecar.answer = lambda _: Answer(encode(chunk_items(0, 60, [ALPHA])[:-1]))
    with pytest.raises(StreamCutShortError, match="slot 60"):
        read(client)


def test_an_error_record_is_raised_with_its_code(sidecar, client):
    sidecar.answer = lambda _: Answer(
        encode([*chunk_items(0, 60, [ALPHA])[:4], error_item("cid_mismatch", "at offset 7")])
    )
    with pytest.raises(ArchiveStreamError, match="at offset 7") as caught:
        read(client)
    assert caught.value.code == "cid_mismatch"
    assert not caught.value.can_pass


def test_a_refusal_is_raised_with_the_sidecars_words(sidecar, client):
    sidecar.answer = lambda _: Answer(status=400, body={"code": "invalid_request", "message": "endSlot: missing"})
    with pytest.raises(ArchiveStreamError, match="endSlot: missing") as caught:
        read(client)
    assert (caught.value.code, len(sidecar.requests)) == ("invalid_request", 1)


def test_a_refusal_without_words_names_its_status(sidecar, client):
    sidecar.answer = lambda _: Answer(status=502, body={})
    with pytest.raises(ArchiveStreamError, match="http_502"):
        read(client)


def test_a_full_sidecar_is_asked_again_and_the_waiting_is_told(sidecar, client, monkeypatch):
    monkeypatch.setattr(archive, "CONNECT_RETRY_SECONDS", 60.0)
    full = Answer(status=429, body={"code": "too_many_jobs", "message": "2 are under way"})
    sidecar.answer = lambda body: full if len(sidecar.requests) < 2 else stream_of(body)
    told: list[str] = []
    with client.stream("sim", [str(ALPHA)], 0, 20, waiting=lambda error: told.append(error.code)) as stream:
        assert isinstance(list(stream)[-1], Done)
    assert told == ["too_many_jobs"]


def test_a_redirect_is_not_followed(sidecar, client):
    sidecar.answer = lambda _: Answer(status=307, body={}, headers={"Location": "http://127.0.0.1:9/elsewhere"})
    with pytest.raises(ArchiveStreamError, match="http_307"):
        read(client)


def test_an_unreachable_sidecar_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "CONNECT_RETRY_SECONDS", 0.0)
    with pytest.raises(ArchiveStreamError, match="does not answer") as caught:
        read(ArchiveClient(make_settings(tmp_path, "http://127.0.0.1:9")))
    assert caught.value.can_pass


def test_silence_ends_a_stream(sidecar, tmp_path):
    read(ArchiveClient(make_settings(tmp_path, sidecar.url)))  # what is imported at first is no silence of a stream
    client = ArchiveClient(make_settings(tmp_path, sidecar.url, sidecar_stall_seconds=1.0))
    sidecar.answer = lambda body: Answer(stream_of(body).messages, hang_after=5)
    with pytest.raises(ArchiveStreamError, match="slot 20") as caught:
        read(client)
    assert (caught.value.code, caught.value.can_pass) == ("stalled", True)


def test_leaving_closes_the_socket(sidecar, client):
    sidecar.answer = lambda body: Answer(stream_of(body).messages, hang_after=5)
    with client.stream("sim", [str(ALPHA)], 0, 60) as stream:
        next(iter(stream))
    assert sidecar.client_left.wait(60)


def test_an_exception_while_reading_closes_the_socket(sidecar, client):
    sidecar.answer = lambda body: Answer(stream_of(body).messages, hang_after=5)

    class Interrupted(BaseException):
        pass

    def leave():
        with client.stream("sim", [str(ALPHA)], 0, 60) as stream:
            for _ in stream:
                raise Interrupted

    with pytest.raises(Interrupted):
        leave()
    assert sidecar.client_left.wait(60)


def test_a_signal_reaches_the_caller_while_the_stream_is_silent(sidecar, client):
    # Dagster cancels a run by raising, from a signal handler, an exception that is no Exception.
    def answer(body):
        messages = stream_of(body).messages
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        return Answer(messages, hang_after=5)

    sidecar.answer = answer

    class Interrupted(BaseException):
        pass

    def interrupt(*_):
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(Interrupted):
            read(client)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert sidecar.client_left.wait(60)


def reordered(items):
    return [items[0], items[2], items[1], *items[3:]]


def split_block(items):
    return [items[0], (RECORD, items[1][1].slice(0, 1)), (RECORD, items[1][1].slice(0, 1)), *items[3:]]


def late_record(items):
    return [*items[:4], (RECORD, make_records([5], [ALPHA])), *items[4:]]


def beyond_end(items):
    return [items[0], (RECORD, make_records([60], [ALPHA])), *items[3:]]


def early_done(items):
    return [*items[:4], items[-1]]


def other_certificate(items):
    kind, control = items[3]
    return [*items[:3], (kind, {**control, "certificate": {**control["certificate"], "endSlot": 19}}), *items[4:]]


def backward_checkpoint(items):
    return [*items[:4], items[3], *items[4:]]


def no_certificate(items):
    return [*items[:-1], (DONE, {"type": "done"})]


def checkpoint_past_end(items):
    return [
        *items[:3],
        (CHECKPOINT, {"type": "checkpoint", "slot": 80, "certificate": {"startSlot": 0, "endSlot": 80}}),
    ]


def unknown_kind(items):
    return [items[0], (9, {})]


@pytest.mark.parametrize(
    "change",
    [
        *[reordered, split_block, late_record, beyond_end, early_done, other_certificate, backward_checkpoint],
        *[no_certificate, checkpoint_past_end, unknown_kind],
    ],
)
def test_what_the_protocol_does_not_allow_is_refused(sidecar, client, change):
    sidecar.answer = lambda _: Answer(encode(change(chunk_items(0, 60, [ALPHA]))))
    with pytest.raises(ArchiveStreamError) as caught:
        read(client)
    assert caught.value.code == "stream_malformed"


def test_another_schema_is_refused(sidecar, client):
    schema = pa.schema([pa.field("kind", pa.uint8(), nullable=False), pa.field("control", pa.string())])
    sidecar.answer = lambda _: Answer(encode([(0, pa.RecordBatch.from_pylist([]))][:0], schema))
    with pytest.raises(ArchiveStreamError, match="another schema"):
        read(client)


def test_a_null_where_none_may_be_is_refused(sidecar, client):
    items = chunk_items(0, 60, [ALPHA])
    batch = items[1][1]
    index = batch.schema.get_field_index("slot")
    nullable = pa.schema([field.with_nullable(True) for field in batch.schema])
    columns = [
        pa.nulls(batch.num_rows, column.type) if at == index else column for at, column in enumerate(batch.columns)
    ]
    sidecar.answer = lambda _: Answer(
        encode([items[0], (RECORD, pa.RecordBatch.from_arrays(columns, schema=nullable))])
    )
    with pytest.raises(ArchiveStreamError, match="slot has nulls"):
        read(client)


def test_the_tip_is_asked_for(sidecar, tmp_path):
    paths: list[str] = []

    def tip(path: str) -> Answer:
        paths.append(path)
        return Answer(body={"tipSlot": 864_000})

    sidecar.tip = tip
    assert archive_tip(make_settings(tmp_path, sidecar.url), "sim", 1) == 864_000
    assert paths == ["/archives/sim/tip?firstEpoch=1"]


def test_a_tip_that_is_no_slot_is_refused(sidecar, tmp_path):
    sidecar.tip = lambda _: Answer(body=json.loads('{"tipSlot": "far"}'))
    with pytest.raises(ArchiveStreamError, match="tipSlot"):
        archive_tip(make_settings(tmp_path, sidecar.url), "sim", 1)
