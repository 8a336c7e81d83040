"""A folder of LoRAs whose labels stand in kohya's headers alone, from harvest to search."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.end_to_end import warm

# One worker runs them all, and makes what they share once.
pytestmark = pytest.mark.xdist_group("commands")

CONCEPTS, STYLES = ("cat", "dog", "car"), ("watercolor", "photo")
WORDS = (*CONCEPTS, *STYLES)
MODULES = {
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q": (16, 12),
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_v": (12, 12),
}
HOSTILE = {
    "ss_tag_frequency": '{"a": {"' + "x" * 10**6 + '": 5, "\\u001b[2J`<script>": 1000000000000}}',
    "ss_dataset_dirs": "[" * 10**5,
    "ss_datasets": '[{"subsets": [{"class_tokens": "# owned, ![x](y), \\ud800"}]}]',
    "modelspec.title": "</td>\n# Owned\n---\nlicense: mit <img src=x onerror=alert(1)>",
    "ss_sd_model_name": "../../etc/passwd",
    "ss_steps": "9" * 5000,
    "ss_output_name": "[click](https://evil.example)",
}


def lora(words, rng):
    """Factors of rank 4 with a direction for each word, in kohya's spelling."""
    draws = np.random.default_rng(5)
    tensors = {}
    for module, (height, width) in MODULES.items():
        ups, downs = draws.normal(size=(len(WORDS), height)), draws.normal(size=(len(WORDS), width))
        chosen = [WORDS.index(word) for word in words]
        noise = 4 - len(chosen)
        up = np.vstack([ups[chosen], 0.5 * rng.normal(size=(noise, height))]).T
        down = np.vstack([downs[chosen], 0.5 * rng.normal(size=(noise, width))])
        turn = np.linalg.qr(rng.normal(size=(4, 4)))[0]
        tensors |= {
            f"{module}.lora_up.weight": np.ascontiguousarray(up @ turn, "f4"),
            f"{module}.lora_down.weight": np.ascontiguousarray(turn.T @ down, "f4"),
            f"{module}.alpha": np.asarray(4, "f4"),
        }
    return tensors


def header(number, words, images=20):
    tags = {"1girl": images, "solo": images - 1, "smile": 1} | dict.fromkeys(words, images - 4)
    return {
        "ss_tag_frequency": json.dumps({f"10_sks{number}": tags}),
        "ss_dataset_dirs": json.dumps({f"10_sks{number}": {"n_repeats": 10, "img_count": images}}),
        "ss_sd_model_name": "v1-5-pruned.safetensors",
        "ss_base_model_version": "sd_v1",
        "ss_network_module": "networks.lora",
        "ss_session_id": str(number),
    }


def ok(command, *arguments, code=0):
    done = warm.run(command, *map(str, arguments))
    assert done.returncode == code, done.stderr
    return done


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """60 documented LoRAs, 10 without any header, a hostile, a broken and an unrelated file."""
    root = tmp_path_factory.mktemp("harvest")
    folder, rng, truth = root / "downloads", np.random.default_rng(0), {}
    for number in range(70):
        words = [CONCEPTS[number % 3], *STYLES[: number // 3 % 2]]
        said = None if number % 7 == 6 else header(number, words)
        path = folder / ("a", "b/c")[number % 2] / f"my lora {number:02}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(lora(words, rng), path, said)
        if said is None:
            truth[str(path.resolve())] = words
    save_file(lora(["cat"], rng), folder / "hostile.safetensors", HOSTILE)
    (folder / "broken.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    save_file({"fc.weight": np.ones((4, 4), "f4")}, folder / "other.safetensors")
    harvested = ok("harvest", f"--models={folder}", f"--out={root}/zoos", "--most=3", code=1)
    (zoo,) = (path.parent for path in (root / "zoos").glob("*/zoo.json"))
    ok("pack", f"--zoo={zoo}", f"--store={root}/store")
    ok(
        "train",
        f"--workdir={root}/expert",
        f"--config.store={root}/store",
        "--config.labels=tags",
        "--config.split=tags",
    )
    grow = f"--stores={root}/store", f"--experts={root}/expert", f"--forest={root}/forest"
    ok("grow_forest", *grow)
    return root, zoo, harvested, truth


def test_harvest_tells_what_is_there_and_what_is_not(made):
    root, zoo, harvested, truth = made
    assert "failed " in harvested.stderr
    assert "broken.safetensors" in harvested.stderr
    assert "documented: 61 by headers; undocumented: 11" in harvested.stdout
    found = json.loads((root / "zoos" / "harvest.json").read_text())
    assert list(found["failed"]) == ["broken"]
    assert zoo.name.startswith("v1-5-pruned-")
    tree = next(tree for tree in found["trees"] if tree["tree"] == zoo.name)
    assert tree["columns"]["tags"]["classes"].keys() == {*CONCEPTS, "watercolor"}
    assert tree["labelled"] == 60
    assert set((root / "zoos" / "undocumented.txt").read_text().splitlines()) >= truth.keys()
    splits = json.loads((zoo / "splits.json").read_text())
    assert {part: len(models) for part, models in splits["tags"].items()} == {
        "train": 36, "val": 9, "test": 15
    }  # fmt: skip


def test_the_undocumented_are_described_rightly(made, tmp_path):
    root, _, _, truth = made
    listed = f"--list={root}/zoos/undocumented.txt"
    done = warm.run("describe", f"--forest={root}/forest", "--json", listed)
    right = []
    for line in done.stdout.splitlines():
        found = json.loads(line)
        if found["path"] in truth:
            right.append(set(found["predicted"]) == set(truth[found["path"]]))
    assert len(right) == 10
    assert np.mean(right) > 0.8  # always giving the commonest answer has a third


def test_a_hostile_header_harms_nothing(made, tmp_path):
    root, *_ = made
    hostile = root / "downloads" / "hostile.safetensors"
    ok("describe", f"--forest={root}/forest", f"--out={tmp_path}", hostile)
    card = (tmp_path / "hostile.md").read_text()
    assert len(card) < 6000
    assert all(c.isprintable() for line in card.splitlines() for c in line)
    assert "\n# Owned" not in card
    said = json.loads((tmp_path / "hostile.json").read_text())["stated"]["said"]
    assert said["steps"] == 0
    assert not said["tags"]


def test_the_tags_are_what_a_search_shows(made):
    root, _, _, truth = made
    index = f"--index={root}/index"
    ok("index", f"--experts={root}/expert", f"--models={root}/downloads/a", index)
    shared = []
    for like, words in list(truth.items())[:3]:
        done = ok("search", index, f"--like={like}", "--json", "--k=5")
        hits = [hit["labels"] for hit in json.loads(done.stdout)["hits"] if hit["path"] != like]
        shared += [words[0] in labels for labels in hits if labels]
    assert len(shared) > 6
    assert np.mean(shared) > 0.6  # a third by chance
