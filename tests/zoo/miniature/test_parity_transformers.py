"""The zoo's files in transformers: every tensor used, the same logits, the recorded accuracy."""

import ast

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

from probex_jax.zoo.miniature import TREES, Settings, build, data, hf_files
from probex_jax.zoo.miniature.kinds import Classifiers

_TREES = [name for name, kind in TREES.items() if isinstance(kind, Classifiers)]
_SETTINGS = Settings(
    trees=tuple(_TREES),
    models=6,
    seed=3,
    chosen=10,
    steps=(100, 120),
    learning_rates=(1e-3, 3e-3),
    weight_decays=(1e-4, 1e-2),
    batch_size=16,
    pretraining_steps=300,
    pretraining_batch_size=16,
    pretraining_rate=2e-3,
    models_at_once=3,
)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    out = tmp_path_factory.mktemp("zoo")
    build(_SETTINGS, out)
    return out


def _logits_in_transformers(folder, images_BSS):
    import torch
    import transformers

    model, report = transformers.AutoModelForImageClassification.from_pretrained(
        folder, output_loading_info=True
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        assert not report.get(kind), (kind, report)
    with torch.no_grad():
        pixels_B1SS = torch.from_numpy(np.ascontiguousarray(images_BSS))[:, None]
        return model.eval()(pixel_values=pixels_B1SS).logits.numpy(), model.config


@pytest.mark.parity
@pytest.mark.parametrize("tree", _TREES)
def test_fine_tuned_models_score_in_transformers_what_their_files_say(zoo, tree):
    architecture = TREES[tree].architecture(_SETTINGS)
    held_back = data.load(architecture.image_size).held_back
    folders = sorted((zoo / tree).glob("*/models--*/snapshots/*"))
    assert len(folders) == _SETTINGS.models
    for folder in folders:
        with safe_open(folder / "model.safetensors", framework="numpy") as file:
            metadata = file.metadata()
        chosen = ast.literal_eval(metadata["dataset_chosen_targets"])
        images_YNSS = held_back[[data.CLASSES.index(name) for name in chosen]]
        images_BSS = images_YNSS.reshape(-1, *images_YNSS.shape[2:])
        theirs_BY, config = _logits_in_transformers(folder, images_BSS)
        params = hf_files.load(folder / "model.safetensors")
        ours_YB, _ = architecture.apply(params, jnp.asarray(images_BSS))
        np.testing.assert_allclose(ours_YB.T, theirs_BY, atol=1e-4, rtol=1e-4)
        assert [config.id2label[index] for index in range(len(chosen))] == chosen
        labels_B = np.repeat(np.arange(len(chosen)), images_YNSS.shape[1])
        right = (theirs_BY.argmax(1) == labels_B).sum()
        # One image may stand on the edge between two classes.
        assert abs(right - float(metadata["accuracy"]) * len(labels_B)) <= 1.01
        # Guessing gets a tenth; the least that these models get is .44.
        assert right > 0.3 * len(labels_B), "hardly trained: a vacuous test"


@pytest.mark.parity
@pytest.mark.parametrize("tree", _TREES)
def test_roots_load_in_transformers_and_agree(zoo, tree):
    architecture = TREES[tree].architecture(_SETTINGS)
    images_BSS = data.load(architecture.image_size).held_back[:, 0]
    theirs_BY, config = _logits_in_transformers(zoo / tree / "root", images_BSS)
    params = hf_files.load(zoo / tree / "root" / "model.safetensors")
    ours_YB, _ = architecture.apply(params, jnp.asarray(images_BSS))
    np.testing.assert_allclose(ours_YB.T, theirs_BY, atol=1e-4, rtol=1e-4)
    assert tuple(config.id2label.values()) == data.ROOT_CLASSES
