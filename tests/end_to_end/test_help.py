"""`--help` of every command: one screen, what it does, an example that works, no noise."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.end_to_end import commands, test_commands, warm

NAMES = list(commands.names())
pytestmark = pytest.mark.xdist_group("commands")


def test_all_commands_are_found():
    assert {"demo", "describe", "train", "benchmark", "benchmarks.accuracy"} <= set(NAMES)


@pytest.mark.parametrize("columns", [80, 100])
@pytest.mark.parametrize("name", NAMES)
def test_help_fits_the_terminal(name, columns):
    lines = commands.screen(name, columns).splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= columns


def test_help_is_no_wider_than_can_be_read():
    assert commands.screen("train", 250) == commands.screen("train", 100)


@pytest.mark.parametrize("name", NAMES)
def test_help_says_what_for_and_shows_a_command_that_is_understood(name):
    lines = commands.screen(name).splitlines()
    assert len(lines[0].split()) > 5
    examples = commands.lines_of(commands.screen(name).split("\nOptions:")[0])
    assert examples
    for example in examples:
        assert re.match(rf"(probex |python -m experiments\.){re.escape(name)}\b", example)
        assert not list(commands.faults(example)), example


def test_help_is_of_the_command_alone_and_names_the_fields_of_the_config_given():
    text = commands.screen("train")
    assert "recipe.penalties" in text
    assert "--workdir=VALUE       Folder of the results. Must be given." in text
    assert "Fields, explained in configs/default.py, each given as --config.FIELD=VALUE:" in text
    assert "[no]cluster" in text
    for noise in ("absl", "logtostderr", "pdb", "flagfile", "helpfull", str(commands.ROOT)):
        assert noise not in text
    other = warm.run("train", "-h", "--config=configs/probex.py:mini").stdout
    assert "encoder.n_probes" in other
    assert "recipe.penalties" not in other
    assert "logtostderr" in warm.run("train", "--helpfull").stdout


def test_help_in_a_process_of_its_own(monkeypatch):
    """As a user starts a command, whose sys.argv[0] is a path."""
    monkeypatch.setenv("COLUMNS", "100")
    done = test_commands.run("build_zoo", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == commands.screen("build_zoo")


def test_help_that_nobody_reads_to_its_end_leaves_no_traceback():
    """As in `--help | head`."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "experiments.pack", "--help"]
    done = subprocess.run(command, cwd=commands.ROOT, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("probex trian --workdir=W", "no command trian"),
        ("probex train --wokdir=W", "train has no --wokdir"),
        ("probex train … --config.recipe.epochs=3", "no field 'epochs'"),
        ("probex train … --config=probex", "no config"),
        ("probex describe --nojson --forest=F a.safetensors --nope", "no --nope"),
        ("python -m experiments.benchmarks.routing", "routing lacks --forest, --zoos"),
        ("probex train --workdir=W", "train lacks --config.store"),
        ("probex pack --zoo=Z  # --store=S", "pack lacks --store"),
    ],
)
def test_a_command_that_is_not_understood_is_noticed(line, fault):
    assert any(fault in found for found in commands.faults(line))


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("    make\n    probex pack \\\n        --zoo=Z\n", ["--zoo=Z"]),
        ("`probex train\n--workdir=W`", ["--workdir=W"]),
        ("Packed by `probex pack`.", ["…"]),
        ("| `probex pack` | packs |", ["…"]),
        ("All of them:\n  `probex pack`.", [""]),
        ("All of them (`probex pack`).", [""]),
    ],
)
def test_a_bare_name_is_a_mention_unless_it_is_what_to_run(text, lines):
    found = [line.split(maxsplit=2)[2:] for line in commands.lines_of(text)]
    assert found == [line.split() for line in lines]


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_the_package_lists_its_commands(arguments):
    done = package(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    title, empty, *rows = done.stdout.splitlines()
    assert "--help" in title
    assert not empty
    assert max(map(len, rows)) <= 100
    listed = [row.split(maxsplit=1) for row in rows]
    assert sorted(name for name, _ in listed) == sorted(NAMES)
    for name, about in listed:
        assert " ".join(commands.screen(name).split()).startswith(about)


def package(*arguments):
    command = [sys.executable, "-m", "experiments", *arguments]
    return subprocess.run(command, cwd=commands.ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("lacking", "message"),
    [
        ("sys.modules['tqdm'] = None", "error: tqdm not installed here; "),
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


@pytest.mark.parametrize("is_made", [False, True])
def test_who_ran_make_is_sent_to_its_environment(tmp_path, is_made):
    (tmp_path / "experiments").mkdir()
    shutil.copy(commands.ROOT / "experiments" / "__init__.py", tmp_path / "experiments")
    if is_made:
        (tmp_path / ".venv" / "bin").mkdir(parents=True)
        (tmp_path / ".venv" / "bin" / "python").touch()
    code = "import sys; sys.modules['tqdm'] = None; import experiments"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert (". .venv/bin/activate" in done.stderr) == is_made
    assert ("make demo" in done.stderr) == (not is_made)


def test_make_page_before_the_demo_says_what_to_run_first(tmp_path):
    # A dry run: should the check be missing, nothing is installed.
    command = ["make", "--dry-run", "--no-print-directory", "page", f"WORKDIR={tmp_path}"]
    # `make test` hands its own flags and level down.
    own = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(command, cwd=commands.ROOT, capture_output=True, text=True, env=own)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{tmp_path} has no forest yet: run make demo first" in done.stderr
    assert done.stderr.count("\n") == 1
