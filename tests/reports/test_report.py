"""The report: every number is that of the metrics, and text of strangers does nothing."""

import base64
import dataclasses
import re

import numpy as np
import pytest
from scipy.special import expit, softmax
from sklearn.metrics import roc_auc_score

from probex_jax.experts import Predictions
from probex_jax.experts.card_parts import task_json
from probex_jax.fitting import OneClass, SeveralClasses, calibration_error
from probex_jax.fitting.conformal import Conformal
from probex_jax.fitting.number import Number
from probex_jax.reports import Cost, LabelledDescription, Run, Training, report
from tests.reports.pages import HOSTILE, Tags, check_harmless
from tests.reports.test_card import described
from tests.reports.test_card import number as of_steps

CLASSES = ("ant", "bee", HOSTILE, "dog")


def answered(*, several=True, n_models=12, classes=CLASSES, vectors=5):
    rng = np.random.default_rng(0)
    y = rng.integers(2, size=(n_models, len(classes)))
    if not several:
        y = np.arange(n_models) % len(classes)
    target = y if several else np.eye(len(classes))[y]
    logits = (2 * target - 1) + 1.5 * rng.normal(size=(n_models, len(classes)))
    labels = [tuple(classes[c] for c in np.flatnonzero(row)) for row in target]
    return Predictions(
        tuple(classes),
        tuple(f"model {number} {HOSTILE}" for number in range(n_models)),
        tuple(labels),
        logits.astype(np.float32),
        y.astype(np.int32),
        rng.normal(size=(n_models, vectors)) if vectors else np.zeros([0, 0]),
        chance=0.5 if several else 1 / len(classes),
        task=SeveralClasses() if several else OneClass(),
    )


def training(found, method="default", **metrics):
    error = calibration_error(
        *found.task.promises(np.asarray(found.task.predictions(found.logits)), found.y)
    )
    known = {
        "tree": "Toy",
        "layers": {"expert": [f"a.weight {HOSTILE}"]},
        "n_models": {"train": 70, "val": 10, "test": len(found.y)},
        "store_hash": "f" * 64,
        "versions": {"jax": "0.10"},
        "val_accuracy_by_layer": {f"a.weight {HOSTILE}": 0.8125, "b.weight": 0.5625},
        "left_out": {},
        "calibration": {"temperature": 1.0, "before": {"test": error}, "after": {"test": error}},
        "test_accuracy": dataclasses.asdict(found.task.score(found.logits, found.y)),
    }
    return Training(method, known | metrics, found, {"recipe": {"seed": 31}, "layers": ["x"] * 9})


def written(*trainings, hidden=()):
    about = {"command": f"python -m experiments.train {HOSTILE}"}
    costs = [Cost("training", 12.34, 512 * 2**20), Cost("packing", 0.5, 0, resumed=True)]
    return report(Run(f"Report {HOSTILE}", about, trainings, {}, hidden, costs))


def tables(text):
    """The rows of all tables, each a tuple of texts."""
    rows, cells = [], None
    for piece in text.replace("<tr>", "\0<tr>").split("\0")[1:]:
        cells = piece.split("</tr>")[0].replace("</th>", "</td>").split("</td>")[:-1]
        rows.append(tuple("".join(Tags(cell).texts).strip() for cell in cells))
    return rows


@pytest.mark.parametrize("several", [True, False])
def test_text_of_strangers_does_nothing_and_nothing_is_fetched(several):
    said = described({HOSTILE: 0.9, "bee": 0.2})
    right = dataclasses.replace(said, id=HOSTILE)
    hidden = [LabelledDescription(right, HOSTILE, (HOSTILE, "unheard of"))]
    text = written(training(answered(several=several), HOSTILE), hidden=hidden)
    tags = check_harmless(text)
    assert [tag for tag, _ in tags.starts].count("script") == 1
    policy = next(at["content"] for tag, at in tags.starts if "http-equiv" in at)
    assert policy.startswith("default-src 'none';")
    shown = "".join(tags.texts)
    assert shown.count("</script><img src=x onerror=alert(1)>") > 10


def test_every_section_is_there_and_every_picture_has_a_title():
    text = written(training(answered()), hidden=[LabelledDescription(described(), "Ant", ("ant",))])
    tags = Tags(text)
    headings = list(text.split("<h2>")[1:])
    assert [heading.split("</h2>")[0] for heading in headings] == [
        "What was run",
        "Results",
        "Accuracy by layer",
        "Calibration",
        "Confusion by class",
        "Map of embeddings",
        "Predictions beside the truth",
        "Cost of each step",
    ]
    ids = {at["id"] for tag, at in tags.starts if tag == "section"}
    assert ids == {at["href"].removeprefix("#") for tag, at in tags.starts if tag == "a"}
    drawn = [at for tag, at in tags.starts if tag == "svg" and at.get("aria-hidden") != "true"]
    assert all(at["role"] == "img" or at["aria-label"] for at in drawn)
    assert len([at for tag, at in tags.starts if tag == "img" and at["alt"]]) == 2


def test_results_calibration_and_settings_are_those_of_the_metrics():
    found = answered()
    text = written(training(found))
    rows = tables(text)
    of_test = found.task.score(found.logits, found.y)
    line = next(row for row in rows if row[0] == "Toy, default: accuracy")
    assert line[1:3] == (f"{of_test.value:.3f}", f"{of_test.low:.3f} to {of_test.high:.3f}")
    assert line[4:6] == ("0.500", "12")
    error = calibration_error(expit(found.logits).ravel(), found.y.ravel())
    assert f"{error:.3f} before, {error:.3f} after" in text
    bins = [row for row in rows if re.fullmatch(r"0\.\d\d-[01]\.\d\d", row[0])]
    counts = np.array([float(row[1]) for row in bins])
    gaps = np.array([float(row[3]) - float(row[2]) for row in bins])
    assert counts.sum() == found.y.size
    assert np.sum(counts * abs(gaps)) / found.y.size == pytest.approx(error, abs=1e-3)
    for row in (
        ("recipe.seed", "31"),
        ("layers", ", ".join(["x"] * 9)),
        ("Toy", "70", "10", "12", "f" * 64),
    ):
        assert row in rows
    assert ("training", "12.3", "512", "", "") in rows
    assert ("packing", "0.5", "", "", "by an earlier run") in rows
    assert ("b.weight", "0.562") in rows


def test_confusion_counts_each_class():
    found = answered()
    rows = {row[0]: row[1:] for row in tables(written(training(found))) if len(row) == 8}
    for place, name in enumerate(("ant", "bee")):
        said, so = found.logits[:, place] > 0, found.y[:, place] == 1
        counts = [so, said & so, ~said & so, ~so, said & ~so]
        assert rows[name] == (
            *(str(int(count.sum())) for count in counts),
            f"{roc_auc_score(so, found.logits[:, place]):.3f}",
            f"{np.mean(said == so):.3f}",
        )


def test_confusion_of_one_class_among_a_few_is_a_matrix():
    found = answered(several=False)
    rows = [row for row in tables(written(training(found))) if len(row) == 5 and row[0] in CLASSES]
    said = found.logits.argmax(axis=1)
    for row in rows:
        place = CLASSES.index(row[0])
        counts = [int(((found.y == place) & (said == other)).sum()) for other in range(4)]
        assert [0 if cell == "·" else int(cell) for cell in row[1:]] == counts
    assert len(rows) == 3


def test_what_is_found_of_one_class_among_others_stands_beside_how_common_it_is():
    shares = (0.4, 0.3, 0.2, 0.1)
    found = dataclasses.replace(answered(several=False), chance_by_class=shares)
    rows = [row for row in tables(written(training(found))) if row[-1:] == ("0.400",)]
    said, so = found.logits.argmax(axis=1) == 0, found.y == 0
    log_p = np.log(softmax(found.logits.astype(np.float64), axis=1))[:, 0]
    assert rows == [
        ("ant", f"{so.sum()}", f"{roc_auc_score(so, log_p):.3f}", f"{said[so].mean():.3f}", "0.400")
    ]


def test_confusion_of_one_class_among_many_lists_the_most_frequent():
    names = [f"class {number}" for number in range(30)]
    found = answered(several=False, classes=names, n_models=90)
    text = written(training(found))
    said = found.logits.argmax(axis=1)
    n_right = int((said == found.y).sum())
    assert f"{n_right} of 90 test models" in text
    rows = [row for row in tables(text) if len(row) == 4 and row[1] in names]
    first = rows[0]
    pairs = (said == names.index(first[1])) & (found.y == names.index(first[0]))
    assert first[2:] == (str(int(pairs.sum())), "3")
    counts = [int(row[2]) for row in rows]
    assert counts == sorted(counts, reverse=True)


def test_what_a_method_does_not_give_is_said():
    statnn = training(answered(vectors=0), "StatNN")
    lacking = {"calibration", "val_accuracy_by_layer", "left_out", "layers"}
    metrics = {name: value for name, value in statnn.metrics.items() if name not in lacking}
    text = written(dataclasses.replace(statnn, metrics=metrics))
    assert "<h2>Calibration</h2>" in text
    assert "<h2>Accuracy by layer" not in text
    gone = written(dataclasses.replace(training(answered()), answered=None))
    assert gone.count("earlier version") == 4


@pytest.mark.parametrize("several", [True, False])
def test_held_out_models_are_ringed_on_the_map(several):
    found = answered(several=several)
    more = dataclasses.replace(
        found,
        ids=(*found.ids, "h1", "h2"),
        labels=(*found.labels, ("unseen eel",), ("bee",)),
        vectors=np.concatenate([found.vectors, found.vectors[:2] + 1]),
    )
    text = written(training(more))
    assert "<title>h1: unseen eel</title>" in text
    drawn = text.split('class="px-legend"')[0]
    assert drawn.count('<circle class="px-ring"') == 1


def test_hidden_models_stand_beside_the_truth():
    said = described({"ant": 0.97, "bee": 0.6, "cat": 0.2})
    text = written(training(answered()), hidden=[LabelledDescription(said, "Ant", ("ant", "cat"))])
    shown = "".join(Tags(text.split("<h2>Predictions beside")[1]).texts)
    assert "✓ Ant" in shown
    assert "✓ ant 0.97" in shown
    assert "✗ bee 0.60" in shown
    assert "missedcat 0.20" in shown
    assert "2 of 3 classes" not in shown
    assert "1 of 3 classes" in shown
    wrong = written(training(answered()), hidden=[LabelledDescription(said, "Bee", ("ant",))])
    assert "✗ Ant; it is Bee" in wrong


@pytest.mark.parametrize("several", [True, False])
def test_test_models_stand_beside_the_truth_where_none_were_hidden(several):
    names = ("ant", "bee", "cat", "dog")
    found = answered(several=several, classes=names)
    known = training(found)
    known.metrics["calibration"]["temperature"] = 2.0
    shown = written(known).split("<h2>Predictions beside")[1].split("<h2>Cost")[0]
    p_NY = expit(found.logits / 2) if several else softmax(found.logits / 2, axis=1)
    models = shown.split('<div class="model">')[1:]
    assert len(models) == 10
    assert "The first 10 of 12 test models" in shown
    for model, p_Y, y in zip(models, p_NY, found.y, strict=False):
        rows = dict(tables(model))
        truth = [names[place] for place in (np.flatnonzero(y) if several else [y])]
        assert rows["truth"] == ", ".join(truth) or not truth
        if several and truth:
            assert rows["correct"] == f"{np.sum((p_Y > 0.5) == (y > 0))} of 4 classes"
            said = [(names[c], p_Y[c], y[c]) for c in np.argsort(-p_Y) if p_Y[c] > 0.5]
            marked = [f"{'✓' if right else '✗'} {name} {p:.2f}" for name, p, right in said]
            assert rows["predicted"] == (", ".join(marked) or "none")
        elif not several:
            likeliest = [f"{names[c]} {p_Y[c]:.2f}" for c in np.argsort(-p_Y)[:3]]
            assert (
                rows["predicted"] == f"{'✓' if p_Y.argmax() == y else '✗'} {', '.join(likeliest)}"
            )


def test_layers_that_were_left_out_are_told_once():
    out = {"left_out": {"c.weight": "c.weight: the same in all", "d.weight": f"d {HOSTILE}"}}
    found = answered()
    text = written(training(found, "one", **out), training(found, "other", **out))
    assert text.count("2 layers were left out") == 1
    assert "<li>c.weight: the same in all</li>" in text


def test_of_many_layers_the_best_are_drawn_and_all_are_listed():
    figures = {f"layer {number}": (number * 7 % 100) / 100 for number in range(100)}
    text = written(training(answered(), val_accuracy_by_layer=figures))
    panel = text.split("<h2>Accuracy by layer")[1].split("<h2>")[0]
    assert "The best 24 of 100 layers" in panel
    assert {row[0]: row[1] for row in tables(panel) if len(row) == 2} == {"layer": "default"} | {
        layer: f"{value:.3f}" for layer, value in figures.items()
    }


def test_of_many_test_models_a_sample_is_on_the_map():
    found = answered(n_models=1100, vectors=2)
    text = written(training(found))
    assert "A sample of 1,000 of the 1,100 test models" in text
    assert text.count('class="px-mark"') == 1000
    titles = re.findall(r"<title>model (\d+) ", text)
    assert len(set(titles)) == 1000
    places = {int(title) for title in titles}
    for number in places:
        n_wrong = int(((found.logits[number] > 0) != (found.y[number] > 0)).sum())
        assert re.search(rf"<title>model {number} .*: {n_wrong} wrong", text)


def test_steps_at_the_same_time_are_counted_once():
    costs = [
        Cost("first", 5.0, 0),
        *(Cost(f"process {n}", 30.0 + n, 0, parallel=True) for n in (0, 1)),
    ]
    assert "<p>36 seconds " in report(Run("x", {}, (), {}, (), costs))


def test_what_is_not_above_chance_is_called_so():
    """The chance of the metrics counts; of an earlier version's, that of the answers."""
    found = answered()
    value = found.task.score(found.logits, found.y).value
    for chance, says in ((value, "not above"), (value - 1e-3, "not clearly above"), (0.1, "")):
        of_test = dataclasses.asdict(found.task.score(found.logits, found.y)) | {"chance": chance}
        rows = tables(written(training(found, test_accuracy=of_test)))
        cell = next(row for row in rows if row[0] == "Toy, default: accuracy")[4]
        assert cell.startswith(f"{chance:.3f}")
        assert says in cell
        assert bool(says) == ("above" in cell)


def test_layers_and_classes_stand_beside_their_chance():
    chances = (0.125, 0.375, 0.625, 0.75)
    found = dataclasses.replace(answered(), chance_by_class=chances)
    text = written(training(found, val_chance=0.4375))
    assert "chance 0.438." in text
    assert ">chance 0" not in written(training(answered()))
    shown = {row[-1] for row in tables(text) if len(row) == 9}
    assert shown == {"chance", *(f"{chance:.3f}" for chance in chances)}


def svg(data):
    return base64.b64decode(data).decode()


def of_number(name="steps", *, log=True, n_models=40):
    """Predictions of numbers, of which the first three lie far outside of their intervals."""
    rng = np.random.default_rng(5)
    y = np.exp(rng.normal(6, 1, n_models)) if log else rng.normal(5, 2, n_models)
    task = Number(log=log).fitted(y)
    logits = task.targets(y, 1) + 0.1 * rng.normal(size=(n_models, 1)).clip(-2, 2)
    logits[:3] += 2
    ids = tuple(f"model {number} {HOSTILE}" for number in range(n_models))
    labels, vectors = ((),) * n_models, rng.normal(size=(n_models, 5))
    made_by = Conformal(0.9, 0.25, 30)
    return Predictions(
        (name,), ids, labels, logits, y, vectors, 0.0, task=task, conformal=made_by, temperature=0.1
    )


def attribute(found, *, told=True, low=0.5):
    score = {"value": 0.84, "low": low, "high": 0.9, "n_models": len(found.y), "chance": 0.1}
    covered = {"value": 0.925, "low": 0.85, "high": 0.97, "n_models": len(found.y)}
    return {
        "task": task_json(found.task),
        "classes": list(found.classes),
        "told": told,
        "test_accuracy": score,
        "test_coverage": covered,
        "conformal": {"coverage": 0.9},
    }


def joint(**parts):
    """A training on several attributes at once."""
    metrics = {
        "tree": "Toy",
        "layers": {"expert": ["a", "b"]},
        "n_models": {"train": 70, "test": 40},
        "store_hash": "f" * 64,
        "versions": {"jax": "0.10"},
        "left_out": {},
        "attributes": {name: attribute(found, told=told) for name, (found, told) in parts.items()},
    }
    return Training("all", metrics, None, {}, {name: found for name, (found, _) in parts.items()})


def test_attributes_have_their_figures_pictures_and_confusions_and_the_untold_are_named():
    one = answered(several=False)
    text = written(
        joint(
            rate=(of_number("rate"), True),
            size=(of_number("size", log=False), True),
            optimiser=(one, True),
            seed=(of_number("seed"), False),
        )
    )
    rows = {row[0]: row for row in tables(text) if row}
    assert rows["rate"][1] == "a number, logarithmic"
    assert rows["size"][1] == "a number"
    assert rows["optimiser"][1] == "one of 4"
    assert "0.840 (0.500 to 0.900)" in rows["rate"][2]
    assert rows["rate"][4].startswith("0.925 (0.850 to 0.970)")
    pictures = re.findall(r'<img [^>]*alt="([^"]*)"', text)
    assert [name for name in pictures if "true" in name] == [
        "Predicted over true rate",
        "Predicted over true size",
    ]
    assert "true value for 37" in text
    assert "mathdefault" not in "".join(map(svg, re.findall(r'<img src="data:[^,]*,([^"]*)', text)))
    untold = text.split("could not be predicted")[1].split("</ul>")[0]
    assert "seed" in untold
    assert "rate" not in untold.split("<ul>")[1].replace("accurate", "")
    assert "<h4>optimiser</h4>" in text
    assert "http://" not in text.replace("http://www.w3.org", "")


def test_names_of_attributes_do_nothing():
    found = of_number(HOSTILE)
    metrics = joint(x=(found, True)).metrics
    both = {HOSTILE: attribute(found), HOSTILE + "2": attribute(found, told=False)}
    told = Training("all", metrics | {"attributes": both}, None, {}, dict.fromkeys(both, found))
    check_harmless(written(told))


def test_a_training_on_one_number_shows_it_against_the_truth_and_on_the_map():
    text = written(training(of_number("steps", log=False)))
    assert "Predicted over true steps" in text
    assert "R²" in text
    assert "Confusion" not in text
    assert text.count("predicted as") == 40


def test_of_intervals_without_an_end_the_points_are_drawn():
    found = dataclasses.replace(of_number(), conformal=None)
    text = written(joint(steps=(found, True)))
    assert "Predicted over true steps" in text
    assert "Intervals, made for" not in text


def test_hidden_models_stand_beside_the_truth_with_their_numbers():
    found = described(answers=(of_steps(), of_steps("rate")))
    text = written(training(answered()), hidden=[LabelledDescription(found, "Ant", ("ant",))])
    assert text.count("810 (600 to 1,100)") == 2
    alone = described(answers=(of_steps(),))
    text = written(training(answered()), hidden=[LabelledDescription(alone, "Ant", ("ant",))])
    assert text.count("810 (600 to 1,100)") == 1


def test_attributes_of_too_few_models_for_intervals_have_a_report():
    training = joint(steps=(dataclasses.replace(of_number(), conformal=None), True))
    for name in ("conformal", "test_coverage"):
        del training.metrics["attributes"]["steps"][name]
    rows = {row[0]: row for row in tables(written(training)) if row}
    assert rows["steps"][4] == ""
