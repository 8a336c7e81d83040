"""Work in threads: order, bounds, errors, ends."""

import threading
import time

import pytest

from probex_jax.ahead import ahead


def test_results_come_in_order_whichever_is_ready_first():
    def slow_if_even(number):
        time.sleep(0.01 * (number % 2 == 0))
        return -number

    assert list(ahead(slow_if_even, range(20), 4)) == [(n, -n) for n in range(20)]


def test_no_more_than_asked_for_at_a_time_and_none_far_ahead():
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

    for taken, _ in enumerate(ahead(work, range(30), 3), start=1):
        assert len(begun) <= taken + 4
    assert most == 3


def test_an_error_comes_in_its_place_and_ends_the_rest():
    done = []

    def work(number):
        if number == 2:
            raise KeyError("two")
        done.append(number)
        return number

    results = ahead(work, iter(range(1000)), 2)
    assert [next(results), next(results)] == [(0, 0), (1, 1)]
    with pytest.raises(KeyError, match="two"):
        next(results)
    assert len(done) < 10


def test_calls_that_are_told_to_end_are_waited_for():
    stopped, ended = threading.Event(), []

    def work(number):
        stopped.wait(10 if number else 0)
        ended.append(number)

    results = ahead(work, range(3), 2, stop=stopped.set)
    assert next(results) == (0, None)
    results.close()
    assert {0, 1} <= {*ended}


def test_whoever_stops_taking_ends_it():
    begun = []
    results = ahead(begun.append, iter(range(1000)), 2)
    next(results)
    results.close()
    assert len(begun) < 10
