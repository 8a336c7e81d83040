"""What is read of a Flax model, in a module of PyTorch: the same outputs."""

import numpy as np
import pytest
from flax import serialization

from probex_jax.model_files import open_model
from tests.model_files.containers.flax_model import HEADS, WIDTH, Model, inputs, trained

pytestmark = pytest.mark.parity


def test_a_trained_flax_model_gives_the_same_outputs_in_pytorch(tmp_path):
    torch = pytest.importorskip("torch")
    nn = torch.nn

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            for name in ("query", "key", "value", "out"):
                setattr(self, name, nn.Linear(WIDTH, WIDTH))

        def forward(self, x):
            parts = (self.query(x), self.key(x), self.value(x))
            q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
            out = nn.functional.scaled_dot_product_attention(q, k, v)
            return self.out(out.transpose(1, 2).flatten(2))

    class Twin(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, WIDTH, (5, 3), padding="same")
            self.norm = nn.BatchNorm2d(WIDTH)
            self.words = nn.Embedding(7, WIDTH)
            self.conv_1d = nn.Conv1d(WIDTH, WIDTH, 3, padding="same")
            self.attention = Attention()
            self.last = nn.LayerNorm(WIDTH, eps=1e-6)
            self.inner, self.head = nn.Linear(WIDTH, 5), nn.Linear(5, 3)

        def forward(self, images, words):
            x = self.norm(self.stem(images.movedim(-1, 1)))
            x = x.flatten(2).transpose(1, 2) + self.words(words)[:, None]
            x = self.conv_1d(x.transpose(1, 2)).transpose(1, 2)
            x = self.last(x + self.attention(x))
            return self.head(torch.relu(self.inner(x.mean(1))))

    variables = trained()
    images, words = inputs()
    expected = Model().apply(variables, images, words)
    (tmp_path / "flax_model.msgpack").write_bytes(serialization.to_bytes(variables))
    module = Twin().eval()
    state = {}
    with open_model(tmp_path) as m:
        for name, value in module.state_dict().items():
            if name.endswith("num_batches_tracked"):
                state[name] = value
            else:
                state[name] = torch.tensor(m.matrix(name)).reshape(value.shape)
        assert {*m.all_layers} == {n for n in state if not n.endswith("num_batches_tracked")}
    module.load_state_dict(state)
    with torch.no_grad():
        found = module(torch.tensor(images), torch.tensor(words)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
