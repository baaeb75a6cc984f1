"""Say what is in a checkpoint: layout, sizes, number type, iteration, optimizer, and which model it fits.

    python -m model.checkpoints.describe pretrained.pt

The file or folder is read without running code that is in it, and without reading its weights into memory.

h hidden, v vocabulary
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from files.errors import run_main
from model.checkpoints.format import (
    ADAPTER_NAME,
    ADDITIONAL_ROWS,
    FOREIGN_NAMES,
    HEAD_NAMES,
    PREFIX_PROMPT,
    PROMPT_PREFIX,
    WORD_TABLE,
    merge_tensors,
)
from model.hub.describe import describe_checkpoint, sizes_from_shapes
from model.released import RELEASED_MODELS

OPTIMIZER_KEYS = ("optimizer", "optimizer_states")
UNKNOWN_FIT = "no released model has these sizes"


def described(path: str | Path) -> list[str]:
    """Return the lines that say what the checkpoint at ``path`` (a folder or a file) holds.

    Raises ValueError with one line when there is no checkpoint or its files are no weights of a GLM.
    """
    from model.checkpoints.reading import (
        iteration_of,
        parameters_in,
        read_weight_file,
        resolve_checkpoint,
        weights_in,
    )

    location = resolve_checkpoint(path)
    files = location.shard_files()
    contents = [read_weight_file(file) for file in files]
    names = list(weights_in(contents[0], file=files[0]))
    parts = [parameters_in(content, file=file) for content, file in zip(contents, files)]
    shapes = {name: _whole_shape(name, parts) for name in parts[0]}
    count, size = sum(map(_product, shapes.values())), sum(file.stat().st_size for file in files)
    types = ", ".join(dict.fromkeys(str(tensor.dtype).removeprefix("torch.") for tensor in parts[0].values()))
    lines = [
        f"{location.path}: {len(files)} {'file' if len(files) == 1 else 'files, one per model-parallel rank'}, "
        f"{size / 1e6:,.1f} MB",
        f"layout: {_layout(names, contents[0], is_hub=location.hub_file is not None)}",
        f"parameters: {count:,} of type {types}",
    ]
    if WORD_TABLE in shapes:
        lines += _model_lines(shapes, location.path)
    extras = _extras(shapes)
    if extras or WORD_TABLE not in shapes:
        lines.append(
            f"{'besides' if WORD_TABLE in shapes else 'no whole model, but'}: {', '.join(extras) or 'unknown'}"
        )
    lines.append(f"iteration: {iteration_of(contents[0], location) or 'not in the file'}")
    present = any(key in contents[0] and contents[0][key] is not None for key in OPTIMIZER_KEYS)
    sharded = any(location.folder.glob("*optim_states.pt")) and location.single_file is None
    lines.append(f"optimizer state: {'yes' if present else 'in files of ZeRO beside it' if sharded else 'none'}")
    description = describe_checkpoint(location.path)
    if description is not None and description.source:
        lines.append(f"described by: {description.source}")
    return lines


def _product(shape: Sequence[int]) -> int:
    result = 1
    for length in shape:
        result *= length
    return result


def _whole_shape(name: str, parts: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
    """Return the shape of a parameter of which ``parts`` hold each rank's share, without reading it."""
    pieces = [part[name].to("meta") for part in parts]
    try:
        return tuple(merge_tensors(name, pieces).shape)
    except ValueError:  # no parameter of a GLM: its rule is not known
        return tuple(pieces[0].shape)


def _layout(names: Sequence[str], content: Mapping[str, Any], *, is_hub: bool) -> str:
    foreign = any(name.endswith(tuple(FOREIGN_NAMES)) for name in names)
    kind = "Hugging Face" if is_hub else "names of the multilingual release" if foreign else "names of GLM"
    if any(name.endswith(tuple(ADDITIONAL_ROWS)) for name in names):
        kind += ", with additional rows of positions"
    return kind if is_hub else f"{kind}, {'under the key module' if 'module' in content else 'a bare state dict'}"


def _model_lines(shapes: Mapping[str, tuple[int, ...]], path: Path) -> list[str]:
    """Return the lines about a whole language model: its sizes, and the released models that have them."""
    sizes = sizes_from_shapes(shapes, file=path)
    positions = sizes.get("max_position_embeddings")
    heads = sizes.get("num_attention_heads")
    line = f"sizes: {sizes['num_layers']} layers, hidden {sizes['hidden_size']}, vocabulary {sizes['vocab_size']}"
    if positions is not None:
        rows = positions + bool(sizes["block_position_encoding"])
        line += (
            f", {positions} positions ({rows} rows{'' if sizes['block_position_encoding'] else ', no block positions'})"
        )
    line += f", {heads} heads" if heads else ", heads are not in the file"
    fitting = [
        f"{model.name} (config_tasks/{model.config_task})"
        for model in RELEASED_MODELS.values()
        if all(getattr(model.config, name) == value for name, value in sizes.items())
    ]
    return [line, f"fits: {', '.join(fitting) or UNKNOWN_FIT}"]


def _extras(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return what is in a file besides a language model, or instead of one."""
    prefix = next((shape for name, shape in shapes.items() if name == f"{PREFIX_PROMPT}embedding.weight"), None)
    found = {
        f"a prefix prompt of length {prefix[0] if prefix else '?'}": any(n.startswith(PREFIX_PROMPT) for n in shapes),
        "a continuous prompt": any(name.startswith(PROMPT_PREFIX) for name in shapes),
        "a classifier's head": any(name in HEAD_NAMES for name in shapes),
        "adapters (LoRA)": any(ADAPTER_NAME.fullmatch(name) for name in shapes),
    }
    return [what for what, is_there in found.items() if is_there]


def main(argv: list[str] | None = None) -> int:
    """Print the lines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="model.checkpoints.describe"
    )
    parser.add_argument("checkpoint", help="a run's folder, a checkpoint's folder, or one file of weights")
    arguments = parser.parse_args(argv)
    print("\n".join(described(arguments.checkpoint)))
    return 0


if __name__ == "__main__":
    run_main(main)
