"""Settings: presets, overrides by text, and the file they are kept in."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest

from ddm_jax import config
from ddm_jax.plan import check_settings


@pytest.mark.parametrize("name", config.PRESETS)
def test_presets_are_valid(name):
    about, preset = config.PRESETS[name]
    assert about
    assert config.preset(name) == preset
    check_settings(preset)


def test_the_bare_defaults_are_valid_settings_for_digits():
    assert config.Config().data.name == "digits"
    check_settings(config.Config())


def test_an_unknown_preset_is_named():
    with pytest.raises(ValueError, match="unknown preset 'digit'; choose one of digits, mnist"):
        config.preset("digit")


def test_a_data_set_without_its_own_preset_gets_images():
    assert config.default_preset("mnist") == "mnist"
    assert config.default_preset("svhn_cropped") == "images"


@pytest.mark.parametrize(
    ("assignment", "name", "value"),
    [
        ("seed=7", "seed", 7),
        ("data.name=mnist", "data.name", "mnist"),
        ("data.train_size=50", "data.train_size", 50),
        ("data.train_size=none", "data.train_size", None),
        ("data.train_size=None", "data.train_size", None),
        ("data.data_dir=~/a=b", "data.data_dir", "~/a=b"),
        ("data.label_noise=0.25", "data.label_noise", 0.25),
        ("train.weight_decay=1e-4", "train.weight_decay", 1e-4),
        ("train.learning_rate=1", "train.learning_rate", 1.0),
        ("model.hidden=128,64", "model.hidden", (128, 64)),
        ("model.hidden=128", "model.hidden", (128,)),
        ("model.hidden=", "model.hidden", ()),
        ("model.blocks= 2,2 ", "model.blocks", (2, 2)),
        ("distill.learn=x,y,mass", "distill.learn", ("x", "y", "mass")),
        (" distill.items = 3 ", "distill.items", 3),
        ("truth.paired=false", "truth.paired", False),
        ("truth.leave_one_out= True ", "truth.leave_one_out", True),
        ("truth.keep=0.3,0.5", "truth.keep", (0.3, 0.5)),
        ("truth.keep=0.75", "truth.keep", (0.75,)),
        ("model.dropout=0.1", "model.dropout", 0.1),
        ("train.last_batch=keep", "train.last_batch", "keep"),
        ("data.normalise=0.1307/0.3081", "data.normalise", "0.1307/0.3081"),
    ],
)
def test_overrides_are_parsed_by_type(assignment, name, value):
    changed = config.settings(config.override(config.Config(), [assignment]))
    assert changed[name] == value
    assert type(changed[name]) is type(value)
    before = config.settings(config.Config())
    assert {n for n in before if before[n] != changed[n]} <= {name}


def test_overrides_follow_one_another():
    changed = config.override(config.Config(), ["seed=1", "distill.items=2", "seed=3"])
    assert (changed.seed, changed.distill.items) == (3, 2)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("distill.item=3", "unknown setting 'distill.item'; did you mean distill.items?"),
        ("zzzzzz=3", "unknown setting 'zzzzzz'; `ddm settings` lists all"),
        ("distill=3", "unknown setting 'distill'"),
        ("distill.items.x=3", "unknown setting 'distill.items.x'"),
        ("distill.items", "write stage.field=value"),
        ("distill.items=two", "items='two'; it must be of type int"),
        ("distill.items=2.5", "items='2.5'; it must be of type int"),
        ("distill.items=none", "items='none'; it must be of type int"),
        ("distill.items=", "items=''; it must be of type int"),
        ("train.momentum=much", "momentum='much'; it must be of type float"),
        ("model.hidden=64,x", r"hidden='64,x'; it must be of type tuple"),
        ("seed=one", "seed='one'; it must be of type int"),
        ("truth.paired=yes", "paired='yes'; it must be of type bool (true or false)"),
        ("truth.paired=1", "paired='1'; it must be of type bool (true or false)"),
        ("truth.paired=", "paired=''; it must be of type bool (true or false)"),
        ("truth.keep=half", "keep='half'; it must be of type tuple"),
        ("truth.keep=0.3;0.5", "keep='0.3;0.5'; it must be of type tuple"),
        ("truth.seed=3", "unknown setting 'truth.seed'; did you mean truth.seeds?"),
    ],
)
def test_wrong_overrides_are_named(assignment, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        config.override(config.Config(), [assignment])


@pytest.mark.parametrize("name", config.PRESETS)
def test_save_and_load_round_trip(tmp_path, name):
    chosen = config.override(config.preset(name), ["seed=5", "model.hidden=9,8"])
    config.save(chosen, tmp_path / "config.json")
    loaded = config.load(tmp_path / "config.json")
    assert loaded == chosen
    assert config.differences(loaded, chosen) == []
    json.loads((tmp_path / "config.json").read_text())


def test_a_file_from_before_the_truth_is_read_with_its_defaults(tmp_path):
    config.save(config.preset("mnist"), tmp_path / "config.json")
    raw = json.loads((tmp_path / "config.json").read_text())
    del raw["truth"]
    newer = {"data": ("order", "noise_kind"), "model": ("dropout", "initial")}
    for stage, names in (newer | {"train": ("last_batch",)}).items():
        for name in names:
            del raw[stage][name]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    want = dataclasses.replace(config.preset("mnist"), truth=config.TruthConfig())
    assert config.load(tmp_path / "config.json") == want
    assert want != config.preset("mnist"), "the preset has a truth of its own"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"unknown": 1}', '{"data": {"unknown": 1}}', '"digits"']
)
def test_damaged_files_are_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config.json cannot be read as settings"):
        config.load(tmp_path / "config.json")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"config.json cannot be read as settings"):
        config.load(tmp_path / "config.json")


def test_differences_name_old_and_new():
    new = config.override(config.Config(), ["distill.items=2", "seed=1"])
    assert config.differences(config.Config(), new) == ["seed 0 -> 1", "distill.items 10 -> 2"]


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.Config().seed = 1
