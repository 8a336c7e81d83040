"""`make results`: steps are run once, go on after a kill, and are repeated when inputs change."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from experiments.benchmarks.results import plan, running
from experiments.benchmarks.results.plan import Step
from experiments.benchmarks.results.running import Runner
from tests.end_to_end import commands, warm

# Notes each run, and hangs if a file says so.
FAKE = """
import os, sys, time
from pathlib import Path

out = Path(sys.argv[1])
out.mkdir(parents=True, exist_ok=True)
with (out / "runs.txt").open("a") as file:
    print(*sys.argv[2:], file=file)
if (out.parent / "hang").exists():
    (out.parent / "hang").write_text(str(os.getpid()))
    time.sleep(60)
"""


@pytest.fixture
def steps(tmp_path, monkeypatch):
    """Two steps of a command that notes its runs, the second of which needs the first."""
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "__init__.py").touch()
    (tmp_path / "experiments" / "fake.py").write_text(FAKE)
    monkeypatch.setattr(running, "ROOT", tmp_path)
    first = Step("first", 1, ("fake {out} one", "fake {out} 'two words'"))
    return first, Step("second", 1, ("fake {out} {first}",), ("first",))


def made(workdir, step):
    path = workdir / step / "runs.txt"
    return path.read_text().splitlines() if path.exists() else []


def test_what_is_done_is_not_done_again(steps, tmp_path):
    workdir, times = tmp_path / "work", []
    for _ in range(2):
        assert Runner(steps, workdir, tmp_path / "results").run() == []
        assert made(workdir, "first") == ["one", "two words"]
        assert made(workdir, "second") == [str(workdir / "first")]
        times.append([path.stat().st_mtime_ns for path in workdir.glob("*.json")])
    assert times[0] == times[1]


def test_a_step_is_run_after_those_that_it_needs_and_again_after_them(steps, tmp_path):
    workdir = tmp_path / "work"
    runner = Runner(steps, workdir, tmp_path / "results")
    runner.run(["second"])
    before = (workdir / "second" / "runs.txt").stat().st_mtime_ns
    time.sleep(1)  # dates are in seconds
    runner.forget("first")
    runner.run(["first"])
    assert [bool(row["commit"]) for row in runner.rows()][1] is False
    runner.run()
    assert (workdir / "second" / "runs.txt").stat().st_mtime_ns > before


def test_a_changed_command_is_run_anew(steps, tmp_path):
    workdir = tmp_path / "work"
    Runner(steps, workdir, tmp_path / "results").run()
    changed = Step("first", 1, ("fake {out} other",)), steps[1]
    Runner(changed, workdir, tmp_path / "results").run()
    assert made(workdir, "first") == ["other"]


def test_a_step_that_fails_holds_up_only_those_that_need_it(steps, tmp_path):
    workdir = tmp_path / "work"
    broken = Step("first", 1, ("fake {out} one", "nothing {out}"))
    alone = Step("alone", 1, ("fake {out} x",))
    runner = Runner((broken, steps[1], alone), workdir, tmp_path / "results")
    for _ in range(2):
        assert runner.run() == ["first"]
        assert made(workdir, "first") == ["one"]
        assert not made(workdir, "second")
        assert made(workdir, "alone") == ["x"]


def test_a_killed_step_goes_on_with_the_command_that_was_killed(steps, tmp_path):
    workdir = tmp_path / "work"
    run = (
        "from experiments import cli\n"
        "from pathlib import Path\n"
        "from experiments.benchmarks.results import plan, running\n"
        f"running.ROOT = Path({str(tmp_path)!r})\n"
        f"steps = (plan.Step('first', 1, {steps[0].commands!r}),)\n"
        f"runner = running.Runner(steps, Path({str(workdir)!r}), Path({str(tmp_path)!r}))\n"
        "cli.run(lambda: len(runner.run()))\n"
    )
    command = [sys.executable, "-c", run]
    workdir.mkdir()
    (workdir / "hang").touch()
    with subprocess.Popen(command, cwd=warm.ROOT, stderr=subprocess.DEVNULL) as process:
        wait_for(lambda: (workdir / "hang").read_text())
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 143
    with pytest.raises(ProcessLookupError):
        os.kill(int((workdir / "hang").read_text()), 0)
    (workdir / "hang").unlink()
    assert json.loads((workdir / "first.json").read_text())["finished"] == 0
    Runner(steps, workdir, tmp_path / "results").run(["first"])
    assert made(workdir, "first") == ["one", "one", "two words"]


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("sizes", [plan.DEFAULT, plan.QUICK], ids=["default", "quick"])
def test_every_command_of_the_plan_is_understood(sizes):
    before = set()
    for step in plan.steps(sizes):
        assert set(step.needs) <= before
        before.add(step.name)
        for command in step.commands:
            line = f"python -m experiments.{command}"
            assert not list(commands.faults(line)), line


def test_a_step_that_does_not_exist_is_a_mistake_in_one_line():
    done = warm.run("benchmarks.results", "--step=zoo")
    assert done.returncode == 2
    assert "zoos" in done.stderr
