"""Which process runs which test, where several run side by side."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

TESTS = Path(__file__).resolve().parent


@functools.cache
def _shares(name: str) -> bool:
    return 'scope="module"' in (TESTS.parent / name).read_text(encoding="utf-8")


class ByWhatTheyShare(LoadScopeScheduling):  # type: ignore[misc]
    """A file whose tests share what is costly to make is run by one process, which makes it once.

    The groups of pytest-xdist 3.8 stand in the tests' ids, which pytest 9.2 no longer lets a plugin change.
    """

    def _split_scope(self, nodeid: str) -> str:
        name = nodeid.partition("::")[0]
        return name if _shares(name) else nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return ByWhatTheyShare(config, log)
