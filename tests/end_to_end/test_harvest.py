"""A folder of LoRAs whose labels stand in kohya's headers alone, from harvest to search."""

import json
import re
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

import probex_jax as px
from experiments.harvest_steps import Harvest, HarvestedTree, series_of, write_harvest
from probex_jax.forest import Description, Route
from probex_jax.forest.discovery import FoundTree
from probex_jax.forest.stated_facts import read_stated_facts
from probex_jax.search import FoundModel
from probex_jax.zoo.stated_labels import Said
from probex_jax.zoo.tables import Tables
from tests.end_to_end import warm

# One worker runs them all, and makes what they share once.
pytestmark = pytest.mark.xdist_group("commands")

CONCEPTS, STYLES = ("cat", "dog", "car"), ("watercolor", "photo")
WORDS = (*CONCEPTS, *STYLES)
MODULES = {
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q": (16, 12),
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_v": (12, 12),
}
HOSTILE = {
    "ss_tag_frequency": '{"a": {"' + "x" * 10**6 + '": 5, "\\u001b[2J`<script>": 1000000000000}}',
    "ss_dataset_dirs": "[" * 10**5,
    "ss_datasets": '[{"subsets": [{"class_tokens": "# owned, ![x](y), \\ud800"}]}]',
    "modelspec.title": "</td>\n# Owned\n---\nlicense: mit <img src=x onerror=alert(1)>",
    "ss_sd_model_name": "../../etc/passwd",
    "ss_steps": "9" * 5000,
    "ss_output_name": "[click](https://evil.example)",
}


def lora(words, rng):
    """Factors of rank 4 with a direction for each word, in kohya's spelling."""
    draws = np.random.default_rng(5)
    tensors = {}
    for module, (height, width) in MODULES.items():
        ups, downs = draws.normal(size=(len(WORDS), height)), draws.normal(size=(len(WORDS), width))
        chosen = [WORDS.index(word) for word in words]
        noise = 4 - len(chosen)
        up = np.vstack([ups[chosen], 0.5 * rng.normal(size=(noise, height))]).T
        down = np.vstack([downs[chosen], 0.5 * rng.normal(size=(noise, width))])
        turn = np.linalg.qr(rng.normal(size=(4, 4)))[0]
        tensors |= {
            f"{module}.lora_up.weight": np.ascontiguousarray(up @ turn, "f4"),
            f"{module}.lora_down.weight": np.ascontiguousarray(turn.T @ down, "f4"),
            f"{module}.alpha": np.asarray(4, "f4"),
        }
    return tensors


def header(number, words, images=20):
    tags = {"1girl": images, "solo": images - 1, "smile": 1} | dict.fromkeys(words, images - 4)
    return {
        "ss_tag_frequency": json.dumps({f"10_sks{number}": tags}),
        "ss_dataset_dirs": json.dumps({f"10_sks{number}": {"n_repeats": 10, "img_count": images}}),
        "ss_sd_model_name": "v1-5-pruned.safetensors",
        "ss_base_model_version": "sd_v1",
        "ss_network_module": "networks.lora",
        "ss_session_id": str(number),
    }


def ok(command, *arguments, code=0):
    done = warm.run(command, *map(str, arguments))
    assert done.returncode == code, done.stderr
    return done


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """60 documented LoRAs, 10 without any header, a hostile, a broken and an unrelated file."""
    root = tmp_path_factory.mktemp("harvest")
    folder, rng, truth = root / "downloads", np.random.default_rng(0), {}
    for number in range(70):
        words = [CONCEPTS[number % 3], *STYLES[: number // 3 % 2]]
        said = None if number % 7 == 6 else header(number, words)
        path = folder / ("a", "b/c")[number % 2] / f"my lora {number:02}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(lora(words, rng), path, said)
        if said is None:
            truth[str(path.resolve())] = words
    save_file(lora(["cat"], rng), folder / "hostile.safetensors", HOSTILE)
    (folder / "broken.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    save_file({"fc.weight": np.ones((4, 4), "f4")}, folder / "other.safetensors")
    harvested = ok("harvest", f"--models={folder}", f"--out={root}/zoos", code=1)
    (zoo,) = (path.parent for path in (root / "zoos").glob("*/zoo.json"))
    return root, zoo, harvested, truth


@pytest.fixture(scope="module")
def forest(made):
    """An expert of the harvested tags, in a forest."""
    root, zoo, *_ = made
    ok("pack", f"--zoo={zoo}", f"--store={root}/store")
    view = "--config.labels=tags", "--config.split=tags"
    ok("train", f"--workdir={root}/expert", f"--config.store={root}/store", *view)
    stores, experts = f"--stores={root}/store", f"--experts={root}/expert"
    ok("grow_forest", stores, experts, f"--forest={root}/forest")
    return f"--forest={root}/forest"


def test_harvest_tells_what_is_there_and_what_is_not(made):
    root, zoo, harvested, truth = made
    assert "broken.safetensors" in harvested.stderr
    assert "documented: 61 by headers; undocumented: 11" in harvested.stdout
    found = json.loads((root / "zoos" / "harvest.json").read_text())
    assert list(found["failed"]) == ["broken"]
    assert zoo.name.startswith("v1-5-pruned-")
    tree = next(tree for tree in found["trees"] if tree["tree"] == zoo.name)
    assert tree["columns"]["tags"]["classes"].keys() == {*CONCEPTS, "watercolor"}
    assert tree["labelled"] == 60
    assert next(iter(tree["tags"])) == "1girl"
    assert set((root / "zoos" / "undocumented.txt").read_text().splitlines()) >= truth.keys()
    splits = json.loads((zoo / "splits.json").read_text())
    assert {part: len(models) for part, models in splits["tags"].items()} == {
        "train": 36, "val": 9, "test": 15
    }  # fmt: skip


def test_a_harvest_is_not_replaced_by_one_of_other_models(made):
    root, zoo, *_ = made
    before = (zoo / "splits.json").read_bytes()
    ok("harvest", f"--models={root}/downloads", f"--out={root}/zoos", code=1)
    assert (zoo / "splits.json").read_bytes() == before
    done = ok("harvest", f"--models={root}/downloads/a", f"--out={root}/zoos", code=2)
    assert f"{zoo}: a zoo of other models" in done.stderr


def test_a_harvest_of_more_models_may_overwrite_its_zoos(tmp_path):
    def harvest(count, **options):
        found, models = [], [FoundModel(f"m{n}", "", tmp_path / f"m{n}") for n in range(count)]
        for name in "ab":
            ids = [model.id for model in models][name == "a" :]
            splits = {"tags": {"train": tuple(ids[1:]), "test": tuple(ids[:1])}}
            tree = FoundTree("f", "", False, tuple(range(len(ids))))
            found.append(HarvestedTree(name, tree, ids, len(ids), Tables(splits=splits)))
        write_harvest(Harvest(found, {}, {}, []), models, tmp_path / "out", **options)
        return json.loads((tmp_path / "out" / "b" / "zoo.json").read_text())["models"].keys()

    assert len(harvest(3)) == 3
    assert len(harvest(3)) == 3
    shutil.rmtree(tmp_path / "out" / "a")
    with pytest.raises(px.ProbexError, match="--overwrite"):
        harvest(4)
    assert not (tmp_path / "out" / "a").exists()
    assert len(harvest(4, overwrite=True)) == 4


def test_a_zoo_is_split_and_packed_by_what_its_headers_say(made, tmp_path):
    root, *_ = made
    zoo = tmp_path / "zoo"
    zoo.mkdir()
    for number, path in enumerate(sorted((root / "downloads" / "a").iterdir())[:24]):
        (zoo / f"{number}.safetensors").symlink_to(path)
    done = ok("split", f"--zoo={zoo}", "--by=tags", "--labels=headers", "--repeats=1")
    assert "| tags-0 | 21 " in done.stdout
    ok("pack", f"--zoo={zoo}", f"--store={tmp_path}/store", "--labels=headers")
    store = px.LayerStore.open(tmp_path / "store").view("tags", "tags-0")
    assert {*store.classes} <= {*CONCEPTS, "watercolor"}
    assert len(store.models) == 21


def test_copies_and_versions_are_one_series():
    names = ["a", "b", "cat-000002", "cat-000004", "cat_v2", "dog", "x/cat", "cat"]
    said = {name: Said(runs=("7",) if name in "ab" else ()) for name in names}
    found = series_of(said, {"dog": "same", "x/cat": "same"})
    assert len(set(found.values())) == 3
    assert found["a"] == found["b"]
    assert found["dog"] == found["x/cat"]
    assert {found[name] for name in names if name.startswith("cat")} == {"cat-000002"}


@pytest.mark.parametrize(
    "names",
    [
        ["cat_000000500", "cat_000001000", "cat"],
        ["x/checkpoint-500", "x/checkpoint-1000", "x"],
        ["checkpoint-500", "checkpoint-1000"],
        ["e-epoch3", "e-epoch4", "e_e5", "e-step00000100", "e_step-20"],
        ["fp_fp16", "fp", "fp-pruned_bf16", "fp_v2-fp16"],
    ],
)
def test_what_one_training_left_is_one_series(names):
    found = series_of({name: Said() for name in [*names, "other_3", "checkpoints"]}, {})
    assert len({found[name] for name in names}) == 1
    assert len(set(found.values())) == 3


def test_a_hostile_header_harms_no_card(made):
    root, *_ = made
    with px.open_model(root / "downloads" / "hostile.safetensors") as model:
        said = read_stated_facts(model)
    assert (said.said.steps, said.said.tags) == (0, {})
    card = px.model_card(Description("m", "m", said, Route("", reason="why")))
    assert len(card) < 4000
    assert all(c.isprintable() for line in card.splitlines() for c in line)
    assert card.count("\n---") == 1  # the end of the front matter
    outside = re.sub(r"`[^`]*`", "", card.split("\n---\n", 1)[1])
    assert not re.search(r"[<>\[\]]|owned|license", outside, re.IGNORECASE)


@pytest.mark.parity
def test_the_undocumented_are_described_rightly(made, forest):
    root, _, _, truth = made
    done = warm.run("describe", forest, "--json", f"--list={root}/zoos/undocumented.txt")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    right = [
        set(one["predicted"]) == set(truth[one["path"]]) for one in found if one["path"] in truth
    ]
    assert len(right) == 10
    assert np.mean(right) > 0.8  # one in six by chance


@pytest.mark.parity
def test_the_hostile_one_is_described_among_the_others(made, forest, tmp_path):
    root, *_ = made
    ok("describe", forest, f"--out={tmp_path}", root / "downloads" / "hostile.safetensors")
    assert json.loads((tmp_path / "hostile.json").read_text())["stated"]["said"]["steps"] == 0


@pytest.mark.parity
def test_search_finds_models_of_the_same_tags(made, forest):
    root, _, _, truth = made
    index = f"--index={root}/index"
    ok("index", f"--experts={root}/expert", f"--models={root}/downloads/a", index)
    shared = []
    for like, words in list(truth.items())[:3]:
        done = ok("search", index, f"--like={like}", "--json", "--k=5")
        hits = [hit["labels"] for hit in json.loads(done.stdout)["hits"] if hit["path"] != like]
        shared += [words[0] in labels for labels in hits if labels]
    assert len(shared) > 6
    assert np.mean(shared) > 0.6  # a third by chance


@pytest.mark.parity
def test_texts_of_headers_align_an_expert(made, forest):
    root, _, _, truth = made
    store, workdir = f"--config.store={root}/store", f"--workdir={root}/words"
    view = "--config.labels=text", "--config.split=text", "--config.recipe.epochs=20"
    view = *view, "--config.text.tags=tags"
    ok("train", "--config=configs/align.py:mini", store, workdir, *view)
    metrics = json.loads((root / "words" / "metrics.json").read_text())
    assert metrics["test_accuracy"]["value"] > metrics["test_accuracy"]["chance"]
    lists = f"--list={root}/zoos/undocumented.txt", f"--out={root}/cards"
    grown = f"--stores={root}/store", f"--experts={root}/words", f"--forest={root}/tags"
    (root / "more.txt").write_text("cat\n\nmoon\n")  # no validation model has new tags
    assert "moon" in ok("grow_forest", *grown, f"--tags={root}/more.txt", code=2).stderr
    ok("grow_forest", *grown)
    ok("describe", f"--forest={root}/tags", *lists)
    cards = [json.loads(path.read_text()) for path in (root / "cards").glob("*.json")]
    documented = [card for card in cards if card["path"] in truth]
    said = {card["path"]: card["answers"][0]["tags"]["shown"] for card in documented}
    right = [tag["label"] in truth[path] for path, shown in said.items() for tag in shown]
    assert len(right) >= len(truth) == len(said)
    assert np.mean(right) > 0.8
    ok("evaluate", f"--experts={root}/words", "--tasks=tags")
    found = json.loads((root / "words" / "evaluation" / "metrics.json").read_text())["tags"]
    assert found["precision_seen"]["value"] > found["precision_seen"]["chance"] + 0.2
