"""An encoder and a loss of one's own, in as few lines as docs/encoders.md promises."""

import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import probex_jax as px
from tests.numeric import draw

CLASSES = ("one", "two", "three")


class Decayed(nn.Module):
    rep_dim: int = 8
    decay: float = 0.9

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.rep_dim)(jnp.einsum("nhw,h->nw", x, self.decay ** jnp.arange(6.0)))


def focal(logits, y):
    p = jax.nn.sigmoid((2 * y - 1) * logits)
    return -jnp.mean((1 - p) ** 2 * jnp.log(p), axis=1)


def user_code(x, y, val, optimiser):
    recipe = px.Adam(epochs=40, learning_rate=0.02)
    encoder = Decayed(decay=0.75)
    return px.fit(encoder, x, y, val=val, loss=focal, recipe=recipe, optimiser=optimiser)


def test_it_is_short():
    code = "".join(map(inspect.getsource, (Decayed, focal, user_code)))
    assert sum(bool(line.strip()) for line in code.splitlines()) < 15


@pytest.mark.parametrize("optimiser", [None, optax.adamw(0.02)], ids=["adam", "adamw"])
def test_an_encoder_of_one_s_own_is_trained_kept_and_loaded(tmp_path, optimiser):
    x = draw(0, 80, 6, 5)
    y = np.asarray(x[:, 0, :3] + 0.5 * x[:, 1, :3] > 0).astype(int)
    found = user_code(x[:60], y[:60], (x[60:], y[60:]), optimiser)
    assert found.figures["accuracy"] > found.figures["chance"] + 0.2
    own = {"decayed": Decayed}
    about = {"tree": "Mini", "layer": "fc", "classes": CLASSES}
    with pytest.raises(px.ProbexError, match="Decayed"):
        px.Expert.of(found, **about)
    expert = px.Expert.of(found, **about, encoders=own)
    assert expert.card.members[0].encoder == {"name": "decayed", "rep_dim": 8, "decay": 0.75}
    expert.save(tmp_path / "e")
    with pytest.raises(px.ProbexError, match="decayed"):
        px.Expert.load(tmp_path / "e")
    loaded = px.Expert.load(tmp_path / "e", encoders=own)
    assert loaded.card == expert.card
    np.testing.assert_array_equal(loaded.logits(x), expert.logits(x))
    np.testing.assert_allclose(loaded.logits(x), found.logits(x), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(loaded.probabilities(x), found.predictions(x), rtol=1e-5)
