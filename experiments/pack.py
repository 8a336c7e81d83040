r"""Packs the model files of a zoo into a layer store, which train reads.

The store keeps the label columns and splits that lie beside the models. Run it again to resume, to
add models, or after labels and splits have changed. Models that cannot be read are listed and
skipped.

Example:
  probex pack --zoo=out/zoo/MiniSupViT \
    --store=out/stores/MiniSupViT
"""

from pathlib import Path

from absl import flags

from experiments import cli, engines, label_steps, steps
from probex_jax.bucket_paths import as_path

_ZOO = flags.DEFINE_string(
    "zoo",
    None,
    "Folder of models, in train/, val/ and test/ or not, or its s3:// or gs:// address.",
    required=True,
)
_STORE = flags.DEFINE_string("store", None, "Folder of the store, made if absent.", required=True)
_LAYERS = flags.DEFINE_string(
    "layers",
    "",
    "Layers to pack: names, numbers of matrices or regular expressions, separated by commas. "
    "Default: all, matrices and vectors.",
)
_LABELS = flags.DEFINE_string(
    "labels",
    "",
    "Where labels come from, the first source first, separated by commas: headers, sidecars, "
    "front_matter, folders, and files in --zoo such as labels.json. Default: these files.",
)
_READERS = engines.readers_flag(2)


def main() -> None:
    zoo, store = Path(_ZOO.value), as_path(_STORE.value)
    engine = engines.engine()
    summary = steps.pack(zoo, store, _LAYERS.value, _LABELS.value, engine, _READERS.value)
    print(cli.table([steps.pack_row(summary)]))
    for line in label_steps.tables_lines(summary.store):
        print(cli.one_line(line))


if __name__ == "__main__":
    cli.run(main)
