"""Serves the queue, and changes what only its own host may: tables, tokens, pauses, drains."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import math
import os
import re
import secrets
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import FrameType
from typing import Any

import psycopg
import uvicorn
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row

from . import schema, webhook
from .api import Api
from .settings import Settings
from .store import Store, hashed

_HASH = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_RELOAD = """NOTIFY wanmetal_queue, '["reload"]'"""
_RESUME = """NOTIFY wanmetal_queue, '["resume"]'"""


def main() -> int:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(prog="wanmetal_queue", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve", help="the service")
    commands.add_parser("migrate", help="bring the tables to this release's form, from an earlier or a later one")
    commands.add_parser("dump", help="write the tables to the standard output, in PostgreSQL's own form")
    replaces = "replace the tables by a dump, a file at the standard input, while nothing serves them"
    commands.add_parser("restore", help=replaces)
    status = commands.add_parser("status", help="tell of hosts and jobs, in tables")
    status.add_argument("--json", action="store_true", help="for programs")
    for name in ("pause", "resume"):
        commands.add_parser(name, help=f"{name} the giving of jobs").add_argument("queues", nargs="*", default=[])
    drain = commands.add_parser("drain", help="give a host no more jobs, and wait until it has none")
    drain.add_argument("host")
    drain.add_argument("--wait", type=float, default=0.0, metavar="SECONDS")
    drain.add_argument(
        "--for", type=float, default=math.inf, metavar="SECONDS", dest="end", help="then it ends by itself"
    )
    commands.add_parser("undrain", help="give a host jobs again").add_argument("host")
    add = commands.add_parser("token-add", help="let a host or a client in; without --hash the new token is shown")
    add.add_argument("kind", choices=["host", "client"])
    add.add_argument("name")
    add.add_argument("--hash", default="", help="SHA-256 of the token, in hexadecimal digits")
    add.add_argument("--queues", default="", help="queues of a host (any), or endpoints of a client (*), with commas")
    revoke = commands.add_parser("token-revoke", help="let a host or a client in no longer")
    revoke.add_argument("kind", choices=["host", "client"])
    revoke.add_argument("name")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        settings = Settings.of(os.environ)
        if options.command == "serve":
            serve(settings)
        elif options.command == "migrate":
            print(schema.migrate(settings.database))
        elif options.command == "dump":
            postgresql(settings.database, "pg_dump", "--format=custom", "--no-owner", "--no-privileges")
        elif options.command == "restore":
            refuse_other_dumps()
            replace = ("--clean", "--if-exists", "--no-owner", "--no-privileges", "--single-transaction")
            postgresql(settings.database, "pg_restore", *replace, "--dbname")
        else:
            with psycopg.connect(settings.database, autocommit=True, row_factory=dict_row) as connection:
                print(operate(connection, options))
    except (OSError, ValueError, psycopg.Error) as error:
        sys.exit(f"the queue cannot {options.command}: {error}")
    return 0


def postgresql(database: str, *command: str) -> None:
    """Become a program of PostgreSQL, which learns the database by its environment: arguments are seen by all."""
    given = {name: str(value) for name, value in conninfo_to_dict(database).items() if value is not None}
    if command[-1] == "--dbname":
        command = (*command, given.get("dbname", ""))
    names = {"host": "PGHOST", "port": "PGPORT", "dbname": "PGDATABASE", "user": "PGUSER", "password": "PGPASSWORD"}
    names |= {"sslmode": "PGSSLMODE", "sslrootcert": "PGSSLROOTCERT", "connect_timeout": "PGCONNECT_TIMEOUT"}
    if strange := given.keys() - names:
        raise ValueError(f"the database's address has {', '.join(sorted(strange))}, which is not known here")
    os.execvpe(command[0], command, {**os.environ, **{names[name]: value for name, value in given.items()}})  # noqa: S606


def refuse_other_dumps() -> None:
    """Look what is at the standard input, before anything is replaced: what is none would pass for a restored queue."""
    listed = subprocess.run(["pg_restore", "--list"], stdin=sys.stdin, capture_output=True, text=True, check=False)
    lacking = [name for name in ("jobs", "steps", "tokens") if f" TABLE DATA public {name} " not in listed.stdout]
    if lacking:
        found = listed.stderr.strip() if listed.returncode else f"no table {lacking[0]} in it"
        raise ValueError(
            f"""what was given
  found   {found or "nothing"}
  needed  a dump that wanmetal-queue dump or ./deploy backup has made, as a file
  fix     name another one; the tables are as they were"""
        )
    os.lseek(sys.stdin.fileno(), 0, os.SEEK_SET)


class Server(uvicorn.Server):
    """Ends the requests that are held when it is to stop."""

    api: Api

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Wake all who wait, so that they come again when the next process is there."""
        self.api.closing = True
        asyncio.get_event_loop().call_soon_threadsafe(self.api.store.waiters.everybody)
        super().handle_exit(sig, frame)


def serve(settings: Settings) -> None:
    """Serve until a signal says otherwise."""
    store = Store(settings)
    api = Api(store)

    @asynccontextmanager
    async def lifespan(_app: object) -> AsyncIterator[None]:
        await store.start()
        hooks = asyncio.create_task(webhook.deliver(store))
        yield
        hooks.cancel()
        await store.close()

    api.app.router.lifespan_context = lifespan
    config = uvicorn.Config(
        api.app,
        host=settings.listen,
        port=settings.port,
        access_log=False,
        log_level="warning",
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=75,  # longer than the proxy's, so that it never sends a request to what has just ended
        timeout_graceful_shutdown=3,
        backlog=4096,
    )
    server = Server(config)
    server.api = api
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    server.run()


def operate(connection: psycopg.Connection[dict[str, object]], options: argparse.Namespace) -> str:
    """Do what an operator asks for, and say what was done."""

    def do(statement: str, *values: object) -> list[dict[str, object]]:
        answer = connection.execute(statement, values)
        rows = answer.fetchall() if answer.description else []
        connection.execute(_RELOAD)
        return rows

    match options.command:
        case "status":
            found = _status(connection)
            return json.dumps(found, indent=2) if options.json else _tables(found)
        case "pause":
            queues = options.queues or [row["queue"] for row in do(_QUEUES)] or ["any"]
            do("UPDATE state SET paused = ARRAY(SELECT DISTINCT unnest(paused || %s::text[]))", queues)
            return f"no job is given out of {', '.join(map(str, queues))}"
        case "resume":
            do(
                "UPDATE state SET paused = ARRAY(SELECT unnest(paused) EXCEPT SELECT unnest(%s::text[]))",
                options.queues,
            )
            if not options.queues:
                do("UPDATE state SET paused = '{}'")
            connection.execute(_RESUME)
            return f"jobs are given again out of {', '.join(options.queues) or 'all queues'}"
        case "drain" | "undrain":
            draining = options.command == "drain"
            statement = """UPDATE tokens SET drained_until = (SELECT tick FROM state) + %s
                WHERE kind = 'host' AND name = %s RETURNING name"""
            if not do(statement, options.end if draining else -1.0, options.host):
                raise _unknown(do, "host", options.host, "deploy that host with handler_enabled: true, which joins it")
            return _drained(connection, options) if draining else f"{options.host} is given jobs again"
        case "token-add":
            return _token(do, options)
        case _:
            gone = do("DELETE FROM tokens WHERE kind = %s AND name = %s RETURNING name", options.kind, options.name)
            if not gone:
                raise _unknown(do, options.kind, options.name, "do nothing, since it is not let in")
            return f"{len(gone)} tokens of the {options.kind} {options.name} are revoked"


def _unknown(do: Callable[..., list[dict[str, object]]], kind: str, name: str, fix: str) -> ValueError:
    rows = do("SELECT DISTINCT name FROM tokens WHERE kind = %s ORDER BY 1", kind)
    return ValueError(
        f"""there is no {kind} {name}
  found   {", ".join(str(row["name"]) for row in rows) or f"no {kind} at all"}
  needed  a {kind} that is let in
  fix     correct the name, or {fix}"""
    )


_QUEUES = (
    "SELECT DISTINCT unnest(queues) AS queue FROM tokens WHERE kind = 'host' UNION SELECT DISTINCT queue FROM jobs"
)
_RUNNING = """SELECT count(*) AS number FROM jobs JOIN workers ON workers.name = jobs.worker
WHERE status = 'IN_PROGRESS' AND host = %s"""


def _token(do: Callable[..., list[dict[str, object]]], options: argparse.Namespace) -> str:
    """The token itself is never kept. A host's new one replaces the one before; a client may have several."""
    if not _NAME.fullmatch(options.name) or (options.hash and not _HASH.fullmatch(options.hash)):
        raise ValueError(
            "a name has letters, digits, . _ and -, and --hash is the token's SHA-256 in small hexadecimal"
        )
    token = "" if options.hash else secrets.token_urlsafe(32)
    queues = (options.queues or ("any" if options.kind == "host" else "*")).split(",")
    value = options.hash or hashed(token)
    there = do("SELECT kind, name, queues FROM tokens WHERE hash = %s", value)
    if there == [{"kind": options.kind, "name": options.name, "queues": queues}]:
        return "unchanged"
    if options.kind == "host":
        do("DELETE FROM tokens WHERE kind = 'host' AND name = %s AND hash <> %s", options.name, value)
    statement = """INSERT INTO tokens (hash, kind, name, queues) VALUES (%s, %s, %s, %s)
        ON CONFLICT (hash) DO UPDATE SET kind = excluded.kind, name = excluded.name, queues = excluded.queues"""
    do(statement, value, options.kind, options.name, queues)
    return token or f"the token of the {options.kind} {options.name} is known"


def _drained(connection: psycopg.Connection[dict[str, object]], options: argparse.Namespace) -> str:
    until = time.monotonic() + options.wait
    while True:
        row = connection.execute(_RUNNING, (options.host,)).fetchone()
        if not row or not row["number"]:
            return f"{options.host} has no job, and is given none"
        if time.monotonic() >= until:
            text = f"{options.host} is given no more jobs, and still has {row['number']}"
            if options.wait:
                raise ValueError(text)
            return text
        time.sleep(0.3)


def _status(connection: psycopg.Connection[dict[str, object]]) -> dict[str, Any]:
    """Hosts with what they do, and the numbers of jobs."""
    hosts = connection.execute(
        """SELECT tokens.name AS host, tokens.queues, drained_until > tick AS draining,
             CASE WHEN drained_until BETWEEN tick AND 1e300 THEN round(drained_until - tick) END AS drain_ends_in_s,
             vram, workflows, release, workers.name AS worker,
             round(greatest(tick - seen, 0 * seen)::numeric, 1)::float8 AS seen_s_ago,
             ARRAY(SELECT id FROM jobs WHERE status = 'IN_PROGRESS' AND worker = workers.name) AS jobs
           FROM state CROSS JOIN tokens LEFT JOIN workers ON workers.host = tokens.name
           WHERE kind = 'host' ORDER BY tokens.name, workers.name"""
    ).fetchall()
    clients = connection.execute("SELECT name, queues FROM tokens WHERE kind = 'client' ORDER BY 1").fetchall()
    jobs = connection.execute(
        "SELECT queue, status, count(*) AS number FROM jobs GROUP BY 1, 2 ORDER BY 1, 2"
    ).fetchall()
    paused = connection.execute("SELECT paused FROM state").fetchall()[0]["paused"]
    return {"paused": paused, "jobs": jobs, "hosts": hosts, "clients": clients}


_STATES = ("IN_QUEUE", "IN_PROGRESS", "COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT")


def _tables(found: dict[str, Any]) -> str:
    """What was found, for a terminal of 80 columns."""
    numbers = {(row["queue"], row["status"]): row["number"] for row in found["jobs"]}
    queues = sorted({queue for queue, _status in numbers})
    jobs = [[queue, *(str(numbers.get((queue, state), 0)) for state in _STATES)] for queue in queues]
    hosts = [
        [
            (row["worker"] or row["host"]).removesuffix("/handler"),
            _state(row),
            f"{row['seen_s_ago']:.0f} s ago" if row["worker"] else "never",
            str(len(row["jobs"])),
            "" if row["vram"] is None else f"{row['vram']} GB",
            row["release"] or "",
            ", ".join(row["workflows"] or ["any" if row["worker"] else ""]),
        ]
        for row in found["hosts"]
    ]
    clients = [f"{row['name']} ({', '.join(row['queues'])})" for row in found["clients"]]
    return "\n".join(
        [
            *_columns(["queue", *(state.lower().replace("_", " ") for state in _STATES)], jobs, "no job is known"),
            "",
            *_columns(["host", "state", "seen", "jobs", "GPU", "release", "workflows"], hosts, "no host has joined"),
            "",
            *textwrap.wrap(f"paused: {', '.join(found['paused']) or 'no queue'}", 80),
            *textwrap.wrap(f"clients: {', '.join(clients) or 'none'}", 80),
        ]
    )


_AWAY_S = 30.0


def _state(host: dict[str, Any]) -> str:
    if host["draining"]:
        left = host["drain_ends_in_s"]
        return "drained" if left is None else f"drained for {left:.0f} s"
    away = host["worker"] is None or host["seen_s_ago"] > _AWAY_S
    return "away" if away else "busy" if host["jobs"] else "idle"


def _columns(heads: list[str], rows: list[list[str]], none: str) -> list[str]:
    if not rows:
        return [none]
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in [heads, *rows]]
    return [line if len(line) <= 80 else f"{line[:79]}…" for line in lines]


if __name__ == "__main__":
    sys.exit(main())
