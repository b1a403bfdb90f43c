"""How the updates go, chosen on a few retrained subsets: no fixed recipe serves every training.

Where a training comes to rest at almost no loss, a constant rate from the trained network is best;
where it does not, a cosine from a start well before the end; where few steps are allowed, steps
that are shrunk along the sharpest directions. Which of these a run is cannot be read off its
losses. It can be measured: each recipe predicts the same retrained subsets at the same cost, and
the one that orders them best is taken. So it is with what the steps take: where a few items a group
are too few, steps that add what the items leave of each group's gradient are better, or those on
the training data themselves, at the same cost.
"""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
from pydantic import BeforeValidator, Field, model_validator

from ddm_jax import metrics
from ddm_jax.checks import check_integer, check_number, settings
from ddm_jax.estimators.ddm import DDMState, make_outputs, stable_of
from ddm_jax.estimators.pools import POOLS, Pool, check_pools, same_groups, state_of, unmatched
from ddm_jax.masks import check_masks
from ddm_jax.online import Begin, make_parts
from ddm_jax.recipes import at_share, every_recipe, example_gradients, shares
from ddm_jax.types import Batch, Groups, Task, length
from ddm_jax.updates import UpdateSettings, settled

LEAST = 4  # subsets to choose by
FIRST = 4  # subsets that all recipes are tried on,
FIRST_SHARE = 0.1  # at this cost, or at what is allowed where that is less
FINALISTS = 4  # recipes of each pool that are tried on all subsets, at what is allowed
FEW = 8  # recipes of which all are finalists
# By which a deflated recipe must be better, for it needs the curvature first; and what the steps
# take than the synset alone.
MARGIN = 0.01
# Of the groups' gradients that the items must leave, on average, for a correction to be tried: with
# less it changes nothing. And the synset's best recipes that it is tried with.
UNMATCHED = 0.05
CORRECTED = 2
# Other subsets that the chosen updates are looked at on, between these, and as many as cost four
# retrainings: of eight subsets a rate may be right that is too high for one in eight. One is astray
# whose outputs are so many times as far from those of the others as these are from one another.
# Then the rate is halved, so often at most, where that costs no more of the agreement.
OTHERS = (8, 40)
OTHERS_COST = 4.0
ASTRAY = 4.0
HALVINGS = 2
HALVED = 0.05


def _of_setting(value: Any) -> tuple[Pool, ...]:
    try:
        return check_pools(value)
    except ValueError as error:
        raise ValueError(f"tune.{error}") from None


@settings("tune")
class TuneSettings:
    """How a run chooses its updates (`tuning.tune`); 0 subsets choose nothing."""

    subsets: Annotated[int, Field(ge=0)] = 8  # random halves of the groups, retrained
    seeds: Annotated[int, Field(ge=2)] = 2  # of each
    # What a counterfactual may cost, as a part of a retraining, in example gradients.
    share: Annotated[float, Field(gt=0, le=1)] = 0.25
    # What steps may take: "synset", the items; "corrected", what these leave of the groups'
    # gradients as well; "data", the training data themselves, which an answer needs then.
    pools: Annotated[tuple[Pool, ...], BeforeValidator(_of_setting)] = POOLS

    @model_validator(mode="after")
    def _check(self) -> TuneSettings:
        if 0 < self.subsets < LEAST:
            raise ValueError(
                f"tune.subsets={self.subsets}; it must be at least {LEAST} to choose by, or 0 to "
                "choose nothing"
            )
        return self


class Tried(NamedTuple):
    """One recipe, and how well it orders the tuning subsets."""

    update: UpdateSettings
    pool: Pool
    share: float  # of a retraining's example gradients
    agreement: float  # group LDS on the tuning subsets; NaN where it diverged
    seconds: float  # a counterfactual
    stable: float | None = None  # the stable rate that it found, where it was looked for and timed


class Tuned(NamedTuple):
    """What was chosen, and what it was chosen from."""

    update: UpdateSettings  # at `share`, or at less of it where that is better
    pool: Pool
    state: DDMState  # what the updates go with: its items are those of the pool
    tried: tuple[Tried, ...]  # each recipe, on all subsets or, where it fell out, the first FIRST
    costs: tuple[Tried, ...]  # the chosen recipe at each of `shares`
    # The best recipe of the other kind at the same cost: with the training data where what was
    # chosen answers without them, or the other way round.
    other: Tried | None
    stable: float | None = None  # the stable rate of `update` on `state`
    finalists: int = 0  # of those tried, the first: at `share`, on all subsets


def best_cost(agreement: Sequence[float], costs: Sequence[float], share: float) -> int:
    """The place of the cost to take of `shares`: what is allowed, or less that is clearly better.

    Where the updates go astray, as on few data that are learnt by heart, fewer steps are better.
    """
    allowed = list(costs).index(share)
    found = np.nan_to_num(np.asarray(agreement, float), nan=-np.inf)
    less = np.where(np.asarray(costs) < share, found, -np.inf)
    return int(less.argmax()) if less.max() > found[allowed] + MARGIN else allowed


def tune(
    task: Task,
    state: DDMState,
    masks: Any,
    retrained: Any,
    query: Batch,
    *,
    gradients: int,
    share: float = 0.25,
    fixed: UpdateSettings | None = None,
    real: tuple[Batch, Groups] | None = None,
    pools: Sequence[Pool] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Tuned:
    """Choose the updates that order retrained subsets best, at a given cost.

    Every recipe (`recipes.every_recipe`) predicts the outputs without what FIRST of the masks
    leave out, in few steps, and the FINALISTS all of them in as many as are allowed; the one with
    the highest group LDS, the Spearman correlation over the subsets averaged over queries, is
    taken. The squared error of the predicted changes chooses worse, by up to .15 of LDS on MNIST,
    for it listens to the few queries that move most; the LDS of eight subsets chose within .01 of
    the best there. It does not see a rate that is too high for a subset that is not among them: of
    eight items that were chosen and not distilled, three of 24 other halves were lost, and .14 of
    LDS. So the chosen updates answer for OTHERS too, which takes no truth, and where some go astray
    (`strays`) and none does at a lower rate, that is taken.

    With `real` data recipes are tried in up to three pools: the items of the synset; these with
    what they leave of each group's gradient, where that is more than UNMATCHED (the CORRECTED best
    recipes of the synset); and all of the training data, each in its group. A step costs the same
    in all, and the first two answer without the data. `Tuned.state` is what the chosen updates go
    with: `make_ddm(task, None, tuned.update, stable=tuned.stable).outputs(tuned.state, masks,
    query)`; without `stable` it looks for the rate again.

    What is told of the agreement is what the choice was made by, and so a little too good; judge
    the chosen updates on other subsets.

    Args:
        state: of `make_ddm(...).fit`.
        masks: [R, K] random subsets, at least 4.
        retrained: [R, Q] what networks retrained without the rest say, or [S, R, Q] of S seeds.
        gradients: example gradients of one retraining: steps times batch.
        share: what a counterfactual may cost of them, in (0, 1].
        fixed: settings that are not to be chosen, where they are not None.
        real: the training data and their groups, for the pools that are made of them.
        pools: those to try, of which that of the synset must be one; default all that there can
            be.

    Raises:
        ValueError: for shapes that do not fit, too few subsets, pools that need `real`, or where
            every recipe diverged.

    Warns:
        UserWarning: where the best order is the wrong way round.
    """
    fixed = UpdateSettings() if fixed is None else fixed
    masks = np.asarray(check_masks(masks, len(state.synset.share), background=True))
    retrained = np.asarray(retrained)
    truth = retrained.mean(0) if retrained.ndim == 3 else retrained
    check_integer("the number of tuning subsets", len(masks), LEAST)
    check_integer("gradients", gradients, 1)
    check_number("share", share, above=0, most=1)
    if truth.ndim != 2 or len(truth) != len(masks):
        raise ValueError(
            f"retrained outputs have shape {retrained.shape}; {len(masks)} masks need "
            f"[{len(masks)}, Q], or [S, {len(masks)}, Q]"
        )
    if not np.isfinite(truth).all():
        raise ValueError("retrained outputs must be finite: some retrained network diverged")
    given = POOLS if real is not None else POOLS[:1]
    given = check_pools(given if pools is None else pools)
    states: dict[Pool, DDMState] = {"synset": state._replace(residual=None)}
    if given != POOLS[:1]:
        data, groups = _real(real, given)
        groups = same_groups(state, task, data, groups)
        if "corrected" in given:
            better = _worth_correcting(state, task, data, groups, say)
            states |= {} if better is None else {"corrected": better}
        if "data" in given:
            states["data"] = state_of("data", state, task, data, groups)
    parts = make_parts(task)
    # What recipes find where they begin: most differ by their rates and momenta alone.
    known: dict[Pool, dict[Any, Begin]] = {pool: {} for pool in states}

    def ask(pool: Pool, update: UpdateSettings, rows: slice, timed: bool = False) -> Tried:
        """How well one recipe orders some of the subsets, and what it takes."""
        of, chosen = states[pool], masks[rows]
        seconds, stable = float("nan"), None
        if pool == "corrected" and not timed:  # goes at the synset's rates
            stable = stable_of(update, known["synset"])
        outputs = make_outputs(task, update, parts, known[pool], stable)
        found = np.asarray(outputs(of, chosen, query))
        if timed:  # once more, without what was compiled, as a question goes
            stable = stable_of(update, known[pool])
            outputs = make_outputs(task, update, parts, stable=stable)
            begin = time.perf_counter()
            jax.block_until_ready(outputs(of, chosen, query))
            seconds = (time.perf_counter() - begin) / len(chosen)
        agreement = float("nan")
        if np.isfinite(found).all():
            # Where all subsets have one answer there is no order to agree with.
            each = metrics.per_query_correlation(found, truth[rows])
            agreement = float(np.nan_to_num(metrics.nan_mean(each)))
        cost = example_gradients(update, length(of.synset.items)) / gradients
        return Tried(update, pool, cost, agreement, seconds, stable)

    def at(tried: Tried, share: float) -> UpdateSettings:
        items = length(states[tried.pool].synset.items)
        return at_share(tried.update, fixed, share, gradients, items)

    def value(tried: Tried) -> float:
        worse = MARGIN * ((tried.update.optimizer == "deflated") + (tried.pool != "synset"))
        return -np.inf if np.isnan(tried.agreement) else tried.agreement - worse

    def lost(pool: Pool, update: UpdateSettings) -> int:
        """How many of some other subsets go astray."""
        stable = stable_of(update, known["synset" if pool == "corrected" else pool])
        outputs = make_outputs(task, update, parts, known[pool], stable)
        # As many at once as before: nothing is compiled.
        others = others_of(masks, share)
        said = [np.asarray(outputs(states[pool], some, query)) for some in others]
        return len(strays(np.concatenate(said)))

    def steady(tried: Tried) -> Tried:
        """The same at a lower rate, where some other subsets go astray and none does there."""
        chosen = settled(tried.update)
        free = fixed.learning_rate is None and fixed.rate_factor is None
        count = lost(tried.pool, tried.update)
        if not count:
            return tried
        looked_at = sum(map(len, others_of(masks, share)))
        say(f"  {count} of {looked_at} other subsets go astray with these updates")
        for halving in range(1, HALVINGS + 1) if free else ():
            factor = chosen.rate_factor / 2**halving
            update = dataclasses.replace(tried.update, rate_factor=factor)
            if lost(tried.pool, update):
                continue
            slower = ask(tried.pool, update, slice(None))
            if slower.agreement > tried.agreement - HALVED:
                say(f"  none does at {factor:g} times the stable rate, which is taken")
                return slower
            break
        return tried

    last: list[Tried] = []
    fallen: list[Tried] = []
    for pool, of in states.items():
        items = length(of.synset.items)
        every = every_recipe(fixed, of, items, gradients, min(share, FIRST_SHARE))
        if pool == "corrected":
            order = sorted(last, key=value, reverse=True)
            every = [tried.update for tried in order[:CORRECTED]]
        elif len(every) > FEW:
            first = []
            for update in every:
                first.append(ask(pool, update, slice(FIRST)))
                say(f"  {describe(update, pool)}: {_number(first[-1])} on {FIRST} subsets")
            order = sorted(first, key=value, reverse=True)
            every = [tried.update for tried in order[:FINALISTS]]
            fallen += order[FINALISTS:]
        for update in every:
            update = at_share(update, fixed, share, gradients, items)
            last.append(ask(pool, update, slice(None)))
            told = describe(update, pool)
            say(f"  {told}: {_number(last[-1])} on {len(masks)} subsets")
    best = max(last, key=value)
    if np.isnan(best.agreement):
        mend = "set online.learning_rate" if fixed.learning_rate is None else "lower it"
        rate = (
            "" if fixed.learning_rate is None else f" at online.learning_rate={fixed.learning_rate}"
        )
        raise ValueError(
            f"every recipe of the updates diverged on the tuning subsets{rate}: they are too fast "
            f"for this network, or the synset does not stand for its data; {mend}, or distil more "
            "items"
        )
    best = steady(best)
    if all(tried.agreement == 0 for tried in last):
        warnings.warn(
            "the tuning subsets have no order to choose by: their outputs, or all predictions of "
            "them, are the same; the first recipe is taken. Explain a loss or a margin",
            stacklevel=2,
        )
    if best.agreement < 0:
        warnings.warn(
            "the best recipe orders the retrained subsets the wrong way round: what was retrained "
            "must have said task.output of these queries, and margins rise where losses fall",
            stacklevel=2,
        )
    nominal = shares(fixed, share, gradients)
    costs = tuple(ask(best.pool, at(best, each), slice(None), True) for each in nominal)
    best = costs[best_cost([each.agreement for each in costs], nominal, share)]
    told = describe(best.update, best.pool)
    say(f"  chosen: {told}: {best.agreement:.3f} on {len(masks)} subsets")
    others = [tried for tried in last if (tried.pool == "data") != (best.pool == "data")]
    other = max(others, key=value, default=None)
    if other is not None:
        if best.pool == "data":  # what answers without the data goes with the other
            other = steady(other)
        other = ask(other.pool, other.update, slice(None), True)
    tried = (*last, *fallen)
    state = states[best.pool]
    return Tuned(best.update, best.pool, state, tried, costs, other, best.stable, len(last))


def others_of(masks: np.ndarray, share: float) -> list[np.ndarray]:
    """Other subsets like these, [R, K] each; the same ones always.

    Args:
        share: of a retraining that one takes.
    """
    draw, count = np.random.default_rng(0), np.clip(OTHERS_COST / share, *OTHERS)
    return [draw.permuted(masks, axis=1) for _ in range(int(np.ceil(count / len(masks))))]


def strays(outputs: np.ndarray) -> np.ndarray:
    """The subsets [.] whose outputs are far from those of all others, of outputs [R, Q].

    The distance of a subset is the median over queries of `|output_rq - median_r output_q|`: a
    network that is lost answers all queries alike, whatever is left out, and one without a group
    answers some otherwise. On MNIST it is 8 to 240 times the median subset's where a network is
    lost (its loss on its own items 2.1 for .008), and at most 2 where none is.
    """
    finite = np.isfinite(outputs).all(1)
    if not finite.any():
        return np.arange(len(outputs))
    with np.errstate(invalid="ignore"):
        away = np.median(np.abs(outputs - np.median(outputs[finite], 0)), 1)
    usual = np.median(away[finite])
    return np.flatnonzero(~finite | ((usual > 0) & (away > ASTRAY * usual)))


def _number(tried: Tried) -> str:
    return "diverged" if np.isnan(tried.agreement) else f"{tried.agreement:.3f}"


def _real(real: Any, pools: Sequence[Pool]) -> tuple[Batch, Any]:
    """The training data and the groups that pools are made of."""
    if isinstance(real, tuple) and not isinstance(real, Batch) and len(real) == 2:
        return real
    raise ValueError(
        f"pools={','.join(pools)} and real is {'not given' if real is None else 'no such pair'}; "
        "pass real=(data, groups), or pools=('synset',)"
    )


def describe(update: UpdateSettings, pool: Pool = "synset") -> str:
    """Updates in words."""
    items = "training points" if pool == "data" else "items"
    chosen = settled(update)
    rate = f"{chosen.rate_factor:g} times the stable rate"
    if chosen.learning_rate is not None:
        rate = f"rate {chosen.learning_rate:g}"
    return (
        f"{chosen.optimizer or 'sgd'}, {chosen.steps} steps of {chosen.batch} {items}, {rate}, "
        f"{chosen.schedule}, momentum {chosen.momentum:g}, rewound by {chosen.rewind:g}"
        f"{', corrected by what the items leave of the gradients' * (pool == 'corrected')}"
    )


def _worth_correcting(
    state: DDMState, task: Task, data: Batch, groups: Groups, say: Callable[[str], None]
) -> DDMState | None:
    """The corrected state, where its items leave enough to be worth a try, and it fits."""
    try:
        found = state_of("corrected", state, task, data, groups)
    except ValueError as error:
        say(f"  no correction is tried: {error}")
        return None
    left = float(np.mean(unmatched(found, task)))
    say(f"  the items leave {left:.2g} of the groups' gradients")
    return found if left > UNMATCHED else None
