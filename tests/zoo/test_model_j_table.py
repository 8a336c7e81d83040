"""The table of models: every form the hub may have it in, and rows of strangers."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import probex_jax as px
from probex_jax.model_files import Remote
from probex_jax.zoo.label_files import labels_of
from probex_jax.zoo.model_j import SPLITS
from probex_jax.zoo.model_j_table import ListedModel, read_table
from tests.hub import tables, write_repo
from tests.model_j import LORA_REPO, classifier_rows, lora_rows, served

ROWS = classifier_rows(7)
IDS = {split: sorted(row["hf_model_id"] for row in rows) for split, rows in ROWS.items()}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    # The hub shows what it understands of a README, and answers whatever that holds.
    with (
        served(tmp_path_factory.mktemp("tables"), quick_hashes=True) as hub,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr("tests.hub.front_matter", lambda readme: None)
        yield hub


@pytest.fixture
def name(request):
    """A dataset of the test's own."""
    return f"org/{abs(hash(request.node.name)):x}"


def files(hub, name, **contents):
    """A dataset of these files; `__` stands for a slash and the last `_` for a dot."""
    contents = {
        ".".join(path.replace("__", "/").rsplit("_", 1)): content
        for path, content in contents.items()
    }
    write_repo(hub.repositories.root, "datasets", name, contents)
    return name


def lines(*rows):
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def read(name, subset="SupViT", splits=()):
    return read_table(subset, splits, Remote(), name)


def ids(table):
    return {split: [m.repo for m in table.models if m.split == split] for split in SPLITS[:3]}


@pytest.mark.parametrize("format", ["parquet", "csv", "jsonl"])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("readme", [True, False])
def test_every_format_in_several_files_with_and_without_a_readme(hub, name, format, shards, readme):
    tables(
        hub.repositories.root,
        name,
        {"SupViT": ROWS, "SupViT_2": ROWS},
        format=format,
        shards=shards,
        readme=readme,
    )
    table = read(name)
    assert (table.subset, table.texts, ids(table)) == ("SupViT", {}, IDS)
    assert len(table.models) == 7
    assert {model.path for model in table.models} == {""}
    assert [m.id for m in table.models] == [
        "models--" + repo.replace("/", "--") for split in SPLITS[:3] for repo in IDS[split]
    ]
    assert ids(read(name, splits=["test", "val"])) == IDS | {"train": []}


def test_a_json_list_and_a_csv_with_a_byte_order_mark(hub, name):
    rows = ROWS["train"]
    head = "\ufeffhf_model_id\r\n"
    files(
        hub,
        name,
        MAE__train_json=json.dumps(rows, indent=1),
        MAE_test_csv=head + "".join(f"{row['hf_model_id']}\r\n" for row in ROWS["test"]),
        DINO_val_jsonl="\n" + lines(*ROWS["val"]).replace("\n", "\n\n"),
    )
    assert ids(read(name, "MAE")) == IDS | {"val": []}
    assert ids(read(name, "DINO")) == {"train": [], "val": IDS["val"], "test": []}


def test_a_line_separator_within_a_text_ends_no_line(hub, name):
    row = {"hf_model_id": "org/a", "note": "one\u2028two\x85three"}
    files(hub, name, SupViT__train_jsonl=json.dumps(row, ensure_ascii=False) + "\n")
    assert ids(read(name))["train"] == ["org/a"]


def test_loras_lie_in_one_repository(hub, name):
    tables(hub.repositories.root, name, {"SD_200": lora_rows(4)})
    table = read(name, "SD_200")
    assert [*dict.fromkeys(model.split for model in table.models)] == list(SPLITS)
    model = table.models[0]
    path = "train/model_idx_0000/pytorch_lora_weights.safetensors"
    assert model == ListedModel("model_idx_0000", "train", LORA_REPO, path)
    assert str(model.address("c" * 40)) == f"hf://{LORA_REPO}@{'c' * 40}/{path}"


@pytest.mark.parametrize(
    ("row", "path"),
    [
        ({"model_idx": 21}, "val/model_idx_0021/pytorch_lora_weights.safetensors"),
        ({"model_idx": "0021"}, "val/model_idx_0021/pytorch_lora_weights.safetensors"),
        ({"hf_model_path": "val/model_idx_0021"}, "val/model_idx_0021"),
        ({"hf_model_path": "a/b/model_idx_0021/x.safetensors"}, "a/b/model_idx_0021/x.safetensors"),
        (
            {"hf_model_path": None, "hf_model_id": "", "model_idx": 21},
            "val/model_idx_0021/pytorch_lora_weights.safetensors",
        ),
    ],
)
def test_where_a_lora_is(hub, name, row, path):
    files(hub, name, SD_1k__val_jsonl=lines(row))
    [model] = read(name, "SD_1k").models
    assert model == ListedModel("model_idx_0021", "val", "ProbeX/Model-J__SD_1k", path)


def readme(*configs):
    return f"---\n{yaml.safe_dump({'configs': [*configs]})}---\n# Model-J\n"


def config(data_files, name="SupViT"):
    return readme({"config_name": name, "data_files": data_files})


STATED = {
    "test": config([{"split": "test", "path": "a/x*"}]),
    "val": config([{"split": "validation", "path": "a/x.jsonl"}]),
    "train": config([5, {"path": "*"}, {"split": "train", "path": ["no", 5, "a/*"]}]),
}
# Which say nothing that is understood, so that the names of files do.
NOT_STATED = [
    config("a/x.jsonl"),
    config(["a/x.jsonl"]),
    config({"train": "a/x.jsonl"}),
    config([{"split": "test", "path": "gone/*"}]),
    config([{"split": "test", "path": "a/other"}]),
    config([{"path": "a/x.jsonl"}, 5]),
    config([{"split": "test", "path": "a/x*"}], "MAE"),
    readme({"config_name": "SupViT", "data_dir": "a"}),
    readme("SupViT", 5, None),
    "---\nconfigs: SupViT\n---\n",
    "---\n- configs\n---\n",
    "---\nconfigs: [\n---\n",
    "---\nno end",
    "---\n---\n",
    "# A dataset\n" + config([{"split": "test", "path": "a/x*"}]),
    "",
    b"---\n\xff\n---\n",
    "---\n" + "[" * 400 + "\n---\n",
    "---\nadded: 2020-13-45\n---\n",
    "---\nn: !!int ''\n---\n",
    "---\nn: !!timestamp x\n---\n",
    "---\nn: !!bool x\n---\n",
    "---\nn: !!python/object/apply:os.system ['true']\n---\n",
]


@pytest.mark.parametrize(
    ("text", "split"),
    [*((text, split) for split, text in STATED.items()), *((t, "val_holdout") for t in NOT_STATED)],
    ids=[*STATED, *map(str, range(len(NOT_STATED)))],
)
def test_readmes_of_every_shape(hub, name, text, split):
    other = "SupViT__validation_holdout-00000-of-00001_jsonl"
    files(hub, name, README_md=text, a__x_jsonl=lines({"hf_model_id": "org/stated"}),
          **{other: lines({"hf_model_id": "org/guessed"})})  # fmt: skip
    [model] = read(name).models
    guessed = split == "val_holdout"
    assert (model.split, model.repo) == (split, "org/guessed" if guessed else "org/stated")


def test_a_damaged_field_of_a_readme_harms_no_other(hub, name):
    text = STATED["test"].replace("---\n", "---\nadded: 2020-13-45\n", 1)
    files(hub, name, README_md=text, a__x_jsonl=lines({"hf_model_id": "org/stated"}))
    assert ids(read(name))["test"] == ["org/stated"]


def test_a_readme_of_aliases_of_aliases_is_not_written_out(hub, name):
    nested = "".join(f"x{n}: &x{n} [{','.join([f'*x{n - 1}'] * 9)}]\n" for n in range(1, 12))
    text = f"---\nx0: &x0 [a]\n{nested}configs: [{{config_name: SupViT, data_files: "
    text += "[{split: train, path: *x11}]}]\n---\n"
    files(hub, name, README_md=text, SupViT__val_jsonl=lines({"hf_model_id": "org/a"}))
    assert ids(read(name))["val"] == ["org/a"]


def test_the_table_may_be_where_the_hub_converts_it_to_alone(hub, name, tmp_path):
    root = hub.repositories.root
    folder = write_repo(root, "datasets", name, {"SupViT/train/0000.parquet": b""})
    pq.write_table(
        pa.table({"hf_model_id": ["org/b", "org/a"]}), folder / "SupViT/train/0000.parquet"
    )
    hub.tag(f"datasets/{name}", "refs/convert/parquet")
    (tmp_path / "main").mkdir()
    (tmp_path / "main" / "SupViT.py").write_text("import os")
    hub.move(f"datasets/{name}", tmp_path / "main")
    assert ids(read(name))["train"] == ["org/a", "org/b"]
    with pytest.raises(px.ProbexError, match=r"has no table of MAE; the subsets: SupViT, DINO"):
        read(name, "MAE")


def test_unknown_subsets_splits_and_datasets(hub, name):
    tables(hub.repositories.root, name, {"SupViT": ROWS})
    with pytest.raises(
        px.ProbexError, match=rf"^{name}: has no table of Sup; the subsets: SupViT,"
    ):
        read(name, "Sup")
    with pytest.raises(px.ProbexError, match=r"SupViT: no split 'tst', it has train, val, test$"):
        read(name, splits=["train", "tst"])
    with pytest.raises(
        px.ProbexError, match=r"^hf://datasets/org/none: no such repository on the hub"
    ):
        read("org/none")
    with pytest.raises(px.ProbexError):
        read("../..")


NO_IDS = ["no-organisation", "a/b/c", "a/b\n", "https://huggingface.co/a/b", 5, ["a/b"]]
NO_PATHS = ["../../etc/passwd", "train/../x", "/etc/x", "train//x", "train/.ssh", "train/a\0b"]
NO_PATHS += ["x.safetensors", 7, "x/" + "y" * 300]
NO_NUMBERS = ["../x", -1, "²", "9" * 5000]
NO_MODELS = [
    *[({"hf_model_id": id}, "hf_model_id") for id in [*NO_IDS, float("nan")]],
    *[({"hf_model_id": "a/b", "hf_model_path": path}, "hf_model_path") for path in NO_PATHS],
    *[({"model_idx": number}, "model_idx") for number in NO_NUMBERS],
    ({"hf_model_id": None, "hf_model_path": None}, "model_idx"),
    ({}, "model_idx"),
]


@pytest.mark.parametrize(("row", "names"), NO_MODELS)
def test_rows_that_name_no_model(hub, name, row, names):
    files(hub, name, SupViT__train_jsonl=lines({"hf_model_id": "org/a"}, row))
    with pytest.raises(px.ProbexError, match=names) as caught:
        read(name)
    commit = hub.commit_of(f"datasets/{name}")[:12]
    assert str(caught.value).startswith(f"hf://datasets/{name}@{commit}/SupViT/train.jsonl: ")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("SupViT/train.jsonl", '{"hf_model_id": "a/b"', "cannot be read as a table"),
        ("SupViT/train.jsonl", b"\xff\xfe", "cannot be read as a table"),
        ("SupViT/train.json", "[" * 100_000, "cannot be read as a table"),
        ("SupViT/train.csv", "hf_model_id\n" + "x" * 200_000, "cannot be read as a table"),
        ("SupViT/train.parquet", b"PAR1 no PAR1", "cannot be read as Parquet"),
        ("SupViT/train.parquet", b"", "cannot be read as Parquet"),
        ("SupViT/train.jsonl", "", "lists no model of SupViT"),
        ("SupViT/train.json", "[1, null, []]", "row 1 "),
        ("SupViT/train.json", '[{"split": "val", "split": "train"}]', "'split' twice"),
        ("SupViT/train.jsonl", '{"hf_model_id": 1, "hf_model_id": 2}', "'hf_model_id' twice"),
        ("SupViT/train.jsonl", '{"model_idx": ' + "9" * 5000 + "}", "cannot be read as a table"),
        ("SupViT/train.jsonl", '{"a": ' + "[" * 100_000, "cannot be read as a table"),
        ("SupViT/train.csv", "hf_model_id,hf_model_id\na/b,c/d\n", "'hf_model_id' is there twice"),
        ("SupViT/train.csv", "hf_model_id\n", "lists no model of SupViT"),
        ("SupViT/train.jsonl", 257 * 2**20, "the limit is 268435456"),
    ],
)
def test_damaged_tables(hub, name, path, content, message):
    write_repo(hub.repositories.root, "datasets", name, {path: content})
    with pytest.raises(px.ProbexError, match=message) as caught:
        read(name)
    assert len(str(caught.value)) < 300


def test_a_model_twice(hub, name):
    row = {"hf_model_id": "org/a"}
    files(hub, name, SupViT__train_jsonl=lines(row, row))
    assert len(read(name).models) == 1
    files(hub, name, SupViT__train_jsonl=lines(row, row), SupViT__val_jsonl=lines(row))
    for splits in ((), ("train",)):
        with pytest.raises(px.ProbexError, match=r": the model models--org--a is there twice"):
            read(name, splits=splits)


def test_loras_called_the_same_in_two_splits(hub, name):
    rows = [
        {"hf_model_path": f"{split}/model_idx_0000/x.safetensors", "kind": split}
        for split in ("train", "val")
    ]
    rows[0] = lines(rows[0], {"hf_model_path": "train/model_idx_0001/x.safetensors"})
    files(hub, name, SupViT__train_jsonl=rows[0], SupViT__val_jsonl=lines(rows[1]))
    ids = ["model_idx_0001", "train_model_idx_0000", "val_model_idx_0000"]
    assert [model.id for model in read(name).models] == ids
    assert read(name).columns == {"kind": {id: id.partition("_")[0] for id in ids[1:]}}
    assert [model.id for model in read(name, splits=["val"]).models] == ids[2:]


def test_columns_of_lists_of_texts_are_read_and_of_others_left_alone(hub, name):
    root = hub.repositories.root
    folder = write_repo(root, "datasets", name, {"SupViT/train.parquet": b""})
    columns = {"hf_model_id": ["org/a", None], "model_idx": [None, 3], "class_names": [["x"], []]}
    columns |= {"image": [{"bytes": b"x"}] * 2, "vectors": [[1.0], [2.0]]}
    pq.write_table(pa.table(columns), folder / "SupViT" / "train.parquet")
    table = read(name)
    assert [model.id for model in table.models] == ["model_idx_0003", "models--org--a"]
    assert table.columns == {"class_names": {"models--org--a": ["x"], "model_idx_0003": []}}


@pytest.mark.parametrize("format", ["parquet", "csv", "jsonl"])
def test_other_columns_are_kept_by_model(hub, name, format):
    rows = [
        {
            "hf_model_id": f"org/{n}",
            "model_idx": n,
            "lr": 10.0**-n,
            "kind": "ab"[n % 2],
            "deep": n > 1,
        }
        for n in range(4)
    ]
    rows[3]["kind"] = None
    tables(
        hub.repositories.root,
        name,
        {"SupViT": {"train": rows[:2], "test": rows[2:]}},
        format=format,
    )
    labels = labels_of(read(name).columns, "")
    assert labels.numbers == {"lr": {f"models--org--{n}": 10.0**-n for n in range(4)}}
    yes_no = [("no",), ("no",), ("yes",), ("yes",)]
    assert labels.columns == {
        "kind": {f"models--org--{n}": ("ab"[n % 2],) for n in range(3)},
        "deep": {f"models--org--{n}": yes_no[n] for n in range(4)},
    }
    assert read(name, splits=["test"]).columns["kind"] == {"models--org--2": "a"}


ODD = {
    "a text that terminals obey": "\x1b[2J",
    "half a letter": "\ud800",
    "an object": {"a": 1},
    "a list of objects": [{}],
    "twice in a list": ["a", "a"],
    "NaN": float("nan"),
    "infinity": float("inf"),
    "nothing": " ",
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_odd_values_are_unknown(hub, name, odd):
    rows = [{"hf_model_id": "org/a", "x": odd}, {"hf_model_id": "org/b", "x": ["b"], "model": "c"}]
    files(hub, name, SupViT__train_jsonl=lines(*rows))
    assert read(name).columns == {"x": {"models--org--b": ["b"]}}


def test_words_between_numbers_are_unknown(hub, name):
    cells = [*(n / 100 for n in range(1, 20)), "0.5", "auto", "3 %", "1,5"]
    rows = [{"hf_model_id": f"org/{n}", "lr": cell} for n, cell in enumerate(cells)]
    files(hub, name, SupViT__train_jsonl=lines(*rows))
    labels = labels_of(read(name).columns, "")
    assert [*labels.numbers["lr"].values()] == [*(n / 100 for n in range(1, 20)), 0.5]


CLASSES = {"n01": "crane", "n02": "Newfoundland dog", "n03": "crane", "n04": "tench"} | {
    f"n1{n:02d}": f"thing {n}" for n in range(20)
}


def lora_table(hub, name, rows):
    rows = [{"model_idx": n, **row} for n, row in enumerate(rows)]
    files(hub, name, SD_200__train_jsonl=lines(*rows))
    return read(name, "SD_200")


def test_words_for_wordnet_ids_come_from_a_column(hub, name):
    rows = [
        {"imagenet_class_id": id, "class_group": "all", "imagenet_class_name": text}
        for id, text in [*CLASSES.items()] * 2
    ]
    texts = CLASSES | {"n01": "crane (n01)", "n03": "crane (n03)"}
    assert lora_table(hub, name, rows).texts == texts


@pytest.mark.parametrize(
    "change",
    [
        # One class has two names; most are called the same; numbers; not of all; no letters.
        lambda n, row: row["class_name"] + (" b" if n == 20 else ""),
        lambda n, row: "animal" if n % 2 else row["class_name"],
        lambda n, row: n % 24,
        lambda n, row: None if n == 3 else row["class_name"],
        lambda n, row: str(n % 24),
        lambda n, row: [row["class_name"]],
        lambda n, row: row["class_name"] + ("\ud800" if n % 24 == 3 else ""),
    ],
)
def test_columns_that_are_no_words(hub, name, change):
    rows = [{"imagenet_class_id": i, "class_name": text} for i, text in [*CLASSES.items()] * 2]
    for n, row in enumerate(rows):
        row["class_name"] = change(n, row)
    assert lora_table(hub, name, rows).texts == {}


@pytest.mark.parametrize("odd", [None, 5, ["n05"], {"a": 1}])
def test_odd_classes_do_not_stop_it(hub, name, odd):
    rows = [{"imagenet_class_id": id, "class_name": text} for id, text in CLASSES.items()]
    table = lora_table(hub, name, [*rows, {"imagenet_class_id": odd, "class_name": "odd"}])
    assert len(table.models) == len(rows) + 1
    assert table.texts == {}


def test_words_of_a_csv_whose_rows_are_too_long(hub, name):
    text = "model_idx,concept,name\n1,n01,dog\n2,n02,cat,and,more\n"
    files(hub, name, SD_200__train_csv=text)
    assert read(name, "SD_200").texts == {"n01": "dog", "n02": "cat"}


def test_the_table_is_read_whole_from_a_hub_that_fails(hub, name, monkeypatch):
    from probex_jax.buckets import stores
    from tests.hub import IMPATIENT, Faults

    monkeypatch.setattr(stores, "PATIENCE", IMPATIENT)
    tables(hub.repositories.root, name, {"SupViT": ROWS}, shards=2)
    monkeypatch.setattr(hub, "faults", Faults(3, 0.1, 0.1, 0.1, 0.1))
    assert ids(read(name)) == IDS
