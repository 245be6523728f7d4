"""Where a file can be had now: what its hosts say of it, how many bytes, which sha256, and which of them go together.

Redirects are followed by hand, so that a token stays with the host that it belongs to.
"""

from __future__ import annotations

import email.utils
import html
import http.client
import json
import random
import re
import stat
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads import civitai, errors
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.errors import Problem
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.request import Settings, Tokens, Wanted
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.urls import (
    PLAIN,
    encoded,
    host_of,
    origin,
    without_queries,
)
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.units import plain

# Cloudflare answers 403 to urllib's own name.
AGENT = "wanmetal/0.1 (+https://github.com/wanmetal/wanmetal)"
_HOPS = 10
_CHUNK = 64 * 1024
_LONGEST_ANSWER = 16 * 1024 * 1024
_HEARD, _HEARD_S = 4096, 5
"""Of an error's text, so many bytes are read, and none that come later."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PACKED = {"br", "compress", "deflate", "gzip", "x-gzip", "zstd"}
_LOOPBACK = {"127.0.0.1", "::1", "localhost"}
_PEERS = 8
_PEER_TIMEOUT_S = 5


@dataclass(frozen=True)
class Source:
    """Where the bytes of a file can be had at this moment."""

    url: str
    size: int | None
    sha256: str | None = None
    ranges: bool = True
    token: str = ""
    """Set when the host that the token belongs to sends the bytes itself."""
    version: str = ""
    """A strong ETag: the file has another one when its bytes have changed."""

    @property
    def host(self) -> str:
        """Name of the host, for messages."""
        return host_of(self.url)

    @property
    def single(self) -> bool:
        """Whether one plain stream must do: aria2c passes headers on to wherever it is redirected."""
        return bool(self.token) or self.url.startswith("file:")


def next_hop(url: str, location: str) -> str:
    """Return where a redirect leads; a step down from https to http is refused."""
    if not location.strip():
        raise Problem("server", f"{host_of(url)} redirects, and does not say where to")
    try:
        # http.client reads headers as Latin-1, whatever their bytes mean.
        raw = location.strip().encode("latin-1" if all(ord(c) < 256 for c in location) else "utf-8")
        target = encoded(urllib.parse.urljoin(url, urllib.parse.quote(raw, safe=f"{PLAIN}#")))
    except ValueError as error:
        raise Problem("server", f"{host_of(url)} redirects to an address that cannot be used: {error}") from None
    parts = urllib.parse.urlsplit(target)
    if parts.scheme not in {"http", "https"}:
        raise Problem("server", f"{host_of(url)} redirects to a {parts.scheme or 'strange'} address")
    if url.startswith("https:") and parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        raise Problem("tls", f"{host_of(url)} redirects from https to http ({parts.netloc})")
    return target


def stated_sha256(headers: Mapping[str, str]) -> str | None:
    """Return the sha256 that the Hub states; a git hash of 40 digits is none."""
    value = (headers.get("X-Linked-ETag") or "").removeprefix("W/").strip('"').lower()
    return value if _SHA256.fullmatch(value) else None


def whole_number(value: str | None) -> int | None:
    """Read a number of a header."""
    return int(value) if value and re.fullmatch(r"\s*[0-9]{1,18}\s*", value) else None


def total_size(status: int, headers: Mapping[str, str]) -> int | None:
    """Return the size of the whole file as the host that sends it states it."""
    if status == 206:
        return whole_number((headers.get("Content-Range") or "").rpartition("/")[2])
    return whole_number(headers.get("Content-Length"))


def wait_s(headers: Mapping[str, str], now: float) -> float | None:
    """Return the seconds that the host asks to wait: Retry-After, or the Hub's RateLimit with none left."""
    value = (headers.get("Retry-After") or "").strip()
    if re.fullmatch(r"[0-9]{1,9}", value):
        return float(value)
    if value:
        try:
            return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - now)
        except (TypeError, ValueError, OverflowError, OSError):
            return None
    match = re.search(r"r=0;\s*t=([0-9]{1,9})(?![0-9])", headers.get("RateLimit") or "")
    return float(match[1]) if match else None


class _Stay(urllib.request.HTTPRedirectHandler):
    def http_error_302(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any) -> None:
        """Leave the answer as it is; what it says is read by those who asked."""

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


@contextmanager
def send(
    url: str,
    token: str = "",
    first: int | None = 0,
    last: int | None = 0,
    timeout_s: float = 30,
    form: bytes | None = None,
    version: str = "",
) -> Iterator[tuple[int, Mapping[str, str], IO[bytes]]]:
    """Send one GET, or a form with POST, without following a redirect; yield status, headers and body."""
    headers = {"User-Agent": AGENT, "Accept-Encoding": "identity"}
    if first is not None:
        headers["Range"] = f"bytes={first}-{'' if last is None else last}"
    if version:
        headers["If-Range"] = version
    asked = urllib.request.Request(url, form, headers)  # noqa: S310  the schemes are checked by files.py
    if token:
        # An unredirected header: urllib would not take it along either.
        asked.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        answer = urllib.request.build_opener(_Stay).open(asked, timeout=timeout_s)
    except urllib.error.HTTPError as error:
        answer = error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise errors.from_exception(error, host_of(url)) from error
    with answer:
        yield answer.status or 200, answer.headers, answer


def resolve(url: str, tokens: Tokens, *, timeout_s: float = 30, name: str = "") -> Source:
    """Follow a URL to the host that sends the bytes, and ask it for the first one."""
    if url.startswith("file:"):
        return _local(url)
    asked = here = encoded(url)
    size: int | None = None
    sha256: str | None = None
    for _unused in range(_HOPS):
        at_home = origin(here) == origin(asked)
        token = tokens.of(asked) if at_home else ""
        with send(here, token, timeout_s=timeout_s) as (status, headers, body):
            if at_home:
                size = whole_number(headers.get("X-Linked-Size")) or size
                sha256 = stated_sha256(headers) or sha256
            if status in {301, 302, 303, 307, 308}:
                here = next_hop(here, headers.get("Location") or "")
                continue
            if status not in {200, 206}:
                raise errors.from_status(
                    status,
                    host_of(here),
                    first_hop=at_home,
                    had_token=bool(token),
                    said=tokens.hide(_said(headers, body)),
                    code=headers.get("X-Error-Code") or "",
                    wait_s=wait_s(headers, time.time()),
                )
            path = urllib.parse.urlsplit(asked).path
            _no_page(headers, name or path, host_of(here), path)
            packed = (headers.get("Content-Encoding") or "").strip().lower()
            if packed in _PACKED:
                raise Problem("content", f"{host_of(here)} sends the file packed ({packed}), and not as it is")
            sent = total_size(status, headers)
            if None not in (size, sent) and size != sent:
                raise Problem(
                    "wrong_size",
                    f"{host_of(asked)} states {size} bytes, and {host_of(here)} offers {sent}",
                    another_try=True,
                )
            etag = (headers.get("ETag") or "").strip()
            version = etag if re.fullmatch(r'"[!#-~]+"', etag) else ""
            return Source(here, sent if sent is not None else size, sha256, status == 206, token, version)
    raise Problem("server", f"{host_of(asked)} redirects more than {_HOPS} times")


def _local(url: str) -> Source:
    path = path_of(url)
    try:
        found = path.stat()
    except OSError as error:
        raise Problem("not_found", f"{path}: {error.strerror}") from error
    if not stat.S_ISREG(found.st_mode):
        raise Problem("local", f"{path} is no regular file")
    return Source(url, found.st_size)


def path_of(url: str) -> Path:
    """Return the path of a file:// address."""
    return Path(urllib.request.url2pathname(urllib.parse.urlsplit(url).path))


def _said(headers: Mapping[str, str], body: IO[bytes]) -> str:
    text = headers.get("X-Error-Message") or ""
    if not text:
        raw, until = b"", time.monotonic() + _HEARD_S
        with suppress(OSError, ValueError, http.client.HTTPException):
            while len(raw) < _HEARD and time.monotonic() < until and (part := body.read1(_HEARD)):  # type: ignore[attr-defined]
                raw += part
        said = raw[:_HEARD].decode(errors="replace")
        text = _in_json(said) or _in_markup(said)
    return without_queries(" ".join(plain(text).split()))[:200]


def _in_json(raw: str) -> str:
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError):
        return ""
    said = (data.get("error") or data.get("message")) if isinstance(data, dict) else data
    return str(said.get("message") or said) if isinstance(said, dict) else str(said or "")


def _in_markup(raw: str) -> str:
    """Return what a storage's XML, a page's title or plain text says."""
    if not raw.lstrip("\ufeff \t\r\n").startswith("<"):
        return raw
    tags = (re.search(rf"<{tag}[^>]*>([^<]+)</", raw, re.IGNORECASE) for tag in ("message", "title", "h1", "code"))
    found = next(filter(None, tags), None)
    return html.unescape(found[1]) if found else ""


def _no_page(headers: Mapping[str, str], name: str, host: str, path: str) -> None:
    kind = (headers.get("Content-Type") or "").partition(";")[0].strip().lower()
    if kind in {"text/html", "application/xhtml+xml"} or (kind == "application/json" and not name.endswith(".json")):
        why = "a login, a captive portal or an error"
        if "/blob/" in path:
            why = "the address is that of a file's page; the file itself has /resolve/ in place of /blob/"
        raise Problem("html", f"{host} sends a page ({kind}) instead of the file: {why}")


def fetch_json(url: str, tokens: Tokens, *, timeout_s: float = 30) -> dict[str, Any]:
    """Return the JSON object at a URL; no redirect is followed."""
    data = _fetch(url, tokens, None, timeout_s)
    if not isinstance(data, dict):
        raise Problem("html", f"{host_of(url)} does not answer with a JSON object")
    return data


def fetch_list(url: str, tokens: Tokens, form: bytes, *, timeout_s: float = 30) -> list[Any]:
    """Send a form and return the JSON list that it is answered with; no redirect is followed."""
    data = _fetch(url, tokens, form, timeout_s)
    if not isinstance(data, list):
        raise Problem("html", f"{host_of(url)} does not answer with a JSON list")
    return data


def _fetch(url: str, tokens: Tokens, form: bytes | None, timeout_s: float) -> Any:
    url = encoded(url)
    token = tokens.of(url)
    with send(url, token, None, None, timeout_s, form) as (status, headers, body):
        if status != 200:
            raise errors.from_status(
                status,
                host_of(url),
                first_hop=True,
                had_token=bool(token),
                said=tokens.hide(_said(headers, body)),
                code=headers.get("X-Error-Code") or "",
                wait_s=wait_s(headers, time.time()),
            )
        try:
            return json.loads(_whole(body, host_of(url), timeout_s * 4))
        except (OSError, http.client.HTTPException) as error:
            raise errors.from_exception(error, host_of(url)) from error
        except (ValueError, RecursionError):
            raise Problem("html", f"{host_of(url)} does not answer with JSON") from None


def _whole(body: IO[bytes], host: str, most_s: float) -> bytes:
    """Read an answer that is small and comes soon; a time limit of the socket alone lets a host trickle for ever."""
    until = time.monotonic() + most_s
    data = b""
    while part := body.read1(_CHUNK):  # type: ignore[attr-defined]
        data += part
        if len(data) > _LONGEST_ANSWER:
            raise Problem("html", f"{host} answers with more than {_LONGEST_ANSWER >> 20} MiB")
        if time.monotonic() > until:
            raise Problem("network", f"{host} has not finished its answer in {most_s:.0f} s")
    return data


# -- which sources there are


@dataclass(frozen=True)
class Answer:
    """What the hosts say of a file."""

    wanted: Wanted
    sources: tuple[Source, ...]
    size: int | None
    expected: str | None
    by: str
    """``catalogue``, ``host`` or ``size``: what will verify it."""
    from_peers: bool = False

    @property
    def version(self) -> str:
        """What tells the bytes from others of the same size, where no hash does."""
        return self.sources[0].version if self.by == "size" else ""


def hosts(wanted: Wanted, settings: Settings) -> set[str]:
    """Return the hosts that are asked first."""
    urls = wanted.urls or (civitai.version_url(settings.civitai_api, wanted.civitai or 0),)
    return {host_of(url) for url in urls}


def described(wanted: Wanted, settings: Settings) -> Wanted:
    """Return the file with what CivitAI says of a version, where that is not known yet."""
    if wanted.urls or not wanted.civitai:
        return wanted
    return civitai.ask(
        wanted, settings.civitai_api, lambda url: fetch_json(url, settings.tokens, timeout_s=settings.timeout_s)
    )


def ask(
    wanted: Wanted, settings: Settings, *, peers: bool, limited: Callable[[str, float], None] = lambda _host, _s: None
) -> Answer:
    """Find out where a file can be had now; ``limited`` hears of hosts that ask to wait."""
    wanted = described(wanted, settings)
    if peers and wanted.sha256:
        found = _ask_peers(wanted, settings)
        if found:
            return Answer(wanted, found, found[0].size, wanted.sha256, "catalogue", from_peers=True)
    sources = _ask_hosts(wanted, settings, limited)
    stated = sources[0].sha256
    by = "catalogue" if wanted.sha256 else "host" if stated else "size"
    if by == "size" and not settings.allow_unverified:
        raise Problem(
            "unverified",
            f"no sha256 is known, and {sources[0].host} states none; "
            "add the sha256 to the entry, or allow files that only their size verifies",
        )
    answer = Answer(wanted, sources, sources[0].size, wanted.sha256 or stated, by)
    if peers and by == "host":
        found = _ask_peers(replace(wanted, bytes=answer.size), settings)
        answer = replace(answer, sources=found or sources, from_peers=bool(found))
    return answer


def _ask_peers(wanted: Wanted, settings: Settings) -> tuple[Source, ...]:
    found: list[Source] = []
    # Each host begins with other peers, so that no one of them serves all.
    for peer in random.sample(settings.peers, min(_PEERS, len(settings.peers))):
        try:
            url = f"{peer.rstrip('/')}/{urllib.parse.quote(wanted.path)}"
            source = resolve(url, Tokens({}), timeout_s=_PEER_TIMEOUT_S, name=wanted.name)
        except Exception:  # noqa: S112  whatever is wrong with a peer, the origin is there still
            continue
        size = wanted.bytes or (found[0].size if found else source.size)
        if source.size is not None and source.size == size and source.ranges:
            found.append(source)
    return tuple(found)


def _ask_hosts(wanted: Wanted, settings: Settings, limited: Callable[[str, float], None]) -> tuple[Source, ...]:
    found: list[Source] = []
    troubles: list[Problem] = []
    for url in wanted.urls:
        try:
            source = resolve(url, settings.tokens, timeout_s=settings.timeout_s, name=wanted.name)
            found.append(agreeing(wanted, source, host_of(url)))
        except Problem as problem:
            troubles.append(problem)
            if problem.host and problem.wait_s:
                limited(problem.host, problem.wait_s)
    if not found:
        raise next((problem for problem in troubles if not problem.lasting), troubles[0])
    return together(wanted, found)


def agreeing(wanted: Wanted, source: Source, host: str) -> Source:
    """Refuse a source that states something else than what is known, before a byte is fetched."""
    if wanted.bytes and source.size is not None and source.size != wanted.bytes:
        raise Problem("wrong_size", f"{host} offers {source.size} bytes, expected are {wanted.bytes}")
    if wanted.sha256 and source.sha256 and source.sha256 != wanted.sha256:
        raise Problem(
            "wrong_hash",
            f"{host} states sha256 {source.sha256}, expected is {wanted.sha256}; nothing was fetched",
        )
    if source.size is None:
        raise Problem("wrong_size", f"{host} does not state the size", another_try=True)
    if source.size == 0:
        raise Problem("content", f"{host} offers an empty file")
    return source


def together(wanted: Wanted, found: Sequence[Source]) -> tuple[Source, ...]:
    """Return the sources whose bytes may be mixed in one file."""
    first = found[0]
    same = [source for source in found if source.size == first.size]
    if not wanted.sha256:
        # Without a sha256 of our own, sources go together only when they state the same one.
        first = next((source for source in found if source.sha256), first)
        same = [source for source in found if source is first or (first.sha256 and source.sha256 == first.sha256)]
    plain = [source for source in same if not source.single]
    return tuple([source for source in plain if source.ranges] or plain[:1] or same[:1])
