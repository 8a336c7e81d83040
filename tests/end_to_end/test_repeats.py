"""Mean and spread over repeats, from metrics that were made up."""

from experiments import baseline_steps, repeats


def score(value, chance=None):
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "chance": chance}


def of(ours, ridge, commonest, **others):
    """Metrics of one repeat."""
    methods = {
        "ridge, everything": {"accuracy": score(ridge), "auc": score(0.9)},
        "commonest class": {"accuracy": score(commonest), "auc": None},
        **others,
    }
    classify = {"accuracy": score(ours, 0.5), "auc": score(0.8, 0.5)}
    return {"classify": classify, "baselines": {"methods": methods}}


def test_methods_stand_beside_ours_in_one_table():
    """Ours first, then the others in their usual order; not what a repeat lacks."""
    forest = {"forest on statistics": {"accuracy": score(0.6), "auc": score(0.6)}}
    found = {"a": of(0.6, 0.7, 0.5), "b": of(0.8, 0.7, 0.5, **forest)}
    rows = baseline_steps.rows_over_repeats(found)
    assert [row["method"] for row in rows] == ["ours", "commonest class", "ridge, everything"]
    assert [row["accuracy"] for row in rows] == ["0.700 ± 0.141", "0.500 ± 0.000", "0.700 ± 0.000"]
    assert [row[baseline_steps.AUC] for row in rows] == ["0.800 ± 0.000", "", "0.900 ± 0.000"]


def test_a_mean_that_its_spread_does_not_lift_above_chance_is_named(tmp_path):
    found = {"a": of(0.45, 0.7, 0.5), "b": of(0.6, 0.7, 0.5)}
    summary = repeats.write_summary(tmp_path / "metrics.json", {}, found)
    [line] = repeats.not_above_chance(summary, without="baselines.")
    assert "0.525" in line
    assert "not clearly above" in line
    assert [row["figure"] for row in repeats.rows(summary, without="baselines.")] == [
        "classify: accuracy",
        "classify: auc",
    ]
    below = repeats.write_summary(
        tmp_path / "metrics.json", {}, {"a": of(0.4, 0.7, 0.5), "b": of(0.45, 0.7, 0.5)}
    )
    [line] = repeats.not_above_chance(below, without="baselines.")
    assert "not above" in line
