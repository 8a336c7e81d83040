"""What the README promises a JAX programmer."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_readme_s_code_runs_on_a_model(toy_zoo, tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    shutil.copy(next(toy_zoo.glob("test/*/model.safetensors")), tmp_path)
    monkeypatch.chdir(tmp_path)
    names = {}
    for code in blocks:
        exec(code, names)
    assert names["represent"](names["variables"], names["x"]).shape == (1, 512)


def test_commands_need_no_scikit_learn_until_they_use_it():
    code = "import sys; sys.modules['sklearn'] = None; import experiments.steps"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_library_needs_no_extra():
    blocked = (
        "sklearn",
        "tqdm",
        "matplotlib",
        "lancedb",
        "pyarrow",
        "tokenizers",
        "torch",
        "grain",
        "huggingface_hub",
    )
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked})); import probex_jax"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
