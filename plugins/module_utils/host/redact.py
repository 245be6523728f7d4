"""Takes secrets out of texts that leave a host."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

GONE = "<redacted>"

# Names of what is secret, wherever they stand in a name. "tokenizer", "max_tokens" and "author" are none.
_NAME = (
    r"(?:pass(?:word|wd|phrase|wort)?(?![a-z])|pwd(?![a-z])|secret|credential|(?<!max_)(?<!new_)token(?![a-z])|bearer"
    r"|api[ _.-]?key|(?:access|private|secret|account|encryption|signing|shared|client|x|ssh)[ _.-]?key"
    r"|(?<![a-z])auth(?:orization)?(?![a-z])|cookie|session[_.-]?(?:id|key)|signature|(?<![a-z])sas(?![a-z])|webhook[_.-]?url)"
)
_SECRET = re.compile(_NAME, re.IGNORECASE)
# What an address may carry in its query, by shorter names.
_QUERY = re.compile(rf"([?&;](?:[\w.-]*{_NAME}[\w.-]*|key|sig|code|x-amz-[\w-]+)=)[^&\s\"'<>]+", re.IGNORECASE)
_SCHEME = r"(?:![\w-]+\s+)?(?:(?:bearer|basic|token|digest|apikey|aws4-hmac-sha256)\s+)?"
_KEY = rf"[\w.-]*{_NAME}[\w.-]*"

_WHOLE = (
    re.compile(
        r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY( BLOCK)?-----.*?(-----END [A-Z0-9 ]*PRIVATE KEY( BLOCK)?-----|\Z)", re.DOTALL
    ),
    # Those that are known by how they begin, or by their form.
    re.compile(
        r"\b(?:hf_|api_org_|gh[pousr]_|github_pat_|glpat-|sk-|rpa_|xox[abeprs]-|AIza|ya29\.|npm_|pypi-|dop_v1_|whsec_|"
        r"civitai_)[A-Za-z0-9_.-]{8,}"
    ),
    re.compile(r"\b(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{12,}\b"),
    re.compile(r"\beyJ[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]{4,}(?:\.[A-Za-z0-9_-]*)?"),
    # 40 and 64 digits are commits and hashes of files, which are none.
    re.compile(r"(?<![0-9A-Za-z])(?:[0-9a-f]{32}|[0-9A-F]{32})(?![0-9A-Za-z])"),
    re.compile(r"(?<=://hooks\.slack\.com/)\S+|(?<=discord\.com/api/webhooks/)\S+"),
    # Random letters of three kinds; the keys of S3 have 40, with slashes among them, which paths have, too.
    re.compile(
        r"(?<![A-Za-z0-9+=])(?=[A-Za-z0-9+]*[a-z])(?=[A-Za-z0-9+]*[A-Z])(?=(?:[A-Za-z+]*[0-9]){3})"
        r"[A-Za-z0-9+]{24,}={0,2}(?![A-Za-z0-9+=])"
    ),
    re.compile(
        r"(?<![A-Za-z0-9+/=])(?=[A-Za-z0-9+/]*[a-z])(?=(?:[a-z0-9+/]*[A-Z]){4})(?=[A-Za-z+/]*[0-9])"
        r"[A-Za-z0-9+][A-Za-z0-9+/]{35,43}(?![A-Za-z0-9+/=])"
    ),
)
_KEPT = (
    re.compile(r"(?<=://)()[^/?#\s\"'<>]+(?=@)"),
    _QUERY,
    re.compile(r"(\b(?:bearer|apikey)\s+)[A-Za-z0-9._~+/=-]{4,}", re.IGNORECASE),
    re.compile(r"(\b[Bb]asic\s+)(?=[A-Za-z0-9+/]*[A-Z0-9=])[A-Za-z0-9+/]{6,}={0,2}"),
    re.compile(r"((?<!\S)(?:-u|--user|--proxy-user|-U)[ =])(?=[^\s:]+:)\S+"),
    re.compile(rf"((?<!\S)--{_KEY}(?:=|\s+))(?:\"[^\"]*\"|'(?:''|[^'])*'|\S+)", re.IGNORECASE),
    re.compile(r"(\b(?:set-)?cookie\s*[:=]\s*)[^\n\"']+", re.IGNORECASE),
    re.compile(r"(\bsshpass\s+-p\s*|\bmysql\w*\s(?:[^\n]{0,200}\s)?-p)[^\s-]\S*"),
    # JSON within a text has its quotes escaped.
    re.compile(rf"(\\+\"{_KEY}\\+\"\s*:\s*\\+\")[^\"\\]*", re.IGNORECASE),
    # A key with its value: quoted, in parentheses of JSON or Python, or bare.
    re.compile(rf"(\"{_KEY}\"\s*(?::|=>?)\s*)(?:\"(?:\\.|[^\"\\])*\"|'(?:''|[^'])*'|[^\s,}}\]]+)", re.IGNORECASE),
    re.compile(rf"('{_KEY}'\s*(?::|=>?)\s*)(?:'(?:''|\\.|[^'\\])*'|\"[^\"]*\"|[^\s,}}\]]+)", re.IGNORECASE),
    # In a file: the lines of a block in YAML, and all of a line that begins with the key.
    re.compile(rf"((?<![\w.-]){_KEY}[\"']?\s*[:=][ \t]*)[|>][+-]?[ \t]*(?:\n[ \t]+[^\n]*)+", re.IGNORECASE),
    re.compile(rf"(?m)^([ \t]*(?:export\s+|-\s+|Environment=)?[\"']?{_KEY}[\"']?\s*[:=][ \t]*)\S[^\n]*", re.IGNORECASE),
    re.compile(
        rf"((?<![\w.-]){_KEY}\s*(?:=|:(?!//))\s*{_SCHEME})(?:\"(?:\\.|[^\"\\])*\"|'(?:''|[^'])*'|\\\"[^\"]*\"|[^\s,;&)}}\]\"']+)",
        re.IGNORECASE,
    ),
    # In a sentence, where it has a digit.
    re.compile(
        r"(\b(?:password|passphrase|login|token|secret)\s+(?:(?:\w+\s+){0,2}(?:is|was)\b:?\s+)?[\"']?)(?=[^\s\"']*\d)[^\s\"']{4,}",
        re.IGNORECASE,
    ),
    re.compile(r"(\b[A-Z0-9_]*(?:TOKEN|SECRET|PASSWORD|API_KEY)\s+)(?=\S*\d)\S{6,}"),
    re.compile(r"(?m)(^[ \t]*machine\s+\S+\s+login\s+\S+\s+password\s+)\S+"),
)


def is_secret(name: str) -> bool:
    """Whether a setting's name says that its value is a secret."""
    return bool(_SECRET.search(name))


def known_values(pairs: Iterable[tuple[str, str]]) -> set[str]:
    """Values of settings that are to be found wherever they stand: each with what addresses and headers make of it."""
    found: set[str] = set()
    for name, value in pairs:
        value = value.strip().strip("\"'")
        secret = is_secret(name) or re.search(r"://[^/\s]*@", value)
        random = len(value) >= 8 and re.search(r"\d", value) and re.search(r"[A-Za-z]", value) and "/" not in value
        own = re.match(r"CUDA_|NVIDIA_|COMFYUI_|WANMETAL_", name) and not secret
        if (secret and len(value) >= 4) or (random and not own):
            encoded = value.encode()
            found |= {value, quote(value, safe=""), base64.b64encode(encoded).decode(), encoded.hex()}
            if user := re.search(r"://([^/\s]*)@", value):
                found |= {part for part in user[1].split(":") if len(part) >= 4}
    return found


def redact(text: str, known: Iterable[str] = ()) -> str:
    """The text without the values that are known, and without all that looks like a secret."""
    for value in sorted(known, key=len, reverse=True):
        text = text.replace(value, GONE)
    for pattern in _WHOLE:
        text = pattern.sub(GONE, text)
    for pattern in _KEPT:
        text = pattern.sub(rf"\g<1>{GONE}", text)
    return text


def redact_all(value: Any, known: Iterable[str] = ()) -> Any:
    """The same for all texts in data."""
    if isinstance(value, str):
        return redact(value, known)
    if isinstance(value, Mapping):
        return {
            redact(str(key), known): GONE
            if is_secret(str(key)) and isinstance(inner, str) and inner
            else redact_all(inner, known)
            for key, inner in value.items()
        }
    return [redact_all(inner, known) for inner in value] if isinstance(value, list | tuple) else value
