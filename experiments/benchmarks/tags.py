"""Counts how often tags of some probability are right.

Of experts trained with config.text.tags, on models of test and test_holdout, weighted to the mix of
val and val_holdout, for which the share of wrong ones is promised.

Example:
  python -m experiments.benchmarks.tags --experts=out/words
"""

from collections.abc import Iterator

import numpy as np
from absl import flags

import probex_jax as px
from experiments import cli, view_steps
from experiments.benchmarks import figures
from probex_jax.experts.tags import stored_tags, tag_cut, tag_probabilities, vocabulary

_EXPERTS = flags.DEFINE_list("experts", None, "Work directories of train.", required=True)

_OUT = flags.DEFINE_string("out", None, "JSON file for the figures.")

_BINS = np.array([0, 0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])


def main() -> None:
    wrong, kinds = [], dict[str, list[np.ndarray]]()
    for path in _EXPERTS.value:
        expert, store = px.Expert.load(path), view_steps.store_of(path)
        words, cut = vocabulary(expert), tag_cut(expert)
        is_seen_V, shares, weights = np.isin(words.tags, cut.seen), [], []
        for split in ("test", "test_holdout"):
            logits_NV, right_NV = stored_tags(expert, store, split, words)
            p_NV = tag_probabilities(expert, logits_NV, words)
            shown_NV = cut.shown(p_NV)
            n_wrong_N = (shown_NV & ~right_NV).sum(axis=1)
            shares.append(float(np.mean(n_wrong_N / np.maximum(shown_NV.sum(axis=1), 1))))
            weights.append(len(store.split(split.replace("test", "val"))))
            for kind, of_V in (("seen", is_seen_V), ("new", ~is_seen_V)):
                p_M, right_M = p_NV[:, of_V].ravel(), right_NV[:, of_V].ravel()
                weight_M = np.full(len(p_M), weights[-1] / len(p_NV))
                kinds.setdefault(kind, []).append(np.stack([p_M, right_M, weight_M]))
        wrong.append({
            "expert": path,
            "shown from": cut.cut,
            "wrong, test": shares[0],
            "wrong, test_holdout": shares[1],
            "wrong, weighted": float(np.average(shares, weights=weights)),
        })  # fmt: skip
    print(cli.table(wrong), end="\n\n")
    rows = [row for kind, found in kinds.items() for row in _rows(kind, np.concatenate(found, 1))]
    print(cli.table(rows))
    figures.keep(_OUT.value, {"wrong": wrong, "right": rows})


def _rows(kind: str, found_3M: np.ndarray) -> Iterator[dict[str, object]]:
    p_M, right_M, weight_M = found_3M
    bins_M = np.digitize(p_M, _BINS[1:-1])
    for place in np.unique(bins_M):
        here = bins_M == place
        yield {
            "tags": kind,
            "probability": f"{_BINS[place]:g} to {_BINS[place + 1]:g}",
            "pairs": int(here.sum()),
            "mean probability": float(np.average(p_M[here], weights=weight_M[here])),
            "right": float(np.average(right_M[here], weights=weight_M[here])),
        }


if __name__ == "__main__":
    cli.run(main)
