"""What ./test does with its parts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests import run
from tests.lab import lab
from tests.run import IMAGE, Part, counts, in_order


def part(name: str, code: str, step: str = "lint", on_hosts: bool = False) -> Part:
    return Part(step, name, (sys.executable, "-c", code), on_hosts=on_hosts)


@pytest.fixture(autouse=True)
def reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(run, "REPORTS", tmp_path)
    monkeypatch.setattr(run, "ROOT", tmp_path)
    return tmp_path


def ran(monkeypatch: pytest.MonkeyPatch, *parts: Part) -> bool:
    monkeypatch.setattr(run, "in_order", lambda *_: list(parts))
    return run.run(("lint",), full=False, jobs=2)


def test_all_is_well(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    assert ran(monkeypatch, part("a", "print('quiet')"), part("b", ""))
    said = capfd.readouterr().out
    assert said.endswith("\n2 passed, 0 failed\n")
    assert "quiet" not in said


def test_a_part_that_cannot_be_started_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        ran(monkeypatch, Part("lint", "a", ("no-such-program",)), part("b", ""))


def test_what_failed_is_shown_last(
    reports: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    bad = part("bad", "for n in range(100): print('line', n)\nraise SystemExit(3)")
    assert not ran(monkeypatch, bad, part("good", ""))
    said = capfd.readouterr().out
    assert said.index("lint good: passed") < said.index("the end of lint-bad.log:\nline 40\nline 41\n")
    assert said.endswith("\n1 passed, 1 failed\n")
    assert len((reports / "lint-bad.log").read_text().splitlines()) == 100


def test_the_first_part_on_hosts_fetches_the_packages_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    first = """
import pathlib, time
pathlib.Path('fetched').touch()
print('INFO     [upgrade > converge] Executed: Successful', flush=True)
while not pathlib.Path('second').exists():
    time.sleep(0.05)
"""
    second = "import pathlib; pathlib.Path('fetched').stat(); pathlib.Path('second').touch()"
    assert ran(monkeypatch, part("a", first, on_hosts=True), part("b", second, on_hosts=True))


def test_nothing_runs_on_hosts_without_their_image(
    reports: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "IMAGE", image := part("", "raise SystemExit(1)", "image"))
    touches = part("one", "open('touched', 'w')", "molecule", on_hosts=True)
    assert not ran(monkeypatch, image, touches, part("ruff", ""))
    assert capfd.readouterr().out.endswith("\n1 passed, 2 failed\n")
    assert not (reports / "touched").exists()


def test_files_of_unit_tests_are_in_memory_and_gone_after_it(reports: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_DEBUG_TEMPROOT", raising=False)  # of the run that this is part of
    keep = "import os; print(os.environ.get('PYTEST_DEBUG_TEMPROOT'), end='')"
    assert ran(monkeypatch, part("memory", keep, "unit"), part("disk", keep))
    assert (reports / "lint-disk.log").read_text() == "None"
    folder = (reports / "unit-memory.log").read_text()
    assert folder == "None" or (Path(folder).parent == run.MEMORY and not Path(folder).exists())


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        ("3 failed, 2 passed in 1.20s", {"failed": 3, "passed": 2}),
        ("= 2864 passed, 1 skipped, 1 error in 321.25s (0:05:21) =", {"passed": 2864, "skipped": 1, "error": 1}),
        ("killed", {}),
    ],
)
def test_pytest_s_last_line(last: str, expected: dict[str, int]) -> None:
    assert counts(f"... [100%]\n{last}\n") == expected


def test_the_longest_come_first_and_linters_fill_the_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    titles = [one.title for one in in_order(run.STEPS, full=True)]
    assert titles[:3] == [IMAGE.title, "e2e", "molecule upgrade"]
    assert titles.index("molecule preflight") < titles.index("unit") < titles.index("contract")
    assert {f"molecule {name}" for name in run.SLOW} < set(titles)
    assert not {f"molecule {name}" for name in run.SLOW} & {one.title for one in in_order(run.STEPS, full=False)}


@pytest.mark.parametrize(
    ("steps", "missing"),
    [
        (["lint"], ""),
        (["unit"], "aria2c, bwrap, haproxy, pg_ctlcluster, promtool"),
        (["contract"], "ssh, bwrap"),
        (["e2e", "unit"], "ssh, aria2c, bwrap, haproxy, pg_ctlcluster, promtool"),
    ],
)
def test_programs_that_are_missing_are_named(steps: list[str], missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", {"git": "/usr/bin/git"}.get)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    if not missing:
        run.need_programs(steps)
        return
    with pytest.raises(lab.LabError, match=f"the tests run {missing}. Install these packages: "):
        run.need_programs(steps)


def test_programs_that_are_missing_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    installed: list[str] = []
    monkeypatch.setattr("shutil.which", lambda _: None)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(lab, "apt_family", lambda: True)
    monkeypatch.setattr(lab, "install_packages", lambda *packages: installed.extend(packages))
    run.need_programs(["unit"])
    assert installed == ["aria2", "bubblewrap", "git", "haproxy", "postgresql", "prometheus"]
