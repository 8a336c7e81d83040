"""Builds the site: the pages of the repository as they lie, and the API's from docstrings.

python docs/site/build.py writes out/docs, to be opened in a browser; the generator is Zensical
with mkdocstrings (extra `docs`).
"""

import ast
import inspect
import json
import pkgutil
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path

import probex_jax as px

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "out" / "docs-source"
CONFIG = ROOT / "out" / "docs.yml"
# What pages show or link to, in the folders that they lie in.
PAGES = (
    "README.md",
    "WORKSPACE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "CITATION.cff",
    "LICENSE",
    "docs",
    "results",
    "experiments/colab",
)
PUBLIC = "public.md"
READ = {
    "Overview": "README.md",
    "Which command do I need?": "docs/commands.md",
    "Your own models": "docs/models.md",
    "Lineage": "docs/lineage.md",
    "Method": "docs/method.md",
    "Formats": "docs/formats.md",
    "Clusters": "docs/clusters.md",
    "The web page": "docs/page.md",
    "Adding an encoder": "docs/encoders.md",
}
LOOKED_UP = {
    "Changes": "CHANGELOG.md",
    "Contributing": "CONTRIBUTING.md",
    "Workspace": "WORKSPACE.md",
}


def groups() -> Mapping[str, Sequence[str]]:
    """The public names by the headings that they stand under in `probex_jax/__init__.py`."""
    source = inspect.getsource(px)
    found: dict[str, list[str]] = {}
    for line in source[source.index("__all__") :].splitlines()[1:]:
        if heading := re.match(r"    # (.+)\.$", line):
            found[heading[1]] = []
        elif name := re.match(r'    "(\w+)",$', line):
            found[list(found)[-1]].append(name[1])
    return found


def rooms() -> Iterator[str]:
    """The rooms of the library, by name, in the order that data flows through them."""
    order = (
        (ROOT / "setup.cfg").read_text().split("\nlayers =\n")[1].split("\nexhaustive")[0].split()
    )
    there = {module.name for module in pkgutil.iter_modules(px.__path__)}
    yield from (room for room in reversed(order) if room in there)


def names(room: str) -> Sequence[str]:
    """What a room gives to others: its `__all__`, or what is defined there without underscore."""
    module = import_module(f"probex_jax.{room}")
    if hasattr(module, "__all__"):
        return module.__all__
    tree = ast.parse(inspect.getsource(module))
    defined = (node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef))
    return [name for name in defined if not name.startswith("_")]


def api() -> Iterator[tuple[str, str]]:
    """The API's pages: file names, and Markdown that names what docstrings are to be shown."""
    lines = ["# Public names\n", "What other code relies on: `import probex_jax as px`.\n"]
    for heading, members in groups().items():
        lines += [f"## {heading}\n", *(f"::: probex_jax.{name}\n" for name in members)]
    yield PUBLIC, "\n".join(lines)
    public = {getattr(px, name): name for name in px.__all__}
    contents = ["# API\n", f"- [Public names]({PUBLIC}): what other code relies on"]
    for room in rooms():
        module = import_module(f"probex_jax.{room}")
        first, _, more = inspect.getdoc(module).partition("\n")
        contents.append(f"- [`{room}`]({room}.md): {first[0].lower()}{first[1:].rstrip('.')}")
        lines = [f"# `probex_jax.{room}`\n", first, more]
        shown = {name: getattr(module, name) for name in names(room)}
        known = [name for name, value in shown.items() if _is_in(value, public)]
        if known:
            links = (
                f"[`{public[shown[n]]}`]({PUBLIC}#probex_jax.{public[shown[n]]})" for n in known
            )
            lines += [f"\nAmong the public names: {', '.join(links)}.\n"]
        lines += [f"::: probex_jax.{room}.{name}\n" for name in shown if name not in known]
        yield f"{room}.md", "\n".join(lines)
    yield "index.md", "\n".join([*contents, ""])


def _is_in(value: object, public: Mapping[object, str]) -> bool:
    return (inspect.isclass(value) or inspect.isfunction(value)) and value in public


def navigation() -> list[Mapping[str, object]]:
    """Titles and pages, in order, as mkdocs takes them."""
    of_rooms = [{room: f"api/{room}.md"} for room in rooms()]
    results = sorted((ROOT / "results").glob("*.md"), key=lambda path: path.stem != "README")
    return [
        *({title: page} for title, page in READ.items()),
        {"API": ["api/index.md", {"Public names": f"api/{PUBLIC}"}, *of_rooms]},
        {"Results": [f"results/{path.name}" for path in results]},
        *({title: page} for title, page in LOOKED_UP.items()),
    ]


def lay_out(folder: Path) -> None:
    """Copies the pages with what they show, in folders as in the repository, and adds the API's."""
    shutil.rmtree(folder, ignore_errors=True)
    for name in PAGES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            left_out = shutil.ignore_patterns("site", "*.json", "speed")
            shutil.copytree(ROOT / name, folder / name, ignore=left_out)
        else:
            shutil.copy(ROOT / name, folder / name)
    shutil.copy(Path(__file__).with_name("iframe-worker.js"), folder)
    (folder / "api").mkdir()
    for name, text in api():
        (folder / "api" / name).write_text(text)


if __name__ == "__main__":
    lay_out(SOURCE)
    # JSON is YAML.
    about = {"INHERIT": "../docs/site/site.yml", "nav": navigation()}
    CONFIG.write_text(json.dumps(about, indent=1))
    command = [sys.executable, "-m", "zensical", "build", "--strict", f"--config-file={CONFIG}"]
    sys.exit(subprocess.run(command, cwd=ROOT).returncode)
