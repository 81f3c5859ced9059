"""Alerts, and what became of each channel's delivery.

Revision ID: 0010
"""

from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Make the tables."""
    op.execute("""
        CREATE TABLE uho.alert (
          id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
          cause       text NOT NULL,
          kind        text NOT NULL,
          title       text NOT NULL,
          body        text NOT NULL,
          link        text NOT NULL,
          opened_at   timestamptz NOT NULL DEFAULT now(),
          last_at     timestamptz NOT NULL DEFAULT now(),
          occurrences bigint NOT NULL,
          closed_at   timestamptz
        );
        CREATE UNIQUE INDEX alert_open ON uho.alert (cause) WHERE closed_at IS NULL;
        COMMENT ON TABLE uho.alert IS
          'What people are told of: one line per cause while it lasts, however often it occurs';

        CREATE TABLE uho.alert_delivery (
          alert           bigint NOT NULL REFERENCES uho.alert ON DELETE CASCADE,
          channel         text NOT NULL,
          attempts        integer NOT NULL DEFAULT 0,
          next_attempt_at timestamptz NOT NULL DEFAULT now(),
          delivered_at    timestamptz,
          error           text,
          PRIMARY KEY (alert, channel)
        );
        CREATE INDEX alert_undelivered ON uho.alert_delivery (next_attempt_at) WHERE delivered_at IS NULL;
        COMMENT ON TABLE uho.alert_delivery IS
          'Each alert is delivered at least once by each channel that was set then';

        CREATE TABLE uho.alert_cursor (
          event    text PRIMARY KEY,
          position bigint NOT NULL
        );
        COMMENT ON TABLE uho.alert_cursor IS 'How far the event log of Dagster was read for alerts, by type of event';
    """)


def downgrade() -> None:
    """Drop the tables."""
    op.execute("DROP TABLE uho.alert_delivery; DROP TABLE uho.alert; DROP TABLE uho.alert_cursor")
