"""Documents for a language model: sequences of tokens, cut within each, whose groups they are."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddm_jax.checks import check_integer, check_number
from ddm_jax.data.examples import close_to, read_lines, read_text
from ddm_jax.data.split import Preparation, Split, Tokenizer, given_split
from ddm_jax.data.tokens import as_tokenizer, check_pairs, completions_of, encoded
from ddm_jax.tasks.language import sequences
from ddm_jax.types import Batch, Groups, take

ENDINGS = (".txt", ".md", ".py", ".c", ".h", ".rst", ".html", ".tex", ".csv", ".json")
CORPUS = Path(__file__).with_name("corpus") / "texts"  # see SOURCES.md beside it
SHINGLE, ALIKE = 8, 0.5  # words in a row, and the part of them that documents share
MOST_HOLDING = 20  # documents that a run of words is compared with: a licence is in all


class Document(NamedTuple):
    """A text, and the group that it is in."""

    name: str
    group: str
    text: str


def read_documents(path: str | Path, *, group: str | None = None) -> list[Document]:
    """Read the documents of a folder or of lines of JSON.

    In a folder each file is a document and a group of its own; where files lie in subfolders, and
    `group="folder"`, a subfolder is a group, a source. A line of JSON is `{"text": ...}`, whose
    group is its field `group` where one is named, else its `name`, else its number.

    Raises:
        ValueError: for a path that is none of these, a file that is no UTF-8 text, or a line
            without these fields.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return _of_folder(path, group)
    if path.suffix.lower() != ".jsonl" or not path.is_file():
        there = "" if path.exists() else f" is not there, looked for from {Path.cwd()}"
        raise ValueError(
            f"{path}{there}: name a folder of texts, or a file of lines of JSON (.jsonl)"
        )
    found = []
    for number, row in read_lines(path):
        where = f"{path}, line {number}"
        for name in ("text", *((group,) if group else ())):
            if not isinstance(row, dict) or name not in row:
                fields = row if isinstance(row, dict) else ()
                raise ValueError(f"{where}: no field {name!r}; {close_to(name, fields)}")
        if not isinstance(row["text"], str):
            raise ValueError(f"{where}: 'text' is a {type(row['text']).__name__}; it must be text")
        name = _name_of(row, "name", where) if "name" in row else f"line {number}"
        found.append(Document(name, _name_of(row, group, where) if group else name, row["text"]))
    return found


def _name_of(row: dict[str, Any], field: str, where: str) -> str:
    value = row[field]
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise ValueError(
            f"{where}: {field!r} is {json.dumps(value)[:60]}; every document is in a group: give "
            "a name or a whole number, or leave the line out"
        )
    return str(value)


def _of_folder(path: Path, group: str | None) -> list[Document]:
    if group not in (None, "folder"):
        raise ValueError(f"group={group!r}; of a folder None (a file is a group) or 'folder'")
    files = sorted(each for each in _shown(path) if each.suffix.lower() in ENDINGS)
    if not files:
        raise ValueError(f"{path} has no {', '.join(ENDINGS)} files")
    found = []
    for each in files:
        name = each.relative_to(path).as_posix()
        source = each.relative_to(path).parts[0] if each.parent != path else name
        found.append(Document(name, source if group == "folder" else name, read_text(each)))
    return found


def _shown(path: Path) -> list[Path]:
    """The files in a folder and its folders, but for what is hidden."""
    found = (each for each in path.rglob("*") if each.is_file())
    return [
        each
        for each in found
        if not any(part.startswith(".") for part in each.relative_to(path).parts)
    ]


def _not_used(path: Path) -> tuple[str, ...]:
    """A line about the files of a folder that are no documents."""
    left = Counter(each.suffix.lower() or "without an ending" for each in _shown(path))
    said = ", ".join(f"{count} {end}" for end, count in sorted(left.items()) if end not in ENDINGS)
    return (f"  files not used: {said}",) if said else ()


def documents(
    source: str | Path | Sequence[Document],
    *,
    context: int = 64,
    group: str | None = None,
    tokenizer: Tokenizer | str | Path | None = None,
    test_part: float = 0.2,
    most: int | None = None,
    ask: Sequence[tuple[str, str]] = (),
    seed: int = 0,
) -> Split:
    """Documents as a `Split` of sequences for `ddm.tasks.language`.

    Each document is cut into sequences of at most `context` tokens, none of which holds two
    documents. A part of each document's sequences become queries, so that every group has some;
    at least one of each is for training.

    Args:
        source: what `read_documents` takes, or documents.
        context: L.
        group: as of `read_documents`.
        tokenizer: None for UTF-8 bytes, or a tokenizer.json, or a folder that has one.
        test_part: the part of the sequences of each document that become queries, in (0, 1).
        most: sequences of a document that are taken, drawn at random; None takes all.
        ask: pairs (prompt, continuation) of texts; how likely each continuation is after its
            prompt are the first queries, before the sequences that are held out.

    Raises:
        ValueError: for fewer than two groups, a document of fewer than two tokens, what is no
            tokenizer or no pair of texts, or as `read_documents`.
    """
    check_integer("context", context, 2)
    check_number("test_part", test_part, above=0, below=1)
    check_integer("seed", seed, 0)
    if most is not None:
        check_integer("most", most, 2)
    ask = check_pairs(ask)
    given = read_documents(source, group=group) if isinstance(source, str | Path) else list(source)
    for document in given:
        if not isinstance(document, Document) or not all(isinstance(x, str) for x in document):
            raise ValueError(
                f"{repr(document)[:60]} is no document; pass language.Document(name, group, text)"
            )
    tokens = as_tokenizer(tokenizer)
    names = list(dict.fromkeys(document.group for document in given))
    if len(names) < 2:
        raise ValueError(f"{len(names)} groups of documents; at least 2 are needed")
    draw = np.random.default_rng(seed)
    rows: list[list[int]] = []
    owner: list[int] = []
    held: list[bool] = []
    for document in given:
        ids = encoded(tokens, document.text, document.name)
        cut = [ids[start : start + context] for start in range(0, len(ids), context)]
        cut = [each for each in cut if len(each) > 1]
        if not cut:
            raise ValueError(
                f"{document.name} has {len(ids)} tokens; a document needs two or more: leave it out"
            )
        if most is not None and len(cut) > most:
            cut = [cut[place] for place in np.sort(draw.choice(len(cut), most, replace=False))]
        test = np.zeros(len(cut), bool)
        if len(cut) > 1:
            count = min(max(round(test_part * len(cut)), 1), len(cut) - 1)
            test[draw.choice(len(cut), count, replace=False)] = True
        rows += cut
        owner += [names.index(document.group)] * len(cut)
        held += test.tolist()
    batch = sequences(rows, context, tokens.vocabulary)
    test = np.asarray(held)
    if not test.any():
        raise ValueError(
            f"every document has one sequence of context={context}; lower it, so that some can be "
            "queries"
        )
    parts = [np.flatnonzero(~test), np.flatnonzero(test)]
    shown = [tokens.decode(row) for row in rows]
    queries = take(batch, parts[1])
    short: list[str] = []
    if ask:
        asked, short = completions_of(ask, tokens, context)
        queries = Batch(
            {name: np.concatenate([asked.x[name], leaf]) for name, leaf in queries.x.items()}, None
        )
    told = (
        f"{len(given)} documents in {len(names)} groups: {sum(map(len, rows)):,} tokens in "
        f"{len(rows):,} sequences of at most {context}",
        *(f"  nearly the same: {one} and {other}" for one, other in alike(given)),
        *(f"  {each}" for each in short),
        *(_not_used(Path(source)) if isinstance(source, str | Path) else ()),
    )
    split = given_split(take(batch, parts[0]), queries, targets="any")
    return split._replace(
        name=str(source) if isinstance(source, str | Path) else "your documents",
        kind="language",
        train_ids=parts[0],
        test_ids=np.concatenate([-1 - np.arange(len(ask)), parts[1]]),
        shown_train=[shown[row] for row in parts[0]],
        shown_test=[*("".join(each) for each in ask), *(shown[row] for row in parts[1])],
        groups=Groups(np.asarray(owner, np.int32)[parts[0]], len(names), tuple(names)),
        told=told,
        tokenizer=tokens,
        preparation=None if tokens.written is None else _preparation(context, tokens.written),
    )


def _preparation(context: int, written: str) -> Preparation:
    return Preparation("language", "any", [], [context], [], 0, [], [], None, None, written)


def alike(given: Sequence[Document]) -> list[tuple[str, str]]:
    """Pairs of documents that share half of their runs of eight words, by name."""
    holding: dict[tuple[str, ...], list[int]] = {}
    sizes: list[int] = []
    shared: Counter[tuple[int, int]] = Counter()
    for place, document in enumerate(given):
        words = document.text.split()
        ends = range(SHINGLE, len(words) + 1)
        runs = {tuple(words[end - SHINGLE : end]) for end in ends}
        for run in runs:
            before = holding.setdefault(run, [])
            shared.update((other, place) for other in before)
            if len(before) < MOST_HOLDING:
                before.append(place)
        sizes.append(len(runs))
    return [
        (given[one].name, given[other].name)
        for (one, other), count in sorted(shared.items())
        if count > ALIKE * min(sizes[one], sizes[other])
    ]


def some_of_documents(
    split: Split, draw: np.random.Generator, train_size: int | None, test_size: int | None
) -> Split:
    """Some of the sequences, in their order; at least one training sequence of each group.

    Raises:
        ValueError: for more sequences than there are, or fewer of the training part than groups.
    """
    groups: Any = split.groups
    ids, count = np.asarray(groups.ids), groups.count
    mixed = draw.permutation(len(ids))
    first = np.unique(ids[mixed], return_index=True)[1]
    mixed = np.concatenate([mixed[first], np.delete(mixed, first)])
    rows = _first("train_size", train_size, mixed, count)
    queries = _first("test_size", test_size, draw.permutation(len(split.test_ids)), 1)
    return split._replace(
        train=take(split.train, rows),
        test=take(split.test, queries),
        train_ids=split.train_ids[rows],
        test_ids=split.test_ids[queries],
        flipped=split.flipped[rows],
        shown_train=[split.shown_train[row] for row in rows],
        shown_test=[split.shown_test[row] for row in queries],
        groups=Groups(ids[rows], count, groups.names),
    )


def _first(name: str, size: int | None, mixed: np.ndarray, least: int) -> np.ndarray:
    """The first of some rows, in their order."""
    size = len(mixed) if size is None else size
    if not least <= size <= len(mixed):
        each = f" in {least} groups, and each needs one" if least > 1 else ""
        raise ValueError(f"{name}={size}; the documents have {len(mixed)} such sequences{each}")
    return np.sort(mixed[:size])
