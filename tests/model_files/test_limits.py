"""What a model's description may take, and where links in its folder may lead."""

import json
import re
import shutil
import tracemalloc

import numpy as np
import pytest
from safetensors.numpy import save_file

from probex_jax.errors import ProbexError
from probex_jax.model_files import Limits, fingerprint, open_model, stated_base
from probex_jax.model_files.untrusted_text import json_object

W = np.arange(6, dtype="f4").reshape(2, 3)


def refused(path, fragment, **settings):
    with pytest.raises(ProbexError, match=re.escape(fragment)) as caught:
        open_model(path, limits=Limits(**settings))
    assert str(caught.value).isprintable()


@pytest.fixture
def model(tmp_path):
    (tmp_path / "m").mkdir()
    metadata = {"key": "x" * 100, "k": '[[["", {}'}
    save_file({"a": W, "b": W}, tmp_path / "m" / "model.safetensors", metadata)
    return tmp_path / "m"


def header_bytes(folder):
    return int.from_bytes((folder / "model.safetensors").read_bytes()[:8], "little")


def test_each_limit_holds_to_the_last_one(model):
    size = header_bytes(model)
    just = {"header_bytes": size, "tensors": 2, "depth": 3, "metadata_characters": 113}
    open_model(model, limits=Limits(**just)).close()
    messages = {
        "header_bytes": f"the header is {size} bytes long, the limit is {size - 1}",
        "tensors": "2 tensors, the limit is 1",
        "depth": "nested too deeply, the limit is 2",
        "metadata_characters": "113 characters of metadata, the limit is 112",
    }
    for name, message in messages.items():
        refused(model, message, **(just | {name: just[name] - 1}))


def test_limits_hold_for_all_shards_together(tmp_path):
    for name in "ab":
        save_file({name: W}, tmp_path / f"{name}.safetensors")
    index = {"weight_map": {name: f"{name}.safetensors" for name in "ab"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    open_model(tmp_path, limits=Limits(tensors=2)).close()
    refused(tmp_path, "b.safetensors: with the shards before it 2 tensors, the limit", tensors=1)
    refused(tmp_path, "bytes of headers, the limit is 100", header_bytes=100)
    refused(tmp_path, "index.json is nested too deeply, the limit is 1", depth=1)


def test_configs_are_not_nested_deeply_either(model):
    (model / "config.json").write_text('{"a": ' + "[" * 63 + "]" * 63 + "}")
    with open_model(model) as m:
        assert list(m.config) == ["a"]
    with (
        open_model(model, limits=Limits(depth=63)) as m,
        pytest.raises(ProbexError, match=r"config\.json is nested too deeply, the limit is 63"),
    ):
        _ = m.config


@pytest.mark.parametrize(
    "text",
    [
        r'{"a": "[[[[{,,,,"}',
        r'{"a\"[[[,,,": "\\"}',
        r'{"\\\"[[[[": 1}',
        r'{"\\": "[[,,"}',
        '{"é[[[": ",,,"}',
    ],
)
def test_brackets_and_commas_in_strings_do_not_count(text):
    assert json_object(text.encode(), "x", depth=1, values=1) == json.loads(text)


@pytest.mark.parametrize("text", ['{"a": [1, 2]}', '{"a": [[]]}', '{"a": {"b": {}}}'])
def test_values_are_counted_before_they_are_parsed(text):
    assert json_object(text.encode(), "x", values=3) == json.loads(text)
    with pytest.raises(ProbexError, match="x holds 3 values, the limit is 2"):
        json_object(text.encode(), "x", values=2)


@pytest.mark.parametrize("part", ["[],", "{},", '{"":0},', "0,", "1e9,", '"\\ud800",', "[[["])
def test_a_large_header_takes_little_memory(write_raw, part):
    """A tenth of the default limit, so that the test takes no second."""
    limits = Limits(header_bytes=2_500_000, tensors=25_000)
    header = '{"w": [' + part * (2_490_000 // len(part))
    path = write_raw(header)
    tracemalloc.start()
    try:
        with pytest.raises(ProbexError):
            open_model(path, limits=limits)
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


def test_links_within_the_folder_and_the_folder_itself_are_followed(model, tmp_path):
    (model / "model.safetensors").rename(model / "weights")
    (model / "model.safetensors").symlink_to("weights")
    (model / "config.json").symlink_to(model / "settings")
    (model / "settings").write_text('{"a": 1}')
    (tmp_path / "link").symlink_to(model)
    for path in (model, tmp_path / "link", tmp_path / "link" / "model.safetensors"):
        with open_model(path) as m:
            assert m.config == {"a": 1}
            np.testing.assert_array_equal(m.matrix("a"), W)


def test_a_link_that_the_user_names_is_followed(model, tmp_path):
    (tmp_path / "mine").mkdir()
    link = tmp_path / "mine" / "link.safetensors"
    link.symlink_to(model / "model.safetensors")
    with open_model(link) as m:
        np.testing.assert_array_equal(m.matrix("a"), W)
    refused(tmp_path / "mine", "link.safetensors: a link that leads out of the model's folder, to")


@pytest.mark.parametrize("name", ["model.safetensors", "only.safetensors"])
def test_links_that_lead_out_are_refused(model, tmp_path, name):
    (tmp_path / "n").mkdir()
    for target in ("../m/model.safetensors", model / "model.safetensors"):
        (tmp_path / "n" / name).symlink_to(target)
        refused(tmp_path / "n", f"{name}: a link that leads out of the model's folder, to ")
        (tmp_path / "n" / name).unlink()


def test_a_folder_of_a_similar_name_is_outside(model, tmp_path):
    shutil.copytree(model, tmp_path / "m2")
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").symlink_to("../m2/model.safetensors")
    refused(model, "leads out of the model's folder")


def test_shards_and_indexes_are_no_links_that_lead_out(model, tmp_path):
    index = tmp_path / "n" / "model.safetensors.index.json"
    index.parent.mkdir()
    index.write_text('{"weight_map": {"a": "x.safetensors", "b": "x.safetensors"}}')
    (tmp_path / "n" / "x.safetensors").symlink_to(model / "model.safetensors")
    refused(tmp_path / "n", "x.safetensors: a link that leads out")
    index.rename(tmp_path / "index")
    index.symlink_to("../index")
    refused(tmp_path / "n", "model.safetensors.index.json: a link that leads out")


def test_what_lies_beside_is_no_link_that_leads_out(model, tmp_path):
    (tmp_path / "secret").write_text('{"_name_or_path": "a/b", "base_model_name_or_path": "a/b"}')
    (tmp_path / "card").write_text("---\nbase_model: a/b\n---\n")
    for name in ("config.json", "adapter_config.json"):
        (model / name).symlink_to("../secret")
    (model / "README.md").symlink_to("../card")
    with open_model(model) as m:
        assert stated_base(m) == ""
        for name in ("config.json", "adapter_config.json"):
            with pytest.raises(ProbexError, match=f"{name}: a link that leads out"):
                m.beside(name)


def test_a_snapshot_reaches_its_own_blobs_and_no_others(hub_cache, tmp_path):
    snapshot = hub_cache / "snapshots" / "0123abcd"
    (tmp_path / "link").symlink_to(snapshot)
    (snapshot / "unet").mkdir()
    (snapshot / "unet" / "model.safetensors").symlink_to("../../../blobs/ffee")
    folders = (hub_cache, snapshot, tmp_path / "link", snapshot / "unet")
    for path in (*folders, snapshot / "model.safetensors"):
        with open_model(path) as m:
            np.testing.assert_array_equal(m.matrix("w"), W)
            assert len(fingerprint(m)) == 16
    with open_model(snapshot / "model.safetensors") as m:
        assert m.config == {"model_type": "vit"}
    other = tmp_path / "models--other" / "blobs"
    other.mkdir(parents=True)
    shutil.copy(hub_cache / "blobs" / "ffee", other / "ffee")
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to("../../../models--other/blobs/ffee")
    for path in folders[:3]:
        refused(path, "model.safetensors: a link that leads out of the model's folder, to")


def test_a_folder_with_snapshots_is_its_own_whatever_it_is_called(hub_cache, tmp_path):
    hub_cache.rename(tmp_path / "renamed")
    open_model(tmp_path / "renamed").close()
    # Not so its snapshots: any folder may be called so.
    refused(tmp_path / "renamed" / "snapshots" / "0123abcd", "leads out of the model's folder")


def test_only_snapshots_of_a_cache_reach_its_blobs(hub_cache):
    folder = hub_cache / "mine" / "deep"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").symlink_to("../../blobs/ffee")
    refused(folder, "leads out of the model's folder")


@pytest.mark.parametrize("name", ["refs/main", "snapshots/0123abcd"])
def test_a_cache_s_own_parts_are_no_links_that_lead_out(hub_cache, tmp_path, name):
    (hub_cache / name).rename(tmp_path / "outside")
    (hub_cache / name).symlink_to(tmp_path / "outside")
    refused(hub_cache, f"{name}: a link that leads out of the model's folder, to")


def test_names_that_do_not_print_stay_out_of_messages(tmp_path):
    save_file({"w": W}, tmp_path / "a\x1b[31m\nb.safetensors")
    refused(tmp_path, "unprintable")
    (tmp_path / "model.safetensors").symlink_to("a\x1b[31m\n")
    refused(tmp_path, r"(a link to a\x1b[31m , which is missing)")
