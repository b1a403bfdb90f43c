"""GPT-2 in a folder, as Hugging Face's transformers keep it: read, and written."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ddm_jax import files
from ddm_jax.checks import check_integer, check_number, require_extra
from ddm_jax.models.gpt import GPT

BASE = Path(__file__).with_name("base")  # the network that `ddm run language` begins at


def load_gpt2(folder: str | Path, *, lora: int = 0) -> GPT:
    """Read a GPT-2 that Hugging Face's transformers saved, or `save_gpt2`.

    The folder has config.json, and model.safetensors or model.npz.

    Its logits are those of `GPT2LMHeadModel`, without dropout. Pass it to `tasks.language`: every
    training then begins at these weights.

    Args:
        lora: as of `GPT`.

    Raises:
        ValueError: where a file is missing, the model is another one than GPT-2, or the package
            safetensors is not there.
    """
    folder = Path(folder)
    told = _configuration(folder)
    arrays, file = _arrays(folder)
    deeper = f"h.{told['n_layer']}."
    if any(name.startswith(deeper) for name in arrays):
        raise ValueError(f"{file} has layers beyond the {told['n_layer']} of {folder}/config.json")
    model = GPT(
        told["vocab_size"],
        context=told["n_positions"],
        width=told["n_embd"],
        depth=told["n_layer"],
        heads=told["n_head"],
        tied=told.get("tie_word_embeddings", True),
        lora=lora,
        epsilon=told.get("layer_norm_epsilon", 1e-5),
        rngs=nnx.Rngs(0),
    )
    for variable, name, transposed in _places(model):
        if name not in arrays:
            raise ValueError(f"{file} has no {name}; it is no whole GPT-2")
        array = np.asarray(arrays[name])
        if not jnp.issubdtype(array.dtype, np.floating):
            raise ValueError(f"{name} of {file} holds {array.dtype}; weights are floats")
        array = array.astype(np.float32)
        array = array.T if transposed else array
        if array.shape != variable.shape:
            raise ValueError(
                f"{name} of {folder} has shape {array.shape}; config.json says {variable.shape}"
            )
        _check_finite(str(file), {name: array})
        variable.set_value(jnp.asarray(array))
    return model


def _check_finite(where: str, arrays: dict[str, np.ndarray]) -> None:
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{where}: {name} is not finite everywhere")


def save_gpt2(model: GPT, folder: str | Path, params: Any = None, *, half: bool = False) -> None:
    """Write a folder that `load_gpt2` reads: config.json and model.npz.

    Args:
        params: of a training, such as `TrainRun.params`; None for the model's own.
        half: in half precision, of half the size.

    Raises:
        ValueError: for a model with adapters, whose layers are not GPT-2's, or parameters that are
            not all of the model's.
    """
    if params is not None:
        graph, state = nnx.split(model, nnx.Param)
        wanted, given = _shapes(nnx.to_pure_dict(state)), _shapes(params)
        odd = sorted(set(wanted.items()) ^ set(given.items()))
        if odd:
            name = odd[0][0]
            raise ValueError(
                f"params have {given.get(name, 'nothing')} at {name or 'their root'}, the model "
                f"{wanted.get(name, 'nothing')}; pass all of one network's, as TrainRun.params"
            )
        nnx.replace_by_pure_dict(state, params)
        model = nnx.merge(graph, state)
    if any(isinstance(block.mix, nnx.LoRA) for block in model.blocks):
        raise ValueError("a model with adapters is no GPT-2; save one that was trained whole")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    told = {
        "model_type": "gpt2",
        "vocab_size": model.vocabulary,
        "n_positions": model.context,
        "n_embd": model.places.embedding.shape[1],
        "n_layer": len(model.blocks),
        "n_head": model.blocks[0].heads,
        "tie_word_embeddings": model.head is None,
        "layer_norm_epsilon": model.norm.epsilon,
    }
    kind = np.float16 if half else np.float32
    with np.errstate(over="ignore"):  # refused below
        arrays = {
            name: np.asarray(variable[...].T if transposed else variable[...]).astype(kind)
            for variable, name, transposed in _places(model)
        }
    _check_finite(f"weights in {np.dtype(kind)}", arrays)
    files.write_whole(folder / "config.json", (json.dumps(told, indent=2) + "\n").encode())
    with open(folder / "model.npz", "wb") as file:
        np.savez_compressed(
            file,
            allow_pickle=False,
            **arrays,
        )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """The shape of each leaf by its path, whose numbers may be texts."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): np.shape(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _places(model: GPT) -> Iterator[tuple[Any, str, bool]]:
    """Each variable, what GPT-2 calls it, and whether it stands there transposed."""
    yield model.tokens.embedding, "wte.weight", False
    yield model.places.embedding, "wpe.weight", False
    for number, block in enumerate(model.blocks):
        norms = {"ln_1": block.norm_in, "ln_2": block.norm_out}
        layers = {
            "attn.c_attn": block.mix,
            "attn.c_proj": block.mixed,
            "mlp.c_fc": block.up,
            "mlp.c_proj": block.down,
        }
        for name, norm in norms.items():
            yield norm.scale, f"h.{number}.{name}.weight", False
            yield norm.bias, f"h.{number}.{name}.bias", False
        for name, layer in layers.items():
            whole: Any = layer.base_module if isinstance(layer, nnx.LoRA) else layer
            yield whole.kernel, f"h.{number}.{name}.weight", False
            yield whole.bias, f"h.{number}.{name}.bias", False
    yield model.norm.scale, "ln_f.weight", False
    yield model.norm.bias, "ln_f.bias", False
    if model.head is not None:
        yield model.head.kernel, "lm_head.weight", True


def _configuration(folder: Path) -> dict[str, Any]:
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json; save it with model.save_pretrained(folder)")
    try:
        told = json.loads((folder / "config.json").read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder}/config.json is no JSON: {error}") from error
    if not isinstance(told, dict):
        raise ValueError(
            f"{folder}/config.json holds a {type(told).__name__}; it must be an object"
        )
    _check_gpt2(folder, told)
    return told


def _arrays(folder: Path) -> tuple[Any, Path]:
    """The weights by GPT-2's names, and the file that has them."""
    file = folder / "model.npz"
    if file.is_file() and (folder / "model.safetensors").is_file():
        raise ValueError(
            f"{folder} has model.npz and model.safetensors; remove the one that is out of date"
        )
    if file.is_file():
        try:
            with open(file, "rb") as opened, np.load(opened, allow_pickle=False) as kept:
                return {name: kept[name] for name in kept.files}, file
        except (OSError, TypeError, ValueError, EOFError, zlib.error, zipfile.BadZipFile) as error:
            raise ValueError(f"{file} cannot be read: {error}") from error
    file = folder / "model.safetensors"
    if not file.is_file():
        raise ValueError(
            f"{folder} has no model.safetensors; save it with model.save_pretrained(folder)"
        )
    load_file = require_extra("safetensors.numpy", "language", "GPT-2").load_file
    try:
        arrays = load_file(file)
    except Exception as error:  # what safetensors raises is none of Python's own
        raise ValueError(f"{file} cannot be read: {error}") from error
    return {name.removeprefix("transformer."): array for name, array in arrays.items()}, file


def _check_gpt2(folder: Path, told: dict[str, Any]) -> None:
    """What `GPT` computes is what the configuration says."""
    if told.get("model_type") != "gpt2":
        raise ValueError(
            f"{folder} holds a {told.get('model_type')!r}; load_gpt2 reads models of type 'gpt2'"
        )
    for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"):
        check_integer(f"{name} of {folder}/config.json", told.get(name))
    epsilon = f"layer_norm_epsilon of {folder}/config.json"
    check_number(epsilon, told.get("layer_norm_epsilon", 1e-5), above=0)
    asked = {
        "activation_function": ("gelu_new", ("gelu_new", "gelu_pytorch_tanh")),
        "n_inner": (None, (None, 4 * told["n_embd"])),
        "scale_attn_weights": (True, (True,)),
        "scale_attn_by_inverse_layer_idx": (False, (False,)),
        "add_cross_attention": (False, (False,)),
    }
    for name, (usual, allowed) in asked.items():
        if told.get(name, usual) not in allowed:
            raise ValueError(f"{folder}: {name}={told[name]!r}; load_gpt2 computes {allowed[0]!r}")
