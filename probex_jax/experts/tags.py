"""Tags ranked by the weights: several for a model, or none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.experts.alignment import class_sentences
from probex_jax.experts.expert import Expert
from probex_jax.experts.member import placed
from probex_jax.experts.predictions import stored_logits
from probex_jax.experts.tag_cut import TagCut
from probex_jax.language import TextEncoder, embed
from probex_jax.layer_store import LayerStore
from probex_jax.zoo.model_j import HELD_OUT_SPLITS


@dataclass(frozen=True)
class Vocabulary:
    """Tags that models may have.

    Args:
      tags: V tags.
      texts_VD: embeddings of their sentences.
      classes_YD: those of the classes that the expert was trained on.
    """

    tags: tuple[str, ...]
    texts_VD: np.ndarray
    classes_YD: np.ndarray


@dataclass(frozen=True)
class Tag:
    """A tag that a model probably has.

    Args:
      tag: it.
      probability: calibrated.
    """

    tag: str
    probability: float


def tag_cut(expert: Expert) -> TagCut:
    """What the expert's card says of tags.

    Raises:
      ProbexError: if it says nothing.
    """
    if expert.text.tags is None:
        raise ProbexError(
            f"the expert of tree {expert.card.tree}, {expert.reading} ranks no tags; train one "
            "with --config.text.tags, a column of tags"
        )
    return expert.text.tags


def vocabulary(
    expert: Expert, more: Sequence[str] = (), encoder: TextEncoder | None = None
) -> Vocabulary:
    """The tags that an expert was calibrated for, and more.

    Args:
      expert: one that ranks tags.
      more: tags that may be new to it.
      encoder: its text encoder; None to find it by what the card says.

    Raises:
      ProbexError: if the expert ranks no tags, or none that it was not trained on; or as
        `Expert.text_encoder`.
    """
    known = tag_cut(expert)
    tags = tuple(dict.fromkeys([*known.vocabulary, *more]))
    known.probabilities(np.zeros([0, len(tags)]), tags)  # there is a curve for each
    return _embedded(expert, tags, expert.text_encoder(encoder))


def _embedded(expert: Expert, tags: Sequence[str], encoder: TextEncoder) -> Vocabulary:
    texts_VD, classes_YD = (
        embed(encoder, class_sentences(names, expert.text.texts, expert.text.template))
        for names in (tags, expert.card.classes)
    )
    return Vocabulary(tuple(tags), texts_VD, classes_YD)


def tag_scores(expert: Expert, logits: np.ndarray, words: Vocabulary) -> np.ndarray:
    """How much more similar models are to tags than what the expert was trained on is.

    That is the cosine with a tag, less the tag's mean cosine with the classes: a text near to all
    would else be near to every model.

    Args:
      expert: aligned with text.
      logits: [N, V] of N models, the candidates being the tags.
      words: the V tags.

    Returns:
      [N, V].

    References:
      Dinu, Lazaridou, Baroni: Improving Zero-Shot Learning by Mitigating the Hubness Problem, ICLR
      workshop, 2015.
    """
    tags_VT, classes_YT = (
        np.asarray(placed(expert.members, texts)) for texts in (words.texts_VD, words.classes_YD)
    )
    common_V = tags_VT @ classes_YT.mean(axis=0)
    return np.asarray(logits) / expert.card.task.logit_scale - common_V[None]


def tag_probabilities(expert: Expert, logits: np.ndarray, words: Vocabulary) -> np.ndarray:
    """Calibrated probabilities [N, V] that models have tags; arguments as of `tag_scores`.

    Raises:
      ProbexError: as `vocabulary`.
    """
    return tag_cut(expert).probabilities(tag_scores(expert, logits, words), words.tags)


def ranked_tags(expert: Expert, logits: np.ndarray, words: Vocabulary) -> list[tuple[Tag, ...]]:
    """The tags that are shown for each model, the most probable first; maybe none.

    Args:
      expert, logits, words: as `tag_scores` takes them.

    Returns:
      For each model so many that of those shown a share of `TagCut.wrong` is wrong at most, in
      expectation over models like those of validation and the tags that the expert was calibrated
      for.

    Raises:
      ProbexError: as `vocabulary`.
    """
    p_NV = tag_probabilities(expert, logits, words)
    shown_NV = tag_cut(expert).shown(p_NV)
    order_NV = np.argsort(-p_NV, axis=1, kind="stable")
    return [
        tuple(Tag(words.tags[v], float(p_V[v])) for v in order_V if shown_V[v])
        for p_V, shown_V, order_V in zip(p_NV, shown_NV, order_NV, strict=True)
    ]


def with_tag_cut(expert: Expert, store: LayerStore, encoder: TextEncoder | None = None) -> Expert:
    """The expert with the curves and the cut that suit validation models, of held-out classes, too.

    Args:
      expert: one whose card names a column of tags.
      store: with models of the split "val".
      encoder: as `vocabulary` takes it.
    """
    known = tag_cut(expert)
    every = (*known.seen, *known.new)
    words = _embedded(expert, every, expert.text_encoder(encoder))
    found = [
        stored_tags(expert, store, split, words)
        for split in ("val", HELD_OUT_SPLITS[0])
        if store.has(split)
    ]
    logits_NV, right_NV = (np.concatenate(each) for each in zip(*found, strict=True))
    fitted = known.fitted(tag_scores(expert, logits_NV, words), right_NV)
    return expert.with_card(text=replace(expert.text, tags=fitted))


def stored_tags(
    expert: Expert, store: LayerStore, split: str, words: Vocabulary
) -> tuple[np.ndarray, np.ndarray]:
    """Logits [N, V] of the models of a split whose tags are known, and [N, V], if they have each.

    Raises:
      ProbexError: as `stored_logits`, or if the store has no column of tags.
    """
    said = store.tables.column(tag_cut(expert).column, store.path)
    models = store.split(split)
    known_N = np.array([model.id in said for model in models])
    right = [[tag in said[m.id] for tag in words.tags] for m in models if m.id in said]
    right_NV = np.array(right, bool).reshape(-1, len(words.tags))
    return stored_logits(expert, store, split, words.texts_VD)[known_N], right_NV
