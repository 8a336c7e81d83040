"""The figure of the transfer experiment, legible in black and white."""

from collections.abc import Mapping
from pathlib import Path

from probex_jax.fitting import Score
from probex_jax.reports.figures import new_figure

# Okabe and Ito's palette, told apart by markers as well: of settings, and of trees.
_SETTINGS = (("#0072B2", "o"), ("#009E73", "^"), ("#E69F00", "s"), ("white", "D"))
_TREES = (("#000000", "o"), ("#D55E00", "s"), ("#56B4E9", "^"), ("#CC79A7", "D"))
_CHANCE = 0.5
# Where a legend covers no point.
_BELOW = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.12), "frameon": False}


def draw(
    scores: Mapping[str, Mapping[str, Score]],
    curves: Mapping[tuple[str, int], Mapping[int, Score]],
    path: Path,
) -> None:
    """Left a row per tree, a dot per setting; right what joining models change.

    Args:
      scores: setting to tree to accuracy; the first setting has all trees.
      curves: (tree, own models) to number of joining models to change of accuracy.
      path: the PNG file to write.

    Raises:
      ProbexError: if matplotlib is missing (extra `commands`).
    """
    figure = new_figure(11, 4.2)
    left, right = figure.subplots(1, 2)
    _accuracies(left, scores)
    _changes(right, curves)
    for panel in (left, right):
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8)
        panel.title.set_fontsize(10)
    figure.savefig(path)


def _accuracies(panel, scores: Mapping[str, Mapping[str, Score]]) -> None:
    trees = list(next(iter(scores.values())))
    for number, (setting, of_setting) in enumerate(scores.items()):
        colour, marker = _SETTINGS[number % len(_SETTINGS)]
        shift = (number - (len(scores) - 1) / 2) * 0.18
        found = list(of_setting.items())
        panel.errorbar(
            [score.value for _, score in found],
            [trees.index(tree) + shift for tree, _ in found],
            xerr=_reach([score for _, score in found]),
            fmt=marker,
            color=colour,
            ecolor="black",
            markeredgecolor="black",
            markeredgewidth=0.6,
            elinewidth=1,
            capsize=2,
            markersize=6,
            label=setting,
            zorder=3,
        )
    panel.axvline(_CHANCE, color="black", linewidth=0.8, linestyle=":")
    panel.annotate("chance ", (_CHANCE, -0.42), fontsize=8, ha="right", va="center")
    for line in range(1, len(trees)):
        panel.axhline(line - 0.5, color="0.85", linewidth=0.6)
    panel.set_yticks(range(len(trees)), trees)
    panel.set_ylim(len(trees) - 0.5, -0.5)
    panel.set_xlim(0.42, 1.02)
    panel.set_xlabel("test accuracy, 95 % interval", fontsize=8)
    panel.set_title("A linear classifier by what it was trained on")
    panel.legend(fontsize=8, ncols=len(scores), **_BELOW)


def _changes(panel, curves: Mapping[tuple[str, int], Mapping[int, Score]]) -> None:
    trees = list(dict.fromkeys(tree for tree, _ in curves))
    owns = sorted({own for _, own in curves})
    for number, ((tree, own), by_count) in enumerate(curves.items()):
        colour, marker = _TREES[trees.index(tree) % len(_TREES)]
        few = own == owns[0]
        # Side by side where they would lie on each other.
        shift = 3.0 * (number - (len(curves) - 1) / 2)
        panel.errorbar(
            [count + shift for count in by_count],
            [score.value for score in by_count.values()],
            yerr=_reach(list(by_count.values())),
            marker=marker,
            color=colour,
            markerfacecolor=colour if few else "white",
            linestyle="-" if few else "--",
            linewidth=1.2,
            elinewidth=0.8,
            capsize=2,
            markersize=5,
            label=f"{tree}, {own}",
        )
    panel.axhline(0, color="black", linewidth=0.8)
    panel.set_xticks(sorted({count for by_count in curves.values() for count in by_count}))
    panel.set_xlabel("models of another tree that join the training set", fontsize=8)
    panel.set_ylabel("change of test accuracy, 95 % interval", fontsize=8)
    panel.set_title("Models of another tree join a tree's own")
    panel.legend(title="tested tree, own models", title_fontsize=8, fontsize=8, ncols=3, **_BELOW)


def _reach(scores: list[Score]) -> list[list[float]]:
    """How far the intervals go below and above, as matplotlib takes it."""
    return [[s.value - s.low for s in scores], [s.high - s.value for s in scores]]
