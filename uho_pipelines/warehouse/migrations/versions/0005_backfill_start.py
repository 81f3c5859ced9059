"""When each person last started a backfill.

Revision ID: 0005
"""

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Make the table."""
    op.execute("""
        CREATE TABLE uho.backfill_start (
          person     text PRIMARY KEY,
          started_at timestamptz NOT NULL
        );
        COMMENT ON TABLE uho.backfill_start IS 'The last start of a backfill by each person, for the limit of starts';
    """)


def downgrade() -> None:
    """Drop the table."""
    op.execute("DROP TABLE uho.backfill_start")
