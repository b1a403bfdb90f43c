"""Documents become sequences of tokens, cut within each, whose groups they are."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

import ddm_jax as ddm
from ddm_jax import data, models, tasks
from ddm_jax.data.language import Document, alike, read_documents
from ddm_jax.data.preparation import prepare
from ddm_jax.data.tokens import load_tokenizer
from ddm_jax.run.wording import describe

TEXTS = {"one.txt": "abcdefghij" * 5, "sub/two.txt": "0123456789" * 4, "sub/three.md": "é" * 30}


@pytest.fixture
def folder(tmp_path):
    for name, text in TEXTS.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "x.txt").write_text("hidden")
    (tmp_path / "picture.png").write_bytes(b"no text")
    return tmp_path


def test_sequences_hold_one_document_and_every_group_has_queries(folder):
    split = data.documents(folder, context=8, seed=3)
    assert (split.kind, split.targets) == ("language", "any")
    assert split.groups.names == ("one.txt", "sub/three.md", "sub/two.txt")
    rows = np.concatenate([split.train.x["tokens"], split.test.x["tokens"]])
    assert rows.shape == (7 + 8 + 5, 8)
    letters, digits = set(b"abcdefghij"), set(b"0123456789")
    for row in rows:
        real = set(row[row > 0].tolist())
        assert sum(bool(real & kind) for kind in (letters, digits, set("é".encode()))) == 1
    assert len(split.test.x["tokens"]) == 1 + 2 + 1
    assert split.told[0].startswith("3 documents in 3 groups: 150 tokens in 20 sequences")
    assert describe(split, jax.tree.map(lambda leaf: leaf[0], split.train.x)) == "abcdefgh"
    again = data.documents(folder, context=8, seed=3)
    np.testing.assert_array_equal(split.train_ids, again.train_ids)


def test_the_tail_of_a_document_is_padded_and_its_padding_counts_nothing(folder):
    split = data.documents(folder, context=8)
    both = [np.concatenate([getattr(split, part).x[name] for part in ("train", "test")])
            for name in ("tokens", "mask")]  # fmt: skip
    np.testing.assert_array_equal(both[1][:, 1:], both[0][:, 1:] > 0)
    assert not both[1][:, 0].any()
    assert (both[0] == 0).any()


def test_a_subfolder_can_be_a_source(folder):
    split = data.documents(folder, context=8, group="folder")
    assert split.groups.names == ("one.txt", "sub")


def test_lines_of_json(tmp_path):
    rows = [{"text": "abc" * 9, "by": "ann", "name": "x"}, {"text": "def" * 9, "by": "bob"}]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert [each.group for each in read_documents(path, group="by")] == ["ann", "bob"]
    assert [each.name for each in read_documents(path)] == ["x", "line 2"]
    for line, message in (
        ('{"text": 3}', "must be text"),
        ("[]", "no field 'text'"),
        ("{", "no JSON"),
    ):
        path.write_text(line)
        with pytest.raises(ValueError, match=f"line 1: .*{message}"):
            read_documents(path)
    path.write_text(json.dumps(rows[0]))
    with pytest.raises(ValueError, match="no field 'bye'; did you mean 'by'"):
        read_documents(path, group="bye")


def test_nearly_the_same_documents_are_told():
    words = [f"word{n}" for n in range(60)]
    given = [Document(name, name, " ".join(text)) for name, text in
             (("a", words), ("b", words[:50] + ["new"] * 9), ("c", words[::-1]))]  # fmt: skip
    assert alike(given) == [("a", "b")]
    assert any("nearly the same: a and b" in line for line in data.documents(given).told)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context": 1}, "context=1"),
        ({"context": 500}, "every document has one sequence"),
        ({"test_part": 1.0}, "test_part"),
        ({"most": 1}, "most=1"),
        ({"group": "author"}, "group='author'"),
        ({"tokenizer": "nowhere.json"}, "no such file"),
        ({"source": "nowhere"}, "name a folder of texts"),
        ({"source": [Document("a", "a", "abc")]}, "1 groups"),
        ({"source": [Document("a", "a", "abc"), Document("b", "b", "")]}, "b has 0 tokens"),
    ],
)
def test_what_cannot_be_cut_is_refused(folder, change, message):
    if "tokenizer" in change:
        pytest.importorskip("tokenizers")
    with pytest.raises(ValueError, match=message):
        data.documents(**({"source": folder, "context": 8} | change))


def test_questions_of_ones_own_come_first(folder):
    split = data.documents(folder, context=8, ask=[("abcdefg", "hi"), ("x", "yz")])
    plain = data.documents(folder, context=8)
    assert split.shown_test[:2] == ["abcdefghi", "xyz"]
    assert split.test_ids[:2].tolist() == [-1, -2]
    np.testing.assert_array_equal(split.test_ids[2:], plain.test_ids)
    np.testing.assert_array_equal(split.test.x["tokens"][2:], plain.test.x["tokens"])
    assert split.test.x["mask"][:2].sum(1).tolist() == [2, 2]
    assert bytes(split.test.x["tokens"][0].astype(np.uint8)) == b"bcdefghi"
    one = split._replace(test=plain.test)
    with pytest.raises(ValueError, match="4 queries and the ids of 6"):
        ddm.study(
            tasks.language(lambda rngs: models.GPT(256, context=8, width=8, rngs=rngs), 8), one
        )


ODD = Document("odd", "odd", "x" * 200)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer": 5}, "tokenizer=5; give the path of a tokenizer.json"),
        ({"ask": ("ab", "cd")}, "give ask= pairs of texts"),
        ({"ask": ["ab"]}, "give ask= pairs of texts"),
        ({"ask": [("a", "b", "c")]}, "give ask= pairs of texts"),
        ({"ask": [("a", None)]}, "give ask= pairs of texts"),
        ({"ask": None}, "give ask= pairs of texts"),
        ({"source": [("one", "one", "text"), ODD]}, "is no document; pass language.Document"),
        ({"source": [ODD, ODD._replace(text=3)]}, "is no document; pass language.Document"),
        ({"source": [ODD, Document("b", "b", "\ud800 or so")]}, "b cannot be written as UTF-8"),
        ({"source": [ODD, Document("b", "b", "")]}, "b has 0 tokens; .*leave it out"),
    ],
)
def test_odd_questions_tokenizers_and_documents_are_refused(folder, change, message):
    with pytest.raises(ValueError, match=message):
        data.documents(**{"source": folder, "context": 8} | change)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "null"), (float("nan"), "NaN"), ([1, 2], r"\[1, 2\]"), (True, "true"), ("", '""')],
)
def test_a_line_is_in_a_group_that_has_a_name(tmp_path, value, shown):
    lines = [{"text": "word " * 9, "by": "one"}, {"text": "word " * 9, "by": value}]
    (tmp_path / "own.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    with pytest.raises(ValueError, match=f"line 2: 'by' is {shown}; every document is in a group"):
        read_documents(tmp_path / "own.jsonl", group="by")


def test_every_document_keeps_a_sequence_to_learn_of():
    short = [Document(name, name, name * 40) for name in "ab"]
    split = data.documents(short, context=20, test_part=0.9)
    assert split.groups.sizes().tolist() == [1, 1]


def test_files_that_are_no_documents_are_told(folder):
    split = data.documents(folder, context=8)
    assert split.told[-1] == "  files not used: 1 .png"


def test_documents_of_eight_words_and_what_all_share():
    same = [Document(name, name, "one two three four five six seven eight") for name in "ab"]
    assert alike(same) == [("a", "b")]
    licence = " ".join(f"w{place}" for place in range(30))
    all_with = [
        Document(str(n), str(n), licence + " ".join(f" {n}v{place}" for place in range(60)))
        for n in range(200)
    ]
    assert alike(all_with) == []
    again = [*all_with, Document("again", "again", all_with[150].text)]
    assert alike(again) == [("150", "again")]


def asked_of(split, examples):
    return prepare(split.preparation, examples)


def test_new_queries_are_texts_or_completions(folder):
    split = data.documents(folder, context=8)
    texts = asked_of(split, ["abc", "de"])
    assert texts.x["mask"].sum(1).tolist() == [2, 1]
    assert asked_of(split, "abc").x["tokens"].shape == (1, 8)
    pair = asked_of(split, [("ab", "cd")])
    assert pair.x["mask"][0].tolist() == [0, 0, 1, 1, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        (("ab", "cd"), r"\('ab', 'cd'\) may be texts, or a prompt .*: pass a list"),
        (["a"], "'a' has 1 tokens; a sequence has 2 to 8.*add some text before it"),
        (["ab", "x" * 9], "has 9 tokens.*cut it"),
        ([""], "'' has 0 tokens"),
        ([("ab", "")], "no pair of texts; pass a list of texts, or of pairs of texts"),
        (["ab", ("ab", "cd")], "'ab' is no pair of texts; pass a list of texts"),
        ([b"ab"], "b'ab' is no pair of texts"),
        ({"text": "ab"}, "queries are a dict; pass a list of texts"),
        (None, "queries are a NoneType"),
        (5, "queries are a int"),
        ([], "no queries; pass a list of texts"),
        (["\ud800x"], "cannot be written as UTF-8"),
        ([("\ud800x", "ab")], "cannot be written as UTF-8"),
    ],
)
def test_new_queries_that_are_neither_are_refused(folder, examples, message):
    with pytest.raises(ValueError, match=message):
        asked_of(data.documents(folder, context=8), examples)


def test_what_a_long_prompt_loses_is_told(folder):
    ask = [("one two three", "four")]
    split = data.documents(folder, context=8, ask=ask)
    told = "the first 9 of 13 tokens of the prompt are left out, a sequence has 8"
    assert any(told in each for each in split.told)
    with pytest.warns(UserWarning, match=told) as found:
        asked_of(split, ask)
    assert len(found) == 1


def test_a_folder_that_is_not_there_is_told_with_where_it_was_looked_for(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"corpus is not there, looked for from {tmp_path}"):
        data.documents("corpus/", context=8)


def test_a_tokenizer_that_cuts_and_pads_does_neither_here(tmp_path):
    """Of 800 tokens 40 were left, and of a padded prompt nothing."""
    pytest.importorskip("tokenizers")
    written = {
        "version": "1.0",
        "truncation": {
            "direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0
        },
        "padding": {
            "strategy": {"Fixed": 5}, "direction": "Right", "pad_to_multiple_of": None,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "a",
        },
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "c": 2}, "unk_token": "a"},
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(written))
    encode = load_tokenizer(tmp_path).encode
    assert encode("b c b c b") == [1, 2, 1, 2, 1]
    assert encode("b") == [1]
