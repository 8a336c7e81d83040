"""The command that downloads Model-J, as a user runs it."""

import json
import os

import pytest

import probex_jax as px
from experiments import download_steps
from tests import model_j
from tests.conftest import CLASSES
from tests.end_to_end import warm
from tests.hub import write_repo

# One worker forks them all.
pytestmark = pytest.mark.xdist_group("download command")

SUMMARY = ["subset", "models", "there before", "downloaded", "failed", "size", "folder"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    with model_j.served(model_j.write_hub(tmp_path_factory.mktemp("hub"), 6, format="csv")) as hub:
        yield hub


@pytest.fixture
def hub(shared):
    shared.log.clear()
    yield shared
    shared.private, shared.misbehave = set(), {}


def run(*arguments):
    return warm.run("download_model_j", *arguments, env={"HF_ENDPOINT": os.environ["HF_ENDPOINT"]})


def rows(done):
    """The rows of the table that a command printed, each a dict."""
    lines = [[cell.strip() for cell in line.split("|")] for line in done.stdout.splitlines()]
    return [dict(zip(lines[0][1:-1], line[1:-1], strict=True)) for line in lines[2:]]


def fails(done, message):
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_whole_models_and_then_nothing(hub, tmp_path):
    done = run("--subset=SupViT", "--splits=train,val", f"--out={tmp_path}")
    assert (done.returncode, done.stderr) == (0, "")
    [row] = rows(done)
    assert [*row] == SUMMARY
    assert row["folder"] == str(tmp_path / "SupViT")
    counts = [row[name] for name in SUMMARY[1:5]]
    assert counts == ["4", "0", "4", "0"]
    size = hub.bytes_sent(".safetensors") + hub.bytes_sent(".json") + hub.bytes_sent("README.md")
    size -= hub.bytes_sent("datasets/ProbeX/Model-J/README.md")
    assert row["size"] == download_steps.size(size)
    assert {model.split for model in px.scan(tmp_path / "SupViT").models} == {"train", "val"}
    [row] = rows(run("--subset=SupViT", "--jobs=1", f"--out={tmp_path}"))
    assert [row[name] for name in SUMMARY[1:5]] == ["6", "4", "2", "0"]


def test_layers_go_to_a_store(hub, tmp_path):
    arguments = ("--subset=SD_200", "--layers=b", f"--out={tmp_path}")
    done = run(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    [row] = rows(done)
    assert [row[name] for name in SUMMARY[1:5]] == ["24", "0", "24", "0"]
    store = px.LayerStore.open(tmp_path / "SD_200")
    assert [*store.layers] == ["b"]
    assert row["size"] != "0 B"
    listed = read_table("SD_200")
    row, failed = download_steps.download(listed, str(tmp_path), "b", 8)
    assert ([str(row[name]) for name in SUMMARY[1:6]], failed) == (["24", "24", "0", "0", "0 B"], 0)
    with pytest.raises(px.ProbexError, match="not the ones asked for"):
        download_steps.download(listed, str(tmp_path), "a", 8)
    with pytest.raises(px.ProbexError, match="is a layer store; choose another --out"):
        download_steps.download(listed, str(tmp_path), "", 8)


def test_dry_run_says_what_would_move(hub, tmp_path):
    done = run("--subset=SupViT", "--dry_run", f"--out={tmp_path}")
    assert (done.returncode, done.stderr) == (0, "")
    train, val, test, total = rows(done)
    assert [row["split"] for row in (train, val, test, total)] == ["train", "val", "test", "all"]
    assert [row["models"] for row in (train, val, test, total)] == ["3", "1", "2", "6"]
    wanted = ("README.md", "config.json", "model.safetensors")
    folder = hub.repositories.root / "models"
    size = {
        n: sum((folder / model_j.classifier_id(n) / name).stat().st_size for name in wanted)
        for n in range(6)
    }
    assert int(train["bytes"]) == size[0] + size[1] + size[2]
    assert int(total["bytes"]) == sum(size.values())
    assert total["size"] == download_steps.size(sum(size.values()))
    assert (os.listdir(tmp_path), hub.bytes_sent(".safetensors")) == ([], 0)


def read_table(subset, *splits):
    return download_steps.read_table(subset, splits, None, "ProbeX/Model-J")


def test_dry_run_of_layers_says_what_the_layers_take(hub):
    train, total = download_steps.planned_rows(read_table("SupViT", "train"), "a.weight", 2)
    assert train["bytes"] == total["bytes"] == 3 * 4 * 12 * 16
    listed = read_table("SD_200")
    *_, total = download_steps.planned_rows(listed, "a", 2)
    rank = 2 + int(listed.models[0].id[-4:]) % 3
    assert (total["models"], total["bytes"]) == (24, 24 * 4 * rank * (12 + 16))


def test_a_dry_run_names_what_is_gone(hub, capsys):
    private = model_j.classifier_id(2)
    hub.private = {private}
    train, _ = download_steps.planned_rows(read_table("SupViT", "train"), "", 2)
    shown = capsys.readouterr().err
    assert shown.startswith(f"failed {model_j.folder_of(private)}: ")
    assert shown.count("\n") == 1
    folder = hub.repositories.root / "models" / model_j.classifier_id(1)
    assert 2 < train["bytes"] / (folder / "model.safetensors").stat().st_size < 3


@pytest.mark.parametrize("layers", ["", "a.weight"])
def test_what_failed_is_named_and_the_exit_code_says_so(hub, tmp_path, layers):
    private = model_j.classifier_id(2)
    hub.private = {private}
    arguments = ("--subset=SupViT", f"--layers={layers}", f"--out={tmp_path}")
    done = run(*arguments)
    assert done.returncode == 1
    assert done.stderr.startswith(f"failed {model_j.folder_of(private)}: ")
    assert "HTTP 401" in done.stderr or "401" in done.stderr
    assert done.stderr.count("\n") == 1
    [row] = rows(done)
    assert [row[name] for name in SUMMARY[1:5]] == ["6", "0", "5", "1"]


@pytest.mark.parametrize("layers", ["", "a.weight"])
def test_where_none_can_be_had_it_is_an_error(hub, tmp_path, layers):
    hub.private = {model_j.classifier_id(number) for number in range(6)}
    with pytest.raises(px.ProbexError, match=r"SupViT: no model could be|^SupViT: no model can"):
        download_steps.download(read_table("SupViT"), str(tmp_path), layers, 2)


def test_words_of_classes_from_a_file(hub, tmp_path):
    (tmp_path / "names").write_text('{"ant": "the insect", "n01": "a dog"}')
    arguments = ["--subset=SupViT", f"--out={tmp_path}", f"--class_names={tmp_path}/names"]
    done = run(*arguments, "--splits=train", "--layers=a.weight")
    assert (done.returncode, done.stderr) == (0, "")
    assert px.LayerStore.open(tmp_path / "SupViT").texts == {CLASSES[0]: "the insect"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"n01": "a dog", "n01": "a cat"}', "has the key 'n01' twice"),
        (b'{"n01": 5}', "lines with a class and its words, each class once"),
        (b'{"n01": ""}', "each class once"),
        (b'{"n01": " "}', "each class once"),
        (b'{"n01": "\\ud800"}', "each class once"),
        (b'{"n01": "a dog"', "is not valid JSON"),
        (b'["n01", "a dog"]\n[]', "each class once"),
        (b"n01 a dog\nn02", "each class once"),
        (b"n01 a dog\nn02 ", "each class once"),
        (b"n01 a dog\nn01 a cat", "each class once"),
        (b"", "each class once"),
        (b"n01 \xff", "is not UTF-8 text (byte 4)"),
    ],
)
def test_malformed_files_of_class_names(tmp_path, content, message):
    path = tmp_path / "names"
    path.write_bytes(content)
    with pytest.raises(px.ProbexError, match=r"names") as caught:
        download_steps._words_in(path)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "content",
    [
        b'\xef\xbb\xbf{"n01": "a dog, or two"}',
        b" n01\ta dog, or two \r\n\r\n",
        b"n01,a dog, or two",
    ],
)
def test_class_names_as_files_have_them(tmp_path, content):
    (tmp_path / "names").write_bytes(content)
    assert download_steps._words_in(tmp_path / "names") == {"n01": "a dog, or two"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--subset=SupViT"], "give --out, the folder to download to"),
        (["--subset=Sup", "--out=x"], "has no table of Sup; the subsets: SupViT"),
        (["--subset=SupViT", "--jobs=0", "--out=x"], "--jobs"),
        (["--subset=SupViT", "--class_names=no.json", "--out=x"], "no.json: no such file"),
        (["--subset=SupViT", "--out=/dev/null"], "/dev/null/SupViT"),
        (["--subset=SupViT", "--layers=nothing", "--out={0}"], "no layer 'nothing'"),
    ],
)
def test_mistakes_are_one_line(hub, tmp_path, arguments, message):
    fails(run(*(argument.format(tmp_path) for argument in arguments)), message)


def test_names_of_strangers_are_shown_escaped(hub, tmp_path):
    lines = json.dumps({"hf_model_id": "a/b\x1b[2J"}) + "\n"
    write_repo(hub.repositories.root, "datasets", "org/odd", {"SupViT/train.jsonl": lines})
    fails(run("--subset=SupViT", "--dataset=org/odd", f"--out={tmp_path}"), r"\x1b")


def test_help(hub):
    done = run("--help")
    assert done.returncode == 0
    for flag in ("--subset", "--splits", "--layers", "--out", "dry_run", "--class_names", "--jobs"):
        assert flag in done.stdout
    assert hub.log == []


def test_a_terminal_sees_models_and_bytes(monkeypatch, capsys):
    monkeypatch.setattr(
        download_steps.cli,
        "progress",
        lambda *a: download_steps.tqdm(total=a[0], unit=a[2], desc=a[1]),
    )
    bar = download_steps._Bar(3, "downloading")
    with bar.bar:
        bar.count(2_000_000)
        bar.model("")
        bar.model("model_1: gone\x1b\n")
        bar.bar.refresh()
    shown = capsys.readouterr().err
    assert "2/3" in shown
    assert "2.0 MB" in shown
    assert "failed model_1: gone\\x1b\\n\n" in shown


def test_sizes():
    sizes = {0: "0 B", 999: "999 B", 1000: "1.0 KB", 2_360_000: "2.4 MB", 5 * 10**15: "5000.0 TB"}
    assert {count: download_steps.size(count) for count in sizes} == sizes
