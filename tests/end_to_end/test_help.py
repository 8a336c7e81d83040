"""`--help` of every command: one screen, what it does, an example that works, no noise."""

import subprocess
import sys

import pytest

from tests.end_to_end import commands, test_commands, warm

NAMES = list(commands.names())
pytestmark = pytest.mark.xdist_group("commands")


def test_all_commands_are_found():
    assert {"demo", "describe", "train", "benchmark", "benchmarks.accuracy"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_help_fits_a_screen_and_shows_a_command_that_is_understood(name):
    lines = commands.screen(name).splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    assert len(lines[0].split()) > 5
    examples = commands.lines_of(commands.screen(name).split("\nOptions:")[0])
    assert examples
    for example in examples:
        assert example.startswith(f"python -m experiments.{name}")
        assert not list(commands.faults(example)), example


def test_help_is_of_the_command_alone_and_names_the_fields_of_the_config_given():
    text = commands.screen("train")
    assert "recipe.penalties" in text
    assert "--workdir=VALUE           Folder of the results. Must be given." in text
    assert "[no]cluster" in text
    for noise in ("absl", "logtostderr", "pdb", "flagfile", "helpfull", str(commands.ROOT)):
        assert noise not in text
    other = warm.run("train", "-h", "--config=configs/probex.py:mini").stdout
    assert "encoder.n_probes" in other
    assert "recipe.penalties" not in other
    assert "logtostderr" in warm.run("train", "--helpfull").stdout


def test_help_in_a_process_of_its_own():
    """As a user starts a command, whose sys.argv[0] is a path."""
    done = test_commands.run("build_zoo", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == commands.screen("build_zoo")


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("python -m experiments.trian --workdir=W", "no command trian"),
        ("python -m experiments.train --wokdir=W", "train has no --wokdir"),
        ("python -m experiments.train --workdir=W --config.recipe.epochs=3", "no field 'epochs'"),
        ("python -m experiments.train --config=probex --workdir=W", "no config"),
        ("python -m experiments.describe --nojson --out=x a.safetensors --nope", "no --nope"),
    ],
)
def test_a_command_that_is_not_understood_is_noticed(line, fault):
    (found,) = commands.faults(line)
    assert fault in found


@pytest.mark.parametrize(
    ("lacking", "message"),
    [
        ("sys.modules['tqdm'] = None", "error: tqdm not installed here; in the repository's"),
        ("sys.modules['fcntl'] = None", "error: probex_jax runs on Linux and macOS"),
        ("sys.version_info = (3, 10, 13)", "error: probex_jax needs Python 3.11 or newer"),
    ],
)
def test_what_is_missing_on_a_new_machine_is_one_line(lacking, message):
    code = f"import sys; {lacking}; import experiments.demo"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=commands.ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1
