"""The demo on the tiny zoo: complete, and taken up again without doing anything twice."""

import json

import pytest

from tests.end_to_end import warm
from tests.reports.pages import check_harmless


@pytest.mark.xdist_group("demo")
def test_the_demo_tells_of_hidden_models_and_resumes(tmp_path):
    demo = ("demo", f"--workdir={tmp_path}", "--size=tiny")
    first = warm.run(*demo)
    assert first.returncode == 0, first.stderr
    report = (tmp_path / "report.md").read_text()
    assert report in first.stdout
    for text in (
        "MiniSupViT",
        "MiniMAE",
        "centred dense, ridge",
        "probex",
        "statnn",
        "predicted",
        "classes",
        "The tree is right for 8 of 8",
        "✓ no tree of the forest",
    ):
        assert text in report
    cards = sorted(path.stem for path in (tmp_path / "cards").glob("*.md"))
    assert cards == [f"hidden_{number:02d}" for number in range(1, 9)]
    assert not any(
        word in (tmp_path / "hidden" / f"{card}.safetensors").read_bytes()[:4096]
        for card in cards
        for word in (b"dataset_chosen_targets", b"concept")
    )
    assert (tmp_path / "accuracy_by_layer.png").read_bytes().startswith(b"\x89PNG")

    page = (tmp_path / "report.html").read_text()
    assert f"open in a browser: {tmp_path / 'report.html'}" in first.stdout
    check_harmless(page)
    assert len(page.encode()) < 3_000_000
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    for found in (found for methods in metrics.values() for found in methods.values()):
        score = found["test_accuracy"]
        assert f">{score['value']:.3f}</td><td>{score['low']:.3f} to {score['high']:.3f}<" in page
    for card in cards:
        assert f"<h3>{card}</h3>" in page
    for step in ("fine-tuning small models", "training on MiniMAE: StatNN", "growing the forest"):
        assert f'<th scope="row">{step}</th>' in page

    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert len(made) >= 24
    experts = {
        path: path.stat().st_mtime_ns for path in tmp_path.glob("experts/*/*/layers/*/expert")
    }
    second = warm.run(*demo)
    assert second.returncode == 0, second.stderr
    assert all(path.stat().st_mtime_ns == time for path, time in (made | experts).items())

    assert (tmp_path / "report.html").read_text() == page

    def without_counts(text):
        return text.split("## Accuracy")[1]

    assert without_counts((tmp_path / "report.md").read_text()) == without_counts(report)
