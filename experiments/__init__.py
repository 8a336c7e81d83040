"""The commands: one thin absl binary per verb, run as `probex NAME`."""

import sys
from importlib.util import find_spec
from pathlib import Path

# Here and not in a command: these cannot be imported where something is missing.
_NEEDED = ("absl", "jax", "flax", "ml_collections", "tqdm")

if sys.version_info < (3, 11):  # noqa: UP036 (whoever has not installed it can run this)
    print("error: probex_jax needs Python 3.11 or newer", file=sys.stderr)
    sys.exit(2)
if find_spec("fcntl") is None:
    print("error: probex_jax runs on Linux and macOS; on Windows use WSL", file=sys.stderr)
    sys.exit(2)
if _missing := [name for name in _NEEDED if find_spec(name) is None]:
    _made = Path(__file__).resolve().parents[1] / ".venv"
    if _made.parent.name == "_commands":
        _hint = "run pip install 'probex_jax[demo]'"
    elif (_made / "bin" / "python").exists() and _made.resolve() != Path(sys.prefix).resolve():
        _hint = "make put them into .venv: run . .venv/bin/activate, or use .venv/bin/python"
    else:
        _hint = "in the repository's folder run pip install -e '.[demo]', or make demo"
    print(f"error: {', '.join(_missing)} not installed here; {_hint}", file=sys.stderr)
    sys.exit(2)
