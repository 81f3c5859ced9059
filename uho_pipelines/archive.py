"""Client of the sidecar: a range of slots becomes an iterator of record batches and checkpoints.

What belongs here: HTTP, the Arrow stream, and telling what failed. Everything that the sidecar says is checked against
the protocol (order, ranges, certificates that join up), so that what comes out can be kept as it is. Whether a
certificate proves anything is `checks.py`'s business, keeping records is `lake.py`'s.
"""

import json
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import pyarrow as pa
import requests
import uho_native
import urllib3
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_exponential_jitter

from uho_pipelines.errors import UhoError
from uho_pipelines.settings import Settings

RECORD, STARTED, CHECKPOINT, DONE, ERROR = range(5)
"""What a row of the stream is: its `kind`."""

ARROW_STREAM = "application/vnd.apache.arrow.stream"

PASSING_CODES = frozenset(
    {
        *("early_eof", "fetch_failed", "io", "object_changed"),
        *(
            "internal",
            "job_running",
            "memory_short",
            "shutting_down",
            "stalled",
            "too_many_estimates",
            "too_many_jobs",
            "unreachable",
        ),
        "records_differ",
    }
)
"""Codes of faults that can pass by themselves: asking again is worth while. Every other one needs a person."""

CONNECT_RETRY_SECONDS = 120.0
"""For so long a stream that cannot begin, for a reason that can pass, is asked for again."""

Certificate = dict[str, Any]
"""A certificate as the sidecar writes it: JSON, camelCase."""


class ArchiveStreamError(UhoError):
    """The sidecar refused or ended a stream, or said something the protocol does not allow; `code` is stable."""

    def __init__(self, code: str, reason: str, *, remedy: str = "") -> None:
        self.code = code
        self.reason = reason
        super().__init__(f"{code}: {reason}{f'. {remedy}' if remedy else ''}")

    @property
    def can_pass(self) -> bool:
        """Whether asking again is worth while."""
        return self.code in PASSING_CODES


class StreamCutShortError(ArchiveStreamError):
    """The stream ended without `done`: what came is incomplete, however clean its end."""

    def __init__(self, position: int, end: int, reason: str) -> None:
        self.position = position
        self.end = end
        super().__init__(
            "stream_cut_short", f"the stream ended at slot {position} of [.., {end}) without `done` ({reason})"
        )

    @property
    def can_pass(self) -> bool:
        """A connection that broke may hold the next time."""
        return True


@dataclass(frozen=True)
class Checkpoint:
    """Everything before `slot` was sent; `certificate` is of the stretch since the checkpoint before."""

    slot: int
    certificate: Certificate


@dataclass(frozen=True)
class Done:
    """Everything was sent; `certificate` is of the whole range."""

    certificate: Certificate


StreamItem = pa.RecordBatch | Checkpoint | Done
"""What a stream yields. Batches have the record schema and never split a block."""


@dataclass
class ArchiveStream:
    """A stream that has begun: iterate it to its end. `job_id` is the sidecar's name for it."""

    job_id: str
    items: Iterator[StreamItem]

    def __iter__(self) -> Iterator[StreamItem]:
        return self.items


class ArchiveClient:
    """Asks one sidecar. No proxy, `.netrc` or redirect is followed: only the operator says where the sidecar is."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @contextmanager
    def stream(
        self,
        network: str,
        program_ids: Sequence[str],
        start: int,
        end: int,
        *,
        instructions_of: Sequence[str] = (),
        waiting: Callable[[ArchiveStreamError], None] = lambda _: None,
    ) -> Generator[ArchiveStream]:
        """Begin the stream of the slots `[start, end)`; leaving the block closes the socket, which ends the job there.

        The instructions of `instructions_of`, some of the programs, are records too; batches have the column
        `accounts` then.

        A refusal that can pass (every place taken, sidecar not up yet) is tried again for two minutes, each time after
        `waiting` was told. Once the stream has begun nothing is repeated here: the caller knows what it has kept.

        Raises:
            ArchiveStreamError: refused, or failed; while iterating, also
            StreamCutShortError: it ended without `done`.
        """
        body = {
            "network": network,
            "programIds": list(program_ids),
            "startSlot": start,
            "endSlot": end,
            # The lake keeps the records of failed transactions too, so that a change of policy needs no archive.
            "includeFailed": True,
            "checkpointSlots": self.settings.network(network).checkpoint_slots,
            "verify": self.settings.network(network).verify,
            **({"instructionProgramIds": list(instructions_of)} if instructions_of else {}),
        }
        with self._session() as session:
            begin = Retrying(
                retry=retry_if_exception(lambda error: isinstance(error, ArchiveStreamError) and error.can_pass),
                wait=wait_exponential_jitter(initial=1, max=15),
                stop=stop_after_delay(CONNECT_RETRY_SECONDS),
                before_sleep=lambda state: waiting(
                    cast("ArchiveStreamError", state.outcome and state.outcome.exception())
                ),
                reraise=True,
            )
            response = begin(self._ask, session, "POST", "/backfill", body=body, accept=ARROW_STREAM)
            try:
                items = _items(response, start, end, accounts=bool(instructions_of))
                yield ArchiveStream(response.headers.get("Uho-Job-Id", ""), items)
            finally:
                response.close()

    def tip(self, network: str, first_epoch: int) -> int | None:
        """Return the end slot (exclusive) of the newest epoch published whole, searched from `first_epoch` upward.

        Raises:
            ArchiveStreamError: the sidecar cannot tell.
        """
        with self._session() as session:
            answer = self._ask(session, "GET", f"/archives/{network}/tip?firstEpoch={first_epoch}").json()
        tip = answer.get("tipSlot")
        if tip is not None and not isinstance(tip, int):
            raise ArchiveStreamError("stream_malformed", "the sidecar's answer about the tip has no integer tipSlot")
        return tip

    def estimate(
        self,
        network: str,
        program_ids: Sequence[str],
        start: int,
        end: int,
        *,
        bytes_at_most: int,
        precision: float,
        seed: int = 0,
        instructions_of: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Return what a backfill of the slots `[start, end)` would find, from a sample; see `estimate.py`.

        Raises:
            ArchiveStreamError: the sidecar cannot tell.
        """
        body = {
            "network": network,
            "programIds": list(program_ids),
            "startSlot": start,
            "endSlot": end,
            "maxBytes": bytes_at_most,
            "precision": precision,
            "seed": seed,
            **({"instructionProgramIds": list(instructions_of)} if instructions_of else {}),
        }
        with self._session() as session, self._ask(session, "POST", "/estimate", body=body) as response:
            try:
                answer = response.json()
            except requests.RequestException:
                answer = None
        if not isinstance(answer, dict):
            raise ArchiveStreamError("stream_malformed", "the sidecar's estimate is no JSON object")
        return cast("dict[str, Any]", answer)

    @contextmanager
    def _session(self) -> Generator[requests.Session]:
        with requests.Session() as session:
            session.trust_env = False
            secret = self.settings.read_sidecar_secret()
            if secret is not None:
                session.headers["Authorization"] = f"Bearer {secret}"
            yield session

    def _ask(
        self,
        session: requests.Session,
        method: str,
        path: str,
        *,
        body: dict[str, Any] | None = None,
        accept: str = "application/json",
    ) -> requests.Response:
        try:
            response = session.request(
                method,
                f"{self.settings.sidecar_url}{path}",
                json=body,
                headers={"Accept": accept, "Accept-Encoding": "identity"},
                timeout=(self.settings.sidecar_connect_seconds, self.settings.sidecar_stall_seconds),
                stream=body is not None,
                allow_redirects=False,
            )
        except requests.RequestException as error:
            reason = f"the sidecar at {self.settings.sidecar_url} does not answer ({type(error).__name__})"
            raise ArchiveStreamError("unreachable", reason, remedy="Is it running? `uho up` starts it") from None
        if response.status_code != requests.codes.ok:
            with response:
                raise _refusal(response)
        return response


def archive_tip(settings: Settings, network: str, first_epoch: int) -> int | None:
    """Return the end slot (exclusive) of the newest epoch of `network` published whole; see `ArchiveClient.tip`."""
    return ArchiveClient(settings).tip(network, first_epoch)


def record_batch(columns: Sequence[pa.Array]) -> pa.RecordBatch:
    """Return a batch of the record schema, with `accounts` if there are as many columns, from ones that come nullable.

    Raises:
        ValueError: a column that cannot be null has nulls.
    """
    schema = uho_native.record_schema()
    if len(columns) > len(schema):
        schema = uho_native.record_schema(accounts=True)
    for field, column in zip(schema, columns, strict=True):
        if not field.nullable and column.null_count:
            raise ValueError(f"column {field.name} has nulls")
    return pa.RecordBatch.from_arrays(list(columns), schema=schema)


def read_records_stream(data: bytes) -> Iterator[pa.RecordBatch]:
    """Yield the records of a whole stream of records, without control rows, that is held in memory.

    Raises:
        ValueError: it has another schema, or nulls where records have none. `pa.ArrowInvalid`: it is no stream.
    """
    reader = pa.ipc.open_stream(data)
    if not any(reader.schema.equals(stream_schema(accounts=accounts)) for accounts in (False, True)):
        raise ValueError("another schema than this version reads")
    for batch in reader:
        yield record_batch(batch.columns[1:-1])


def stream_schema(*, accounts: bool = False) -> pa.Schema:
    """Return the schema of the sidecar's Arrow stream: kind, the record columns (all nullable), control.

    A stream with instructions among its records has `accounts` behind the record columns.
    """
    fields = [field.with_nullable(True) for field in uho_native.record_schema(accounts=accounts)]
    return pa.schema([pa.field("kind", pa.uint8(), nullable=False), *fields, pa.field("control", pa.string())])


def _refusal(response: requests.Response) -> ArchiveStreamError:
    """Return the error that a refusal tells of, from at most 64 KiB of its body."""
    try:
        answer = json.loads(next(response.iter_content(65_536), b""))
        return ArchiveStreamError(str(answer["code"]), str(answer["message"]))
    except (ValueError, KeyError, TypeError, requests.RequestException):
        return ArchiveStreamError(f"http_{response.status_code}", "the sidecar refused without saying why")


def _items(response: requests.Response, start: int, end: int, *, accounts: bool) -> Iterator[StreamItem]:
    """Yield what the stream holds, checked against the protocol as it comes."""
    progress = _Progress(start, end)
    try:
        # pyarrow asks for exactly the bytes of the next message part, so that no buffer holds back a checkpoint.
        reader = pa.ipc.open_stream(pa.PythonFile(response.raw, mode="r"))
        if not reader.schema.equals(stream_schema(accounts=accounts)):
            raise ArchiveStreamError(
                "stream_malformed",
                "the sidecar's stream has another schema than this version reads",
                remedy="Build both from one commit",
            )
        for batch in reader:
            item = progress.take(batch)
            if item is not None:
                yield item
            if isinstance(item, Done):
                return
    except urllib3.exceptions.ReadTimeoutError:
        raise ArchiveStreamError("stalled", f"no byte came for long after slot {progress.position}") from None
    except TimeoutError:
        raise ArchiveStreamError("stalled", f"no byte came for long after slot {progress.position}") from None
    except (OSError, EOFError, pa.ArrowInvalid, pa.ArrowException, urllib3.exceptions.HTTPError) as error:
        raise StreamCutShortError(progress.position, end, type(error).__name__) from None
    finally:
        response.close()
    raise StreamCutShortError(progress.position, end, "a clean end of file")


class _Progress:
    """How far a stream is, and the checks that need to know it."""

    def __init__(self, start: int, end: int) -> None:
        self.end = end
        self.position = start
        """The last checkpoint: everything before it was sent."""
        self.next_slot = start
        """Records of lower slots can no longer come."""

    def take(self, batch: pa.RecordBatch) -> StreamItem | None:
        """Return what `batch` says, or None for `started`; raise if the protocol does not allow it here."""
        if batch.num_rows == 0:
            return None
        kinds = set(batch.column(0).to_pylist()) if batch.num_rows == 1 else set(batch.column(0).unique().to_pylist())
        if kinds == {RECORD}:
            return self._records(batch)
        if batch.num_rows != 1:
            raise self._malformed("a control row is not alone in its batch")
        try:
            control: dict[str, Any] = json.loads(batch.column(batch.num_columns - 1)[0].as_py())
        except (TypeError, ValueError):
            raise self._malformed("a control row holds no JSON") from None
        match kinds.pop():
            case kind if kind == STARTED:
                return None
            case kind if kind == CHECKPOINT:
                return self._checkpoint(control)
            case kind if kind == DONE:
                return self._done(control)
            case kind if kind == ERROR:
                raise ArchiveStreamError(str(control.get("code")), str(control.get("message")))
            case kind:
                raise self._malformed(f"a row of unknown kind {kind}")

    def _records(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        try:
            records = record_batch(batch.columns[1:-1])
        except ValueError as error:
            raise self._malformed(str(error)) from None
        slots = records.column(0).to_numpy()
        if int(slots[0]) < self.next_slot or int(slots[-1]) >= self.end or bool((slots[1:] < slots[:-1]).any()):
            raise self._malformed("records are out of order, out of range, or a block is split")
        self.next_slot = int(slots[-1]) + 1
        return records

    def _checkpoint(self, control: dict[str, Any]) -> Checkpoint:
        slot, certificate = control.get("slot"), control.get("certificate")
        if not isinstance(slot, int) or not self.position < slot <= self.end or slot < self.next_slot:
            raise self._malformed(f"a checkpoint at slot {slot} is out of order")
        self._covers(certificate, self.position, slot)
        self.position = self.next_slot = slot
        return Checkpoint(slot, cast("Certificate", certificate))

    def _done(self, control: dict[str, Any]) -> Done:
        if self.position != self.end:
            raise self._malformed("`done` came before the last checkpoint")
        certificate = control.get("certificate")
        if not isinstance(certificate, dict):
            raise self._malformed("`done` has no certificate")
        return Done(cast("Certificate", certificate))

    def _covers(self, certificate: object, start: int, end: int) -> None:
        fields = cast("dict[str, Any]", certificate) if isinstance(certificate, dict) else {}
        if (fields.get("startSlot"), fields.get("endSlot")) != (start, end):
            raise self._malformed(f"a certificate is not of the slots [{start}, {end})")

    def _malformed(self, reason: str) -> ArchiveStreamError:
        return ArchiveStreamError("stream_malformed", f"after slot {self.position}: {reason}")
