"""The section of a model card on what is unusual about a model: facts, no accusations."""

from probex_jax.forest.soundness import Finding, Soundness
from probex_jax.reports.quoted import code
from probex_jax.reports.tables import table

_MAX_LISTED = 20

_OF_ENTRIES = {
    "all zeros": "all entries are zero",
    "all equal": "all entries are equal",
    "random": "its singular values are those of random numbers, and it has little in common with "
    "the tree's models",
}
# Names of the numbers: where the models of a tree have something in common, and where they do not.
_NUMBERS = {
    "size": ("multiple of the tree's centre that is nearest to it", "length"),
    "distance": (
        "distance from that multiple of the centre, relative to it",
        "cosine with the mean of the tree's models",
    ),
    "spectrum": (
        "share of one direction in its difference from the centre",
        "share of one direction in it",
    ),
    "rows": (
        "share of its difference from the centre outside the usual directions of columns",
        "share outside the usual directions of columns",
    ),
    "columns": (
        "share of its difference from the centre outside the usual directions of rows",
        "share outside the usual directions of rows",
    ),
    "foreign": (
        "share of its difference from the centre outside all usual directions",
        "share outside all usual directions",
    ),
    "outside": (
        "length outside all usual directions, relative to the centre",
        "length outside all usual directions",
    ),
    "tails": ("kurtosis of its difference from the centre", "kurtosis of its entries"),
    "values": ("share of distinct values in a row",) * 2,
}


def unusual(found: Soundness | None) -> str:
    """The section; "" if the model was not compared with the models of a tree.

    Args:
      found: of a description.

    Example:
      >>> print(unusual(Soundness("cats", 120, 3, 3, True, 0.31)))
      ## Is anything unusual about it?
      <BLANKLINE>
      No: 31 % of the models of `cats` are as unusual, by all entries of its 3 layers (120 models
      compared).
      <BLANKLINE>
    """
    if found is None:
        return ""
    title = "## Is anything unusual about it?\n"
    facts = [_fact(one) for one in found.findings if one.fact not in _NUMBERS]
    rows = [_row(one) for one in found.findings if one.fact in _NUMBERS]
    parts = [title, _compared(found), *_shortened(facts), _table(rows)]
    return "\n".join(part for part in parts if part)


def _compared(found: Soundness) -> str:
    """How unusual the model is as a whole."""
    if not found.tree:
        return ""
    count = f"its {found.n_layers}" if found.n_layers == found.of_layers else str(found.n_layers)
    of = "" if found.n_layers == found.of_layers else f" of its {found.of_layers}"
    what = "all" if found.whole else "a sample of the"
    looked = f"by {what} entries of {count}{of} layers"
    whose = f"the models of {code(found.tree)}"
    if found.p_value is None:
        return f"{code(found.tree)} has too few models to compare it with, {looked}.\n"
    compared = f"({found.n_models} models compared)"
    if not found.findings:
        share = f"{100 * found.p_value:.2g} %"
        return f"No: {share} of {whose} are as unusual, {looked} {compared}.\n"
    if found.p_value <= 1 / (found.n_models + 1):
        return f"It is more unusual than any of {whose}, {looked} {compared}.\n"
    besides = "Besides, " if all(one.fact not in _NUMBERS for one in found.findings) else ""
    share = f"{besides}{100 * found.p_value:.2g} %"
    return f"{share} of {whose} are as unusual, {looked} {compared}.\n"


def _fact(found: Finding) -> str:
    if found.fact == "not finite":
        many = found.value != 1
        which = f"{found.value:,.0f} of {found.n_entries:,} entries {'are' if many else 'is'}"
        return f"- {code(found.layer)}: {which} NaN or infinite\n"
    if found.fact == "root":
        return (
            f"- All layers together: {found.value:.2g} from the root, relative to its length; the "
            f"tree's models are {found.low:.2g} to {found.high:.2g} from it\n"
        )
    return f"- {code(found.layer)}: {_OF_ENTRIES[found.fact]}\n"


def _row(found: Finding) -> dict[str, str]:
    what = _NUMBERS[found.fact][0 if found.centred else 1]
    return {
        "layer": code(found.layer),
        "number": f"{what}, beside its other layers" if found.beside else what,
        "this model": f"{found.value:.3g}",
        "the tree's models": f"{found.low:.3g} to {found.high:.3g}, mostly {found.usual:.3g}",
    }


def _shortened(facts: list[str]) -> list[str]:
    more = len(facts) - _MAX_LISTED
    listed = "".join(facts[:_MAX_LISTED]) + (f"- and {more} more layers\n" if more > 0 else "")
    return [listed]


def _table(rows: list[dict[str, str]]) -> str:
    if not rows:
        return ""
    more = len(rows) - _MAX_LISTED
    if more > 0:
        blank = dict.fromkeys(("number", "this model", "the tree's models"), "")
        rows = [*rows[:_MAX_LISTED], {"layer": f"and {more} more", **blank}]
    return table(rows) + "\n"
