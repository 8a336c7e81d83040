"""A program for tests: encoders on batches sharded over 8 devices, which are made of one CPU."""

import contextlib
import json
import re
import sys
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from probex_jax.encoders import Dense, MVProbe, ProbeX, Statistics, statistics
from probex_jax.fitting import inference
from probex_jax.heads import ClassHead, TextHead
from probex_jax.matrices import Centred, LowRank, Squared, squared
from tests.numeric import error

N, H, W, R, T = 16, 9, 8, 2, 5
SMALL = {"n_probes": 4, "proj_dim": 3, "rep_dim": T}
ENCODERS = {
    "probex": ProbeX(**SMALL),
    "probex, left first": ProbeX(n_probes=40, proj_dim=1, rep_dim=T),
    "mvprobe": MVProbe(**SMALL),
    # The other two branches do the same with the transpose: half to compile.
    "half of mvprobe": MVProbe(**SMALL, branches=("xu", "xxtu")),
    "dense": Dense(T),
    "standardised": Dense(T, standardise=True),
    "statistics": Statistics(T),
}
# Mesh axes, and how the models are divided among them.
MESHES = {"one axis": ({"m": 8}, P("m")), "two axes": ({"x": 4, "y": 2}, P(("x", "y")))}
COLLECTIVES = "all-gather|all-to-all|collective-permute|all-reduce|reduce-scatter"

# Encoder, matrices, type of the axes, mesh, way of calling.
QUICK = (
    ("probex", "dense", "Auto", "two axes", "committed"),
    ("probex", "dense", "Explicit", "two axes", "set_mesh"),
    ("half of mvprobe", "dense", "Auto", "one axis", "set_mesh, host arrays"),
    ("mvprobe", "dense", "Explicit", "two axes", "in_shardings"),
    ("half of mvprobe", "centred", "Explicit", "two axes", "committed"),
    ("standardised", "dense", "Explicit", "one axis", "committed"),
    ("statistics", "dense", "Auto", "one axis", "set_mesh"),
)
SLOW = (
    *(
        (encoder, kind, axes, mesh, "committed")
        for encoder in ENCODERS
        if encoder != "half of mvprobe"
        for kind in ("dense", "squared", "factors", "centred")
        if kind != "squared" or encoder == "mvprobe"
        for axes in ("Auto", "Explicit")
        for mesh in MESHES
    ),
    *(
        (encoder, "dense", axes, "one axis", way)
        for encoder in ENCODERS
        if encoder != "half of mvprobe"
        for axes in ("Auto", "Explicit")
        for way in ("in_shardings", "set_mesh", "set_mesh, host arrays")
        # Explicit axes type an array from the host as replicated.
        if (axes, way) != ("Explicit", "set_mesh, host arrays")
    ),
)
CASES = {"quick": QUICK, "slow": SLOW}


class Model(nn.Module):
    """An encoder with both heads on it, as a user would compose them."""

    encoder: nn.Module

    @nn.compact
    def __call__(self, x):
        e_NT = self.encoder(x)
        texts = TextHead(T, logit_scale=2.0)(e_NT, jnp.ones([3, 6]))
        return jnp.concatenate([ClassHead(4)(e_NT), texts], axis=1)


def matrices(kind):
    """A batch in host memory."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.normal(size=shape).astype(np.float32)

    if kind in ("dense", "squared"):
        return draw(N, H, W)
    factors = LowRank(draw(N, H, R), draw(N, R, W))
    return factors if kind == "factors" else Centred(factors, draw(H, W))


def shardings(x, mesh, spec):
    """Of a batch: all but a centre is divided."""
    divided = jax.tree.map(lambda leaf: NamedSharding(mesh, spec), x)
    if isinstance(x, Centred):
        return Centred(divided.factors, NamedSharding(mesh, P()))
    return divided


def collectives(compiled):
    """The kinds of communication in a compiled program."""
    return sorted(set(re.findall(COLLECTIVES, compiled.as_text())))


def largest_error(actual, expected):
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    return max(float(error(a, e)) for a, e in pairs)


@cache
def alone(encoder, kind):
    """Parameters, and the loss with logits and the gradients, on one device."""
    x = matrices(kind)
    shapes = jax.eval_shape(Model(ENCODERS[encoder]).init, jax.random.key(0), x)
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda s: rng.uniform(-0.5, 0.5, s.shape).astype(s.dtype), shapes)
    return params, jax.jit(with_gradient(encoder))(params, x)


def with_gradient(encoder):
    """A user's own loss of parameters and matrices, with logits and gradient."""

    def loss(params, x):
        logits = Model(ENCODERS[encoder]).apply(params, x)
        return jnp.mean(logits**2), logits

    return jax.value_and_grad(loss, has_aux=True)


def measured(encoder, kind, axes, mesh, way):
    """One case, against one device."""
    mesh, spec = made(mesh, axes)
    model, x, (params, expected) = Model(ENCODERS[encoder]), matrices(kind), alone(encoder, kind)
    of_x, whole = shardings(x, mesh, spec), NamedSharding(mesh, P())
    host = way.endswith("host arrays")
    arguments = (params, x) if host else jax.device_put((params, x), (whole, of_x))
    if kind == "squared":
        arguments = (arguments[0], ENCODERS[encoder].prepare(arguments[1]))
        assert isinstance(arguments[1], Squared)
    given = {"in_shardings": (whole, of_x)} if host or way == "in_shardings" else {}
    with jax.set_mesh(mesh) if way.startswith("set_mesh") else contextlib.nullcontext():
        forward = jax.jit(model.apply, **given).lower(*arguments).compile()
        backward = jax.jit(with_gradient(encoder), **given).lower(*arguments).compile()
    logits = forward(*arguments)
    (value, found), gradient = backward(*arguments)
    return {
        "forward": collectives(forward),
        "backward": collectives(backward),
        "sharded": all(
            array.sharding.is_equivalent_to(NamedSharding(mesh, spec), 2)
            for array in (logits, found)
        ),
        "error": largest_error((logits, (value, found), gradient), (expected[0][1], *expected)),
    }


def made(mesh, axes):
    """A mesh, and how the models are divided among its axes."""
    sizes, spec = MESHES[mesh]
    types = (AxisType[axes],) * len(sizes)
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=types), spec


def others(axes):
    """What else reads a batch that is sharded: name, collectives, error against one device."""
    mesh, spec = made("one axis", axes)
    on_mesh, x, model = NamedSharding(mesh, spec), matrices("dense"), Model(ENCODERS["probex"])
    key, (params, ((_, logits), _)) = jax.random.key(0), alone("probex", "dense")
    apply = partial(model.apply, params)
    mvprobe, of_mvprobe = Model(ENCODERS["half of mvprobe"]), alone("half of mvprobe", "dense")[0]
    backwards = np.stack([x, x[::-1]], axis=1)
    cases = {
        "init": (partial(model.init, key), x, jax.jit(model.init)(key, x)),
        "micro-batches": (partial(inference.in_micro_batches, apply), x, logits),
        "statistics": (statistics, x, jax.jit(statistics)(x)),
        "squared": (squared, x, squared(x)),
        "vmap": (
            jax.vmap(apply, in_axes=1, out_axes=1),
            backwards,
            np.stack([logits, logits[::-1]], axis=1),
        ),
        "shard_map": (
            jax.shard_map(
                partial(mvprobe.apply, of_mvprobe), mesh=mesh, in_specs=spec, out_specs=spec
            ),
            x,
            alone("half of mvprobe", "dense")[1][0][1],
        ),
    }
    for name, (function, batch, expected) in cases.items():
        sharded = jax.device_put(batch, on_mesh)
        compiled = jax.jit(function).lower(sharded).compile()
        yield name, collectives(compiled), largest_error(compiled(sharded), expected)


def prepare():
    """A CPU of eight devices that takes every batch in micro-batches, as it does large matrices."""
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_numpy_rank_promotion", "raise")
    inference.MICRO_BATCH_BYTES = 1e3


def main(which):
    prepare()
    found = {"; ".join(case): tried(measured, *case) for case in CASES[which]}
    for axes in ("Auto", "Explicit") if which == "slow" else ("Explicit",):
        found[f"others; {axes}"] = tried(lambda axes: list(others(axes)), axes)
    print(json.dumps(found))


def tried(function, *arguments):
    """What it returns, or the error that it raises, so that every case has a result."""
    try:
        return function(*arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    main(sys.argv[1])
