"""Samples that were compared with an RPC node.

Revision ID: 0008
"""

from alembic import op

revision = "0008"
down_revision = "0007"

SAMPLES = """
CREATE TABLE uho.integrity_sample (
  network     text NOT NULL,
  owner       text NOT NULL,
  program     text NOT NULL,
  chunk_start bigint NOT NULL,
  attempt     uuid NOT NULL,
  sample      integer NOT NULL,
  sampled_at  timestamptz NOT NULL DEFAULT now(),
  job         text NOT NULL,
  seed        bigint NOT NULL,
  node        text NOT NULL,
  side        text NOT NULL CHECK (side IN ('stored', 'chain')),
  slot        bigint,
  signature   text,
  outcome     text NOT NULL CHECK (outcome IN ('verified', 'mismatch', 'not served', 'not comparable')),
  reason      text,
  events      integer NOT NULL,
  differences jsonb NOT NULL,
  PRIMARY KEY (network, owner, program, chunk_start, attempt, sample),
  FOREIGN KEY (network, owner, program) REFERENCES uho.program
);
COMMENT ON TABLE uho.integrity_sample IS
  'Transactions whose rows were compared with what an RPC node says, decoded by another implementation; append-only';
COMMENT ON COLUMN uho.integrity_sample.attempt IS 'One run of the check for one chunk';
COMMENT ON COLUMN uho.integrity_sample.job IS 'What the number of samples is counted by: a Dagster backfill or a run';
COMMENT ON COLUMN uho.integrity_sample.seed IS 'The draw of this chunk; the same seed draws the same samples';
COMMENT ON COLUMN uho.integrity_sample.node IS 'Scheme and host of the RPC node';
COMMENT ON COLUMN uho.integrity_sample.side IS
  'stored: drawn from rows. chain: drawn from a block, which finds what was never stored';
COMMENT ON COLUMN uho.integrity_sample.signature IS 'Null: a block that could not be looked at';
COMMENT ON COLUMN uho.integrity_sample.events IS 'Rows that are equal in every field';
COMMENT ON COLUMN uho.integrity_sample.differences IS
  'Of a mismatch: eventIndex, event, field, and what is stored and on the chain';
"""


def upgrade() -> None:
    """Make the table."""
    op.execute(SAMPLES)


def downgrade() -> None:
    """Drop the table and what was sampled."""
    op.execute("DROP TABLE uho.integrity_sample")
