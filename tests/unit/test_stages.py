from __future__ import annotations

from collections.abc import Iterator

from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.stages import Stages


def test_adds_up_stages_and_names_the_slowest_tasks() -> None:
    times: Iterator[float] = iter([0.0, 1.5, 1.5, 11.5, 11.5, 12.0])
    stages = Stages(lambda: next(times))
    stages.begin("preflight", "look")
    stages.begin("comfyui", "build")
    stages.changed()
    stages.begin("preflight", "look again")
    assert stages.report(slowest_from=2.0) == [
        "",
        "Stages",
        "  preflight       2.0 s  unchanged",
        "  comfyui        10.0 s  1 changed",
        "  total          12.0 s  1 changed",
        "Slowest tasks",
        "      10.0 s  comfyui: build",
    ]


def test_says_so_when_nothing_changed() -> None:
    stages = Stages(lambda: 0.0)
    stages.begin("comfyui", "look")
    assert stages.report(slowest_from=2.0)[-1].endswith("nothing changed")


def test_is_silent_without_tasks() -> None:
    assert Stages(lambda: 0.0).report(slowest_from=2.0) == []
