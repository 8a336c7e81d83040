"""What experts predict of a model and how good they are: two sections of its card."""

from collections.abc import Mapping, Sequence
from typing import Any

from probex_jax.experts.chance import chance_of, shortfall
from probex_jax.forest import Answer, Description, Prediction
from probex_jax.forest.description import ExpertFacts
from probex_jax.reports import attributes
from probex_jax.reports.attributes import in_a_row, probability
from probex_jax.reports.quoted import code
from probex_jax.reports.tables import table

# Calibration error from which probabilities are not to be taken at their word.
_OFF = 0.1
_MAX_LISTED = 50
_MAX_ROWS = 200
_MAX_UNDECIDED = 12
_MIN_SHOWN = 0.005


def predictions(description: Description) -> str:
    """The section on what is predicted."""
    title = "## What it was trained on: predicted from the weights\n"
    if not description.tree:
        return f"{title}\nNothing is predicted, since the model's tree is unknown.\n"
    if description.soundness is not None and description.soundness.is_spoilt:
        return f"{title}\nNothing is predicted, since some weights are not finite.\n"
    if not description.answers:
        why = (
            "none of its attributes can be predicted" if description.untold else "it has no expert"
        )
        return f"{title}\nNothing is predicted for models of its tree, since {why}.\n"
    in_rows, alone = in_rows_and_alone(description.answers)
    several = len(description.answers) > 1
    parts = [_attributes(in_rows)] if in_rows else []
    return "\n".join([title, *parts, *(_answer(a, with_title=several) for a in alone)])


def in_rows_and_alone(answers: Sequence[Answer]) -> tuple[list[Answer], list[Answer]]:
    """The attributes of the table of attributes, and those with a table of classes each."""
    in_rows = [a for a in answers if in_a_row(a) and (len(answers) > 1 or a.quantity is not None)]
    return in_rows, [answer for answer in answers if answer not in in_rows]


def _attributes(answers: Sequence[Answer]) -> str:
    """The table of attributes, each in a row."""
    level = attributes.levels(answers)
    shown = table(list(attributes.rows(answers, code)))
    about = (
        f"For {level} of the tree's models the true value lies in the interval or set. Each class "
        "is followed by its probability.\n"
    )
    return f"{about}\n{shown}\n"


def _answer(answer: Answer, *, with_title: bool) -> str:
    """The table of one label set."""
    chosen = answer.chooses_one
    shown = answer.predictions[:5] if chosen else answer.predicted
    rows = [{"class": named(p), "probability": probability_of(p)} for p in shown[:_MAX_ROWS]]
    if len(shown) > _MAX_ROWS:
        rows.append({"class": f"and {len(shown) - _MAX_ROWS} more", "probability": ""})
    likely = table(rows) if rows else "No class has a probability of one half or more."
    others = [p for p in answer.predictions[len(shown) :] if p.probability >= _MIN_SHOWN]
    listed = [f"{named(p)} {probability_of(p)}" for p in others[:_MAX_LISTED]]
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
    parts = [heading, about, f"{likely}\n", rest, _set(answer)]
    return "\n".join(part for part in parts if part)


def _set(answer: Answer) -> str:
    """The conformal set of a class attribute, or of one of several classes what is undecided."""
    if answer.likely is None:
        return ""
    level = attributes.levels([answer])
    measured = attributes.covered(answer.expert)
    said = f" On test models this covered {measured} of the classes." if measured else ""
    if answer.chooses_one:
        return f"{level} set: {attributes.held(answer, code)}.{said}\n"
    decided = {p.label for p in answer.predicted}
    open_ones = [p for p in answer.predictions if p.label in set(answer.likely) - decided]
    if not 0 < len(open_ones) <= _MAX_UNDECIDED:
        return ""
    return f"Undecided at {level}: {', '.join(map(named, open_ones))}.{said}\n"


def _chance(accuracy: Mapping[str, Any] | None) -> str:
    """How often the commonest answer is right, beside the answer itself."""
    chance = None if accuracy is None else chance_of(accuracy)
    if accuracy is None or chance is None:
        return ""
    return (
        f" On test models it was right on {accuracy['value']:.3f}; always giving the most common "
        f"answer is right on {chance:.3f}."
    )


def experts(description: Description) -> str:
    """The section on who predicts it, and how good they are."""
    if not description.answers:
        return ""
    title = "## The expert\n" if len(description.answers) == 1 else "## The experts\n"
    in_rows, alone = in_rows_and_alone(description.answers)
    of_rows = [_how_joint(description, one) for one in _by_expert(in_rows)]
    return "\n".join([title, *of_rows, *(_how_one(description, answer) for answer in alone)])


def _by_expert(answers: Sequence[Answer]) -> list[list[Answer]]:
    """The attributes that one expert predicts by reading the same layers."""
    found: dict[tuple[str, tuple[str, ...]], list[Answer]] = {}
    for answer in answers:
        found.setdefault((answer.expert.hash, answer.expert.layers), []).append(answer)
    return list(found.values())


def _how_joint(description: Description, answers: Sequence[Answer]) -> str:
    """The expert of attributes whose figures stand in the table of attributes."""
    expert = answers[0].expert
    about = ", ".join(code(answer.title) for answer in answers[:_MAX_LISTED])
    lines = [f"{about}: {_made(description, expert, 'expert')}."]
    of_classes = [answer for answer in answers if answer.quantity is None]
    off = [a for a in of_classes if (error := _calibration_error(a.expert)) and error[1] >= _OFF]
    if off:
        listed = ", ".join(code(answer.title) for answer in off)
        lines.append(f"The probabilities of {listed} are off: only their order means anything.")
    return "\n".join(lines) + "\n"


def _made(description: Description, expert: ExpertFacts, what: str) -> str:
    """An expert, its training models and its layers."""
    trained = "" if expert.n_train is None else f", trained on {expert.n_train} of its models"
    return (
        f"{what} `{expert.hash[:16]}` of tree {code(description.tree)} (`{expert.encoder}`)"
        f"{trained}, reading {_reading(expert.layers)}"
    )


def _calibration_error(expert: ExpertFacts) -> tuple[str, float] | None:
    """The split and the calibration error on it, of test models if it is known."""
    known = expert.calibration_error
    return next(((split, known[split]) for split in ("test", "val") if split in known), None)


def _how_one(description: Description, answer: Answer) -> str:
    expert, several = answer.expert, len(description.answers) > 1
    whose = f"{code(answer.title)}: expert" if several else "Expert"
    lines = [f"{_made(description, expert, whose)}."]
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
            f"interval {area['low']:.3f} to {area['high']:.3f}, mean over classes; guessing gives "
            f".500).{f' **That is {short} guessing.**' if short else ''}"
        )
    if (known := _calibration_error(expert)) is not None:
        split, error = known
        measured = f"(calibration error {error:.3f}, {split})"
        lines.append(
            f"Its probabilities are calibrated {measured}."
            if error < _OFF
            else f"Its probabilities are off {measured}: only their order means anything."
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


def named(prediction: Prediction) -> str:
    """A class in a code span."""
    return code(prediction.text)


def probability_of(prediction: Prediction) -> str:
    """Its probability, as cards show it."""
    return probability(prediction.probability)
