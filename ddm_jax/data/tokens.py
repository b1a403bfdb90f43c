"""Texts become tokens: tokenizers, and the questions to a language model that are texts."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ddm_jax.checks import require_extra
from ddm_jax.data.examples import read_text
from ddm_jax.data.split import BYTES, Preparation, Tokenizer
from ddm_jax.tasks.language import completions, sequences
from ddm_jax.types import Batch


def _of_bytes(tokens: Sequence[int]) -> str:
    return bytes(int(each) for each in tokens).decode("utf-8", "replace")


BYTE_TOKENS = Tokenizer(lambda text: list(text.encode()), _of_bytes, 256, BYTES)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Read a tokenizer.json, as Hugging Face's tokenizers write it.

    Raises:
        ValueError: for a file that is none, or without the package tokenizers.
    """
    require_extra("tokenizers", "language", "tokenizer.json")
    path = Path(path) / "tokenizer.json" if Path(path).is_dir() else Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; name a tokenizer.json, or a folder that has one")
    return written_tokenizer(read_text(path), str(path))


def written_tokenizer(written: str, where: str) -> Tokenizer:
    """The tokenizer of what is written in a tokenizer.json, or of bytes.

    Raises:
        ValueError: as `load_tokenizer`.
    """
    if written == BYTES:
        return BYTE_TOKENS
    tokenizers = require_extra("tokenizers", "language", "tokenizer.json")
    try:
        made: Any = tokenizers.Tokenizer.from_str(written)
    except Exception as error:  # of no class of its own
        raise ValueError(f"{where} cannot be read as a tokenizer: {error}") from error
    made.no_truncation()  # of sequences as they were trained on, which are cut here
    made.no_padding()
    return Tokenizer(
        lambda text: made.encode(text, add_special_tokens=False).ids,
        lambda tokens: made.decode([int(each) for each in tokens], skip_special_tokens=False),
        made.get_vocab_size(),
        written,
    )


def as_tokenizer(given: Any) -> Tokenizer:
    """The tokenizer that was given, or is at a path; of bytes where there is none.

    Raises:
        ValueError: for anything else.
    """
    if given is None or isinstance(given, Tokenizer):
        return BYTE_TOKENS if given is None else given
    if isinstance(given, str | Path):
        return load_tokenizer(given)
    raise ValueError(
        f"tokenizer={given!r}; give the path of a tokenizer.json, a data.split.Tokenizer(encode, "
        "decode, vocabulary), or None for bytes"
    )


def encoded(tokens: Tokenizer, text: str, what: str = "") -> list[int]:
    """A text as tokens.

    Raises:
        ValueError: for what cannot be written as UTF-8, such as half of a pair of surrogates.
    """
    try:
        return list(tokens.encode(text))
    except UnicodeEncodeError as error:
        said = what or f"{text[:40]!r}"
        raise ValueError(f"{said} cannot be written as UTF-8: {error.reason}") from error


PAIRS = "give ask= pairs of texts, [(prompt, continuation), ...]"


def check_pairs(ask: Any, mend: str = PAIRS) -> list[tuple[str, str]]:
    """Questions, each a prompt and its continuation.

    Raises:
        ValueError: for what is no pair of texts, with how to mend it.
    """
    listed = ask if isinstance(ask, list | tuple) else [ask]
    for each in listed:
        pair = isinstance(each, list | tuple) and len(each) == 2
        if not pair or not all(isinstance(part, str) and part for part in each):
            said = " ".join(repr(each).split())
            raise ValueError(f"{said[:60]} is no pair of texts; {mend}")
    return [tuple(each) for each in listed]


def completions_of(
    pairs: Sequence[tuple[str, str]], tokens: Tokenizer, context: int
) -> tuple[Batch, list[str]]:
    """Completions of prompts, and what is left out of these, in words."""
    prompts, ends = ([encoded(tokens, each[side]) for each in pairs] for side in (0, 1))
    told = [
        f"after {pair[0][-40:]!r}: the first {over} of {len(prompt)} tokens of the prompt are left "
        f"out, a sequence has {context}"
        for pair, prompt, end in zip(pairs, prompts, ends, strict=True)
        if 0 < (over := len(prompt) + len(end) - context) < len(prompt)
    ]
    return completions(prompts, ends, context, tokens.vocabulary), told


def prepared_documents(by: Preparation, examples: Any) -> Batch:
    """New queries of a language model, by how its documents became tokens.

    Args:
        examples: texts, of which every token counts, or pairs (prompt, continuation), of which the
            continuation does.

    Raises:
        ValueError: for what is neither, or a text that is longer than the context.
    """
    context, tokens = by.shape[0], written_tokenizer(by.tokenizer or BYTES, "the tokenizer")
    if isinstance(examples, tuple) and examples and all(isinstance(x, str) for x in examples):
        raise ValueError(
            f"{examples!r:.60} may be texts, or a prompt and its continuation: pass a list of "
            "texts, or [(prompt, continuation)]"
        )
    listed = [examples] if isinstance(examples, str) else examples
    if not isinstance(listed, list | tuple) or not listed:
        kind = type(examples).__name__
        raise ValueError(
            f"{'no queries' if listed == [] or listed == () else f'queries are a {kind}'}; pass a "
            "list of texts, or of pairs (prompt, continuation)"
        )
    if all(isinstance(each, str) for each in listed):
        rows = [encoded(tokens, each) for each in listed]
        for text, row in zip(listed, rows, strict=True):
            if not 1 < len(row) <= context:
                mend = "add some text before it" if len(row) < 2 else "cut it"
                raise ValueError(
                    f"{text[:40]!r} has {len(row)} tokens; a sequence has 2 to {context}, of which "
                    f"nothing asks for the first: {mend}, or ask for a completion, (prompt, "
                    "continuation)"
                )
        return sequences(rows, context, tokens.vocabulary)
    mend = "pass a list of texts, or of pairs of texts, (prompt, continuation)"
    made, told = completions_of(check_pairs(listed, mend), tokens, context)
    for each in told:
        warnings.warn(each, stacklevel=4)  # who asked the card
    return made
