"""Work in threads of this process: order, what is read ahead, errors, early ends."""

import threading
import time

import pytest

from probex_jax import ProbexError
from probex_jax.engine import HERE, Cluster, Work, engine_of, flattened, in_parts
from probex_jax.engine.crew import Task


def doubled(part, numbers):
    return [2 * number for number in numbers]


def test_parts_come_in_order_with_a_result_for_each_item():
    def slow_if_even(number):
        time.sleep(0.01 * (number % 2 == 0))
        return number

    done = list(HERE.map(lambda: Work(slow_if_even, doubled), in_parts(range(20), 3), readers=4))
    assert [part for part, _ in done] == list(in_parts(range(20), 3))
    assert list(flattened(done)) == [(n, 2 * n) for n in range(20)]


def test_few_parts_are_read_ahead_by_so_many_threads():
    lock, running, most, begun = threading.Lock(), 0, 0, []

    def read(number):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
            begun.append(number)
        time.sleep(0.005)
        with lock:
            running -= 1

    work = Work(read, lambda part, read: list(part))
    for part, _ in HERE.map(lambda: work, in_parts(range(40), 2), readers=3, ahead=2):
        assert len(begun) <= part[-1] + 1 + 2 * 2
    assert (most, sorted(begun)) == (3, list(range(40)))


def test_the_consumer_s_thread_computes_one_part_after_the_other():
    threads = []
    work = Work(str, lambda part, read: threads.append(threading.current_thread()) or read)
    assert len(list(HERE.map(lambda: work, in_parts(range(6), 2)))) == 3
    assert set(threads) == {threading.current_thread()}


@pytest.mark.parametrize("where", ["read", "compute"])
def test_what_raises_is_raised_and_the_work_closed(where):
    closed = []

    def fail(*_):
        raise KeyError("here")

    parts = {"read": (fail, doubled), "compute": (int, fail)}[where]
    with pytest.raises(KeyError):
        list(HERE.map(lambda: Work(*parts, lambda: closed.append(0)), [(1,)]))
    assert closed


def test_whoever_ends_early_closes_the_work_and_waits_for_nothing():
    ended = threading.Event()
    work = Work(lambda n: n and ended.wait(60), doubled, ended.set)
    done = HERE.map(lambda: Work(work.read, lambda part, _: part, ended.set), [(0,), (1,), (2,)])
    next(done)
    start = time.monotonic()
    done.close()
    assert ended.is_set()
    assert time.monotonic() - start < 30


@pytest.mark.parametrize("spec", ["", "ray", "ray:", "ray:host", "dask:auto", "ray:a b:1", "auto"])
def test_a_name_of_no_engine_is_one_line(spec):
    with pytest.raises(ProbexError) as error:
        engine_of(spec)
    assert "\n" not in str(error.value)


def test_workers_belong_to_a_cluster():
    assert engine_of("ray:auto", 3) == Cluster("auto", 3)
    with pytest.raises(ProbexError, match="3 workers"):
        engine_of("threads", 3)


def test_an_address_where_no_cluster_is_is_one_line():
    pytest.importorskip("ray")
    with pytest.raises(ProbexError, match=r"^ray:127\.0\.0\.1:1: ") as error:
        list(engine_of("ray:127.0.0.1:1").map(lambda: Work(int, doubled), [(1,)]))
    assert "\n" not in str(error.value)


def lives(task, poison, most=50):
    """What becomes of a task of which some items end whoever works on them; calls until then."""
    calls = 0
    while task.results is None:
        calls += 1
        assert calls < most
        items = [task.part[place] for place in task.places]
        task.die() if poison & set(items) else task.succeed([item.upper() for item in items])
    return calls


@pytest.mark.parametrize("part", ["a", "ab", "abcde"])
@pytest.mark.parametrize("poison", ["", "a", "c", "ad", "abcde"])
def test_an_item_that_ends_three_workers_is_left_out_and_the_rest_is_done_together(part, poison):
    task = Task(part)
    lives(task, set(poison))
    for item, result in zip(part, task.results, strict=True):
        if item in poison:
            assert isinstance(result, ProbexError)
        else:
            assert result == item.upper()


def test_a_part_whose_items_live_alone_is_no_suspect_any_more():
    task = Task("ab")
    for _ in range(2):
        task.die()
    for item in "ab":
        task.succeed([item])
    assert (task.places, task.is_suspect, task.results) == ([0, 1], False, None)


def test_a_worker_that_died_by_itself_costs_no_item():
    task = Task("abc")
    task.die()
    assert (task.places, task.is_suspect) == ([0, 1, 2], True)
    task.succeed("ABC")
    assert task.results == ["A", "B", "C"]
