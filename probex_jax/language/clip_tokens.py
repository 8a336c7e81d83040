"""CLIP's byte-pair encoding, by the `tokenizers` library."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from probex_jax.errors import ProbexError
from probex_jax.language.clip_tower import TextTower
from probex_jax.model_files.locate import read_inside
from probex_jax.model_files.untrusted_text import json_object

_START, _END = "<|startoftext|>", "<|endoftext|>"
# Contractions, words, single digits, runs of other signs; between them are only spaces.
_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
_MAX_BYTES = 256 * 1024 * 1024


class ClipTokenizer:
    """Turns texts into rows of tokens: start, text, end, and ends again up to the context.

    A text that is too long loses its last tokens and keeps its end.

    Args:
      folder: with `tokenizer.json`, or else with `vocab.json` and `merges.txt`.
      tower: what the tokens are for.

    Raises:
      ProbexError: if files are missing or damaged, or do not fit the tower.

    Attributes:
      digest: SHA-256 of the files.
    """

    def __init__(self, folder: Path, tower: TextTower):
        single = (folder / "tokenizer.json").exists()
        names = ["tokenizer.json"] if single else ["vocab.json", "merges.txt"]
        for name in names:
            if not (folder / name).exists():
                raise ProbexError(
                    f"{folder}: no {name}; a tokenizer is tokenizer.json, or vocab.json with "
                    "merges.txt"
                )
        where, files = str(folder / names[0]), [read_inside(folder / n, _MAX_BYTES) for n in names]
        self.digest = hashlib.sha256(b"".join(hashlib.sha256(f).digest() for f in files)).digest()
        self._tokenizer = _tokenizer(files, where)
        self._context = tower.context
        self._end = self._checked_end(tower, where)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """The tokens of texts, int32 [N, context]."""
        tokens_NS = np.full([len(texts), self._context], self._end, np.int32)
        for row, text in zip(tokens_NS, texts, strict=True):
            # One at a time: batches would start threads, of which forks warn ever after.
            ids = self._tokenizer.encode(text).ids
            row[: len(ids)] = ids
        return tokens_NS

    def _checked_end(self, tower: TextTower, where: str) -> int:
        """The token that ends texts."""
        try:
            self._tokenizer.no_padding()
            self._tokenizer.enable_truncation(tower.context)
            empty = self._tokenizer.encode("").ids
        except Exception as error:  # the library raises nothing more specific
            raise ProbexError(f"{where}: cannot make {tower.context} tokens: {error}") from error
        if len(empty) != 2:
            raise ProbexError(
                f"{where}: an empty text becomes {len(empty)} tokens, expected a start and an end"
            )
        if tower.end_token not in (None, empty[1]):
            raise ProbexError(
                f"{where}: texts end with token {empty[1]}, config.json says eos_token_id "
                f"{tower.end_token}"
            )
        greatest = max(self._tokenizer.get_vocab().values())
        if greatest >= tower.vocab_size:
            raise ProbexError(
                f"{where}: has a token {greatest}, config.json says vocab_size {tower.vocab_size}"
            )
        return empty[1]


def _tokenizer(files: Sequence[bytes], where: str) -> Any:
    try:
        import tokenizers
    except ImportError:
        raise ProbexError("CLIP needs tokenizers: pip install tokenizers") from None
    try:
        if len(files) == 1:
            return tokenizers.Tokenizer.from_buffer(files[0])
        return _from_vocabulary(json_object(files[0], where), files[1].decode())
    except ProbexError:
        raise
    except Exception as error:  # the library raises nothing more specific
        raise ProbexError(f"{where}: no tokenizer can be made of it: {error}") from error


def _from_vocabulary(vocab: dict[str, int], merges: str) -> Any:
    """CLIP's tokenizer from the files of its vocabulary."""
    from tokenizers import AddedToken, Regex, Tokenizer, models
    from tokenizers import normalizers as normal
    from tokenizers import pre_tokenizers as pre
    from tokenizers import processors as post

    for token in (_START, _END):
        if token not in vocab:
            raise ValueError(f"no token {token}")
    lines = [
        line for line in merges.split("\n") if line.strip() and not line.startswith("#version")
    ]
    pairs = [(pair[0], pair[2]) for pair in (line.rstrip("\r").partition(" ") for line in lines)]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=pairs, end_of_word_suffix="</w>", unk_token=_END)
    )
    tokenizer.normalizer = normal.Sequence(
        [normal.NFC(), normal.Replace(Regex(r"\s+"), " "), normal.Lowercase()]
    )
    words = pre.Split(Regex(_WORDS), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre.Sequence([words, pre.ByteLevel(add_prefix_space=False)])
    tokenizer.post_processor = post.TemplateProcessing(
        single=f"{_START} $A {_END}",
        special_tokens=[(_START, vocab[_START]), (_END, vocab[_END])],
    )
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in (_START, _END)])
    return tokenizer
