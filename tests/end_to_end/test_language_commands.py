"""Alignment, its evaluation and search, as a user runs them."""

import json
import shutil

import numpy as np
import pytest

import probex_jax as px
from probex_jax.language import HashingEncoder, save_embeddings
from tests.conftest import CONCEPTS, HELD_OUT, write_toy_lora
from tests.end_to_end import warm
from tests.end_to_end.test_commands import run
from tests.reports.pages import check_harmless

pytestmark = pytest.mark.xdist_group("language commands")

SMALL = [
    "--config=configs/align.py:mini",
    "--config.recipe.epochs=40",
    "--config.recipe.batch_size=32",
    "--config.recipe.learning_rate=3e-3",
    "--config.encoder.n_probes=8",
    "--config.encoder.proj_dim=8",
    "--config.encoder.rep_dim=32",
    "--config.layers=a",
]
TASKS = "--tasks=classify,zero_shot,knn,occ,retrieval"


@pytest.fixture(scope="module")
def made(toy_lora_zoo, tmp_path_factory):
    """LoRAs packed, aligned, evaluated, indexed and searched by the commands."""
    folder = tmp_path_factory.mktemp("language")
    store, workdir, index = folder / "store", folder / "w", folder / "index"
    of_index = [f"--experts={workdir}/expert_val_holdout", f"--index={index}"]
    outputs = {
        "pack": warm.run("pack", f"--zoo={toy_lora_zoo}", f"--store={store}"),
        "train": warm.run("train", *SMALL, f"--config.store={store}", f"--workdir={workdir}"),
        "evaluate": warm.run("evaluate", f"--experts={workdir}", f"--store={store}", TASKS),
        "index": warm.run("index", f"--models={toy_lora_zoo}", *of_index),
        "index again": warm.run("index", f"--models={toy_lora_zoo}", *of_index, "--prune"),
        "search": run(
            "search",
            f"--index={index}",
            "--query=a pink dog",
            "--k=5",
            "--filter=split like 'test%'",
        ),
    }
    return folder, outputs


def cells(table):
    header, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table.strip().splitlines()
        if line.startswith("|")
    ]
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_all_succeed_in_silence(made):
    for name, done in made[1].items():
        assert (done.returncode, done.stderr) == (0, ""), (name, done.stderr)


def test_training_shows_both_zero_shot_figures(made):
    folder, outputs = made
    (row,) = cells(outputs["train"].stdout.split("\n\n")[1])
    metrics = json.loads((folder / "w" / "metrics.json").read_text())
    found = metrics["zero_shot"]
    assert row["zero-shot among 3"].startswith(f"{found['among_held_out']['value']:.3f} [")
    assert row["among all 16"].startswith(f"{found['among_all']['value']:.3f} [")
    assert found["among_held_out"]["value"] > 0.6


def test_the_report_maps_held_out_concepts_too(made, toy_lora_zoo):
    folder, _ = made
    text = (folder / "w" / "report.html").read_text()
    drawn = check_harmless(text).starts
    n_models = sum(len([*(toy_lora_zoo / split).iterdir()]) for split in ("test", "test_holdout"))
    marks = [at for tag, at in drawn if tag == "g" and at.get("class") == "px-mark"]
    rings = [at for tag, at in drawn if tag == "circle" and at.get("class") == "px-ring"]
    assert len(marks) == n_models
    assert len(rings) == len([*(toy_lora_zoo / "test_holdout").iterdir()]) + 1, (
        "one is the legend's"
    )
    found = json.loads((folder / "w" / "metrics.json").read_text())["zero_shot"]
    assert f">{found['among_held_out']['value']:.3f}</td>" in text


def test_evaluate_agrees_with_training(made):
    folder, outputs = made
    trained = json.loads((folder / "w" / "metrics.json").read_text())
    evaluated = json.loads((folder / "w" / "evaluation" / "metrics.json").read_text())
    assert evaluated["classify"]["accuracy"].items() >= trained["test_accuracy"].items()
    for name in ("among_held_out", "among_all"):
        assert evaluated["zero_shot"][name].items() >= trained["zero_shot"][name].items()
    rows = cells(outputs["evaluate"].stdout.split("\n\n")[-1])
    assert {row["task"] for row in rows} == {"classify", "zero_shot", "knn", "occ", "retrieval"}
    assert next(row for row in rows if row["task"] == "zero_shot")["classes"] == "3 held out"
    assert [row["figure"] for row in rows if row["task"] == "classify"] == ["accuracy", "macro AUC"]


def test_search_finds_the_concept_that_was_held_out(made):
    _, outputs = made
    rows = cells(outputs["search"].stdout)
    assert len(rows) == 5
    assert [row["text"] for row in rows].count("pink dog") >= 3
    similarities = [float(row["similarity"]) for row in rows]
    assert similarities == sorted(similarities, reverse=True)


def test_indexing_again_changes_nothing(made):
    first, again = (cells(made[1][name].stdout)[0] for name in ("index", "index again"))
    count = str(12 * len(CONCEPTS))
    assert (first["added"], first["models"]) == (count, count)
    assert (again["added"], again["unchanged"], again["pruned"]) == ("0", count, "0")
    assert again["models"] == count


def test_like_and_json(made, toy_lora_zoo):
    model = next((toy_lora_zoo / "test").iterdir())
    done = warm.run("search", f"--index={made[0]}/index", f"--like={model}", "--json", "--k=3")
    found = json.loads(done.stdout)
    assert [hit["rank"] for hit in found["hits"]] == [1, 2, 3]
    assert all(set(hit["labels"]) <= set(CONCEPTS) for hit in found["hits"])
    assert str(model.resolve()) not in {hit["path"] for hit in found["hits"]}


@pytest.mark.parity
def test_precomputed_embeddings_give_the_same_expert(made, tmp_path):
    """A file of the same vectors under the same name stands for the encoder itself."""
    texts = [f"a photo of a {name}" for name in CONCEPTS]
    encoder = HashingEncoder()
    save_embeddings(tmp_path / "e.safetensors", encoder.name, texts, encoder.encode(texts))
    done = warm.run(
        "train",
        *SMALL,
        f"--config.store={made[0]}/store",
        f"--workdir={tmp_path}/w",
        f"--config.text.encoder=file:{tmp_path}/e.safetensors",
    )
    assert done.returncode == 0, done.stderr
    ours, theirs = (px.Expert.load(folder / "w") for folder in (tmp_path, made[0]))
    np.testing.assert_array_equal(
        ours.variables["params"]["encoder"]["probes_xu"],
        theirs.variables["params"]["encoder"]["probes_xu"],
    )


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("search", ["--index={0}/index", "--query= "], "the query is empty"),
        ("search", ["--index={0}/index"], "give --query or --like"),
        ("search", ["--index={0}/none", "--query=x"], "no index here"),
        (
            "index",
            ["--experts={0}/w/expert", "--models={0}/zoo", "--index={0}/index"],
            "index of the expert of tree ToyLoRA, layer a (hash ",
        ),
        (
            "train",
            [*SMALL, "--config.store={0}/store", "--workdir={0}/x", "--config.text.encoder=bert"],
            "text encoder 'bert': expected hashing",
        ),
        ("pack", ["--zoo={0}/zoo", "--store={0}/s"], "held-out class"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(made, toy_lora_zoo, command, arguments, message):
    zoo = made[0] / "zoo"
    if not zoo.exists():
        shutil.copytree(toy_lora_zoo, zoo)
        write_toy_lora(zoo / "train" / "cheat", HELD_OUT[0], np.random.default_rng(0))
    done = warm.run(command, *(argument.format(made[0]) for argument in arguments))
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
