"""What a folder may hold beside a family: copies, other names, other models, broken files."""

import numpy as np
import pytest

from probex_jax.lineage.trace import trace
from tests.lineage import copying
from tests.lineage.copying import saved
from tests.lineage.planting import STREAM, child, edges, fresh, kept, origins, permuted, traced

EXPECTED = {f"c{k}": {"root"} for k in range(3)}


@pytest.fixture
def family(tmp_path):
    """Models by id, and their files."""
    root = fresh(0)
    models = {"root": root} | {f"c{k}": child(root, 0.1, k) for k in range(3)}
    return models, kept(models, tmp_path)


def test_no_models_or_one(tmp_path):
    nothing = trace([])
    assert (nothing.nodes, nothing.edges, nothing.copies) == ((), (), ())
    paths = kept({"one": fresh(0)}, tmp_path)
    one = trace(paths.values())
    assert origins(one) == {str(paths["one"]): "alone"}
    assert one.edges == ()


def test_two_models(tmp_path):
    root = fresh(0)
    found = traced(kept({"child": child(root, 0.1, 1), "root": root}, tmp_path))
    assert edges(found) == {"child": {"root"}}
    assert origins(found) == {"child": "derived", "root": "root"}
    assert found.edges[0].p_value < 1e-3
    strangers = traced(kept({"a": fresh(1), "b": fresh(2)}, tmp_path))
    assert strangers.edges == ()
    assert origins(strangers) == {"a": "alone", "b": "alone"}


def test_each_path_has_an_id_of_its_own(family):
    _, paths = family
    for ids in (["a"], ["a"] * len(paths)):
        with pytest.raises(ValueError, match="ids"):
            trace(paths.values(), ids)


def test_models_of_other_architectures_do_not_disturb(family, tmp_path):
    _, paths = family
    rng = np.random.default_rng(0)
    others = {
        "wider": {n: np.repeat(x, 2, axis=-1) for n, x in fresh(0).items()},
        "deeper": fresh(0) | {"layers.9.up.weight": rng.normal(size=(10, STREAM))},
        "vectors": {"norm.weight": rng.normal(size=STREAM)},
    }
    found = traced(paths | kept(others, tmp_path))
    assert edges(found) == EXPECTED
    for id in found.failed | {"wider": "", "deeper": ""}:
        assert origins(found).get(id, "alone") == "alone"
    architectures = {node.id: node.architecture for node in found.nodes}
    assert architectures["c0"] == architectures["root"]
    assert len({architectures[id] for id in ("root", "wider", "deeper")}) == 3


def test_broken_files_are_named_and_the_rest_goes_on(family, tmp_path):
    models, paths = family
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\xff" * 100)
    short = tmp_path / "short.safetensors"
    short.write_bytes(paths["c0"].read_bytes()[:-1000])
    odd = {name: np.full(x.shape, np.nan) for name, x in models["c0"].items()}
    paths = {"broken": broken, "short": short} | paths | kept({"odd": odd}, tmp_path)
    paths["missing"] = tmp_path / "missing.safetensors"
    found = traced(paths)
    assert {*found.failed} == {"broken", "short", "odd", "missing"}
    for id in ("broken", "short", "missing"):
        assert paths[id].name in found.failed[id]
    assert edges(found) == EXPECTED
    assert [node.id for node in found.nodes] == ["root", "c0", "c1", "c2"]


def test_copies_under_other_names_and_dtypes_hang_on_their_original(family, tmp_path):
    models, paths = family
    half = copying.shuffled(copying.cast(models["c1"], copying.BF16))
    paths["half"] = saved(half, tmp_path / "half.safetensors")
    paths["same"] = saved(copying.cast(models["root"], "f8"), tmp_path / "same.safetensors")
    found = traced(paths)
    assert edges(found) == EXPECTED
    nodes = {node.id: node for node in found.nodes}
    assert (nodes["half"].origin, nodes["half"].copy_of) == ("copy", "c1")
    assert {frozenset(group.models) for group in found.copies} == {
        frozenset({"c1", "half"}),
        frozenset({"root", "same"}),
    }
    assert all(node.copy_of == "" for id, node in nodes.items() if node.origin != "copy")


def test_a_renamed_fine_tune_has_its_edge(family, tmp_path):
    """All names are others, their order is the same."""
    models, paths = family
    tensors = copying.cast(child(models["c1"], 0.1, 30), "f4")
    renamed = copying.renamed(
        tensors, lambda name: "body." + name.replace("layers", "h").replace("up", "a_proj_up")
    )
    paths["renamed"] = saved(renamed, tmp_path / "renamed.safetensors")
    found = traced(paths)
    assert edges(found) == EXPECTED | {"renamed": {"c1"}}
    (edge,) = found.parents("renamed")
    assert edge.p_value < 1e-3
    assert edge.distance == pytest.approx(0.1, rel=0.5)


def test_another_head_does_not_part_kin(family, tmp_path):
    models, paths = family
    for classes in (3, 11):
        head = np.random.default_rng(classes).normal(size=(classes, STREAM))
        tensors = child(models["root"], 0.1, 40 + classes) | {"classifier.weight": head}
        paths |= kept({f"head{classes}": tensors}, tmp_path)
    assert edges(traced(paths)) == EXPECTED | {"head3": {"root"}, "head11": {"root"}}


def adapter(folder, seed):
    rng, factors = np.random.default_rng([6, seed]), {}
    for block in range(3):
        name = f"base_model.model.layers.{block}.up"
        factors[f"{name}.lora_A.weight"] = rng.normal(size=(4, STREAM))
        factors[f"{name}.lora_B.weight"] = rng.normal(size=(48, 4))
    saved(copying.cast(factors, "f4"), folder / "adapter_model.safetensors")
    return folder


def test_adapters_among_whole_models_do_not_disturb(family, tmp_path):
    _, paths = family
    paths |= {f"lora{k}": adapter(tmp_path / f"lora{k}", k) for k in range(2)}
    found = traced(paths)
    assert not found.failed
    assert {c: p for c, p in edges(found).items() if not c.startswith("lora")} == EXPECTED
    # Of random factors no base can be told.
    assert origins(found)["lora0"] != "root"
    assert not any(edge.parent.startswith("lora") for edge in found.edges)


def test_progress_reaches_its_totals(family, tmp_path):
    _, paths = family
    seen = {}

    def on_progress(what, done, total):
        assert done <= total
        seen.setdefault(what, []).append((done, total))

    traced(paths, on_progress=on_progress)
    assert seen["reading"] == [(k + 1, 4) for k in range(4)]
    assert len(seen) > 1
    for reports in seen.values():
        assert reports[-1][0] == reports[-1][1]


def test_strangers_that_share_a_mask_are_no_kin(tmp_path):
    """It makes them near to each other; their units tell that they are none."""
    mask = {"attn_mask": np.where(np.tri(48), 0.0, -100.0)}
    found = traced(kept({name: fresh(n) | mask for n, name in enumerate("abc")}, tmp_path))
    assert found.edges == ()
    assert {*origins(found).values()} == {"alone"}


def test_weights_that_are_too_large_are_told(tmp_path):
    large = {name: 1e30 * value for name, value in fresh(1).items()}
    found = traced(kept({"a": fresh(0), "b": child(fresh(0), 0.1, 1), "large": large}, tmp_path))
    assert {*found.failed} == {"large"}
    assert edges(found) == {"b": {"a"}}


def test_lone_models_are_tested_as_often_as_there_are_families(tmp_path):
    """Of many strangers, none is taken for kin of one of them."""
    models = {f"m{n:02d}": fresh(n) for n in range(24)}
    assert {*origins(traced(kept(models, tmp_path))).values()} == {"alone"}


def test_a_permuted_copy_of_a_model_without_other_kin(tmp_path):
    models = {"stranger": fresh(0), "a": fresh(1), "b": permuted(fresh(1))}
    found = traced(kept(models, tmp_path))
    assert [(edge.parent, edge.child, edge.kind) for edge in found.edges] == [
        ("a", "b", "permuted")
    ]
    assert origins(found)["stranger"] == "alone"
