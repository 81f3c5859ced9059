"""Re-decoding: replays and repairs that run or ran, what repaired a chunk, and an audit of what people decided.

Revision ID: 0003
"""

from alembic import op

revision = "0003"
down_revision = "0002"

REDECODING = """
CREATE TABLE uho.redecoding (
  id           uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  network      text NOT NULL,
  owner        text NOT NULL,
  program      text NOT NULL,
  kind         text NOT NULL CHECK (kind IN ('replay', 'repair')),
  start_slot   bigint NOT NULL,
  end_slot     bigint NOT NULL,
  process      text NOT NULL,
  state        text NOT NULL DEFAULT 'running' CHECK (state IN ('running', 'complete', 'failed')),
  error        text,
  started_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
  updated_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
  total_chunks bigint NOT NULL,
  chunks_done  bigint NOT NULL DEFAULT 0,
  total_rows   bigint NOT NULL,
  rows_done    bigint NOT NULL DEFAULT 0,
  FOREIGN KEY (network, owner, program) REFERENCES uho.program
);
CREATE INDEX redecoding_of_program ON uho.redecoding (network, owner, program, started_at);
COMMENT ON TABLE uho.redecoding IS
  'Replays (records of the lake decoded again) and repairs (quarantined records decoded again). One runs at a time per '
  'program: it holds an advisory lock, so that a line that says running without one is of a process that died';
COMMENT ON COLUMN uho.redecoding.end_slot IS 'Exclusive';
COMMENT ON COLUMN uho.redecoding.total_rows IS 'Records to be decoded again';

ALTER TABLE uho.chunk
  ADD COLUMN repaired_at       timestamptz,
  ADD COLUMN repaired_idl_hash text;
COMMENT ON COLUMN uho.chunk.repaired_idl_hash IS
  'Hash of the IDL versions by which the quarantined records were decoded again after the load; the other rows are as '
  'loaded_idl_hash says';

CREATE TABLE uho.audit (
  number  bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  at      timestamptz NOT NULL DEFAULT now(),
  person  text NOT NULL,
  network text NOT NULL,
  owner   text NOT NULL,
  program text NOT NULL,
  action  text NOT NULL,
  reason  text NOT NULL,
  details jsonb NOT NULL DEFAULT '{}'
);
COMMENT ON TABLE uho.audit IS 'What people decided against what the pipeline had found, and why; only appended to';
CREATE TRIGGER appended_only BEFORE UPDATE OR DELETE ON uho.audit FOR EACH ROW EXECUTE FUNCTION uho.refuse_change();
CREATE TRIGGER appended_only_whole BEFORE TRUNCATE ON uho.audit
  FOR EACH STATEMENT EXECUTE FUNCTION uho.refuse_change();
"""


def upgrade() -> None:
    """Make the tables of re-decoding and of the audit."""
    op.execute(REDECODING)


def downgrade() -> None:
    """An audit is not thrown away by a command."""
    raise RuntimeError("the audit is never removed: restore the warehouse from a backup of before instead")
