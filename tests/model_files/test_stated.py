"""What files say of themselves: every writer's spelling, and what strangers write instead."""

import dataclasses
import json
import time

import numpy as np
import pytest
from safetensors.numpy import save_file

from probex_jax.forest.stated_facts import read_stated_facts
from probex_jax.model_files import open_model, read_stated

TENSORS = {"layer.weight": np.ones((2, 2), "f4")}


def said(folder, metadata=None, beside=None, name="mine.safetensors", **options):
    folder.mkdir(exist_ok=True)
    save_file(TENSORS, folder / name, metadata)
    for other, content in (beside or {}).items():
        data = content if isinstance(content, str | bytes) else json.dumps(content)
        (folder / other).write_bytes(data if isinstance(data, bytes) else data.encode())
    with open_model(folder / name) as model:
        return read_stated(model, **options)


def fields(found):
    """Those that say something."""
    plain = dataclasses.asdict(found)
    return {name: value for name, value in plain.items() if value and name != "sources"}


KOHYA = {
    "ss_tag_frequency": json.dumps({"10_sks cat": {" sofa": 5, "cat": 12}, "2_dog": {"cat": 1}}),
    "ss_dataset_dirs": json.dumps(
        {
            "10_sks cat": {"n_repeats": 10, "img_count": 12},
            "2_dog": {"n_repeats": 2, "img_count": 8},
        }
    ),
    "ss_num_train_images": "136",
    "ss_base_model_version": "sdxl_base_v1-0",
    "ss_sd_model_name": "ponyDiffusionV6XL.safetensors",
    "ss_new_sd_model_hash": "abc",
    "ss_sd_model_hash": "None",
    "ss_network_module": "lycoris.kohya",
    "ss_network_args": '{"algo": "loha", "conv_dim": "4"}',
    "ss_network_dim": "16",
    "ss_network_alpha": "8.0",
    "ss_learning_rate": "0.0001",
    "ss_steps": "1200",
    "ss_epoch": "3",
    "ss_batch_size_per_device": "2",
    "ss_total_batch_size": "4",
    "ss_optimizer": "bitsandbytes.optim.adamw.AdamW8bit(weight_decay=0.1)",
    "ss_num_epochs": "10",
    "ss_resolution": "(1024, 1024)",
    "ss_output_name": "sofa cats",
    "ss_training_comment": "None",
    "ss_session_id": "77",
    "sshs_model_hash": "beef",
}


def test_kohya(tmp_path):
    found = said(tmp_path, KOHYA)
    assert fields(found) == {
        "tags": {"cat": 13, "sofa": 5},
        "folders": {"sks cat": 12, "dog": 8},
        "images": 20,
        "base": "ponyDiffusionV6XL.safetensors",
        "base_version": "sdxl_base_v1-0",
        "base_hash": "abc",
        "method": "loha",
        "rank": 16.0,
        "alpha": 8.0,
        "learning_rate": 1e-4,
        "steps": 1200,
        "epochs": 3,
        "batch_size": 4,
        "optimiser": "bitsandbytes.optim.adamw.AdamW8bit(weight_decay=0.1)",
        "resolution": "(1024, 1024)",
        "title": "sofa cats",
        "session": "77",
        "checksum": "beef",
    }
    assert found.sources["tags"] == "metadata, ss_tag_frequency"
    assert found.sources["method"] == "metadata, ss_network_args/algo"
    assert found.shares == {"cat": 0.65, "sofa": 0.25, "sks cat": 0.6, "dog": 0.4}


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        (
            {
                "modelspec.title": "Cats",
                "modelspec.architecture": "flux-1-dev/lora",
                "modelspec.trigger_phrase": "sks, cat on a sofa",
                "modelspec.tags": "animal, style",
                "modelspec.author": "me",
                "modelspec.date": "2026-01-02T03:04:05",
                "modelspec.license": "CC0",
                "modelspec.description": "Cats,\n\tmostly.",
                "modelspec.resolution": "1024x1024",
            },
            {
                "title": "Cats",
                "architecture": "flux-1-dev/lora",
                "triggers": ("sks", "cat on a sofa"),
                "topics": ("animal", "style"),
                "author": "me",
                "date": "2026-01-02T03:04:05",
                "licence": "CC0",
                "description": "Cats, mostly.",
                "resolution": "1024x1024",
            },
        ),
        (  # ai-toolkit
            {"training_info": '{"step": 900, "epoch": 4}', "trigger_word": "t0k", "name": "t"},
            {"steps": 900, "epochs": 4, "triggers": ("t0k",), "title": "t"},
        ),
        (  # OneTrainer
            {
                "ot_config": json.dumps(
                    {
                        "base_model_name": "a/b",
                        "model_type": "FLUX_DEV_1",
                        "learning_rate": 0.0003,
                        "lora_rank": 16,
                        "lora_alpha": 1.0,
                        "batch_size": 2,
                        "optimizer": {"optimizer": "ADAMW", "weight_decay": 0.01},
                        "peft_type": "LORA",
                        "resolution": "768",
                        "concepts": [{"name": "cats", "path": "/x"}, {"name": ""}, 7],
                    }
                )
            },
            {
                "base": "a/b",
                "base_version": "FLUX_DEV_1",
                "learning_rate": 0.0003,
                "rank": 16.0,
                "alpha": 1.0,
                "batch_size": 2,
                "optimiser": "ADAMW",
                "method": "LORA",
                "resolution": "768",
                "topics": ("cats",),
            },
        ),
        (  # kohya with a file of datasets
            {
                "ss_datasets": json.dumps(
                    [
                        {
                            "tag_frequency": {"3_x": {"cat": 2}},
                            "subsets": [
                                {
                                    "image_dir": "C:\\data\\3_x",
                                    "img_count": 4,
                                    "class_tokens": "ohwx cat",
                                }
                            ],
                        }
                    ]
                )
            },
            {"tags": {"cat": 2}, "folders": {"x": 4}, "images": 4, "triggers": ("ohwx cat",)},
        ),
        (  # GGUF
            {
                "general.architecture": "llama",
                "general.name": "Llama",
                "general.tags": '["text-generation", "chat"]',
                "general.license": "llama3",
                "general.base_model.0.name": "Llama 3",
            },
            {
                "architecture": "llama",
                "title": "Llama",
                "topics": ("text-generation", "chat"),
                "licence": "llama3",
                "base": "Llama 3",
            },
        ),
        ({"dataset_chosen_targets": "['cat', \"sea's\"]"}, {"labels": ("cat", "sea's")}),
        ({"concept": " red cat "}, {"labels": ("red cat",)}),
    ],
)
def test_other_headers(tmp_path, metadata, expected):
    assert fields(said(tmp_path, metadata)) == expected


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            "mine.civitai.info",
            {
                "baseModel": "Pony",
                "trainedWords": ["sks cat, sofa", "dog"],
                "description": None,
                "model": {"name": "Cats", "tags": ["animal"], "description": "<p>All cats</p>"},
                "creator": {"username": "me"},
                "images": [{"meta": {"prompt": "a cat"}}, {"meta": None}],
            },
            {
                "base": "Pony",
                "base_version": "Pony",
                "triggers": ("sks cat", "sofa", "dog"),
                "title": "Cats",
                "topics": ("animal",),
                "description": "<p>All cats</p>",
                "author": "me",
                "captions": ("a cat",),
            },
        ),
        (
            "mine.metadata.json",
            {
                "model_name": "Cats",
                "base_model": "SDXL 1.0",
                "tags": ["animal"],
                "modelDescription": "",
                "notes": "nice",
                "civitai": {"trainedWords": ["sks"], "creator": {"username": "me"}},
            },
            {
                "title": "Cats",
                "base": "SDXL 1.0",
                "base_version": "SDXL 1.0",
                "topics": ("animal",),
                "triggers": ("sks",),
                "author": "me",
                "description": "nice",
            },
        ),
        (
            "mine.json",
            {"sd version": "SD1", "activation text": "sks, cat", "preferred weight": 0.7},
            {"base": "SD1", "base_version": "SD1", "triggers": ("sks", "cat")},
        ),
        (
            "mine.cm-info.json",
            {"ModelName": "Cats", "TrainedWords": ["sks"], "BaseModel": "SDXL", "Tags": ["a"]},
            {"title": "Cats", "triggers": ("sks",), "topics": ("a",)}
            | dict.fromkeys(["base", "base_version"], "SDXL"),
        ),
        ("yours.json", {"activation text": "sks"}, {}),
        (
            "adapter_config.json",
            {
                "base_model_name_or_path": "a/b",
                "peft_type": "LORA",
                "r": 8,
                "lora_alpha": 16,
                "target_modules": ["q_proj", "v_proj"],
                "task_type": "CAUSAL_LM",
            },
            {
                "base": "a/b",
                "method": "LORA",
                "rank": 8.0,
                "alpha": 16.0,
                "modules": ("q_proj", "v_proj"),
                "task": "CAUSAL_LM",
            },
        ),
        (
            "config.json",
            {"_class_name": "UNet2DConditionModel", "_name_or_path": "a/b"},
            {"architecture": "UNet2DConditionModel", "base": "a/b"},
        ),
        (
            "README.md",
            "---\nbase_model:\n  - a/b\n  - c/d\ntags: [lora, 'text-to-image']\nlicense: other\n"
            'license_name: flux  # theirs\ninstance_prompt: "a photo of sks cat"\n'
            "datasets:\n- me/cats\nlibrary_name: diffusers\npipeline_tag: text-to-image\n"
            "widget:\n- text: >-\n    sks cat\n    on a sofa\n  output:\n    url: x.png\n"
            "- text: null\n---\n# Cats\ninstance_prompt: no\n",
            {
                "base": "a/b",
                "topics": ("lora", "text-to-image"),
                "licence": "flux",
                "triggers": ("a photo of sks cat",),
                "datasets": ("me/cats",),
                "library": "diffusers",
                "task": "text-to-image",
                "captions": ("sks cat on a sofa",),
            },
        ),
        (  # A list may go on without an indent.
            "README.md",
            '---\ntags: [\ncat,\n"dog"\n]\nlicense: mit\nlicense: no\n---\n',
            {"topics": ("cat", "dog"), "licence": "mit"},
        ),
        (  # What stands around a mistake is read, and of a field twice the first.
            "README.md",
            "\ufeff---\ntags:\n- cat\nx: y: z\n\tz: [\nlicense: mit\nlicense: no\n---\n".replace(
                "\n", "\r\n"
            ),
            {"topics": ("cat",), "licence": "mit"},
        ),
    ],
)
def test_what_lies_beside(tmp_path, name, content, expected):
    assert fields(said(tmp_path, beside={name: content})) == expected


def test_a_readme_beside_many_files_is_of_none_of_them(tmp_path):
    beside = {
        "README.md": "---\nbase_model: x/y\ninstance_prompt: sks\n---\n",
        "config.json": {"id2label": {"0": "cat", "1": "dog"}},
        "adapter_config.json": {"r": 4},
        "mine.json": {"activation text": "mine"},
    }
    one = said(tmp_path, beside=beside)
    assert (one.base, one.triggers, one.labels) == ("x/y", ("mine", "sks"), ("cat", "dog"))
    save_file(TENSORS, tmp_path / "yours.safetensors")
    assert fields(said(tmp_path, beside=beside)) == {"triggers": ("mine",)}
    assert said(tmp_path, beside=beside, name="model.safetensors").base == "x/y"


def test_words_of_all_places_come_together_and_of_other_fields_the_first(tmp_path):
    beside = {
        "mine.json": {"activation text": "b, c"},
        "README.md": "---\ninstance_prompt: d\nlicense: mit\n---\n",
    }
    metadata = {"modelspec.trigger_phrase": "a, b", "modelspec.license": "cc0"}
    found = said(tmp_path, metadata, beside)
    assert (found.triggers, found.licence) == (("a", "b", "c", "d"), "cc0")
    assert found.sources["triggers"] == "metadata, modelspec.trigger_phrase"
    for source, triggers in {"headers": "ab", "sidecars": "bc", "front_matter": "d"}.items():
        assert said(tmp_path, metadata, beside, sources=[source]).triggers == tuple(triggers)


def test_tags_that_say_how_a_model_was_made_are_not_what_it_was_trained_on(tmp_path):
    tags = "generated_from_trainer, text-classification, LoRA, diffusers, en, base_model:a/b"
    readme = {"README.md": f"---\nlicense: mit\ntags: [{tags}]\n---\n"}
    found = said(tmp_path, beside=readme)
    assert (found.about, found.shares, len(found.topics)) == ((), {}, 6)
    with open_model(tmp_path / "mine.safetensors") as model:
        facts = read_stated_facts(model)
    assert (facts.labels, facts.source) == ((), "")
    found = said(tmp_path, {"ss_dataset_dirs": '{"1_cat": {"img_count": 3}}'}, readme)
    assert found.about == ("cat",)
    with open_model(tmp_path / "mine.safetensors") as model:
        assert read_stated_facts(model).source == "metadata, ss_dataset_dirs"


@pytest.mark.parametrize("without", ["", "ss_tag_frequency", "ss_dataset_dirs", "ss_datasets"])
def test_regularisation_images_are_not_what_it_was_trained_on(tmp_path, without):
    tags = {"10_sks dog": {"sks dog": 20, "park": 15}, "1_dog": {"dog": 500}}
    subsets = [
        {"image_dir": "/a/10_sks dog", "class_tokens": "sks dog", "img_count": 20, "is_reg": False},
        {"image_dir": "/a/1_dog", "class_tokens": "dog", "img_count": 500, "is_reg": True},
    ]
    metadata = {
        "ss_tag_frequency": tags,
        "ss_dataset_dirs": {"10_sks dog": {"img_count": 20}},
        "ss_reg_dataset_dirs": {"1_dog": {"img_count": 500}},
        "ss_datasets": [{"tag_frequency": tags, "subsets": subsets}],
    }
    found = said(tmp_path, {k: json.dumps(v) for k, v in metadata.items() if k != without})
    assert found.shares == {"sks dog": 1.0, "park": 0.75}
    assert (found.folders, found.images) == ({"sks dog": 20}, 20)
    assert found.triggers == (() if without == "ss_datasets" else ("sks dog",))


@pytest.mark.parametrize("without", ["ss_tag_frequency", "ss_dataset_dirs", ""])
def test_a_folder_in_several_resolutions_counts_once(tmp_path, without):
    tags, count = {"10_sks": {"cat": 18, "sofa": 6}, "2_x (2)": {"dog": 9}}, {"img_count": 20}
    folders = {"10_sks": count, "2_x (2)": count, "10_sks (2)": count, "10_sks (3)": count}
    subset, other = {"image_dir": "10_sks", **count}, {"image_dir": "2_x (2)", **count}
    datasets = [{"tag_frequency": tags, "subsets": [subset, other]}, {"subsets": [subset]}]
    datasets[1]["tag_frequency"] = {"10_sks": tags["10_sks"]}
    metadata = {"ss_tag_frequency": tags, "ss_dataset_dirs": folders, "ss_datasets": datasets}
    found = said(tmp_path, {k: json.dumps(v) for k, v in metadata.items() if k != without})
    assert (found.folders, found.images) == ({"sks": 20, "x (2)": 20}, 40)
    assert found.tags == {"cat": 18, "sofa": 6, "dog": 9}


def test_a_number_within_the_name_of_a_folder_is_no_repeats(tmp_path):
    names = ["3_my_style_v2_final", "cat10_dog", "2girls_beach"]
    metadata = {"ss_dataset_dirs": json.dumps({name: {"img_count": 1} for name in names})}
    assert [*said(tmp_path, metadata).folders] == ["my_style_v2_final", *names[1:]]


def test_images_are_counted_without_repeats_in_every_folder(tmp_path):
    folders = {f"10_x{n}": {"img_count": 2} for n in range(100)}
    metadata = {
        "ss_num_train_images": "2000",
        "ss_dataset_dirs": json.dumps(folders),
        "ss_tag_frequency": '{"10_x0": {"cat": 50}}',
    }
    found = said(tmp_path, metadata)
    assert (found.images, found.sources["images"]) == (200, "metadata, ss_dataset_dirs")
    assert found.shares["cat"] == 0.25
    found = said(tmp_path, {"ss_num_train_images": "2000"})
    assert (found.images, found.sources["images"]) == (2000, "metadata, ss_num_train_images")


def test_a_folder_of_both_kinds_of_images_is_trained_on(tmp_path):
    metadata = {
        "ss_tag_frequency": '{"1_dog": {"park": 9}}',
        "ss_dataset_dirs": '{"1_dog": {"img_count": 9}}',
        "ss_reg_dataset_dirs": '{"1_dog": {"img_count": 9}}',
    }
    assert said(tmp_path, metadata).tags == {"park": 9}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "None",
        "{",
        "[]",
        "7",
        "{}" * 10**5,
        "[" * 10**5,
        '{"a":' * 10**5,
        json.dumps({"a": {"t": -1, "u": 0, "v": True, "w": 1.5, "x": "7", "y": 10**12}}),
        json.dumps({"a": {"x" * 10**5: 5, "\u202e": 5, "a\nb": 5, "\x1b[2J": 5, "": 5}}),
        '{"a": {"\\ud800": 5}}',
        '{"a": {"t": 5, "t": 6}}',
        '{"a": {"t": ' + "9" * 5000 + "}}",
        '{"a": {"t": NaN}}',
        json.dumps({str(n): {} for n in range(30_000)}),
        json.dumps([{"subsets": [{}] * 900}] * 200),
    ],
    ids=range(16),
)
def test_a_hostile_field_says_nothing_and_takes_no_time(tmp_path, text):
    keys = ["ss_tag_frequency", "ss_dataset_dirs", "ss_datasets", "ss_reg_dataset_dirs"]
    keys += ["ot_config", "ss_network_args"]
    keys += ["ss_steps", "ss_learning_rate", "ss_network_dim", "dataset_chosen_targets"]
    metadata = dict.fromkeys(keys, text) | {"ss_output_name": "kept"}
    if text == "7":
        del metadata["ss_steps"], metadata["ss_learning_rate"], metadata["ss_network_dim"]
    began = time.process_time()
    found = said(tmp_path, metadata)
    assert time.process_time() - began < 10
    assert fields(found).keys() <= {"title", "folders"}
    assert found.title == "kept"
    assert len(found.folders) <= 64


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x]\n" + "".join(f"{n}: &{n} [*a, *a]\n" for n in "bcdefgh") + "tags: *h",
        "tags: " + "[" * 60_000,
        "tags:\n" + "- " * 30_000 + "x",
        "tags: !!python/object/apply:os.system ['true']",
        "tags: {a: b}",
        "? [a, b]\n: c",
        "tags: " + "x" * 65_000,
        "tags: \x00",
        "- tags",
        "tags\n---\ntags: x",
        "%YAML 9.9\n--- \ntags: x",
        "{" * 60_000,
        "a: " * 20_000,
    ],
    ids=range(13),
)
def test_hostile_front_matter_says_nothing_and_takes_no_time(tmp_path, text):
    began = time.process_time()
    found = said(tmp_path, beside={"README.md": f"---\n{text}\n---\n"})
    assert time.process_time() - began < 10
    assert set(found.topics) <= {"true"}
    assert fields(found).keys() <= {"topics"}


def test_of_very_many_the_most_frequent_are_kept(tmp_path):
    tags = {f"tag {n}": n + 1 for n in range(30_000)}
    metadata = {
        "ss_tag_frequency": json.dumps({"1_x": tags}),
        "modelspec.tags": ",".join(map(str, range(10**5))),
        "modelspec.description": "long " * 10**5,
    }
    found = said(tmp_path, metadata)
    assert next(iter(found.tags)) == "tag 29999"
    assert len(found.tags) <= 1000
    assert len(found.topics) < 100
    assert len(found.description) < 2000
