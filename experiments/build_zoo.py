r"""Fine-tunes the miniature zoo: trees of small models with known classes.

They are laid out like Model-J, ready for pack. Run the same command again to resume.

The size :attributes varies how models are trained and records it in `labels.csv`. The size
:families makes families of known descent, for lineage: roots, descendants, merges and copies, as
`family.json` lists them.

configs/zoo_planted.py makes models of real sizes in minutes, without training: classes are written
into random weights by hand, to measure time and memory.

Example:
  probex build_zoo --config=configs/zoo_miniature.py:demo \
    --out=out/zoo
  probex build_zoo --config=configs/zoo_planted.py:vit_base \
    --out=out/planted
"""

from absl import flags

from experiments import cli, zoo_steps
from probex_jax.bucket_paths import on_a_disk
from probex_jax.files import one_writer, write_json

_CONFIG = cli.config(
    "configs/zoo_miniature.py",
    "Config of the zoo. Append a size: :default, :demo, :tiny, :wide, :attributes or :families.",
)
_OUT = flags.DEFINE_string("out", None, "Folder of the zoo, made if absent.", required=True)


def main() -> None:
    out = on_a_disk(_OUT.value)
    with one_writer(out):
        rows = zoo_steps.build_zoo(_CONFIG.value.to_dict(), out)
        write_json(out / "metrics.json", rows)
    print(cli.table(rows))


if __name__ == "__main__":
    cli.run(main)
