"""A trained Tree Expert: what it is, what it answers, and how it is kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import ArrayLike

from probex_jax.bucket_paths import as_path
from probex_jax.errors import ProbexError
from probex_jax.experts import checkpoints, together
from probex_jax.experts.card import Calibration, Card, MemberCard, TextCard, named_task, versions
from probex_jax.experts.member import Member, placed
from probex_jax.fitting import Fit
from probex_jax.fitting.inference import predictions
from probex_jax.fitting.network import NO_MORE, encoder_settings
from probex_jax.language import TextEncoder, embed, text_encoder
from probex_jax.matrices import Matrices
from probex_jax.model_files import ModelFile

Layers = ArrayLike | Matrices | Mapping[str, Any]


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True, eq=False)
class Expert:
    """What was trained on the models of one tree: a network on one layer, or a committee of such.

    A committee (made by `committee`) answers as one expert: its logits are the weighted mean of its
    members'. An expert is a pytree of its variables: `jit`, `grad` and `vmap` take it as an
    argument, and its methods run inside of them.

    Args:
      variables: the network's Linen variables; of a committee, number of a member to its variables.
      card: what it is; or its JSON, which is checked.
      encoders: encoders by the names on the card that are not ours.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from probex_jax import ProbeX, fit, Adam
      >>> x = jax.random.normal(jax.random.key(0), [20, 6, 5])
      >>> y = (x[:, :3, 0] > 0).astype(int)
      >>> found = fit(ProbeX(4, 4, 8), x, y, recipe=Adam(epochs=5))
      >>> expert = Expert.of(found, tree="Mini", layer="fc.weight", classes=["one", "two", "three"])
      >>> expert
      Expert(tree='Mini', reading='fc.weight')
      >>> jax.jit(lambda expert, x: expert.probabilities(x))(expert, x).shape
      (20, 3)
    """

    variables: Mapping[str, Any]
    card: Card
    encoders: Mapping[str, type[nn.Module]] = NO_MORE

    def __post_init__(self) -> None:
        if isinstance(self.card, Mapping):
            object.__setattr__(self, "card", Card.from_json(self.card))

    def __repr__(self) -> str:
        return f"Expert(tree={self.card.tree!r}, reading={self.reading!r})"

    def tree_flatten(self) -> tuple[tuple[Any], tuple[Card, Any]]:
        """For JAX: the variables are data, the rest is static."""
        return (self.variables,), (self.card, tuple(self.encoders.items()))

    @classmethod
    def tree_unflatten(cls, about: tuple[Card, Any], variables: tuple[Any]) -> Expert:
        """For JAX: as `tree_flatten`."""
        return cls(variables[0], about[0], dict(about[1]))

    @classmethod
    def of(
        cls,
        found: Fit,
        *,
        tree: str,
        layer: str,
        classes: Sequence[str],
        text: TextCard | None = None,
        encoders: Mapping[str, type[nn.Module]] = NO_MORE,
        **about: Any,
    ) -> Expert:
        """The expert that `px.fit` fitted.

        Args:
          found: what it returned.
          tree: name of the tree of the models.
          layer: name of the layer.
          classes: names of the outputs, in their order.
          text: of the task `Texts`, the text.
          encoders: that of `found` by a name, if it is not ours.
          about: further fields of its `Card`.

        Raises:
          ProbexError: if the encoder has no name, there are more or fewer names than outputs, the
            task is none that a card can name, or it is `Texts` and `text` is missing.
        """
        task = named_task(found.task)
        n_outputs = getattr(found.network.head, "n_classes", found.network.encoder.rep_dim)
        if task.head == "text":
            if text is None:
                raise ProbexError("text: the task Texts needs a TextCard")
        elif len(classes) != n_outputs:
            raise ProbexError(f"classes: {len(classes)} names for {n_outputs} outputs")
        network = found.network
        member = MemberCard(
            encoder_settings(network.encoder, encoders),
            layer,
            found.shape,
            normalise=network.normalise,
            centre_rank=network.centre_rank,
            recipe=found.recipe,
        )
        head = "none" if network.head is None else found.task.head
        calibration = Calibration(found.temperature)
        about = {"metrics": dict(found.figures), "versions": versions(), **about}
        card = Card(tree, tuple(classes), (member,), head, task, text, calibration, **about)
        expert = cls(jax.tree.map(np.asarray, found.variables), card, encoders)
        expert.members[0].check_variables(f"the expert of tree {tree}, {layer}")
        return expert

    @cached_property
    def members(self) -> tuple[Member, ...]:
        """What answers: one network, or of a committee those of several layers."""
        cards = self.card.members
        each = (
            [self.variables]
            if len(cards) == 1
            else [self.variables[str(n)] for n in range(len(cards))]
        )
        return tuple(
            Member(variables, self.card, card, self.encoders)
            for variables, card in zip(each, cards, strict=True)
        )

    @property
    def layers(self) -> dict[str, tuple[int, int]]:
        """What the expert reads of a model: names of layers to (H, W)."""
        return {member.layer: member.shape for member in self.card.members}

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the variables and the card: the expert's identity."""
        return checkpoints.content_hash(self.variables, self.card.to_json())

    def part(self, name: str) -> Expert:
        """The expert of one attribute of a joint expert; a ProbexError if it has no such one."""
        own = self.card.outputs(name)

        def cut(path: Any, leaf: Any) -> Any:
            is_map = getattr(path[-1], "key", None) in ("kernel", "weight", "bias")
            return leaf[..., own] if is_map else leaf

        variables = jax.tree_util.tree_map_with_path(cut, self.variables)
        return replace(self, variables=variables, card=self.card.part(name))

    @property
    def text(self) -> TextCard:
        """The part of the card on text.

        Raises:
          ProbexError: if the expert was trained on classes, not aligned with text.
        """
        if self.card.text is None:
            raise ProbexError(
                f"the expert of tree {self.card.tree}, {self.reading} knows classes, no text; "
                "train one with configs/align.py"
            )
        return self.card.text

    def text_encoder(self, encoder: TextEncoder | None = None) -> TextEncoder:
        """The text encoder that the expert was aligned with.

        Args:
          encoder: it, to be checked; None to find it by what the card says.

        Raises:
          ProbexError: if the expert has no text, or the encoder is another or of another dimension.
        """
        about = self.text
        if encoder is None:
            if not about.encoder:
                raise ProbexError(f"give the text encoder {about.name}, nothing says where it is")
            encoder = self._own_text_encoder
        if encoder.dim != about.dim:
            raise ProbexError(
                f"text encoder {encoder.name} gives {encoder.dim} dimensions, the expert was "
                f"aligned with the {about.dim} of {about.name}"
            )
        if encoder.name != about.name:
            raise ProbexError(
                f"text encoder {encoder.name}: the expert was aligned with {about.name}"
            )
        return encoder

    @cached_property
    def _own_text_encoder(self) -> TextEncoder:
        return text_encoder(self.text.encoder)

    @property
    def reading(self) -> str:
        """What the expert reads, in a word for tables: its layer, or how many there are."""
        return ", ".join(self.layers) if len(self.layers) == 1 else f"{len(self.layers)} layers"

    @property
    def rep_dim(self) -> int:
        """Size T of the representations."""
        return sum(member.rep_dim for member in self.members)

    def read(self, model: ModelFile) -> dict[str, Any]:
        """The matrices [H, W] of one model that the expert reads, by layer; the file is open once.

        Raises:
          ProbexError: if a layer is missing or of another shape, or the file is damaged.
        """
        for layer, shape in self.layers.items():
            found = model.all_layers.get(layer)
            if found is not None and found.shape != shape:
                raise ProbexError(
                    f"{model.path}: layer {layer} is {found.shape}, the expert reads {shape}"
                )
        return model.matrices(self.layers)

    def encode(self, x: Layers) -> jax.Array:
        """Representations [N, T] of N models.

        Args:
          x: matrices [N, H, W] of the expert's layer; or by layer, as a committee needs them.

        Returns:
          Those of an expert aligned with text are of length one, since it is trained by their
          direction; those of a committee are its members' side by side.

        Raises:
          ProbexError: if a layer is missing, or its matrices are of another shape.
        """
        vectors = [member.encode(matrices) for member, matrices in self._with_matrices(x)]
        return jnp.concatenate(vectors, axis=1)

    def place(self, texts: Sequence[str], encoder: TextEncoder | None = None) -> jax.Array:
        """Where sentences stand among the representations: unit vectors [Y, T].

        Args:
          texts: distinct sentences, taken as they are.
          encoder: as `text_encoder` takes it.

        Raises:
          ProbexError: as `text_encoder`, or if a text is empty.
        """
        texts_YD = embed(self.text_encoder(encoder), texts)
        return placed(self.members, texts_YD)

    def logits(self, x: Layers, texts: ArrayLike | None = None) -> jax.Array:
        """Logits [N, Y] of N models; columns as in the card.

        Args:
          x: as `encode` takes it.
          texts: of an expert aligned with text, the embeddings [Y, D] of the candidates.

        Raises:
          ProbexError: as `encode`; or if the texts are missing, unneeded or of another dimension
            than the expert's.
        """
        if texts is None and self.card.text is not None:
            raise ProbexError("the expert is aligned with text: give embeddings of the candidates")
        if texts is not None:
            texts = jnp.asarray(texts)
            if texts.ndim != 2 or texts.shape[1] != self.text.dim:
                raise ProbexError(
                    f"text embeddings of shape {texts.shape}: the expert was aligned with the "
                    f"{self.text.dim} dimensions of {self.text.name}"
                )
        small: list[tuple[Member, jax.Array]] = []
        parts = []
        for member, matrices in self._with_matrices(x):
            if len(self.members) > 1 and together.is_small(member, matrices):
                small.append((member, matrices))
            else:
                parts.append(member.logits(matrices, texts))
        if small:
            parts.append(together.logits(small))
        return reduce(jnp.add, parts)

    def apply(
        self, variables: Mapping[str, Any], x: Layers, texts: ArrayLike | None = None
    ) -> jax.Array:
        """`logits` with other variables, as `apply` of a Linen module."""
        return replace(self, variables=variables).logits(x, texts)

    def probabilities(self, x: Layers, texts: ArrayLike | None = None) -> jax.Array:
        """Calibrated probabilities [N, Y] of N models; of one class of several they add up to one.

        Of an expert that tells a number [N, 2], the number and the standard deviation of its error.
        Arguments and errors are as of `logits`; a joint expert leaves it to its parts.
        """
        return self.as_probabilities(self.logits(x, texts))

    def as_probabilities(self, logits: ArrayLike) -> jax.Array:
        """What `probabilities` makes of logits [N, Y]."""
        if self.card.attributes:
            raise ProbexError(f"{self} answers for several attributes; take one with part(name)")
        return predictions(self.card.task, jnp.asarray(logits), self.card.temperature)

    def with_card(self, **changes: Any) -> Expert:
        """The expert with other fields of its `Card`."""
        return replace(self, card=replace(self.card, **changes))

    def check_fits(self, tree: str, classes: Sequence[str]) -> None:
        """Raises a ProbexError unless models of this tree and class list are the expert's.

        Of an expert aligned with text, and of a joint one, the classes may be others.
        """
        if tree != self.card.tree:
            raise ProbexError(f"the expert is of tree {self.card.tree}, the models are of {tree}")
        ours, theirs = list(self.card.classes), list(classes)
        if self.card.text is None and not self.card.attributes and ours != theirs:
            different = sorted(set(ours) ^ set(theirs)) or ["their order"]
            raise ProbexError(
                f"the expert knows {len(ours)} classes, the store {len(theirs)}; "
                f"they differ in {different[0]!r}"
            )

    def save(self, path: str | Path) -> None:
        """Saves the expert as one Orbax checkpoint, with a hash of its content."""
        checkpoints.save(as_path(path), self.variables, self.card.to_json())

    @classmethod
    def load(cls, path: str | Path, encoders: Mapping[str, type[nn.Module]] = NO_MORE) -> Expert:
        """Loads an expert.

        Args:
          path: an expert's checkpoint, or the work directory of a training (then its best one).
          encoders: encoders by name that are not ours.

        Raises:
          ProbexError: if there is none, or its content does not match its hash.
        """
        path = as_path(path)
        if (path / "expert").is_dir():
            path = path / "expert"
        return cls.checked(path, *checkpoints.load(path), encoders)

    @classmethod
    def checked(
        cls,
        path: Path,
        variables: Any,
        card: Any,
        encoders: Mapping[str, type[nn.Module]] = NO_MORE,
    ) -> Expert:
        """The expert of variables and the JSON of a card that were read from a file.

        Args:
          path: the file, for messages.
          variables, card, encoders: as of an `Expert`, whatever they hold.

        Raises:
          ProbexError: if the card lacks what makes an expert, or the variables are not its own.
        """
        expert = cls(variables, Card.from_json(card, path), encoders)
        if len(expert.card.members) > 1:
            for number in range(len(expert.card.members)):
                if str(number) not in variables:
                    raise ProbexError(f"{path}: no expert: member {number} has no variables")
        for member in expert.members:
            member.check_variables(path)
        return expert

    def _with_matrices(self, x: Any) -> Iterator[tuple[Member, Any]]:
        """Each member with the matrices of its layer."""
        size = None
        for member in self.members:
            if isinstance(x, Mapping):
                if member.layer not in x:
                    raise ProbexError(f"no matrices of layer {member.layer}")
                matrices = x[member.layer]
            elif len(self.members) > 1:
                raise ProbexError(
                    f"the expert reads {len(self.members)} layers: give their matrices by layer"
                )
            else:
                matrices = x
            matrices = member.checked(matrices)
            size = size or matrices.shape[0]
            if matrices.shape[0] != size:
                raise ProbexError(
                    f"layer {member.layer}: matrices of {matrices.shape[0]} models, of another "
                    f"layer there are {size}"
                )
            yield member, matrices
