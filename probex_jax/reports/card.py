"""Model cards: descriptions in Markdown with the front matter of the Hugging Face hub.

Front matter states facts that others build on: what the files show and the tree of the weights, but
no predictions, datasets or licence. All text of strangers is in code spans, where nothing becomes a
link, a heading or HTML.
"""

from typing import Any

from probex_jax.errors import ProbexError
from probex_jax.forest import AttributeComparison, Comparison, Description
from probex_jax.reports.card_predictions import (
    experts,
    in_rows_and_alone,
    named,
    predictions,
    probability_of,
)
from probex_jax.reports.quoted import code, escaped, plain, quoted
from probex_jax.reports.tables import table
from probex_jax.reports.unusual import unusual

_MAX_LISTED = 50


def model_card(description: Description) -> str:
    """The model card of a description.

    Args:
      description: from `Forest.describe`.

    Returns:
      Markdown with front matter.

    Raises:
      ProbexError: if huggingface_hub is missing (extra `commands`).

    Example:
      >>> from probex_jax.forest import Route
      >>> from probex_jax.forest.stated_facts import StatedFacts
      >>> said = StatedFacts((), "", "", "", "", "", False, parameters=9, dtype="F32", layers=1)
      >>> print(model_card(Description("mine", "mine.safetensors", said, Route("", reason="why"))))
      ---
      tags:
      - probex_jax
      - predicted-from-weights
      ---
      <BLANKLINE>
      # `mine`
      ...
    """
    parts = [
        f"---\n{front_matter(description)}\n---\n",
        f"# {code(description.id)}\n",
        "*Written by probex_jax from the model's weights; its trainer has not confirmed it.*\n",
        _about(description),
        predictions(description),
        _tags(description),
        unusual(description.soundness),
        _stated(description),
        _neighbours(description),
        experts(description),
        _untold(description),
    ]
    return "\n".join(part for part in parts if part)


def front_matter(description: Description) -> str:
    """The front matter of a card as YAML.

    Raises:
      ProbexError: as `model_card`.
    """
    try:
        from huggingface_hub import ModelCardData
    except ImportError:
        raise ProbexError(
            "model cards need huggingface_hub: pip install 'huggingface_hub>=1.0' "
            "(extra `commands`)"
        ) from None
    said, fields = description.stated, dict[str, Any]()
    if _is_hub_id(description.root):
        fields["base_model"] = description.root
        fields["base_model_relation"] = "adapter" if said.is_lora else "finetune"
    if said.library:
        fields["library_name"] = said.library
    if said.pipeline:
        fields["pipeline_tag"] = said.pipeline
    tags = ["probex_jax", "predicted-from-weights"]
    if description.tree:
        tags.append(f"model-tree:{plain(description.tree)}")
    return ModelCardData(**fields, tags=tags).to_yaml().strip()


def _about(description: Description) -> str:
    route, said = description.route, description.stated
    facts = []
    if route.tree:
        facts.append(f"Model Tree: {code(route.tree)}")
        facts.append(f"Its root: {_root(description)}")
    else:
        facts.append(f"Model Tree: **unknown**: {escaped(route.reason)}")
    if route.distance is not None and route.radius is not None:
        facts.append(
            f"Distance from the centre of {code(route.nearest)}: {route.distance:.3g} (radius of "
            f"the tree: {route.radius:.3g})"
        )
    if route.tree and said.is_lora:
        facts.append("A LoRA's tree follows from the layers that it changes, not from its weights")
    if said.architecture:
        facts.append(f"Architecture, according to its files: {code(said.architecture)}")
    if said.base:
        facts.append(f"Fine-tuned from, according to its files: {code(said.base)}")
    facts += _relatives(description)
    kind = said.kind[0].upper() + said.kind[1:]
    facts.append(f"{kind}: {said.parameters:,} parameters in {said.layers} layers, {said.dtype}")
    if said.unscaled:
        facts.append(f"{said.unscaled} of its layers state no alpha: scale 1 is assumed")
    if said.unread:
        reasons = "; ".join(map(escaped, said.unread_reasons))
        facts.append(f"Adapter tensors not read: {said.unread} ({reasons})")
    return "".join(f"- {fact}\n" for fact in facts)


def _relatives(description: Description) -> list[str]:
    """What a lineage says; front matter has none of it."""
    found = description.relatives
    if found is None:
        return []
    facts = []
    for edge in found.parents[:_MAX_LISTED]:
        share = "" if edge.coefficient is None else f", coefficient {edge.coefficient:.2f}"
        facts.append(
            f"Parent (inferred from the weights): {code(edge.parent)} ({edge.kind}{share}, "
            f"confidence {edge.confidence:.2f})"
        )
    if found.same_weights:
        listed = ", ".join(map(code, found.same_weights[:_MAX_LISTED]))
        more = len(found.same_weights) - _MAX_LISTED
        facts.append(
            f"The same weights as (inferred): {listed}{f' and {more} more' if more > 0 else ''}"
        )
    return facts


def _root(description: Description) -> str:
    if description.root:
        return code(description.root)
    if description.stated_root:
        return f"{code(description.stated_root)}, according to the files of its models"
    return "unknown"


def _tags(description: Description) -> str:
    """Free tags, of experts that rank some."""
    lines = []
    for tags in (answer.tags for answer in description.answers if answer.tags is not None):
        listed = ", ".join(f"{named(p)} {probability_of(p)}" for p in tags.shown[:_MAX_LISTED])
        about = (
            f"They are out of {tags.n_tags:,}. At most a share of {tags.wrong:g} of the tags shown "
            "is wrong, on average over models like those that the tags are from."
        )
        lines.append(
            f"Tags, ranked by the weights: {listed or 'none is certain enough'}. {about}\n"
        )
    return "\n".join(lines)


def _stated(description: Description) -> str:
    said = description.stated
    title, rest = "## What its own files say\n", quoted(said.said)
    rest = _attribute_comparisons(description) + rest
    if not said.labels:
        return f"{title}\nThey do not say what it was trained on.\n{rest}"
    labels = ", ".join(map(code, said.labels[:_MAX_LISTED]))
    more = f" and {len(said.labels) - _MAX_LISTED} more" if len(said.labels) > _MAX_LISTED else ""
    lines = [title, f"{plain(said.source)}: {labels}{more}.\n"]
    lines += _comparisons(description)
    return "\n".join(lines) + rest


def _attribute_comparisons(description: Description) -> str:
    """Attributes that are stated as well as predicted."""
    found = description.attribute_comparisons
    if not found:
        return ""
    rows = table([_attribute_row(one) for one in found])
    return f"\nAttributes stated there or in a table beside the models:\n\n{rows}\n"


def _attribute_row(found: AttributeComparison) -> dict[str, str]:
    if isinstance(found.stated, tuple):
        stated = ", ".join(map(code, found.stated)) or "none"
    else:
        stated = f"{found.stated:,.6g}"
    within = "" if found.within is None else "yes" if found.within else "no"
    return {
        "attribute": code(found.attribute),
        "stated": stated,
        "within the prediction": within,
    }


def _comparisons(description: Description) -> list[str]:
    """What each expert says of the stated classes, if it knows any, and those that none knows."""
    labels = description.stated.labels
    each = [(answer, answer.compared_with(labels)) for answer in description.answers]
    found = [(answer, c) for answer, c in each if c is not None]
    if not found:
        return []
    known = [(answer, c) for answer, c in found if c.n_known]
    if not known:
        whose = "The expert knows" if len(found) == 1 else "The experts know"
        return [f"{whose} none of these classes.\n"]
    lines = []
    for answer, comparison in known:
        about = f"{code(answer.title)}: " if len(found) > 1 else ""
        lines.append(about + _compared(comparison) + "\n")
    unknown = set.intersection(*(set(c.unknown) for _, c in found))
    if unknown:
        listed = ", ".join(code(name) for name in labels[:_MAX_LISTED] if name in unknown)
        whose = "expert" if len(found) == 1 else "experts"
        lines[-1] = f"{lines[-1].rstrip()}\nStated but unknown to the {whose}: {listed}.\n"
    return lines


def _compared(found: Comparison) -> str:
    if found.chosen == "one":
        lines = [f"That is {'not ' if found.missed else ''}the most probable class."]
    else:
        counts = f"{found.n_right} of {found.n_classes} classes"
        lines = [f"Prediction and files agree on {counts}."]
    for what, differing in (
        ("Stated but not predicted", found.missed),
        ("Predicted but not stated", found.extra),
    ):
        if differing:
            listed = [f"{named(p)} ({probability_of(p)})" for p in differing[:_MAX_LISTED]]
            lines.append(f"{what}: {', '.join(listed)}.")
    return "\n".join(lines)


def _neighbours(description: Description) -> str:
    if description.neighbours is None:
        return ""
    title = "## Nearest documented models\n"
    if not description.neighbours:
        return f"{title}\nThe index has no models of its tree.\n"
    rows = [
        {"model": code(n.id), "similarity": f"{n.similarity:.3f}", "trained on": code(n.text)}
        for n in description.neighbours
    ]
    return "\n".join([title, table(rows), ""])


def _untold(description: Description) -> str:
    """What no expert can say of the model."""
    if not (description.answers or description.untold):
        return ""
    in_rows, alone = in_rows_and_alone(description.answers)
    is_named = any(answer.label_set for answer in description.answers)
    last = "anything else that is not predicted above" if is_named else "how good it is"
    lines = [
        "## What the weights cannot tell\n",
        f"Who trained the model, on which files, under which licence, and {last}.",
    ]
    if description.untold:
        listed = ", ".join(map(code, description.untold[:_MAX_LISTED]))
        more = len(description.untold) - _MAX_LISTED
        lines.append(
            "Nor the following attributes, which could be predicted no better than by guessing: "
            f"{listed}{f' and {more} more' if more > 0 else ''}."
        )
    if any(answer.chooses_one for answer in in_rows):
        lines.append("Nor whether an attribute has a class that its expert does not know.")
    if any(answer.chooses_one for answer in alone):
        lines.append(
            "Nor whether it was trained on something other than the classes above: their "
            "probabilities add up to one even then."
        )
    return "\n".join(lines) + "\n"


def _is_hub_id(name: str) -> bool:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name and name.isprintable()  # the client before 2 takes a newline at the end
