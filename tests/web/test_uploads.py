"""What strangers send: limits, and what is left of it."""

import asyncio
import os
import time

import pytest

from probex_jax.errors import ProbexError
from probex_jax.web import uploads as module
from probex_jax.web.models import Model, of_hub, plain_name, sent
from probex_jax.web.uploads import Full, TooLarge, Uploads


@pytest.fixture
def uploads():
    """A folder of uploads for files of 100 bytes."""
    made = Uploads(100)
    yield made
    made.close()


def received(uploads, path, *chunks):
    async def body():
        for chunk in chunks:
            yield chunk

    asyncio.run(uploads.receive(body(), path, "mine"))


def test_a_file_up_to_the_limit_is_written(uploads):
    with uploads.place() as folder:
        received(uploads, folder / "a", b"x" * 60, b"y" * 40)
        assert (folder / "a").read_bytes() == b"x" * 60 + b"y" * 40
    assert not folder.exists()


def test_a_larger_one_is_refused_as_soon_as_it_is(uploads):
    with uploads.place() as folder:
        with pytest.raises(TooLarge, match="mine: larger than"):
            received(uploads, folder / "a", b"x" * 60, b"y" * 41, *[b"z"] * 1000)
        assert (folder / "a").stat().st_size <= 100


def test_what_is_on_its_way_counts_before_it_is_there(uploads):
    (uploads.folder / "held").write_bytes(b"x" * 100)
    with (
        uploads.coming(1000),
        uploads.coming(500),
        pytest.raises(Full, match="in a minute"),
        uploads.coming(1),
    ):
        pass
    with uploads.coming(1500):
        pass


def test_a_full_disk_is_told(uploads, monkeypatch):
    monkeypatch.setattr(module, "_DISK_RESERVE", 2**60)
    with pytest.raises(Full, match="disk"), uploads.coming(1):
        pass


def test_sweeping_outlives_files_that_vanish(uploads, monkeypatch):
    (uploads.folder / "a").mkdir()
    (uploads.folder / "a" / "x").write_bytes(b"x")

    def vanished(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(module.os, "lstat", vanished)
    uploads.sweep(0)
    with uploads.coming(100):
        pass


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../x", "a/../../x", "/dev/zero", "link", "\0", ""]
)
def test_nothing_else_is_held(uploads, tmp_path, path):
    (tmp_path / "mine").write_text("x")
    (uploads.folder / "link").symlink_to(tmp_path / "mine")
    assert uploads.held(path) is None


def test_what_nobody_asked_for_again_is_swept(uploads):
    (uploads.folder / "a").mkdir()
    old, new = uploads.folder / "a" / "old", uploads.folder / "new"
    for file in (old, new):
        file.write_bytes(b"x")
    past = time.time() - 3600
    for path in (old, old.parent):
        os.utime(path, (past, past))
    uploads.sweep()
    os.utime(old.parent, (past, past))
    uploads.sweep()
    assert list(uploads.folder.rglob("*")) == [new]


def test_only_its_own_files_are_removed(uploads, tmp_path):
    (tmp_path / "mine").write_text("x")
    (uploads.folder / "link").symlink_to(tmp_path / "mine")
    uploads.remove([tmp_path / "mine", uploads.folder / ".." / "x", uploads.folder / "link"])
    assert (tmp_path / "mine").exists()


def files(folder, *names):
    paths = []
    for place, name in enumerate(names):
        (folder / str(place)).mkdir()
        paths.append(folder / str(place) / name)
        paths[-1].touch()
    return paths


def test_files_that_come_together_are_models_each(tmp_path):
    paths = files(tmp_path, "a.safetensors", "a.safetensors")
    assert sent(paths, tmp_path) == [Model("a", path) for path in paths]


@pytest.mark.parametrize(
    ("names", "at"),
    [
        (("adapter_model.safetensors", "adapter_config.json"), "adapter_model.safetensors"),
        (("model.safetensors", "config.json"), ""),
        (("a-1.safetensors", "a-2.safetensors", "model.safetensors.index.json"), ""),
    ],
)
def test_with_json_they_are_one_model(tmp_path, names, at):
    (tmp_path / "one").mkdir()
    [model] = sent(files(tmp_path, *names), tmp_path / "one")
    assert model.path == tmp_path / "one" / at
    assert {path.name for path in (tmp_path / "one").iterdir()} == set(names)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("config.json",), "no safetensors file"),
        (("a.safetensors", "a.safetensors", "config.json"), "same name"),
        ((), "send it again"),
    ],
)
def test_what_is_no_model_is_refused(tmp_path, names, says):
    with pytest.raises(ProbexError, match=says):
        sent(files(tmp_path, *names), tmp_path)


@pytest.mark.parametrize(
    ("name", "plain"),
    [("a.safetensors", "a.safetensors"), ("..", "model"), ("a\\b", "b"), ("a\nb\0c", "a_b_c")],
)
def test_plain_names(name, plain):
    assert plain_name(name) == plain


def test_hub_addresses():
    assert of_hub(" me/model ", allowed=True).name == "me/model"
    assert str(of_hub("me/m@v1/a.safetensors", allowed=True).path).startswith("hf:/")
    with pytest.raises(ProbexError, match="reads no models of the hub"):
        of_hub("me/model", allowed=False)
