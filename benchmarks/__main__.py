"""`python -m benchmarks [all|reader|memory|operating]`: writes archives, measures, and prints tables of ratios.

What belongs here: which figures there are, and how a person reads them.
"""

import socket
import statistics
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from benchmarks import copying, decoding, memory, operating, plain, scanning, swaps, whole_path
from benchmarks.measuring import Spent, median_of, spread
from benchmarks.stage import Archive, Stage, stage, temporary_folder, write_archive

FREQUENT, RARE = "orderbook", "rare"
HTTP_PERCENT = 6
"""Transactions of a busy program, in 100: what is fetched over HTTP is scanned for one."""
MILLION = 1_000_000
MEBIBYTE = 1024 * 1024

application = typer.Typer(add_completion=False, help="Ratios measured side by side in one run.")
console = Console(width=118)

Folder = Annotated[
    Path | None, typer.Option(help="Where the temporary folder is made; the system's place for them by default.")
]
Runs = Annotated[int, typer.Option(min=1, help="Every figure is the median of so many runs.")]


@application.callback(invoke_without_command=True)
def main(context: typer.Context) -> None:
    """Ratios measured side by side in one run; without a command, all of them but memory."""
    if context.invoked_subcommand is None:
        ratios()


@application.command("all")
def ratios(
    load_megabytes: Annotated[
        int,
        typer.Option(help="Archive of which 15 % are loaded, in MB; in a small one what each chunk costs weighs most."),
    ] = 1_000,
    scan_megabytes: Annotated[int, typer.Option(help="Archive that is scanned, in MB.")] = 700,
    reader_megabytes: Annotated[int, typer.Option(help="Archive for the reader's own ratios, in MB.")] = 1_100,
    swap_rows: Annotated[int, typer.Option(help="Swaps of 12 fields that are loaded.")] = 200_000,
    runs: Runs = 3,
    folder: Folder = None,
) -> None:
    """Measure the whole path, the plain design beside it, decoding, COPY and scanning."""
    started = time.monotonic()
    console.print(
        "Medians of CPU seconds. [bold]Read the ratios[/bold]: absolute figures mean nothing on another machine.\n"
    )
    with temporary_folder(folder) as base:
        archive = write_archive(base / "load", load_megabytes, 15)
        with stage(base / "home-load", archive) as here:
            _show_path(here, runs)
            _show_decoding(here, runs)
            _show_swaps(here, runs, swap_rows)
        _show_readers(base, reader_megabytes, (2, HTTP_PERCENT), max(runs, 5))
        archive = write_archive(base / "scan", scan_megabytes, 2)
        with stage(base / "home-scan", archive) as here:
            _show_scanning(here, runs)
    console.print(f"{time.monotonic() - started:.0f} s in all")


@application.command("reader")
def reader(
    megabytes: Annotated[int, typer.Option(help="Archive that is scanned, in MB.")] = 1_100,
    program_percent: Annotated[int, typer.Option(min=1, max=15, help="Transactions of the program, in 100.")] = 2,
    runs: Annotated[int, typer.Option(min=1, help="Rounds; the median counts.")] = 5,
    folder: Folder = None,
) -> None:
    """Measure the reader alone, beside its targets."""
    with temporary_folder(folder) as base:
        _show_readers(base, megabytes, (program_percent, HTTP_PERCENT), runs)


@application.command("operating")
def operating_figures(
    programs: Annotated[int, typer.Option(min=2, help="Programs in the code location.")] = 20,
    chunks: Annotated[int, typer.Option(min=4_000, help="Chunks of each.")] = 4_500,
    folder: Folder = None,
) -> None:
    """Measure Dagster with many programs of thousands of chunks, and who waits for whom (about half an hour)."""
    with temporary_folder(folder) as base, socket.socket() as one, socket.socket() as two, socket.socket() as three:
        ports: list[int] = []
        for probe in (one, two, three):
            probe.bind(("127.0.0.1", 0))
            ports.append(int(probe.getsockname()[1]))
        for probe in (one, two, three):
            probe.close()
        found = operating.measure(base, programs, chunks, (ports[0], ports[1], ports[2]), console.print)
    table = _table(f"{programs} programs of {chunks:,} chunks each, in one code location", "figure", "measured")
    table.add_row("`uho up` until the UI has everything", f"{found.up_seconds:.1f} s")
    wall, cpu = found.definitions
    table.add_row("definitions built, in a process of its own", f"{wall:.1f} s ({cpu:.1f} s CPU)")
    for what, seconds in found.pages.items():
        table.add_row(what, f"{seconds:.2f} s")
    launched = found.launched
    table.add_row(f"backfill of {launched.runs:,} chunks: the UI's answer", f"{launched.answer_seconds:.1f} s")
    table.add_row("… until all of its runs are queued", f"{launched.queued_seconds:.0f} s")
    per_run = launched.daemon_cpu_seconds / launched.runs
    table.add_row("… CPU of the daemon for each run queued", f"{1000 * per_run:.0f} ms")
    table.add_row("… cancelled, until none is queued or under way", f"{found.cancelled_seconds:.0f} s")
    for name, share in found.waiting.items():
        table.add_row(f"… while all of it waits: {name}", f"{share:.1%} of a core")
    table.add_section()
    for before, after in zip(found.memory, found.memory_launched, strict=True):
        table.add_row(
            f"resident MiB of {before.process}: after the pages, with the backfill queued, peak",
            f"{_mebibytes(before.now)}, {_mebibytes(after.now)}, {_mebibytes(after.peak)}",
        )
    table.add_section()
    table.add_row(f"three people's {len(found.starts)} chunks, {', '.join(found.ends)}", f"{found.seconds:.0f} s")
    table.add_row("… CPU of the daemon a chunk", f"{found.daemon_per_chunk:.2f} s")
    console.print(table)
    console.print("order of starts, from the event log: " + " ".join(person for person, _, _ in found.starts))


@application.command("memory")
def memory_of_chunks(
    small_megabytes: Annotated[int, typer.Option(help="Archive of the small chunk, in MB.")] = 100,
    large_megabytes: Annotated[int, typer.Option(help="Archive of the large chunk, in MB.")] = 1_000,
    program_percent: Annotated[int, typer.Option(min=1, max=15, help="Transactions of the program, in 100.")] = 15,
    folder: Folder = None,
) -> None:
    """Measure resident memory of sidecar and worker for a small and a large chunk."""
    table = _table("Resident MiB, a chunk in one worker process", "process and phase", "before", "peak", "median")
    table.add_column("peak by quarter of the phase", justify="right")
    with temporary_folder(folder) as base:
        for megabytes in (small_megabytes, large_megabytes):
            archive = write_archive(base / f"archive-{megabytes}", megabytes, program_percent)
            with stage(base / f"home-{megabytes}", archive) as here:
                for name in (FREQUENT, RARE):
                    found = memory.run_memory(here, name)
                    title = f"{megabytes} MB of archive, {archive.count(name, 'records'):,} records of {name}"
                    table.add_row(f"[bold]{title}[/bold]")
                    for process, phase, before, resident in (
                        ("sidecar", memory.RECORDS, found.sidecar_start, found.sidecar[memory.RECORDS]),
                        ("worker", memory.RECORDS, found.worker_start, found.worker[memory.RECORDS]),
                        ("worker", memory.EVENTS, found.worker_start, found.worker[memory.EVENTS]),
                    ):
                        quarters = " ".join(f"{_mebibytes(peak):>5}" for peak in resident.quarters())
                        cells = [_mebibytes(amount) for amount in (before, resident.peak, resident.median)]
                        table.add_row(f"  {process}, {phase}", *cells, quarters)
                    table.add_section()
            for car in archive.folder.glob("*/*.car"):
                car.unlink()
    console.print(table)


def _show_path(here: Stage, runs: int) -> None:
    program = here.program(FREQUENT)
    events = here.archive.count(FREQUENT, "events")
    whole_path.run_whole_path(here, program, events)  # imports, page cache, the first tables
    measured = [whole_path.run_whole_path(here, program, events) for _ in range(runs)]
    bare = [copying.run_bare_copy(here, program) for _ in range(runs)]

    table = _table(
        f"Archive → lake → committed rows: {here.archive.truth['car_bytes'] / 1e6:,.0f} MB, {events:,} events",
        "step",
        "CPU s per million events",
        "share",
        "spread",
    )
    seconds = {what: median_of(measured, what) for what in {key for run in measured for key in run.seconds}}
    parts = (whole_path.LAKE_READ, whole_path.DECODE, whole_path.ENCODE, whole_path.DIGEST, whole_path.COPY)
    rest = seconds[whole_path.WORKER_EVENTS] - sum(seconds[part] for part in parts)
    total = sum(seconds[what] for what in (*_PROCESSES, whole_path.SERVER))
    rows = [
        ("sidecar: scan, extract, stream", seconds[whole_path.SIDECAR], whole_path.SIDECAR),
        ("worker: stream and lake", seconds[whole_path.WORKER_RECORDS], whole_path.WORKER_RECORDS),
        ("worker: read the lake, prove it", seconds[whole_path.LAKE_READ], whole_path.LAKE_READ),
        ("worker: decode", seconds[whole_path.DECODE], whole_path.DECODE),
        ("worker: encode for COPY", seconds[whole_path.ENCODE], whole_path.ENCODE),
        ("worker: digest of the rows", seconds[whole_path.DIGEST], whole_path.DIGEST),
        ("worker: send", seconds[whole_path.COPY], whole_path.COPY),
        ("worker: rest, and Parquet's own threads", rest, None),
        (
            "Postgres: COPY, ledger, commit",
            seconds[whole_path.SERVER] - seconds[whole_path.SERVER_COUNT],
            whole_path.SERVER,
        ),
        ("Postgres: count of the rows", seconds[whole_path.SERVER_COUNT], whole_path.SERVER_COUNT),
    ]
    for name, amount, what in rows:
        noise = f"± {spread(measured, what) / 2:.0%}" if what else ""
        table.add_row(name, f"{amount / events * MILLION:.2f}", f"{amount / total:.0%}", noise)
    table.add_section()
    table.add_row("all", f"{total / events * MILLION:.2f}", "100%", "")
    console.print(table)
    walls = [
        statistics.median(run[name] for run in measured) for name in (whole_path.WALL_RECORDS, whole_path.WALL_EVENTS)
    ]
    console.print(
        f"on this machine, now: {events / sum(walls):,.0f} events/s on the whole path ({walls[0]:.1f} s to the "
        f"lake, then {events / walls[1]:,.0f} events/s to committed rows)\n"
    )
    _show_copying(measured, bare, events, "of the order book")
    _show_plain(measured, plain.run_plain(here, program, events), events)


def _show_plain(measured: list[Spent], usual: Spent, events: int) -> None:
    """Show the plain design, run once: it takes long, and a tenth more or less of it changes nothing."""
    table = _table(
        f"A chunk, archive → committed rows: the plain design ÷ this one, {events:,} events",
        "figure",
        "ratio",
        "measured",
    )
    processes = plain.SIDECAR, plain.WORKER, plain.SERVER
    ours = sum(median_of(measured, what) for what in (*_PROCESSES, whole_path.SERVER))
    _ratio(table, "CPU of sidecar, worker and Postgres", sum(usual[what] for what in processes), ours)
    scan = median_of(measured, whole_path.SIDECAR)
    _ratio(table, "the same without the sidecar's", usual[plain.WORKER] + usual[plain.SERVER], ours - scan)
    walls = (median_of(measured, name) for name in (whole_path.WALL_RECORDS, whole_path.WALL_EVENTS))
    _ratio(table, "wall-clock", usual[plain.WALL], sum(walls))
    console.print(table)


_PROCESSES = (whole_path.SIDECAR, whole_path.WORKER_RECORDS, whole_path.WORKER_EVENTS)


def _show_copying(loads: list[Spent], bare: list[Spent], events: int, of: str) -> None:
    table = _table(f"Lake → committed rows against COPY alone, {events:,} rows {of}", "figure", "ratio", "measured")
    encode, client, server = (median_of(bare, what) for what in (copying.ENCODE, copying.CLIENT, copying.SERVER))
    _ratio(table, "encode for COPY ÷ the server's CPU for the same COPY", encode, server)
    digest = median_of(loads, whole_path.DIGEST)
    _ratio(table, "the same, with the digest of the rows", encode + digest, server)
    _ratio(table, "client of a COPY of encoded bytes ÷ the server's CPU", client, server)
    load_server = median_of(loads, whole_path.SERVER)
    _ratio(table, "server: load (with count and ledger) ÷ bare COPY", load_server, server)
    if again := median_of(loads, whole_path.SERVER_AGAIN):
        _ratio(table, "server: replacing a loaded chunk ÷ its first load", again, load_server)
        steps = (whole_path.SIDECAR, whole_path.WORKER_RECORDS, whole_path.WORKER_EVENTS, whole_path.SERVER)
        backfill, replay = sum(median_of(loads, what) for what in steps), median_of(loads, whole_path.WORKER_AGAIN)
        _ratio(table, "all CPU: replay from the lake ÷ first backfill of the chunk", again + replay, backfill)
        wall = median_of(loads, whole_path.WALL_RECORDS) + median_of(loads, whole_path.WALL_EVENTS)
        replay = median_of(loads, whole_path.WALL_AGAIN)
        _ratio(table, "wall-clock: replay from the lake ÷ first backfill of the chunk", replay, wall)
    load = load_server + median_of(loads, whole_path.WORKER_EVENTS)
    _ratio(table, "all CPU: lake → committed rows ÷ bare COPY", load, server + client)
    walls = median_of(loads, whole_path.WALL_EVENTS), median_of(bare, copying.WALL)
    _ratio(table, "wall-clock: lake → committed rows ÷ bare COPY", *walls)
    console.print(table)


def _show_decoding(here: Stage, runs: int) -> None:
    program = here.program(FREQUENT)
    measured = [decoding.run_decoders(here, program) for _ in range(runs)]
    native, anchorpy = (median_of(measured, what) for what in (decoding.NATIVE, decoding.ANCHORPY))
    table = _table("Decoding the same payloads, CPU µs per record", "figure", "ratio", "measured")
    _ratio(table, "order book: anchorpy (Python objects) ÷ uho_native (Arrow)", anchorpy * 1e6, native * 1e6, "µs")
    console.print(table)


def _show_swaps(here: Stage, runs: int, rows: int) -> None:
    program, chunk = swaps.swap_program(here.program(FREQUENT)), here.archive.chunk
    batches = swaps.swap_batches(program, chunk, rows)
    swaps.fill_lake(here, program, chunk, batches)
    loads: list[Spent] = []
    for _ in range(runs + 1):
        spent = Spent()
        whole_path.run_load(here, program, chunk, rows, spent)
        loads.append(spent)
    bare = [copying.run_bare_copy(here, program, chunk) for _ in range(runs)]
    _show_copying(loads[1:], bare, rows, "of swaps")  # the first made the tables
    decoders = [decoding.compare_decoders(program, batches[:2]) for _ in range(runs)]
    native, anchorpy = (median_of(decoders, what) for what in (decoding.NATIVE, decoding.ANCHORPY))
    table = _table("Decoding swaps of 12 fields, CPU µs per record", "figure", "ratio", "measured")
    _ratio(table, "anchorpy (Python objects) ÷ uho_native (Arrow)", anchorpy * 1e6, native * 1e6, "µs")
    console.print(table)


def _show_scanning(here: Stage, runs: int) -> None:
    verifications: tuple[Literal["full", "matched"], ...] = ("full", "matched")
    programs = [here.program(name) for name in (RARE, FREQUENT)]
    measured: list[Spent] = []
    scanning.run_floors(here.archive.car)
    for _ in range(runs):
        spent = scanning.run_floors(here.archive.car)
        for program in programs:
            for verify in verifications:
                records = scanning.run_scan(here, program, verify, spent)
                expected = here.archive.count(program.name, "records")
                if records != expected:
                    raise scanning.StreamIncompleteError(f"{program.key}: {records} records instead of {expected}")
        measured.append(spent)
    size = here.archive.truth["car_bytes"]
    transactions = here.archive.truth["transactions"]
    table = _table(
        f"Scanning {size / 1e6:,.0f} MB, {transactions:,} transactions (page cache warm)",
        "scan",
        "÷ reading the file",
        "÷ hashing it",
        "CPU s",
        "spread",
    )
    read, hashed = median_of(measured, scanning.READ), median_of(measured, scanning.HASH)
    for name in [
        scanning.READ,
        scanning.HASH,
        *(scanning.scan_name(program.name, verify) for program in programs for verify in verifications),
    ]:
        seconds = median_of(measured, name)
        noise = f"± {spread(measured, name) / 2:.0%}"
        table.add_row(name, f"{seconds / read:.2f}", f"{seconds / hashed:.2f}", f"{seconds:.3f}", noise)
    console.print(table)


def _show_readers(base: Path, megabytes: int, percents: tuple[int, int], runs: int) -> None:
    """Print the ratios from a file and over HTTP, each on an archive with so much of the program."""
    for show, percent in zip((_show_reader, _show_http), percents, strict=True):
        archive = write_archive(base / show.__name__, megabytes, percent)
        show(archive, runs)
        archive.car.unlink()


def _show_reader(archive: Archive, runs: int) -> None:
    """Print the reader's ratios beside their targets; everything of a round is measured right after one another."""
    rare, frequent = (archive.program_id(name) for name in (RARE, FREQUENT))
    many = [rare, frequent, *scanning.strangers(14)]
    rounds: list[Spent] = []
    two_cores, one_core = [], []
    with scanning.Sidecar(f"file://{archive.folder}") as local:
        local.scan(archive, [rare], "matched")
        for _ in range(runs):
            spent = scanning.run_floors(archive.car)
            local.pin(1)
            for name, programs in (("rare", [rare]), ("frequent", [frequent]), ("16", many)):
                cpu, wall, _ = local.scan(archive, programs, "matched")
                spent.seconds[name] = cpu
                if name == "rare":
                    one_core.append(wall)
            spent.seconds["full"] = local.scan(archive, [rare], "full")[0]
            local.pin(2)
            two_cores.append(local.scan(archive, [rare], "matched")[1])
            rounds.append(spent)
    percent = archive.truth["plan"]["program_percent"]
    table = _reader_table("The reader, from a file", archive)
    of = {what: median_of(rounds, what) for what in rounds[0].seconds}
    read = of[scanning.READ]
    _target(table, "pread ÷ scan for a rare program, matched, one core", "≥ 0.25", read, of["rare"])
    _target(table, f"pread ÷ scan for a {percent} % program, matched, one core", "≥ 0.25", read, of["frequent"])
    _target(table, "pread ÷ scan for a rare program, full, one core", "", read, of["full"])
    _target(table, "16 programs in one pass ÷ the most frequent of them", "≤ 1.3", of["16"], of["frequent"])
    _target(table, "seconds on one core ÷ on two (the best of each)", "≥ 1.8", min(one_core), min(two_cores))
    console.print(table)


def _show_http(archive: Archive, runs: int) -> None:
    """Print what the reader spends over HTTP beside curl, by what it proves."""
    verifications: tuple[scanning.Verify, ...] = ("off", "matched", "full")
    frequent = archive.program_id(FREQUENT)
    rounds: list[Spent] = []
    with (
        scanning.served(archive.folder) as address,
        scanning.Sidecar(address, "--connections", "8") as remote,
    ):
        car = f"{address}/{archive.car.relative_to(archive.folder)}"
        for _ in range(runs):
            spent = Spent()
            spent.seconds["curl"] = scanning.run_curl(car)
            for verify in verifications:
                spent.seconds[verify] = remote.scan(archive, [frequent], verify)[0]
            rounds.append(spent)
    percent = archive.truth["plan"]["program_percent"]
    table = _reader_table(f"The reader, over HTTP with 8 connections, a {percent} % program", archive)
    curl = median_of(rounds, "curl")
    for verify in verifications:
        target = "" if verify == "full" else "≤ 2.5"
        _target(table, f"verify {verify} ÷ curl", target, median_of(rounds, verify), curl)
    console.print(table)


def _reader_table(title: str, archive: Archive) -> Table:
    size = archive.truth["car_bytes"] / 1e6
    return _table(f"{title}: {size:,.0f} MB, CPU seconds", "figure", "target", "ratio", "measured")


def _target(table: Table, name: str, target: str, first: float, second: float) -> None:
    table.add_row(name, target, f"{first / second:.2f}", f"{first:.2f} s ÷ {second:.2f} s")


def _table(title: str, first: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column(first)
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def _ratio(table: Any, name: str, first: float, second: float, unit: str = "s") -> None:  # noqa: ANN401 - rich's Table
    table.add_row(name, f"{first / second:.2f}" if second else "", f"{first:.3f} {unit} ÷ {second:.3f} {unit}")


def _mebibytes(amount: int) -> str:
    return f"{amount / MEBIBYTE:,.0f}"


if __name__ == "__main__":
    application()
