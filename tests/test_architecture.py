"""The arrows between the rooms, and the map of public names."""

import subprocess
import sys
from pathlib import Path

import probex_jax as px

ROOT = Path(__file__).parents[1]


def test_import_contracts_hold():
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_public_names_are_there_and_documented():
    for name in px.__all__:
        assert getattr(px, name).__doc__, name


def test_no_room_is_missing_from_the_map():
    text = (ROOT / "WORKSPACE.md").read_text()
    for path in (ROOT / "probex_jax").iterdir():
        if path.suffix == ".py" or (path / "__init__.py").exists():
            assert f"`probex_jax/{path.name}" in text, path.name
