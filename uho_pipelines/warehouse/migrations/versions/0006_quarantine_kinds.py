"""A view of what lies in quarantine: which discriminators, since which slot, how many bytes no IDL version explains.

Revision ID: 0006
"""

from alembic import op

revision = "0006"
down_revision = "0005"

# Reasons are the decoder's sentences: a code, a colon, and the offset where reading stopped. A field's name, which may
# be anything, stands before the offset, so the last match is it.
KINDS = r"""
CREATE VIEW uho.quarantine_kinds AS
SELECT network, owner, program, encode(discriminator, 'hex') AS discriminator, code, count(*) AS records,
       min(slot) AS first_slot, max(slot) AS last_slot,
       min(unexplained) AS least_unexplained_bytes, max(unexplained) AS most_unexplained_bytes,
       min(reason) AS example
  FROM (SELECT *, split_part(reason, ':', 1) AS code,
               CASE split_part(reason, ':', 1)
                 WHEN 'ambiguous' THEN 0
                 WHEN 'unknown_discriminator' THEN length - octet_length(discriminator)
                 ELSE length - substring(reason FROM '.*at byte ([0-9]{1,10})')::bigint
               END AS unexplained
          FROM uho.quarantine) q
 GROUP BY network, owner, program, discriminator, code
 ORDER BY network, owner, program, records DESC, discriminator, code;
COMMENT ON VIEW uho.quarantine_kinds IS
  'Records in quarantine by discriminator and reason: since which slot another IDL version is needed, and how many '
  'bytes of a record it would have to explain';
"""


def upgrade() -> None:
    """Make the view."""
    op.execute(KINDS)


def downgrade() -> None:
    """Drop the view."""
    op.execute("DROP VIEW uho.quarantine_kinds")
