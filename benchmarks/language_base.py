"""The network that `ddm run language` fine-tunes, trained on other text than its documents.

    python benchmarks/language_base.py --plays input.txt --output ddm_jax/models/base

The text is what `ddm_jax/data/corpus/SOURCES.md` names, without the corpus: of the plays all that
is more than 2,000 characters away from a passage of it, of Python's reference and standard library
the topics and modules that it does not have. It takes some ten minutes on two cores.
"""

import argparse
import pydoc_data.topics
import sysconfig
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import ddm_jax as ddm
from ddm_jax import models, tasks
from ddm_jax.data.language import CORPUS
from ddm_jax.data.tokens import BYTE_TOKENS
from ddm_jax.train import cosine_schedule

CONTEXT, WIDTH, DEPTH, HEADS = 64, 48, 2, 4
APART = 2000  # characters
MOST = 20_000  # of a module, so that none is most of the text


def other_text(plays: str) -> list[str]:
    """What the corpus does not have."""
    texts, at = [], 0
    passages = sorted(plays.index(path.read_text()) for path in (CORPUS / "plays").glob("*.txt"))
    for begin in passages:
        texts.append(plays[at : max(begin - APART, at)])
        at = begin + APART + 2400
    texts.append(plays[at:])
    topics = {path.stem for path in (CORPUS / "reference").glob("*.txt")}
    # The long pages on compound and simple statements hold the topics of the corpus once more.
    topics |= {"compound", "import", "try", "with", "raise", "calls", "function", "assert"}
    texts += [text for name, text in sorted(pydoc_data.topics.topics.items()) if name not in topics]
    modules = {path.name.removesuffix(".txt") for path in (CORPUS / "programs").glob("*.txt")}
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.glob("*.py")):
        if path.name not in modules:
            texts.append(path.read_text(encoding="utf-8", errors="replace")[:MOST])
    return texts


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plays", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    rows = []
    for text in other_text(asked.plays.read_text()):
        tokens = BYTE_TOKENS.encode(text)
        rows += [tokens[at : at + CONTEXT] for at in range(0, len(tokens) - 1, CONTEXT)]
    rows = [row for row in rows if len(row) > 1]
    order = np.random.default_rng(asked.seed).permutation(len(rows))
    batch = tasks.sequences([rows[place] for place in order], CONTEXT, BYTE_TOKENS.vocabulary)
    held = 500
    kept = jax.tree.map(lambda leaf: jnp.asarray(leaf[:held]), batch)
    batch = jax.tree.map(lambda leaf: jnp.asarray(leaf[held:]), batch)
    count = len(rows) - held
    print(f"{count:,} sequences of {CONTEXT} bytes")

    def make(rngs: nnx.Rngs) -> models.GPT:
        return models.GPT(
            BYTE_TOKENS.vocabulary,
            context=CONTEXT,
            width=WIDTH,
            depth=DEPTH,
            heads=HEADS,
            rngs=rngs,
        )

    task = tasks.language(make, CONTEXT)
    train = ddm.make_train(
        task,
        steps=asked.steps,
        batch_size=64,
        optimizer="adamw",
        learning_rate=cosine_schedule(4e-3, asked.steps, 1e-5, asked.steps // 20),
        weight_decay=0.01,
        checkpoint_every=asked.steps // 2,
    )
    begin = time.perf_counter()
    run = jax.block_until_ready(jax.jit(train)(jax.random.key(asked.seed), batch, jnp.ones(count)))
    seconds = time.perf_counter() - begin
    losses = [float(jnp.mean(task.loss(run.params, part))) for part in (kept,)]
    print(f"{seconds:.0f} s; loss {losses[0]:.3f} nats a byte on what was held out")
    models.save_gpt2(make(nnx.Rngs(0)), asked.output, run.params, half=True)


if __name__ == "__main__":
    main()
