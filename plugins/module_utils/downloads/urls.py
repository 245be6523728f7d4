"""Addresses as people and hosts write them: what can be asked for, what may be shown, and what is refused."""

from __future__ import annotations

import re
import urllib.parse

# What an address may hold as it is; everything else is percent-encoded.
PLAIN = "!$&'()*+,;=:@/?%[]-._~"
_HOST = re.compile(r"[0-9a-f:.]*:[0-9a-f:.]*(?:%\w+)?|[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*\.?")
_PORTS = {"http": "80", "https": "443"}
_SECRET = re.compile(
    r"(?:.*[-_])?(?:token|key|apikey|secret|passw(?:or)?d|passphrase|pwd|auth|authorization|bearer|jwt|sig|signature"
    r"|credentials?)",
    re.IGNORECASE,
)
_HUB_PAGE = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/(?:[^/]+/){1,3}blob/")
_GIT_PAGE = re.compile(r"https?://(?:www\.)?(?:github\.com|gitlab\.com)/.+?/blob/")
_CIVITAI_PAGE = re.compile(r"https?://(?:www\.)?civitai\.(?:com|green|red)/models/")


def encoded(url: str) -> str:
    """Write an address so that HTTP can carry it; an error says what is wrong with it and shows no secret."""
    url = url.strip()
    if not url.isprintable():
        raise ValueError("it holds a line end or another character that is not printable")
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname or "", parts.port
        if ":" not in host:
            host = urllib.parse.unquote(host)
            host = host if host.isascii() else host.encode("idna").decode()
    except ValueError as error:
        raise ValueError(f"its host or port is malformed ({error})") from None
    if parts.scheme != "file" and not _HOST.fullmatch(host):
        raise ValueError("its host is malformed")
    place = f"[{host}]" if ":" in host else host
    if port is not None and str(port) != _PORTS.get(parts.scheme):
        place += f":{port}"
    path, query = (urllib.parse.quote(text, safe=PLAIN) for text in (parts.path, parts.query))
    return urllib.parse.urlunsplit((parts.scheme, place, path, query, ""))


def check(url: object) -> str:
    """Return the address of a model file, encoded; an error says what is wrong with it and shows no secret."""
    text = str(url).strip()
    shown = text.partition("?")[0].partition("#")[0]
    if "@" in text and re.match(r"(?:\w+://)?(?:[^/?#]*@|[^/?#\[]*:(?!\d*(?:[/?#]|$)))", text):
        raise ValueError("the URL holds a user name or a password (not shown); give it as a token of this host")
    if not re.match(r"(https?://[^/]|file:///)", text, re.IGNORECASE):
        raise ValueError(f"urls must begin with https://, http:// or file:///, found {shown!r}")
    try:
        address = encoded(text)
    except ValueError as error:
        raise ValueError(f"the URL {shown!r} cannot be used: {error}") from None
    parts = urllib.parse.urlsplit(address)
    if parts.path in {"", "/"}:
        raise ValueError(f"the URL {shown!r} names a host and no file")
    if "#" in text:
        raise ValueError(f"the URL {shown!r} holds a '#', which ends an address; write %23 for one in a name")
    for name, _value in urllib.parse.parse_qsl(parts.query):
        if _SECRET.fullmatch(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)):
            raise ValueError(
                f"the URL {shown!r} holds a credential in its query ({name}=, not shown); leave that out, and give the "
                f"credential as the token of {parts.netloc}, in wan_models_tokens"
            )
    _refuse_page(address, shown, urllib.parse.parse_qs(parts.query))
    return address


def _refuse_page(address: str, shown: str, query: dict[str, list[str]]) -> None:
    if _HUB_PAGE.match(address):
        raise ValueError(f"the URL {shown!r} is the page of a file; the file itself has /resolve/ in place of /blob/")
    if _GIT_PAGE.match(address):
        raise ValueError(f"the URL {shown!r} is the page of a file; the file itself has /raw/ in place of /blob/")
    if _CIVITAI_PAGE.match(address):
        version = query.get("modelVersionId", ["the id of one of its versions"])[0]
        raise ValueError(f"the URL {shown!r} is the page of a model; in place of the URL write civitai: {version}")


def origin(url: str) -> str:
    """Return scheme, host and port."""
    parts = urllib.parse.urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def host_of(url: str) -> str:
    """Return the host and port for messages; never the path, which may be signed."""
    found = re.match(r"https?://(?:[^/?#]*@)?([^/?#]+)", url)
    return found[1] if found else "this host"


def without_queries(text: str) -> str:
    """Take the queries, which may be signed, out of the addresses in a text."""
    return re.sub(r"(https?://[^\s?\"'<>]+)\?[^\s\"'<>]*", r"\1?...", text)
