"""The pages of the API: every name is there, and its docstring says what it takes and gives."""

import inspect
import re
import runpy
from importlib import import_module
from types import SimpleNamespace

import pytest

import probex_jax as px
from tests.docs import markdown

SITE = SimpleNamespace(**runpy.run_path(str(markdown.ROOT / "docs" / "site" / "build.py")))
ROOMS = list(SITE.rooms())
NAMES = [
    *(f"probex_jax.{name}" for name in px.__all__),
    *(f"probex_jax.{room}.{name}" for room in ROOMS for name in SITE.names(room)),
]


@pytest.fixture(scope="module")
def pages():
    return dict(SITE.api())


def found(name):
    module, _, last = name.rpartition(".")
    return getattr(import_module(module), last)


def lacking(value, *, public):
    """What the docstring of a class or a function should have and has not."""
    text = inspect.getdoc(value) or ""
    if not text:
        yield "a docstring"
    if public and "\nExample:\n" not in text:
        yield "Example"
    if inspect.isfunction(value):
        signature = inspect.signature(value)
        if signature.parameters and "\nArgs:\n" not in text:
            yield "Args"
        gives = signature.return_annotation not in (None, "None")
        if gives and not re.search(r"\n(Returns|Yields):\n", text):
            yield "Returns"


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_documented(name):
    value = found(name)
    if inspect.isclass(value) or inspect.isfunction(value):
        assert not list(lacking(value, public=name.count(".") == 1))


@pytest.mark.parametrize("name", px.__all__)
def test_the_methods_of_public_classes_are_documented(name):
    for method, value in vars(getattr(px, name)).items():
        value = getattr(value, "__func__", getattr(value, "fget", value))
        if inspect.isfunction(value) and value.__name__ == method and method[0] != "_":
            assert inspect.getdoc(value) or method == "setup", method  # perhaps inherited


def test_a_gap_is_noticed():
    def gap(x: int) -> int:
        """Nothing is said of x."""

    assert list(lacking(gap, public=True)) == ["Example", "Args", "Returns"]


def test_the_public_names_are_grouped_as_in_the_package():
    groups = SITE.groups()
    assert [name for names in groups.values() for name in names] == list(px.__all__)
    assert "Model files" in groups


def test_all_rooms_have_a_page(pages):
    there = {path.stem for path in (markdown.ROOT / "probex_jax").glob("[!_]*")} - {"py"}
    assert set(ROOMS) == there
    assert set(pages) == {"index.md", "public.md", *(f"{room}.md" for room in ROOMS)}


@pytest.mark.parametrize("room", ROOMS)
def test_each_name_of_a_room_is_shown_once(pages, room):
    public = {id(getattr(px, name)): name for name in px.__all__}
    for name in SITE.names(room):
        here = f"::: probex_jax.{room}.{name}\n" in pages[f"{room}.md"]
        there = public.get(id(found(f"probex_jax.{room}.{name}")))
        assert here != (there is not None), name
        if there:
            assert f"::: probex_jax.{there}\n" in pages["public.md"]
            assert f"(public.md#probex_jax.{there})" in pages[f"{room}.md"]


def test_all_that_is_in_the_navigation_is_laid_out(tmp_path):
    SITE.lay_out(tmp_path / "pages")

    def targets(item):
        if isinstance(item, str):
            yield item
        else:
            for inner in item.values() if isinstance(item, dict) else item:
                yield from targets(inner)

    listed = list(targets(SITE.navigation()))
    assert {"README.md", "CHANGELOG.md", "docs/encoders.md", "api/experts.md"} <= set(listed)
    for page in listed:
        assert (tmp_path / "pages" / page).is_file(), page
    for name in markdown.pages():
        assert name in listed, f"{name} has no place in the navigation"
