"""The options of the commands: configs, `--help` on one screen, a line about what is wrong."""

import difflib
import inspect
import re
import runpy
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags.config_flags import ConfigFileFlagParser

from probex_jax.errors import ProbexError

flags.disclaim_key_flags()  # a config is the flag of the command that asks for it

# What ends a command's parsing: config files are Python, and a wrong value shows as any of these.
MISTAKES = (flags.Error, OSError, AttributeError, KeyError, TypeError, ValueError, ProbexError)

_HELP = {"--help", "-help", "-h", "--helpshort", "-helpshort", "-?"}
# Whose configs/ are found from any folder.
_OURS = Path(__file__).resolve().parents[1]
_WIDEST = 100
_INDENT = 24


def config(default: str, help_text: str) -> flags.FlagHolder[Any]:
    """The flag --config: a file, any field of which is a flag, too, as --config.recipe.seed=1.

    Args:
      default: the file unless another is given.
      help_text: what the config says.

    Returns:
      The flag, whose value is the locked config.
    """
    # Not the current folder's: its files run only if they are named.
    default = str(_OURS / default)
    _check_fields(sys.argv[1:], default)
    flag: flags.FlagHolder[Any] = config_flags.DEFINE_config_file("config", None, help_text)
    flags.FLAGS["config"].parser = _ConfigParser("config")
    flags.set_default(flag, default)
    return flag


class _ConfigParser(ConfigFileFlagParser):
    """Takes the places that `load` takes."""

    def parse(self, path: str) -> ConfigDict:
        file, *size = path.split(":", 1)
        return super().parse(":".join([str(_file(file)), *size]))


def _file(path: str) -> Path:
    """A config's file: in the current folder, or else one of ours."""
    beside = _OURS / path
    return beside if beside.is_file() and not Path(path).is_file() else Path(path)


def _shown(place: object) -> str:
    return str(place).removeprefix(f"{_OURS}/")


def _check_fields(argv: Sequence[str], default: str) -> None:
    """ml_collections says of a field that is not there nothing but its name, and with a traceback.

    Raises:
      ProbexError: if there is no such config, size of it, or field, or it is of another command.
    """
    place = _place(argv, default)
    loaded = load(place)
    if len(set(loaded) & set(load(default))) < 2:  # `layers` is of several
        raise ProbexError(
            f"--config={place}: not a config of this command; its own is {_shown(default)}"
        )
    for argument in argv:
        if named := re.match(r"--?(?:no)?config\.([^=]+)", argument):
            check_field(loaded, _shown(place), named[1])


def _place(argv: Sequence[str], default: str) -> str:
    given = re.findall(r"^--?config[=\n](.*)$", "\n".join(argv), re.MULTILINE)
    return given[-1] if given else default


def load(place: str) -> ConfigDict:
    path, _, size = place.partition(":")
    if not _file(path).is_file():
        close = difflib.get_close_matches(Path(path).stem, _known(), n=1)
        hint = f"did you mean configs/{close[0]}.py?" if close else _choice()
        raise ProbexError(f"--config={place}: no such file; {hint}")
    try:
        names = runpy.run_path(str(_file(path)))
    except SyntaxError as error:
        raise ProbexError(f"--config={place}: not Python, in line {error.lineno}") from None
    if "get_config" not in names:
        raise ProbexError(f"--config={place}: not a config: it has no get_config(); {_choice()}")
    get_config = names["get_config"]
    if size and not inspect.signature(get_config).parameters:
        raise ProbexError(f"--config={place}: {path} has one size only; leave out :{size}")
    try:
        return get_config(*([size] if size else []))
    except ValueError as error:
        raise ProbexError(f"--config={place}: {error}") from None


def _known() -> list[str]:
    """The configs in the current folder, and ours."""
    found = [path for at in (Path(), _OURS) for path in (at / "configs").glob("*.py")]
    return sorted(
        {path.stem for path in found if "\ndef get_config(" in path.read_text(encoding="utf-8")}
    )


def _choice() -> str:
    return f"choose configs/NAME.py, NAME being one of {', '.join(_known())}"


def check_field(loaded: ConfigDict, place: str, field: str) -> None:
    inside, section = loaded, "config"
    for part in field.split("."):
        if not isinstance(inside, ConfigDict):
            raise ProbexError(f"{place}: {section} is a value, {inside!r}, and has no fields")
        if part not in inside:
            close = difflib.get_close_matches(part, inside, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(inside)}"
            raise ProbexError(f"{place}: {section} has no field {part!r}; {hint}")
        inside, section = inside[part], f"{section}.{part}"


def is_asked_for_help(argv: Sequence[str]) -> bool:
    """Whether help is among the arguments; absl's own flags it shows with --helpfull alone."""
    return bool(_HELP & set(argv))


def screen(about: str) -> str:
    """What --help prints: what the command does, an example, and its own options.

    Args:
      about: the docstring of the command.

    Returns:
      Lines as wide as the terminal, at most 100 columns.
    """
    own = sorted(_own_flags(), key=lambda flag: not _is_required(flag))
    lines = [_filled(about), "", "Options:"]
    for flag in own:
        lines += _described(flag)
    for flag in own:
        if flag.name == "config":
            place = _place(sys.argv[1:], _default(flag))
            path = _file(place.partition(":")[0])
            also = (
                " and what it imports"
                if "from configs import" in path.read_text(encoding="utf-8")
                else ""
            )
            told = f"Fields, explained in {_shown(path)}{also}, each given as --config.FIELD=VALUE:"
            lines += ["", *_wrapped(told, "", "")]
            lines += _wrapped(", ".join(_fields(load(place))), "  ", "  ")
    return "\n".join(lines)


def _filled(about: str) -> str:
    """A docstring for this terminal; lists and examples, which are indented, stay as they are."""
    paragraphs = about.strip().split("\n\n")
    return "\n\n".join(
        part if "\n  " in f"\n{part}" else "\n".join(_wrapped(part, "", "")) for part in paragraphs
    )


def _own_flags() -> list[flags.Flag]:
    """Those of this project, the command's own first: not absl's, nor fields of configs."""
    by_module = flags.FLAGS.flags_by_module_dict()
    modules = [name for name in by_module if name.startswith("experiments.")]
    own = [flag for name in (sys.argv[0], *modules) for flag in by_module.get(name, ())]
    return [flag for flag in own if "." not in flag.name]


def _default(flag: flags.Flag) -> str:
    return (flag.default_as_str or "").strip("'").replace("None", "")


def _is_required(flag: flags.Flag) -> bool:
    return any("other than None" in validator.message for validator in flag.validators)


def _described(flag: flags.Flag) -> list[str]:
    choices = "|".join(getattr(flag.parser, "enum_values", ()))
    # absl puts the choices before what is said, and behind it that a flag may be repeated.
    told = flag.help.removeprefix(f"<{choices}>: ").split(";\n")[0].strip()
    if _is_required(flag):
        told += " Must be given."
    elif _default(flag) and not flag.boolean:
        told += f" Default: {_shown(_default(flag))}."
    named = f"[no]{flag.name}" if flag.boolean else f"{flag.name}={choices or _kind(flag)}"
    return _wrapped(told, f"  --{named} ".ljust(_INDENT), " " * _INDENT)


def _kind(flag: flags.Flag) -> str:
    return {"ListParser": "A,B,…", "IntegerParser": "N"}.get(type(flag.parser).__name__, "VALUE")


def _wrapped(text: str, first: str, rest: str) -> list[str]:
    return textwrap.wrap(
        text,
        max(60, min(_WIDEST, shutil.get_terminal_size((_WIDEST, 0)).columns)),
        initial_indent=first,
        subsequent_indent=rest,
        break_on_hyphens=False,
    )


def _fields(inside: ConfigDict, section: str = "") -> Iterator[str]:
    for name, value in inside.items():
        if isinstance(value, ConfigDict):
            yield from _fields(value, f"{section}{name}.")
        else:
            yield f"{section}{name}"


def in_one_line(error: Exception) -> str:
    """What is wrong, in the words of whoever typed the command."""
    if isinstance(error, flags.UnrecognizedFlagError):
        names = {name.removeprefix("config."): name for name in _names()}
        close = difflib.get_close_matches(error.flagname, names, n=1)
        meant = f"did you mean --{names[close[0]]}?" if close else "--help lists what there is"
        return f"no option --{error.flagname}; {meant}"
    missing = [f"--{flag.name}" for flag in _own_flags() if _is_missing(flag)]
    if missing and isinstance(error, flags.IllegalFlagValueError) and "than None" in str(error):
        return f"give {_listed(missing, 'and')}; --help says what for, with an example"
    if isinstance(error, flags.IllegalFlagValueError) and (told := _expected(str(error))):
        return told
    if named := re.fullmatch(r"Missing value for flag (--\S+)", str(error)):
        return f"{named[1]} needs a value: {named[1]}=VALUE"
    return first_and_last_line(error)


def _names() -> Iterator[str]:
    """Of the command's options, fields of its config included."""
    for flag in _own_flags():
        yield flag.name
        if flag.name == "config":
            fields = _fields(load(_place(sys.argv[1:], _default(flag))))
            yield from (f"config.{field}" for field in fields)


def _listed(names: Sequence[str], last: str) -> str:
    return f" {last} ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _expected(message: str) -> str:
    """Of a value that absl cannot take: what it should be; "" of what only absl knows."""
    found = re.match(r"flag --([\w.]+)=(.*?): ", message, re.DOTALL)
    if found is None or found[1] not in flags.FLAGS:
        return ""
    parser = flags.FLAGS[found[1]].parser
    if isinstance(parser, flags.EnumParser):
        wanted = _listed(parser.enum_values, "or")
    elif isinstance(parser, flags.BooleanParser):
        wanted = "true or false"
    elif isinstance(parser, flags.IntegerParser | flags.FloatParser):
        wanted = "a whole number" if isinstance(parser, flags.IntegerParser) else "a number"
        if parser.lower_bound is not None:
            most = parser.upper_bound
            wanted += f", {parser.lower_bound} or more" if most is None else ""
            wanted += f" from {parser.lower_bound} to {most}" if most is not None else ""
    elif type(parser).__name__ == "_ConfigDictParser":
        wanted = f"one of its fields, as --{found[1]}.FIELD=VALUE"
    else:
        return ""
    return f"--{found[1]}={found[2]}: expected {wanted}"


def _is_missing(flag: flags.Flag) -> bool:
    return _is_required(flag) and flag.value is None


def first_and_last_line(error: Exception) -> str:
    """What is wrong, without the traceback that ml_collections puts between."""
    lines = str(error.args[0] if isinstance(error, KeyError) else error).strip().splitlines()
    return " ".join(line.strip() for line in dict.fromkeys([lines[0], lines[-1]]))
