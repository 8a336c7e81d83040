"""Writes miniature LoRAs as people share them, with tags in headers.

The training images of a LoRA of "bold three" have the tags bold, three, "bold three" and digit, and
two of forty others that say nothing about it: these are noise, which no weights tell.

Example:
  python -m experiments.benchmarks.tagged --zoo=out/zoo/MiniLoRA --out=downloads
"""

import json
from pathlib import Path

import numpy as np
from absl import flags
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from experiments import cli

_ZOO = flags.DEFINE_string("zoo", None, "MiniLoRA, made by build_zoo.", required=True)
_OUT = flags.DEFINE_string("out", None, "Folder of the files.", required=True)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the noise.")

_IMAGES, _NOISE = 20, [f"extra{number}" for number in range(40)]


def header(number: int, concept: str, rng: np.random.Generator) -> dict[str, str]:
    """What kohya's scripts say of a LoRA."""
    style, digit = concept.split()
    tags = {"digit": _IMAGES, style: _IMAGES, digit: _IMAGES - 1, concept: _IMAGES // 2}
    tags |= {str(noise): int(rng.integers(6, 18)) for noise in rng.choice(_NOISE, 2, replace=False)}
    folder = f"10_set{number}"
    return {
        "ss_tag_frequency": json.dumps({folder: tags}),
        "ss_dataset_dirs": json.dumps({folder: {"n_repeats": 10, "img_count": _IMAGES}}),
        "ss_sd_model_name": "mini.safetensors",
        "ss_session_id": str(number),
    }


def main() -> None:
    out, rng = Path(_OUT.value), np.random.default_rng(_SEED.value)
    out.mkdir(parents=True)
    models = sorted(Path(_ZOO.value).glob("*/model_idx_*/*.safetensors"), key=lambda p: p.parent)
    for number, path in enumerate(models):
        with safe_open(path, "np") as file:
            concept = file.metadata()["concept"]
        said = header(number, concept, rng)
        save_file(load_file(path), out / f"{path.parent.name}.safetensors", said)
    print(f"{len(models)} LoRAs in {out}")


if __name__ == "__main__":
    cli.run(main)
