"""Predicted attributes in words."""

import math

import pytest

from probex_jax.reports.attributes import number


@pytest.mark.parametrize(
    ("value", "width", "shown"),
    [
        (0.002134, 0.0025, "0.0021"),
        (0.9312, 0.057, "0.931"),
        (812.3, 502, "810"),
        (1243.2, 31, "1,243"),
        (1e-4, 0.01, "0.00010"),
        (0.0, 1.0, "0"),
        (-3.14159, 0.5, "-3.14"),
        (2.13e-7, 1e-7, "2.1e-07"),
        (9.6, 30.0, "9.6"),
        (99.6, 300.0, "100"),
        (12.0, 0.0, "12"),
        (0.5, math.inf, "0.50"),
    ],
)
def test_a_number_has_as_many_digits_as_its_interval_makes_sensible(value, width, shown):
    assert number(value, width) == shown


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_an_interval_may_have_no_end(value):
    assert not any(c.isdigit() for c in number(value, math.inf))
