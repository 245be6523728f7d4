"""What can go wrong with a download, by kind: whose fault it is, and whether another attempt makes sense."""

from __future__ import annotations

import errno
import re
import socket
import ssl
import urllib.error
from dataclasses import dataclass, replace

# Kinds that another attempt cannot fix. The others are tried again.
LASTING = frozenset(
    {
        *("not_found", "not_allowed", "wrong_size", "wrong_hash", "disk_full", "html", "content", "unverified"),
        *("same_name", "local", "defect"),
    }
)


@dataclass(eq=False)
class Problem(Exception):  # noqa: N818  a value as much as an exception
    """Why a file could not be fetched."""

    kind: str
    message: str
    wait_s: float | None = None
    """Seconds that the host asks to wait."""
    host: str = ""
    """The host that limits the rate for all its files."""
    another_try: bool = False
    """A lasting kind that may pass all the same, as a 404 of a store that is briefly out of order."""

    def __str__(self) -> str:
        return self.message

    @property
    def lasting(self) -> bool:
        """Whether another attempt makes no sense."""
        return self.kind in LASTING and not self.another_try

    def about(self, where: str) -> Problem:
        """Return the same problem with a place in front."""
        return replace(self, message=f"{where}: {self.message}")


def from_status(
    status: int,
    host: str,
    *,
    first_hop: bool,
    had_token: bool,
    said: str = "",
    code: str = "",
    wait_s: float | None = None,
) -> Problem:
    """Tell what an HTTP status means; ``first_hop`` is the host that was asked, not one it redirected to."""
    told = f' ("{said}")' if said else ""
    if status == 429:
        return Problem("rate_limited", f"{host} limits the rate{told}", wait_s=wait_s, host=host if first_hop else "")
    if status in {404, 410}:
        missing = {
            "RevisionNotFound": "it has no such revision",
            "RepoNotFound": "it has no such repository",
        }.get(code, "it has no such file")
        return Problem("not_found", f"{host} answers {status}: {missing}{told}", another_try=status == 404)
    if status in {401, 403} and first_hop:
        return Problem("not_allowed", _not_allowed(status, host, had_token, code, told))
    if status == 403:
        return Problem("link_refused", f"{host} answers 403 to its signed link{told}")
    if status == 416:
        return Problem("server", f"{host} answers 416 to a range of the file: the file there is shorter{told}")
    return Problem("server", f"{host} answers {status}{told}", wait_s=wait_s)


def _not_allowed(status: int, host: str, had_token: bool, code: str, told: str) -> str:
    if code == "RepoNotFound":
        told += ". It says the same of a repository that does not exist: compare its name"
    if had_token:
        fix = "check that the account of this token may fetch it (a licence to accept, early access)"
        return f"{host} answers {status}: the token for {host} does not open it{told}; {fix}"
    return f"{host} answers {status}: a token for {host} is missing{told}; give one in the tokens of this host"


def from_exception(error: BaseException, host: str) -> Problem:
    """Tell what a failed request means."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, ssl.SSLError):
        if isinstance(reason, ssl.SSLCertVerificationError):
            why = getattr(reason, "verify_message", "") or str(reason)
            fix = "add the authority that signs here to the host's certificates, or set SSL_CERT_FILE"
            return Problem("tls", f"the certificate of {host} is not trusted ({why}); {fix}")
        return Problem("tls", f"TLS with {host} failed ({getattr(reason, 'reason', '') or reason})")
    if isinstance(reason, socket.gaierror):
        return Problem("dns", f"the name {host} cannot be resolved ({reason.strerror or reason})")
    if isinstance(reason, TimeoutError):
        return Problem("network", f"{host} does not answer in time")
    if isinstance(reason, OSError):
        return Problem("network", f"no connection with {host} ({reason.strerror or reason})")
    return Problem("network", f"{host} does not answer as HTTP ({reason})")


_STATUS = re.compile(r"status=(\d{3})")
_ARIA2 = {
    2: ("network", "a connection gave no data in time"),
    3: ("not_found", "the file is not there"),
    5: ("network", "a connection was too slow"),
    6: ("network", "a connection failed"),
    8: ("restart", "the host does not continue a broken download"),
    10: ("restart", "the record of the broken download does not fit"),
    11: ("restart", "the same file is being fetched already"),
    13: ("restart", "there is a file of this name without a record"),
    19: ("dns", "the name cannot be resolved"),
    23: ("server", "too many redirects"),
    24: ("not_allowed", "the host asks for a name and a password"),
    29: ("server", "the host is overloaded"),
}
_LOCAL = {15, 16, 17, 18}


def from_aria2(code: int, said: str, host: str) -> Problem:
    """Tell what an exit code of aria2c means."""
    status = _STATUS.search(said)
    if "No space left" in said or "Disk quota exceeded" in said or code == 9:
        return Problem("disk_full", "the disk is full")
    if status and int(status[1]) >= 400:
        return from_status(int(status[1]), host, first_hop=False, had_token=False)
    if code in _LOCAL:
        return Problem("local", f"aria2c cannot write ({said})")
    kind, message = _ARIA2.get(code, ("network", "the transfer broke off"))
    if "SSL/TLS" in said or "certificate" in said.lower():
        kind, message = "tls", "TLS failed"
    return Problem(kind, f"{host}: {message} (aria2c code {code})", another_try=True)


def from_os(error: OSError) -> Problem:
    """Tell what a failed operation on the disk means."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return Problem("disk_full", "the disk is full")
    return Problem("local", f"{error.filename or 'the file'}: {error.strerror}")


def from_any(error: Exception) -> Problem:
    """Turn whatever went wrong with one file into its problem, so that the others go on."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, OSError):
        return from_os(error)
    return Problem("defect", f"wanmetal cannot handle this, please report it ({type(error).__name__}: {error})")


def tries(problem: Problem, usual: int) -> int:
    """Return how often to try: twice where success is unlikely."""
    return 2 if problem.kind in LASTING else usual


def delay_s(problem: Problem, attempt: int, pause_s: float) -> float:
    """Return the seconds until the next attempt: what the host asks for, else doubling up to 64 pauses."""
    if problem.wait_s is not None:
        return problem.wait_s
    return float(pause_s * 2 ** min(attempt, 6))
