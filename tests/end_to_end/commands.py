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
def screen(name, columns=100):
    """What `--help` prints on a terminal of so many columns."""
    done = warm.run(name, "--help", env={"COLUMNS": str(columns)})
    assert (done.returncode, done.stderr) == (0, ""), name
    return done.stdout


@functools.cache
def flags_of(name):
    """Its flags, and those of them that take no value."""
    found = re.findall(r"^  --(\[no\])?(\w+)", screen(name), re.MULTILINE)
    return {flag for _, flag in found}, {flag for no, flag in found if no}


def required_of(name):
    """What must be given: flags, and fields of its config."""
    options = re.split(r"^  --", screen(name), flags=re.MULTILINE)[1:]
    told = {re.search(r"\w+(?==| )", option)[0]: " ".join(option.split()) for option in options}
    found = {flag for flag, text in told.items() if text.endswith("Must be given.")}
    return found | set(re.findall(r"--(config\.\w+), [^.;]*must be given", told.get("config", "")))


# `probex VERB`, but not the method of that name in a table, nor `from probex import`.
COMMAND = r"(?:python -m experiments\.|(?<![\w./-])probex (?=[a-z]))"


def lines_of(text):
    """Commands in a text of shell or a screen of help: `probex …` or `python -m experiments.…`.

    Each is one line.

    The bare name of a command in a sentence mentions it, and gets an ellipsis for what is left out;
    but behind a colon or a bracket it is what the reader shall run.
    """
    text = re.sub(r"\\\n\s*", " ", text)
    text = re.sub(rf"`({COMMAND}[^`]*)`", lambda m: " ".join(m[0].split()), text)
    text = re.sub(
        rf"([:(]\s*)?`({COMMAND}[\w.]+)`",
        lambda m: m[0] if m[1] else f"`{m[2]} …`",
        text,
    )
    return [found.strip() for found in re.findall(rf"{COMMAND}[^\n`|>]*", text)]


def faults(line, made=()):
    """What a command would not understand of a line; paths and values are not looked at.

    `made` are configs that are not in the repository, but made by who reads the line's page. A word
    that is an ellipsis stands for flags that are left out.
    """
    name = re.sub(COMMAND, "", line).split()[0]
    if name == "NAME":
        return
    if name not in names():
        yield f"no command {name}"
        return
    taken, booleans = flags_of(name)
    place = _default_config(name)
    line = line.split("  #")[0]
    given = re.findall(r"(?<![\w-])--([\w.]+)(?:=([^\s'\"]*))?", line)
    missing = required_of(name) - {flag for flag, _ in given}
    if missing and "…" not in line.split() and not HIDDEN & {flag for flag, _ in given}:
        yield f"{name} lacks --{', --'.join(sorted(missing))}"
    for flag, value in given:
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
