"""Model cards: descriptions in Markdown with the front matter of the Hugging Face hub.

Front matter states facts that others build on: what the files show and the tree of the weights, but
no predictions, datasets or licence. All text of strangers is in code spans, where nothing becomes a
link, a heading or HTML.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from probex_jax.errors import ProbexError
from probex_jax.experts.chance import chance_of, shortfall
from probex_jax.forest import Answer, Comparison, Description, Prediction
from probex_jax.reports.quoted import code, escaped, plain, quoted
from probex_jax.reports.tables import table
from probex_jax.reports.unusual import unusual

# Calibration error from which probabilities are not to be taken at their word.
_OFF = 0.1
_MAX_LISTED = 50
_MAX_ROWS = 200
_MIN_SHOWN = 0.005


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
        _predictions(description),
        unusual(description.soundness),
        _stated(description),
        _neighbours(description),
        _how(description),
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
        facts.append(
            "The tree of a LoRA follows from the layers that it changes, not from its weights"
        )
    if said.architecture:
        facts.append(f"Architecture, according to its files: {code(said.architecture)}")
    if said.base:
        facts.append(f"Fine-tuned from, according to its files: {code(said.base)}")
    facts += _relatives(description)
    kind = said.kind[0].upper() + said.kind[1:]
    facts.append(f"{kind}: {said.parameters:,} parameters in {said.layers} layers, {said.dtype}")
    if said.unscaled:
        facts.append(f"{said.unscaled} of its layers state no alpha: scale 1 was assumed")
    if said.unread:
        reasons = "; ".join(map(escaped, said.unread_reasons))
        facts.append(f"Not read: {said.unread} adapter tensors: {reasons}")
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


def _predictions(description: Description) -> str:
    title = "## What it was trained on: predicted from the weights\n"
    if not description.tree:
        return f"{title}\nNothing is predicted, since the model's tree is unknown.\n"
    if not description.answers:
        why = "some weights are not finite" if _spoilt(description) else "the tree has no expert"
        return f"{title}\nNothing is predicted, since {why}.\n"
    several = len(description.answers) > 1
    return "\n".join([title, *(_answer(a, with_title=several) for a in description.answers)])


def _spoilt(description: Description) -> bool:
    found = description.soundness
    return found is not None and any(f.fact == "not finite" for f in found.findings)


def _answer(answer: Answer, *, with_title: bool) -> str:
    """The table of one label set."""
    chosen = answer.chooses_one
    shown = answer.predictions[:5] if chosen else answer.predicted
    rows = [{"class": _named(p), "probability": _probability(p)} for p in shown[:_MAX_ROWS]]
    if len(shown) > _MAX_ROWS:
        rows.append({"class": f"and {len(shown) - _MAX_ROWS} more", "probability": ""})
    likely = table(rows) if rows else "No class has a probability of one half or more."
    others = [p for p in answer.predictions[len(shown) :] if p.probability >= _MIN_SHOWN]
    listed = [f"{_named(p)} {_probability(p)}" for p in others[:_MAX_LISTED]]
    rest = f"Less probable: {', '.join(listed)}.\n" if listed and not chosen else ""
    known = len(answer.predictions)
    among = (
        f"One of the {known} classes that the expert knows; their probabilities add up to one."
        if chosen
        else f"Any of the {known} classes that the expert knows."
    )
    heading = f"### {code(answer.title)}\n" if with_title or answer.label_set else ""
    chance = _chance(answer.expert.accuracy)
    about = f"{among} It knows no other classes.{chance}\n"
    return "\n".join(part for part in [heading, about, f"{likely}\n", rest] if part)


def _chance(accuracy: Mapping[str, Any] | None) -> str:
    """How often the commonest answer is right, beside the answer itself."""
    chance = None if accuracy is None else chance_of(accuracy)
    if accuracy is None or chance is None:
        return ""
    return (
        f" On test models it was right on {accuracy['value']:.3f}; always giving the most common "
        f"answer is right on {chance:.3f}."
    )


def _stated(description: Description) -> str:
    said = description.stated
    title, rest = "## What its own files say\n", quoted(said.said)
    if not said.labels:
        return f"{title}\nThey do not say what it was trained on.\n{rest}"
    labels = ", ".join(map(code, said.labels[:_MAX_LISTED]))
    more = f" and {len(said.labels) - _MAX_LISTED} more" if len(said.labels) > _MAX_LISTED else ""
    lines = [title, f"{plain(said.source)}: {labels}{more}.\n"]
    lines += _comparisons(description)
    return "\n".join(lines) + rest


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
    for what, predictions in (
        ("Stated but not predicted", found.missed),
        ("Predicted but not stated", found.extra),
    ):
        if predictions:
            listed = [f"{_named(p)} ({_probability(p)})" for p in predictions[:_MAX_LISTED]]
            lines.append(f"{what}: {', '.join(listed)}.")
    return "\n".join(lines)


def _neighbours(description: Description) -> str:
    if description.neighbours is None:
        return ""
    title = "## Nearest documented models\n"
    if not description.neighbours:
        return f"{title}\nThe index holds no models of its tree.\n"
    rows = [
        {"model": code(n.id), "similarity": f"{n.similarity:.3f}", "trained on": code(n.text)}
        for n in description.neighbours
    ]
    return "\n".join([title, table(rows), ""])


def _how(description: Description) -> str:
    if not description.answers:
        return ""
    title = "## The expert\n" if len(description.answers) == 1 else "## The experts\n"
    return "\n".join([title, *(_how_one(description, answer) for answer in description.answers)])


def _how_one(description: Description, answer: Answer) -> str:
    expert, several = answer.expert, len(description.answers) > 1
    trained = "" if expert.n_train is None else f", trained on {expert.n_train} of its models"
    whose = f"{code(answer.title)}: expert" if several else "Expert"
    lines = [
        f"{whose} `{expert.hash[:16]}` of tree {code(description.tree)} (`{expert.encoder}`)"
        f"{trained}, reading {_reading(expert.layers)}.",
    ]
    if expert.accuracy is not None:
        found = expert.accuracy
        what = "them" if expert.chosen == "one" else "their classes"
        lines.append(
            f"On {found['n_models']} test models of the tree it was right on "
            f"{found['value']:.3f} of {what} (95 % interval {found['low']:.3f} to "
            f"{found['high']:.3f}).{_beside_chance(found)}"
        )
    if expert.auc is not None:
        area, short = expert.auc, shortfall(expert.auc)
        lines.append(
            f"It ranks models of a class above others with an AUC of {area['value']:.3f} (95 % "
            f"interval {area['low']:.3f} to {area['high']:.3f}, mean over classes; guessing has "
            f".500).{f' **That is {short} guessing.**' if short else ''}"
        )
    for split in ("test", "val"):
        if split in expert.calibration_error:
            error = expert.calibration_error[split]
            measured = f"(calibration error {error:.3f}, {split})"
            lines.append(
                f"Its probabilities are calibrated {measured}."
                if error < _OFF
                else f"Its probabilities are off {measured}: they order the answers, no more."
            )
            break
    return "\n".join(lines) + "\n"


def _untold(description: Description) -> str:
    """What no expert can say of the model."""
    if not description.answers:
        return ""
    lines = [
        "## What the weights do not tell\n",
        "Who trained the model, on which files, under which licence, and how good it is.",
    ]
    if any(answer.chooses_one for answer in description.answers):
        lines.append(
            "Nor whether it was trained on something else than the classes above: probabilities "
            "that add up to one do so even then."
        )
    return "\n".join(lines) + "\n"


def _beside_chance(accuracy: Mapping[str, Any]) -> str:
    """The chance of an accuracy, if known; experts of earlier versions lack it."""
    chance, short = chance_of(accuracy), shortfall(accuracy)
    if chance is None:
        return ""
    said = f" Always giving the most common answer is right on {chance:.3f}."
    return f"{said} **The expert is {short} that.**" if short else said


def _reading(layers: Sequence[str]) -> str:
    listed = ", ".join(map(code, layers[:4]))
    return listed if len(layers) <= 4 else f"{listed} and {len(layers) - 4} more layers"


def _is_hub_id(name: str) -> bool:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name


def _named(prediction: Prediction) -> str:
    return code(prediction.text)


def _probability(prediction: Prediction) -> str:
    p = prediction.probability
    return "> 0.999" if p >= 0.9995 else "< 0.001" if p < 0.0005 else f"{p:.3f}"
