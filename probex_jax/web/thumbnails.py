"""Thumbnails of models, from images beside their weights, which come from strangers."""

from __future__ import annotations

import base64
import io
from functools import lru_cache
from itertools import islice
from pathlib import Path

from probex_jax.model_files.locate import read_inside

_SIDE = 160  # pixels
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_FORMATS = ("PNG", "JPEG", "WEBP")
_MAX_BYTES = 8 * 2**20
# Of the file, and decoded: a fraction of a JPEG, all of other formats.
_MAX_PIXELS, _MAX_DECODED = 30_000_000, 2048 * 2048
_MAX_LISTED = 1000
_KEPT = 4096
# Names in order of preference.
_FIRST = ("preview", "thumbnail", "cover", "sample", "image")


@lru_cache(_KEPT)
def thumbnail(model: str) -> str:
    """The thumbnail of a model as a `data:` URL; "" if there is none.

    For a folder it is made from an image in it; for a file from `x.png` or `x.preview.png` beside
    `x.safetensors`, or from any image if those are the only weights in the folder. Links that lead
    out of the folder are not followed.

    Args:
      model: path of the model in the index.
    """
    try:
        picture = _picture(Path(model))
        return "" if picture is None else _small(read_inside(picture, _MAX_BYTES))
    # Decoders raise exceptions of many kinds for a damaged image.
    except Exception:
        return ""


def _picture(model: Path) -> Path | None:
    folder = model if model.is_dir() else model.parent
    names = sorted(entry.name for entry in islice(folder.iterdir(), _MAX_LISTED))
    images = [name for name in names if name.lower().endswith(_SUFFIXES)]
    weights = [name for name in names if name.endswith(".safetensors")]
    if model != folder and weights != [model.name]:
        stems = (model.stem, f"{model.stem}.preview")
        images = [name for name in images if Path(name).stem in stems]
    return folder / min(images, key=_order) if images else None


def _order(name: str) -> tuple[int, str]:
    known = [place for place, word in enumerate(_FIRST) if word in name.lower()]
    return min(known, default=len(_FIRST)), name


def _small(data: bytes) -> str:
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        if image.width * image.height > _MAX_PIXELS:
            return ""
        image.draft("RGB", (_SIDE, _SIDE))
        if image.width * image.height > _MAX_DECODED:
            return ""
        picture = image.convert("RGB")
    # Tiny images are enlarged without smoothing, which shows their pixels.
    factor = _SIDE // max(picture.size)
    if factor > 1:
        size = (picture.width * factor, picture.height * factor)
        picture = picture.resize(size, Image.Resampling.NEAREST)
    picture.thumbnail((_SIDE, _SIDE))
    out = io.BytesIO()
    picture.save(out, "WEBP", quality=85)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()
