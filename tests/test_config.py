"""Settings: presets, overrides by text, what is allowed, and the file they are kept in."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest

from ddm_jax.files import plain
from ddm_jax.judge.problem import TruthSettings
from ddm_jax.run import settings as config
from ddm_jax.run import settings_file


@pytest.mark.parametrize("name", config.PRESETS)
def test_a_preset_has_a_name_and_a_word_about_it(name):
    about, preset = config.PRESETS[name]
    assert about
    assert config.preset(name) == preset


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
        ("online.learning_rate=0.1", "online.learning_rate", 0.1),
        ("online.learning_rate=none", "online.learning_rate", None),
        ("online.batch=40", "online.batch", 40),
        ("online.steps=none", "online.steps", None),
        ("online.optimizer=deflated", "online.optimizer", "deflated"),
        ("tune.subsets=0", "tune.subsets", 0),
        ("tune.share=1", "tune.share", 1.0),
        ("online.objective=logit:3", "online.objective", "logit:3"),
        ("model.hidden=128,64", "model.hidden", (128, 64)),
        ("model.hidden=128", "model.hidden", (128,)),
        ("model.hidden=", "model.hidden", ()),
        ("model.blocks= 2,2 ", "model.blocks", (2, 2)),
        ("distill.learn=x,y,mass", "distill.learn", ("x", "y", "mass")),
        (" distill.items = 3 ", "distill.items", 3),
        ("truth.groups=5", "truth.groups", 5),
        ("truth.keep=0.3,0.5", "truth.keep", (0.3, 0.5)),
        ("truth.keep=0.75", "truth.keep", (0.75,)),
        ("model.dropout=0.1", "model.dropout", 0.1),
        ("train.last_batch=keep", "train.last_batch", "keep"),
        ("train.optimizer=adamw", "train.optimizer", "adamw"),
        ("train.clip=1", "train.clip", 1.0),
        ("train.clip=none", "train.clip", None),
        ("data.normalise=0.1307/0.3081", "data.normalise", "0.1307/0.3081"),
    ],
)
def test_overrides_are_parsed_by_type(assignment, name, value):
    changed = config.settings(config.override(config.Config(), [assignment]))
    assert changed[name] == value
    assert type(changed[name]) is type(value)
    before = config.settings(config.Config())
    assert {n for n in before if before[n] != changed[n]} <= {name}


def test_overrides_follow_one_another_and_are_checked_together():
    changed = config.override(config.Config(), ["seed=1", "distill.items=2", "seed=3"])
    assert (changed.seed, changed.distill.items) == (3, 2)
    # Neither is allowed without the other.
    pair = ["truth.leave_one_out=false", "truth.paired= False "]
    for assignments in (pair, pair[::-1]):
        assert not config.override(config.Config(), assignments).truth.paired
    with pytest.raises(ValueError, match=r"truth\.leave_one_out=true needs truth\.paired"):
        config.override(config.Config(), pair[1:])


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("distill.item=3", "unknown setting 'distill.item'; did you mean distill.items?"),
        ("zzzzzz=3", "unknown setting 'zzzzzz'; `ddm settings` lists all"),
        ("distill=3", "unknown setting 'distill'"),
        ("distill.items.x=3", "unknown setting 'distill.items.x'"),
        ("distill.items", "write section.field=value"),
        ("distill.items=two", "distill.items='two'; it must be a valid integer"),
        ("distill.items=2.5", "distill.items='2.5'; it must be a valid integer"),
        ("distill.items=none", "distill.items='none'; it must be a valid integer"),
        ("distill.items=", "distill.items=''; it must be a valid integer"),
        ("distill.items=0", "distill.items=0; it must be at least 1"),
        ("distill.distance=cosine", "distill.distance='cosine'; choose one of 'squared'"),
        ("distill.optimizer=nesterov", "distill.optimizer='nesterov'; choose one of 'adam', 'sgd'"),
        ("distill.learn=x,z", "distill.learn names 'z'; name x, y, mass"),
        ("train.momentum=much", "train.momentum='much'; it must be a valid number"),
        ("train.momentum=1", "train.momentum=1.0; it must be below 1"),
        (
            "train.optimizer=adamm",
            "optimizer='adamm'; it must be the name of an optimiser of optax",
        ),
        ("train.clip=0", "train.clip=0.0; it must be above 0"),
        ("train.epochs=1e12", "train.epochs='1e12'; it must be a valid integer"),
        ("train.learning_rate=nan", "train.learning_rate=nan; it must be a finite number"),
        ("train.warmup_epochs=40", "train.warmup_epochs=40; it must be below train.epochs, 40"),
        ("train.checkpoint_every=21", "train.checkpoint_every=21 keeps fewer than two checkpoints"),
        ("model.hidden=64,x", "'x'; it must be a valid integer"),
        ("model.hidden=64,0", "0; it must be at least 1"),
        ("cluster.method=file", "cluster.method=file needs cluster.file"),
        ("online.design=masks", "unknown setting 'online.design'"),
        ("online.step_items=5", "unknown setting 'online.step_items'"),
        ("online.steps=0", "online.steps=0; it must be at least 1"),
        ("online.rate_factor=11", "online.rate_factor=11.0; it must be at most 10"),
        ("tune.subsets=2", "tune.subsets=2; it must be at least 4 to choose by, or 0 to choose"),
        ("tune.seeds=1", "tune.seeds=1; it must be at least 2"),
        ("tune.share=0", "tune.share=0.0; it must be above 0"),
        ("seed=one", "seed='one'; it must be a valid integer"),
        ("seed=-1", "seed=-1; it must be at least 0"),
        ("seed=4294967296", "seed=4294967296; it must be below"),
        ("truth.paired=yes", "truth.paired='yes'; it must be a valid boolean"),
        ("truth.paired=1", "truth.paired='1'; it must be a valid boolean"),
        ("truth.paired=", "truth.paired=''; it must be a valid boolean"),
        ("truth.keep=half", "'half'; it must be a valid number"),
        ("truth.keep=0.3;0.5", "'0.3;0.5'; it must be a valid number"),
        ("truth.seed=3", "unknown setting 'truth.seed'; did you mean truth.seeds?"),
        ("check.seeds=1", "check.seeds=1; it must be at least 2"),
    ],
)
def test_wrong_overrides_are_named_in_one_line(assignment, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        config.override(config.Config(), [assignment])
    assert "\n" not in str(caught.value)


def test_a_subset_of_points_is_no_subset_of_groups():
    subset = ["truth.removal=subset", "truth.leave_one_out=false"]
    assert config.override(config.Config(), [*subset, "cluster.method=point"])
    with pytest.raises(ValueError, match=r"it needs cluster\.method=point"):
        config.override(config.Config(), subset)


def test_what_is_allowed_is_said_of_every_setting():
    said = config.allowed()
    assert said.keys() == config.settings(config.Config()).keys()
    assert said["model.kind"] == "logistic, mlp, convnet, resnet, gpt, given"
    assert said["distill.points_per_step"] == "a whole number, at least 1"
    assert said["train.momentum"] == "a number, at least 0, below 1"
    assert said["train.optimizer"] == "text"
    assert said["train.clip"] == "a number, above 0 or none"
    assert said["distill.learn"] == "several of: text"
    assert said["online.batch"] == "a whole number, at least 1 or none"
    assert said["tune.share"] == "a number, above 0, at most 1"
    assert said["data.train_size"] == "a whole number, at least 1 or none"
    assert said["truth.paired"] == "true, false"
    assert said["seed"] == "a whole number, at least 0, below 4,294,967,296"


# The file


@pytest.mark.parametrize("name", config.PRESETS)
def test_save_and_load_round_trip(tmp_path, name):
    chosen = config.override(config.preset(name), ["seed=5", "model.hidden=9,8"])
    settings_file.save(chosen, tmp_path / "config.json")
    loaded = settings_file.load(tmp_path / "config.json")
    assert loaded == chosen
    assert config.differences(loaded, chosen) == []
    assert config.settings(loaded) == config.settings(chosen)
    assert type(loaded.online) is config.OnlineSettings
    assert type(loaded.truth) is TruthSettings


@pytest.fixture
def path(tmp_path):
    settings_file.save(config.preset("mnist"), tmp_path / "config.json")
    return tmp_path / "config.json"


def _edit(path, edit) -> None:
    """Edit the settings, and what was written too, so that nothing but they can be refused."""
    raw = json.loads(path.read_text())
    edit(raw["settings"])
    path.write_text(json.dumps(raw | {"written": json.dumps(raw["settings"])}))


def test_an_edited_file_is_refused_with_what_was_changed(path):
    """On 0.8 the run was done again with 21 epochs, over the old one."""
    text = path.read_text()
    path.write_text(text.replace('"epochs": 20', '"epochs": 21', 1).replace('"mass"\n', '"mass" '))
    with pytest.raises(ValueError, match=r"was edited since it was written \(train\.epochs 20 ->"):
        settings_file.load(path)
    path.write_text(text.replace("  ", "\t"))
    assert settings_file.load(path) == config.preset("mnist")


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("truth", "paired", "false"),
        ("truth", "paired", 1),
        ("truth", "paired", None),
        ("truth", "keep", 0.5),
        ("truth", "keep", ["0.5"]),
        ("truth", "seeds", 8.5),
        ("truth", "seeds", True),
        ("train", "epochs", "8"),
        ("train", "epochs", 8.0),
        ("train", "epochs", [8]),
        ("train", "epochs", 0),
        ("train", "epochs", 10**12),
        ("train", "momentum", None),
        ("train", "momentum", "0.9"),
        ("train", "weight_decay", float("inf")),
        ("train", "last_batch", "Keep"),
        ("model", "hidden", 64),
        ("model", "hidden", [64.5]),
        ("model", "hidden", "64"),
        ("model", "kind", 3),
        ("data", "name", None),
        ("data", "train_size", 0),
        ("cluster", "num_groups", 2.5),
        ("distill", "learn", "x"),
        ("distill", "learn", []),
        ("distill", "items", {}),
        ("online", "steps", -1),
        ("check", "seeds", 1),
    ],
)
def test_a_wrong_type_in_the_file_is_refused_by_name(path, section, name, value):
    _edit(path, lambda settings: settings[section].update({name: value}))
    with pytest.raises(
        ValueError, match=rf"cannot be read as settings .*{section}\.{name}"
    ) as told:
        settings_file.load(path)
    assert "\n" not in str(told.value)


def test_missing_settings_are_named_and_not_the_defaults(path):
    """0.8 took the class's defaults, where the preset has others."""

    def edit(settings):
        del settings["truth"], settings["data"]["order"], settings["seed"]

    _edit(path, edit)
    message = r"seed, data\.order, truth\.objective, .* are missing; ddm_jax .* wrote it"
    with pytest.raises(ValueError, match=message):
        settings_file.load(path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda settings: settings["data"].update(unknown=1), r"data\.unknown is no setting"),
        (lambda settings: settings.update(unknown={}), "unknown is no setting"),
        (lambda settings: settings.update(data="digits"), r"cannot be read as settings"),
    ],
)
def test_unknown_settings_are_refused(path, edit, message):
    _edit(path, edit)
    with pytest.raises(ValueError, match=message):
        settings_file.load(path)


# What 0.10 wrote of the online stage where nobody set anything.
ONLINE_OF_010 = {
    "update": "retain",
    "steps": 50,
    "step_items": 5,
    "optimizer": None,
    "learning_rate": None,
    "schedule": "constant",
    "momentum": 0.95,
    "rewind": 0.0,
    "objective": "margin",
}


def _nested_of_011() -> dict:
    """The settings of the preset mnist as 0.11 wrote them: there were no documents."""
    nested = config.as_json(config.preset("mnist"))
    for name in ("context", "tokenizer"):
        del nested["data"][name]
    for name in ("heads", "lora", "start"):
        del nested["model"][name]
    del nested["tune"]["pools"]
    nested["tune"]["real_data"] = True
    return nested


@pytest.mark.parametrize("version", ["0.11.0", "0.12.0"])
def test_what_kept_steps_from_the_training_data_keeps_them_to_the_synset(tmp_path, version):
    nested = config.as_json(config.preset("mnist"))
    del nested["tune"]["pools"]
    nested["tune"]["real_data"] = False
    found = settings_file.load(_write(tmp_path / "config.json", version, nested))
    assert found.tune.pools == ("synset",)


def test_the_synset_is_among_what_steps_take():
    with pytest.raises(ValueError, match=r"tune\.pools=data; .* of which synset must be one"):
        config.override(config.preset("mnist"), ["tune.pools=data"])
    with pytest.raises(ValueError, match=r"did you mean tune\.pools\?"):
        config.override(config.preset("mnist"), ["tune.real_data=false"])
    found = config.override(config.preset("mnist"), ["tune.pools=data,synset"])
    assert found.tune.pools == ("synset", "data")


def test_a_file_of_011_is_read(tmp_path):
    path = _write(tmp_path / "config.json", "0.11.0", _nested_of_011())
    assert settings_file.load(path) == config.preset("mnist")
    _write(path, "0.12.0", _nested_of_011())
    with pytest.raises(
        ValueError, match=r"data\.context, data\.tokenizer, model\.heads, .* missing"
    ):
        settings_file.load(path)


def _nested_of_010(**online) -> dict:
    """The settings of the preset mnist as 0.10 wrote them: 20 items of each of 50 groups."""
    nested = _nested_of_011()
    del nested["tune"]
    return nested | {"online": ONLINE_OF_010 | online}


def _write(path, version: str, nested: dict):
    path.write_text(
        json.dumps({"ddm_jax": version, "settings": nested, "written": json.dumps(nested)})
    )
    return path


def _renewed(batch: int, *changes: str) -> config.Config:
    """The same settings now: nothing is chosen."""
    return config.override(
        config.preset("mnist"),
        [
            "tune.subsets=0",
            "online.steps=50",
            f"online.batch={batch}",
            "online.schedule=constant",
            "online.momentum=0.95",
            "online.rewind=0",
            *changes,
        ],
    )


@pytest.mark.parametrize(("step_items", "batch"), [(5, 250), (1, 50), (None, 1000)])
def test_a_file_of_010_is_read_and_nothing_is_chosen(tmp_path, step_items, batch):
    """A step took some items of each group; None took all of them."""
    nested = _nested_of_010(step_items=step_items)
    assert (nested["cluster"]["num_groups"], nested["distill"]["items"]) == (50, 20)
    loaded = settings_file.load(_write(tmp_path / "config.json", "0.10.0", nested))
    assert loaded == _renewed(batch)
    assert loaded.online.batch == batch
    assert loaded.tune.subsets == 0
    # Written anew, it is one of now.
    settings_file.save(loaded, tmp_path / "config.json")
    assert settings_file.load(tmp_path / "config.json") == loaded


def test_a_file_of_010_that_was_edited_is_refused(tmp_path):
    path = _write(tmp_path / "config.json", "0.10.0", _nested_of_010())
    path.write_text(path.read_text().replace('"step_items": 5', '"step_items": 6', 1))
    with pytest.raises(ValueError, match=r"was edited since .* \(online\.batch 250 -> 300\)"):
        settings_file.load(path)


def test_a_file_of_now_with_the_settings_of_010_is_refused(tmp_path):
    path = _write(tmp_path / "config.json", "0.11.0", _nested_of_010())
    with pytest.raises(
        ValueError, match=r"online\.batch, online\.rate_factor, tune\.subsets, .*are"
    ):
        settings_file.load(path)


def test_a_file_of_08_is_read(tmp_path):
    old = _nested_of_010(learning_rate=0.25, design="difference", masks=200)
    del old["truth"]["groups"], old["train"]["optimizer"], old["train"]["clip"]
    del old["online"]["optimizer"]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(old))
    assert settings_file.load(path) == _renewed(250, "online.learning_rate=0.25")
    old["online"]["learning_rate"] = 0.0
    path.write_text(json.dumps(old))
    assert settings_file.load(path).online.learning_rate is None
    old["online"]["design"] = "masks"
    path.write_text(json.dumps(old))
    with pytest.raises(ValueError, match=r"online\.design is no setting"):
        settings_file.load(path)


def test_a_file_of_09_is_read_and_its_training_was_sgd(tmp_path):
    old = _nested_of_010()
    del old["train"]["optimizer"], old["train"]["clip"], old["online"]["optimizer"]
    path = _write(tmp_path / "config.json", "0.9.0", old)
    assert settings_file.load(path) == _renewed(250)
    _write(path, "0.10.0", old)
    with pytest.raises(ValueError, match=r"train\.optimizer, train\.clip, .* are missing"):
        settings_file.load(path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"unknown": 1}', '{"data": {"unknown": 1}}', '"digits"', "\x00"]
)
def test_damaged_files_are_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config.json cannot be read as settings"):
        settings_file.load(tmp_path / "config.json")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"config.json cannot be read as settings"):
        settings_file.load(tmp_path / "config.json")


def test_a_link_is_not_written_through(tmp_path):
    (tmp_path / "elsewhere").write_text("mine")
    (tmp_path / "config.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="link"):
        settings_file.save(config.Config(), tmp_path / "config.json")
    assert (tmp_path / "elsewhere").read_text() == "mine"


def test_differences_name_old_and_new():
    new = config.override(config.Config(), ["distill.items=2", "seed=1"])
    assert config.differences(config.Config(), new) == ["seed 0 -> 1", "distill.items 10 -> 2"]


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.Config().seed = 1


def test_settings_that_came_later_make_no_earlier_result_stale():
    now = config.preset("mnist")
    told = config.told(now, ("seed", "model"))
    before = {f"model.{name}": value for name, value in _nested_of_011()["model"].items()}
    assert plain(told) == {"seed": now.seed, **before}
    other = config.override(now, ["model.heads=4"])
    assert config.told(other, ("model",)).keys() - told.keys() == {"model.heads"}
