"""Lists the commands: `python -m experiments`."""

import ast
import re
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
    return dict(sorted(found.items(), key=lambda item: "." in item[0]))


def main() -> int:
    given = sys.argv[1:]
    if given and given[0] not in ("--help", "-h"):
        print(f"error: write python -m experiments.{given[0]}", file=sys.stderr)
        return 2
    print("Run a command as python -m experiments.NAME, and add --help to have it explained:\n")
    found = commands()
    width = max(map(len, found)) + 2
    for name, about in found.items():
        print(f"  {name:{width}}{about}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
