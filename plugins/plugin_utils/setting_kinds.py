"""Rules that a setting has by what it is: by the end of its name, and by its type.

They hold for every setting of every role, so a new one has them without being named here.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit
from zoneinfo import available_timezones

from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.problems import shown

Spec = Mapping[str, Any]
ReadFile = Callable[[str], "bytes | None"]
"""Gives a file on the controller, found as Ansible finds it, or None where there is none."""


@dataclass(frozen=True)
class Seen:
    """What a rule may look at besides the value."""

    name: str
    spec: Spec
    specs: Mapping[str, Spec]
    settings: Mapping[str, Any]
    """All settings that have their right types. A rule that asks for another one is left out."""
    read: ReadFile

    def shown(self, value: object) -> str:
        """The value for a message, unless it is a secret."""
        return "a value, not shown" if secret(self.name, self.spec) else shown(value)

    def others(self, ending: str | tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        """The other settings whose names end so."""
        return ((name, value) for name, value in self.settings.items() if name.endswith(ending) and name != self.name)

    def taken_by(self, value: object, ending: str | tuple[str, ...]) -> str:
        """Another setting with this value, which is to blame less: one that has its default, or comes first."""
        changed = value != self.spec.get("default")
        for name, other in self.others(ending):
            theirs = other != self.specs[name].get("default")
            if other == value and (changed, self.name) > (theirs, name):
                return name
        return ""


@dataclass(frozen=True)
class Rule:
    """What a setting must be like beyond its type. ``find`` returns what is wrong, or an empty text."""

    find: Callable[[Any, Seen], str]
    needed: str
    fix: str
    """``{name}`` and ``{default}`` stand for those of the setting."""


class Range(Rule):
    """The numbers that a setting may have. It takes the place of those that its name stands for."""


def between(low: float, high: float, unit: str) -> Range:
    """A range of numbers."""
    return Range(
        lambda value, _unused: "" if low <= value <= high else f"{value} {unit}".rstrip(),
        f"{low} to {high} {unit}".rstrip(),
        f"choose a number{' of ' + unit if unit else ''} in that range",
    )


def matches(pattern: str) -> Callable[[Any, Seen], str]:
    """The whole value has this form."""
    return lambda value, seen: "" if re.fullmatch(pattern, str(value)) else seen.shown(value)


def entries(wrong: Callable[[Any], bool]) -> Callable[[Any, Seen], str]:
    """Name the entries of a list that are wrong."""
    return lambda value, _unused: ", ".join(shown(entry) for entry in value if wrong(entry))


def secret(name: str, spec: Spec) -> bool:
    """Whether the value of a setting is never shown."""
    return bool(spec.get("no_log")) or re.search(r"_(environment|key|password|secret|tokens?)$", name) is not None


# -- every setting


def texts(value: object, where: str = "") -> Iterator[tuple[str, str]]:
    """All texts in a value, names included, each with where it stands."""
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield "a name", str(key)
            yield from texts(entry, shown(key).strip("'"))
    elif isinstance(value, list | tuple):
        for index, entry in enumerate(value):
            yield from texts(entry, where or (f"entry [{index}]" if len(value) > 1 else ""))


_CHARACTERS = {"\n": "a line end", "\r": "a carriage return", "\t": "a tab", "\0": "a NUL"}


def _unprintable(value: object, _unused: Seen) -> str:
    for where, text in texts(value):
        for character in text:
            if unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"}:
                what = _CHARACTERS.get(character, "a character that cannot be seen")
                return f"{what} (U+{ord(character):04X}){' in ' + where if where else ''}"
    return ""


_CREDENTIALS = (
    # A password, or for the web also a mere user name, which may be a token. ssh://git@host is neither.
    r"://[^/\s?#@]*:[^/\s?#@]*@",
    r"(?i)(?:^|[^a-z])https?://[^/\s?#@]+@",
    r"^[^/\s:@]+:[^/\s@]+@[^/\s@]+$",
    r"(?i)[?&][a-z_-]*(?:token|api[_-]?key|secret|passw(?:or)?d|sig(?:nature)?|credential|auth)=[^&\s]",
)


def _credentials(value: object, seen: Seen) -> str:
    if seen.spec.get("no_log"):
        return ""
    for where, text in texts(value):
        if any(re.search(pattern, text) for pattern in _CREDENTIALS):
            return f"an address with a user, a password or a token{' in ' + where if where else ''} (not shown)"
    return ""


EVERY = (
    Rule(
        _unprintable,
        "texts on one line, without control characters: they go into units, environment files and commands",
        "write it in quotes on one line, not as a block that begins with |; several lines belong in a file",
    ),
    Rule(
        _credentials,
        "addresses without secrets: they are shown in logs and argument lists",
        "credentials belong in a netrc file on the host, those of models into wan_models_tokens, and what a service "
        "needs into its own ..._environment",
    ),
)


# -- accounts

_ACCOUNT_NAMES = """
    root adm admin ansible audio azureuser backup bin bitnami cdrom centos core crontab daemon debian dialout dip disk
    dnsmasq docker ec2-user fax fedora ftp games git gnats haproxy input irc jenkins jupyter kmem kvm list lp lxd mail
    man messagebus mysql netdev news nginx nobody nogroup nvidia-persistenced ollama operator plugdev postfix postgres
    prometheus proxy redis render sasl sgx shadow src ssh sshd ssl-cert staff sudo sync sys syslog tape tty ubuntu
    users utmp uucp vagrant video voice wheel www-data
"""
_ACCOUNTS = frozenset(_ACCOUNT_NAMES.split())
"""Of the system, of common services, and of the people whom clouds make. The host is asked about all others."""


def _not_ours(name: str) -> bool:
    return (
        not re.fullmatch(r"[a-z][a-z0-9_-]{0,30}", name) or name in _ACCOUNTS or name.startswith(("systemd-", "snap_"))
    )


# -- folders and paths

_SYSTEM_FOLDERS = {
    *("/", "/etc", "/home", "/media", "/mnt", "/opt", "/srv", "/usr"),
    *("/var", "/var/cache", "/var/lib", "/var/local", "/var/log", "/var/opt", "/var/spool"),
}
_SYSTEM_TREES = (
    *("/bin", "/boot", "/lib", "/lib32", "/lib64", "/root", "/sbin", "/snap", "/usr", "/var/backups", "/var/mail"),
    *("/etc/apt", "/etc/cron.d", "/etc/default", "/etc/docker", "/etc/init.d", "/etc/ld.so.conf.d", "/etc/nginx"),
    *("/etc/pam.d", "/etc/profile.d", "/etc/security", "/etc/ssh", "/etc/ssl", "/etc/sudoers.d", "/etc/sysctl.d"),
    *("/etc/systemd", "/etc/tmpfiles.d", "/etc/udev", "/opt/nvidia", "/var/cache/apt", "/var/lib/apt"),
    *("/var/lib/containerd", "/var/lib/docker", "/var/lib/dpkg", "/var/lib/postgresql", "/var/lib/systemd"),
    *("/var/log/journal", "/var/spool/cron", "/var/www"),
)
"""The host is asked about all other folders."""
_PASSING_FOLDERS = ("/dev", "/proc", "/run", "/sys", "/tmp", "/var/lock", "/var/run", "/var/tmp")  # noqa: S108


_LONGEST_FOLDER = 200
"""In characters. Releases put long paths below it, and no file system takes more than 4095 in all."""


def inside(path: object, folders: Iterable[str]) -> bool:
    """Whether a path is one of these folders, or lies in one."""
    return any(PurePosixPath(str(path)).is_relative_to(folder) for folder in folders)


def bad_folder(path: object) -> bool:
    """Whether a folder cannot be one of our own."""
    text = str(path)
    return (
        not re.fullmatch(r"(/[A-Za-z0-9_+@-][A-Za-z0-9._+@-]*)+", text)
        or len(text) > _LONGEST_FOLDER
        or text in _SYSTEM_FOLDERS
        or (inside(text, (*_SYSTEM_TREES, *_PASSING_FOLDERS)) and not re.match("/usr/local/[^/]+/.", text))
        # the home of somebody
        or re.fullmatch("/home/[^/]+", text) is not None
    )


def _bad_place(path: str) -> bool:
    return (
        not path.startswith("/")
        or ".." in PurePosixPath(path).parts
        or not path.strip("/.")
        or inside(re.sub("^/+", "/", path), _PASSING_FOLDERS)
    )


# -- networks

_WORDS = {"any", "localhost", "link-local", "multicast"}
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def address(text: object) -> Address | None:
    """An IP address, or nothing where the text is none."""
    try:
        return ipaddress.ip_address(str(text)) if "%" not in str(text) else None
    except ValueError:
        return None


def _not_of_a_host(one: Address | None) -> bool:
    """Whether no interface can have it; a link's own IPv6 addresses need a zone, which programs take in other forms."""
    if isinstance(one, ipaddress.IPv6Address):
        return one.is_multicast or one.is_link_local or one.ipv4_mapped is not None
    return one is None or one.is_multicast or one.is_reserved or (not one.is_unspecified and int(one) < 1 << 24)


def _not_a_network(entry: object) -> bool:
    # What Python takes beside that, systemd and nginx do not: masks, zones, zeros in front.
    text = str(entry)
    if not re.fullmatch(r"[0-9A-Fa-f.:]+(/(0|[1-9][0-9]{0,2}))?", text):
        return True
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return True
    return False


def _holds(entry: str, one: Address) -> bool:
    if entry in _WORDS:
        return entry == "any" or (entry == "localhost" and one.is_loopback)
    return not _not_a_network(entry) and one in ipaddress.ip_network(entry)


def _shuts_in(networks: Iterable[str], seen: Seen) -> str:
    listen = [address(value) for name, value in seen.settings.items() if name.endswith("_listen")]
    here = [ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1")]
    here += [one for one in listen if one and not one.is_unspecified]
    return ", ".join(str(entry) for entry in networks if any(_holds(entry, one) for one in here))


_NETWORK_FIX = "correct the entry: a network has zeros after its prefix, so 10.1.2.0/24 and not 10.1.2.3/24"

# -- times

_DAY_NAMES = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_SHORTHANDS = {"minutely", "hourly", "daily", "weekly", "monthly", "quarterly", "semiannually", "yearly", "annually"}


def _days(text: str) -> bool:
    """Whether these are days of the week: names, and ranges of them."""
    for entry in text.lower().removesuffix(",").split(","):
        days = [
            next((at for at, name in enumerate(_DAY_NAMES) if one in {name, name[:3]}), None)
            for one in re.split(r"\.\.|-", entry)
        ]
        if len(days) > 2 or None in days or days != sorted(days, key=lambda day: day or 0):
            return False
    return True


def _component(text: str, low: int, high: float) -> bool:
    """Whether this is a part of a systemd.time(7) calendar event: values, ranges and steps."""
    number = r"([0-9]+(?:\.[0-9]{1,6})?)" if high % 1 else r"([0-9]+)"
    for entry in text.split(","):
        match = re.fullmatch(rf"\*|{number}(?:\.\.{number})?(?:/{number})?", entry)
        if not match:
            return False
        first, last, step = (None if part is None else float(part) for part in match.groups())
        if step == 0 or not low <= (low if first is None else first) <= (high if last is None else last) <= high:
            return False
    return True


def _date(text: str) -> bool:
    match = re.fullmatch(r"(?:([^-~]+)-)?([^-~]+)[-~]([^-~]+)", text)
    if not match:
        return False
    year, month, day = match.groups()
    return _component(year or "*", 1970, 2199) and _component(month, 1, 12) and _component(day, 1, 31)


def _time(text: str) -> bool:
    parts = text.split(":")
    limits = (23, 59, 59.999999)
    return len(parts) in {2, 3} and all(_component(part, 0, limit) for part, limit in zip(parts, limits, strict=False))


def bad_calendar(text: str) -> bool:
    """Whether systemd would not take this as OnCalendar. An empty text is no schedule, and in order."""
    words = text.split()
    if text != text.strip() or not words:
        return bool(text)
    if len(words) > 1 and (words[-1].upper() == "UTC" or words[-1] in available_timezones()):
        words.pop()
    if len(words) == 1 and (words[0].lower() in _SHORTHANDS or re.fullmatch("@[0-9]{1,11}", words[0])):
        return False
    forms = [_days, _date, _time]
    for word in words:
        while forms and not forms[0](word):
            forms.pop(0)
        if not forms:
            return True
        forms.pop(0)
    return False


# -- sizes

_LEAST_MEMORY = 64 * 1024**2
"""No service starts with less: a number of megabytes or gigabytes has lost its letter."""
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def _bad_memory(text: str) -> bool:
    if re.fullmatch(r"infinity|[1-9][0-9]?%|100%", text):
        return False
    match = re.fullmatch(r"([1-9][0-9]{0,18})([KMGT]?)", text)
    return not match or not _LEAST_MEMORY <= int(match[1]) * 1024 ** _POWERS[match[2]] < 2**63


# -- environments


def _bad_names(environment: Mapping[str, object], _unused: Seen) -> str:
    return ", ".join(shown(name) for name in environment if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", str(name)))


def _bad_values(environment: Mapping[str, object], _unused: Seen) -> str:
    wrong = [
        str(name)
        for name, value in environment.items()
        if isinstance(value, bool) or not isinstance(value, str | int | float)
    ]
    return f"something else in {', '.join(wrong)} (values are not shown)" if wrong else ""


# -- all kinds


@dataclass(frozen=True)
class Kind(Rule):
    """A rule of the settings of some types whose names end so, a regular expression."""

    ending: str
    types: tuple[str, ...]


_TEXT = ("str", "path")
_LIST = ("list of str",)


def _kind(ending: str, types: tuple[str, ...], find: Callable[[Any, Seen], str], needed: str, fix: str) -> Kind:
    return Kind(find, needed, fix, ending, types)


def _wrong(test: Callable[[Any], object]) -> Callable[[Any, Seen], str]:
    return lambda value, seen: seen.shown(value) if test(value) else ""


def _twice(ending: str | tuple[str, ...]) -> Callable[[Any, Seen], str]:
    return lambda value, seen: f"{value}, which {other} has, too" if (other := seen.taken_by(value, ending)) else ""


def _bad_url(text: str, seen: Seen) -> str:
    right = re.fullmatch(r"(https?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?(/[!-~]*)?)?", text)
    try:
        return "" if right and urlsplit(text).port != 0 else seen.shown(text)
    except ValueError:  # a port beyond 65535, or brackets around something else than an address
        return seen.shown(text)


def _bad_secret(value: object, _unused: Seen) -> str:
    wrong = [where for where, text in texts(value) if where != "a name" and not re.fullmatch(r"[!-~]*", text)]
    return f"white space or letters that are not ASCII{' in ' + wrong[0] if wrong[0] else ''}" if wrong else ""


KINDS = (
    _kind(
        "_user|_group",
        _TEXT,
        _wrong(_not_ours),
        "a name of its own, of small letters, digits, _ and -, at most 31, and not one of the system, of other "
        "services or of people",
        "choose a name of its own, which nothing else on the host has, such as {name}: {default}",
    ),
    _kind(
        "_user",
        _TEXT,
        _twice("_user"),
        "a user of its own: services with one user can read and change each other's files",
        "give each service a user of its own, such as {name}: {default}",
    ),
    _kind(
        "_dir|_root",
        _TEXT,
        _wrong(bad_folder),
        "the absolute path of a folder of its own that outlives a restart of the host, of letters, digits and ._+@-",
        "choose a folder like the default: not one of the system's or of other programs, not somebody's home, not "
        "under /tmp or /run, without a slash at the end",
    ),
    _kind("_dir|_root", _TEXT, _twice(("_dir", "_root")), "a folder of its own", "choose another folder"),
    _kind(
        "",
        ("path", "list of path"),
        lambda value, _unused: ", ".join(
            shown(path)
            for path in (value if isinstance(value, list) else [value])
            if (path or isinstance(value, list)) and _bad_place(path)
        ),
        "absolute paths without .., which services see, so not under /tmp, /run and the like",
        "correct the entry, for example /srv/models",
    ),
    _kind(
        "_port",
        ("int",),
        _wrong(lambda port: not 1024 <= port <= 65535),
        "a port of its own from 1024 to 65535",
        "choose a port that the services' user, who is not root, may open",
    ),
    _kind(
        "_port",
        ("int",),
        _twice("_port"),
        "a port of its own from 1024 to 65535",
        "give each service a port of its own",
    ),
    _kind(
        "(?<!_database)_url|_endpoint",
        ("str",),
        _bad_url,
        "an http(s) address without a user, of ASCII letters",
        "correct it, for example {name}: https://example.com, or leave it empty",
    ),
    _kind(
        "_tokens?|_secret|_password|_key|_key_id",
        ("str", "dict"),
        _bad_secret,
        "the secret alone: ASCII letters, digits and signs, without white space and line ends",
        "copy it again without what surrounds it; in YAML write it in quotes, not as a block that begins with |",
    ),
    _kind(
        "_listen",
        ("str",),
        _wrong(lambda text: _not_of_a_host(address(text))),
        "one IP address, not a host name and not a list",
        "write 127.0.0.1 (this host only), an address of the host, or 0.0.0.0",
    ),
    _kind(
        "_address",
        ("str",),
        _wrong(lambda text: text and (_not_of_a_host(one := address(text)) or (one and one.is_unspecified))),
        "one IP address of the host that others can reach, or nothing",
        "correct it, for example {name}: 10.0.0.7",
    ),
    _kind(
        "_ip_allow|_ip_deny",
        _LIST,
        entries(lambda entry: entry not in _WORDS and _not_a_network(entry)),
        "networks such as 10.0.0.0/8, single addresses, or any, localhost, link-local, multicast",
        _NETWORK_FIX,
    ),
    _kind(
        "_ip_deny",
        _LIST,
        _shuts_in,
        "networks that do not hold this host, since its services talk to each other",
        "remove the entry",
    ),
    _kind(
        "(?<!_ip)(_allow|_deny)",
        _LIST,
        entries(_not_a_network),
        "networks such as 10.0.0.0/8, or single addresses",
        _NETWORK_FIX,
    ),
    _kind(
        "_schedule|_calendar",
        ("str",),
        _wrong(bad_calendar),
        "a time as systemd's timers have it, or nothing",
        "for example {name}: Sun 04:00, or daily; systemd-analyze calendar shows what a text means",
    ),
    _kind(
        "_memory_max",
        ("str",),
        _wrong(_bad_memory),
        "infinity, bytes with K, M, G or T behind them (64M at least), or a share such as 90%",
        "for example {name}: {default}",
    ),
    _kind(
        "_checksum|_sha256",
        ("str",),
        matches(r"([0-9a-f]{64})?"),
        "a sha256, 64 hexadecimal digits in small letters, or nothing",
        "copy what sha256sum says, or leave it empty",
    ),
    _kind(
        "_environment",
        ("dict",),
        _bad_names,
        "names of letters, digits and _, none of them beginning with a digit",
        "rename the entry",
    ),
    _kind(
        "_environment",
        ("dict",),
        _bad_values,
        "a text or a number on one line as each value",
        'quote words such as "true" and "yes"',
    ),
)

_NUMBERS = {
    "_mb": between(1, 1_000_000, "MB"),
    "_gb": between(1, 100_000, "GB"),
    "_hours": between(1, 8760, "hours"),
    "_timeout": between(1, 604_800, "seconds"),
    "": between(0, 2**31 - 1, ""),
}


def of(name: str, spec: Spec, own: Iterable[Rule], *, on_host: bool) -> Iterator[Rule]:
    """The rules that a setting has by what it is. ``own`` are those that it has by its name."""
    type_ = spec.get("type", "str")
    type_ = f"list of {spec.get('elements', 'raw')}" if type_ == "list" else type_
    for kind in KINDS:
        place = kind.ending in {"", "_dir|_root"}
        if type_ in kind.types and re.search(f"(?:{kind.ending})$", name) and (on_host or not place):
            yield kind
    if type_ in {"int", "float"} and not name.endswith("_port") and not any(isinstance(rule, Range) for rule in own):
        rule, *_unused = (rule for ending, rule in _NUMBERS.items() if name.endswith(ending))
        yield rule
