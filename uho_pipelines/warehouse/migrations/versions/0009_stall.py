"""Programs that follow the archive and fell behind it.

Revision ID: 0009
"""

from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Make the table."""
    op.execute("""
        CREATE TABLE uho.stall (
          network    text NOT NULL,
          owner      text NOT NULL,
          program    text NOT NULL,
          stalled_at timestamptz NOT NULL DEFAULT now(),
          reason     text NOT NULL,
          PRIMARY KEY (network, owner, program),
          FOREIGN KEY (network, owner, program) REFERENCES uho.program
        );
        COMMENT ON TABLE uho.stall IS
          'Programs that fell behind the archive by more than was allowed. A line stays, recovered or not, until a '
          'person clears it: uho stall clear';
    """)


def downgrade() -> None:
    """Drop the table."""
    op.execute("DROP TABLE uho.stall")
