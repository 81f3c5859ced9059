"""What the pipeline does to every row, natively: decoding, COPY encoding, digests, certificates.

Batches cross by the Arrow C data interface, without copying. The interpreter is released while a batch is
decoded, encoded or digested, so threads run side by side.
"""

from typing import Literal, TypedDict, final

import pyarrow as pa

# pyarrow ships no types of its own.
# pyright: reportUnknownParameterType=none

class IdlError(ValueError):
    """A program's IDL versions make no decoder. The message names version, event and field, and the fault."""

class DecodeError(ValueError):
    """A batch could not be decoded at all. Payloads that do not decode are no error: they are quarantined."""

class PayloadError(ValueError):
    """A payload that no IDL version decodes. The message names code, field, offset and what is wrong there."""

class CopyError(ValueError):
    """A batch has no COPY form: a column without a rule, or a value out of its Postgres type's range."""

def record_schema(*, accounts: bool = False) -> pa.Schema:
    """The Arrow schema of records: fixed names, order and types. Only ``block_time`` can be null.

    With ``accounts`` one more column, that can be: of an instruction the 32 bytes of each account given to it, one
    behind the other; null where one of them is not known, and of what a program said.
    """

def record_digest(batch: pa.RecordBatch) -> str:
    """The additive digest of a batch of records, as 32 hexadecimal characters.

    Independent of the order of rows and of how they are cut into batches, and of a column ``accounts`` where it is
    null.
    Raises ValueError when the batch does not have the record schema.
    """

def add_digests(a: str, b: str) -> str:
    """The digest of two disjoint sets of records together: the sum modulo 2**128.

    Raises ValueError when one of them is not 32 hexadecimal characters.
    """

def merge_certificates(first: str, second: str) -> str:
    """The certificate (JSON) of two neighbouring slot ranges.

    Raises ValueError when one of them is no certificate or they do not fit: the second has to begin where the
    first ends, its first block's parent has to be the first's last block, and both were read the same way.
    """

def certificate_fault(certificate: str) -> str | None:
    """Why a certificate (JSON) does not hold; None when it holds. Raises ValueError when it is none."""

def copy_header() -> bytes:
    """What opens a Postgres binary COPY stream (19 bytes)."""

def copy_trailer() -> bytes:
    """What closes a Postgres binary COPY stream (2 bytes)."""

def encode_copy(batch: pa.RecordBatch) -> bytes:
    """The rows of a batch for ``COPY … FROM STDIN (FORMAT binary)``, without header and trailer.

    Each field's metadata names its Postgres type under ``uho:postgres``; columns keep their order. In text,
    U+0000 becomes the six characters ``\\u0000``. Raises CopyError when a field names no type, when no rule
    leads from its Arrow type to it, when a value does not fit, or when the output might exceed 1 GiB: slice
    the batch then.
    """

def copy_digest(rows: bytes, columns: list[tuple[str, str | None]]) -> str:
    """The digest of rows that ``encode_copy`` made, as Postgres would compute it of them once they are stored: decimal.

    ``columns`` are the names and Postgres types of the table's columns, in the order of the fields; a column without a
    type changes nothing. Digests of disjoint rows add up. Raises CopyError for other bytes and unknown types.
    """

def base58(array: pa.Array) -> pa.Array:
    """Addresses or signatures (fixed size binary of 32 or 64 bytes) as base58 text; null stays null.

    Raises ValueError for an array of any other type.
    """

class DecodedBy(TypedDict):
    """Decoded rows of one event by one IDL version."""

    event: str
    idl: str
    count: int

class UndecodableBy(TypedDict):
    """Rows in quarantine of one discriminator (hexadecimal) for one reason (its code).

    Slots are the first and last such row's. Unexplained are the bytes of a payload from where reading it stopped:
    the fewest and the most.
    """

    discriminator: str
    reason: str
    count: int
    first_slot: int
    last_slot: int
    least_unexplained: int
    most_unexplained: int

class Fallback(TypedDict):
    """Rows of one event decoded by a version that was not in force. Slots are the first and last such row's."""

    event: str
    idl: str
    discriminator: str
    first_slot: int
    last_slot: int
    count: int

class EventDescription(TypedDict):
    """An event of one IDL version: its discriminator (hexadecimal) and its fields' names and types.

    A type is written with everything that it is made of: texts differ wherever bytes are read differently.
    """

    idl: str
    event: str
    discriminator: str
    fields: list[tuple[str, str]]

class Explanation(TypedDict):
    """A decoded payload: fields are (name, first byte, first byte behind it, value as JSON)."""

    event: str
    idl: str
    fallback: bool
    discriminator_bytes: int
    fields: list[tuple[str, int, int, str]]

class InstructionCounts(TypedDict):
    """What of the counts are instructions; the rest are events.

    ``short_of_accounts`` are decoded ones given fewer accounts than any version that reads their data demands,
    ``unknown_accounts`` decoded ones whose accounts cannot be resolved.
    """

    records: int
    failed_left_out: int
    foreign: int
    decoded: int
    undecodable: int
    short_of_accounts: int
    unknown_accounts: int

class DecodeCounts(TypedDict):
    """What became of the records of a batch, instructions included.

    ``records == twins_folded + failed_left_out + foreign + decoded + undecodable``. Codes of undecodable instructions
    begin with ``instruction_``.
    """

    records: int
    twins_folded: int
    failed_left_out: int
    foreign: int
    decoded: int
    undecodable: int
    decoded_by: list[DecodedBy]
    undecodable_by: list[UndecodableBy]
    fallback: list[Fallback]
    instructions: InstructionCounts

@final
class EventTable:
    """The table of one event name, or of one instruction, over all IDL versions."""

    @property
    def name(self) -> str:
        """The event's name as in the IDL; of an instruction ``instruction:`` and its name in snake case."""
    @property
    def kind(self) -> Literal["event", "instruction"]:
        """What its rows are."""
    @property
    def docs(self) -> str:
        """Its documentation in the newest version that has any; empty otherwise."""
    @property
    def schema(self) -> pa.Schema:
        """The fixed columns, then a nullable column per field, with names as in the IDL.

        Fixed: slot, tx_index, event_index, signature, source, block_time; of an instruction slot, tx_index,
        instruction_index, signature, instruction_path, accounts_given, remaining_accounts, block_time, and behind its
        arguments ``account_<name>`` per account. Names are the IDL's, so a field may be called like one of
        them: go by position. Field metadata: ``uho:postgres`` is the Postgres type, ``uho:docs`` the
        documentation, where there is any. With ``include_failed`` batches end with two more columns,
        ``failed`` and ``truncated``.
        """

@final
class Decoded:
    """What a batch of records became."""

    @property
    def tables(self) -> list[tuple[int, pa.RecordBatch]]:
        """Batches with their index in ``Decoder.tables()``. Only tables with rows; ascending record order."""
    @property
    def quarantine(self) -> pa.RecordBatch:
        """Records that no version decodes: the record columns, then discriminator, reason and idl.

        As in event tables, ``source`` is "log", "cpi" or "instruction" and ``block_time`` a timestamp; ``accounts``
        stands behind the record columns. ``reason`` begins with a code: unknown_discriminator, truncated_payload,
        trailing_bytes, invalid_value, ambiguous; of an instruction ``instruction_`` and the code.
        """
    @property
    def counts(self) -> DecodeCounts:
        """What became of every record."""

@final
class Decoder:
    """Decodes a program's records by its IDL versions, by exact consumption.

    ``program`` is the program id (32 bytes). A version is its first slot, its label (the file name, which
    counts and reasons quote) and the bytes of its file; both IDL formats are read. Raises IdlError when a file
    cannot be read or an event needs what is not supported, and ValueError when the id is malformed. With ``bytea``
    columns of addresses and signatures ask for that Postgres type; what is nested stays base58. With ``instructions``
    instructions have tables too; without, they are counted as foreign.

    A version that demands more accounts than an instruction was given comes after all versions that do not.
    """

    def __new__(
        cls,
        program: bytes,
        versions: list[tuple[int, str, bytes]],
        *,
        bytea: bool = False,
        instructions: bool = False,
    ) -> Decoder: ...
    def tables(self) -> list[EventTable]:
        """One table per event name and instruction, in the order the names first appear over the versions."""
    def describe(self) -> list[EventDescription]:
        """Every event of every version, versions in ascending order."""
    def explain(self, payload: bytes, slot: int) -> Explanation:
        """Decodes one payload as at ``slot``, and says which bytes each field was read from.

        Raises PayloadError when no version decodes it.
        """
    def decode(self, batch: pa.RecordBatch, *, include_failed: bool, ignore: list[bytes]) -> Decoded:
        """Decodes a batch of the program's records, whole blocks.

        ``ignore`` lists payload prefixes that are known to be no events: they are counted as foreign. Raises
        DecodeError when the batch does not have the record schema, has records of another program, or its
        decoded values would take more than 1 GiB: pass fewer records then.
        """
    def decode_all(
        self, batches: list[pa.RecordBatch], *, include_failed: bool, ignore: list[bytes], threads: int | None = None
    ) -> list[Decoded]:
        """Decodes batches, each of whole blocks, on so many threads at most: by default as many as there are cores.

        The results are in the batches' order, and as ``decode`` makes them; the first error is raised.
        """
