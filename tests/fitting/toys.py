"""What tests of fitting share: splits of noise, a training from start to end, comparisons."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from probex_jax.fitting import SeveralClasses, Split, Texts, build_network
from probex_jax.fitting.group import Group, select
from probex_jax.matrices import Centred, LowRank

PROBEX = {"name": "probex", "n_probes": 4, "proj_dim": 4, "rep_dim": 8}
NETWORK = build_network(PROBEX, "class", 3)
ALIGNED = build_network(PROBEX, "text", 3, logit_scale=5.0)
TEXTS = Texts(logit_scale=5.0)


def matrices(rng, n_models, shape=(6, 5), kind="dense"):
    """[N, H, W] of noise, as an array or as factors of rank 2."""

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    if kind == "dense":
        return draw(n_models, *shape)
    factors = LowRank(draw(n_models, shape[0], 2), draw(n_models, 2, shape[1]))
    return factors if kind == "factors" else Centred(factors, draw(*shape))


def split(n_models, seed=0, shape=(6, 5), kind="dense"):
    """Models of some of three classes."""
    rng = np.random.default_rng(seed)
    x = matrices(rng, n_models, shape, kind)
    return Split(x, jnp.asarray(rng.random([n_models, 3]) < 0.5, jnp.float32))


def aligned(n_models, seed=0, kind="dense"):
    """Models of one of three texts each; the texts differ with the seed, their size does not."""
    rng = np.random.default_rng(seed)
    x = matrices(rng, n_models, kind=kind)
    texts = jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)
    return Split(x, jnp.asarray(rng.integers(3, size=n_models), jnp.int32), texts)


def group_of(recipes, splits, network=NETWORK, task=SeveralClasses(), layers=1, **settings):  # noqa: B008
    """The networks of some recipes, for these splits."""
    recipes = recipes if isinstance(recipes, tuple) else (recipes,)
    counts = {name: len(split.y) for name, split in splits.items()}
    return Group(network, task, recipes, layers, counts, **settings)


def stacked(*layers):
    """Splits by name of several layers -> one split each, x [L, N, H, W]."""

    def stack(*splits):
        return splits[0]._replace(x=jax.tree.map(lambda *x: jnp.stack(x), *[s.x for s in splits]))

    return {name: stack(*[layer[name] for layer in layers]) for name in layers[0]}


def trained(recipe, splits, network=NETWORK, task=SeveralClasses(), *, state=None, **settings):  # noqa: B008
    """The final state of one network; `on_evaluation` is given that of one, too."""
    listen = settings.pop("on_evaluation", lambda state: None)
    group, data = group_of(recipe, splits, network, task, **settings), stacked(splits)
    data["train"] = group.prepared(data["train"])
    state = group.initial(data["train"]) if state is None else state
    listening = lambda state: listen(select(state, 0, 0))  # noqa: E731
    return select(group.train(state, data, on_evaluation=listening), 0, 0)


def start(recipe, splits, network=NETWORK, task=SeveralClasses()):  # noqa: B008
    """The state of one network that nothing has trained."""
    return select(group_of(recipe, splits, network, task).initial(stacked(splits)["train"]), 0, 0)


def each(compare, a, b):
    """Compares two trees leaf by leaf."""
    pairs = zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True)
    for (path, left), right in pairs:
        compare(left, right, err_msg=str(path))


assert_same_bits = partial(each, np.testing.assert_array_equal)


def assert_close(a, b, rtol=1e-4, atol=1e-5):
    each(partial(np.testing.assert_allclose, rtol=rtol, atol=atol), a, b)
