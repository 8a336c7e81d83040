"""What every command says of itself, asked once; whether a line of shell would be understood."""

import functools
import re
from pathlib import Path

import ml_collections

from experiments import options
from tests.end_to_end import warm

ROOT = Path(__file__).parents[2]
# Flags of absl, which --help does not show.
HIDDEN = {"help", "helpfull"}


def names():
    """All commands: modules of `experiments` that run when they are the main one."""
    for path in sorted((ROOT / "experiments").rglob("*.py")):
        if re.search(r"^    cli\.run(_with_arguments)?\(", path.read_text(), re.MULTILINE):
            parts = path.relative_to(ROOT / "experiments").with_suffix("").parts
            yield ".".join(part for part in parts if part != "__main__")


@functools.cache
def screen(name):
    """What `--help` prints."""
    done = warm.run(name, "--help")
    assert (done.returncode, done.stderr) == (0, ""), name
    return done.stdout


@functools.cache
def flags_of(name):
    """Its flags, and those of them that take no value."""
    found = re.findall(r"^  --(\[no\])?(\w+)", screen(name), re.MULTILINE)
    return {flag for _, flag in found}, {flag for no, flag in found if no}


def lines_of(text):
    """Commands in a text of shell or a screen of help: `python -m experiments.…`, each one line."""
    text = re.sub(r"\\\n\s*", " ", text)
    return [found.strip() for found in re.findall(r"python -m experiments\.[^\n`|>]*", text)]


def faults(line, made=()):
    """What a command would not understand of a line; paths and values are not looked at.

    `made` are configs that are not in the repository, but made by who reads the line's page.
    """
    name = line.split()[2].removeprefix("experiments.")
    if name == "NAME":
        return
    if name not in names():
        yield f"no command {name}"
        return
    taken, booleans = flags_of(name)
    place = _default_config(name)
    for flag, value in re.findall(r"(?<![\w-])--([\w.]+)(?:=([^\s'\"]*))?", line.split("  #")[0]):
        if flag == "config" and value.split(":")[0] in made:
            place = _default_config(name)
        elif flag == "config":
            place = value
            yield from _config_faults(place)
        elif flag.startswith("config.") and "config" in taken:
            yield from _field_faults(place, flag.removeprefix("config."))
        elif flag not in taken | HIDDEN | {f"no{one}" for one in booleans}:
            yield f"{name} has no --{flag}"


def _default_config(name):
    found = re.search(r"Default:\s+(configs/\w+\.py)", screen(name))
    return found and found[1]


def _config_faults(place):
    if re.search(r"configs/\w+\.py", place) and "*" not in place:
        assert isinstance(_config(place), ml_collections.ConfigDict)
    elif place not in ("", "configs/NAME.py"):
        yield f"--config={place}: no config"


def _field_faults(place, field):
    try:
        options.check_field(_config(place), place, field)
    except (options.ProbexError, TypeError) as error:
        yield str(error)


@functools.cache
def _config(place):
    return options.load(str(ROOT / place))
