"""`probex`, from any folder; and what an installed package holds."""

import configparser
import subprocess
import sys
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pytest

from experiments import options

ROOT = Path(__file__).parents[1]
# Where the folders of the checkout are in the package.
COMMANDS = "probex_jax._commands"


def probex(*arguments, cwd, script=(ROOT / "probex.py",)):
    command = [sys.executable, *script, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def test_a_command_is_the_first_argument(tmp_path):
    done = probex("compare", "--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    same = probex("--help", cwd=ROOT, script=("-m", "experiments.compare"))
    assert done.stdout == same.stdout


@pytest.mark.parametrize(
    ("verb", "hint"), [("trian", "train"), ("TRAIN", "train"), ("xyzzy", "--help")]
)
def test_a_command_that_is_not_there_is_one_line_with_the_nearest(verb, hint, tmp_path):
    done = probex(verb, "--workdir=W", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert verb in done.stderr
    assert hint in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("config", [(), ("--config=configs/align.py:mini",)])
def test_configs_of_ours_are_found_from_any_folder(config, tmp_path):
    (tmp_path / "configs").mkdir()  # as other projects have one; it is not to run unasked
    (tmp_path / "configs" / "default.py").write_text("raise SystemExit(3)")
    fields = ("--config.normalise=none", f"--config.store={tmp_path}/none")
    done = probex("train", *config, *fields, "--workdir=W", cwd=tmp_path)
    assert done.returncode == 2
    assert (
        done.stderr == f"error: {tmp_path}/none: no layer store here; make one with probex pack\n"
    )


def test_a_config_of_the_current_folder_comes_first(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    own = (
        "import ml_collections\ndef get_config():\n    return ml_collections.ConfigDict({'a': 1})\n"
    )
    (tmp_path / "configs" / "align.py").write_text(own)
    monkeypatch.chdir(tmp_path)
    assert options.load("configs/align.py").a == 1
    assert "recipe" in options.load("configs/probex.py")
    with pytest.raises(options.ProbexError, match="align"):
        options.load("configs/algin.py")


def declared():
    about = configparser.ConfigParser()
    about.read(ROOT / "setup.cfg")
    return about


def test_no_package_and_no_file_of_one_is_forgotten():
    about = declared()
    packages = set(about["options"]["packages"].split())
    made = {p.parent.relative_to(ROOT) for p in (ROOT / "probex_jax").rglob("__init__.py")}
    own = {f"{COMMANDS}.{folder}" for folder in ("experiments", "configs")}
    assert packages == {".".join(path.parts) for path in made} | own
    listed = {package: data.split(", ") for package, data in about["options.package_data"].items()}
    for path in (ROOT / "probex_jax").rglob("*.*"):
        if path.suffix not in (".py", ".pyc"):
            package = ".".join(path.parent.relative_to(ROOT).parts)
            assert any(fnmatch(path.name, form) for form in listed[package]), path


@pytest.mark.parity
def test_a_wheel_holds_the_commands_and_they_run(tmp_path):
    copy = tmp_path / "copy"  # building writes beside the sources
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((ROOT / name).read_bytes())
    build = ["-m", "pip", "wheel", "--quiet", "--no-deps", f"--wheel-dir={tmp_path}", str(copy)]
    subprocess.run([sys.executable, *build], check=True)
    [wheel] = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as file:
        file.extractall(site)
    assert {path.name for path in site.iterdir() if path.suffix != ".dist-info"} == {
        "probex.py",
        "probex_jax",
    }
    of_library = {path.relative_to(ROOT) for path in (ROOT / "probex_jax").rglob("*.*")}
    for path in of_library:
        assert (site / path).exists() or path.suffix == ".pyc", path
    script = (site / "probex.py",)
    done = probex(cwd=tmp_path, script=script)
    assert (done.returncode, done.stderr) == (0, "")
    assert {"train", "serve"} < {line.split()[0] for line in done.stdout.splitlines()[2:]}
    assert "benchmark" not in done.stdout
    for verb, text in {
        "build_zoo": "configs/zoo_miniature.py",
        "describe": "probex describe",
    }.items():
        done = probex(verb, "--help", cwd=tmp_path, script=script)
        assert (done.returncode, done.stderr) == (0, "")
        assert text in done.stdout
