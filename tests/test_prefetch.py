"""Order, bounds, errors and early ends of calls in threads."""

import threading
import time

import pytest

from probex_jax.prefetch import prefetch


def test_results_come_in_order_whichever_is_ready_first():
    def slow_if_even(number):
        time.sleep(0.01 * (number % 2 == 0))
        return -number

    assert list(prefetch(slow_if_even, range(20), 4)) == [(n, -n) for n in range(20)]


def test_threads_and_items_ahead_are_bounded():
    lock, running, most, begun = threading.Lock(), 0, 0, []

    def work(number):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
            begun.append(number)
        time.sleep(0.005)
        with lock:
            running -= 1

    for taken, _ in enumerate(prefetch(work, range(30), 3), start=1):
        assert len(begun) <= taken + 4
    assert most == 3


def test_an_error_comes_in_its_place_and_ends_the_rest():
    done = []

    def work(number):
        if number == 2:
            raise KeyError("two")
        done.append(number)
        return number

    results = prefetch(work, iter(range(1000)), 2)
    assert [next(results), next(results)] == [(0, 0), (1, 1)]
    with pytest.raises(KeyError, match="two"):
        next(results)
    assert len(done) < 10


def test_a_consumer_that_stops_ends_the_threads():
    before, begun = {*threading.enumerate()}, []
    results = prefetch(begun.append, iter(range(1000)), 2)
    assert next(results) == (0, None)
    results.close()
    for thread in {*threading.enumerate()} - before:
        thread.join(10)
        assert not thread.is_alive()
    assert len(begun) < 10


def test_a_consumer_that_stops_starts_no_more_and_waits_for_calls_it_can_stop():
    stopped, ended = threading.Event(), []

    def work(number):
        stopped.wait(10 if number else 0)
        ended.append(number)

    results = prefetch(work, iter(range(1000)), 2, stop=stopped.set)
    assert next(results) == (0, None)
    results.close()
    assert {0, 1} <= {*ended}
    assert len(ended) < 10
