r"""Compares two models: the same weights, parent and child, or kin.

A and B are files, models' folders or addresses, as for describe. Large models are read only as far
as the verdict needs. For an adapter and a whole model it says whether the adapter may belong to the
model.

Example:
  probex compare my_model.safetensors hf://ORG/NAME
  probex compare --json out/families/MiniMAE-0/models/m00 \
    out/families/MiniMAE-0/models/m01
"""

import json
from collections.abc import Sequence

from absl import flags

import probex_jax as px
from experiments import cli
from probex_jax.buckets import shown_path
from probex_jax.lineage import Verdict, compare

_JSON = flags.DEFINE_bool("json", False, "Print a line of JSON instead.")


def main(paths: Sequence[str]) -> int:
    if len(paths) != 2:
        given = "one model: nothing to compare" if len(paths) == 1 else f"{len(paths)} models"
        raise px.ProbexError(f"{given}; give two")
    found = compare(*paths)
    shown = [str(shown_path(path)) for path in paths]
    if _JSON.value:
        print(json.dumps({"A": shown[0], "B": shown[1], **found.as_json()}))
        return 0
    print(found.sentence)
    rows = [("A", shown[0]), ("B", shown[1]), *_evidence(found)]
    print("\n".join(f"  {what:<14}{cli.one_line(said)}" for what, said in rows))
    return 0


def _evidence(found: Verdict) -> list[tuple[str, str]]:
    rows = []
    if found.largest_difference is not None:
        rows.append(("differ by", f"{found.largest_difference:.3g} in any entry, at most"))
    elif found.units:
        rows.append(
            ("test", f"p = {found.p_value:.2g} against independent training ({found.units})")
        )
    else:
        rows.append(("test", "none: they share no hidden units whose order could be compared"))
    if found.speak and found.relation in ("derived", "kin"):
        listed = ", ".join(f"{match.name} (z = {match.z:.0f})" for match in found.speak)
        rows.append(("speak for it", listed))
    if found.distance is not None and found.largest_difference is None:
        rows.append(("distance", f"{found.distance:.2%} of A's length"))
        rows.append(("unchanged", f"{found.unchanged or 0:.0%} of the layers"))
    if found.differ and found.relation in ("derived", "kin"):
        rows.append(("differ most", ", ".join(found.differ)))
    if found.relation == "derived":
        rows.append(("kind", found.kind))
        rows.append(("direction", f"right with a probability of {found.confidence:.2f}"))
    return rows


if __name__ == "__main__":
    cli.run_with_arguments(main)
