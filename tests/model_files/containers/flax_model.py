"""One small model in Flax, and the same weights under PyTorch's names and axes, written by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training import train_state

HEADS, WIDTH = 2, 6


class Model(nn.Module):
    """A convolution, norms, attention, an embedding and a classifier."""

    @nn.compact
    def __call__(self, images, words, train=False):
        x = nn.Conv(WIDTH, (5, 3), name="stem")(images)
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        x = x.reshape(x.shape[0], -1, WIDTH) + nn.Embed(7, WIDTH, name="words")(words)[:, None]
        x = nn.Conv(WIDTH, (3,), name="conv_1d")(x)
        x = x + nn.MultiHeadDotProductAttention(HEADS, name="attention")(x, x)
        x = nn.LayerNorm(name="last")(x)
        return nn.Dense(3, name="head")(nn.relu(nn.Dense(5, name="inner")(x.mean(1))))


def inputs():
    """Images [N, H, W, C] and words [N]."""
    rng = np.random.default_rng(1)
    return rng.normal(size=(4, 5, 4, 3)).astype("f4"), np.array([0, 3, 6, 2])


def drawn():
    """Random variables, of which nothing is compiled."""
    shapes = jax.eval_shape(Model().init, jax.random.key(0), *inputs())
    rng = np.random.default_rng(2)
    return jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32) + 0.5, shapes)


def trained(steps=3):
    """Variables after a few steps."""
    images, words = map(jnp.asarray, inputs())
    model = Model()
    variables = model.init(jax.random.key(0), images, words)
    state = train_state.TrainState.create(
        apply_fn=model.apply, params=variables["params"], tx=optax.adam(0.05)
    )
    statistics = variables["batch_stats"]

    @jax.jit
    def step(state, statistics):
        def loss(params):
            out, changed = model.apply(
                {"params": params, "batch_stats": statistics},
                images,
                words,
                train=True,
                mutable=["batch_stats"],
            )
            return (out**2).sum(), changed["batch_stats"]

        gradients, statistics = jax.grad(loss, has_aux=True)(state.params)
        return state.apply_gradients(grads=gradients), statistics

    for _ in range(steps):
        state, statistics = step(state, statistics)
    return {"params": state.params, "batch_stats": statistics}


def twin(variables):
    """The tensors of the same model in PyTorch."""
    params = jax.tree.map(np.asarray, variables["params"])
    statistics = jax.tree.map(np.asarray, variables["batch_stats"])
    found = {
        "stem.weight": np.einsum("hwio->oihw", params["stem"]["kernel"]),
        "stem.bias": params["stem"]["bias"],
        "conv_1d.weight": np.einsum("kio->oik", params["conv_1d"]["kernel"]),
        "conv_1d.bias": params["conv_1d"]["bias"],
        "words.weight": params["words"]["embedding"],
        "norm.running_mean": statistics["norm"]["mean"],
        "norm.running_var": statistics["norm"]["var"],
        "norm.num_batches_tracked": np.array(3),
        "attention.out.weight": params["attention"]["out"]["kernel"].reshape(WIDTH, -1).T,
        "attention.out.bias": params["attention"]["out"]["bias"],
    }
    for name in ("norm", "last"):
        found[f"{name}.weight"] = params[name]["scale"]
        found[f"{name}.bias"] = params[name]["bias"]
    for name in ("inner", "head"):
        found[f"{name}.weight"] = params[name]["kernel"].T
        found[f"{name}.bias"] = params[name]["bias"]
    for name in ("query", "key", "value"):
        part = params["attention"][name]
        found[f"attention.{name}.weight"] = part["kernel"].reshape(WIDTH, -1).T
        found[f"attention.{name}.bias"] = part["bias"].ravel()
    return {name: np.ascontiguousarray(value) for name, value in found.items()}
