"""Tells a caller that a job has ended, signed, at an address that the caller has named."""

from __future__ import annotations

import asyncio
import hmac
import http.client
import ipaddress
import logging
import socket
import ssl
import threading
import time
from contextlib import closing
from urllib.parse import SplitResult, urlsplit

from .addresses import Network, reachable
from .store import AwayError, Store

_log = logging.getLogger("queue")
_TRIES, _SECONDS = 5, 10.0
# Whoever takes one has a minute; a service that dies with it leaves it to the next.
_CLAIM = """
WITH due AS (SELECT id FROM jobs WHERE webhook_due <= %(now)s ORDER BY webhook_due LIMIT 10 FOR UPDATE SKIP LOCKED)
UPDATE jobs SET webhook_due = %(now)s + 60, webhook_tries = webhook_tries + 1
FROM due WHERE jobs.id = due.id RETURNING jobs.*"""


def problem(url: object) -> str:
    """Say what is wrong with an address."""
    try:
        parts = (
            urlsplit(url) if isinstance(url, str) and url.isascii() and url.isprintable() else SplitResult(*[""] * 5)
        )
        good = parts.scheme in {"http", "https"} and parts.hostname and "@" not in parts.netloc and parts.port != 0
    except ValueError:
        good = False
    return "" if good and " " not in str(url) else "webhook has to be an http or https address without a password"


async def deliver(store: Store) -> None:
    """Deliver all that is due, for ever."""
    while True:
        try:
            due = await store.sql(_CLAIM)
            if not due:
                await asyncio.sleep(0.5)
            await asyncio.gather(*(_one(store, row) for row in due))
        except AwayError:
            await asyncio.sleep(1)


async def _one(store: Store, row: dict[str, object]) -> None:
    from .api import told

    keys = [
        token["hash"] for token in store.tokens.values() if (token["kind"], token["name"]) == ("client", row["client"])
    ]
    body, url = told(row).encode(), str(row["webhook"])
    last = int(str(row["webhook_tries"])) >= _TRIES
    try:
        good = await asyncio.to_thread(_post, url, body, keys[0] if keys else "", store.settings.webhook_allow)
    except (OSError, http.client.HTTPException, ValueError) as error:
        good = False
        _log.info("the webhook of job %s failed: %s", row["id"], type(error).__name__)
    if not good and last:
        _log.warning("the webhook of job %s was not taken, %d times; it is given up", row["id"], _TRIES)
    due = None if good or last else store.now() + 5 * 2 ** int(str(row["webhook_tries"]))
    statement = "UPDATE jobs SET webhook_due = %(due)s WHERE id = %(id)s AND webhook_tries = %(tries)s"
    await store.sql(statement, id=row["id"], due=due, tries=row["webhook_tries"])


def _post(url: str, body: bytes, key: str, allowed: tuple[Network, ...]) -> bool:
    """Connect to the address that was checked, so that a name which answers differently next time gains nothing."""
    parts = urlsplit(url)
    host, tls = parts.hostname or "", parts.scheme == "https"
    port = parts.port or (443 if tls else 80)
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(entry[4][0]).partition("%")[0] for entry in found]
    if not all(reachable(ipaddress.ip_address(address), allowed) for address in addresses):
        raise PermissionError("the address is not on the public internet")
    with closing((http.client.HTTPSConnection if tls else http.client.HTTPConnection)(host, port)) as connection:
        connection.sock = socket.create_connection((addresses[0], port), _SECONDS)
        if tls:
            context = ssl.create_default_context()
            connection.sock = context.wrap_socket(connection.sock, server_hostname=host, do_handshake_on_connect=False)
        # The time limit of a socket begins anew with each byte, and others wait for this one's end.
        end = threading.Timer(2 * _SECONDS, socket.socket.shutdown, (connection.sock, socket.SHUT_RDWR))
        end.start()
        try:
            if isinstance(connection.sock, ssl.SSLSocket):
                connection.sock.do_handshake()
            at = str(int(time.time()))
            signature = hmac.new(key.encode(), f"{at}.".encode() + body, "sha256").hexdigest()
            headers = {"Content-Type": "application/json", "X-Wanmetal-Signature": f"t={at},v1={signature}"}
            connection.request("POST", f"{parts.path or '/'}{'?' * bool(parts.query)}{parts.query}", body, headers)
            return connection.getresponse().status == 200
        finally:
            end.cancel()
