"""Settings: frozen dataclasses, one a stage, presets, and overrides `stage.field=value`."""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class DataConfig:
    """What is loaded; see `data.load`."""

    name: str = "digits"
    train_size: int | None = None
    test_size: int | None = None
    order: str = "random"  # random or original
    label_noise: float = 0.0
    noise_kind: str = "uniform"  # uniform or nearest
    normalise: str = "unit"  # unit, standard or <mean>/<deviation>
    image_size: int | None = None
    data_dir: str | None = None


@dataclass(frozen=True)
class ModelConfig:
    """The network; each kind uses the settings that it has."""

    kind: str = "mlp"  # logistic, mlp, convnet or resnet
    hidden: tuple[int, ...] = (64,)  # mlp
    dropout: float = 0.0  # mlp
    initial: str = "lecun"  # mlp, logistic: lecun or uniform
    width: int = 32  # convnet, resnet
    depth: int = 3  # convnet
    blocks: tuple[int, ...] = (1, 1, 1)  # resnet
    norm: str = "instance"  # convnet, resnet: instance or group


@dataclass(frozen=True)
class TrainConfig:
    """Target training: SGD with a cosine schedule."""

    epochs: int = 40
    batch_size: int = 100
    learning_rate: float = 0.3
    final_learning_rate: float = 0.3  # equal to learning_rate: constant
    warmup_epochs: int = 0
    momentum: float = 0.0
    weight_decay: float = 1e-3
    last_batch: str = "drop"  # drop, or keep it though it is smaller
    checkpoint_every: int = 1  # epochs


@dataclass(frozen=True)
class ClusterConfig:
    """The groups; see `cluster.make_groups`."""

    method: str = "class_kmeans"  # class_kmeans, kmeans, random, class, point or file
    num_groups: int = 50
    features: str = "pixels"  # pixels, or network: the trained network's penultimate features
    file: str | None = None  # .npy of N integers, with method=file


@dataclass(frozen=True)
class DistillConfig:
    """Offline: the synset and its matching; see `synset.initial_synset`, `distill`."""

    items: int = 10
    start: str = "pursuit"  # pursuit, random, central or noise
    distance: str = "squared"  # squared, whitened, layer_cosine or row_cosine
    balance: float = 0.5
    learn: tuple[str, ...] = ("x", "y", "mass")
    part: float = 0.75
    offset: int = 0
    optimizer: str = "adam"  # adam, sgd or nesterov
    learning_rate: float = 0.005
    steps: int = 3000
    points_per_step: int = 1
    precision: str = "float32"  # of the gradients to match: float32, or bfloat16 for less memory


@dataclass(frozen=True)
class OnlineConfig:
    """Online: the leave-one-out updates and what they explain; see `loo.make_finetune`."""

    update: str = "retain"  # retain or forget
    design: str = "difference"  # difference, or masks: random masks and a ridge regression
    masks: int = 200  # with design=masks
    steps: int = 50
    step_items: int = 5  # of each group, in turn; all where there are fewer
    learning_rate: float = 0.0  # 0: half of what is stable on the synset, see loo.stable_rate
    momentum: float = 0.9  # Nesterov
    rewind: float = 0.0
    objective: str = "margin"  # margin, loss, probability, accuracy or logit:<class>


@dataclass(frozen=True)
class CheckConfig:
    """The check against exact retraining: seeds * (1 + groups + subsets) networks."""

    groups: int = 8
    subsets: int = 8  # random halves of the groups
    seeds: int = 3


@dataclass(frozen=True)
class TruthConfig:
    """Ground truth for `ddm truth` and `ddm compare`, by exact retraining; see `truth`.

    `seeds * (1 + groups)` networks where single groups are left out, and `subset_seeds * subsets`
    for each keep fraction.
    """

    objective: str = "loss"  # as online.objective
    leave_one_out: bool = True  # retrain without each group
    seeds: int = 8  # of everything kept and of each group left out
    subsets: int = 40  # random subsets of the groups, for each keep fraction
    keep: tuple[float, ...] = (0.5,)
    subset_seeds: int = 8
    paired: bool = True  # networks of one seed share initialisation and batch order
    removal: str = "weights"  # weights: same steps, weight 0; subset: train on what is kept alone


@dataclass(frozen=True)
class Config:
    """All settings of a run."""

    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    online: OnlineConfig = field(default_factory=OnlineConfig)
    check: CheckConfig = field(default_factory=CheckConfig)
    truth: TruthConfig = field(default_factory=TruthConfig)


# dattri (arXiv 2410.04555): the first images in the original order, halves of the training points,
# each a training set of its own.
DATTRI_DATA = DataConfig("mnist", 5000, 500, order="original", normalise="0.1307/0.3081")
DATTRI_TRUTH = TruthConfig(
    leave_one_out=False, subsets=50, subset_seeds=4, paired=False, removal="subset"
)

PRESETS: dict[str, tuple[str, Config]] = {
    "digits": (
        "1,000 digits of 8x8, MLP 64-64-10, 50 groups",
        Config(
            distill=DistillConfig(distance="whitened", part=0.8), online=OnlineConfig(rewind=0.75)
        ),
    ),
    "mnist": (
        "5,000 images of 28x28, MLP 784-128-64-10, 50 groups",
        Config(
            data=DataConfig("mnist", 5000, 500),
            model=ModelConfig(hidden=(128, 64)),
            train=TrainConfig(20, 100, 0.1, 0.005, momentum=0.9),
            distill=DistillConfig(items=20, steps=1000),
            online=OnlineConfig(steps=100, momentum=0.95),
            truth=TruthConfig(subset_seeds=4),
        ),
    ),
    "mnist-convnet": (
        "5,000 images of 28x28, ConvNet of width 32, 20 groups",
        Config(
            data=DataConfig("mnist", 5000, 500),
            model=ModelConfig("convnet"),
            train=TrainConfig(6, 100, 0.05, 0.001, momentum=0.9),
            cluster=ClusterConfig(num_groups=20),
            distill=DistillConfig(items=20, steps=100),
            online=OnlineConfig(steps=50, momentum=0.95),
            check=CheckConfig(groups=4, subsets=4, seeds=2),
            truth=TruthConfig(seeds=8, subsets=20, subset_seeds=4),
        ),
    ),
    "mnist-60k": (
        "all 60,000 images of 28x28, ConvNet of width 32, 100 groups",
        Config(
            data=DataConfig("mnist", 60_000, 1000),
            model=ModelConfig("convnet"),
            train=TrainConfig(5, 100, 0.05, 0.001, momentum=0.9),
            cluster=ClusterConfig(num_groups=100),
            distill=DistillConfig(items=2, steps=1000),
            online=OnlineConfig(steps=25),
            check=CheckConfig(groups=6, subsets=10, seeds=2),
            truth=TruthConfig(seeds=2, subsets=12, subset_seeds=2),
        ),
    ),
    "images": (
        "any other image set: 2,000 images, ConvNet of width 32, 20 groups",
        Config(
            data=DataConfig("cifar10", 2000, 500, normalise="standard"),
            model=ModelConfig("convnet"),
            train=TrainConfig(15, 100, 0.05, 0.001, momentum=0.9),
            cluster=ClusterConfig(num_groups=20),
            distill=DistillConfig(steps=150),
            online=OnlineConfig(steps=50, momentum=0.95),
            check=CheckConfig(groups=4, subsets=4, seeds=2),
        ),
    ),
    "cifar10-convnet": (
        "10,000 images of 32x32x3, ConvNet of width 16, 20 groups",
        Config(
            data=DataConfig("cifar10", 10_000, 2000, normalise="standard"),
            model=ModelConfig("convnet", width=16),
            train=TrainConfig(5, 100, 0.05, 0.001, momentum=0.9),
            cluster=ClusterConfig(num_groups=20),
            distill=DistillConfig(items=20, steps=100),
            online=OnlineConfig(steps=50, momentum=0.95),
            check=CheckConfig(groups=4, subsets=4, seeds=2),
            truth=TruthConfig(seeds=6, subsets=20, subset_seeds=4),
        ),
    ),
    "dattri-lr": (
        "dattri's MNIST protocol, logistic regression; for `ddm truth` and `ddm compare`",
        Config(
            data=DATTRI_DATA,
            model=ModelConfig("logistic", initial="uniform"),
            train=TrainConfig(20, 32, 0.01, 0.01, weight_decay=0.0, last_batch="keep"),
            cluster=ClusterConfig("point"),
            truth=DATTRI_TRUTH,
        ),
    ),
    "dattri-mlp": (
        "the same, MLP 784-128-64-10 with dropout",
        Config(
            data=DATTRI_DATA,
            model=ModelConfig("mlp", (128, 64), dropout=0.1, initial="uniform"),
            train=TrainConfig(
                50, 64, 0.01, 0.01, momentum=0.9, weight_decay=0.0, last_batch="keep"
            ),
            cluster=ClusterConfig("point"),
            truth=DATTRI_TRUTH,
        ),
    ),
}


def default_preset(dataset: str) -> str:
    """The preset of a data set: its own where it has one, else "images"."""
    return dataset if dataset in PRESETS else "images"


def preset(name: str) -> Config:
    """Look up a preset.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[name][1]


def override(config: Config, assignments: Iterable[str]) -> Config:
    """Apply overrides such as "distill.items=2", "model.hidden=128,64" or "seed=1".

    Raises:
        ValueError: for an unknown setting or a value of the wrong type.
    """
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        path = name.strip().split(".")
        if not equals:
            raise ValueError(f"--set {assignment!r}; write stage.field=value")
        known = settings(config)
        if name.strip() not in known:
            close = difflib.get_close_matches(name.strip(), known, 1)
            hint = f"; did you mean {close[0]}?" if close else "; `ddm settings` lists all"
            raise ValueError(f"unknown setting {name.strip()!r}{hint}")
        if len(path) == 1:
            config = dataclasses.replace(config, **{path[0]: _parse(Config, path[0], text)})
        else:
            stage = getattr(config, path[0])
            value = _parse(type(stage), path[1], text)
            stage = dataclasses.replace(stage, **{path[1]: value})
            config = dataclasses.replace(config, **{path[0]: stage})
    return config


def settings(config: Config) -> dict[str, Any]:
    """All settings by their full name, for example "distill.items"."""
    flat: dict[str, Any] = {}
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        if dataclasses.is_dataclass(value):
            for inner in dataclasses.fields(value):
                flat[f"{entry.name}.{inner.name}"] = getattr(value, inner.name)
        else:
            flat[entry.name] = value
    return flat


def differences(old: Config, new: Config) -> list[str]:
    """The settings that differ, as "name old -> new"."""
    before, after = settings(old), settings(new)
    return [f"{n} {before[n]} -> {after[n]}" for n in before if before[n] != after[n]]


def save(config: Config, path: Path) -> None:
    """Write config.json."""
    path.write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")


def load(path: Path) -> Config:
    """Read config.json.

    Raises:
        ValueError: when it is damaged or was written by another version.
    """
    try:
        raw = json.loads(path.read_text())
        stages = typing.get_type_hints(Config)
        parts = {
            name: _rebuild(stages[name], value) if isinstance(value, dict) else value
            for name, value in raw.items()
        }
        return Config(**parts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} cannot be read as settings ({error}); use another --workdir, or mend it"
        ) from error


def _rebuild(kind: type, values: dict[str, Any]) -> Any:
    return kind(**{n: tuple(v) if isinstance(v, list) else v for n, v in values.items()})


def _parse(owner: type, name: str, text: str) -> Any:
    hint = typing.get_type_hints(owner)[name]
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    text = text.strip()
    if type(None) in options and text.lower() == "none":
        return None
    kind = next(option for option in options if option is not type(None))
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if typing.get_origin(kind) is tuple:
            inner = typing.get_args(kind)[0]
            return tuple(inner(part) for part in text.split(",") if part)
        return kind(text)
    except (ValueError, KeyError) as error:
        shown = "bool (true or false)" if kind is bool else getattr(hint, "__name__", str(hint))
        raise ValueError(f"{name}={text!r}; it must be of type {shown}") from error
