"""Models of one architecture in several containers: one zoo, one store."""

import json

import jax
import numpy as np
import pytest
from flax import serialization
from flax.traverse_util import flatten_dict
from orbax.checkpoint import v1 as ocp
from safetensors.numpy import save_file

import probex_jax as px
from tests.model_files.containers.flax_model import drawn, twin


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*:UserWarning")
def test_one_store_of_models_in_every_container(tmp_path):
    variables = drawn()
    models = tmp_path / "zoo" / "models"
    for name in ("flax", "torch"):
        (models / name).mkdir(parents=True)
    (models / "flax" / "flax_model.msgpack").write_bytes(serialization.to_bytes(variables))
    save_file(twin(variables), models / "torch" / "model.safetensors")
    np.savez(models / "archive.npz", **flatten_dict(jax.device_get(variables), sep="/"))
    ocp.save_pytree(models / "run" / "10" / "default", variables)
    rows = {name: ["ant"] for name in ("flax", "torch", "archive.npz", "run")}
    (tmp_path / "zoo" / "labels.json").write_text(json.dumps(rows))
    zoo = px.scan(tmp_path / "zoo")
    assert {model.id for model in zoo.models} == {"flax", "torch", "archive", "run"}
    px.pack(zoo, tmp_path / "store")
    store = px.LayerStore.open(tmp_path / "store")
    assert len(store.models) == 4
    assert "attention.query.weight" in store.layers
    assert len({model.content_hash for model in store.models}) == 1
