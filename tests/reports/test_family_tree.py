"""Family trees as pages and text: what they show, and that text of strangers does nothing."""

import json
import random
import re

import pytest

from probex_jax.errors import ProbexError
from probex_jax.lineage import KINDS, Copies, Edge, Lineage, Node
from probex_jax.reports import family_tree_html, mermaid, newick
from tests.reports.pages import HOSTILE, check_harmless


def node(id, origin="derived", copy_of=""):
    return Node(id, f"models/{id}", "f0", origin, copy_of)


def edge(parent, child, kind="fine-tune", confidence=0.95, coefficient=None, distance=0.25):
    return Edge(parent, child, kind, 1e-9, confidence, distance, coefficient)


def lineage():
    """A root, two children and their merge; a copy; one of unknown parent, one alone."""
    nodes = [node("root", "root"), node("one"), node("two"), node("both")]
    nodes += [node("twin", "copy", "one"), node("odd", "unknown parent"), node("alone", "alone")]
    edges = [
        edge("root", "one"),
        edge("root", "two", "pruned", confidence=0.7),
        edge("one", "both", "merge", coefficient=0.38),
        edge("two", "both", "merge", coefficient=0.62),
    ]
    return Lineage(
        tuple(nodes), tuple(edges), (Copies(("one", "twin"), 0.0),), {"broken": "no header"}
    )


def data_of(text):
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', text)[1])


def test_text_of_strangers_is_shown_and_does_nothing():
    hostile = HOSTILE.replace("\0", "")
    nodes = tuple(Node(f"{hostile}{n}", HOSTILE, HOSTILE, "derived") for n in range(3))
    alone = Node(f"{hostile} alone", HOSTILE, HOSTILE, "alone")
    first, second, third = (one.id for one in nodes)
    edges = (Edge(first, second, "LoRA", 0.0, 0.5, 0.1, layers=(HOSTILE,)),)
    copies = (Copies((second, third), 0.0),)
    found = Lineage((*nodes, alone), edges, copies, {HOSTILE: HOSTILE})
    text = family_tree_html(found, HOSTILE)
    tags = check_harmless(text)
    assert [tag for tag, _ in tags.starts].count("script") == 2
    assert data_of(text)["nodes"][0][0] == first
    assert hostile not in mermaid(found)
    assert "<" not in mermaid(found)


def test_the_page_holds_every_model_edge_copy_and_failure():
    text = family_tree_html(lineage(), "My models")
    data = data_of(text)
    names = [each[0] for each in data["nodes"]]
    assert sorted(names) == ["both", "odd", "one", "root", "two"]
    edges = {(names[e[0]], names[e[1]], KINDS[e[2]]) for e in data["edges"]}
    assert edges == {(e.parent, e.child, e.kind) for e in lineage().edges}
    assert data["nodes"][names.index("one")][-1] == ["twin"]
    assert data["alone"] == ["alone"]
    for said in ("My models", "twin", "alone", "broken", "no header", "1 family"):
        assert said in text


def test_a_child_stands_right_of_all_its_parents_and_no_two_models_in_one_place():
    data = data_of(family_tree_html(lineage(), ""))
    places = [(x, y) for _, x, y, *_ in data["nodes"]]
    assert len(set(places)) == len(places)
    for parent, child, *_ in data["edges"]:
        assert places[parent][0] < places[child][0]


def test_lines_are_dashed_below_nine_tenths_and_stand_in_the_order_of_the_edges():
    text = family_tree_html(lineage(), "")
    data = data_of(text)
    paths = re.findall(r'class="ft-line( ft-unsure)?" data-kind="(\d)" d="(M\d[^"]*)"', text)
    drawn = [
        (bool(unsure), int(kind), line)
        for unsure, kind, path in paths
        for line in re.findall("M[^M]+", path)
        if line != "M1 8H31"  # of the legend
    ]
    assert len(drawn) == len(data["edges"])
    for (unsure, kind, line), (_, child, number, _, confidence, *_) in zip(
        drawn, data["edges"], strict=True
    ):
        assert unsure == (confidence < 0.9)
        assert kind == number
        assert line.endswith(f"H{data['nodes'][child][1]}")


def many(n_models, seed=0):
    """Families of several sizes, one of them with most models as children of one root."""
    rng, nodes, edges = random.Random(seed), [node("m0", "root")], []
    for n in range(1, n_models):
        parent = rng.choice([0, 0, 0, n - 1, rng.randrange(n)])
        if rng.random() < 0.05:
            nodes.append(node(f"m{n}", "unknown parent"))
            continue
        nodes.append(node(f"m{n}"))
        edges.append(edge(f"m{parent}", f"m{n}"))
    return Lineage(tuple(nodes), tuple(edges))


@pytest.mark.parametrize("n_models", [0, 1, 2, 30, 3000])
def test_pictures_of_any_size_give_each_model_a_place_of_its_own(n_models):
    found = many(n_models) if n_models > 1 else Lineage((node("x", "alone"),) * n_models)
    text = family_tree_html(found, "")
    check_harmless(text)
    if n_models > 1:
        places = [(x, y) for _, x, y, *_ in data_of(text)["nodes"]]
        assert len(set(places)) == len(places)
        width, height = map(int, re.search(r'viewBox="0 0 (\d+) (\d+)" tab', text).groups())
        assert all(0 <= x < width and 0 <= y < height for x, y in places)


def test_a_chain_of_thousands_of_generations_is_drawn():
    nodes = tuple(node(f"m{n}") for n in range(3000))
    found = Lineage(nodes, tuple(edge(f"m{n}", f"m{n + 1}") for n in range(2999)))
    assert len(data_of(family_tree_html(found, ""))["edges"]) == 2999
    assert newick(found).count("(") == 2999


def test_mermaid_has_every_edge_and_dashes_the_unsure():
    lines = mermaid(lineage()).splitlines()
    labels = dict(re.findall(r'(m\d+)\["(\w+)', "\n".join(lines)))
    edges = re.findall(r'(m\d+) (\S+)\|"([^"]+)"\| (m\d+)', "\n".join(lines))
    found = {(labels[a], arrow, kind, labels[b]) for a, arrow, kind, b in edges}
    assert ("root", "-.->", "pruned", "two") in found
    assert ("two", "-->", "merge 0.62", "both") in found
    assert len(found) == 4
    assert any("one + 1 copy" in line for line in lines)


def test_newick_puts_a_merge_below_its_main_parent_and_names_the_other():
    assert newick(lineage()) == (
        "('one':0.25,('both':0.25[also of 'one' 0.38])'two':0.25)'root';\n'odd';\n"
    )


def test_names_in_newick_end_neither_quotes_nor_comments_nor_lines():
    nodes = tuple(node(id) for id in ("a'b", "c]\nd", "e"))
    merge = (
        edge("a'b", "e", "merge", coefficient=0.7),
        edge("c]\nd", "e", "merge", coefficient=0.3),
    )
    text = newick(Lineage(nodes, merge))
    assert text.startswith("('e':0.25[also of 'c) d' 0.3])'a''b';\n")
    assert text.count("\n") == 2


def test_a_model_that_descends_from_itself_is_refused():
    circle = Lineage((node("a"), node("b")), (edge("a", "b"), edge("b", "a")))
    for draw in (lambda one: family_tree_html(one, ""), mermaid, newick):
        with pytest.raises(ProbexError, match="'a'"):
            draw(circle)
