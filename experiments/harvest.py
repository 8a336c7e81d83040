r"""Makes zoos of a folder of models, labelled by what their files say.

Tags, trigger words and classes become label columns. They come from headers, the files of LoRA
managers, READMEs and folder names; each tree gets a zoo with splits, for pack and train. Models
that say nothing are listed in undocumented.txt, for describe. Models that cannot be read are
reported; the exit code is then 1, or 2 if none was read.

Example:
  probex harvest --models=downloads --out=out/harvest
"""

from absl import flags

import probex_jax as px
from experiments import cli, engines, harvest_steps
from probex_jax.bucket_paths import as_path
from probex_jax.search import find_models
from probex_jax.zoo.stated_labels import RULES, TagRules, label_sources
from probex_jax.zoo.tables import LABEL_FILES

_MODELS = flags.DEFINE_string("models", None, "Folder of models, at any depth.", required=True)
_OUT = flags.DEFINE_string("out", None, "Folder of the zoos, made if absent.", required=True)
_LABELS = flags.DEFINE_string(
    "labels",
    "headers,sidecars,front_matter,folders",
    "Where labels come from, the first source first.",
)
_SHARE = flags.DEFINE_float(
    "share", RULES.share, "Share of a model's images that must have a tag.", 0, 1
)
_WEIGHT = flags.DEFINE_float(
    "weight",
    RULES.weight,
    "Least weight of a tag: its share times log2 of its rarity among models.",
    lower_bound=0,
)
_LEAST = flags.DEFINE_integer(
    "least", RULES.models, "Least number of models of a class.", lower_bound=1
)
_BY_BASE = flags.DEFINE_bool(
    "by_base",
    True,
    "Keep LoRAs of different checkpoints in different trees; otherwise those that change the "
    "same layers are one.",
)
_OVERWRITE = flags.DEFINE_bool(
    "overwrite", False, "Replace the zoos of an earlier harvest in --out."
)
_MOST = flags.DEFINE_integer("most", 20, "Trees to list, the largest first.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the splits.", lower_bound=0)


def main() -> int:
    sources = label_sources(_LABELS.value)
    if files := [source for source in sources if source in LABEL_FILES]:
        raise px.ProbexError(f"--labels: {files[0]} belongs to a zoo; pack and split take it")
    models = find_models(_MODELS.value)
    rules = TagRules(share=_SHARE.value, weight=_WEIGHT.value, models=_LEAST.value)
    found = harvest_steps.harvest(
        models, sources, rules, _SEED.value, by_base=_BY_BASE.value, engine=engines.engine()
    )
    if not found.trees:
        raise px.ProbexError(f"{_MODELS.value}: no model could be read")
    out = as_path(_OUT.value)
    harvest_steps.write_harvest(found, models, out, overwrite=_OVERWRITE.value)
    print(cli.table(harvest_steps.harvest_rows(found)[: _MOST.value]))
    for line in harvest_steps.lines(found, len(models)):
        print(line)
    return 1 if found.failed else 0


if __name__ == "__main__":
    cli.run(main)
