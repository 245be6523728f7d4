"""From a wanted file to the sources that may be used together, and to what will prove it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from urllib.parse import quote

from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads import civitai
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.files import Wanted
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.job import Answer, Settings
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.problems import Problem
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.resolve import (
    Source,
    Tokens,
    fetch_json,
    resolve,
)
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.urls import host_of

_PEERS = 8
_PEER_TIMEOUT_S = 5


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
    if by == "size" and not settings.allow_unproven:
        raise Problem(
            "unproven",
            f"no sha256 is known, and {sources[0].host} states none; "
            "add the sha256 to the entry, or allow files that only their size proves",
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
            url = f"{peer.rstrip('/')}/{quote(wanted.path)}"
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
