"""Labels out of what models state: which tags become classes, and which source counts."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from probex_jax import pack, scan
from probex_jax.errors import ProbexError
from probex_jax.zoo.stated_labels import Said, TagRules, columns_of, read_said


def tagged(*models, **more):
    """What models say that have these tags, to the share of their images."""
    return {
        f"m{number:02}": Said({"tags": dict(tags)}, commonest=1.0, **more)
        for number, tags in enumerate(models)
    }


def animals(n=12, **others):
    return tagged(*({("cat", "dog")[i % 2]: 0.9, **others} for i in range(n)))


def test_tags_of_nearly_all_models_are_no_classes():
    said = animals(**{"1girl": 1.0, "solo": 0.9})
    assert columns_of(said)["tags"]["m00"] == ("cat",)
    said["m00"] = Said({"tags": {"cat": 0.9}}, commonest=1.0)
    assert columns_of(said)["tags"]["m01"] == ("dog",)


def test_the_rarer_a_tag_is_the_fewer_images_need_to_have_it():
    said = tagged(*({"common": 0.45} if i < 9 else {"rare": 0.45} for i in range(12)))
    rules = TagRules(models=3, weight=0.5)
    assert columns_of(said, rules)["tags"]["m11"] == ("rare",)
    assert "common" not in str(columns_of(said, rules)["tags"])
    assert columns_of(said, TagRules(models=3, weight=0.1))["tags"]["m00"] == ("common",)


def test_tags_of_few_images_or_few_models_are_no_classes():
    said = animals(few=0.2)
    said["m00"] = Said({"tags": {"cat": 0.9, "once": 1.0}}, commonest=1.0)
    columns = columns_of(said)
    assert {tag for tags in columns["tags"].values() for tag in tags} == {"cat", "dog"}
    assert columns_of(said, TagRules(share=0.1, weight=0, models=1))["tags"]["m00"] == (
        "once", "cat"
    )  # fmt: skip


def test_a_rare_tag_of_few_images_is_no_class():
    said = tagged(
        *({"cat" if i % 2 else "dog": 0.9} | ({"few": 0.2} if i < 6 else {}) for i in range(12))
    )
    assert "few" not in str(columns_of(said, TagRules(weight=0))["tags"])
    assert "few" in str(columns_of(said, TagRules(weight=0, share=0.1))["tags"])


def test_who_has_tags_but_none_of_the_classes_has_none_of_them_and_others_are_unknown():
    said = animals(12)
    said["m00"] = Said({"tags": {"cat": 0.9, "dog": 0.8}}, commonest=1.0)
    said["none"] = Said({"tags": {"sofa": 1.0}}, commonest=1.0)
    said["unknown"] = Said({"tags": {"sks": 1.0}})
    said["silent"] = Said()
    tags = columns_of(said)["tags"]
    assert tags["none"] == ()
    assert not {"unknown", "silent"} & tags.keys()


def test_classes_that_exclude_each_other_are_left_exclusive():
    said = animals(12)
    said |= {f"other {n}": Said({"tags": {f"sofa {n}": 1.0}}, commonest=1.0) for n in range(5)}
    assert columns_of(said)["tags"]["other 1"] == ("none of these",)
    assert "other 1" not in columns_of(said)["text"]
    del said["other 0"]  # too few for a class of their own
    assert "other 1" not in columns_of(said)["tags"]


def test_the_text_of_a_model_is_shared_by_enough_models():
    models = [{"cat": 1.0, "red" if i % 2 else "blue": 0.9} for i in range(12)]
    models += [{"dog": 1.0, "red" if i else "blue": 0.9} for i in range(6)]
    texts = columns_of(tagged(*models))["text"]
    assert texts["m00"] == ("blue, cat",)
    assert texts["m13"] == ("dog, red",)
    assert texts["m12"] == ("dog",)


def test_columns_with_one_label_are_left_out():
    assert columns_of({f"m{n}": Said({"base": {"a": 1.0}}) for n in range(9)}) == {}
    said = {f"m{n}": Said({"base": {"ab"[n % 2]: 1.0}}) for n in range(12)}
    assert columns_of(said)["base"]["m1"] == ("b",)
    said["m99"] = Said({"base": {"c": 1.0}})
    assert "m99" not in columns_of(said)["base"]


def write_zoo(root, n=12, metadata=lambda n: None):
    rng = np.random.default_rng(0)
    for number in range(n):
        path = root / "models" / f"m{number:02}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        weights = {"fc.weight": rng.normal(size=(4, 4)).astype("f4")}
        save_file(weights, path, metadata(number))
    return root


def kohya(number, **tags):
    counts = {("Red_Cat", "dog \\(big\\)")[number % 2]: 9, "1girl": 10, **tags}
    return {
        "ss_tag_frequency": json.dumps({f"10_sks{number}": counts}),
        "ss_sd_model_name": ("v1-5.ckpt", "/x/other.safetensors")[number // 6],
    }


def test_scan_and_pack_take_labels_from_headers(tmp_path):
    zoo = write_zoo(tmp_path / "zoo", metadata=kohya)
    columns = scan(zoo, "headers").tables.columns
    assert columns["tags"] == {f"m{n:02}": (("red cat", "dog (big)")[n % 2],) for n in range(12)}
    assert columns["base"]["m00"] == ("v1-5",)
    assert not scan(zoo).tables.columns
    store = pack(scan(zoo, "headers"), tmp_path / "store").store
    assert store.tables.columns == columns


def test_of_several_sources_the_first_that_labels_a_model_counts(tmp_path):
    zoo = write_zoo(tmp_path, metadata=kohya)
    for number in range(12):
        words = json.dumps({"activation text": "ab"[number % 2], "tags": ["x"]})
        (zoo / "models" / f"m{number:02}.json").write_text(words)
    (zoo / "labels.json").write_text('[{"model": "m00", "tags": "mine"}]')

    def tags(*sources):
        return scan(zoo, sources).tables.columns["tags"]

    assert tags("headers", "labels.json")["m00"] == ("red cat",)
    assert tags("labels.json", "headers")["m00"] == ("mine",)
    assert tags("labels.json", "headers")["m01"] == ("dog (big)",)
    assert tags("sidecars", "headers")["m01"] == ("b",)
    assert scan(zoo, "headers,sidecars").tables.columns["trigger"]["m01"] == ("b",)


def test_files_of_labels_may_come_between_other_sources(tmp_path):
    headers = [
        {"ss_tag_frequency": json.dumps({f"10_{color}": {color: 9}})} for color in ("red", "blue")
    ]
    zoo = write_zoo(tmp_path, 18, lambda n: headers[n % 2] if n < 12 else None)
    for number in range(18):
        words = json.dumps({"tags": ["side a", "side b"][number % 2 :][:1]})
        (zoo / "models" / f"m{number:02}.json").write_text(words)
    rows = [{"model": "m00", "tags": "mine"}, {"model": "m12", "tags": "mine"}]
    (zoo / "labels.json").write_text(json.dumps(rows))
    rules = TagRules(models=2)
    tags = scan(zoo, "headers,labels.json,sidecars", rules=rules).tables.columns["tags"]
    assert [tags[m] for m in ("m00", "m12", "m13")] == [("red",), ("mine",), ("side b",)]


def test_of_a_model_captioned_in_sentences_nobody_knows_what_it_shows(tmp_path):
    def captioned(number):
        if number >= 12:
            captions = {f"a photo of a cat, number {i}, somewhere": 1 for i in range(10)}
        else:
            captions = {("cat", "dog")[number % 2]: 9}
        return {
            "ss_tag_frequency": json.dumps({f"10_k{number}": captions}),
            "ss_dataset_dirs": json.dumps({f"10_k{number}": {"img_count": 10}}),
        }

    tags = scan(write_zoo(tmp_path, 18, captioned), "headers").tables.columns["tags"]
    assert tags == {f"m{n:02}": (("cat", "dog")[n % 2],) for n in range(12)}


def trained(number):
    """What kohya says of a training; every third file says nothing of its rate."""
    said = {
        "ss_network_dim": str(8 * 2 ** (number % 2)),
        "ss_steps": "1000",
        "ss_optimizer": f"torch.optim.x.{('AdamW', 'Lion')[number % 2]}(weight_decay=0.1)",
        "ss_learning_rate": str(1e-4 * (1 + number)),
    }
    return said if number % 3 else {name: said[name] for name in list(said)[:3]}


def test_numbers_that_headers_state_are_columns_if_they_differ(tmp_path):
    zoo = write_zoo(tmp_path / "zoo", metadata=trained)
    tables = scan(zoo, "headers").tables
    assert tables.numbers == {
        "rank": {f"m{n:02}": (8.0, 16.0)[n % 2] for n in range(12)},
        "learning_rate": {f"m{n:02}": pytest.approx(1e-4 * (1 + n)) for n in range(12) if n % 3},
    }
    assert tables.columns["optimiser"]["m01"] == ("lion",)
    few = scan(zoo, "headers", rules=TagRules(models=9)).tables
    assert list(few.numbers) == ["rank"]


def test_of_numbers_the_first_source_counts_and_files_tell_the_kind(tmp_path):
    zoo = write_zoo(tmp_path / "zoo", metadata=trained)
    (zoo / "labels.csv").write_text("model,rank,learning_rate\nm00,7.5,low\nm01,8.5,high\n")
    tables = scan(zoo, "labels.csv,headers").tables
    ranks = tables.numbers["rank"]
    assert (ranks["m00"], ranks["m01"], ranks["m02"]) == (7.5, 8.5, 8.0)
    assert "learning_rate" not in tables.numbers
    assert tables.columns["learning_rate"] == {"m00": ("low",), "m01": ("high",)}
    assert scan(zoo, "headers,labels.csv").tables.numbers["rank"]["m00"] == 8.0


def test_names_of_folders_and_front_matter_are_sources(tmp_path):
    for number in range(12):
        folder = tmp_path / f"model {number}"
        folder.mkdir()
        save_file({"fc.weight": np.ones((4, 4), "f4")}, folder / "model.safetensors")
        card = f"---\ntags: [lora, {'ab'[number % 2]}]\n---\n"
        (folder / "README.md").write_text(card)
    paths = {f"{'xy'[n % 2]}/m{n}": str(tmp_path / f"model {n}") for n in range(12)}
    zoo = tmp_path / "zoo"
    zoo.mkdir()
    (zoo / "zoo.json").write_text(json.dumps({"models": paths}))
    assert scan(zoo, "folders").tables.columns["folder"]["y/m1"] == ("y",)
    assert scan(zoo, "front_matter").tables.columns["tags"]["y/m1"] == ("b",)
    for number in range(12):
        (tmp_path / f"model {number}" / "README.md").write_text(
            "---\ntags: [lora, diffusers]\n---\n"
        )
    assert not read_said([("m", tmp_path / "model 0")], ["front_matter"])["m"].columns


def test_a_source_that_is_none_is_named(tmp_path):
    write_zoo(tmp_path, 1)
    with pytest.raises(ProbexError, match="'header' is not one of"):
        scan(tmp_path, "labels.json,header")


def test_a_model_that_cannot_be_read_is_told_and_the_others_go_on(tmp_path):
    zoo = write_zoo(tmp_path, metadata=kohya)
    (zoo / "models" / "m00.safetensors").write_bytes(b"x")
    told = []
    tags = scan(zoo, "headers", on_model=told.append).tables.columns["tags"]
    assert "m00" not in tags
    assert len(tags) == 11
    assert [bool(reason) for reason in told] == [True] + [False] * 11
