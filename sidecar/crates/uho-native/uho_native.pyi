"""What the pipeline does to every row, natively: decoding, COPY encoding, digests, certificates.

Batches cross by the Arrow C data interface, without copying. The interpreter is released while a batch is
decoded, encoded or digested, so threads run side by side.
"""

import pyarrow as pa

class CopyError(ValueError):
    """A batch has no COPY form: a column without a rule, or a value out of its Postgres type's range."""

def record_schema() -> pa.Schema:
    """The Arrow schema of records: fixed names, order and types. Only ``block_time`` can be null."""

def record_digest(batch: pa.RecordBatch) -> str:
    """The additive digest of a batch of records, as 32 hexadecimal characters.

    Independent of the order of rows and of how they are cut into batches.
    Raises ValueError when the batch does not have the record schema.
    """

def add_digests(a: str, b: str) -> str:
    """The digest of two disjoint sets of records together: the sum modulo 2**128.

    Raises ValueError when one of them is not 32 hexadecimal characters.
    """

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
