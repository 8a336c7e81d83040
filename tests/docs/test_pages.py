"""What stands in the pages is there: links, pictures, commands, flags, fields, names in code."""

import ast
import configparser
import re
from importlib import import_module
from importlib.util import find_spec
from urllib.parse import unquote, urlsplit

import ml_collections
import pytest
import yaml

import probex_jax as px
from tests.docs import markdown
from tests.end_to_end import commands

ROOT = markdown.ROOT
PAGES = markdown.pages()
pytestmark = pytest.mark.xdist_group("commands")
# Where links lead beside the repository; CI reaches none of them, and a typing error is a new one.
HOSTS = {
    "arxiv.org",
    "colab.research.google.com",
    "docs.aws.amazon.com",
    "docs.jax.dev",
    "docs.ray.io",
    "github.com",
    "huggingface.co",
    "keepachangelog.com",
    "openaccess.thecvf.com",
}
# Flags of other programs that are spoken of.
OTHERS = {"ntasks", "ntasks-per-node", "gpus-per-task", "extra", "no-deps"}
# Packages that pages write for, of people who have them: of an extra that the tests do without.
ELSEWHERE = {"torch"}


def test_the_pages_are_found():
    assert {"README.md", "WORKSPACE.md", "docs/method.md", "results/README.md"} <= set(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    faults = list(broken_links((ROOT / page).read_text(), ROOT / page))
    assert not faults


def broken_links(text, page):
    for link in markdown.links(text):
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            if parts.scheme != "https" or "." not in parts.netloc:
                yield f"{link}: no address"
            elif parts.netloc not in HOSTS:
                yield f"{link}: {parts.netloc} is not among HOSTS of this test"
            continue
        target = page if not parts.path else page.parent / unquote(parts.path)
        if not target.exists() or not target.resolve().is_relative_to(ROOT):
            yield f"{link}: not there"
        elif parts.fragment and parts.fragment not in markdown.anchors(target.read_text()):
            yield f"{link}: no such heading"


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_understood(page):
    faults = list(misunderstood((ROOT / page).read_text()))
    assert not faults


def misunderstood(text):
    made = markdown.files(text)
    for line in commands.lines_of(text):
        yield from (f"{line}: {fault}" for fault in commands.faults(line, made))
    for code in markdown.snippets(text):
        for module in re.findall(r"python -m ([\w.]+)", code):
            if not module.startswith("experiments.") and find_spec(module) is None:
                yield f"no module {module}"
        for target in re.findall(r"^make (?:\w+=\S+ )*([\w-]+)(?!\S*=)", code, re.MULTILINE):
            if target not in targets():
                yield f"no target {target}"
        for listed in re.findall(r"pip install[^\n]*\[([\w,]+)\]", code):
            yield from (f"no extra {name}" for name in listed.split(",") if name not in extras())
        if "python -m" not in code and not re.search(commands.COMMAND, code):
            yield from unknown_flags(code)


def unknown_flags(code):
    """Of flags that stand alone, without their command."""
    known = {flag for name in commands.names() for flag in commands.flags_of(name)[0]} | OTHERS
    for flag in re.findall(r"(?<![\w-])--([a-z][\w.-]*)", code):
        if flag.startswith("config."):
            if flag.removeprefix("config.") not in fields():
                yield f"no config has {flag}"
        elif flag not in known | commands.HIDDEN:
            yield f"no command has --{flag}"


def targets():
    return set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def extras():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return set(parser["options.extras_require"])


def fields():
    """Of all configs, with the sections they are in."""
    found = set()
    for path in (ROOT / "configs").glob("*.py"):
        if hasattr(module := import_module(f"configs.{path.stem}"), "get_config"):
            found |= set(_fields(module.get_config()))
    return found


def _fields(section, name=""):
    for key, value in section.items():
        yield name + key
        if isinstance(value, ml_collections.ConfigDict):
            yield from _fields(value, f"{name}{key}.")


@pytest.mark.parametrize("page", PAGES)
def test_python_compiles_and_what_it_imports_is_there(page):
    text = (ROOT / page).read_text()
    made = {name.removesuffix(".py").replace("/", ".") for name in markdown.files(text)}
    for language, code in markdown.blocks(text):
        if language == "python":
            missing = missing_imports(compile(code, page, "exec", ast.PyCF_ONLY_AST))
            assert set(missing) <= made | ELSEWHERE
    for code in markdown.snippets(text):
        for name in re.findall(r"\bpx\.(\w+)", code):
            assert hasattr(px, name), f"px.{name}"


def missing_imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if find_spec(name.name) is None)
        elif isinstance(node, ast.ImportFrom):
            if find_spec(node.module) is None:
                yield node.module
            elif node.module.startswith("probex_jax"):
                module = import_module(node.module)
                absent = [name.name for name in node.names if not hasattr(module, name.name)]
                yield from (f"{node.module}.{name}" for name in absent)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("see [this](docs/methods.md)", "docs/methods.md: not there"),
        ("![curve](docs/no.png)", "docs/no.png: not there"),
        ("see [this](docs/method.md#trainin)", "no such heading"),
        ("see [this](#nowhere)", "no such heading"),
        ("[the paper](https:/arxiv.org/abs/1)", "no address"),
        ("[the paper](https://arxive.org/abs/1)", "arxive.org is not among HOSTS"),
        ('<img src="docs/no.png" width="300">', "not there"),
    ],
)
def test_a_broken_link_is_noticed(text, fault):
    (found,) = broken_links(text, ROOT / "README.md")
    assert fault in found


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("`probex trian`", "no command trian"),
        ("    probex pack \\\n        --zo=Z --store=S\n", "pack has no --zo"),
        ("| `probex pack --stor=S` | x |", "pack has no --stor"),
        ("| `probex pack --zoo=Z` | x |", "pack lacks --store"),
        ("All of it is printed by: `probex pack`.", "pack lacks --store, --zoo"),
        ("`python -m tests.hubs ROOT`", "no module tests.hubs"),
        ("`make tea`", "no target tea"),
        ("    make tea   # with milk\n", "no target tea"),
        ('    pip install -e ".[commands,hubs]"\n', "no extra hubs"),
        ("`--config.recipe.epoch=3`", "no config has config.recipe.epoch"),
        ("with `--prunes` those that are gone", "no command has --prunes"),
    ],
)
def test_a_wrong_command_is_noticed(text, fault):
    assert any(fault in found for found in misunderstood(text))


def test_a_wrong_import_is_noticed():
    code = "from probex_jax.experts import Recipes\nimport nothing_of_the_kind\n"
    found = list(missing_imports(ast.parse(code)))
    assert found == ["probex_jax.experts.Recipes", "nothing_of_the_kind"]


def test_code_in_a_page_is_no_link_and_no_heading():
    text = "# A `b` c\n\n```sh\n# no heading\n[x](nowhere.md)\n```\n\n`[x](nowhere.md)`\n"
    assert markdown.anchors(text) == {"a-b-c"}
    assert not markdown.links(text)


def test_the_citation_is_of_this_version_and_of_the_papers_that_the_readme_cites():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    about = parser["metadata"]
    assert (cited["cff-version"], cited["title"]) == ("1.2.0", about["name"])
    assert (cited["version"], cited["license"]) == (about["version"], about["license"])
    assert all(one["authors"] and one["title"] for one in [cited, *cited["references"]])
    reference = (ROOT / "README.md").read_text().split("\n## Reference\n")[1]
    assert {one["url"] for one in cited["references"]} == set(
        re.findall(r"https://arxiv.org[^)]*", reference)
    )
