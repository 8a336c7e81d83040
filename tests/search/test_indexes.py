"""Several indexes of one expert, searched as one."""

import json

import numpy as np
import pytest

from probex_jax import ProbexError
from probex_jax.search import Index, Indexes, find_models
from tests.end_to_end.warm import run
from tests.search.conftest import REP_DIM, make_expert, write_model


def indexed(folder, expert, models):
    made = Index.create_or_open(folder, expert)
    made.add_models(find_models(models))
    return made


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two folders of 4 and 3 models, one of which is in both."""
    root = tmp_path_factory.mktemp("several") / "models"
    for seed in range(4):
        write_model(root / "first" / f"a{seed}.safetensors", seed)
    for seed in range(2):
        write_model(root / "second" / f"b{seed}.safetensors", 10 + seed)
    both = write_model(root / "both" / "both.safetensors", 20)
    (root / "first" / "both").symlink_to(both.parent)
    (root / "second" / "both").symlink_to(both.parent)
    return root


@pytest.fixture(scope="module")
def parts(models, expert):
    """An index of each folder."""
    return [indexed(models.parent / name, expert, models / name) for name in ("first", "second")]


@pytest.fixture(scope="module")
def together(models, expert):
    """One index of all."""
    return indexed(models.parent / "together", expert, models)


def same(hits, others):
    """Whether they are the same models; similarities depend on how many were embedded at once."""
    close = np.allclose([h.similarity for h in hits], [h.similarity for h in others], atol=1e-6)
    return [hit.path for hit in hits] == [hit.path for hit in others] and close


@pytest.mark.parametrize("k", [1, 3, 100])
def test_they_find_what_one_index_of_all_models_finds(parts, together, k):
    vectors = np.random.default_rng(0).normal(size=(4, REP_DIM))
    several = Indexes(parts)
    for vector in vectors:
        for condition in (None, "id LIKE '%1'"):
            expected = together.near(vector, k, condition)
            assert 0 < len(expected) <= k
            assert same(several.near(vector, k, condition), expected)
    assert len(several) == len(together) + 1 == 8


def test_a_model_is_not_like_itself_whichever_index_it_is_in(models, parts, together):
    for model in ("first/a1", "second/b1", "both/both"):
        like = models / f"{model}.safetensors"
        hits = Indexes(parts).search(like=like, k=4)
        assert same(hits, together.search(like=like, k=4))
        assert str(like) not in [hit.path for hit in hits]


def test_of_a_model_that_has_changed_since_the_more_similar_state_counts(tmp_path, expert):
    old = indexed(tmp_path / "old", expert, write_model(tmp_path / "m" / "m.safetensors", 1).parent)
    new = indexed(tmp_path / "new", expert, write_model(tmp_path / "m" / "m.safetensors", 2).parent)
    for index in (old, new):
        [vector] = index.everything()[1]
        for order in ([old, new], [new, old]):
            [hit] = Indexes(order).near(vector)
            assert hit.similarity == pytest.approx(1)


def test_indexes_of_different_experts_are_not_searched_together(tmp_path, parts, models):
    other = indexed(tmp_path / "other", make_expert(1), models)
    with pytest.raises(ProbexError, match=str(other.path)):
        Indexes([*parts, other])
    with pytest.raises(ProbexError):
        Indexes([])


def test_the_command_takes_several(models, parts, together):
    def paths(index):
        like = models / "first" / "a0.safetensors"
        ended = run("search", f"--index={index}", f"--like={like}", "--k=5", "--json")
        assert ended.returncode == 0, ended.stderr
        return [hit["path"] for hit in json.loads(ended.stdout)["hits"]]

    assert paths(",".join(str(index.path) for index in parts)) == paths(together.path)
