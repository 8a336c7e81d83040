"""Networks that are trained side by side, or streamed, are what each is alone."""

import jax
import numpy as np
import pytest

from probex_jax.fitting import Adam, SeveralClasses
from probex_jax.fitting.group import select
from probex_jax.fitting.recipe import variants
from tests.fitting.toys import (
    ALIGNED,
    NETWORK,
    TEXTS,
    aligned,
    assert_close,
    assert_same_bits,
    group_of,
    split,
    stacked,
    trained,
)

RECIPE = Adam(epochs=7, eval_every=3, batch_size=9, learning_rate=3e-3)


def layer(seed, kind="dense"):
    """One layer of the same models: other matrices, the same classes."""
    return {
        name: split(n, place)._replace(x=split(n, seed + place, kind=kind).x)
        for place, (name, n) in enumerate((("train", 25), ("val", 7)))
    }


RATES, SEEDS = {"learning_rate": [1e-5, 1e-2], "l2": [0.0, 0.1]}, {"seed": [0, 3]}
QUICK = [("dense", RATES), ("factors", SEEDS)]
ALL = [(k, g) for k in ("dense", "factors", "centred") for g in ({}, RATES, SEEDS)]


@pytest.mark.parametrize(
    ("kind", "grid"),
    [pytest.param(*case, marks=[pytest.mark.parity] * (case not in QUICK)) for case in ALL],
)
def test_each_of_several_layers_and_variants_is_trained_as_alone(kind, grid):
    layers, recipes = [layer(10, kind), layer(20, kind)], variants(RECIPE, grid)
    group = group_of(recipes, layers[0], layers=2, one_order="seed" not in grid)
    data = stacked(*layers)
    data["train"] = group.prepared(data["train"])
    together = group.train(group.initial(data["train"]), data)
    for place, splits in enumerate(layers):
        for number, recipe in enumerate(recipes):
            assert_close(select(together, place, number), trained(recipe, splits))
    assert len(np.unique(together.loss_E[..., -1])) == 2 * len(recipes), "the test shows nothing"


class Stream:
    """Batches in host memory, as `loop.advance_streamed` takes them."""

    def __init__(self, group, splits):
        self.group, self.splits = group, splits

    def training(self, first_epoch, until):
        if first_epoch < until:
            (orders,) = self.group.orders(first_epoch, until - first_epoch)
            for order in orders:
                yield from self.parts("train", order)

    def evaluation(self, name):
        yield from self.parts(name, np.arange(len(self.splits[name].y)))

    def parts(self, name, order):
        size, whole = self.group.recipe.batch_size, self.splits[name]
        for start in range(0, len(order), size):
            models = order[start : start + size]
            yield whole._replace(x=whole.x[models], y=whole.y[models]), len(models)


@pytest.mark.parametrize("kind", ["dense", "factors"])
@pytest.mark.parametrize(("network", "task"), [(NETWORK, SeveralClasses()), (ALIGNED, TEXTS)])
def test_streamed_batches_are_those_of_memory_and_go_on_to_the_same_bits(network, task, kind):
    """To the rounding of one step: with a rate so small, Adam cannot blow it up."""
    recipe = Adam(epochs=7, eval_every=3, batch_size=9)
    splits = layer(10, kind)
    if task is TEXTS:
        splits = {name: aligned(n, kind=kind) for name, n in (("train", 25), ("val", 7))}
    group, states = group_of(recipe, splits, network, task), []
    stream = Stream(group, splits)
    begun = group.initial(stacked(splits)["train"])
    # The loop gives its memory on: what is kept is copied.
    keep = lambda state: states.append(jax.tree.map(np.array, state))  # noqa: E731
    streamed = group.train(begun, stream=stream, on_evaluation=keep)
    one, resident = select(streamed, 0, 0), trained(recipe, splits, network, task)
    # Not which of equal accuracies is called the best: they are sums in another order.
    assert_close((one.params, one.loss_E), (resident.params, resident.loss_E))
    accuracies = [state.best["val"].accuracy_E for state in (one, resident)]
    np.testing.assert_allclose(*accuracies, rtol=1e-6)
    assert [int(state.epoch) for state in states] == [0, 3, 6, 7]
    for kept in states[:-1]:
        assert_same_bits(group.train(kept, stream=stream), streamed)
