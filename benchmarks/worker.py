"""The process whose memory is measured: takes one chunk through both stages when told to.

What belongs here: nothing but the path of production, so that its memory is what a run adds to Dagster's own. Settings
come from the environment.
"""

import sys

from benchmarks.memory import EVENTS, RECORDS
from uho_pipelines.chunks import Chunk
from uho_pipelines.materialization import Reporter, load_events, read_records
from uho_pipelines.registry import load_registry
from uho_pipelines.settings import load_settings


def main() -> None:
    """Do what the lines of standard input say; answer each when it is done."""
    settings = load_settings()
    program = load_registry(settings).program(sys.argv[1])
    chunk = Chunk(int(sys.argv[2]), settings.network(program.network).chunk_slots)
    print("ready", flush=True)
    for line in sys.stdin:
        if line.strip() == RECORDS:
            error = read_records(settings, [program], chunk, Reporter())[0].error
            if error is not None:
                raise error
        elif line.strip() == EVENTS:
            load_events(settings, program, chunk, Reporter())
        print(line.strip(), flush=True)


if __name__ == "__main__":
    main()
