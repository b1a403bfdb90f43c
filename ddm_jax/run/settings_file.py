"""config.json: the settings of a run as a file, those that earlier versions wrote among them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ddm_jax
from ddm_jax import files
from ddm_jax.run import settings
from ddm_jax.run.settings import Config


def save(config: Config, path: Path) -> None:
    """Write config.json: the settings, and once more as they were written, for `load`."""
    nested = settings.as_json(config)
    told = {"ddm_jax": ddm_jax.__version__, "settings": nested, "written": json.dumps(nested)}
    files.write_whole(path, (json.dumps(told, indent=2) + "\n").encode())


def load(path: Path) -> Config:
    """Read config.json.

    Raises:
        ValueError: when it is damaged, lacks a setting, or was edited since it was written: results
            lie beside it that were made with what was written.
    """
    try:
        told = json.loads(path.read_text())
        told = _of_011(_of_010(_of_09(told if "settings" in told else _of_08(told))))
        told = _with_pools(told)
        version, found, written = told["ddm_jax"], told["settings"], json.loads(told["written"])
        missing = [name for name in settings.settings(Config()) if not _has(found, name)]
        if missing:
            raise ValueError(f"{', '.join(missing)} are missing; ddm_jax {version} wrote it")
        config, before = settings.checked(found), settings.checked(written)
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        raise ValueError(
            f"{path} cannot be read as settings ({error}); use another --workdir, or mend it"
        ) from error
    if changed := settings.differences(before, config):
        raise ValueError(
            f"{path} was edited since it was written ({'; '.join(changed)}): put it back, and "
            "change settings with the command of their stage, for example "
            f"`ddm distill --workdir {path.parent} --set distill.items=2`"
        )
    return config


def _of_08(told: dict[str, Any]) -> dict[str, Any]:
    """What 0.8 wrote, as if it had been written now."""
    online = dict(told["online"])
    if online["design"] == "difference":  # the other one is gone, and refused
        del online["design"], online["masks"]
    online["learning_rate"] = online["learning_rate"] or None  # 0 meant the stable one
    found = told | {"online": online, "truth": told["truth"] | {"groups": None}}
    return {"ddm_jax": "0.8", "settings": found, "written": json.dumps(found)}


def _of_09(told: dict[str, Any]) -> dict[str, Any]:
    """What 0.9 and before wrote, as if it had been written now: training was plain SGD."""
    if not str(told["ddm_jax"]).startswith(("0.8", "0.9")):
        return told
    added = {"train": {"optimizer": "sgd", "clip": None}, "online": {"optimizer": None}}

    def filled(nested: dict[str, Any]) -> dict[str, Any]:
        new = {name: values | nested.get(name, {}) for name, values in added.items()}
        train = new["train"]
        if train.get("final_learning_rate") == train.get("learning_rate"):
            train["final_learning_rate"] = None
        return nested | new

    written = json.dumps(filled(json.loads(told["written"])))
    return told | {"settings": filled(told["settings"]), "written": written}


def _of_010(told: dict[str, Any]) -> dict[str, Any]:
    """What 0.10 and before wrote: a step took some items of each group, nothing was chosen, and
    there were no data of one's own.
    """
    if not str(told["ddm_jax"]).startswith(("0.8", "0.9", "0.10")):
        return told

    def renewed(nested: dict[str, Any]) -> dict[str, Any]:
        online = dict(nested["online"])
        each = online.pop("step_items") or nested["distill"]["items"]
        batch = each * nested["cluster"]["num_groups"]
        added = {"batch": batch, "schedule": "constant", "rate_factor": None}
        own = {name: settings.as_json(Config())["data"][name] for name in settings.OWN_DATA}
        return nested | {
            "data": own | nested["data"],
            "online": added | online,
            "tune": {**settings.as_json(Config())["tune"], "subsets": 0},
        }

    written = json.dumps(renewed(json.loads(told["written"])))
    return told | {"settings": renewed(told["settings"]), "written": written}


def _of_011(told: dict[str, Any]) -> dict[str, Any]:
    """What 0.11 and before wrote, as if it had been written now: there were no documents."""
    if not str(told["ddm_jax"]).startswith(("0.8", "0.9", "0.10", "0.11")):
        return told
    now = settings.as_json(Config())
    model = {name.partition(".")[2] for name in settings.LATER}
    added = {
        "data": {name: now["data"][name] for name in ("context", "tokenizer")},
        "model": {name: now["model"][name] for name in model},
    }

    def filled(nested: dict[str, Any]) -> dict[str, Any]:
        return nested | {name: new | nested.get(name, {}) for name, new in added.items()}

    written = json.dumps(filled(json.loads(told["written"])))
    return told | {"settings": filled(told["settings"]), "written": written}


def _with_pools(told: dict[str, Any]) -> dict[str, Any]:
    """What was written while the steps could be kept from the training data, and from no more."""
    if "real_data" not in told["settings"].get("tune", {}):
        return told

    def renewed(nested: dict[str, Any]) -> dict[str, Any]:
        tune = dict(nested["tune"])
        pools = settings.as_json(Config())["tune"]["pools"]
        tune["pools"] = pools if tune.pop("real_data") else ["synset"]
        return nested | {"tune": tune}

    written = json.dumps(renewed(json.loads(told["written"])))
    return told | {"settings": renewed(told["settings"]), "written": written}


def _has(nested: dict[str, Any], name: str) -> bool:
    section, _, entry = name.rpartition(".")
    return entry in (nested.get(section, {}) if section else nested)
