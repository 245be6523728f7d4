"""What the handler says of itself at /openapi.json is what it does."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from ansible_collections.wanmetal.comfyui.tests.unit.scripted_comfyui import scripted
from ansible_collections.wanmetal.comfyui.tests.unit.test_handler_api import started
from ansible_collections.wanmetal.comfyui.tests.web import reply
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.core.failures import FailureGroup
from schemathesis.openapi.checks import RejectedPositiveData

OPERATIONS = [
    *("POST /run", "POST /runsync", "GET /status/{id}", "POST /status/{id}", "POST /cancel/{id}"),
    *("GET /health", "POST /health", "GET /workflows"),
]
# Rules that JSON schema has no words for.
BEYOND = ("4n+1", "name inside of ComfyUI's own folders", "a name of its own", "one that ends in", "at most 50 files")


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("described")
    with scripted(takes_s=0.0) as (fake, url), started(folder, url, HANDLER_RAW_WORKFLOWS="1") as (port, _):
        fake.special["/object_info"] = lambda handler: reply(handler, b"{}")
        yield schemathesis.openapi.from_url(f"http://127.0.0.1:{port}/openapi.json")


def test_each_operation_has_a_name_of_its_own(described: Any) -> None:
    found = [operation.ok() for operation in described.get_all_operations()]
    assert sorted(operation.label for operation in found) == sorted(OPERATIONS)
    names = Counter(operation.definition.raw["operationId"] for operation in found)
    assert set(names.values()) == {1}, names


POSTED = OPERATIONS[:2]


@pytest.mark.parametrize(
    ("label", "mode"),
    [
        *((label, GenerationMode.POSITIVE) for label in OPERATIONS),
        *((label, GenerationMode.NEGATIVE) for label in POSTED),
    ],
)
def test_answers_are_those_of_the_schema(label: str, mode: GenerationMode, described: Any) -> None:
    """What fits the schema is taken, or refused by a rule that it cannot hold; no answer is another than it says."""
    (operation,) = (found.ok() for found in described.get_all_operations() if found.ok().label == label)
    statuses: Counter[int] = Counter()

    @settings(
        derandomize=True,
        database=None,
        deadline=None,
        max_examples=40 if label in POSTED else 10,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        if label in POSTED and mode == GenerationMode.POSITIVE:
            case.query = {"wait": 1} if label == "POST /runsync" else {}
            if case.body.get("webhook"):
                case.body["webhook"] = "http://127.0.0.1/"
            if case.body.get("s3Config"):
                case.body["s3Config"]["endpointUrl"] = "http://127.0.0.1/"
        id_ = case.body.get("id") if mode == GenerationMode.NEGATIVE and isinstance(case.body, dict) else None
        if isinstance(id_, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", id_):
            case.body["id"] = f"{label[-3:]}{statuses.total()}"  # a known one is answered from the record
        response = case.call(timeout=600)
        statuses[response.status_code] += 1
        try:
            case.validate_response(response)
        except FailureGroup as found:
            problems = response.json().get("failure", {}).get("problems", [{"allowed": ""}])
            known = all(any(words in problem["allowed"] for words in BEYOND) for problem in problems)
            if not known or not all(isinstance(one, RejectedPositiveData) for one in found.exceptions):
                raise

    ask()
    assert max(statuses) < 500
    if label in POSTED:
        assert statuses[200 if mode == GenerationMode.POSITIVE else 400] > 20, statuses
