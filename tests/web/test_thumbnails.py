"""Pictures beside models: files of strangers."""

import base64
import io
import struct
import zlib

import pytest

from probex_jax.web.thumbnails import thumbnail

Image = pytest.importorskip("PIL.Image")

RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.fixture
def model(tmp_path):
    """A folder with one model in it."""
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model.safetensors").touch()
    return tmp_path / "m"


def picture(path, colour=RED, size=(8, 8), kind="PNG"):
    Image.new("RGB", size, colour).save(path, kind)


def shown(path):
    thumbnail.cache_clear()
    kind, _, data = thumbnail(str(path)).partition(";base64,")
    assert kind == "data:image/webp"
    return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")


def is_red(image):
    red, green, blue = image.getpixel((image.width // 2, image.height // 2))
    return red > 200 and green < 50 and blue < 50


def test_none_without_pictures(model, tmp_path):
    assert thumbnail(str(model)) == thumbnail(str(tmp_path / "gone")) == ""


@pytest.mark.parametrize("path", ["", "model.safetensors"])
def test_a_small_one_is_scaled_up_by_whole_pixels(model, path):
    picture(model / "a.png", size=(8, 4))
    found = shown(model / path)
    assert found.size == (160, 80)
    assert is_red(found)


def test_a_large_one_is_scaled_down(model):
    picture(model / "a.jpg", size=(1000, 500), kind="JPEG")
    assert shown(model).size == (160, 80)


def test_a_preview_goes_before_others(model):
    picture(model / "a.png", BLUE)
    picture(model / "preview.png", RED)
    assert is_red(shown(model))


def test_of_several_models_in_a_folder_each_has_its_own(model):
    (model / "b.safetensors").touch()
    picture(model / "b.preview.png", RED)
    picture(model / "other.png", BLUE)
    assert is_red(shown(model / "b.safetensors"))
    assert thumbnail(str(model / "model.safetensors")) == ""


def test_a_picture_of_another_model_is_not_of_one_that_is_gone(model):
    picture(model / "other.png")
    (model / "model.safetensors").rename(model / "other.safetensors")
    assert thumbnail(str(model / "model.safetensors")) == ""
    picture(model / "model.png")
    assert is_red(shown(model / "model.safetensors"))


def test_no_link_that_leads_out_is_followed(model, tmp_path):
    picture(tmp_path / "secret.png")
    (model / "a.png").symlink_to(tmp_path / "secret.png")
    assert thumbnail(str(model)) == ""


def chunk(kind, data):
    whole = kind + data
    return struct.pack(">I", len(data)) + whole + struct.pack(">I", zlib.crc32(whole))


def bomb(side):
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * 10_000)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def test_of_large_pictures_only_those_that_are_decoded_in_part(model):
    picture(model / "a.png", size=(2100, 2100))
    assert thumbnail(str(model)) == ""
    (model / "a.png").unlink()
    picture(model / "a.jpg", size=(2100, 2100), kind="JPEG")
    assert is_red(shown(model))


def test_a_small_file_of_many_pixels_is_no_picture(model):
    Image.new("1", (6000, 6000)).save(model / "a.png")
    assert (model / "a.png").stat().st_size < 10_000
    assert thumbnail(str(model)) == ""


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x89PNG\r\n\x1a\n",
        bomb(8000),
        bomb(60_000),
        b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        b"GIF89a\x01\x00\x01\x00\x00\x00\x00;",
        b"\0" * (8 * 2**20 + 1),
    ],
    ids=["empty", "cut", "bomb", "larger bomb", "svg", "gif", "too large"],
)
def test_hostile_files_are_no_pictures(model, data):
    (model / "a.png").write_bytes(data)
    assert thumbnail(str(model)) == ""
