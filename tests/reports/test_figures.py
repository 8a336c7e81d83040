from itertools import pairwise

import numpy as np
import pytest

from probex_jax.reports import accuracy_by_layer
from probex_jax.reports.figures import predicted_against_true, svg_image


def test_a_longer_bar_paints_more_pixels(tmp_path):
    """The picture follows the numbers: the bar of the better layer is the longer one."""
    from matplotlib.image import imread

    painted = {}
    for value in (0.6, 0.9):
        path = tmp_path / f"{value}.png"
        accuracy_by_layer({"Tree": {"ProbeX": {"a.weight": value}}}, path, {"Tree": 0.5})
        pixels = imread(path)[..., :3]
        painted[value] = np.sum(np.abs(pixels - np.array([0, 0x72, 0xB2]) / 255).max(-1) < 0.02)
    assert painted[0.9] > 1.5 * painted[0.6] > 0


def test_bars_begin_at_chance(tmp_path):
    from matplotlib.image import imread

    pictures = []
    for name, chance in (("half", {"Tree": 0.5}), ("most", {"Tree": 0.85}), ("unknown", {})):
        path = tmp_path / f"{name}.png"
        accuracy_by_layer({"Tree": {"ProbeX": {"a.weight": 0.9}}}, path, chance)
        pixels = imread(path)[..., :3]
        blue = np.abs(pixels - np.array([0, 0x72, 0xB2]) / 255).max(-1) < 0.02
        pictures.append(blue.any(axis=0).sum() / blue.shape[1])
    assert pictures[1] < pictures[0] < pictures[2]


def test_names_of_strangers_are_drawn_as_they_are(tmp_path):
    """No formula begins in them, and a letter that no font here has is no warning."""
    name = "$\\nothing$ <b>\x00 \N{CJK UNIFIED IDEOGRAPH-4E2D}" * 3
    figure = accuracy_by_layer({name: {name: {name: 0.7}}}, tmp_path / "a.png", {name: 0.5})
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert svg_image(lambda: figure, name) == svg_image(lambda: figure, name)


def test_pictures_of_many_methods_are_small():
    methods = {name: {"a.weight": 0.7, "b.weight": 0.8} for name in "pqrs"}
    assert len(svg_image(lambda: accuracy_by_layer({"Tree": methods}), "four")) < 100_000


@pytest.mark.parametrize("decades", [1, 4, 15])
def test_numbers_at_logarithmic_axes_do_not_lie_on_one_another(decades):
    true = np.logspace(-decades, 0, 50)
    figure = predicted_against_true(true, 1.2 * true, None, log=True)
    figure.draw_without_rendering()
    axis = figure.axes[0].xaxis
    ends = axis.get_view_interval()
    labels = [one.label1 for one in axis.get_major_ticks() if ends[0] <= one.get_loc() <= ends[1]]
    boxes = [label.get_window_extent() for label in labels if label.get_text()]
    assert len(boxes) >= 2
    assert all(one.x1 < other.x0 for one, other in pairwise(boxes))
