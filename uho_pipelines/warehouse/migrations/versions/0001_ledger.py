"""The ledger: networks, programs, chunks and their tables, quarantine, names.

Revision ID: 0001
"""

from alembic import op

revision = "0001"
down_revision = None

LEDGER = """
CREATE TABLE uho.network (
  network     text PRIMARY KEY,
  chunk_slots bigint CHECK (chunk_slots > 0),
  tip         bigint
);
COMMENT ON TABLE uho.network IS
  'Networks in use; chunk_slots is fixed at first use, tip is the end slot of the newest epoch published whole';

CREATE TABLE uho.program (
  network     text NOT NULL REFERENCES uho.network,
  owner       text NOT NULL,
  program     text NOT NULL,
  program_id  text NOT NULL,
  schema_name text NOT NULL UNIQUE,
  PRIMARY KEY (network, owner, program)
);

CREATE TABLE uho.chunk (
  network              text NOT NULL,
  owner                text NOT NULL,
  program              text NOT NULL,
  chunk_start          bigint NOT NULL,
  chunk_end            bigint NOT NULL CHECK (chunk_end > chunk_start),
  records_state        text NOT NULL DEFAULT 'pending'
    CHECK (records_state IN ('pending', 'running', 'complete', 'failed')),
  records_attempt      uuid,
  records_started_at   timestamptz,
  records_finished_at  timestamptz,
  records_error        text,
  certificate          jsonb,
  record_count         bigint,
  records_digest       text,
  records_completed_at timestamptz,
  events_state         text NOT NULL DEFAULT 'pending'
    CHECK (events_state IN ('pending', 'running', 'complete', 'failed')),
  events_attempt       uuid,
  events_started_at    timestamptz,
  events_finished_at   timestamptz,
  events_error         text,
  events_counts        jsonb,
  loaded_at            timestamptz,
  loaded_counts        jsonb,
  loaded_digest        text,
  loaded_idl_hash      text,
  PRIMARY KEY (network, owner, program, chunk_start),
  FOREIGN KEY (network, owner, program) REFERENCES uho.program
);
COMMENT ON TABLE uho.chunk IS
  'Chunks that were begun. States, attempts, errors and events_counts tell of the latest attempt; whatever became of '
  'it, certificate, record_count and records_digest are of the records in the lake, loaded_* of the rows in the tables';
COMMENT ON COLUMN uho.chunk.chunk_end IS 'Exclusive';
COMMENT ON COLUMN uho.chunk.certificate IS
  'The certificate of the records in the lake, of the last attempt that completed';
COMMENT ON COLUMN uho.chunk.records_digest IS 'Digest of the records in the lake';
COMMENT ON COLUMN uho.chunk.events_counts IS
  'What became of the records in the latest attempt, also when their rows were rolled back';
COMMENT ON COLUMN uho.chunk.loaded_digest IS
  'Digest of the records that the rows in the event tables were decoded from';
COMMENT ON COLUMN uho.chunk.loaded_idl_hash IS 'Hash of the IDL versions by which those rows were decoded';

CREATE TABLE uho.chunk_table (
  network     text NOT NULL,
  owner       text NOT NULL,
  program     text NOT NULL,
  chunk_start bigint NOT NULL,
  event       text NOT NULL,
  row_count   bigint NOT NULL,
  row_digest  text NOT NULL,
  PRIMARY KEY (network, owner, program, chunk_start, event),
  FOREIGN KEY (network, owner, program, chunk_start) REFERENCES uho.chunk ON DELETE CASCADE
);

CREATE TABLE uho.quarantine (
  network          text NOT NULL,
  owner            text NOT NULL,
  program          text NOT NULL,
  slot             bigint NOT NULL,
  tx_index         integer NOT NULL,
  event_index      integer NOT NULL,
  signature        text NOT NULL,
  block_time       timestamptz,
  source           text NOT NULL,
  instruction_path integer[] NOT NULL,
  failed           boolean NOT NULL,
  truncated        boolean NOT NULL,
  discriminator    bytea NOT NULL,
  length           bigint NOT NULL,
  reason           text NOT NULL,
  idl              text,
  payload          bytea NOT NULL,
  PRIMARY KEY (network, owner, program, slot, tx_index, event_index),
  FOREIGN KEY (network, owner, program) REFERENCES uho.program
);
COMMENT ON TABLE uho.quarantine IS 'Records that no IDL version decodes exactly, and why';

CREATE TABLE uho.sql_name (
  network     text NOT NULL,
  owner       text NOT NULL,
  program     text NOT NULL,
  event       text NOT NULL,
  field       text NOT NULL,
  sql_name    text NOT NULL,
  PRIMARY KEY (network, owner, program, event, field),
  FOREIGN KEY (network, owner, program) REFERENCES uho.program
);
COMMENT ON TABLE uho.sql_name IS
  'What events and fields are called in SQL: made once, never recomputed; field is empty for the table itself';

CREATE UNIQUE INDEX sql_name_of_table ON uho.sql_name (network, owner, program, sql_name) WHERE field = '';
CREATE UNIQUE INDEX sql_name_of_column ON uho.sql_name (network, owner, program, event, sql_name) WHERE field <> '';

CREATE TABLE uho.halt (
  network     text NOT NULL,
  owner       text NOT NULL,
  program     text NOT NULL,
  idl_hash    text NOT NULL,
  chunk_start bigint NOT NULL,
  reason      text NOT NULL,
  halted_at   timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (network, owner, program, idl_hash),
  FOREIGN KEY (network, owner, program) REFERENCES uho.program
);
COMMENT ON TABLE uho.halt IS
  'Programs whose events are not loaded, since too few records decode by these IDL versions; chunk_start: where it was '
  'noticed';

CREATE VIEW uho.chunk_status AS
SELECT network, owner, program, chunk_start, chunk_end,
       CASE
         WHEN records_digest IS NULL THEN 'no records'
         WHEN loaded_digest IS NULL THEN 'not loaded'
         WHEN loaded_digest <> records_digest THEN 'outdated'
         WHEN certificate ->> 'tail' IS DISTINCT FROM 'proven'
           OR certificate ->> 'verify' IS DISTINCT FROM 'full'
           OR (certificate ->> 'unresolvedLookups')::bigint IS DISTINCT FROM 0
           OR (certificate ->> 'missingMetadata')::bigint IS DISTINCT FROM 0 THEN 'unproven'
         ELSE 'proven'
       END AS status,
       record_count,
       (SELECT sum(row_count)::bigint FROM uho.chunk_table t
         WHERE (t.network, t.owner, t.program, t.chunk_start) = (c.network, c.owner, c.program, c.chunk_start))
         AS event_count,
       records_state, events_state, coalesce(events_error, records_error) AS error
  FROM uho.chunk c;
COMMENT ON VIEW uho.chunk_status IS
  'What can be said of a chunk. no records: they were never read whole. not loaded: no rows in the event tables. '
  'outdated: the rows are of records that were read again and differ; load the events again. unproven: loaded, but the '
  'certificate leaves something open. proven: complete, proved and loaded. The states tell of the latest attempts';

CREATE VIEW uho.proven_ranges AS
WITH proven AS (
  SELECT *, chunk_start - sum(chunk_end - chunk_start) OVER
              (PARTITION BY network, owner, program ORDER BY chunk_start) AS island
    FROM uho.chunk_status
   WHERE status = 'proven'
)
SELECT network, owner, program, min(chunk_start) AS start_slot, max(chunk_end) - 1 AS last_slot,
       count(*) AS chunks, sum(event_count)::bigint AS events
  FROM proven
 GROUP BY network, owner, program, island
 ORDER BY network, owner, program, start_slot;
COMMENT ON VIEW uho.proven_ranges IS
  'Which slots of a program are complete, proved and loaded; last_slot is inclusive';
"""


def upgrade() -> None:
    """Make the ledger."""
    op.execute(LEDGER)


def downgrade() -> None:
    """There is nothing before the first migration."""
    raise RuntimeError("the first migration cannot be undone: drop schema uho")
