"""Which tensors are matrices and vectors, their canonical form, and how layers are selected."""

import difflib
import math
import re
import warnings
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.model_files.safetensors_header import TensorInfo
from probex_jax.model_files.untrusted_text import quoted

# The types of GGUF, which are dequantised.
GGML = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "TQ1_0",
        "TQ2_0", "MXFP4", "NVFP4", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS",
        "IQ3_S", "IQ4_NL", "IQ4_XS")  # fmt: skip
MATRIX_DTYPES = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", *GGML)

_OTHER_DTYPES = {"BOOL": "boolean", "C64": "complex", "I": "integer", "U": "integer"}

# A module whose tensors are the stacked matrices of several experts; `experts.0.` is a single one.
_EXPERTS = re.compile(
    r"(?:\A|(?<=[._/]))(?:experts?|moe|switch_mlp)(?![._/]\d)(?=[._/]|\Z)", re.IGNORECASE
)
MAX_EXPERTS = 4096

# The reference leaves ViT's patch projection out of its numbering.
_UNNUMBERED = "patch_embeddings.projection.weight"

# Commas between selections, not those inside the brackets of a pattern, as in `a{1,2}`.
_SEPARATOR = re.compile(r",(?![^{(\[]*[})\]])")


@dataclass(frozen=True)
class LayerInfo:
    """What is known about a layer before its weights are read.

    Args:
      shape: (H, W) of the canonical matrix: outputs and inputs.
      dtype: the stored dtype's name in safetensors, one of F64, F32, F16, BF16, F8_E4M3,
        F8_E5M2, or a type of GGUF such as Q4_K; for a LoRA, that of the factor `up`.
      kind: "linear" ([out, in] as stored), "conv" (kernels [O, I, k...] as [O, I·k...]),
        "embedding" (positions [1, a, b] as [a, b]), "lora" (an update in factors), "update" (one
        without), or "vector" (at most one axis is longer than 1: [n] as [n, 1], [O, I, 1...] as
        [O, I], a scalar as [1, 1]).
      rank: R of the factors of an update; None for the others.

    Example:
      >>> LayerInfo((64, 27), "F32", "conv").shape
      (64, 27)
    """

    shape: tuple[int, int]
    dtype: str
    kind: str
    rank: int | None = None

    @property
    def is_update(self) -> bool:
        """Whether it is to be added to the layer of another model."""
        return self.kind in ("lora", "update")


def are_experts(name: str) -> bool:
    """Whether a tensor of three axes, by its name, is a matrix for each of several experts.

    Example:
      >>> [are_experts(f"mlp.{name}") for name in ("experts.up_proj", "experts.0.up_proj", "conv")]
      [True, False, False]
    """
    return _EXPERTS.search(name) is not None


def of_expert(name: str, number: int) -> str:
    """The name of one expert's matrix, as files that do not stack them have it.

    Example:
      >>> of_expert("mlp.experts.up_proj", 3), of_expert("block_sparse_moe.w1", 0)
      ('mlp.experts.3.up_proj', 'block_sparse_moe.0.w1')
    """
    found = _EXPERTS.search(name)
    at = found.end() if found else len(name)
    return f"{name[:at]}.{number}{name[at:]}"


def as_layer(tensor: TensorInfo) -> LayerInfo | str:
    """The matrix or vector that a tensor makes, or the reason why it makes none."""
    if tensor.dtype not in MATRIX_DTYPES:
        reason = _OTHER_DTYPES.get(tensor.dtype) or _OTHER_DTYPES.get(
            tensor.dtype.rstrip("0123456789")
        )
        return reason or f"{tensor.dtype}, which is not read"
    if 0 in tensor.shape:
        return "empty"
    if sum(size > 1 for size in tensor.shape) < 2:
        first, *rest = tensor.shape or (1,)
        return LayerInfo((first, math.prod(rest)), tensor.dtype, "vector")
    if len(tensor.shape) > 5:
        return f"{len(tensor.shape)}-dimensional"
    first, second, *rest = tensor.shape
    if not rest:
        return LayerInfo((first, second), tensor.dtype, "linear")
    if first == 1 and len(rest) == 1:
        return LayerInfo((second, rest[0]), tensor.dtype, "embedding")
    return LayerInfo((first, second * math.prod(rest)), tensor.dtype, "conv")


def reference_matrix(matrix: Any) -> Any:
    """The matrices of a convolution as the reference implementation of ProbeX reads them.

    It re-reads the memory of a kernel [O, I, kh, kw] larger than 1x1 as [I·kh·kw, O], which is not
    the transpose of the canonical [O, I·kh·kw]: it mixes channels. Needed by experts that were
    trained there.

    Args:
      matrix: canonical matrices [..., O, I·kh·kw], NumPy's or JAX's.

    Returns:
      The same values in the same order, as [..., I·kh·kw, O].

    Example:
      >>> reference_matrix(np.arange(6).reshape(2, 3)).tolist()
      [[0, 1], [2, 3], [4, 5]]
    """
    *models, rows, columns = matrix.shape
    return matrix.reshape(*models, columns, rows)


def select_layers(
    names: Iterable[str],
    spec: int | str | Sequence[int | str] | None = None,
    vectors: Collection[str] = (),
) -> list[str]:
    """Picks layers by name, number, list or regular expression.

    Numbers are the reference's: the names of matrices sorted as text, counted from 0, leaving out
    the patch projection of ViTs. A text is tried as a name, then as a number, then as a regular
    expression that must match a whole name; several are separated by commas.

    Args:
      names: the layers of a model, in any order.
      spec: None for all, a number, a text, or a sequence of numbers and texts.
      vectors: those of the names that have no number.

    Returns:
      The names picked, each once, sorted as text.

    Raises:
      ProbexError: if a part of the selection picks nothing or is no regular expression.

    Example:
      >>> names = ["head.weight", "body.1.weight", "body.0.weight"]
      >>> select_layers(names, 0)
      ['body.0.weight']
      >>> select_layers(names, r"2, body\\..*")
      ['body.0.weight', 'body.1.weight', 'head.weight']
      >>> select_layers(names, "haed.weight")
      Traceback (most recent call last):
        ...
      probex_jax.errors.ProbexError: no layer 'haed.weight'; did you mean 'head.weight'? There are
      3 layers: 'body.0.weight', 'body.1.weight', 'head.weight'

    References:
      docs/formats.md, "Selecting layers".
    """
    ordered = sorted(set(names))
    if spec is None:
        return ordered
    vectors = frozenset(vectors)
    numbered = [n for n in ordered if n not in vectors and not n.endswith(_UNNUMBERED)]
    picked = {name for part in _parts(ordered, spec) for name in _pick(ordered, numbered, part)}
    return [name for name in ordered if name in picked]


def no_such_layer(names: Sequence[str], wanted: str) -> ProbexError:
    """The error for a name that no layer has; it names layers there are."""
    # difflib takes quadratic time: no long names, and not a million of them.
    candidates = [name for name in names[:1000] if len(name) <= 200]
    close = difflib.get_close_matches(wanted, candidates, n=1) if len(wanted) <= 200 else []
    meant = f"did you mean {quoted(close[0])}? " if close else ""
    return ProbexError(f"no layer {quoted(wanted)}; {meant}{_available(names)}")


def _available(names: Sequence[str]) -> str:
    if not names:
        return "there are no layers"
    some = ", ".join(quoted(name) for name in names[:3])
    count = f"{len(names)} layer{'s' if len(names) > 1 else ''}"
    return f"There are {count}: {some}{', …' if len(names) > 3 else ''}"


def _parts(names: Sequence[str], spec: int | str | Sequence[int | str]) -> list[int | str]:
    if isinstance(spec, str):
        parts: list[int | str] = [spec] if spec in names else [*_SEPARATOR.split(spec)]
    elif _is_number(spec):
        parts = [int(spec)]  # type: ignore[arg-type]
    elif isinstance(spec, Sequence):
        parts = [part for element in spec for part in _parts(names, element)]
        if not parts:
            raise ProbexError("an empty list selects no layers; leave it out to select all")
    else:
        raise ProbexError(f"layers are selected by number or text, not by {quoted(spec)}")
    return parts


def _is_number(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _pick(names: Sequence[str], numbered: Sequence[str], part: int | str) -> list[str]:
    if not isinstance(part, str):
        return [_numbered(names, numbered, part)]
    part = part if part in names else part.strip()
    if part in names:
        return [part]
    if part.isascii() and part.isdigit():
        return [_numbered(names, numbered, int(part[:18]))]
    if not part:
        raise ProbexError(f"an empty text selects no layer; {_available(names)}")
    pattern = _pattern(part)
    matched = [name for name in names if pattern.fullmatch(name)]
    if not matched:
        raise no_such_layer(names, part)
    return matched


def _numbered(names: Sequence[str], numbered: Sequence[str], number: int) -> str:
    if not 0 <= number < len(numbered):
        raise ProbexError(
            f"no layer number {number}, numbers go from 0 to {len(numbered) - 1}; "
            f"{_available(names)}"
            if numbered
            else f"no layer number {number}; {_available(names)}"
        )
    return numbered[number]


def _pattern(text: str) -> re.Pattern[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # `[[`: "possible nested set"
            return re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise ProbexError(
            f"{quoted(text)} is neither a layer nor a regular expression: {error}"
        ) from error
