"""The updates of layers that adapters store, each computed from a few factors.

    LoRA   scale · up @ down; with a kernel `mid` between them as LyCORIS's LoCon has it
    LoHa   scale · (w1_a @ w1_b) ∘ (w2_a @ w2_b), the product of entries
    LoKr   scale · w1 ⊗ w2, Kronecker's product; each half may itself be w_a @ w_b
    delta  the difference itself

A half of LoHa or LoKr may have a core of kernels, t: Σ_ij t[i, j, k...] w_a[i, :] w_b[j, :].
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from probex_jax.matrices import LowRank
from probex_jax.model_files.adapters.spellings import Spelling
from probex_jax.model_files.layers import MATRIX_DTYPES, MAX_EXPERTS, as_layer
from probex_jax.model_files.safetensors_header import TensorInfo

Read = Callable[[str], np.ndarray]
Shape = tuple[int, ...]
# Factors of one matrix, [H, R] and [R, W].
Pair = tuple[np.ndarray, np.ndarray]
_MAX_ENTRIES = 2**30  # that are kept of one update
_NEEDED = {"LoRA": ("up", "down"), "LoHa": ("w1_a", "w1_b", "w2_a", "w2_b")}


class MismatchError(Exception):
    """Factors that do not fit each other."""


class UnknownLayerError(Exception):
    """Factors of which nothing says which layers they update."""


@dataclass(frozen=True)
class Form:
    """What is known of an update before it is read.

    Args:
      shape: (H, W) of the update.
      rank: of the factors in which it is read; None where it is multiplied out.
      alpha_rank: what alpha is divided by; 0 where alpha does not count.
      experts: number of updates that are stacked; 0 for one that is not.
      kind: of its layers, as in `LayerInfo`.
    """

    shape: tuple[int, int]
    rank: int | None
    alpha_rank: int
    experts: int = 0
    kind: str = "lora"


@dataclass(frozen=True)
class Update:
    """The tensors of one update.

    Args:
      path: their names without endings.
      spelling: of the first of them.
      factors: role to the name of its tensor.
      alpha: name of the tensor that holds alpha; "" if there is none.
      rank: R of each of several experts whose factors PEFT lays side by side, [H, R·E] and
        [E·R, W]; 0 for other updates.
    """

    path: str
    spelling: Spelling
    factors: Mapping[str, str]
    alpha: str = ""
    rank: int = 0

    @property
    def tensors(self) -> tuple[str, ...]:
        """The names of all its tensors."""
        return (*self.factors.values(), *([self.alpha] if self.alpha else []))

    def missing(self) -> str:
        """A role without which there is no update and whose tensor is not there; or ""."""
        needed = _NEEDED.get(self.spelling.method, ())
        if self.spelling.method == "LoKr":
            sides = {w: self.factors.keys() & {f"{w}_a", f"{w}_b"} for w in ("w1", "w2")}
            needed = tuple(
                end
                for w, is_split in sides.items()
                for end in ((f"{w}_a", f"{w}_b") if is_split else (w,))
            )
        return next((role for role in needed if role not in self.factors), "")

    def form(self, tensors: Mapping[str, TensorInfo], is_stack: bool) -> Form | str:
        """Its form, or the reason why it is not read.

        Args:
          tensors: all tensors, by name.
          is_stack: whether three axes are experts, and not a convolution's.

        Raises:
          MismatchError: if the factors do not fit each other.
        """
        method = self.spelling.method
        if method == "delta":
            found = as_layer(tensors[self.tensors[0]])
            if isinstance(found, str):
                return f"a delta, which is {found}"
            kind = "vector" if found.kind == "vector" else "update"
            return Form(found.shape, None, 0, kind=kind)
        shapes: dict[str, Shape] = {}
        for role, name in self.factors.items():
            shapes[role], dtype = tensors[name].shape, tensors[name].dtype
            if dtype not in MATRIX_DTYPES:
                return f"a {method} of {dtype}, which is not read"
            if len(shapes[role]) < 2:
                return f"a {len(shapes[role])}-dimensional {method}, which is not read"
            if 0 in shapes[role]:
                return "empty"
        form = {"LoRA": self._lora, "LoHa": _loha, "LoKr": _lokr}[method](shapes, is_stack)
        if isinstance(form, Form):
            _check_size(*form.shape, form.rank)
        return form

    def _lora(self, shapes: Mapping[str, Shape], is_stack: bool) -> Form | str:
        up, down, mid = shapes["up"], shapes["down"], shapes.get("mid", ())
        if self.spelling.is_turned and len(up) == len(down) == 2:
            up, down = up[::-1], down[::-1]
        experts = 0
        if self.rank and len(up) == len(down) == 2:
            if up[1] != down[0] or down[0] % self.rank:
                raise MismatchError(f"of rank {self.rank}: up is {_times(up)}, down {_times(down)}")
            return Form((up[0], down[1]), self.rank, self.rank, down[0] // self.rank)
        if is_stack and len(up) == len(down) == 3 and up[0] == down[0]:
            # MLX's are not turned here.
            (experts, *up), (_, *down) = up, down  # type: ignore[assignment]
            if experts > MAX_EXPERTS:
                return f"a stack of {experts} updates, which is not read"
        if math.prod(up[2:]) != 1:
            return "a LoRA whose up factor is a convolution, which is not read"
        (rows, rank, *_), (rank_down, *columns) = up, down
        width = math.prod(columns)
        if mid:
            if mid[:2] != (rank, rank_down) or math.prod(columns[1:]) != 1:
                raise MismatchError(f"up is {rows}x{rank}, mid is {_times(mid)}")
            width *= math.prod(mid[2:])
        elif rank != rank_down:
            raise MismatchError(
                f"its factors disagree in rank: up is {rows}x{rank}, down is {rank_down}x{width}"
            )
        return Form((rows, width), rank, rank_down, experts)

    def values(self, form: Form, read: Read, expert: int = 0) -> np.ndarray | LowRank:
        """The update without its scale, float32.

        Args:
          form: what `form` returned.
          read: reads a tensor by name.
          expert: its number, of several that are stacked.
        """
        factors = {role: read(name) for role, name in self.factors.items()}
        if self.spelling.method == "delta":
            return next(iter(factors.values())).reshape(form.shape)
        if self.spelling.method == "LoRA":
            up, down = factors["up"], factors["down"]
            if self.rank:
                up = up.reshape(len(up), self.rank, -1)[..., expert]
                down = down.reshape(form.experts, self.rank, -1)[expert]
            elif form.experts:
                up, down = up[expert], down[expert]
            elif self.spelling.is_turned and up.ndim == 2:
                up, down = up.T, down.T
            up = up.reshape(form.shape[0], -1)
            if "mid" in factors:
                mid = factors["mid"]
                down = np.einsum("rs...,si->ri...", mid, down.reshape(mid.shape[1], -1))
            return LowRank(up, np.ascontiguousarray(down.reshape(up.shape[1], -1)))
        one, other = (_half(side, factors) for side in ("w1", "w2"))
        if self.spelling.method == "LoHa":
            if form.rank is None:
                return (one[0] @ one[1]) * (other[0] @ other[1])
            (up, down), (up2, down2) = one, other
            up = (up[:, :, None] * up2[:, None, :]).reshape(form.shape[0], form.rank)
            return LowRank(up, (down[:, None] * down2[None]).reshape(form.rank, form.shape[1]))
        if form.rank is None:
            return np.kron(one[0] @ one[1], other[0] @ other[1])
        return LowRank(np.kron(one[0], other[0]), np.kron(one[1], other[1]))


def _loha(shapes: Mapping[str, Shape], _: bool) -> Form:
    (shape, rank), (other, rank2) = (_half_form(side, shapes) for side in ("w1", "w2"))
    if shape != other:
        raise MismatchError(f"its halves are {_times(shape)} and {_times(other)}")
    return _form(rank * rank2, shape, shapes["w1_b"][0])


def _lokr(shapes: Mapping[str, Shape], _: bool) -> Form:
    ((rows, columns), rank), ((rows2, columns2), rank2) = (
        _half_form(side, shapes) for side in ("w1", "w2")
    )
    shape = (rows * rows2, columns * columns2)
    alpha_rank = next((shapes[b][0] for b in ("w2_b", "w1_b") if b in shapes), 0)
    return _form(rank * rank2, shape, alpha_rank)


def _form(rank: int, shape: tuple[int, int], alpha_rank: int) -> Form:
    """Factors where they take less memory than the product."""
    if rank * sum(shape) < math.prod(shape):
        return Form(shape, rank, alpha_rank)
    return Form(shape, None, alpha_rank, kind="update")


def _half_form(side: str, shapes: Mapping[str, Shape]) -> tuple[tuple[int, int], int]:
    """The shape of one half of a LoHa or LoKr, and its rank."""
    if side in shapes:
        rows, *columns = shapes[side]
        return (rows, math.prod(columns)), min(rows, math.prod(columns))
    a, b, core = shapes[f"{side}_a"], shapes[f"{side}_b"], shapes.get(f"t{side[1]}")
    if core is None:
        (rows, rank, *_), (rank_b, *columns) = a, b
        if rank != rank_b or math.prod(a[2:]) != 1:
            raise MismatchError(f"{side}_a is {_times(a)}, {side}_b is {_times(b)}")
        return (rows, math.prod(columns)), rank
    if core[:2] != (a[0], b[0]) or len(a) != 2 or len(b) != 2:
        raise MismatchError(f"t{side[1]} is {_times(core)}, the factors {_times(a)}, {_times(b)}")
    shape = (a[1], b[1] * math.prod(core[2:]))
    _check_size(*shape, a[0])
    return shape, a[0]


def _half(side: str, factors: Mapping[str, np.ndarray]) -> Pair:
    """One half of a LoHa or LoKr as two factors."""
    if side in factors:
        whole = factors[side].reshape(len(factors[side]), -1)
        rows, columns = whole.shape
        eye = np.eye(min(rows, columns), dtype=np.float32)
        return (eye, whole) if rows < columns else (whole, eye)
    a, b, core = factors[f"{side}_a"], factors[f"{side}_b"], factors.get(f"t{side[1]}")
    if core is not None:
        a, b = a.T, np.einsum("ij...,jw->iw...", core, b)
    return a.reshape(len(a), -1), b.reshape(len(b), -1)


def _check_size(rows: int, columns: int, rank: int | None) -> None:
    """A few small factors may be those of a matrix of any size."""
    if (rows * columns if rank is None else rank * (rows + columns)) > _MAX_ENTRIES:
        raise MismatchError(f"it is an update of {rows}x{columns}, which is too large")


def _times(shape: Shape) -> str:
    return "x".join(map(str, shape))
