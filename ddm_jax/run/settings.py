"""The settings of a run: one frozen dataclass a section, presets, overrides `section.field=value`.

Each section is declared where the code is that it sets, and says there what is allowed. Here they
are put together; what several of them must agree on is checked in `Config`, and nowhere else.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
import types
import typing
from collections.abc import Iterable
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field, TypeAdapter, model_validator

from ddm_jax import checks
from ddm_jax.distill import DistillSettings
from ddm_jax.judge.problem import TruthSettings
from ddm_jax.train import TrainSettings
from ddm_jax.tuning import TuneSettings
from ddm_jax.updates import UpdateSettings

Count = Annotated[int, Field(ge=1)]
GIVEN = "given"  # data or a model that came from Python, where no setting describes them


@checks.settings("data")
class DataSettings:
    """What is loaded; see `data.load`."""

    name: str = "digits"
    train_size: Count | None = None
    test_size: Count | None = None
    order: Literal["random", "original"] = "random"
    label_noise: Annotated[float, Field(ge=0, lt=1)] = 0.0
    noise_kind: Literal["uniform", "nearest"] = "uniform"
    normalise: str = "unit"  # unit, standard or <mean>/<deviation>
    image_size: Annotated[int, Field(ge=1, le=10_000)] | None = None
    data_dir: str | None = None
    target: str | None = None  # the column to predict; none: target, label, class, y, or the last
    groups: str | None = None  # the column that says the group of each row
    drop: tuple[str, ...] = ()  # columns to leave out
    missing: Literal["refuse", "impute"] = "refuse"  # the median, and a category of their own
    words: Annotated[int, Field(ge=2, le=10**6)] = 512  # buckets that words of texts are counted in
    context: Annotated[int, Field(ge=2)] | None = None  # tokens of a sequence of a document
    tokenizer: str | None = None  # of documents; none: bytes


@checks.settings("model")
class ModelSettings:
    """The network; each kind uses the settings that it has."""

    kind: Literal["logistic", "mlp", "convnet", "resnet", "gpt", "given"] = "mlp"
    hidden: tuple[Count, ...] = (64,)  # mlp
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0  # mlp
    initial: Literal["lecun", "uniform"] = "lecun"  # mlp, logistic
    width: Count = 32  # convnet, resnet, gpt
    depth: Annotated[int, Field(ge=0)] = 3  # convnet, gpt
    heads: Count = 2  # gpt
    lora: Annotated[int, Field(ge=0)] = 0  # gpt: the rank of adapters, which then learn alone
    # gpt: the folder of a GPT-2 to fine-tune, whose sizes then hold; base: one of 64 bytes' context
    start: str | None = None
    blocks: tuple[Count, ...] = (1, 1, 1)  # resnet
    norm: Literal["instance", "group"] = "instance"  # convnet, resnet


@checks.settings("cluster")
class ClusterSettings:
    """The groups; see `cluster.make_groups`."""

    method: Literal["class_kmeans", "kmeans", "random", "class", "point", "file", "data"] = (
        "class_kmeans"  # data: the groups that the data bring
    )
    num_groups: Annotated[int, Field(ge=2)] = 50
    features: Literal["pixels", "network"] = "pixels"  # the trained network's penultimate ones
    file: str | None = None  # .npy of N integers, with method=file


@checks.settings("online")
class OnlineSettings(UpdateSettings):
    """Online: the leave-one-out updates, and what they explain."""

    # margin, loss, probability, accuracy or logit:<class> of classes; loss, prediction:<target> or
    # logit:<label> of others; output: that of a task that came from Python
    objective: str = "margin"


@checks.settings("check")
class CheckSettings:
    """The check of a run: a small truth of what the run explains, of seeds * (1 + groups + subsets)
    networks.
    """

    groups: Annotated[int, Field(ge=2)] = 8
    subsets: Annotated[int, Field(ge=0)] = 8  # random halves of the groups
    seeds: Annotated[int, Field(ge=2)] = 3


@checks.settings("")
class Config:
    """All settings of a run."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    cluster: ClusterSettings = field(default_factory=ClusterSettings)
    distill: DistillSettings = field(default_factory=DistillSettings)
    online: OnlineSettings = field(default_factory=OnlineSettings)
    tune: TuneSettings = field(default_factory=TuneSettings)
    check: CheckSettings = field(default_factory=CheckSettings)
    truth: TruthSettings = field(default_factory=TruthSettings)

    @model_validator(mode="after")
    def _agree(self) -> Config:
        """Check what one field cannot say.

        Raises:
            ValueError: naming the settings, what is allowed, and how to mend it.
        """
        train = self.train
        if train.warmup_epochs >= train.epochs:
            raise ValueError(
                f"train.warmup_epochs={train.warmup_epochs}; it must be below train.epochs, "
                f"{train.epochs}"
            )
        if train.checkpoint_every * 2 > train.epochs:
            raise ValueError(
                f"train.checkpoint_every={train.checkpoint_every} keeps fewer than two checkpoints "
                f"of {train.epochs} epochs; the trajectory needs at least two"
            )
        if self.cluster.method == "file" and self.cluster.file is None:
            raise ValueError("cluster.method=file needs cluster.file, a .npy of N integers")
        if self.cluster.method != "file" and self.cluster.file is not None:
            raise ValueError(
                f"cluster.file={self.cluster.file} is read with cluster.method=file alone; set "
                "both, or neither"
            )
        if self.truth.removal == "subset" and self.cluster.method != "point":
            raise ValueError(
                "truth.removal=subset trains on subsets of one size: it needs cluster.method=point"
            )
        return self


CHECKED: TypeAdapter[Config] = TypeAdapter(Config)

# How data of one's own are read. What comes of it is in the digest of the data.
OWN_DATA = ("target", "groups", "drop", "missing", "words", "context", "tokenizer")

# Settings that came when there were runs already. At their defaults they change nothing, and are
# left out of what results are told to be made with: no run is out of date for them.
LATER = ("model.heads", "model.lora", "model.start")

RENAMED = {"tune.real_data": "tune.pools"}

# JSON schema's words, in ours.
KINDS = {
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "boolean": "true, false",
    "null": "none",
}
BOUNDS = {
    "exclusiveMinimum": "above",
    "minimum": "at least",
    "exclusiveMaximum": "below",
    "maximum": "at most",
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


def _read_presets() -> dict[str, tuple[str, Config]]:
    """What each preset is for, and its settings: the defaults, but for what presets.toml says."""
    found = {}
    for name, sections in tomllib.loads(
        Path(__file__).with_name("presets.toml").read_text()
    ).items():
        about, nested = sections.pop("about"), as_json(Config())
        for section, values in sections.items():
            nested[section] |= values
        found[name] = (about, checked(nested))
    return found


def override(config: Config, assignments: Iterable[str]) -> Config:
    """Apply overrides such as "distill.items=2", "model.hidden=128,64" or "seed=1", together.

    Raises:
        ValueError: for an unknown setting, or a value that is not allowed.
    """
    nested, known = as_json(config), settings(config)
    for assignment in assignments:
        name, equals, text = (part.strip() for part in assignment.partition("="))
        if not equals:
            raise ValueError(f"--set {assignment!r}; write section.field=value")
        if name not in known:
            close = [RENAMED[name]] if name in RENAMED else []
            close = close or difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {close[0]}?" if close else "; `ddm settings` lists all"
            raise ValueError(f"unknown setting {name!r}{hint}")
        section, _, entry = name.rpartition(".")
        owner = getattr(config, section) if section else config
        value = _parse(typing.get_type_hints(type(owner))[entry], text)
        (nested[section] if section else nested)[entry] = value
    return checked(nested)


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


def told(config: Config, sections: Iterable[str]) -> dict[str, Any]:
    """The settings of some sections, by which results are told to be made; see LATER."""
    usual, names = settings(Config()), set(sections)
    return {
        name: value
        for name, value in settings(config).items()
        if name.split(".")[0] in names and not (name in LATER and value == usual[name])
    }


def allowed() -> dict[str, str]:
    """What each setting may be, by its full name, as its field declares it."""
    schema = CHECKED.json_schema()
    said: dict[str, str] = {}
    for name, entry in schema["properties"].items():
        if "$ref" not in entry:
            said[name] = _said(entry)
            continue
        section = schema["$defs"][entry["$ref"].rpartition("/")[2]]
        said |= {f"{name}.{inner}": _said(told) for inner, told in section["properties"].items()}
    return said


def differences(old: Config, new: Config) -> list[str]:
    """The settings that differ, as "name old -> new"."""
    before, after = settings(old), settings(new)
    return [f"{n} {before[n]} -> {after[n]}" for n in before if before[n] != after[n]]


def as_json(config: Config) -> dict[str, Any]:
    """All settings, section by section, in JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def checked(nested: dict[str, Any]) -> Config:
    """Settings of JSON values, which are checked strictly and all together."""
    try:
        return CHECKED.validate_json(json.dumps(nested))
    except pydantic.ValidationError as error:
        raise ValueError(checks.one_line(error)) from None


def _parse(kind: Any, text: str) -> Any:
    """The value that a text means; what cannot be read stays a text, for the check to refuse."""
    options = typing.get_args(kind) if _is_union(kind) else (kind,)
    if types.NoneType in options and text.lower() == "none":
        return None
    kind = next(option for option in options if option is not types.NoneType)
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)[0]
        return [_parse(inner, part.strip()) for part in text.split(",") if part.strip()]
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        return kind(text) if kind in (int, float) else text
    except ValueError:
        return text


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (typing.Union, types.UnionType)


def _said(schema: dict[str, Any]) -> str:
    """What a JSON schema allows, in words."""
    if "anyOf" in schema:
        return " or ".join(map(_said, schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return ", ".join(schema.get("enum", [schema.get("const")]))
    if schema["type"] == "array":
        return f"several of: {_said(schema['items'])}"
    said = [f"{word} {schema[name]:,}" for name, word in BOUNDS.items() if name in schema]
    return ", ".join([KINDS[schema["type"]], *said])


PRESETS = _read_presets()
