"""A picture of what a LoRA was trained on, for pages that show many LoRAs."""

import io
import math

import numpy as np

from probex_jax.errors import ProbexError

NAME = "preview.png"

_SCALE = 8  # images of 8×8 become 64 high
_GAP = 4
_WIDER = 1.5  # than high, as pictures in galleries are


def preview(images: np.ndarray) -> bytes:
    """Images in rows as a PNG in greyscale, every pixel of theirs 8×8 large.

    Args:
      images: [I, S, S] float, values in [-1, 1]; 1 is ink, and black.

    Returns:
      The file's content; equal images give equal bytes.

    Raises:
      ProbexError: Pillow, of the extra `zoo`, is not installed.

    Example:
      >>> import io, numpy as np
      >>> from PIL import Image
      >>> Image.open(io.BytesIO(preview(np.ones([5, 8, 8])))).size
      (200, 132)
    """
    try:
        from PIL import Image
    except ModuleNotFoundError:
        raise ProbexError("the miniature zoo needs Pillow: pip install pillow") from None
    grey = np.rint((1 - images) * 127.5).clip(0, 255).astype(np.uint8)
    large = grey.repeat(_SCALE, axis=1).repeat(_SCALE, axis=2)
    columns = math.ceil(math.sqrt(_WIDER * len(large)))
    rows = math.ceil(len(large) / columns)
    empty = rows * columns - len(large)
    cells = np.pad(large, [(0, empty), (0, _GAP), (0, _GAP)], constant_values=255)
    side = cells.shape[-1]
    grid = cells.reshape(rows, columns, side, side).swapaxes(1, 2).reshape(rows * side, -1)
    file = io.BytesIO()
    Image.fromarray(grid[:-_GAP, :-_GAP]).save(file, "png", optimize=True)
    return file.getvalue()
