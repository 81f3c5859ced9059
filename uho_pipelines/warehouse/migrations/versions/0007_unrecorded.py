"""A chunk is unproven when the archive lacks what its program said, not when it lacks metadata of others.

A transaction without lookup tables names every program that it calls in its own bytes, so that one that does not name
the program leaves nothing open, with metadata or without. Certificates from before this count have to be made again.

Revision ID: 0007
"""

from alembic import op

revision = "0007"
down_revision = "0006"

CHUNK_STATUS = """
CREATE OR REPLACE VIEW uho.chunk_status AS
SELECT c.network, c.owner, c.program, c.chunk_start, c.chunk_end,
       CASE
         WHEN c.records_digest IS NULL THEN 'no records'
         WHEN c.loaded_digest IS NULL THEN 'not loaded'
         WHEN c.loaded_digest <> c.records_digest THEN 'outdated'
         WHEN l.certificate ->> 'tail' IS DISTINCT FROM 'proven'
           OR l.certificate ->> 'verify' IS DISTINCT FROM 'full'
           OR (l.certificate ->> 'unresolvedLookups')::bigint IS DISTINCT FROM 0
           OR (l.certificate #>> ARRAY['programs', p.program_id, 'unrecorded'])::bigint IS DISTINCT FROM 0
           THEN 'unproven'
         ELSE 'proven'
       END AS status,
       c.record_count,
       (SELECT sum(row_count)::bigint FROM uho.chunk_table t
         WHERE (t.network, t.owner, t.program, t.chunk_start) = (c.network, c.owner, c.program, c.chunk_start))
         AS event_count,
       c.records_state, c.events_state, coalesce(c.events_error, c.records_error) AS error
  FROM uho.chunk c
  JOIN uho.program p USING (network, owner, program)
  LEFT JOIN uho.certificate l
    ON (l.network, l.owner, l.program, l.number) = (c.network, c.owner, c.program, c.certificate_number)
   AND (l.chunk_start, l.chunk_end, l.records_digest) = (c.chunk_start, c.chunk_end, c.records_digest);
"""


def upgrade() -> None:
    """Let the program's own transactions decide."""
    op.execute(CHUNK_STATUS)


def downgrade() -> None:
    """Earlier revisions are only reached by going back to the backup of before."""
    raise RuntimeError("certificates are never removed: restore the warehouse from a backup of before instead")
