"""What modules compute in, and how exactly, as Flax's own modules are told."""

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest

from probex_jax.encoders import Dense, MVProbe, ProbeX
from probex_jax.encoders.linear import Linear
from probex_jax.heads import ClassHead, TextHead
from probex_jax.matrices import Centred, LowRank
from tests.numeric import draw, error

N, H, W, R, T = 3, 12, 10, 2, 5
SMALL = {"n_probes": 4, "proj_dim": 3, "rep_dim": T}
FACTORS = LowRank(draw(1, N, H, R), draw(2, N, R, W))
MATRICES = {
    "dense": draw(0, N, H, W),
    "factors": FACTORS,
    "centred": Centred(FACTORS, draw(3, H, W)),
}
ENCODERS = {
    "probex": (ProbeX, SMALL),
    "mvprobe": (MVProbe, SMALL),
    "dense": (Dense, {"rep_dim": T}),
    "standardised": (Dense, {"rep_dim": T, "standardise": True}),
}
E_NT = draw(4, N, T)
HEADS = {
    "linear": (Linear, {"features": 4}, (E_NT,)),
    "class": (ClassHead, {"n_classes": 4}, (E_NT,)),
    "text": (TextHead, {"rep_dim": T, "logit_scale": 2.0}, (E_NT, draw(5, 3, 6))),
}
CASES = {
    **{f"{e}, {k}": (*ENCODERS[e], (x,)) for e in ENCODERS for k, x in MATRICES.items()},
    **HEADS,
}


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inside in jax.extend.core.jaxprs_in_params(equation.params):
            yield from equations(inside)


def products(module, variables, inputs):
    program = jax.make_jaxpr(module.apply)(variables, *inputs)
    return [e for e in equations(program.jaxpr) if e.primitive.name == "dot_general"]


# What takes longest to compile is of make parity.
SLOW = {"mvprobe, centred": pytest.mark.parity}
PARAMETERS = [pytest.param(case, marks=SLOW.get(case, ())) for case in CASES]


@pytest.mark.parametrize("case", PARAMETERS)
def test_all_products_are_in_the_dtype_that_is_asked_for(case):
    kind, settings, inputs = CASES[case]
    variables = jax.jit(kind(**settings).init)(jax.random.key(0), *inputs)
    expected = jax.jit(kind(**settings).apply)(variables, *inputs)
    half = kind(**settings, dtype=jnp.bfloat16)
    found = jax.jit(half.apply)(variables, *inputs)
    assert found.dtype == jnp.bfloat16
    assert 0 < error(found, np.asarray(expected, np.float64)) < 0.05
    gradient = jax.grad(lambda v: jnp.sum(half.apply(v, *inputs).astype(jnp.float32)))(variables)
    for leaf in jax.tree.leaves(gradient):
        assert leaf.dtype == jnp.float32
        assert np.isfinite(leaf).all()
    # Means and deviations of factors are products, too: those are in float32.
    if not (("mvprobe" in case or "standardised" in case) and "dense" not in case.split(", ")[-1]):
        dtypes = {v.aval.dtype for e in products(half, variables, inputs) for v in e.invars}
        assert dtypes == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("case", CASES)
def test_parameters_are_of_param_dtype_and_promoted_with_the_input(case):
    kind, settings, inputs = CASES[case]
    module = kind(**settings, param_dtype=jnp.bfloat16)
    found, variables = module.init_with_output(jax.random.key(0), *inputs)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.bfloat16)}
    assert found.dtype == jnp.float32
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), inputs)
    assert module.apply(variables, *low).dtype == jnp.bfloat16
    # As Flax: float32 parameters lift a bfloat16 input.
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), variables)
    assert module.apply(wide, *low).dtype == jnp.float32


@pytest.mark.parametrize("precision", ["highest", jax.lax.Precision.HIGHEST])
@pytest.mark.parametrize("case", CASES)
def test_all_products_have_the_precision_that_is_asked_for(case, precision):
    kind, settings, inputs = CASES[case]
    module = kind(**settings, precision=precision)
    variables = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    found = [e.params["precision"] for e in products(module, variables, inputs)]
    highest = jax.lax.Precision.HIGHEST
    assert found
    assert all(p in (highest, (highest, highest)) for p in found)
    default = products(kind(**settings), variables, inputs)
    assert {e.params["precision"] for e in default} == {None}


def test_prepared_matrices_follow_the_dtype():
    x = draw(0, N, 7, 7)
    encoder = MVProbe(**SMALL, dtype=jnp.bfloat16)
    variables = encoder.init(jax.random.key(0), x)
    kept = encoder.prepare(x)
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {jnp.dtype(jnp.bfloat16)}
    expected = np.asarray(MVProbe(**SMALL).apply(variables, x), np.float64)
    for read in (kept, kept[np.arange(N)]):
        assert error(encoder.apply(variables, read), expected) < 0.05


@pytest.mark.parametrize(("kind", "value"), [*((kind, 0) for kind in MATRICES), ("dense", 2)])
def test_half_precision_does_not_divide_by_zero(kind, value):
    """In float16 both 1e-8 and 1e-16 are zero."""
    x = jax.tree.map(lambda leaf: jnp.full_like(leaf, value), MATRICES[kind])
    for encoder in (MVProbe, Dense):
        settings = SMALL if encoder is MVProbe else {"rep_dim": T}
        module = encoder(**settings, standardise=True, dtype=jnp.float16)
        found, _ = module.init_with_output(jax.random.key(0), x)
        assert found.dtype == jnp.float16
        assert np.isfinite(found).all()
    head = TextHead(T, 2.0, dtype=jnp.float16)
    assert np.isfinite(head.init_with_output(jax.random.key(0), 0 * E_NT, draw(5, 3, 6))[0]).all()


def test_an_unknown_branch_is_named():
    with pytest.raises(ValueError, match="xux"):
        MVProbe(**SMALL, branches=("xu", "xux"))
    with pytest.raises(ValueError, match="branches"):
        MVProbe(**SMALL, branches=())
