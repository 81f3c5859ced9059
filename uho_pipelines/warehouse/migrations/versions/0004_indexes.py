"""The ledger knows the indexes that were made because a program.yaml asked for them.

Revision ID: 0004
"""

from alembic import op

revision = "0004"
down_revision = "0003"

INDEXES = """
CREATE TABLE uho.index (
  network    text NOT NULL,
  owner      text NOT NULL,
  program    text NOT NULL,
  index_name text NOT NULL,
  event      text NOT NULL,
  columns    text[] NOT NULL,
  method     text NOT NULL,
  PRIMARY KEY (network, owner, program, index_name),
  FOREIGN KEY (network, owner, program) REFERENCES uho.program
);
COMMENT ON TABLE uho.index IS
  'Indexes of event tables that were made because program.yaml asks for them; they go when it no longer does. Others '
  'are never touched';
"""


def upgrade() -> None:
    """Make the table."""
    op.execute(INDEXES)


def downgrade() -> None:
    """Forget the indexes; they stay in their schemas."""
    op.execute("DROP TABLE uho.index")
