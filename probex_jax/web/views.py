"""Answers as HTML for the page. All text of strangers is escaped."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any
from urllib.parse import urlencode

from probex_jax.experts.chance import chance_of, shortfall
from probex_jax.forest import Answer, Description, Prediction, Tree
from probex_jax.forest.answers import Asked
from probex_jax.forest.description import ExpertFacts
from probex_jax.reports import attributes
from probex_jax.reports.card_predictions import in_rows_and_alone
from probex_jax.reports.html import page
from probex_jax.search import Hit
from probex_jax.web.catalogue import Described, as_json
from probex_jax.web.thumbnails import thumbnail

_MOST_BARS = 24
_SHOWN_CLASSES = 200
# The map fills its frame: legend and caption take what they need, the picture gets the rest.
_IN_A_FRAME = """<style>
html, body, main, figure.px-map { height: 100%; }
h1 { position: absolute; clip-path: inset(50%); }
body { max-width: none; padding: 0.5rem; }
figure.px-map { display: flex; flex-direction: column; margin: 0; }
.px-view { display: flex; flex: 1; flex-direction: column; min-height: 0; }
.px-view > svg { flex: 1; min-height: 0; max-height: none; }
.px-legend { flex: none; max-height: 30%; }
@media (max-width: 40rem) { body { padding: 0.3rem; } .px-hint { display: none; } }
</style>"""


def error(message: object) -> str:
    """An error in a box."""
    return f'<p class="px-error">{escape(str(message))}</p>'


def described(found: Described) -> str:
    """A model with its description and downloads."""
    heading = f"<h2>{escape(found.name)}</h2>"
    said = found.description
    if said is None:
        return (
            f'<article class="px-model">{heading}{error(found.error)}'
            '<p class="px-quiet">Supported are safetensors files: whole models, shards with the '
            "index, and LoRAs.</p></article>"
        )
    on_map = ""
    if found.star is not None:
        x, y = found.star
        on_map = frame(f"Map with a star for {found.name}", said.tree, x=x, y=y, name=found.name)
    parts = [
        heading,
        _tree_line(said),
        _predictions(said),
        _stated(said),
        _nearest(said),
        on_map,
        _downloads(found),
    ]
    return f'<article class="px-model">{"".join(parts)}</article>'


def frame(title: str, tree: str, **star: float | str) -> str:
    """A frame with the map of an index, and a star for another model."""
    address = escape("map?" + urlencode({"index": tree, **star}))
    return (
        f'<iframe class="px-map" loading="lazy" title="{escape(title)}" src="{address}"></iframe>'
    )


def map_document(drawn: str) -> str:
    """A document that holds a map."""
    drawn = drawn or "<p>There is no map of this index.</p>"
    return page("Map", f"<main><h1>Map</h1>{drawn}</main>{_IN_A_FRAME}")


def _tree_line(said: Description) -> str:
    route, facts = said.route, said.stated
    kind = facts.kind[0].upper() + facts.kind[1:]
    size = f"{kind}: {facts.parameters:,} parameters in {facts.layers} layers, {facts.dtype}"
    if not route.tree:
        tree = f"<strong>Unknown tree</strong>: {escape(route.reason)}"
    else:
        tree = f"Model Tree <strong>{escape(route.tree)}</strong>"
        if root := said.root or said.stated_root:
            tree += f", which descends from {escape(root)}"
        if route.distance is not None and route.radius is not None:
            tree += (
                f" <span class='px-quiet'>(distance {route.distance:.3g} from its centre, radius "
                f"{route.radius:.3g})</span>"
            )
    return f'<p>{tree}</p><p class="px-quiet">{escape(size)}</p>'


def _predictions(said: Description) -> str:
    title = "<h3>What it was trained on: predicted from the weights</h3>"
    if not said.tree:
        return f"{title}<p>Nothing is predicted, since its tree is unknown.</p>"
    untold = f"<p>The weights cannot tell {_names(said.untold)}.</p>" if said.untold else ""
    if not said.answers:
        return (untold and title + untold) or (
            f"{title}<p>Nothing is predicted, since its tree has no expert.</p>"
        )
    in_rows, alone = in_rows_and_alone(said.answers)
    several = len(said.answers) > 1
    parts = [_attributes(in_rows), *(_answer(answer, with_title=several) for answer in alone)]
    return title + "".join(parts) + untold


def _names(names: Sequence[str]) -> str:
    listed = ", ".join(map(escape, names[:_SHOWN_CLASSES]))
    more = len(names) - _SHOWN_CLASSES
    return f"{listed} and {more:,} more" if more > 0 else listed


def _attributes(answers: Sequence[Answer]) -> str:
    """A table of attributes with intervals or sets; on a phone each is a block."""
    if not answers:
        return ""
    rows = list(attributes.rows(answers, escape))
    first, *others = rows[0]
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in rows[0])
    body = "".join(
        f'<tr><th scope="row">{row[first]}</th>'
        + "".join(f'<td data-of="{escape(name)}">{row[name]}</td>' for name in others)
        + "</tr>"
        for row in rows
    )
    level = attributes.levels(answers)
    about = f"For {level} of its tree's models the true value lies in the interval or set."
    return (
        f'<p class="px-quiet">{about if level else ""}</p><table class="px-attributes">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def _answer(answer: Answer, *, with_title: bool) -> str:
    title = f"<h4>{escape(answer.title)}</h4>" if with_title or answer.label_set else ""
    one, known = answer.chooses_one, len(answer.predictions)
    about = (
        f"One of {known} classes; the probabilities add up to one."
        if one
        else f"Any of {known} classes; those with a probability above one half count as predicted."
    )
    shown = answer.predictions[: 5 if one else _MOST_BARS]
    rest = "" if known == len(shown) else f"<p>and {known - len(shown)} less likely</p>"
    bars = _bars([(p.text, p.probability) for p in shown], "class", "probability")
    held = ""
    if one and answer.likely is not None:
        level = attributes.levels([answer])
        held = f"<p>{level} set: {attributes.held(answer, escape)}.</p>"
    return (
        f'{title}<p class="px-quiet">{about} {_tested(answer.expert)} The expert '
        f"knows no other classes.</p>{bars}{rest}{held}"
    )


def _tested(expert: ExpertFacts) -> str:
    found = expert.accuracy
    if found is None:
        return ""
    what = "" if expert.chosen == "one" else "the classes of "
    return (
        f"Its expert was right on {found['value']:.1%} of {what}{found['n_models']} test models "
        f"(95% interval {found['low']:.1%} to {found['high']:.1%}).{_beside_chance(found)}"
    )


def _beside_chance(accuracy: Mapping[str, Any]) -> str:
    chance, short = chance_of(accuracy), shortfall(accuracy)
    if chance is None:
        return ""
    said = f" Always giving the most common answer is right on {chance:.1%}"
    return f"{said}: <b>the expert is {short} that</b>." if short else f"{said}."


def _bars(rows: Sequence[tuple[str, float]], what: str, figure: str) -> str:
    """A table of values between 0 and 1 with bars."""
    lines = [
        f'<tr><th scope="row">{escape(text)}</th><td><svg class="px-bar" aria-hidden="true">'
        f'<rect width="{value:.1%}"/></svg></td><td>{_number(value)}</td></tr>'
        for text, value in rows
    ]
    head = (
        f'<thead><tr><th scope="col">{what}</th><td></td><th scope="col">{figure}</th></tr></thead>'
    )
    return f'<table class="px-bars">{head}<tbody>{"".join(lines)}</tbody></table>'


def _number(value: float) -> str:
    return "&gt; 0.999" if value >= 0.9995 else "&lt; 0.001" if value < 0.0005 else f"{value:.3f}"


def _stated(said: Description) -> str:
    title = "<h3>What its own files say</h3>"
    if said.stated.base:
        title += f"<p>Fine-tuned from {escape(said.stated.base)}.</p>"
    if not said.stated.labels:
        return f"{title}<p>They do not say what it was trained on.</p>"
    labels = ", ".join(map(escape, said.stated.labels[:_SHOWN_CLASSES]))
    line = f"<p>{escape(said.stated.source)}: {labels}</p>"
    compared = said.comparison
    if compared is None or not compared.n_known:
        return title + line + "<p>The expert knows none of these classes.</p>"
    verdict = "The prediction agrees."
    if compared.missed or compared.extra:
        parts = [
            f"not predicted: {_listed(compared.missed)}" if compared.missed else "",
            f"predicted, not stated: {_listed(compared.extra)}" if compared.extra else "",
        ]
        verdict = f"The prediction differs; {'; '.join(part for part in parts if part)}."
    return f"{title}{line}<p>{verdict}</p>"


def _listed(predictions: Sequence[Prediction]) -> str:
    return ", ".join(f"{escape(p.text)} ({_number(p.probability)})" for p in predictions)


def _nearest(said: Description) -> str:
    if not said.neighbours:
        return ""
    hits = [Hit(n.similarity, n.id, n.path, "", "", (), n.text) for n in said.neighbours]
    return f"<h3>Nearest documented models</h3>{gallery(hits, said.tree)}"


def _downloads(found: Described) -> str:
    name = "".join(c if c.isalnum() or c in "-_." else "_" for c in found.name)
    facts = as_json(found)
    text = json.dumps(facts, indent=2)
    return (
        '<p class="px-downloads">'
        f"{_download(facts['card'], 'text/markdown', f'{name}.md', 'Download the card')}"
        f"{_download(text, 'application/json', f'{name}.json', 'Download as JSON')}</p>"
    )


def _download(text: str, kind: str, name: str, label: str) -> str:
    data = base64.b64encode(text.encode("utf-8", "replace")).decode()
    return f'<a class="px-button" download="{name}" href="data:{kind};base64,{data}">{label}</a>'


def results(title: str, hits: Sequence[Hit], tree: str, names: Sequence[str] = ()) -> str:
    """The results of a search with a heading; other arguments as for `gallery`."""
    count = f"{len(hits)} model{'s' if len(hits) != 1 else ''} of {escape(tree)}"
    return f"<h2>{escape(title)}: {count}</h2>{gallery(hits, tree, names)}"


def gallery(hits: Sequence[Hit], tree: str, names: Sequence[str] = ()) -> str:
    """Models that a search found, in its order.

    Args:
      hits: the models.
      tree: of their index.
      names: attributes that are shown.
    """
    if not hits:
        return '<p class="px-note">No model found.</p>'
    pictures = [thumbnail(hit.path) for hit in hits]
    if not any(pictures):
        shown = [""] * len(hits)
    else:
        shown = [
            f'<img src="{picture}" alt="Image from the folder of {escape(hit.id)}">'
            if picture
            else '<span class="px-no-picture" aria-hidden="true">no picture</span>'
            for hit, picture in zip(hits, pictures, strict=True)
        ]
    cards = (_card(hit, tree, picture, names) for hit, picture in zip(hits, shown, strict=True))
    return f'<ol class="px-gallery">{"".join(cards)}</ol>'


def _card(hit: Hit, tree: str, picture: str, names: Sequence[str]) -> str:
    found = {name: hit.attributes[name] for name in names if name in hit.attributes}
    told = [f"{name}: {attributes.value(value)}" for name, value in found.items()]
    tags = "".join(f"<span>{escape(tag)}</span>" for tag in (hit.tree, hit.split, *told) if tag)
    if hit.similarity:
        tags = f'<span title="cosine similarity">{hit.similarity:.3f}</span>{tags}'
    link = escape("?" + urlencode({"like": hit.id, "index": tree}))
    return (
        f'<li>{picture}<p class="px-text">{escape(hit.text) or "no text"}</p>'
        f'<p class="px-id">{escape(hit.id)}</p>'
        f'<p class="px-tags">{tags}</p>'
        f'<p><a href="{link}">more like this</a></p></li>'
    )


def forest(trees: Mapping[str, Tree], indexed: Mapping[str, int]) -> str:
    """The trees of a forest with their experts.

    Args:
      trees: by name.
      indexed: number of models in the index of each tree that has one.
    """
    return "".join(_tree(tree, indexed.get(name)) for name, tree in trees.items())


def _tree(tree: Tree, n_indexed: int | None) -> str:
    router, experts = tree.router, tree.experts
    root = router.root or router.stated_root
    lines = [
        f"Learnt from {router.n_models:,} {'LoRAs' if router.is_lora else 'models'}",
        f"Descends from {escape(root)}" if root else "Root unknown",
    ]
    if n_indexed is not None:
        lines.append(f"{n_indexed:,} documented models in the index")
    more = ""
    if not experts:
        lines.append("No expert: models are recognised, but nothing is predicted")
    for label_set, expert in experts.items():
        facts, card = tree.facts(label_set), expert.card
        about = f" of {escape(label_set)}" if label_set else ""
        lines.append(f"The expert{about} reads {escape(expert.reading)}")
        if (found := facts.accuracy) is not None:
            lines.append(
                f"Test accuracy {found['value']:.3f} (95% interval {found['low']:.3f} to "
                f"{found['high']:.3f}, {found['n_models']} models).{_beside_chance(found)}"
            )
        classes = [card.words.get(label, label) for label in card.classes]
        listed = ", ".join(map(escape, classes[:_SHOWN_CLASSES]))
        rest = len(classes) - _SHOWN_CLASSES
        listed += f" and {rest:,} more" if rest > 0 else ""
        if card.attributes:
            more += _can_tell(tree.asked(label_set))
            continue
        one = facts.chosen == "one"
        can_say = f"Predicts {'one' if one else 'any'} of {len(classes):,} classes"
        more += f"<details><summary>{can_say}</summary><p>{listed}</p></details>"
        more += _by_layer(card.figures)
    if tree.untold:
        lines.append(f"The weights cannot tell {_names(tree.untold)}")
    items = "".join(f"<li>{line}</li>" for line in lines)
    return (
        f'<section class="px-model"><h2>{escape(router.tree)}</h2><ul>{items}</ul>{more}</section>'
    )


def _can_tell(asked: Mapping[str, Asked]) -> str:
    """The attributes that an expert predicts, and how well."""
    rows = [
        f'<tr><th scope="row">{escape(name)}</th>'
        f'<td data-of="on test models">{attributes.quality(one.facts)}</td></tr>'
        for name, one in asked.items()
    ]
    return (
        f"<details open><summary>Predicts {len(rows):,} attributes</summary>"
        f'<table class="px-attributes"><tbody>{"".join(rows)}</tbody></table></details>'
    )


def _by_layer(metrics: Mapping[str, Any]) -> str:
    accuracies = metrics.get("val_accuracy_by_layer")
    if not accuracies:
        return ""
    bars = _bars(list(accuracies.items()), "layer", "accuracy")
    chance = metrics.get("val_chance")
    beside = "" if chance is None else f" Chance: {_number(chance)}."
    return (
        "<details><summary>Accuracy by layer</summary><p class='px-quiet'>Validation accuracy of "
        f"an expert on each layer alone.{beside}</p>{bars}</details>"
    )
