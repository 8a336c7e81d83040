"""The benchmark on planted models: what it measures, and that it goes on where it was."""

import json
import subprocess
import sys

import pytest


@pytest.mark.parity
def test_every_step_is_measured_once(tmp_path):
    command = [sys.executable, "-m", "experiments.benchmarks.planted", "--size=tiny", "--noadam"]
    command.append(f"--workdir={tmp_path}")
    first = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rows = {row["what"]: row for row in json.loads((tmp_path / "results.json").read_text())}
    assert [*rows] == [
        "planting",
        "packing",
        "default",
        "ridge on all entries",
        "default, first layer",
        "growing a forest",
        "describing a model",
    ]
    for row in rows.values():
        assert row["process, s"] > 0
        assert row["peak, MiB"] > 50
        assert row["on disk, MB"] > 0
    for what in ("default", "ridge on all entries", "default, first layer"):
        assert 0 < rows[what]["training, s"] < rows[what]["process, s"]
        assert 0 < rows[what]["expert, MB"] <= rows[what]["on disk, MB"]
        assert rows[what]["chance"] < rows[what]["accuracy on planted models"] <= 1
    again = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert again == first
