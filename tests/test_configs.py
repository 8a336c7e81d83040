"""Every config: complete, locked, and what the papers' recipes say."""

import dataclasses
import importlib
import subprocess
import sys
from pathlib import Path

import ml_collections
import pytest

from configs import default
from experiments import zoo_steps
from probex_jax.experts import Alignment
from probex_jax.fitting import Adam, ClosedForm, build_network
from probex_jax.fitting.network import encoder_settings
from probex_jax.language import HashingEncoder
from probex_jax.model_files import select_layers
from probex_jax.zoo import miniature
from tests.model_files.test_layers import resnet_101, vit_base

ROOT = Path(__file__).parents[1]
NAMES = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
SHARED = {"__init__"}  # no config
SUBSETS = ("supvit", "dino", "mae", "resnet", "sd_200", "sd_1k")
METHODS = ("probex", "mvprobe")
SIZES = {
    "zoo_miniature": (
        *("default", "demo", "tiny", "wide"),
        *(f"{size}{tiny}" for size in ("attributes", "families") for tiny in ("", "_tiny")),
    ),
    "zoo_planted": ("vit_base", "sd_lora", "tiny"),
    "paper": tuple(f"{method}_{subset}" for method in METHODS for subset in SUBSETS),
}


def config_of(name, *size):
    return importlib.import_module(f"configs.{name}").get_config(*size)


def sizes(name):
    """The default one, and the others where there are some."""
    if name in SIZES:
        return [(), *((size,) for size in SIZES[name])]
    takes_one = importlib.import_module(f"configs.{name}").get_config.__code__.co_argcount
    return [(), ("paper",), ("mini",)] if takes_one else [()]


CONFIGS = [(name, size) for name in NAMES if name not in SHARED for size in sizes(name)]


def test_there_are_configs_for_all_methods():
    assert {"default", "probex", "mvprobe", "dense", "statnn", "paper"} <= set(NAMES)


def all_locked(config):
    inner = [value for value in config.values() if isinstance(value, ml_collections.ConfigDict)]
    return config.is_locked and all(map(all_locked, inner))


@pytest.mark.parametrize(("name", "size"), CONFIGS)
def test_a_config_is_locked_and_builds_what_it_says(name, size):
    """As `experiments.steps` takes it: every field is used, and every one that is used is there."""
    config = config_of(name, *size)
    assert all_locked(config)
    with pytest.raises((AttributeError, KeyError)):
        config.unheard_of = 1
    config = config.to_dict()
    if "kinds" in config:
        settings = dataclasses.asdict(zoo_steps.family_settings(config))
        training = config.pop("training")
        assert training.items() <= settings.pop("training").items()
        assert settings == config
        return
    if name == "zoo_miniature":
        assert dataclasses.asdict(zoo_steps.zoo_settings(config)) == config
        return
    if name == "zoo_planted":
        assert dataclasses.asdict(miniature.Planted(**config)) == config
        return
    encoder, recipe = config.pop("encoder"), config.pop("recipe")
    assert [config.pop(field) for field in ("store", "labels", "split")] == ["", "", ""]
    if name == "statnn":
        assert (encoder, recipe, config) == ({"name": "statnn", "n_trees": 500}, {"seed": 0}, {})
        return
    head, text = config["head"], config.pop("text", None)
    logit_scale = text["logit_scale"] if text else 1.0
    network = build_network(
        encoder, head, 20, logit_scale=logit_scale, normalise=config["normalise"]
    )
    # Every field of the encoder but that which the classes decide is in the config.
    fields = set(encoder_settings(network.encoder)) - {"rep_dim"}
    assert fields - set(encoder) <= ({"standardise"} if name == "dense" else set())
    made = {"adam": Adam, "ridge": ClosedForm}[config["fit"]](**recipe)
    assert set(recipe) == set(type(made).__dataclass_fields__)
    assert (head == "text") == (text is not None)
    if text:
        alignment = Alignment(HashingEncoder(), text.pop("encoder"), **text)
        assert alignment.template == "a photo of a {class}"
    assert config.pop("task") == ""
    used = {"layers", "head", "normalise", "committee", "fit", "save_every_s"}
    if made.__class__ is Adam:
        assert config.pop("grid") == {"learning_rate": (), "l2": (), "seed": ()}
        assert config.pop("stream") is False
    assert config.keys() == used
    assert type(config["committee"]) is int
    assert config["committee"] >= 0


def test_an_unknown_size_is_refused():
    for name in (
        "probex",
        "mvprobe",
        "dense",
        "committee",
        "align",
        "zoo_miniature",
        "zoo_planted",
        "paper",
    ):
        with pytest.raises(ValueError, match="'big': expected"):
            config_of(name, "big")


# Layers by the papers' numbers; of the LoRAs, whose names are not made here, by its name.
LORA = "unet.down_blocks.2.attentions.1.transformer_blocks.0.attn2.to_q"
PROBEX = {"supvit": 59, "dino": 59, "mae": 64, "resnet": 59, "sd_200": LORA, "sd_1k": LORA}
MVPROBE = PROBEX | {"dino": 47, "resnet": 67}


def layer_of(subset, layer):
    names = resnet_101() if subset == "resnet" else vit_base()
    return layer if layer == LORA else select_layers(names, layer)[0]


ADAM = {"batch_size": 128, "seed": 0, "compute": "float32", "storage": "float32"}
CLASSES = {**ADAM, "l2": 1e-5, "epochs": 500, "eval_every": 25}
TEXTS = {**ADAM, "l2": 0.0, "eval_every": 10}


@pytest.mark.parametrize("subset", SUBSETS)
@pytest.mark.parametrize("method", METHODS)
def test_the_papers_recipes(method, subset):
    config = config_of("paper", f"{method}_{subset}").to_dict()
    aligned = subset.startswith("sd_")
    expected = {"probex": PROBEX, "mvprobe": MVPROBE}[method][subset]
    assert config["layers"] == layer_of(subset, expected)
    encoder = {"name": method, "n_probes": 128, "proj_dim": 128}
    if method == "probex":
        encoder |= {"rep_dim": 512 if aligned else 128, "relu": True, "standardise": False}
        rates = {"learning_rate": 2e-3, "epochs": 200} if aligned else {"learning_rate": 1e-3}
    else:
        encoder |= {"rep_dim": 512, "standardise": True, "relu": True}
        encoder["branches"] = ("xu", "xxtu", "xtu", "xtxu")
        rates = {"learning_rate": 3e-4, "epochs": 500}
    assert config["encoder"] == encoder
    assert config["recipe"] == (TEXTS if aligned else CLASSES) | rates
    assert config["head"] == ("text" if aligned else "class")
    assert (config["normalise"], config["committee"], config["fit"]) == ("none", 1, "adam")
    if aligned:
        assert config["text"] == {
            "encoder": "clip:openai/clip-vit-large-patch14",
            "template": "a photo of a {class}",
            "logit_scale": 1.0,
            "tags": "",
        }


def test_train_without_a_config_is_the_default():
    program = """if True:
        import experiments.train
        from absl import flags
        print(flags.FLAGS["config"].default_as_str)"""
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert found.stdout == f"'{ROOT / 'configs' / 'default.py'}'\n"
    config = default.get_config()
    assert (config.encoder.name, config.fit, config.normalise) == ("probex", "ridge", "centre")
    assert config.encoder.relu is False
