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
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[2]


_OF_BUCKETS = ("AWS_", "GOOGLE_")


def run(command, *arguments, env=None):
    """Runs a command to its end, as `test_commands.run` does; `env` is added to its own."""
    return start(f"experiments.{command}", *arguments, env=env).wait()


def start(module, *arguments, env=None):
    """Starts a module that runs as the main one; returns at once."""
    argv = [module, *map(str, arguments)]
    # Where a test has its bucket stands in variables that the server was begun without.
    buckets = {name: os.environ[name] for name in os.environ if name.startswith(_OF_BUCKETS)}
    return Started(argv, _asked(argv=argv, env=buckets | (env or {}))["pid"])


class Started:
    """A process that was started; it must be waited for."""

    def __init__(self, argv, pid):
        self._argv, self.pid = argv, pid

    def send(self, number):
        """Sends a signal."""
        os.kill(self.pid, number)

    def wait(self):
        """Waits until it has ended, or has stopped: then None."""
        ended = _asked(pid=self.pid)
        return subprocess.CompletedProcess(self._argv, **ended) if ended else None


def _asked(**message):
    server = _server()
    print(json.dumps(message), file=server.stdin, flush=True)
    return json.loads(server.stdout.readline())


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
    """Starts the command of a line of standard input, or waits for one; answers with a line."""
    import experiments.steps  # noqa: F401 (has no flags of its own)

    # What the hub's client imports when it is first used.
    importlib.import_module("huggingface_hub.hf_api")
    # What lays out the maps of reports.
    importlib.import_module("sklearn.manifold")
    # Most of what LanceDB imports; itself it starts threads, which a fork does not survive.
    importlib.import_module("lance_namespace")
    outputs = {}
    for line in sys.stdin:
        message = json.loads(line)
        if "argv" in message:
            files = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115
            child = os.fork()
            if not child:
                _become(message["argv"], message["env"], *files)
            outputs[child], answer = files, {"pid": child}
        else:
            _, status = os.waitpid(message["pid"], os.WUNTRACED)
            answer = {} if os.WIFSTOPPED(status) else _ended(status, *outputs.pop(message["pid"]))
        print(json.dumps(answer), flush=True)


def _ended(status, *files):
    ended = {"returncode": os.waitstatus_to_exitcode(status)}
    for name, file in zip(("stdout", "stderr"), files, strict=True):
        with file:
            file.seek(0)
            ended[name] = file.read().decode()
    return ended


def _become(argv, env, stdout, stderr):
    signal.alarm(300)  # whatever hangs
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
