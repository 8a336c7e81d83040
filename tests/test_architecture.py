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


def test_what_is_slow_to_import_is_imported_where_it_is_used():
    slow = "matplotlib sklearn scipy.cluster scipy.optimize orbax lancedb starlette huggingface_hub"
    program = (
        "import probex_jax, sys; print(*(name for name in sys.argv[1:] if name in sys.modules))"
    )
    command = [sys.executable, "-c", program, *slow.split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (0, [])


def test_no_file_of_the_library_is_over_400_lines():
    long = {
        path.name: lines
        for path in (ROOT / "probex_jax").rglob("*.py")
        if (lines := len(path.read_text().splitlines())) > 400
    }
    assert not long
