"""Causal language modelling: the task, its queries, and the GPT."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ddm_jax as ddm
from ddm_jax import models, tasks
from ddm_jax.objectives import over_sets

GOLDEN = Path(__file__).parent / "golden"
SIZES = {"context": 8, "width": 8, "depth": 2, "heads": 2}


def gpt(**changes):
    return models.GPT(11, **SIZES | changes, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def task():
    return tasks.language(gpt(), 8)


@pytest.fixture(scope="module")
def params(task):
    return task.init(jax.random.key(0))


ROWS = [[1, 2, 3, 4, 5], [7, 8, 9], [3]]


def test_the_loss_by_hand(task, params):
    batch = tasks.sequences(ROWS, 8, 11)
    np.testing.assert_array_equal(batch.x["mask"].sum(1), [4, 2, 0])
    logits = ddm.merge(gpt(), params)(jnp.asarray(batch.x["tokens"]))
    chances = np.asarray(jax.nn.log_softmax(logits), np.float64)
    for row, tokens in enumerate(ROWS):
        likelihood = sum(chances[row, t - 1, tokens[t]] for t in range(1, len(tokens)))
        np.testing.assert_allclose(task.loss(params, batch)[row], -likelihood / 7, rtol=1e-5)
        np.testing.assert_allclose(task.output(params, batch)[row], likelihood, rtol=1e-5)


def test_padding_never_counts(task, params):
    batch = tasks.sequences(ROWS, 8, 11)
    other = jax.tree.map(np.copy, batch)
    other.x["tokens"][np.arange(8) >= np.array([[5], [3], [1]])] = 10
    np.testing.assert_array_equal(task.loss(params, batch), task.loss(params, other))
    assert task.loss(params, batch)[2] == 0
    gradient = jax.grad(lambda p: task.loss(p, jax.tree.map(lambda x: x[2:], batch)).sum())(params)
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(gradient))


def test_what_comes_later_changes_nothing_before():
    model = gpt()
    tokens = jnp.asarray([[1, 2, 3, 4, 5, 6, 7, 8]])
    first, second = model(tokens), model(tokens.at[0, 5:].set(0))
    np.testing.assert_allclose(first[0, :5], second[0, :5], atol=1e-6)
    assert np.abs(first[0, 5:] - second[0, 5:]).max() > 1e-4


def test_a_query_that_there_is_not():
    with pytest.raises(ValueError, match="row=9"):
        tasks.each_token(tasks.sequences(ROWS, 8, 11), 9)


def test_completions_and_single_tokens_add_up(task, params):
    query = tasks.completions([[1, 2, 3]], [[4, 5]], 8, 11)
    np.testing.assert_array_equal(query.x["mask"][0], [0, 0, 0, 1, 1, 0, 0, 0])
    whole = tasks.sequences([[1, 2, 3, 4, 5], [1, 2, 3]], 8, 11)
    outputs = task.output(params, whole)
    np.testing.assert_allclose(task.output(params, query)[0], outputs[0] - outputs[1], rtol=1e-4)
    tokens, places = tasks.each_token(whole)
    np.testing.assert_array_equal(places, [1, 2, 3, 4])
    np.testing.assert_allclose(task.output(params, tokens).sum(), outputs[0], rtol=1e-5)
    short = tasks.completions([list(range(10))], [[4, 5]], 8, 11)
    np.testing.assert_array_equal(short.x["tokens"][0], [4, 5, 6, 7, 8, 9, 4, 5])


def test_the_difference_of_two_continuations(task, params):
    query = tasks.completions([[1, 2], [1, 2]], [[3], [4]], 8, 11)
    apart = task._replace(output=over_sets(task.output, [[1, -1]]), of_sets=True)
    outputs = task.output(params, query)
    np.testing.assert_allclose(apart.output(params, query)[0], outputs[0] - outputs[1], atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tasks.sequences([[1, 11]], 8, 11), r"token 11; it must be in 0\.\.10"),
        (lambda: tasks.sequences([[]], 8, 11), "one to 8 tokens"),
        (lambda: tasks.sequences([[1] * 9], 8, 11), "one to 8 tokens"),
        (lambda: tasks.sequences([[0.5, 1]], 8, 11), "tokens are integers"),
        (lambda: tasks.completions([[1]], [], 8, 11), "1 prompts and 0"),
        (lambda: tasks.completions([[1]], [[1] * 8], 8, 11), "a place before"),
        (lambda: tasks.completions([[]], [[1]], 8, 11), "both need some"),
        (lambda: tasks.language(gpt(), 1), "context=1"),
        (lambda: tasks.language(gpt(), 9), "9 tokens, and the model's context 8"),
        (lambda: tasks.language(nnx.Embed(5, 3, rngs=nnx.Rngs(0)).attend, 8), "no module"),
        (lambda: gpt(heads=3), "heads=3 do not divide width=8"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_token_without_a_logit_is_nan_and_no_other_token(task, params):
    batch = tasks.sequences([[1, 2, 12]], 8, 13)
    assert np.isnan(jax.jit(task.loss)(params, batch)).all()
    with pytest.raises(ValueError, match=r"sequence 0 has token 12, and the model knows 0\.\.10"):
        task.loss(params, batch)
    with pytest.raises(ValueError, match="masks hold -1"):
        task.loss(
            params, ddm.Batch({"tokens": np.ones((1, 8), int), "mask": -np.ones((1, 8))}, None)
        )


def test_tokens_that_are_drawn_have_the_curvature_for_their_second_moment(task, params):
    """`E[(g v)^2]` of drawn tokens is `v G v`, G the Gauss-Newton matrix of the loss."""
    batch = tasks.sequences(ROWS, 8, 11)
    batch.x["mask"][0, :3] = 0, 0, 0.5  # a prompt, and a token that counts by half
    ways = jax.tree.map(
        lambda leaf: jax.random.normal(jax.random.key(leaf.size), leaf.shape), params
    )
    logits, moved = jax.jvp(lambda p: task.apply(p, batch.x), (params,), (ways,))
    chances, moved = jax.nn.softmax(logits)[:, :-1], moved[:, :-1]
    spread = (chances * moved**2).sum(-1) - (chances * moved).sum(-1) ** 2
    curvature = (batch.x["mask"][:, 1:] * spread).sum(1) / 7

    @jax.vmap
    def slopes(key):
        drawn = task.draw(params, batch, key)
        return jax.jvp(lambda p: task.loss(p, drawn), (params,), (ways,))[1]

    found = jax.jit(slopes)(jax.random.split(jax.random.key(5), 4000))
    np.testing.assert_allclose((found**2).mean(0), curvature, rtol=0.08)
    assert found[0, 2] == 0 == curvature[2]
    drawn = task.draw(params, batch, jax.random.key(0))
    np.testing.assert_array_equal(drawn.y[:, 0], batch.x["tokens"][:, 0])
    assert ((drawn.y >= 0) & (drawn.y < 11)).all()


def test_targets_in_place_of_the_tokens(task, params):
    batch = tasks.sequences(ROWS, 8, 11)
    own = batch._replace(y=batch.x["tokens"])
    np.testing.assert_array_equal(task.loss(params, batch), task.loss(params, own))
    other = batch._replace(y=(batch.x["tokens"] + 1) % 11)
    assert not np.allclose(task.loss(params, batch), task.loss(params, other))
    for wrong in (np.zeros(3, int), np.zeros((3, 8))):
        with pytest.raises(ValueError, match="targets are its own tokens, so y is None"):
            task.loss(params, batch._replace(y=wrong))


def test_adapters_alone_learn_and_begin_at_nothing():
    plain, adapted = gpt(), gpt(lora=2)
    tokens = jnp.asarray([[1, 2, 3]])
    learns = tasks.language(adapted, 8, trainable=nnx.LoRAParam)
    start = learns.init(jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(start)) == 2 * 2 * (8 + 24 + 8 + 8)
    moved = jax.tree.map(lambda leaf: leaf + 0.5, start)
    batch = tasks.sequences([[1, 2, 3]], 8, 11)
    assert not np.allclose(learns.loss(start, batch), learns.loss(moved, batch))
    assert plain(tokens).shape == adapted(tokens).shape == (1, 3, 11)


@pytest.mark.slow
def test_documents_are_attributed_by_the_whole_method():
    """Documents of one habit each: without its own, a document's sentence is less likely."""
    draw = np.random.default_rng(0)
    document = np.repeat(np.arange(4), 12)
    rows = [[(start + step * (own + 1)) % 11 for step in range(8)]
            for own, start in zip(document, draw.integers(0, 11, 48), strict=True)]  # fmt: skip
    data, query = tasks.sequences(rows, 8, 11), tasks.sequences(rows[::12], 8, 11)
    task = tasks.language(lambda rngs: models.GPT(11, **SIZES, rngs=rngs), 8)
    train = ddm.make_train(task, steps=120, batch_size=16, optimizer="adamw", learning_rate=0.01,
                           checkpoint_every=20)  # fmt: skip
    run = jax.jit(train)(jax.random.key(0), data, jnp.ones(48))
    estimator = ddm.make_ddm(task, ddm.DistillSettings(items=10, steps=0), ddm.UpdateSettings(
        steps=60, rewind=0.5))  # fmt: skip
    state = estimator.fit(jax.random.key(1), run, data, ddm.as_groups(document))
    scores = np.asarray(estimator.score(state, query))
    np.testing.assert_array_equal(scores.argmax(0), np.arange(4))
    for make in (ddm.estimators.make_ekfac, ddm.estimators.make_source):
        state = make(task).fit(jax.random.key(1), run, data, ddm.as_groups(document))
        found = np.asarray(make(task).score(state, query))
        np.testing.assert_array_equal(found.argmax(0), np.arange(4))


@pytest.mark.slow
def test_a_gpt2_of_another_library():
    """Logits of a random GPT-2 by transformers, see golden/by_transformers.py."""
    pytest.importorskip("safetensors")
    for name in ("gpt2", "gpt2-untied"):
        folder = GOLDEN / name
        with np.load(folder / "logits.npz", allow_pickle=False) as kept:
            tokens, logits = kept["tokens"], kept["logits"]
        found = models.load_gpt2(folder)(jnp.asarray(tokens))
        np.testing.assert_allclose(found, logits, atol=1e-4)
        with_adapters = models.load_gpt2(folder, lora=2)(jnp.asarray(tokens))
        np.testing.assert_allclose(with_adapters, logits, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "holds a 'llama'"),
        ({"activation_function": "relu"}, "activation_function='relu'"),
        ({"n_embd": 12, "n_head": 2}, "config.json says"),
        ({"n_layer": 5}, r"has no h\.2\.ln_1"),
        ({"n_layer": 1}, "has layers beyond the 1 of"),
        ({"n_embd": None}, "n_embd of .*None; it must be a whole number"),
        ({"layer_norm_epsilon": "small"}, "layer_norm_epsilon of .*small"),
        (None, "has no model.safetensors"),
    ],
)
def test_another_model_is_refused(tmp_path, change, message):
    pytest.importorskip("safetensors")
    told = json.loads((GOLDEN / "gpt2" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(told | (change or {})))
    if change is not None:
        weights = (GOLDEN / "gpt2" / "model.safetensors").read_bytes()
        (tmp_path / "model.safetensors").write_bytes(weights)
    with pytest.raises(ValueError, match=message):
        models.load_gpt2(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"model_type": "gpt2",', "is no JSON"),
        (b"[1]", "holds a list"),
        (b"\xff{}", "is no JSON"),
    ],
)
def test_a_broken_configuration_is_told(tmp_path, content, message):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        models.load_gpt2(tmp_path)


def test_broken_weights_are_told(tmp_path):
    models.save_gpt2(gpt(), tmp_path)
    whole = (tmp_path / "model.npz").read_bytes()
    (tmp_path / "model.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"model.npz cannot be read"):
        models.load_gpt2(tmp_path)
    (tmp_path / "model.npz").write_bytes(whole)
    (tmp_path / "model.safetensors").write_bytes(b"newer")
    with pytest.raises(ValueError, match="remove the one that is out of date"):
        models.load_gpt2(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    for change, message in (
        (lambda leaf: leaf * np.nan, "not finite"),
        (lambda leaf: leaf.astype(str), "holds <U"),
        (lambda leaf: leaf + 1j, "holds complex"),
    ):
        with np.load(tmp_path / "model.npz") as kept:
            arrays = dict(kept)
        arrays["wte.weight"] = change(arrays["wte.weight"])
        (tmp_path / "other").mkdir(exist_ok=True)
        (tmp_path / "other" / "config.json").write_bytes((tmp_path / "config.json").read_bytes())
        np.savez(tmp_path / "other" / "model.npz", **arrays)
        with pytest.raises(ValueError, match=message):
            models.load_gpt2(tmp_path / "other")


def test_parameters_that_are_not_the_models_are_not_saved(tmp_path):
    model = gpt()
    params = tasks.language(model, 8).init(jax.random.key(1))
    for wrong in ({}, jax.tree.map(lambda leaf: leaf[None], params)):
        with pytest.raises(ValueError, match="params"):
            models.save_gpt2(model, tmp_path / "wrong", wrong)
    with pytest.raises(ValueError, match="not finite everywhere"):
        models.save_gpt2(model, tmp_path, jax.tree.map(lambda leaf: leaf + 1e6, params), half=True)
    short = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    models.save_gpt2(model, tmp_path, short)
    np.testing.assert_array_equal(
        models.load_gpt2(tmp_path).tokens.embedding[...],
        short["tokens"]["embedding"].astype(jnp.float32),
    )


@pytest.mark.parametrize("tied", [True, False])
def test_a_gpt_that_was_saved_is_read_again(tmp_path, tied):
    model = gpt(tied=tied)
    moved = jax.tree.map(lambda leaf: leaf + 0.1, tasks.language(model, 8).init(jax.random.key(1)))
    models.save_gpt2(model, tmp_path, moved)
    found, tokens = models.load_gpt2(tmp_path), jnp.asarray([[1, 2, 3]])
    expected = ddm.merge(model, moved)(tokens)
    np.testing.assert_array_equal(found(tokens), expected)
    assert not np.allclose(expected, model(tokens))
    (tmp_path / "model.npz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"model.npz cannot be read"):
        models.load_gpt2(tmp_path)
    with pytest.raises(ValueError, match="adapters"):
        models.save_gpt2(gpt(lora=2), tmp_path)


@pytest.mark.slow
def test_the_likeliest_tokens_one_by_one(task, params):
    said, tokens = tasks.make_generate(task, 9, context=8)(params, [1, 2]), [1, 2]
    for _ in range(9):  # past the context, of which the last eight tokens are seen
        seen = jnp.asarray([tokens[-8:]])
        tokens.append(int(ddm.merge(gpt(), params)(seen)[0, -1].argmax()))
    assert said == tokens[2:]
    draw = tasks.make_generate(task, 30, context=8, temperature=1.0)
    drawn = [draw(params, [1], jax.random.key(seed)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) > 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": -1.0}, "temperature=-1"),
        ({"count": 0}, "count=0"),
        ({"temperature": 1e-45}, "or 0.001 on"),
        ({"task": ddm.classification(models.MLP(3), (2,))}, "no language model's"),
        ({"task": ddm.classification(models.MLP(3), (2,))._replace(apply=None)}, "no language"),
    ],
)
def test_what_cannot_go_on_is_refused(task, params, change, message):
    asked = {"task": task, "count": 2, "context": 8} | change
    with pytest.raises(ValueError, match=message):
        tasks.make_generate(**asked)
    with pytest.raises(ValueError, match="prompt is empty"):
        tasks.make_generate(task, 2, context=8)(params, [])
    draw = tasks.make_generate(task, 2, context=8, temperature=0.5)
    for key in (None, 3):
        with pytest.raises(ValueError, match="draws tokens; pass a"):
            draw(params, [1], key)
    for odd in ([99, 2], [-1, 2], [1.7], "ab"):
        with pytest.raises(ValueError, match=r"whole numbers in 0\.\.10"):
            tasks.make_generate(task, 2, context=8)(params, odd)
