"""Render the tables of README.md and docs/ from benchmarks/results/*.json.

A page holds `<!-- table: name -->` and `<!-- end -->`; what stands between them is written here.
`name` is a result file, or `file.view` for another view of it; TABLES says what each one shows.

    python benchmarks/render.py [--check]
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cost_model

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
Row = dict[str, Any]
Result = dict[str, Any]
Cell = Callable[[Row], str]


class Withheld(NamedTuple):
    """Rows that no page shows as they are, since a fault that was mended later touches them."""

    where: tuple[str, ...]  # result file and the keys down to its list of rows
    rows: Row  # what a row has
    reason: str = ""  # told below the table where it is not empty
    again: str = ""  # the result file, with the same keys, that has them measured again


UNEVEN = "with checkpoints at wrong steps"
WITHHELD = (
    *(
        Withheld(
            ("comparison", "protocols", case, "rows"),
            {"estimator": "tracin"},
            UNEVEN,
            "comparison_tracin",
        )
        for case in ("dattri-lr", "dattri-mlp")
    ),
    # Mixtures by a function that the package does not have any more.
    Withheld(("points", "digits"), {"estimator": "groups shared out evenly"}),
    *(
        Withheld(("points", "digits"), {"estimator": f"both, {weight}"})
        for weight in (0.05, 0.2, 1.0)
    ),
)
# Read off the figures of dattri's paper (arXiv 2410.04555), one run a half: logistic, MLP.
PUBLISHED: dict[str, tuple[float | None, float | None]] = {
    "influence_exact": (0.798, None),
    "influence_cg": (0.798, 0.256),
    "influence_lissa": (0.787, 0.136),
    "influence_arnoldi": (0.310, 0.087),
    "tracin": (0.330, 0.144),
    "grad_dot": (0.327, 0.100),
    "grad_cos": (0.191, 0.122),
    "representer": (0.188, 0.093),
    "trak": (0.413, 0.112),
    "trak_10": (0.643, 0.331),
}
GROUPS = {  # protocols of groups
    "digits": "digits, MLP",
    "mnist": "MNIST, MLP",
    "mnist-convnet": "MNIST, ConvNet",
    "cifar10-convnet": "CIFAR-10, ConvNet",
}
POINTS = {"dattri-lr": "MNIST, logistic", "dattri-mlp": "MNIST, MLP"}
WRONG = ("mislabelled digits", "mislabelled MNIST, logistic")
HEADLINE = (
    "ddm",
    "retraining",
    "short_retraining",
    "influence_second_order",
    "influence_cg",
    "knn_shapley",
    "trak",
    "tracin",
    "grad_dot",
    "random",
)


# Cells: a maker takes the name of a value, dotted where it lies deeper, and gives `cell(row)`;
# a value that is not there is an empty cell.


def value_of(row: Row, name: str) -> Any:
    """A value by its dotted name, or None."""
    found: Any = row
    for part in name.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def cell(form: Callable[[Any], str] | str, name: str) -> Cell:
    """Format one value."""
    write = form.format if isinstance(form, str) else form

    def written(row: Row) -> str:
        value = value_of(row, name)
        return "" if value is None else write(value)

    return written


def in_seconds(value: float) -> str:
    """Two digits of seconds."""
    return f"{value:.2g} s" if value < 10 else f"{value:.0f} s"


def in_percent_of_retraining(value: float) -> str:
    """A cost as a share of retraining."""
    return f"{100 * value:,.0f} %" if value >= 1 else f"{100 * value:.3g} %"


def between(ends: list[float]) -> str:
    """Two ends."""
    return "" if None in ends else "–".join(f"{end:.2f}" for end in ends)


text = partial(cell, "{}")
score = partial(cell, "{:.3f}")
percent = partial(cell, "{:.1%}")
whole_percent = partial(cell, "{:.0%}")
count = partial(cell, "{:,}")
short = partial(cell, "{:.3g}")
gib = partial(cell, "{:.1f} GiB")
seconds = partial(cell, in_seconds)
milliseconds = partial(cell, lambda value: f"{1000 * value:.3g} ms")
interval = partial(cell, between)
share = partial(cell, in_percent_of_retraining)
chosen = partial(cell, lambda found: ", ".join(f"{k} {v}" for k, v in found.items()))
dashed = partial(cell, lambda name: name.replace("_", "-"))


def ranged(name: str) -> Cell:
    """A mean score and its range over partitions."""

    def written(row: Row) -> str:
        low, high = row.get(f"{name}_range", (0.0, 0.0))
        return score(name)(row) + (f" ({low:.2f}–{high:.2f})" if low < high else "")

    return written


def deviating(name: str) -> Cell:
    """A mean and its standard deviation."""
    return lambda row: f"{row[name]:.3f} ± {row[f'{name}_deviation']:.3f}"


def joined(*cells: Cell, by: str = " / ") -> Cell:
    """Several values in one cell."""
    return lambda row: by.join(each(row) for each in cells)


class Table(NamedTuple):
    """What a block shows: rows of a result, a cell of each for every column, and a note."""

    columns: dict[str, Cell] | Callable[[Result], dict[str, Cell]]
    rows: str | Callable[[Result], list[Row]] = "rows"
    # Of the result: a function, or a template with its values and `told`, its partitions.
    note: str | Callable[[Result], str] = ""
    lists: tuple[str, ...] = ()  # of rows, by a key of theirs, whose withheld rows are named


def markdown(columns: dict[str, Cell], rows: list[Row]) -> str:
    """A Markdown table."""
    head = "| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns)
    lines = ["| " + " | ".join(each(row) for each in columns.values()) + " |" for row in rows]
    return "\n".join([head, *lines])


def machine(result: Result, lists: tuple[str, ...] = ()) -> str:
    """What measured a result, and what of some lists of its rows is not shown."""
    versions, cores = result["versions"], result["cores"]
    names: dict[str, list[str]] = {}
    for keys, name, told in result.get("withheld", ()):
        for found in [key for key in lists if key in keys]:
            names.setdefault(told, []).append(name if len(lists) == 1 else f"{name} on {found}")
    measured = (
        f"Measured on {cores} {versions['device']} core{'s' if cores > 1 else ''} with JAX "
        f"{versions['jax']}, commit {result['commit']}: `{result['command']}`."
    )
    return " ".join([measured, *(told.format(", ".join(each)) for told, each in names.items())])


def partitions(result: Result) -> str:
    """Which partitions were measured."""
    several = list(result.get("partitions", ()))
    return f"Partition{'s' * (len(several) > 1)} {', '.join(map(str, several))}. "


def load(path: Path) -> Result:
    """A result without the rows that are withheld, or with them as they were measured again.

    It carries their names and what is to be said of them.
    """
    result = json.loads(path.read_text())
    for (file, *keys), asked, reason, again in WITHHELD:
        if file != path.stem:
            continue
        rows = rows_at(result, keys)
        out = [row for row in rows if asked.items() <= row.items()]
        new: list[Row] = []
        told = f"Left out: {{}} ({reason})."
        if again:
            other = json.loads((RESULTS / f"{again}.json").read_text())
            new = [row for row in rows_at(other, keys) if asked.items() <= row.items()]
            told = f"{{}}, again (before, {reason}): {machine(other)}"
        rows[:] = [row for row in rows if row not in out] + new
        names = dict.fromkeys(row["estimator"] for row in out if reason)
        result.setdefault("withheld", []).extend((keys, name, told) for name in names)
    return result


def rows_at(result: Result, keys: list[str]) -> list[Row]:
    """The list of rows that lies there."""
    for key in keys:
        result = result[key]
    return result  # type: ignore[return-value]


def block(name: str) -> str:
    """What stands in a page's block of that name."""
    path = RESULTS / f"{name.partition('.')[0]}.json"
    if not path.exists():
        return "not measured yet"
    shown = TABLES[name]
    return table(shown, load(path)) if isinstance(shown, Table) else shown(load(path))


def table(shown: Table, result: Result) -> str:
    """A table of a result, with its note."""
    columns = shown.columns if isinstance(shown.columns, dict) else shown.columns(result)
    rows = result[shown.rows] if isinstance(shown.rows, str) else shown.rows(result)
    if isinstance(shown.note, str):
        said = shown.note.format(told=partitions(result), **result)
    else:
        said = shown.note(result)
    return f"{markdown(columns, rows)}\n\n{said}{machine(result, shown.lists)}"


def render(page: str) -> str:
    """Write every block of a page."""

    def written(match: re.Match[str]) -> str:
        return f"<!-- table: {match[1]} -->\n{block(match[1])}\n<!-- end -->"

    return re.sub(r"<!-- table: ([\w.-]+) -->.*?<!-- end -->", written, page, flags=re.DOTALL)


# Groups: single groups and halves


def group_columns(result: Result) -> dict[str, Cell]:
    """Agreement, its share of the ceiling, and cost."""
    (best,) = (row for row in result["mean"] if row["estimator"] == "perfect predictor")
    return {
        "": group_name,
        "rho": ranged("rho"),
        "of ceiling": cell(lambda value: f"{value / best['rho']:.0%}", "rho"),
        "Pearson, all": score("pearson"),
        "group LDS": ranged("group_lds"),
        "of ceiling ": cell(lambda value: f"{value / best['group_lds']:.0%}", "group_lds"),
        "example gradients": share("share_of_retraining"),
        "seconds": share("seconds_share_of_retraining"),
    }


def group_name(row: Row) -> str:
    """An estimator with its settings."""
    parts = [row["estimator"]]
    if row.get("items"):
        parts.append(f"M={row['items']}")
        # Before 0.11 a step took so many items of each group.
        if row.get("step_items", row["items"]) < row["items"]:
            parts.append(f"{row['step_items']} a step")
        if "batch" in row and row["batch"] < row["items"] * row["groups"]:
            parts.append(f"batches of {row['batch']}")
    if row.get("update") == "forget":
        parts.append("forget")
    if row.get("steps"):
        parts.append(f"{row['steps']} step{'s' if row['steps'] > 1 else ''}")
    if row.get("rewind"):
        parts.append(f"rewound {row['rewind']:.0%}")
    return ", ".join(parts)


def offline_note(result: Result) -> str:
    """Partitions, and the offline seconds by the number of items."""
    offline = {
        row["items"]: row["offline_seconds"]
        for row in result["mean"]
        if row["estimator"] == "DDM" and row.get("offline_seconds")
    }
    told = ", ".join(f"{in_seconds(value)} for M={items}" for items, value in offline.items())
    return f"{partitions(result)}Offline: {told}. "


# Every estimator on the same truth


def by_estimator(result: Result, case: str, kind: str) -> dict[str, Row]:
    """The rows of a protocol whose score is of that kind, or that failed."""
    rows = result["protocols"].get(case, {"rows": []})["rows"]
    return {row["estimator"]: row for row in rows if "error" in row or kind in row.get("score", "")}


def halves(result: Result, names: tuple[str, ...] = ()) -> list[Row]:
    """A row an estimator, its LDS on every protocol, best first; the ceilings before them.

    Values of data as such say nothing of a query: they are near zero and left out.
    """
    cases = {case: by_estimator(result, case, "LDS") for case in (*GROUPS, *POINTS)}
    found = {name: {"estimator": name} for rows in cases.values() for name in rows}
    best: Row = {"estimator": "*perfect predictor*"}
    for case, rows in cases.items():
        for name, row in rows.items():
            found[name][case] = row
        best[case] = {"value": next((r["ceiling"] for r in rows.values() if "ceiling" in r), None)}

    def reach(row: Row) -> float:
        shares = [value_of(row, f"{case}.share_of_ceiling") for case in GROUPS]
        known = [value for value in shares if value is not None]
        return sum(known) / len(known) if known else -1.0

    shown = [row for name, row in found.items() if name == "random" or reach(row) > 0.1]
    shown.sort(key=reach, reverse=True)
    return [best, *(row for row in shown if not names or row["estimator"] in names)]


def scored(case: str) -> Cell:
    """The score of a protocol, or why there is none."""

    def written(row: Row) -> str:
        error = value_of(row, f"{case}.error")
        if error:
            return "too slow" if "minutes" in error else "refused"
        return score(f"{case}.value")(row)

    return written


def each_seconds(row: Row) -> str:
    """Online seconds of one removal on the MNIST MLP."""
    took, many = (value_of(row, f"mnist.{name}") for name in ("online_seconds", "counterfactuals"))
    return "" if took is None else in_seconds(took / many)


HALVES: dict[str, Cell] = {
    "": dashed("estimator"),
    **{title: scored(case) for case, title in GROUPS.items()},
    **{f"points, {title}": scored(case) for case, title in POINTS.items()},
    "offline, MNIST": seconds("mnist.offline_seconds"),
    "online, a half": each_seconds,
}
HEADLINE_COLUMNS = {title: each for title, each in HALVES.items() if "points" not in title}


def protocol_rows(result: Result, case: str) -> list[Row]:
    """Single groups first, best first, failures last."""
    rows = result["protocols"].get(case, {"rows": []})["rows"]
    order = [("value" in row, row.get("score", ""), row.get("value") or -1.0) for row in rows]
    paired = sorted(zip(order, rows, strict=True), key=lambda pair: pair[0])
    return [row for _, row in paired][::-1]


def protocol_note(result: Result, case: str) -> str:
    """What a retraining takes, and how many a good ceiling takes."""
    found = result["protocols"].get(case, {"rows": []})
    taken = found.get("seconds_per_retraining")
    note = f"One retraining takes {in_seconds(taken)}. " if taken else ""
    needed = {
        row["score"]: row["runs_for_ceiling_0.8"]
        for row in protocol_rows(result, case)
        if "runs_for_ceiling_0.8" in row
    }
    if needed:
        told = ", ".join(f"{runs} ({what})" for what, runs in sorted(needed.items()))
        note += f"Runs that a ceiling of .8 takes: {told}. "
    return note


def protocol_table(case: str) -> Table:
    """Everything that is known of one protocol of groups or points."""
    columns: dict[str, Cell] = {
        "": dashed("estimator"),
        "score": lambda row: row.get("score", row.get("error", "")),
        "value": score("value"),
        "95 % over queries": interval("over_queries"),
        "95 % over removals": interval("over_rows"),
        "ceiling": score("ceiling"),
        "of ceiling": whole_percent("share_of_ceiling"),
    }
    if case in POINTS:
        place = list(POINTS).index(case)
        columns["one run"] = score("value_one_run")
        columns["published, one run"] = lambda row: score("it")(
            {"it": PUBLISHED.get(row["estimator"], (None, None))[place]}
        )
    columns |= {
        "settings": chosen("settings"),
        "offline": seconds("offline_seconds"),
        "online": seconds("online_seconds"),
        "online GFLOP": short("online_gflop"),
        "peak memory": gib("peak_gib"),
    }
    rows, note = (partial(made, case=case) for made in (protocol_rows, protocol_note))
    return Table(columns, rows, note, (case,))


def wrong_labels(result: Result) -> list[Row]:
    """AUC and average precision of both cases, best first."""
    found: dict[str, Row] = {}
    for place, case in enumerate(WRONG):
        for name, row in by_estimator(result, case, "").items():
            found.setdefault(name, {"estimator": name})[f"case{place}"] = row

    def best(row: Row) -> float:
        return max(value_of(row, f"case{place}.auc") or 0.0 for place in range(len(WRONG)))

    return sorted(found.values(), key=best, reverse=True)


WRONG_LABELS: dict[str, Cell] = {"": dashed("estimator")}
for _place, _case in enumerate(WRONG):
    _gap = " " * _place  # columns of one name
    WRONG_LABELS |= {
        f"{_case.removeprefix('mislabelled ')}: AUC": score(f"case{_place}.auc"),
        f"average precision{_gap}": score(f"case{_place}.average_precision"),
        f"seconds{_gap}": seconds(f"case{_place}.seconds"),
        f"settings{_gap}": chosen(f"case{_place}.settings"),
    }


def several_partitions(result: Result) -> str:
    """Mean and range over the partitions of each protocol that was measured on several."""
    others = sorted(RESULTS.glob("comparison_[0-9]*.json"))
    every = [result, *map(load, others)]
    measured = {case: [one for one in every if case in one["protocols"]] for case in GROUPS}
    measured = {case: several for case, several in measured.items() if len(several) > 1}
    best: Row = {"estimator": "*perfect predictor*"}
    rows: dict[str, Row] = {}
    columns: dict[str, Cell] = {"": dashed("estimator")}
    for case, several in measured.items():
        for kind, title in (("leave-one-out", "one group"), ("LDS", "halves")):
            each = [by_estimator(one, case, kind) for one in several]
            judged = {
                name: [of[name]["value"] for of in each]
                for name in each[-1]
                if all("value" in of.get(name, {}) for of in each)
            }
            for name, values in judged.items():
                rows.setdefault(name, {"estimator": name})[f"{case} {kind}"] = values
            ceilings = [of[name]["ceiling"] for of in each for name in judged]
            best[f"{case} {kind}"] = [sum(ceilings) / len(ceilings)]
            columns[f"{GROUPS[case]}: {title}"] = cell(mean_and_range, f"{case} {kind}")
    order = sorted(
        rows.values(), key=lambda row: -sum(sum(v) for v in row.values() if isinstance(v, list))
    )
    told = "; ".join(
        f"{GROUPS[case]}: {', '.join(str(one['partition']) for one in several)}"
        for case, several in measured.items()
    )
    return f"{markdown(columns, [best, *order])}\n\nPartitions: {told}. {machine(every[-1])}"


def mean_and_range(values: list[float]) -> str:
    """A mean, and the range where there are several."""
    told = f"{sum(values) / len(values):.3f}"
    return told + (f" ({min(values):.2f}–{max(values):.2f})" if len(values) > 1 else "")


# Data quality


def detection(*kinds: str) -> Table:
    """Average precision by score, for some kinds of bad points; the best in bold."""

    def pivoted(result: Result) -> list[Row]:
        rows: dict[str, Row] = {}
        for row in result["detection"]:
            if row["kind"] in kinds and row["score"] != "*least influential*":  # for keep curves
                found = rows.setdefault(row["score"], {"score": row["score"]})
                found[f"{row['case']}: {row['kind']}"] = row["average_precision"]
        return list(rows.values())

    def columns(result: Result) -> dict[str, Cell]:
        cases = dict.fromkeys(row["case"] for row in result["detection"])
        rows = pivoted(result)
        found: dict[str, Cell] = {"": text("score")}
        for name in (f"{case}: {kind}" for case in cases for kind in kinds):
            best = max(row[name] for row in rows if name in row)
            found[name] = cell(
                lambda value, best=best: f"**{value:.3f}**" if value == best else f"{value:.3f}",
                name,
            )
        return found

    return Table(columns, pivoted, partitions_by_case)


def curves(fractions: str, *kinds: str) -> Table:
    """Test accuracy without the first part of each order."""

    def columns(result: Result) -> dict[str, Cell]:
        def named(row: Row) -> str:
            spoilt = "" if row["kind"] == "nothing" else f", {row['kind']}"
            return f"{row['case']}{spoilt}: {row['order']}"

        parts = result["settings"][fractions]
        return {
            "": named,
            # A dot in a name would go deeper.
            **{f"without {p:.0%}": lambda row, p=p: f"{row[f'without_{p:g}']:.1%}" for p in parts},
        }

    return Table(
        columns,
        lambda result: [row for row in result["curves"] if row["kind"] in kinds],
        lambda result: (
            f"Means of {result['settings']['seeds']} networks. {partitions_by_case(result)}"
        ),
    )


def partitions_by_case(result: Result) -> str:
    """Partitions of each data set."""
    seeds = {row["case"]: row["partitions"] for row in result["detection"]}
    told = "; ".join(f"{case}: {', '.join(map(str, each))}" for case, each in seeds.items())
    return f"Partitions: {told}. "


def label_error_columns(result: Result) -> dict[str, Cell]:
    """How many of the real errors are among the labels that one looks at first."""
    errors = result["rows"][0]["errors"]
    return {
        "": text("score"),
        **{
            f"among the first {many}": cell(f"{{:.1f}} of {errors}", f"among_{many}")
            for many in result["settings"]["looked_at"]
        },
        "average precision": score("average_precision"),
        "AUC": score("auc"),
        "time": seconds("seconds"),
    }


def removal_rows(result: Result) -> list[Row]:
    """Flips beside the ends of the removal curves."""
    found = {row["estimator"]: row for row in result["curves"]}
    rows = []
    for row in result["brittleness"]:
        worst, best = (found[row["estimator"]][f"without_{end}"] for end in ("worst", "best"))
        ends = {"worst_tenth": worst[2], "best_half_alone": worst[5], "worst_half_alone": best[5]}
        rows.append(row | ends)
    return rows


def removal_columns(result: Result) -> dict[str, Cell]:
    """Flips by the number of groups, accuracies, and cost."""
    return {
        "groups chosen by": text("estimator"),
        **{
            f"flipped without {k}": whole_percent(f"flipped_{k}")
            for k in result["settings"]["removed"]
        },
        "accuracy without the worst 10 %": percent("worst_tenth"),
        "on the best 50 % alone": percent("best_half_alone"),
        "without the best 50 %": percent("worst_half_alone"),
        "offline": seconds("offline_seconds"),
        "online": seconds("online_seconds"),
    }


# Answers to other questions


UNLEARNING = Table(
    {
        "forgotten": lambda row: f"{row['case']} ({row['partition']}): {row['gone']}",
        "by": text("method"),
        "accuracy: forgotten": deviating("forgotten"),
        "kept": deviating("kept"),
        "test": deviating("test"),
        "membership AUC": deviating("membership"),
        "within": cell("{} of 3", "within"),
        "KLOM": cell("{:.1f}", "klom"),
        "time of retraining": share("share_of_retraining"),
    },
    note="Means and standard deviations of {settings[seeds]} networks; KLOM from half of them "
    "(retraining: one half against the other, for *within* too). ",
)


def likeness_columns(result: Result) -> dict[str, Cell]:
    """How alike two networks are, by the distilled datamodel and by retraining."""
    found: dict[str, Cell] = {"": joined(text("first"), text("second"), by=" and ")}
    for key, told, form in (
        ("per_query", "effects of a query, rho", score),
        ("profile", "what matters overall, rho", score),
        ("top", f"{result['settings']['top']} most helpful groups shared", percent),
    ):
        found |= {
            f"{told}: distilled": form(f"ddm_{key}"),
            f"{told}: retrained": form(f"exact_{key}"),
        }
    return found


def transfer_rows(result: Result) -> list[Row]:
    """A row a synset, with the network that it serves as a column."""
    rows: dict[str, Row] = {}
    for row in result["transfer"]:
        found = rows.setdefault(row["synset"], {"synset": row["synset"]})
        found[row["network"]] = row
    return list(rows.values())


def transfer_columns(result: Result) -> dict[str, Cell]:
    """The network that is served."""
    return {
        "synset of": text("synset"),
        **{
            f"updates {name}": joined(score(f"{name}.rho"), score(f"{name}.group_lds"))
            for name in result["settings"]["networks"]
        },
    }


# Speed


def convolution_rows(result: Result) -> list[Row]:
    """Milliseconds of each form of a layer, the fastest in bold."""
    rows: dict[tuple[str, str], Row] = {}
    for row in result["layers"]:
        models, batch, height, depth, width = row["layer"]
        layer = f"{height}x{height}, {depth} to {width}, B={batch}, K={models}"
        found = rows.setdefault((layer, row["order"]), {"layer": layer, "order": row["order"]})
        found[row["form"]] = 1000 * row["seconds"]
    for row in rows.values():
        forms = {name: value for name, value in row.items() if isinstance(value, float)}
        fastest = min(forms.values())
        for name, value in forms.items():
            row[name] = f"**{value:.3g}**" if value == fastest else f"{value:.3g}"
    return list(rows.values())


def convolution_columns(result: Result) -> dict[str, Cell]:
    """A form a column."""
    forms = dict.fromkeys(row["form"] for row in result["layers"])
    return {"layer": text("layer"), "": text("order"), **{form: text(form) for form in forms}}


def pieces_note(result: Result) -> str:
    """What cutting a batch gains."""
    cut = ", ".join(
        f"width {row['width']} in pieces of {row['piece']}: {1000 * row['pieces_seconds']:.0f} ms "
        f"for {1000 * row['whole_seconds']:.0f}"
        for row in result["pieces"]
    )
    return f"Milliseconds for all K models. A gradient step of a batch of 100, {cut}. "


def expected_mebibytes(row: Row) -> str:
    """What the model expects a process to hold."""
    return f"{(row['start_bytes'] + sum(row['expected_bytes'].values())) / 2**20:,.0f}"


def network_of(row: Row) -> str:
    """A case of `scaling.py`."""
    names = {"mlp": "MLP 784-{width}-64-10", "convnet": "ConvNet of width {width}"}
    return names[row["model"]].format(width=row["width"])


def rival(row: Row) -> str:
    """The cheapest retraining that agrees as well."""
    epochs = row["rival"]["epochs"]
    return f"{epochs} {'epoch' if epochs == 1 else 'epochs'}, {row['rival']['lds']:.3f}"


def rates(result: Result) -> str:
    """What the cost model was fitted to."""
    fitted = cost_model.fit_rates(result["rows"], result["steps"])
    columns = {
        "network, stage": text("stage"),
        "reached, GFLOP/s": cell("{:.0f}", "gflops_a_second"),
        "cases off by at most": cell("{:.1f} times", "off_by"),
    }
    rows = [{"stage": name} | values for name, values in fitted.items()]
    return markdown(columns, rows) + "\n\nMedian over the cases on one device."


def predictions(result: Result) -> str:
    """Work that cannot be run here, by the model alone."""
    rows = [
        cost_model.prediction(work, where) | {"case": f"{name}; {where.name}"}
        for name, work in cost_model.CASES.items()
        for where in cost_model.MACHINES
    ]
    columns = {
        "": text("case"),
        "target, data parallel": cell(duration, "training"),
        "offline": cell(duration, "offline"),
        "all updates": cell(duration, "online"),
        "retraining for each group": cell(duration, "retraining"),
        "times less online": lambda row: f"{row['retraining'] / row['online']:,.0f}",
        "gradients": cell(lambda held: f"{held / 1e12:.2g} TB", "gradients"),
        "rounds": text("rounds"),
    }
    return markdown(columns, rows)


def duration(took: float) -> str:
    """Seconds in the unit that reads best."""
    for limit, size, unit in ((120, 1, "s"), (7200, 60, "min"), (2 * 86400, 3600, "h")):
        if took < limit:
            return f"{took / size:.2g} {unit}"
    return f"{took / 86400:,.0f} days"


def torch_note(result: Result) -> str:
    """Versions, rounds and the machine's peak."""
    peaks = [row["peak_gflops_a_second"] for row in result["rows"]]
    return (
        f"Minimum of {result['settings']['rounds']} interleaved rounds on one thread, PyTorch "
        f"{result['settings']['torch']}; the matrix product beside each row ran at "
        f"{min(peaks):.0f} to {max(peaks):.0f} GFLOP/s. "
    )


def torch_milliseconds(*forms: str) -> Cell:
    """Milliseconds of the first of some forms that a row has."""

    def written(row: Row) -> str:
        took = [row["milliseconds"][form] for form in forms if form in row["milliseconds"]]
        return f"{took[0]:.3g}" if took else ""

    return written


def peer_name(row: Row) -> str:
    """Network, method and the damping that was chosen."""
    names = {"dattri-lr": "logistic regression", "dattri-mlp": "MLP"}
    damping = f", damping {row['damping']:g}" if "damping" in row else ""
    return f"{names[row['preset']]}: {row['estimator']}{damping}"


def peers_note(result: Result) -> str:
    """What was judged, and the libraries' versions."""
    judged = next(row for row in result["rows"] if "error" not in row)
    versions = ", ".join(f"{library} {number}" for library, number in result["peers"].items())
    return (
        f"{judged['counterfactuals']} halves, {judged['queries']} queries; the others chose the "
        f"damping. {versions}, one thread. "
    )


# Sentences


def kills(result: Result) -> str:
    """What killing the store's writers did."""
    found = result["result"]
    return (
        f"`{result['command']}`: {found['kills']} times, {found['processes']} processes at a time "
        f"were killed at a random moment, {found['kills_while_filling']} of them in the middle of "
        f"filling {found['rows']:,} rows: {found['rows_lost']} rows lost, "
        f"{found['rows_repeated']} computed twice, outputs "
        f"{'equal' if found['equal_bits'] else 'NOT equal'} to an undisturbed process's bit by bit."
    )


def truth(result: Result) -> str:
    """The checksum of the digits truth."""
    means = result["truth"]["mean_loss"]
    losses = ", ".join(f"{value:.3f} ({what})" for what, value in means.items())
    return (
        f"`ddm truth digits` ends with the checksum `{result['truth']['checksum']}` on JAX "
        f"{result['versions']['jax']}: of every output, rounded to 3 decimals. Their mean loss is "
        f"{losses}."
    )


def run_rows(result: Result) -> list[Row]:
    """Whole commands."""
    rows = []
    for name, row in result["runs"].items():
        command = "ddm run" if name == "digits" else f"ddm run mnist --preset {name}"
        retrained = row["retraining_seconds"] * (row["groups"] + 1)
        rows.append(row | {"command": command, "ratio": retrained / row["online_seconds"]})
    return rows


def run_agreement(what: str) -> Cell:
    """DDM's agreement beside that of two others."""
    return joined(*(score(f"{what}.{name}") for name in ("ddm", "grad_dot", "one_retraining")))


# Kinds of task


def of_kind(kind: str) -> Cell:
    """Whether a method works there, and how well where it claims to predict retraining."""

    def written(row: Row) -> str:
        if not row[kind]["works"]:
            return "refuses"
        agrees = row[kind]["agreement"]
        return f"{agrees:.2f}" if row["predicts"] and agrees is not None else "works"

    return written


def kind_columns(result: Result) -> dict[str, Cell]:
    """A column a kind of task."""
    return {"": cell("`{}`", "method")} | {
        title: of_kind(kind) for kind, title in result["kinds"].items()
    }


KINDS_NOTE = (
    "Numbers are correlations with exact retraining over the groups, the mean over queries; "
    "*works* is said of methods that do not claim to predict it, and *refuses* of those that say "
    "in one line that they cannot answer. Each is a tiny problem, linear in its parameters, of "
    "which a sixth is left out: the table says what works, not which method is best. "
)


# Tasks beyond softmax and SGD: a file of results each

TASKS = {
    "diabetes": "regression, diabetes",
    "friedman": "regression, 5,000 points",
    "pairs": "several labels",
    "nnx-convnet": "NNX ConvNet, AdamW",
    "nnx-lora": "adapters, AdamW",
}


def tasks_together(result: Result) -> str:
    """Halves and single groups of every estimator on every task, means over partitions."""
    found = {
        case: json.loads(path.read_text())
        for case in TASKS
        if (path := RESULTS / f"tasks_{case}.json").exists()
    }
    best: Row = {"estimator": "*perfect predictor*"}
    rows: dict[str, Row] = {}
    for case, measured in found.items():
        for name, parts in measured["rows"].items():
            if name == "averages":
                continue
            row = rows.setdefault(name, {"estimator": name.replace("_", "-")})
            judged = [part for part in parts if not isinstance(part, str)]
            if not judged:
                row[case] = "refuses"
                continue
            row[case] = _halves_and_groups(judged, "value")
            if name == "retraining":
                best[case] = _halves_and_groups(judged, "ceiling")
    columns: dict[str, Cell] = {"": cell("{}", "estimator")} | {
        TASKS[case]: lambda row, case=case: row.get(case, "") for case in found
    }
    told = "; ".join(
        f"{TASKS[case]}: {', '.join(map(str, one['partitions'][: len(one['rows']['ddm'])]))}"
        for case, one in found.items()
    )
    note = f"Halves of the groups / single groups. Partitions: {told}. {machine(result)}"
    return f"{markdown(columns, [best, *rows.values()])}\n\n{note}"


def _halves_and_groups(parts: list[list[Row]], value: str) -> str:
    each = [
        [row[value] for part in parts for row in part if row["score"].startswith(kind)]
        for kind in ("LDS", "leave")
    ]
    return " / ".join(f"{sum(values) / len(values):.2f}" for values in each)


UNSEEN = {
    "mnist": "MNIST, MLP",
    "letters": "letters of a play",
    "modules": "lines of code",
    "ink": "ink, a regression",
    "speakers": "lines of a play",
    "patches": "patches of photographs",
    "thousand": "all of MNIST, MLP, 1,000 groups",
    "patches, later": "patches, with the recipes made for them",
}


def updates_in_short(told: str) -> str:
    """Updates in words, without rate and momentum."""
    parts = told.split(", ")
    return ", ".join((parts[0], parts[1], parts[3], parts[5]))


def _as_chosen(row: Row) -> Row:
    """A row of `unseen` with what was chosen as that of ddm."""
    pool = row["pool"]
    named = {name: value for name, value in row.items() if name.startswith(f"{pool}, ")}
    return {name.replace(pool, "ddm", 1): value for name, value in named.items()}


def unseen(result: Result) -> str:
    """Self-tuned updates and what a user would do instead, means over partitions."""
    cases: dict[tuple[str, float], list[Row]] = {}
    for row in result["rows"]:
        cases.setdefault((row["case"], row["share"]), []).append(row)

    def mean(same: list[Row], *names: str) -> str:
        values = [[row[name] for row in same if row.get(name) is not None] for name in names]
        return " / ".join(f"{sum(each) / len(each):.2f}" if each else "–" for each in values)

    lines = []
    for (case, share), same in cases.items():
        both = [f"{{}}, {score}" for score in ("LDS, keep 0.5", "leave-one-out")]
        inside = [
            {f"in {kind}": row["coverage"][kind] for kind in ("halves", "single groups")}
            for row in same
        ]
        lines.append(
            {
                "data": UNSEEN[case],
                "cost": in_percent_of_retraining(share),
                "ddm": mean([_as_chosen(row) for row in same], *(n.format("ddm") for n in both)),
                "synset": mean(same, *(name.format("synset") for name in both)),
                "real data": mean(same, *(name.format("data") for name in both)),
                "short retraining": mean(same, "short retraining"),
                "one retraining": mean(same, *(name.format("one retraining") for name in both)),
                "perfect": mean(same, *(name.format("ceiling") for name in both)),
                "inside the error bars": mean(inside, "in halves", "in single groups"),
                "chosen": "; ".join(
                    sorted({updates_in_short(_as_chosen(row)["ddm, updates"]) for row in same})
                ),
            }
        )
    columns: dict[str, Cell] = {name: cell("{}", name) for name in lines[0]}
    told = "; ".join(
        f"{UNSEEN[case]}: "
        + ", ".join(
            str(p) for p in sorted({r["partition"] for r in result["rows"] if r["case"] == case})
        )
        for case in dict.fromkeys(row["case"] for row in result["rows"])
    )
    note = f"Halves of the groups / single groups. Partitions: {told}. {machine(result)}"
    return f"{markdown(columns, lines)}\n\n{note}"


def cifar10_rivals(result: Result) -> str:
    """Estimators on CIFAR-10, a line each; what retrains is the last."""
    lines: dict[str, Row] = {}
    for row in result["rows"]:
        column = "halves" if row["score"].startswith("LDS") else "single groups"
        low, high = row["over_rows"]
        line = lines.setdefault(row["estimator"], {"": row["estimator"]})
        line[column] = f"{row['value']:.2f} ({low:.2f} to {high:.2f})"
        retrained = lines.setdefault("one retraining", {"": "*one retraining*"})
        retrained[column] = f"{row['one_retraining']:.2f}"
    order = sorted(lines.values(), key=lambda line: (line[""].startswith("*"), line["halves"]))
    order = [*reversed([line for line in order if not line[""].startswith("*")]), order[-1]]
    columns: dict[str, Cell] = {name: cell("{}", name) for name in ("", "halves", "single groups")}
    halves, single = result.get("subsets", 12), result.get("groups", 10)
    note = f"{halves} halves and {single} single groups, 2 seeds each; 95 % over what was removed. "
    return f"{markdown(columns, order)}\n\n{note}{partitions(result)}{machine(result)}"


def task_averages(result: Result) -> str:
    """DDM over several target networks at equal online cost, means over partitions."""
    rows = []
    for same in zip(*result["rows"]["averages"], strict=True):
        row: Row = {"networks": same[0]["networks"], "synset": same[0]["synset"]}
        for score_name in ("LDS, keep 0.5", "leave-one-out"):
            row[score_name[:3]] = sum(one[score_name] for one in same) / len(same)
        rows.append(row)
    columns: dict[str, Cell] = {
        "target networks": cell("{}", "networks"),
        "synset": cell("{}", "synset"),
        "halves": cell("{:.2f}", "LDS"),
        "single groups": cell("{:.2f}", "lea"),
    }
    return f"{markdown(columns, rows)}\n\n{partitions(result)}120 steps for all networks together."


POINT_COLUMNS: dict[str, Cell] = {
    "": text("estimator"),
    "LDS": ranged("group_lds"),
    "judged by one run": score("one_run"),
    "offline": seconds("offline_seconds"),
    "online": seconds("online_seconds"),
}


def language_rows(result: Result, corpus: str) -> list[Row]:
    """An estimator a row, best on halves first; those that refuse are told in the note."""
    found: dict[str, Row] = {}
    for row in result["protocols"][corpus]["rows"]:
        if "score" in row:
            single = row["score"] == "leave-one-out"
            place = found.setdefault(row["estimator"], {"estimator": row["estimator"]})
            place["single" if single else "halves"] = row
    return sorted(found.values(), key=lambda row: -(row["halves"]["value"] or -1.0))


def with_interval(part: str) -> Cell:
    """A score with its interval over queries."""

    def written(row: Row) -> str:
        told, ends = score(f"{part}.value")(row), interval("over_queries")(row.get(part, {}))
        return f"{told} [{ends}]"

    return written


def language_note(result: Result, corpus: str) -> str:
    """Ceilings, the cost of a retraining, and what refused."""
    found = result["protocols"][corpus]
    first = next(iter(language_rows(result, corpus)))
    tokens, share = found["tokens_per_retraining"], found["share"]
    said = (
        f"{found['documents']} documents, {found['queries']} queries; intervals over queries, "
        f"95 %. A perfect predictor would reach {first['halves']['ceiling']:.3f} and "
        f"{first['single']['ceiling']:.3f}. One retraining takes "
        f"{in_seconds(found['seconds_per_retraining'])} and {tokens:,} tokens; ddm, real-data and "
        f"short-retraining take {share:.0%} of them or less an answer. "
    )
    for row in found["rows"]:
        if "error" in row:
            said += f"Refused: {row['error']}. "
    at: dict[str, set[str]] = {}
    for row in found["rows"]:
        if "commit" in row:
            at.setdefault(row["commit"], set()).add(row["estimator"])
    if set(at) - {result["commit"]}:  # estimators may be measured one by one
        most = max(at, key=lambda commit: len(at[commit]))
        others = [f"{', '.join(sorted(at[each]))} at {each}" for each in at if each != most]
        said += f"Rows of commit {most}{''.join(f'; {each}' for each in others)}. "
    return said + f"Partition {result['partition']}. "


def language_table(corpus: str) -> Table:
    """Rivals on fine-tuned language models."""
    columns: dict[str, Cell] = {
        "": dashed("estimator"),
        "halves, LDS": with_interval("halves"),
        "single documents": with_interval("single"),
        "settings for halves": chosen("halves.settings"),
        "offline": seconds("single.offline_seconds"),
        "all documents left out": seconds("single.online_seconds"),
        "peak memory": gib("single.peak_gib"),
    }
    rows, note = (partial(made, corpus=corpus) for made in (language_rows, language_note))
    return Table(columns, rows, note)


def planted_rows(result: Result) -> list[Row]:
    """The planted fact's one row."""
    return [result["planted"]]


def few_rows(result: Result) -> list[Row]:
    """A synset a row: of the items alone, and where a correction may be chosen."""
    found: dict[Any, Row] = {}
    for row in result["rows"]:
        key = tuple(row.get(name) for name in ("case", "partition", "items", "form", "part"))
        corrected = "corrected" in row.get("pools", "")
        told = found.setdefault(key, {**row, "what": row["form"]})
        if "items" in row:
            told["what"] = f"{row['items']} {row['form']}"
            told["what"] += f", the last {row['part']:.0%}" if row["form"] == "distilled" else ""
        told["corrected" if corrected else "plain"] = row
    return list(found.values())


def shakespeare_note(result: Result) -> str:
    """The truth of the protocol, and its ceiling."""
    said = (
        f"{result['blocks']:,} blocks, {result['queries']} queries, {result['halves']} halves of "
        "one network each. "
    )
    if "perfect" in result:
        said += (
            f"By {result['again']} halves of two networks one more retraining scores "
            f"{result['one_retraining']:.3f}, and a perfect predictor {result['perfect']:.3f}. "
        )
    return said


TABLES: dict[str, Table | Callable[[Result], str]] = {
    "digits_protocol": Table(
        lambda result: group_columns(result) | {"all 50 groups": seconds("seconds_all_groups")},
        "mean",
        offline_note,
    ),
    "mnist_groups": Table(group_columns, "mean", offline_note),
    "comparison": Table(HALVES, halves, "Partition {partition}. ", tuple(POINTS)),
    "comparison.headline": Table(
        HEADLINE_COLUMNS,
        partial(halves, names=HEADLINE),
        "Partition {partition}. ",
    ),
    "comparison.partitions": several_partitions,
    "comparison.mislabelled": Table(WRONG_LABELS, wrong_labels),
    **{f"comparison.{case}": protocol_table(case) for case in (*GROUPS, *POINTS)},
    "quality": detection("uniform", "nearest"),
    "quality.images": detection("blurred", "noisy", "occluded", "copied"),
    "quality.removal": curves("without", "uniform", "nearest"),
    "quality.keep": curves("useless", "nothing"),
    "label_errors": Table(label_error_columns, note="{told}"),
    "digits_removal": Table(
        removal_columns,
        removal_rows,
        "{told}With everything the noisy networks reach {curves[0][without_worst][0]:.1%}. ",
    ),
    "points": Table(POINT_COLUMNS, "digits", "{told}"),
    "points_dattri": Table(POINT_COLUMNS, note="{told}"),
    "hierarchy": Table(
        {
            "": text("estimator"),
            "updates a query": cell("{:.0f}", "updates"),
            "LDS": ranged("group_lds"),
            "one leaf out, Pearson": ranged("pearson"),
            "one leaf out, rho": ranged("rho"),
        },
        lambda result: [row for row in result["hierarchy"] if "updates" in row],
        "{told}",
    ),
    "hierarchy.additivity": Table(
        {
            "gone together": text("subsets"),
            "by": text("by"),
            "joint with summed, Pearson": ranged("correlation"),
            "slope": ranged("slope"),
            "to the retrained joint effect: sum": ranged("sum_to_truth"),
            "datamodel": ranged("datamodel_to_truth"),
            "directly": ranged("joint_to_truth"),
        },
        "additivity",
        "{told}",
    ),
    **{f"language{part}.installed": language_table("installed") for part in ("", "_11")},
    "language.planted": Table(
        {
            "the fact is in": text("planted"),
            "named first": text("first"),
            "without it, retrained (four seeds)": cell("{:.1f} nats", "retrained"),
            "what if, predicted": lambda row: "{what_if:.1f} ± {half_width:.1f} nats".format(**row),
            "forgotten by the synset": cell("{:.1f} nats", "forgotten"),
            "part of retraining": cell("{:.2f}", "part"),
        },
        planted_rows,
        "Partition {partition}. ",
    ),
    "few_items": Table(
        {
            "": text("case"),
            "items a group": text("what"),
            "chosen by": score("plain.chosen_by"),
            "halves, LDS": score("plain.halves"),
            "single groups": score("plain.single"),
            "halves, or corrected": score("corrected.halves"),
            "single, or corrected": score("corrected.single"),
            "left of the gradients": cell("{:.3f}", "unmatched"),
            "offline": seconds("offline_seconds"),
        },
        few_rows,
        "",
    ),
    "shakespeare": Table(
        {
            "": text("estimator"),
            "LDS": score("LDS"),
            "95 % over queries": interval("over_queries"),
            "seconds": seconds("seconds"),
        },
        "rows",
        shakespeare_note,
    ),
    "language_memory": Table(
        {
            "stage": text("stage"),
            "seconds": seconds("seconds"),
            "most memory until then": cell("{:.2f} GB", "peak_gb"),
        },
        "stages",
        "{sequences:,} sequences of {tokens} tokens, {parameters:,} parameters; all gradients "
        "would be {whole_gb:.0f} GB. ",
    ),
    "unlearning": UNLEARNING,
    "unlearning_mnist": UNLEARNING,
    "networks": Table(
        likeness_columns,
        "likeness",
        "Unrelated networks share {likeness[0][ddm_chance]:.0%} of those groups. {told}",
    ),
    "networks.transfer": Table(
        transfer_columns,
        transfer_rows,
        "One group out, rho / halves, LDS. {told}",
    ),
    "privacy": Table(
        {
            "": lambda row: f"{row['case']}: {row['start']}, {row['how']}",
            "distance to the nearest training image": score("distance"),
            "copies": percent("copies"),
            "AUC of telling training from test": ranged("membership"),
            "one group out, rho": score("rho"),
            "halves, LDS": score("group_lds"),
        },
        note="M={settings[items]}. Distances in units of the median distance from a training image "
        "to its nearest other one; copies are within a tenth of that. {told}",
    ),
    "runs": Table(
        {
            "command": cell("`{}`", "command"),
            "test accuracy": percent("test_accuracy"),
            "one group out, Pearson: DDM / grad-dot / one retraining": run_agreement("single"),
            "half out, LDS: same": run_agreement("halves"),
            "offline": seconds("offline_seconds"),
            "online, all groups": seconds("online_seconds"),
            "one retraining": seconds("retraining_seconds"),
            "retraining all / online": cell("{:.2g}", "ratio"),
            "whole command": seconds("wall_seconds"),
            "peak memory": gib("peak_gib"),
        },
        run_rows,
        "Seconds of stages include compilation; one retraining is the check stage by its networks, "
        "all devices busy, with the few predictions of the check in it. ",
    ),
    "digits_truth": truth,
    "kill_store": kills,
    "cost": Table(
        {
            "N": count("points"),
            "K": count("groups"),
            "M": text("items"),
            "LDS: DDM": score("lds"),
            "one retraining": score("retraining.lds"),
            "cheapest retraining as good": rival,
            "offline": seconds("offline_seconds"),
            "online, each": milliseconds("online_seconds"),
            "retraining, each": milliseconds("retraining.seconds"),
            "online: times less": cell("{:.2g}", "online_ratio"),
            "than the cheapest": cell("{:.2g}", "online_ratio_rival"),
            "in total: times less": cell("{:.2g}", "total_ratio"),
            "than the cheapest ": cell("{:.2g}", "total_ratio_rival"),
        },
        note="{halves} halves, truth of {seeds} seeds. Totals are for leaving out each group, with "
        "the offline stage. Partition {partition}. ",
    ),
    "scaling": Table(
        {
            "varied": text("varied"),
            "network": network_of,
            "D": text("devices"),
            "N": count("points"),
            "K": count("groups"),
            "M": text("items"),
            "Q": count("queries"),
            "P": count("num_params"),
            "a distillation step": milliseconds("distill_step_seconds"),
            "compilation": seconds("distill_compile_seconds"),
            "all updates": seconds("online_seconds"),
            "compilation ": seconds("online_compile_seconds"),
            "peak MiB": cell(lambda held: f"{held / 2**20:,.0f}", "peak_bytes"),
            "expected MiB": expected_mebibytes,
        },
        note="Updates of {steps} steps, T = 8. ",
    ),
    "scaling.rates": rates,
    "scaling.predictions": predictions,
    "convolutions": Table(convolution_columns, convolution_rows, pieces_note),
    "torch_steps": Table(
        {
            "": text("network"),
            "step": lambda row: (
                f"{row['step']}, {'B' if row['step'] == 'fine-tune' else 'M'}={row['size']}, "
                f"K={row['models']}"
            ),
            "JAX, ms": torch_milliseconds("jax"),
            "PyTorch: loop": torch_milliseconds("loop"),
            "stacked / channels last": torch_milliseconds("stacked", "loop, channels last"),
            "vmap": torch_milliseconds("vmap"),
            "JAX / best PyTorch": cell("{:.2f}", "ratio_to_best"),
            "median": cell("{:.2f}", "median_ratio_to_best"),
            "GFLOP/s": cell("{:.0f}", "gflops_a_second"),
            "of matrix peak": whole_percent("share_of_peak"),
            "compilation": seconds("compile_seconds"),
        },
        note=torch_note,
    ),
    "kinds": Table(kind_columns, note=KINDS_NOTE),
    "unseen": unseen,
    "cifar10_five_epochs": cifar10_rivals,
    "cifar10_fifteen_epochs": cifar10_rivals,
    "tasks_diabetes.together": tasks_together,
    "tasks_diabetes.averages": task_averages,
    "peers": Table(
        {
            "": peer_name,
            "one run": score("value_one_run"),
            "four runs": lambda row: (
                f"failed: {row['error']}" if "error" in row else score("value")(row)
            ),
            "of ceiling": lambda row: (
                "" if "error" in row else f"{row['value'] / row['ceiling']:.0%}"
            ),
            "95 % over halves": interval("over_rows"),
            "like our grad-dot": score("agreement_with_ours"),
            "offline": seconds("offline_seconds"),
            "online": seconds("online_seconds"),
        },
        note=peers_note,
    ),
}


def main() -> None:
    """Rewrite the pages, or with --check say whether they are up to date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a page would")
    check = parser.parse_args().check
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        old = path.read_text()
        new = render(old)
        if check and old != new:
            sys.exit(f"{path.name} differs from benchmarks/results; run benchmarks/render.py")
        if not check:
            path.write_text(new)


if __name__ == "__main__":
    main()
