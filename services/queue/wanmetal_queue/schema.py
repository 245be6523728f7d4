"""The tables, and the way from one release's to another's, in both directions.

The way back is kept in the database with each step, so that an earlier release finds the one that it does not know.
"""

from __future__ import annotations

from collections.abc import Sequence

import psycopg

_JOBS = """
CREATE TABLE state (
  one boolean PRIMARY KEY DEFAULT true CHECK (one), tick double precision NOT NULL, boot text NOT NULL,
  uptime double precision NOT NULL, paused text[] NOT NULL DEFAULT '{}'
);
INSERT INTO state (tick, boot, uptime) VALUES (extract(epoch FROM clock_timestamp()), '', 0);
CREATE TABLE tokens (
  hash text PRIMARY KEY, kind text NOT NULL CHECK (kind IN ('host', 'client')), name text NOT NULL,
  queues text[] NOT NULL, draining boolean NOT NULL DEFAULT false
);
CREATE TABLE workers (
  name text PRIMARY KEY, host text NOT NULL, run text NOT NULL, queues text[] NOT NULL, vram integer NOT NULL,
  workflows text[], release text NOT NULL, seen double precision NOT NULL
) WITH (fillfactor = 50);
CREATE TABLE jobs (
  number bigserial, id text PRIMARY KEY, endpoint text NOT NULL, queue text NOT NULL, client text NOT NULL,
  status text NOT NULL DEFAULT 'IN_QUEUE', priority integer NOT NULL, vram integer NOT NULL, workflow text NOT NULL,
  release text NOT NULL, input text NOT NULL, secret text, webhook text, webhook_due double precision,
  webhook_tries integer NOT NULL DEFAULT 0, created double precision NOT NULL, expires double precision NOT NULL,
  timeout double precision NOT NULL, taken double precision, finished double precision, worker text,
  holders text[] NOT NULL DEFAULT '{}', attempt integer NOT NULL DEFAULT 0, losses integer NOT NULL DEFAULT 0,
  retried boolean NOT NULL DEFAULT false, output text, error text, progress text
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500);
CREATE INDEX jobs_waiting ON jobs (priority DESC, number) WHERE status = 'IN_QUEUE';
CREATE INDEX jobs_running ON jobs (worker) WHERE status = 'IN_PROGRESS';
CREATE INDEX jobs_expire ON jobs (expires) WHERE status IN ('IN_QUEUE', 'IN_PROGRESS');
CREATE INDEX jobs_finished ON jobs (finished) WHERE finished IS NOT NULL;
CREATE INDEX jobs_webhook ON jobs (webhook_due) WHERE webhook_due IS NOT NULL;
CREATE INDEX jobs_counted ON jobs (endpoint, status);
CREATE TABLE chunks (
  number bigserial PRIMARY KEY, job text NOT NULL REFERENCES jobs ON DELETE CASCADE, output text NOT NULL
);
CREATE INDEX chunks_job ON chunks (job, number);
CREATE TABLE stops (
  worker text NOT NULL, job text NOT NULL REFERENCES jobs ON DELETE CASCADE, sent integer NOT NULL DEFAULT 0,
  PRIMARY KEY (worker, job)
);
CREATE INDEX stops_job ON stops (job);
"""
_DRAIN_ENDS = """
ALTER TABLE tokens ADD COLUMN drained_until double precision NOT NULL DEFAULT 0;
UPDATE tokens SET drained_until = 'Infinity' WHERE draining;
ALTER TABLE tokens DROP COLUMN draining;
"""
_DRAIN_ENDS_NOT = """
ALTER TABLE tokens ADD COLUMN draining boolean NOT NULL DEFAULT false;
UPDATE tokens SET draining = true WHERE drained_until > (SELECT tick FROM state);
ALTER TABLE tokens DROP COLUMN drained_until;
"""
# Each step with its way back. A step that was released is never changed.
STEPS: Sequence[tuple[str, str]] = (
    (_JOBS, "DROP TABLE stops, chunks, jobs, workers, tokens, state"),
    (_DRAIN_ENDS, _DRAIN_ENDS_NOT),
)


def migrate(database: str, steps: Sequence[tuple[str, str]] = STEPS) -> str:
    """Bring the tables to this release's form, from an earlier or from a later one, and say what was done."""
    with psycopg.connect(database) as connection:
        connection.execute("SELECT pg_advisory_xact_lock(7239401)")
        connection.execute("CREATE TABLE IF NOT EXISTS steps (number integer PRIMARY KEY, back text NOT NULL)")
        there = [(int(number), str(back)) for number, back in connection.execute("SELECT * FROM steps ORDER BY number")]
        for number, back in reversed(there[len(steps) :]):
            connection.execute(back)
            connection.execute("DELETE FROM steps WHERE number = %s", (number,))
        for number, (forth, back) in enumerate(steps[len(there) :], len(there) + 1):
            connection.execute(forth)
            connection.execute("INSERT INTO steps VALUES (%s, %s)", (number, back))
    return f"tables of step {len(steps)}, before {len(there)}"
