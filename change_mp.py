"""Cut a checkpoint's weights for another model-parallel size.

    python change_mp.py checkpoints/blocklm-10b 2      writes checkpoints/blocklm-10b_MP2

The folder is that of a run (with latest_checkpointed_iteration.txt) or holds the mp_rank_XX_model_states.pt itself, or
is a model of the Hugging Face layout (*.safetensors, pytorch_model.bin), which is written as a checkpoint of GLM.
Every tensor is cut or put together exactly, the torch engine's optimizer state along with the weights; sizes need not
divide each other. ZeRO's optimizer files are not converted: --universal-checkpoint does that when a run goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from files.errors import run_main


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line: a folder and the new size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=str, help="checkpoint folder, or one weight file")
    parser.add_argument("size", type=int, help="new model-parallel size: files (and GPUs) per model")
    parser.add_argument(
        "--multilingual-names",
        action="store_true",
        help="write the names of the multilingual release (transformer.word_embeddings.weight ...), for its code",
    )
    return parser.parse_args(argv)


def change_model_parallel_size(folder: Path, size: int, *, multilingual_names: bool = False) -> Path | None:
    """Write the checkpoint in ``folder`` for ``size`` ranks to ``<folder>_MP<size>`` and return that folder.

    With ``multilingual_names`` parameters have the names of that release. Returns None when there is nothing to do.
    Raises ValueError when it cannot be read or cut.
    """
    from model.checkpoints.checks import check_finite
    from model.checkpoints.format import canonical_name, foreign_name
    from model.checkpoints.reading import read_all_shards, resolve_checkpoint, weights_in
    from model.checkpoints.resharding import dropped_keys, reshard_content
    from model.checkpoints.writing import new_folder, write_trackers
    from model.hub.describe import copy_description

    if size < 1:
        raise ValueError(f"model-parallel size {size} is not possible; give a number of at least 1")
    location = resolve_checkpoint(folder)
    files = location.shard_files()
    if len(files) == size and location.hub_file is None and not multilingual_names:
        print(f"{location.folder} is of model-parallel size {size} already: nothing to do")
        return None
    contents = read_all_shards(location)
    for file, content in zip(files, contents, strict=True):
        check_finite(weights_in(content, file=file), file=file)
    source = location.root or location.path
    if location.single_file is not None:
        source = source.with_suffix("")
    if source.name in ("", ".."):  # the folder one is in
        source = source.resolve()
    root = source.with_name(f"{source.name}_MP{size}")
    # A folder that holds the files itself becomes another one like it, without a tracker.
    target = root if location.root is None else root / location.tag
    try:
        with new_folder(target) as new:
            for rank in range(size):  # one at a time: memory holds one new shard, the present ones are mapped
                content = reshard_content(contents, size=size, rank=rank, file=location.folder)
                if multilingual_names:
                    named = {foreign_name(canonical_name(n)): t for n, t in weights_in(content, file=folder).items()}
                    content = {**content, "module": named} if "module" in content else named
                new.write_shard(rank, content)
                del content
            copy_description(location.folder, new.path)
    except BaseException:
        if location.root is not None and root.is_dir() and not any(root.iterdir()):
            root.rmdir()
        raise
    if location.root is not None:
        write_trackers(root, f"{location.tag}\n")
    dropped = dropped_keys(contents[0])
    zero = ["the ZeRO optimizer files"] if any(location.folder.glob("*optim_states.pt")) else []
    if dropped or zero:
        hint = "; continue with --no-load-optim" if zero or "optimizer" in dropped else ""
        print(f"not converted: {', '.join([*dropped, *zero])}{hint}")
    print(f"wrote {root}")
    return root


def main() -> int:
    """Run the command."""
    arguments = parse_arguments()
    change_model_parallel_size(Path(arguments.folder), arguments.size, multilingual_names=arguments.multilingual_names)
    return 0


if __name__ == "__main__":
    run_main(main)
