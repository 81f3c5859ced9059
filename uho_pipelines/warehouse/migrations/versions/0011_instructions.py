"""Instructions in the quarantine: with the accounts that they were given.

An instruction's place among those of its transaction may be that of an event among the program's, so the key tells by
source. Rows that are there keep their digests: a null changes none.

Revision ID: 0011
"""

from alembic import op

revision = "0011"
down_revision = "0010"

KINDS = r"""
CREATE OR REPLACE VIEW uho.quarantine_kinds AS
SELECT network, owner, program, encode(discriminator, 'hex') AS discriminator, code, count(*) AS records,
       min(slot) AS first_slot, max(slot) AS last_slot,
       min(unexplained) AS least_unexplained_bytes, max(unexplained) AS most_unexplained_bytes,
       min(reason) AS example
  FROM (SELECT *, split_part(reason, ':', 1) AS code,
               CASE regexp_replace(split_part(reason, ':', 1), '^instruction_', '')
                 WHEN 'ambiguous' THEN 0
                 WHEN 'unknown_discriminator' THEN length - octet_length(discriminator)
                 ELSE length - substring(reason FROM '.*at byte ([0-9]{1,10})')::bigint
               END AS unexplained
          FROM uho.quarantine) q
 GROUP BY network, owner, program, discriminator, code
 ORDER BY network, owner, program, records DESC, discriminator, code;
"""


def upgrade() -> None:
    """Add the accounts, and tell instructions from events by the key and by the code of their reason."""
    op.execute("DROP VIEW uho.quarantine_kinds")
    op.execute("ALTER TABLE uho.quarantine ADD COLUMN accounts bytea")
    op.execute(
        "COMMENT ON COLUMN uho.quarantine.accounts IS 'Of an instruction: the 32 bytes of each account given to it, in "
        "order; null: one of them cannot be resolved, or it is an event'"
    )
    op.execute("ALTER TABLE uho.quarantine DROP CONSTRAINT quarantine_pkey")
    op.execute(
        "ALTER TABLE uho.quarantine ADD PRIMARY KEY (network, owner, program, slot, tx_index, event_index, source)"
    )
    op.execute(KINDS)
    op.execute("""
        COMMENT ON VIEW uho.quarantine_kinds IS
          'Records in quarantine by discriminator and reason: since which slot another IDL version is needed, and how '
          'many bytes of a record it would have to explain'
    """)


def downgrade() -> None:
    """Drop what instructions have; theirs that are in quarantine go."""
    op.execute("DELETE FROM uho.quarantine WHERE source = 'instruction'")
    op.execute("DROP VIEW uho.quarantine_kinds")
    op.execute("ALTER TABLE uho.quarantine DROP CONSTRAINT quarantine_pkey")
    op.execute("ALTER TABLE uho.quarantine ADD PRIMARY KEY (network, owner, program, slot, tx_index, event_index)")
    op.execute("ALTER TABLE uho.quarantine DROP COLUMN accounts")
    op.execute(
        KINDS.replace("regexp_replace(split_part(reason, ':', 1), '^instruction_', '')", "split_part(reason, ':', 1)")
    )
