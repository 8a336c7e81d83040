"""Jobs divided among processes that run the same sweep in the same work directory.

What one of them is training it holds a lock on, which the system takes back when it dies; whatever
is left goes to whoever is free.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from probex_jax.files import alone
from probex_jax.fitting.sharding import Devices
from probex_jax.sweeps.jobs import Job


def run(
    jobs: Sequence[Job],
    folder: Path,
    share: tuple[int, int],
    devices: Devices,
    is_finished: Callable[[Job], bool],
    finish: Callable[[Iterator[Job]], None],
    skipped: Callable[[Job], None],
) -> None:
    """Has jobs finished that are not, here or in other processes; arguments as of `divided`.

    Args:
      devices: whose processes agree on what is finished.
    """
    done = devices.agree([is_finished(job) for job in jobs])
    for job in itertools.compress(jobs, done):
        skipped(job)
    todo = [job for job, is_done in zip(jobs, done, strict=True) if not is_done]
    if share[1] == 1:
        finish(iter(todo))
    else:
        divided(todo, folder, share, is_finished, finish, skipped)


def divided(
    jobs: Sequence[Job],
    folder: Path,
    share: tuple[int, int],
    is_finished: Callable[[Job], bool],
    finish: Callable[[Iterator[Job]], None],
    skipped: Callable[[Job], None],
) -> None:
    """Has jobs finished that are not, each by one process.

    Args:
      jobs: all of them, in the same order in every process.
      folder: where the locks are.
      share: (p, P): this is one of P processes; each begins with its own share.
      is_finished: whether a job is finished, by whomever.
      finish: trains those of an iterator, each while its lock is held.
      skipped: called with a job that another process finished.
    """
    place, processes = share
    first = place * len(jobs) // processes
    others: list[Job] = []
    folder.mkdir(parents=True, exist_ok=True)

    def unfinished(job: Job) -> Iterator[Job]:
        if is_finished(job):
            skipped(job)
        else:
            yield job

    def free() -> Iterator[Job]:
        for job in [*jobs[first:], *jobs[:first]]:
            lock = folder / f"{job.key}.lock"
            with alone(lock, wait=False, needed=processes > 1) as ours:
                if ours:
                    yield from unfinished(job)
                else:
                    others.append(job)

    finish(free())
    for job in others:  # whoever works on it finishes it, or dies
        with alone(folder / f"{job.key}.lock"):
            finish(unfinished(job))
