"""`probex VERB`: what `python -m experiments.VERB` does in a checkout, wherever it is."""

import os
import runpy
import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
# Where a wheel holds experiments/ and configs/, so that they hide nobody's modules of these names.
_INSTALLED = _HERE / "probex_jax" / "_commands"


def main() -> None:
    """Runs the command that is the first argument; processes that it starts find it, too."""
    folder = str(_INSTALLED if _INSTALLED.is_dir() else _HERE)
    sys.path.insert(0, folder)
    paths = [folder, *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    runpy.run_module("experiments", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
