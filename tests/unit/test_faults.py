"""What the bench of a fleet takes for a fault."""

from __future__ import annotations

import pytest
from ansible_collections.wanmetal.comfyui.tests.faults.fleet import Job, faulty


@pytest.mark.parametrize(
    ("job", "later", "said"),
    [
        (Job("a", "COMPLETED", digest="1"), ("COMPLETED", "1"), ""),
        (Job("a", "FAILED", "the worker was lost", "1"), ("FAILED", "1"), ""),
        (Job("a", seconds=600.0), None, "a has no end after 600 s"),
        (Job("a", "FAILED", digest="1"), ("FAILED", "1"), "a is FAILED without a reason"),
        (Job("a", "COMPLETED", digest="1"), ("COMPLETED", "2"), "a had one end (COMPLETED), and has another later"),
        (Job("a", "COMPLETED", digest="1"), ("FAILED", "1"), "a had one end (COMPLETED), and has another later"),
        (Job("a", "COMPLETED", digest="1"), None, "a had one end (COMPLETED), and has another later"),
    ],
)
def test_what_is_wrong_with_the_end_of_a_job(job: Job, later: tuple[str, str] | None, said: str) -> None:
    assert faulty([job], {"a": later} if later else {}) == [said] * bool(said)
