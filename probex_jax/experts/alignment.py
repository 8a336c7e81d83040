"""Aligning weights with text: which words stand for the classes, and which are candidates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.experts.card import TextCard
from probex_jax.experts.expert import Expert
from probex_jax.experts.predictions import stored_logits
from probex_jax.experts.tag_cut import TagCut
from probex_jax.fitting import Score, Split, Texts
from probex_jax.fitting.calibration import seen_offset
from probex_jax.language import TextEncoder, embed
from probex_jax.layer_store import LayerStore
from probex_jax.zoo.model_j import HELD_OUT_SPLITS

_SAME = 1 - 1e-6  # cosine


@dataclass(frozen=True)
class Alignment:
    """How the classes of a store become text embeddings.

    Args:
      encoder: the text encoder; frozen.
      spec: how `language.text_encoder` finds it again; "" if it cannot, and whoever asks the
        expert to place a text has to give the encoder.
      template: the sentence of a class, with `{class}` where its words stand.
      logit_scale: scale of the cosines in the softmax.
      tags: column of the store by whose tags the expert is calibrated to rank them; "" for none.

    Example:
      >>> from probex_jax import text_encoder
      >>> Alignment(text_encoder("hashing"), spec="hashing", logit_scale=20.0).task.logit_scale
      20.0
    """

    encoder: TextEncoder
    spec: str = ""
    template: str = "a photo of a {class}"
    logit_scale: float = 1.0
    tags: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.template, str) or self.template.count("{class}") != 1:
            raise ProbexError(f"text.template: {self.template!r} must hold {{class}} once")

    @property
    def task(self) -> Texts:
        """What is trained."""
        return Texts(logit_scale=float(self.logit_scale))

    def card(self, classes: Sequence[str], texts: Mapping[str, str]) -> TextCard:
        """What the card of an expert trained on some classes keeps of it, and of their words."""
        return TextCard(
            self.spec,
            self.encoder.name,
            self.encoder.dim,
            self.template,
            float(self.logit_scale),
            {name: texts[name] for name in classes if name in texts},
        )

    def card_for(self, store: LayerStore) -> TextCard:
        """The same of the classes that the training models of a store have, and of its tags.

        Raises:
          ProbexError: as `TagCut.of`.
        """
        tags = TagCut.of(store, self.tags) if self.tags else None
        return replace(self.card(store.seen_classes, store.texts), tags=tags)

    def candidates(self, store: LayerStore) -> "Candidates":
        """Embeds the classes of a store, and checks that their texts tell them apart.

        Raises:
          ProbexError: if a held-out class occurs in another split, or two classes have the same
            words or, to the text encoder, the same meaning.
        """
        classes = (*store.seen_classes, *store.held_out_classes)
        sentences = class_sentences(classes, store.texts, self.template)
        first: dict[str, str] = {}
        for name, sentence in zip(classes, sentences, strict=True):
            if first.setdefault(sentence, name) != name:
                raise ProbexError(
                    f"{store.path}: classes {first[sentence]!r} and {name!r} have the same words, "
                    f"{sentence!r}; give them different ones (texts in the zoo's zoo.json)"
                )
        vectors_YD = embed(self.encoder, sentences)
        alike_YY = np.triu(vectors_YD @ vectors_YD.T > _SAME, k=1)
        if alike_YY.any():
            one, other = (classes[place] for place in np.argwhere(alike_YY)[0])
            raise ProbexError(
                f"{store.path}: classes {one!r} and {other!r} are the same to text encoder "
                f"{self.encoder.name}; give them different words (texts in the zoo's zoo.json)"
            )

        n_seen = len(store.seen_classes)
        return Candidates(store, self.encoder, vectors_YD[:n_seen], vectors_YD[n_seen:])


@dataclass(frozen=True)
class Candidates:
    """The texts that the models of a store are compared with, embedded once for all layers.

    Args:
      store: the store.
      encoder: what they were embedded with; None where nobody needs it.
      seen_YD, held_out_YD: embeddings of its seen and its held-out classes.
    """

    store: LayerStore
    encoder: TextEncoder | None
    seen_YD: np.ndarray
    held_out_YD: np.ndarray

    def targets(self, name: str) -> Split:
        """The models of a split, without matrices, beside their candidates.

        These are the seen or the held-out classes.
        """
        store, held_out = self.store, name in HELD_OUT_SPLITS
        labels_N = store.class_indices(
            name, store.held_out_classes if held_out else store.seen_classes
        )
        texts_YD = self.held_out_YD if held_out else self.seen_YD
        return Split(None, labels_N, texts_YD)  # type: ignore[arg-type]

    def among_all(self, name: str) -> Split:
        """A held-out split with all classes as candidates, the held-out ones first."""
        texts_YD = np.concatenate([self.held_out_YD, self.seen_YD])
        return self.targets(name)._replace(texts=texts_YD)


def class_sentences(classes: Sequence[str], texts: Mapping[str, str], template: str) -> list[str]:
    """The sentence that stands for each class.

    Args:
      classes: class names.
      texts: the words for those whose name is none.
      template: with `{class}` where the words stand.

    Example:
      >>> class_sentences(["n02111277", "cat"], {"n02111277": "big dog"}, "a photo of a {class}")
      ['a photo of a big dog', 'a photo of a cat']
    """
    return [template.replace("{class}", texts.get(name, name)) for name in classes]


@dataclass(frozen=True)
class ZeroShot:
    """Accuracy on models of classes that were not trained on.

    Args:
      among_held_out: the candidates being the held-out classes of the store.
      among_all: the candidates being these and the classes of the expert.
      n_held_out, n_all: numbers of candidates.
      seen_among_all: accuracy on models of the expert's classes, the candidates being all, too;
        None where there are no such models.

    No model of a held-out class is trained on, so there is no commonest answer to learn. The chance
    of both is the share of the commonest class of the models, which no one answer can exceed.
    """

    among_held_out: Score
    among_all: Score
    n_held_out: int
    n_all: int
    seen_among_all: Score | None = None

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "ZeroShot":
        """From what `dataclasses.asdict` made of one."""
        names = ("among_held_out", "among_all", "seen_among_all")
        scores = {name: Score(**value[name]) for name in names if value.get(name)}
        return cls(**{**value, **scores})


def zero_shot(
    expert: Expert,
    store: LayerStore,
    split: str = "test_holdout",
    encoder: TextEncoder | None = None,
) -> ZeroShot:
    """Tells the held-out classes of the models of a split by their texts alone.

    Args:
      expert: one aligned with text, of the store's tree.
      store: where the models are.
      split: a held-out one.
      encoder: the expert's text encoder; None to find it by what the expert's card says.

    Returns:
      Both accuracies, with intervals over the models.

    Raises:
      ProbexError: if the expert has no text head, or was trained on a held-out class; if the store
        has no such models; or if the encoder is another than the expert's.
    """
    _ = expert.text
    expert.check_fits(store.tree, store.classes)
    held_out = store.held_out_classes
    if not held_out:
        raise ProbexError(
            f"{store.path}: no held-out classes; zero-shot needs {' and '.join(HELD_OUT_SPLITS)}"
        )
    check_unseen(expert, store)
    candidates, n_held_out = (*held_out, *expert.card.classes), len(held_out)
    texts_YD = class_texts(expert, store, candidates, encoder)

    def answers(split: str) -> tuple[np.ndarray, np.ndarray]:
        logits_NY = text_logits(expert, store, split, candidates, texts_YD)
        return logits_NY, store.class_indices(split, candidates)

    logits_NY, labels_N = answers(split)
    seen = split.removesuffix("_holdout")
    return ZeroShot(
        among_held_out=_score(logits_NY[:, :n_held_out], labels_N),
        among_all=_score(logits_NY, labels_N),
        n_held_out=n_held_out,
        n_all=len(candidates),
        seen_among_all=_score(*answers(seen)) if store.has(seen) else None,
    )


def with_seen_offset(expert: Expert, candidates: Candidates) -> Expert:
    """The expert, with what validation models say is to be taken off the classes trained on.

    Where these and held-out classes are candidates together, the former's logits are too high:
    training raised them.

    Args:
      expert: one trained on the seen classes of the store.
      candidates: of a store with models of the splits "val" and "val_holdout".
    """
    store, n_held_out = candidates.store, len(candidates.held_out_YD)
    texts_YD = candidates.among_all("val_holdout").texts
    of_seen_NY, of_held_out_NY = (
        stored_logits(expert, store, split, texts_YD) for split in ("val", "val_holdout")
    )
    seen_N, held_out_N = (candidates.targets(split).y for split in ("val", "val_holdout"))
    of_seen = of_seen_NY, seen_N + n_held_out
    offset = seen_offset(of_seen, (of_held_out_NY, held_out_N), n_held_out)
    return expert.with_card(text=replace(expert.text, seen_offset=offset))


def _score(logits_NY: np.ndarray, labels_N: np.ndarray) -> Score:
    chance = Texts().chance(labels_N, labels_N)
    return replace(Texts().score(logits_NY, labels_N), chance=chance)


def check_unseen(expert: Expert, store: LayerStore) -> None:
    """Checks that an expert was trained on none of the classes that a store holds out.

    Raises:
      ProbexError: if it was; the message names the class.
    """
    trained_on = sorted(set(store.held_out_classes) & set(expert.card.classes))
    if expert.card.text is not None and trained_on:
        raise ProbexError(
            f"{store.path}: the expert was trained on class {trained_on[0]!r}, which is held out "
            "here; that would be no zero-shot"
        )


def text_logits(
    expert: Expert, store: LayerStore, split: str, classes: Sequence[str], texts_YD: np.ndarray
) -> np.ndarray:
    """Logits [N, Y] of the models of a split, the candidates being texts [Y, D] of some classes.

    Those of classes that the expert was trained on are less its `TextCard.seen_offset`.
    """
    is_seen_Y = np.isin(classes, expert.card.classes)
    offset_Y = np.where(is_seen_Y, expert.text.seen_offset or 0.0, 0.0).astype(np.float32)
    return stored_logits(expert, store, split, texts_YD) - offset_Y[None]


def class_texts(
    expert: Expert, store: LayerStore, classes: Sequence[str], encoder: TextEncoder | None = None
) -> np.ndarray:
    """Embeddings [Y, D] of the texts of some classes, for an expert aligned with text.

    The expert's own words for a class stand before those of the store.

    Raises:
      ProbexError: as `zero_shot`; or if two classes have the same words.
    """
    texts = {**store.texts, **expert.text.texts}
    sentences = class_sentences(classes, texts, expert.text.template)
    return embed(expert.text_encoder(encoder), sentences)
