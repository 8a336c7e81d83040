"""The concepts: what their images are, that they differ, and which are held out."""

import itertools
from collections import Counter

import numpy as np
import pytest

from probex_jax.zoo.miniature import concepts, data


@pytest.fixture(scope="module")
def by_name():
    names = concepts.names(10, 8)
    return dict(zip(names, concepts.load(10, 8).train, strict=True))


def test_concepts_are_every_digit_under_every_transform(by_name):
    assert len(by_name) == 80
    assert set(by_name) == {f"{t} {d}" for t in concepts.TRANSFORMS for d in concepts.DIGITS}
    assert concepts.names(2, 2) == ("upright zero", "upright one", "rotated zero", "rotated one")
    for few, all_of_them in zip(
        concepts.load(2, 2).held_back, concepts.load(10, 8).held_back[[0, 1, 10, 11]], strict=True
    ):
        np.testing.assert_array_equal(few, all_of_them)


def test_transforms_are_what_their_names_say(by_name):
    upright = by_name["upright three"]
    np.testing.assert_array_equal(upright, data.load().train[3])
    np.testing.assert_array_equal(concepts.load(10, 8).held_back[3], data.load().held_back[3])
    np.testing.assert_array_equal(by_name["inverted three"], -upright)
    np.testing.assert_array_equal(by_name["rotated three"][5], np.rot90(upright[5]))
    np.testing.assert_array_equal(by_name["faint three"], (upright - 1) / 2)
    np.testing.assert_array_equal(by_name["shifted three"][:, :, 3:], upright[:, :, :5])
    assert (by_name["shifted three"][:, :, :3] == -1).all()
    np.testing.assert_array_equal(by_name["striped three"][:, 1::2], upright[:, 1::2])
    assert (by_name["striped three"][:, ::2] == -1).all()
    framed = by_name["framed three"].copy()
    np.testing.assert_array_equal(framed[:, 1:-1, 1:-1], upright[:, 1:-1, 1:-1])
    framed[:, 1:-1, 1:-1] = 1
    assert (framed == 1).all()
    dot = np.full((8, 8), -1.0)
    dot[2, 3] = 1
    spread = np.argwhere(concepts._bold(dot) == 1).tolist()
    assert spread == [[2, 3], [2, 4], [3, 3], [3, 4]]


def test_the_nearest_image_tells_the_concept():
    images = concepts.load(10, 8)
    train, held_back = (x.reshape(-1, 64) for x in (images.train, images.held_back))
    nearest = ((train**2).sum(1) - 2 * held_back @ train.T).argmin(1)
    concept = np.repeat(np.arange(80), images.held_back.shape[1])
    assert (nearest // images.train.shape[1] == concept).mean() > 0.975


def test_held_out_concepts_are_balanced_and_share_their_words_with_seen_ones():
    chosen = concepts.held_out(10, 8, np.random.default_rng(0))
    assert len(chosen) == 16
    transforms, digits = (Counter(words) for words in zip(*map(str.split, chosen), strict=True))
    assert transforms == dict.fromkeys(concepts.TRANSFORMS, 2)
    assert set(digits) == set(concepts.DIGITS)
    assert set(digits.values()) == {1, 2}
    assert concepts.held_out(10, 8, np.random.default_rng(1)) != chosen
    for size in itertools.product(range(2, 11), range(2, 9)):
        names = set(concepts.names(*size))
        held_out = concepts.held_out(*size, np.random.default_rng(2))
        assert held_out < names
        assert len(held_out) == max(1, round(size[0] / 5)) * size[1], size
        words = {word for name in names - held_out for word in name.split()}
        assert words == {word for name in names for word in name.split()}, size
