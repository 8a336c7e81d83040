"""Lists the commands and runs them: `probex VERB`, or `python -m experiments VERB`."""

import ast
import difflib
import re
import runpy
import signal
import sys
from pathlib import Path

_FOLDER = Path(__file__).parent


def commands() -> dict[str, str]:
    """What each command does, by its docstring's first line; the benchmarks come last."""
    found = {}
    for path in sorted(_FOLDER.rglob("*.py"), key=lambda path: (len(path.parts), path)):
        text = path.read_text(encoding="utf-8")
        if re.search(r"^    cli\.run(_with_arguments)?\(", text, re.MULTILINE):
            module = path.parent if path.stem == "__main__" else path.with_suffix("")
            about = ast.get_docstring(ast.parse(text)) or ""
            first = re.split(r";|\.?\n", about, maxsplit=1)[0]
            found[".".join(module.relative_to(_FOLDER).parts)] = first
    if not (_FOLDER / "benchmarks").is_dir():  # they are not installed
        del found["benchmark"]
    return dict(sorted(found.items(), key=lambda item: "." in item[0]))


def main() -> int:
    found, given = commands(), sys.argv[1:]
    if given and given[0] not in ("--help", "-h"):
        if given[0] in found:
            sys.argv = given
            runpy.run_module(f"experiments.{given[0]}", run_name="__main__", alter_sys=True)
            return 0
        close = difflib.get_close_matches(given[0].lower(), found, n=1)
        hint = f"did you mean {close[0]}?" if close else "probex --help lists them"
        print(f"error: no command {given[0]!r}; {hint}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # whoever reads may have seen enough
    print("Run a command as probex NAME, and add --help to have it explained:\n")
    width = max(map(len, found)) + 2
    for name, about in found.items():
        print(f"  {name:{width}}{about}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
