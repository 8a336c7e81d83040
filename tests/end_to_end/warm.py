"""Commands in processes that need not import the libraries: forked from one that has.

Each is what `python -m experiments.NAME` is, to its last exit handler; but JAX and all else that
takes seconds to import is there. For the many runs that end before they begin.
"""

import atexit
import functools
import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(command, *arguments, env=None):
    """Runs a command to its end, as `test_commands.run` does; `env` is added to its own."""
    server = _server()
    argv = [f"experiments.{command}", *map(str, arguments)]
    print(json.dumps([argv, env or {}]), file=server.stdin, flush=True)
    return subprocess.CompletedProcess(argv, **json.loads(server.stdout.readline()))


@functools.cache
def _server():
    server = subprocess.Popen(
        [sys.executable, "-c", "from tests.end_to_end import warm; warm.serve()"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(server.communicate)  # the end of its input ends it
    return server


def serve():
    """Runs the command of each line of standard input; answers with a line about its end."""
    import experiments.steps  # noqa: F401 (has no flags of its own)

    # What the hub's client imports when it is first used.
    importlib.import_module("huggingface_hub.hf_api")
    # What lays out the maps of reports.
    importlib.import_module("sklearn.manifold")
    # Most of what LanceDB imports; itself it starts threads, which a fork does not survive.
    importlib.import_module("lance_namespace")
    for line in sys.stdin:
        with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
            child = os.fork()
            if not child:
                _become(*json.loads(line), stdout, stderr)
            _, status = os.waitpid(child, 0)
            ended = {"returncode": os.waitstatus_to_exitcode(status)}
            for name, file in (("stdout", stdout), ("stderr", stderr)):
                file.seek(0)
                ended[name] = file.read().decode()
        print(json.dumps(ended), flush=True)


def _become(argv, env, stdout, stderr):
    os.environ.update(env)
    with open(os.devnull) as nothing:
        for number, file in enumerate((nothing, stdout, stderr)):
            os.dup2(file.fileno(), number)
    sys.argv, code = argv, 0
    try:
        runpy.run_module(argv[0], run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    # All of an exit but taking the interpreter apart, which is most of the time of a short run.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
