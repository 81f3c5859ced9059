"""Certificates as a chain that is only appended to, what the quarantine's rows were, and when chunks were verified.

Revision ID: 0002
"""

from alembic import op

revision = "0002"
down_revision = "0001"

CERTIFICATES = """
ALTER TABLE uho.program
  ADD COLUMN certificates     bigint NOT NULL DEFAULT 0,
  ADD COLUMN certificate_hash text NOT NULL DEFAULT repeat('0', 64);
COMMENT ON COLUMN uho.program.certificates IS 'Lines in uho.certificate';
COMMENT ON COLUMN uho.program.certificate_hash IS 'Hash of the last line in uho.certificate; zeros before the first';

ALTER TABLE uho.chunk
  ADD COLUMN certificate_number bigint,
  ADD COLUMN quarantine_digest  text;
COMMENT ON COLUMN uho.chunk.certificate_number IS 'The line of uho.certificate that holds for the records in the lake';
COMMENT ON COLUMN uho.chunk.quarantine_digest IS
  'Row digest of the chunk in uho.quarantine; null: loaded before digests of it were kept';

CREATE TABLE uho.certificate (
  network        text NOT NULL,
  owner          text NOT NULL,
  program        text NOT NULL,
  number         bigint NOT NULL,
  chunk_start    bigint NOT NULL,
  chunk_end      bigint NOT NULL,
  attempt        uuid,
  completed_at   timestamptz NOT NULL DEFAULT now(),
  record_count   bigint NOT NULL,
  records_digest text NOT NULL,
  certificate    jsonb NOT NULL,
  previous_hash  text NOT NULL,
  hash           text NOT NULL,
  PRIMARY KEY (network, owner, program, number),
  FOREIGN KEY (network, owner, program) REFERENCES uho.program
);
CREATE INDEX certificate_of_chunk ON uho.certificate (network, owner, program, chunk_start, number);
COMMENT ON TABLE uho.certificate IS
  'Every certificate that a chunk completed with. Lines are only appended; each holds the hash of the one before it, '
  'so that an edited or deleted line is found. Which line holds for a chunk now: uho.chunk.certificate_number';
COMMENT ON COLUMN uho.certificate.number IS 'From 1, per program, in the order of commits';

CREATE FUNCTION uho.certificate_hash(line uho.certificate) RETURNS text STABLE LANGUAGE sql AS $$
  SELECT encode(sha256(convert_to(jsonb_build_array(
           line.previous_hash, line.network, line.owner, line.program, line.number, line.chunk_start, line.chunk_end,
           line.attempt, extract(epoch FROM line.completed_at), line.record_count, line.records_digest,
           line.certificate)::text, 'UTF8')), 'hex')
$$;
COMMENT ON FUNCTION uho.certificate_hash(uho.certificate) IS
  'SHA-256 over the line, the hash of the line before it included, as the text of a jsonb array';

CREATE FUNCTION uho.append_certificate() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  -- The program's row stays locked until the commit: lines are numbered in the order in which they are committed.
  UPDATE uho.program SET certificates = certificates + 1
   WHERE (network, owner, program) = (NEW.network, NEW.owner, NEW.program)
  RETURNING certificates, certificate_hash INTO NEW.number, NEW.previous_hash;
  NEW.hash := uho.certificate_hash(NEW);
  UPDATE uho.program SET certificate_hash = NEW.hash
   WHERE (network, owner, program) = (NEW.network, NEW.owner, NEW.program);
  RETURN NEW;
END $$;

CREATE FUNCTION uho.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION '%.% is only appended to: % refused', TG_TABLE_SCHEMA, TG_TABLE_NAME, TG_OP
    USING ERRCODE = 'insufficient_privilege';
END $$;

CREATE TRIGGER append BEFORE INSERT ON uho.certificate FOR EACH ROW EXECUTE FUNCTION uho.append_certificate();
CREATE TRIGGER appended_only BEFORE UPDATE OR DELETE ON uho.certificate
  FOR EACH ROW EXECUTE FUNCTION uho.refuse_change();
CREATE TRIGGER appended_only_whole BEFORE TRUNCATE ON uho.certificate
  FOR EACH STATEMENT EXECUTE FUNCTION uho.refuse_change();

-- What was proved before there was a chain begins it.
INSERT INTO uho.certificate
       (network, owner, program, chunk_start, chunk_end, completed_at, record_count, records_digest, certificate)
SELECT network, owner, program, chunk_start, chunk_end, records_completed_at, record_count, records_digest, certificate
  FROM uho.chunk
 WHERE certificate IS NOT NULL
 ORDER BY records_completed_at, chunk_start;
UPDATE uho.chunk c SET certificate_number = l.number
  FROM uho.certificate l
 WHERE (l.network, l.owner, l.program, l.chunk_start) = (c.network, c.owner, c.program, c.chunk_start);

CREATE TABLE uho.verification (
  network     text NOT NULL,
  owner       text NOT NULL,
  program     text NOT NULL,
  chunk_start bigint NOT NULL,
  verified_at timestamptz NOT NULL,
  findings    jsonb NOT NULL,
  PRIMARY KEY (network, owner, program, chunk_start),
  FOREIGN KEY (network, owner, program) REFERENCES uho.program
);
COMMENT ON TABLE uho.verification IS
  'When a chunk was last compared with the lake, the certificates and its own digests, and what differed then ([]: '
  'nothing)';

CREATE OR REPLACE VIEW uho.chunk_status AS
SELECT c.network, c.owner, c.program, c.chunk_start, c.chunk_end,
       CASE
         WHEN c.records_digest IS NULL THEN 'no records'
         WHEN c.loaded_digest IS NULL THEN 'not loaded'
         WHEN c.loaded_digest <> c.records_digest THEN 'outdated'
         WHEN l.certificate ->> 'tail' IS DISTINCT FROM 'proven'
           OR l.certificate ->> 'verify' IS DISTINCT FROM 'full'
           OR (l.certificate ->> 'unresolvedLookups')::bigint IS DISTINCT FROM 0
           OR (l.certificate ->> 'missingMetadata')::bigint IS DISTINCT FROM 0 THEN 'unproven'
         ELSE 'proven'
       END AS status,
       c.record_count,
       (SELECT sum(row_count)::bigint FROM uho.chunk_table t
         WHERE (t.network, t.owner, t.program, t.chunk_start) = (c.network, c.owner, c.program, c.chunk_start))
         AS event_count,
       c.records_state, c.events_state, coalesce(c.events_error, c.records_error) AS error
  FROM uho.chunk c
  LEFT JOIN uho.certificate l
    ON (l.network, l.owner, l.program, l.number) = (c.network, c.owner, c.program, c.certificate_number)
   AND (l.chunk_start, l.chunk_end, l.records_digest) = (c.chunk_start, c.chunk_end, c.records_digest);
COMMENT ON VIEW uho.chunk_status IS
  'What can be said of a chunk. no records: they were never read whole. not loaded: no rows in the event tables. '
  'outdated: the rows are of records that were read again and differ; load the events again. unproven: loaded, but '
  'there is no certificate in uho.certificate that holds for it, or it leaves something open. proven: complete, proved '
  'and loaded. The states tell of the latest attempts';
"""


def upgrade() -> None:
    """Append every certificate to a chain."""
    op.execute(CERTIFICATES)


def downgrade() -> None:
    """A chain that was only appended to is not thrown away by a command."""
    raise RuntimeError("certificates are never removed: restore the warehouse from a backup of before instead")
