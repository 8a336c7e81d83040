"""Runs steps as child processes, each once: what is done, is kept in the work directory."""

import hashlib
import json
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.benchmarks import figures, programs
from experiments.benchmarks.results.plan import Step
from experiments.costs import Costs
from probex_jax.files import read_json, write_json

ROOT = Path(__file__).parents[3]
# Of what `train` measured.
_KEPT = ("tree", "encoder", "test_accuracy", "test_auc", "zero_shot", "calibration", "n_models")
_OF_ATTRIBUTES = ("test_accuracy", "test_coverage", "told")


class Runner:
    """The steps and a work directory.

    Beside the folder of a step lies NAME.json: the stamp of its commands and of the runs of the
    steps that it needs, how many commands are finished, and when all of them were.
    """

    def __init__(self, steps: Sequence[Step], workdir: Path, results: Path):
        self._steps = {step.name: step for step in steps}
        self._workdir, self._results = workdir.absolute(), results.absolute()

    def run(self, asked: Sequence[str] = ()) -> list[str]:
        """Runs what is not done of the steps asked for and of those that they need.

        Args:
          asked: names; all steps if empty.

        Returns:
          The steps that failed. Those that need them are left out, others go on.
        """
        failed: list[str] = []
        self._workdir.mkdir(parents=True, exist_ok=True)
        for step in self._wanted(asked or [*self._steps]):
            if self._is_done(step):
                continue
            if not all(self._is_done(self._steps[name]) for name in step.needs):
                continue
            if not self._run(step):
                failed.append(step.name)
        return failed

    def forget(self, name: str) -> None:
        """Removes all that a step has made, but for its figures."""
        self._state(name).unlink(missing_ok=True)
        shutil.rmtree(self._workdir / name, ignore_errors=True)

    def rows(self) -> list[dict[str, Any]]:
        """A table of all steps: what is done, when, and how long it took."""
        return [self._row(step) for step in self._steps.values()]

    def _row(self, step: Step) -> dict[str, Any]:
        kept = self._read(step)
        begun = f"{kept['finished']} of {len(step.commands)} commands" if kept else "no"
        done = self._is_done(step)
        return {
            "step": step.name,
            "needs": ", ".join(step.needs),
            "expected, min": step.minutes,
            "done": kept["done"] if done else begun,
            "took, min": kept["seconds"] / 60 if done else "",
            "commit": (kept["commit"] or "")[:8] if done else "",
        }

    def _wanted(self, names: Sequence[str]) -> list[Step]:
        """These and those that they need, in the order of the plan."""
        wanted = set(names)
        for step in reversed(self._steps.values()):
            if step.name in wanted:
                wanted |= set(step.needs)
        return [step for step in self._steps.values() if step.name in wanted]

    def _run(self, step: Step) -> bool:
        kept = self._read(step)
        if not kept:
            self.forget(step.name)
            kept = {"stamp": self._stamp(step), "finished": 0, "seconds": 0.0, "done": ""}
            write_json(self._state(step.name), kept)
        for command in step.commands[kept["finished"] :]:
            words = self._words(step, command)
            print(f"\n{step.name}: {shlex.join(['python', *words[1:]])}", flush=True)
            start = time.perf_counter()
            if code := programs.child(words, ROOT):
                print(f"{step.name}: ended with {code}", file=sys.stderr, flush=True)
                return False
            kept["seconds"] += time.perf_counter() - start
            kept["finished"] += 1
            write_json(self._state(step.name), kept)
        if step.metrics:
            found = {
                name: _collected(Path(self._filled(step, workdir)))
                for name, workdir in step.metrics.items()
            }
            commands = [shlex.join(["python", *self._words(step, c)[1:]]) for c in step.commands]
            about = {"command": commands, "seconds": kept["seconds"]}
            figures.keep(self._results / f"{step.name}.json", found, **about)
        about = figures.about()
        kept |= {"done": about["date"], "commit": about["commit"]}
        write_json(self._state(step.name), kept)
        return True

    def _words(self, step: Step, command: str) -> list[str]:
        name, *flags = shlex.split(command)
        filled = [self._filled(step, flag) for flag in flags]
        return [sys.executable, "-m", f"experiments.{name}", *filled]

    def _filled(self, step: Step, text: str) -> str:
        places = {name: str(self._workdir / name) for name in step.needs}
        places |= {"out": str(self._workdir / step.name), "results": str(self._results)}
        for name, path in places.items():
            text = text.replace(f"{{{name}}}", path)
        return text

    def _state(self, name: str) -> Path:
        return self._workdir / f"{name}.json"

    def _read(self, step: Step) -> dict[str, Any]:
        """What is kept of the step; nothing if that is of other commands or inputs."""
        path = self._state(step.name)
        kept = read_json(path) if path.exists() else {}
        return kept if kept.get("stamp") == self._stamp(step) else {}

    def _is_done(self, step: Step) -> bool:
        return bool(self._read(step).get("done"))

    def _stamp(self, step: Step) -> str:
        """Of commands, and of when what they need was done."""
        needed = [self._read(self._steps[name]).get("done") for name in step.needs]
        return hashlib.sha256(json.dumps([step.commands, needed]).encode()).hexdigest()[:16]


def _collected(workdir: Path) -> dict[str, Any]:
    """What the test of an expert gave, and the seconds of its training."""
    metrics = read_json(workdir / "metrics.json")
    found = {key: metrics[key] for key in _KEPT if key in metrics}
    if "attributes" in metrics:
        found["attributes"] = {
            name: {key: each[key] for key in _OF_ATTRIBUTES if key in each}
            for name, each in metrics["attributes"].items()
        }
    if costs := Costs(workdir).steps:
        found["seconds"] = sum(cost.seconds for cost in costs)
    return found
