"""NumPy's archives, as big_vision and others write them; hostile ones are refused."""

import io
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest

from probex_jax.errors import ProbexError
from probex_jax.model_files import Limits, open_model


def drawn(*shape, seed=0, dtype="f4"):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def npy(value):
    file = io.BytesIO()
    np.lib.format.write_array(file, value, allow_pickle=True)
    return file.getvalue()


def npy_of(shape, descr="<f4", data=b"", version=(1, 0)):
    file = io.BytesIO()
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    (np.lib.format.write_array_header_1_0 if version == (1, 0) else
     np.lib.format.write_array_header_2_0)(file, header)  # fmt: skip
    return file.getvalue() + data


def archive(path, compression=zipfile.ZIP_STORED, **files):
    with zipfile.ZipFile(path, "w", compression) as made:
        for name, data in files.items():
            made.writestr(name, data)
    return path


def test_dtypes_and_orders_of_axes(tmp_path):
    weights = {
        "a.weight": drawn(4, 3),
        "columns.weight": np.asfortranarray(drawn(4, 3, seed=1)),
        "half.weight": drawn(2, 2, dtype="f2"),
        "double.weight": drawn(2, 3, dtype="f8"),
        "big.weight": drawn(2, 3, dtype=">f4"),
        "brain.weight": drawn(3, 2, dtype=ml_dtypes.bfloat16),
        "scalar": np.array(2.5, "f4"),
    }
    np.savez(tmp_path / "stored.npz", **weights, ids=np.arange(3), empty=np.ones([0, 2]))
    np.savez_compressed(tmp_path / "packed.npz", **weights, ids=np.arange(3))
    for path in tmp_path.iterdir():
        with open_model(path) as m:
            for name, value in weights.items():
                np.testing.assert_array_equal(m.tensor(name), value.astype("f4"), err_msg=name)
                assert m.tensor(name).flags.c_contiguous
            assert m.layers["brain.weight"].dtype == "BF16"
            np.testing.assert_array_equal(m.rows("a.weight", [2, 0]), weights["a.weight"][[2, 0]])
            np.testing.assert_array_equal(
                m.rows("columns.weight", [1]), weights["columns.weight"][[1]]
            )
            assert m.left_out["ids"] == "integer"


def test_a_vision_transformer_of_big_vision(tmp_path):
    block = "params/Transformer/encoderblock_0"
    weights = {
        f"{block}/MultiHeadDotProductAttention_0/query/kernel": drawn(6, 2, 3),
        f"{block}/MultiHeadDotProductAttention_0/out/kernel": drawn(2, 3, 6),
        f"{block}/LayerNorm_0/scale": drawn(6),
        "params/embedding/kernel": drawn(4, 4, 3, 6),
        "params/pos_embedding": drawn(1, 9, 6),
        "opt/0/mu/embedding/kernel": drawn(4, 4, 3, 6),
    }
    np.savez(tmp_path / "a.npz", **weights)
    with open_model(tmp_path) as m:
        attention = "Transformer.encoderblock_0.MultiHeadDotProductAttention_0"
        assert {name: info.shape for name, info in m.all_layers.items()} == {
            f"{attention}.query.weight": (6, 6),
            f"{attention}.out.weight": (6, 6),
            "Transformer.encoderblock_0.LayerNorm_0.weight": (6, 1),
            "embedding.weight": (6, 48),
            "pos_embedding": (9, 6),
        }
        assert [*m.left_out] == ["opt/0/mu/embedding/kernel"]


class Bomb:
    def __reduce__(self):
        return (open, ("owned", "w"))


def test_objects_are_left_out_and_never_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    objects = np.array([Bomb()], object)
    path = archive(tmp_path / "a.npz", **{"a.npy": npy(drawn(2, 3)), "b.npy": npy(objects)})
    with open_model(path) as m:
        assert [*m.layers] == ["a"]
        assert "Python" in m.left_out["b"]
        with pytest.raises(ProbexError, match="'b'"):
            m.tensor("b")
    assert not (tmp_path / "owned").exists()


DATA = bytes(16)
HOSTILE = {
    "no archive": (None, b"PK\3\4" + bytes(100), "archive of NumPy"),
    "PyTorch's": ({"archive/data.pkl": pickle.dumps([]), "archive/data/0": DATA}, None, "PyTorch"),
    "no array": ({"a.npy": b"hello"}, None, "array of NumPy"),
    "a header that is code": (
        {"a.npy": b"\x93NUMPY\1\0" + (20).to_bytes(2, "little") + b"__import__('os')    "},
        None, "array of NumPy"),
    "a deep header": (
        {"a.npy": b"\x93NUMPY\2\0" + (9000).to_bytes(4, "little") + b"(" * 9000}, None, "array"),
    "a long header": (
        {"a.npy": b"\x93NUMPY\2\0" + (2**31).to_bytes(4, "little")}, None, "array of NumPy"),
    "shorter than it says": ({"a.npy": npy_of((4, 4), data=DATA)}, None, "in 16 bytes"),
    "a huge shape": ({"a.npy": npy_of((2**40, 2**40))}, None, "in 0 bytes"),
    "a negative shape": ({"a.npy": npy_of((-4, -4), data=DATA * 4)}, None, "a shape of"),
    "leading out": ({"../a.npy": npy_of((2, 2), data=DATA)}, None, "leads out"),
    "without a name": ({".npy": npy_of((2, 2), data=DATA)}, None, "name"),
    "nothing": ({"readme.txt": b""}, None, "no tensors"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archives_are_refused_in_one_line(tmp_path, case):
    files, data, fragment = HOSTILE[case]
    path = tmp_path / "a.npz"
    if files is None:
        path.write_bytes(data)
    else:
        archive(path, **files)
    with pytest.raises(ProbexError, match=fragment) as caught:
        open_model(path).close()
    assert str(caught.value).isprintable()


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path):
    data = npy_of((40_000_000,), "|i1", bytes(40_000_000))
    path = archive(tmp_path / "a.npz", zipfile.ZIP_DEFLATED, **{"a.npy": data})
    assert path.stat().st_size < 100_000
    with pytest.raises(ProbexError, match=r"'a'.*unpacked"):
        open_model(path)


def test_a_bomb_that_lies_about_its_size_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    archive(path, zipfile.ZIP_DEFLATED, **{"a.npy": npy_of((2, 2), data=bytes(10**6))})
    with pytest.raises(ProbexError, match=r"a\.npy"):
        open_model(path)


def test_two_files_of_one_name_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as made:
        made.writestr("a.npy", npy_of((2, 2), data=DATA))
        with pytest.warns(UserWarning, match="Duplicate"):
            made.writestr("a.npy", npy_of((2, 2), data=DATA))
    with pytest.raises(ProbexError, match="two files"):
        open_model(tmp_path)


def test_the_limit_of_tensors_holds(tmp_path):
    np.savez(tmp_path / "a.npz", *[np.ones(2)] * 20)
    with pytest.raises(ProbexError, match="20 files in it, the limit is 10"):
        open_model(tmp_path, limits=Limits(tensors=10))
