"""The chain of a program's certificates: every line holds the hash of the one before.

What belongs here: reading the chain and finding the lines that were edited or deleted. Lines are appended by
`ledger.finish_records`; numbers and hashes are set by the database.
"""

from dataclasses import dataclass, field

from uho_pipelines.registry import Program
from uho_pipelines.warehouse.connection import Connection
from uho_pipelines.warehouse.ledger import chunk_key

NO_HASH = "0" * 64
"""What stands for the line before the first."""

LINES_AT_ONCE = 1_000


@dataclass
class Chain:
    """What was found of a chain. `faults`, by number, are of lines that hold for a chunk now; `scars` of others."""

    lines: int = 0
    faults: dict[int, str] = field(default_factory=dict[int, str])
    scars: list[str] = field(default_factory=list[str])


def read_chain(connection: Connection, program: Program) -> Chain:
    """Recompute every line's hash and follow the chain from its beginning to its head."""
    chain = Chain()
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        head = connection.execute(
            "SELECT certificates, certificate_hash FROM uho.program WHERE (network, owner, program) = (%s, %s, %s)",
            chunk_key(program),
        ).fetchone()
        holding = {
            number
            for (number,) in connection.execute(
                "SELECT certificate_number FROM uho.chunk "
                "WHERE (network, owner, program) = (%s, %s, %s) AND certificate_number IS NOT NULL",
                chunk_key(program),
            )
        }
        _follow(connection, program, chain, holding, head or (0, NO_HASH))
    return chain


def _follow(connection: Connection, program: Program, chain: Chain, holding: set[int], head: tuple[int, str]) -> None:
    def fault(number: int, text: str) -> None:
        if number in holding:
            chain.faults[number] = text
        else:
            chain.scars.append(text)

    def gone(start: int, end: int) -> None:
        for number in sorted(number for number in holding if start <= number < end):
            fault(number, f"line {number} of uho.certificate is gone")
        others = end - start - sum(start <= number < end for number in holding)
        if others > 0:
            chain.scars.append(f"{others:,} of the lines {start} to {end - 1} of uho.certificate are gone")

    number, last_hash = 0, NO_HASH
    with connection.cursor(name="chain") as lines:
        lines.itersize = LINES_AT_ONCE
        lines.execute(
            "SELECT number, previous_hash, hash, uho.certificate_hash(line) FROM uho.certificate line "
            "WHERE (network, owner, program) = (%s, %s, %s) ORDER BY number",
            chunk_key(program),
        )
        for found, previous_hash, line_hash, computed in lines:
            chain.lines += 1
            gone(number + 1, found)
            if line_hash != computed:
                fault(found, f"line {found} of uho.certificate was edited: its hash is not that of its content")
            elif found == number + 1 and previous_hash != last_hash:
                # Both are whole in themselves, and the one before is not the one that this one was appended to.
                fault(number, f"line {number} of uho.certificate was edited: line {found} holds another hash of it")
            number, last_hash = found, line_hash
    gone(number + 1, head[0] + 1)
    if number == head[0] and last_hash != head[1]:
        fault(number, f"line {number} of uho.certificate was edited: uho.program holds another hash of it")
