"""Family trees as text for other tools: Mermaid and Newick."""

from collections import defaultdict

from probex_jax.lineage.family_trees import family_trees
from probex_jax.lineage.lineage import Edge, Lineage

# From this confidence on, edges are drawn as solid lines.
SURE = 0.9
# What would end a label in Mermaid, or be HTML or Markdown in it.
_MERMAID = {ord(c): f"#{ord(c)};" for c in "#\"'<>&`[](){}|\\*_~"}


def mermaid(lineage: Lineage) -> str:
    """A flowchart of all families; models alone are left out.

    Edges are dashed below a confidence of .9, and name their kind and, in merges, the coefficient.

    Args:
      lineage: of models of any number; Mermaid itself draws some hundreds.

    Returns:
      Lines, for a file `.mmd` or a block of Markdown.

    Raises:
      ProbexError: if a model descends from itself.

    Example:
      >>> from probex_jax.lineage.lineage import Node
      >>> nodes = (Node("a", "a", "f0", "root"), Node("b", "b", "f0", "derived"))
      >>> print(mermaid(Lineage(nodes, (Edge("a", "b", "LoRA", 1e-9, 0.98, 0.05),))), end="")
      flowchart LR
        m0["a"]
        m1["b"]
        m0 -->|"LoRA"| m1
    """
    copies = {group.models[0]: len(group.models) - 1 for group in lineage.copies}
    names = {id: f"m{n}" for n, id in enumerate(_drawn(lineage))}
    lines = ["flowchart LR"]
    for id, name in names.items():
        count = copies.get(id, 0)
        more = f" + {count} {'copy' if count == 1 else 'copies'}" if count else ""
        lines.append(f'  {name}["{_line(id).translate(_MERMAID)}{more}"]')
    for edge in lineage.edges:
        arrow = "-->" if edge.confidence >= SURE else "-.->"
        lines.append(f'  {names[edge.parent]} {arrow}|"{said(edge)}"| {names[edge.child]}')
    return "\n".join(lines) + "\n"


def newick(lineage: Lineage) -> str:
    """A tree a line for each root; models alone are left out.

    Newick knows one parent: a merge stands below the one with the largest coefficient, and a
    comment names the others. Branch lengths are the edges' distances.

    Args:
      lineage: of models.

    Returns:
      Lines, each ended by a semicolon.

    Raises:
      ProbexError: if a model descends from itself.

    Example:
      >>> from probex_jax.lineage.lineage import Node
      >>> nodes = tuple(Node(id, id, "f0", "derived") for id in ("a", "b's"))
      >>> newick(Lineage(nodes, (Edge("a", "b's", "LoRA", 1e-9, 0.98, 0.05),)))
      "('b''s':0.05)'a';\\n"
    """
    to: dict[str, list[Edge]] = defaultdict(list)
    for edge in lineage.edges:
        to[edge.child].append(edge)
    lines = []
    for family in family_trees(lineage):
        children: dict[str, list[str]] = defaultdict(list)
        text: dict[str, str] = {}
        for model in reversed(family.models):  # children before their parents
            inner = ",".join(text.pop(child) for child in reversed(children.pop(model, [])))
            text[model] = (f"({inner})" if inner else "") + _quoted(model)
            if model in family.parent:
                text[model] += _branch(to[model], family.parent[model])
                children[family.parent[model]].append(model)
        lines += [f"{text[root]};\n" for root in family.roots]
    return "".join(lines)


def said(edge: Edge) -> str:
    """The kind of an edge, and the coefficient of a merge."""
    return edge.kind if edge.coefficient is None else f"{edge.kind} {edge.coefficient:.2f}"


def _drawn(lineage: Lineage) -> list[str]:
    return [model for family in family_trees(lineage) for model in family.models]


def _branch(edges: list[Edge], main: str) -> str:
    length = next(edge.distance for edge in edges if edge.parent == main)
    others = [
        f"{_quoted(edge.parent)}{'' if edge.coefficient is None else f' {edge.coefficient:.3g}'}"
        for edge in edges
        if edge.parent != main
    ]
    # A bracket would end the comment.
    listed = ", ".join(others).replace("[", "(").replace("]", ")")
    return f":{length:.6g}" + (f"[also of {listed}]" if others else "")


def _quoted(id: str) -> str:
    return "'" + _line(id).replace("'", "''") + "'"


def _line(id: str) -> str:
    return "".join(c if c.isprintable() else " " for c in id)
