"""Small web servers for tests."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Request = BaseHTTPRequestHandler
Answer = Callable[[Request], None]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print no traceback for a client that has gone: that parses Python, which 3.11 cannot do in two threads."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def hosting(answer: Answer) -> Iterator[str]:
    """Have each request answered, whatever its method, on a free port of the loopback address."""

    class Served(Request):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:  # noqa: N802
            self.close_connection = True
            answer(self)

        do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            return

    server = _Server(("127.0.0.1", 0), Served)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def body(request: Request) -> bytes:
    """What came with a request."""
    return request.rfile.read(int(request.headers.get("Content-Length") or 0))


def reply(
    request: Request,
    data: bytes = b"",
    status: int = 200,
    kind: str = "application/json",
    claim: int = 0,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Answer; ``claim`` promises more bytes than are sent."""
    request.send_response(status)
    for name, value in {"Content-Type": kind, "Content-Length": str(len(data) + claim), **(headers or {})}.items():
        request.send_header(name, value)
    request.end_headers()
    request.wfile.write(data)
