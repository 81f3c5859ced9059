"""One chunk's integrity: draws samples, asks the node, compares, and keeps what came of it.

What belongs here: the order of steps and what bounds them. Everything that a chunk asks of the node has one budget of
time; what it did not answer by then counts as not served.
"""

import random
import secrets
import time
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from uho_pipelines.chunks import Chunk
from uho_pipelines.integrity.chain import (
    ChainTransaction,
    NotComparableError,
    mentions,
    read_transaction,
    signature_of,
)
from uho_pipelines.integrity.comparison import StoredTransaction, compare, shown
from uho_pipelines.integrity.independent_decoding import IndependentDecoder
from uho_pipelines.integrity.outcome import Comparison, Difference, IntegrityOutcome, NotChecked, Sample
from uho_pipelines.integrity.rpc import Call, NotServed, RpcClient
from uho_pipelines.integrity.sampling import SEED_LIMIT, Job, draw_stored, share_of
from uho_pipelines.integrity.stored import StoredSlots, read_slots
from uho_pipelines.registry import Program
from uho_pipelines.settings import Settings
from uho_pipelines.warehouse import Connection, WarehousePlan, connect, read_plan
from uho_pipelines.warehouse.ledger import as_jsonb, chunk_key

AS_SENT = {"encoding": "base64", "maxSupportedTransactionVersion": 0, "commitment": "finalized"}

BLOCKS_AT_ONCE = 4
"""Blocks are asked for in requests of so many, as long as samples are wanting."""

OF_A_BLOCK = 5
"""At most so many samples come from one block, so that they are spread."""


def check_chunk(
    settings: Settings,
    url: str,
    program: Program,
    chunk: Chunk,
    job: Job,
    *,
    seed: int | None = None,
) -> IntegrityOutcome | NotChecked:
    """Compare a chunk's share of its job's samples with the network's RPC node, and keep the result in the ledger.

    `url` is the warehouse's. The same `seed` draws the same samples from the same rows and blocks.
    """
    network = settings.network(program.network)
    if network.rpc_url is None:
        variable = f"UHO_NETWORKS__{program.network.upper()}__RPC_URL"
        return NotChecked(f"No RPC node is set for {program.network}, so nothing was compared: set {variable}.")
    started = time.monotonic()
    outcome = IntegrityOutcome(
        job,
        secrets.randbelow(SEED_LIMIT) if seed is None else seed,
        share_of(job, settings.integrity_samples),
        "",
    )
    with (
        connect(url, application_name=f"uho integrity {program.key} {chunk.key}") as connection,
        RpcClient(
            network.rpc_url.get_secret_value(),
            network.rpc_calls_per_second,
            network.rpc_timeout_seconds,
            settings.integrity_seconds,
        ) as node,
    ):
        proved = _loaded_blocks(connection, program, chunk)
        if proved is None:
            return NotChecked("The chunk's events are not loaded, so there is nothing to compare: materialize them.")
        checking = _Checking(connection, node, program, chunk, random.Random(outcome.seed))  # noqa: S311 - a draw, no secret
        outcome.node = node.shown
        outcome.samples = checking.stored_side(outcome.share.stored)
        outcome.samples += checking.chain_side(outcome.share.chain, settings.integrity_blocks, proved)
        outcome.blocks_proved = proved
        outcome.blocks_read, outcome.blocks_known = checking.blocks_read, checking.blocks_known
        outcome.http_requests = node.http_requests
        outcome.seconds = time.monotonic() - started
        keep(connection, program, chunk, outcome)
    return outcome


class _Checking:
    """The state of one `check_chunk`."""

    def __init__(
        self, connection: Connection, node: RpcClient, program: Program, chunk: Chunk, generator: random.Random
    ) -> None:
        self.connection = connection
        self.node = node
        self.program = program
        self.chunk = chunk
        self.generator = generator
        self.decoder = IndependentDecoder(program)
        self.plan: WarehousePlan = read_plan(connection, program).events
        self.blocks_read = 0
        self.blocks_known: int | None = None

    def stored_side(self, wanted: int) -> list[Sample]:
        """Compare transactions that have rows with what the node says of them."""
        drawn = draw_stored(self.connection, self.plan, self.chunk, wanted, self.generator)
        self.connection.rollback()
        answers = self.node.ask([Call("getTransaction", (item.signature, AS_SENT)) for item in drawn])
        stored = self._read_slots(item.slot for item in drawn)
        samples: list[Sample] = []
        for item, answer in zip(drawn, answers, strict=True):
            # Where a later load took the rows away since they were drawn, the chain decides whether it was right.
            kept = stored[item.slot].get(item.signature, StoredTransaction())
            comparison = self._compare_answer(answer, item.signature, kept, item.slot)
            samples.append(Sample("stored", item.slot, item.signature, comparison))
        return samples

    def chain_side(self, wanted: int, most_blocks: int, proved: int) -> list[Sample]:
        """Compare transactions of random blocks with what is stored of them, and all that is stored of these slots."""
        if wanted == 0:
            return []
        slots = self.node.ask([Call("getBlocks", (self.chunk.start, self.chunk.end - 1))])[0]
        if isinstance(slots, NotServed) or not isinstance(slots, list):
            reason = slots.reason if isinstance(slots, NotServed) else "it did not list the slots that have blocks"
            return [Sample("chain", None, None, Comparison("not served", reason)) for _ in range(wanted)]
        known = sorted({slot for slot in slots if type(slot) is int and self.chunk.start <= slot < self.chunk.end})
        self.blocks_known = len(known)
        if not known and proved:
            reason = f"it lists no slot with a block, and the certificate has {proved:,}: its history begins later"
            return [Sample("chain", None, None, Comparison("not served", reason)) for _ in range(wanted)]
        chosen = self.generator.sample(known, min(most_blocks, len(known)))
        samples: list[Sample] = []
        for start in range(0, len(chosen), BLOCKS_AT_ONCE):
            if len(samples) >= wanted:
                break
            group = chosen[start : start + BLOCKS_AT_ONCE]
            options = {**AS_SENT, "transactionDetails": "full", "rewards": False}
            blocks = self.node.ask([Call("getBlock", (slot, options)) for slot in group])
            stored = self._read_slots(group)
            for slot, block in zip(group, blocks, strict=True):
                if len(samples) < wanted:
                    samples += self._of_block(slot, block, stored[slot], min(OF_A_BLOCK, wanted - len(samples)))
        return samples

    def _read_slots(self, slots: Iterable[int]) -> StoredSlots:
        stored = read_slots(self.connection, self.plan, self.program, slots)
        self.connection.rollback()
        return stored

    def _compare_answer(self, answer: Any, signature: str, stored: StoredTransaction, slot: int) -> Comparison:  # noqa: ANN401 - the node's JSON
        """Compare what is stored of a transaction with a `getTransaction` answer."""
        if isinstance(answer, NotServed):
            return Comparison("not served", answer.reason)
        if answer is None:
            return Comparison("not served", "it does not know the transaction")
        if not isinstance(answer, dict) or signature_of(answer) != signature:
            return Comparison("not served", "its answer is not the transaction")
        said: dict[str, Any] = answer
        if said.get("slot") != slot:
            return Comparison("mismatch", "", (Difference(None, "", "slot", str(slot), shown(said.get("slot"))),))
        place = said.get("transactionIndex")  # older nodes do not say it
        return self._compare(said, stored, slot, place if type(place) is int else None, said.get("blockTime"))

    def _compare(
        self,
        answer: dict[str, Any],
        stored: StoredTransaction,
        slot: int,
        tx_index: int | None,
        block_time: object,
    ) -> Comparison:
        try:
            transaction = self._read(answer, slot, tx_index, block_time)
        except NotComparableError as error:
            return Comparison("not comparable", error.reason)
        return compare(transaction, stored, self.program, self.decoder)

    def _read(self, answer: dict[str, Any], slot: int, tx_index: int | None, block_time: object) -> ChainTransaction:
        time_of_block = block_time if type(block_time) is int else None
        return read_transaction(answer, self.program, slot=slot, tx_index=tx_index, block_time=time_of_block)

    def _of_block(
        self,
        slot: int,
        block: Any,  # noqa: ANN401 - the node's JSON
        stored: Mapping[str, StoredTransaction],
        most: int,
    ) -> list[Sample]:
        """Return samples of a block: at most so many of what the program said, and all rows that it does not have."""
        if isinstance(block, NotServed):
            return [Sample("chain", slot, None, Comparison("not served", block.reason))]
        transactions: Any = block.get("transactions") if isinstance(block, dict) else None
        if not isinstance(transactions, list) or not all(isinstance(item, dict) for item in transactions):
            return [Sample("chain", slot, None, Comparison("not served", "its answer is no block"))]
        self.blocks_read += 1
        places = {signature_of(answer): place for place, answer in enumerate(transactions)}
        samples = [
            Sample("chain", slot, signature, Comparison("mismatch", "", (NOT_IN_BLOCK,)))
            for signature in sorted(stored)
            if signature not in places
        ]
        candidates = [
            (signature, place)
            for signature, place in places.items()
            if signature in stored or mentions(transactions[place], self.program)
        ]
        self.generator.shuffle(candidates)
        for signature, place in candidates:
            if len(samples) >= most:
                break
            kept = stored.get(signature, StoredTransaction())
            try:
                transaction = self._read(transactions[place], slot, place, block.get("blockTime"))
            except NotComparableError as error:
                samples.append(Sample("chain", slot, signature or None, Comparison("not comparable", error.reason)))
                continue
            # A transaction in which the program said nothing, and that has no row, is no sample of anything.
            if transaction.records or signature in stored:
                comparison = compare(transaction, kept, self.program, self.decoder)
                samples.append(Sample("chain", slot, signature, comparison))
        return samples


NOT_IN_BLOCK = Difference(None, "", "transaction", "rows", "not in the block of this slot")


def keep(connection: Connection, program: Program, chunk: Chunk, outcome: IntegrityOutcome) -> None:
    """Append the samples to `uho.integrity_sample`."""
    attempt = uuid.uuid4()
    with connection.transaction(), connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO uho.integrity_sample (network, owner, program, chunk_start, attempt, sample, job, seed, node, "
            "side, slot, signature, outcome, reason, events, differences) "
            "VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
            [
                [
                    *(*chunk_key(program, chunk), attempt, number, outcome.job.name, outcome.seed, outcome.node),
                    *(sample.side, sample.slot, sample.signature, sample.outcome, sample.comparison.reason or None),
                    sample.comparison.events,
                    as_jsonb([difference.as_json() for difference in sample.comparison.differences]),
                ]
                for number, sample in enumerate(outcome.samples)
            ],
        )


def _loaded_blocks(connection: Connection, program: Program, chunk: Chunk) -> int | None:
    """Return the number of the chunk's blocks by its certificate; None where its events are not loaded."""
    row = connection.execute(
        "SELECT (certificate ->> 'blocks')::bigint FROM uho.chunk "
        "WHERE (network, owner, program, chunk_start) = (%s, %s, %s, %s) AND loaded_at IS NOT NULL",
        chunk_key(program, chunk),
    ).fetchone()
    connection.rollback()
    return row[0] if row else None
