"""What strangers send: limits, and what is left of it."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile

import pytest

from probex_jax.errors import ProbexError
from probex_jax.web import uploads as module
from probex_jax.web.models import Model, of_hub, plain_name, sent
from probex_jax.web.uploads import Full, NotWritten, Refused, TooLarge, Uploads


@pytest.fixture
def uploads():
    """A folder of uploads for files of 100 bytes."""
    made = Uploads(100)
    yield made
    made.close()


def arrived(uploads, *chunks, name="mine"):
    """The path of a file that came."""

    async def body():
        for chunk in chunks:
            yield chunk

    with uploads.coming(sum(map(len, chunks))) as arrival:
        return asyncio.run(arrival.receive(body(), name, ""))


def test_a_file_up_to_the_limit_is_written_and_removed_after_use(uploads):
    path = arrived(uploads, b"x" * 60, b"y" * 40)
    with uploads.used([path]):
        assert path.read_bytes() == b"x" * 60 + b"y" * 40
    assert list(uploads.folder.iterdir()) == []


@pytest.mark.parametrize(
    ("announced", "sizes", "refusal"), [(1000, (60, 41), TooLarge), (2, (2, 1), Refused)]
)
def test_more_than_the_limit_or_was_announced_is_refused(uploads, announced, sizes, refusal):
    with pytest.raises(refusal, match="mine"):  # noqa: PT012, SIM117
        with uploads.coming(announced) as arrival:
            arrival.begin("mine")
            for size in sizes:
                arrival.write(b"x" * size)
    assert list(uploads.folder.iterdir()) == []


def test_there_has_to_be_room_for_what_is_announced(uploads):
    kept = arrived(uploads, b"x" * 100)
    with pytest.raises(Full, match="files"), uploads.coming(1501):
        pass
    with uploads.coming(1500):
        pass
    with uploads.used([kept]), uploads.coming(1500):
        pass
    with uploads.coming(1600):
        pass


def test_who_announces_much_takes_nothing_from_others(uploads):
    with uploads.coming(1600) as slow, uploads.coming(1600) as other:
        for _ in range(15):
            other.begin("other")
            other.write(b"x" * 100)
        slow.begin("slow")
        slow.write(b"x" * 60)
        other.begin("last")
        with pytest.raises(Full):
            other.write(b"x" * 41)


def test_what_was_left_behind_makes_room(uploads, monkeypatch):
    old, used, new = (arrived(uploads, b"x" * 100) for _ in range(3))
    with uploads.used([used]):
        with pytest.raises(Full), uploads.coming(1301):
            pass
        monkeypatch.setattr(module, "_GRACE_S", 0)
        with uploads.coming(1400):
            assert [path.exists() for path in (old, used, new)] == [False, True, True]
        with pytest.raises(Full), uploads.coming(1501):
            pass
        assert not new.exists()


def test_no_more_files_than_so_many_lie_there(uploads, monkeypatch):
    monkeypatch.setattr(module, "_FOLDERS", 2)
    first, second = arrived(uploads), arrived(uploads)
    with pytest.raises(Full, match="too many files"):
        arrived(uploads)
    with uploads.place():
        pass
    monkeypatch.setattr(module, "_GRACE_S", 0)
    third = arrived(uploads)
    assert [path.exists() for path in (first, second, third)] == [False, True, True]


def test_a_folder_that_is_gone_is_one_line(uploads):
    uploads.folder.rmdir()
    with pytest.raises(NotWritten), uploads.coming(1):
        pass


def test_what_the_disk_does_not_take_is_one_line_and_leaves_nothing(uploads):
    with pytest.raises(NotWritten, match="too long"):
        arrived(uploads, b"x", name="x" * 300)
    assert list(uploads.folder.iterdir()) == []
    with uploads.coming(1600):
        pass


def test_what_nobody_uses_is_swept(uploads):
    old, used = arrived(uploads, b"x"), arrived(uploads, b"x")
    uploads.sweep()
    with uploads.coming(200) as arrival, uploads.used([used]), uploads.place() as place:
        arrival.begin("a")
        arrival.write(b"x")
        arrival.begin("b")
        uploads.sweep(0)
        assert not old.exists()
        assert all(path.exists() for path in [*arrival.paths, used, place])
        assert uploads.folder.stat().st_mode & 0o777 == 0o700
    uploads.sweep(0)
    assert list(uploads.folder.iterdir()) == []


KILLED = """
import os, signal
from probex_jax.web.uploads import Uploads
with Uploads(100).coming(9) as arrival:
    arrival.begin("half")
    arrival.write(b"x")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_server_left_is_removed_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "other").mkdir()
    (tmp_path / "probex_jax-uploads-link").symlink_to(tmp_path / "other")
    living = Uploads(100)
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    killed = subprocess.run([sys.executable, "-c", KILLED], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob("*/*/half"))) == 1
    path = arrived(living, b"x")
    second = Uploads(100)
    kept = {tmp_path / "other", tmp_path / "probex_jax-uploads-link", living.folder, second.folder}
    assert set(tmp_path.iterdir()) == kept
    assert path.exists()
    for uploads in (living, second):
        uploads.close()


def test_folders_of_other_users_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    other = tmp_path / "probex_jax-uploads-other"
    other.mkdir()
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    Uploads(100).close()
    assert other.exists()


def test_the_last_one_who_uses_a_file_removes_it(uploads):
    path = arrived(uploads, b"x")
    with uploads.used([path]):
        with uploads.used([path]):
            pass
        assert path.exists()
    assert not path.exists()


def test_only_its_own_files_are_removed(uploads, tmp_path):
    (tmp_path / "mine").write_text("x")
    (uploads.folder / "link").symlink_to(tmp_path / "mine")
    with uploads.used([tmp_path / "mine", uploads.folder / ".." / "x", uploads.folder / "link"]):
        pass
    assert (tmp_path / "mine").exists()
    assert uploads.folder.exists()


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


CONFIG, INDEX = "config.json", "model.safetensors.index.json"
SHARDS = ("s1.safetensors", "s2.safetensors")


@pytest.mark.parametrize(
    ("names", "models"),
    [
        (("adapter_model.safetensors", "adapter_config.json"), [{0, 1}]),
        (("a.safetensors", "b.safetensors", CONFIG), [{0, 2}, {1, 2}]),
        (("a.safetensors", "a.safetensors", CONFIG), [{0, 2}, {1, 2}]),
        ((*SHARDS, INDEX), [{0, 1, 2}]),
        (("a.safetensors", SHARDS[0], CONFIG, INDEX, SHARDS[1]), [{0, 2}, {1, 2, 3, 4}]),
        (("a.safetensors", CONFIG, CONFIG), [{0}, CONFIG]),
        (("a.safetensors", *SHARDS, SHARDS[0], INDEX), [{0}, SHARDS[0]]),
        (("a.safetensors", INDEX), [{0}, "shards"]),
    ],
)
def test_with_json_nothing_is_lost(tmp_path, names, models):
    (tmp_path / "together").mkdir()
    paths = files(tmp_path, *names)
    for path in paths:
        if path.name == INDEX:
            path.write_text(json.dumps({"weight_map": {name: name for name in SHARDS}}))
    found = sent(paths, tmp_path / "together")
    assert len(found) == len(models)
    for model, expected in zip(found, models, strict=True):
        if isinstance(expected, str):
            assert expected in model.fault
            continue
        folder = model.path if model.path.is_dir() else model.path.parent
        there = list(folder.iterdir())
        assert len(there) == len(expected)
        for place in expected:
            assert any(path.samefile(paths[place]) for path in there)


@pytest.mark.parametrize(
    ("names", "says"), [((CONFIG,), "no safetensors file"), ((), "send it again")]
)
def test_what_is_no_model_is_refused(tmp_path, names, says):
    with pytest.raises(ProbexError, match=says):
        sent(files(tmp_path, *names), tmp_path)


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("\u6a21" * 110, "\u6a21" * 40),
        ("a.safetensors", "a.safetensors"),
        ("..", "model"),
        ("a\\b", "b"),
        ("a\nb\0c", "a_b_c"),
    ],
)
def test_plain_names(name, plain):
    assert plain_name(name) == plain


def test_files_that_are_taken_meanwhile_are_gone(tmp_path):
    with pytest.raises(ProbexError, match="send it again"):
        sent(files(tmp_path, "a.safetensors", "config.json"), tmp_path / "none")


def test_hub_addresses():
    assert of_hub(" me/model ", allowed=True).name == "me/model"
    assert str(of_hub("me/m@v1/a.safetensors", allowed=True).path).startswith("hf:/")
    with pytest.raises(ProbexError, match="hub"):
        of_hub("me/model", allowed=False)
