"""A program for tests: encoders on batches sharded over 8 devices, which are made of one CPU."""

import contextlib
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from probex_jax.encoders import Dense, MVProbe, ProbeX, statistics
from probex_jax.experts import objective
from probex_jax.heads import ClassHead, TextHead
from probex_jax.matrices import Centred, LowRank, Squared
from tests.numeric import error

N, H, W, R, T = 16, 9, 8, 2, 5
SMALL = {"n_probes": 4, "proj_dim": 3, "rep_dim": T}
ENCODERS = {
    "probex": ProbeX(**SMALL),
    "probex, left first": ProbeX(n_probes=40, proj_dim=1, rep_dim=T),
    "mvprobe": MVProbe(**SMALL),
    "dense": Dense(T),
    "standardised": Dense(T, standardise=True),
}
KINDS = ("dense", "factors", "centred")
# Mesh axes, and how the models are divided among them.
MESHES = {"one axis": ({"m": 8}, P("m")), "two axes": ({"x": 4, "y": 2}, P(("x", "y")))}
COLLECTIVES = "all-gather|all-to-all|collective-permute|all-reduce|reduce-scatter"

# Encoder, matrices, type of the axes, mesh, way of calling.
QUICK = (
    *(
        (encoder, "dense", axes, "two axes", "committed")
        for encoder in ENCODERS
        for axes in ("Auto", "Explicit")
    ),
    *(("mvprobe", "centred", axes, "two axes", "committed") for axes in ("Auto", "Explicit")),
    *(
        ("mvprobe", "dense", axes, "one axis", way)
        for axes in ("Auto", "Explicit")
        for way in ("in_shardings", "set_mesh", "set_mesh, host arrays")
    ),
    ("mvprobe", "squared", "Explicit", "one axis", "committed"),
)
SLOW = tuple(
    (encoder, kind, axes, mesh, way)
    for encoder in ENCODERS
    for kind in KINDS
    for axes in ("Auto", "Explicit")
    for mesh in MESHES
    for way in ("committed", "in_shardings", "set_mesh", "set_mesh, host arrays")
)


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


def measured(encoder, kind, axes, mesh, way):
    """One case, against one device."""
    sizes, spec = MESHES[mesh]
    types = (AxisType[axes],) * len(sizes)
    mesh = jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=types)
    model, x = Model(ENCODERS[encoder]), matrices(kind)

    def loss(params, x):
        logits = model.apply(params, x)
        return jnp.mean(logits**2), logits

    gradient = jax.value_and_grad(loss, has_aux=True)
    params = jax.tree.map(np.asarray, jax.jit(model.init)(jax.random.key(0), x))
    expected = jax.jit(gradient)(params, x)

    of_x, whole = shardings(x, mesh, spec), NamedSharding(mesh, P())
    host = way.endswith("host arrays")
    arguments = (params, x) if host else jax.device_put((params, x), (whole, of_x))
    if kind == "squared":
        arguments = (arguments[0], ENCODERS[encoder].prepare(arguments[1]))
        assert isinstance(arguments[1], Squared)
    given = {"in_shardings": (whole, of_x)} if host or way == "in_shardings" else {}
    with jax.set_mesh(mesh) if way.startswith("set_mesh") else contextlib.nullcontext():
        forward = jax.jit(model.apply, **given).lower(*arguments).compile()
        backward = jax.jit(gradient, **given).lower(*arguments).compile()
    found = backward(*arguments)
    return {
        "forward": collectives(forward),
        "backward": collectives(backward),
        "sharded": forward(*arguments).sharding.is_equivalent_to(NamedSharding(mesh, spec), 2),
        "values": largest_error(found[0], expected[0]),
        "gradients": largest_error(found[1], expected[1]),
    }


def others(axes):
    """What else goes through the same products: each against one device."""
    mesh = jax.make_mesh((8,), ("m",), axis_types=(AxisType[axes],))
    x, model = matrices("dense"), Model(ENCODERS["probex"])
    mvprobe = Model(ENCODERS["mvprobe"])
    sharded = jax.device_put(x, NamedSharding(mesh, P("m")))
    initialise = jax.jit(mvprobe.init).lower(jax.random.key(0), sharded).compile()
    params = jax.jit(mvprobe.init)(jax.random.key(0), x)
    started = initialise(jax.random.key(0), sharded)
    yield "init", collectives(initialise), largest_error(started, params)

    functions = {
        "micro-batches": lambda x: objective.in_micro_batches(lambda x: mvprobe.apply(params, x), x),
        "statistics": statistics,
        "vmap": jax.vmap(lambda x: mvprobe.apply(params, x), in_axes=1, out_axes=1),
        "shard_map": jax.shard_map(
            lambda x: mvprobe.apply(params, x), mesh=mesh, in_specs=P("m"), out_specs=P("m")
        ),
    }
    for name, function in functions.items():
        several = name == "vmap"
        batch = np.stack([x, x[::-1]], axis=1) if several else x
        on_mesh = jax.device_put(batch, NamedSharding(mesh, P("m")))
        compiled = jax.jit(function).lower(on_mesh).compile()
        if name == "shard_map":
            function = functions["micro-batches"]
        expected = jax.jit(function)(batch)
        yield name, collectives(compiled), largest_error(compiled(on_mesh), expected)


def main(cases):
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_numpy_rank_promotion", "raise")
    found = {}
    for case in cases:
        try:
            found["; ".join(case)] = measured(*case)
        except Exception as err:
            print("FAIL", case, type(err).__name__, str(err).splitlines()[0][:250], file=sys.stderr)
        else:
            print(case, found["; ".join(case)], file=sys.stderr, flush=True)
    for axes in ("Auto", "Explicit"):
        for r in others(axes): print(axes, r, file=sys.stderr)
    print(json.dumps(found))


if __name__ == "__main__":
    main({"quick": QUICK, "slow": SLOW}[sys.argv[1]])
