"""What is fuzzed: for every surface, small files of each kind it reads, and the reader that our programs call.

A reader may give the result of the intact files, refuse them with one line, or, where nothing but the content could
tell (a word of a text, a label), give another result. Where files have checksums, another result is a finding.
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
import random
import shutil
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.fuzz.damage import Files, damaged, odd_content
from tests.helpers import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "scripts"))

LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCABULARY = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    ".",
    ",",
    "?",
    "'",
    *LETTERS,
    *(f"##{x}" for x in LETTERS),
    "the",
    "cat",
    "sat",
]
ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


@dataclass(frozen=True)
class Case:
    """Files and how they are read.

    Attributes:
        name: of the case, for reports.
        files: the intact ones.
        read: gives what the program makes of the files in a folder.
        targets: names of the files that are damaged; empty: all.
        strict: a result other than the intact one is a finding, for checksums have to notice.
        other: the same files of another save.
        also: results besides that of ``files`` which are right: those of an older save.
        named: other words by which a message says what it is about.
        change: damages the files in a folder in a way of its own, and returns what it did; otherwise ``damaged`` does.
    """

    name: str
    files: Files
    read: Callable[[Path], Any]
    targets: tuple[str, ...] = ()
    strict: bool = False
    other: Files = field(default_factory=dict)
    also: tuple[Files, ...] = ()
    change: Callable[[Path, random.Random], str] | None = None
    named: tuple[str, ...] = ()


def contents(folder: Path) -> Files:
    """Return all files in a folder under their paths in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def write_files(folder: Path, files: Files) -> None:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def json_lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8")


def in_folder(make: Callable[[Path], None]) -> Files:
    """Return the files that ``make`` writes into a folder."""
    with tempfile.TemporaryDirectory() as name:
        make(Path(name))
        return contents(Path(name))


# ------------------------------------------------------------------------------------------------ texts and ids

TEXTS = [
    "The cat sat. It was warm, and it slept.", "Été à Paris: 你好，世界。 Здравствуй!", "x" * 50,
    "a\tb  c\u2028d [MASK] e", "One, two; three? Four.",
]  # fmt: skip


def corpus_cases() -> Iterator[Case]:
    from data_utils.corpora.named import read_documents

    def reader(name: str, **options: Any) -> Callable[[Path], Any]:
        return lambda folder: [document.text for document in read_documents(str(folder / name), **options)]

    rows = [{"text": text, "number": number, "nested": {"a": [1, None]}} for number, text in enumerate(TEXTS)]
    lines = json_lines(*rows)
    plain = "".join(text.replace("\t", " ") + "\n" for text in TEXTS).encode("utf-8")
    files = {
        "c.jsonl": lines, "c.txt": plain, "c.json": json.dumps(rows, indent=1).encode("utf-8"),
        "o.json": json.dumps(rows[0]).encode("utf-8"), "c.jsonl.gz": gzip.compress(lines, mtime=0),
        "c.txt.gz": gzip.compress(plain, mtime=0),
    }  # fmt: skip
    try:
        import zstandard

        files["c.jsonl.zst"] = zstandard.ZstdCompressor(write_checksum=True).compress(lines)
    except ImportError:
        pass
    try:
        import pyarrow
        import pyarrow.parquet

        buffer = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"text": text, "n": 1} for text in TEXTS]), buffer)
        files["c.parquet"] = buffer.getvalue()
    except ImportError:
        pass
    for name, data in files.items():
        yield Case(name, {name: data}, reader(name))
        yield Case(f"{name}, malformed rows passed over", {name: data}, reader(name, skip_malformed=True))
    yield Case("folder", {"d/a.jsonl": lines, "d/b/c.txt": plain}, reader("d"))
    yield Case("blocks", {"c.txt": plain + b"\n" + plain}, reader("c.txt", text_unit="paragraph"))


class Bytes:
    """A tokenizer whose ids are bytes, for stores."""

    num_tokens, fingerprint = 300, "bytes"
    command_tokens = ()

    def encode(self, text: str, *, as_text: bool = False) -> list[int]:
        return list(text.encode())

    def encode_batch(self, texts: list[str], *, as_text: bool = False) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def count_commands(self, texts: list[str]) -> dict[str, int]:
        return {}

    def command_id(self, name: str) -> int:
        return 299


def documents_of(documents: Any) -> Any:
    found = [documents[number] for number in range(len(documents))]
    return [np.asarray(documents.lengths), [(one.tokens, one.prompt_length, one.loss_mask()) for one in found]]


def store_cases() -> Iterator[Case]:
    from data_utils.corpora.store import IndexedDataset, StoreWriter
    from data_utils.corpora.tokenization import Preparation

    def make(seed: int, *, inside: bool) -> Callable[[Path], None]:
        def write(folder: Path) -> None:
            numbers = np.random.default_rng(seed)
            writer = StoreWriter(folder / "s", dtype=np.uint16, prompts_inside=inside)
            for _ in range(2):
                lengths = numbers.integers(1, 30, 6)
                tokens = numbers.integers(0, 60000, int(lengths.sum()))
                writer.add(tokens, lengths, lengths // 3, numbers.integers(0, 2, len(tokens)) if inside else None)
            writer.publish({"tokenizer_fingerprint": "bytes", "kind": "tokens"})

        return write

    for inside in (False, True):
        files, other = (in_folder(make(seed, inside=inside)) for seed in (1, 2))
        for in_memory in (False, True):
            yield Case(
                f"{'mask, ' * inside}{'in memory' if in_memory else 'mapped'}",
                files,
                lambda folder, in_memory=in_memory: documents_of(
                    IndexedDataset(folder / "s", "bytes", in_memory=in_memory)
                ),
                strict=True,
                other=other,
            )

    def prepared(folder: Path, **options: Any) -> Any:
        chosen = {"cache_dir": folder / "cache", "progress": False, **options}
        return documents_of(Preparation(Bytes(), Bytes, **chosen).documents([str(folder / "c.jsonl")]))  # type: ignore[arg-type]

    def prepare(texts: list[str]) -> Callable[[Path], None]:
        def write(folder: Path) -> None:
            (folder / "c.jsonl").write_bytes(json_lines(*({"text": text} for text in texts)))
            prepared(folder)

        return write

    files = in_folder(prepare(TEXTS))
    stores = tuple(name for name in files if name.startswith("cache/"))
    named = next(name for name in stores if name.endswith(".idx"))
    yield Case(
        "named by its file", {name: files[name] for name in stores},
        lambda folder: documents_of(Preparation(Bytes(), Bytes, progress=False).documents([str(folder / named)])),  # type: ignore[arg-type]
        strict=True, other=in_folder(prepare(TEXTS[::-1])),
    )  # fmt: skip
    raw = {"c.jsonl": files["c.jsonl"]}
    yield Case("tokenized", raw, prepared)
    yield Case("tokenized, malformed rows passed over", raw, partial(prepared, skip_malformed=True))
    yield Case("tokenized on access", raw, partial(prepared, pre_tokenize=False))


def lazy_cases() -> Iterator[Case]:
    from data_utils.corpora.lazy_format import LazyDocuments

    def make(seed: int, *, text: bool, prompts: bool) -> Callable[[Path], None]:
        def write(folder: Path) -> None:
            numbers = random.Random(seed)
            for name in ("prompt", "text") if prompts else ("text",):
                lengths = [numbers.randrange(1, 9) for _ in range(12)]
                ids = [numbers.randrange(32, 100) for _ in range(sum(lengths))]
                (folder / name).write_bytes(bytes(ids) if text else np.array(ids, dtype="<i4").tobytes())
                (folder / f"{name}.len.pkl").write_bytes(pickle.dumps(lengths))

        return write

    for text in (False, True):
        for prompts in (False, True):
            files, other = (in_folder(make(seed, text=text, prompts=prompts)) for seed in (1, 2))
            name = f"{'text' if text else 'ids'}{', prompts' * prompts}"
            yield Case(name, files, lambda folder: documents_of(LazyDocuments(folder)), other=other)


def order_cases() -> Iterator[Case]:
    from data_utils.corpora.splits import document_order, load_order, save_order

    files = in_folder(lambda folder: save_order(folder / "o.npy", document_order(20)))

    def read(folder: Path) -> Any:
        order = load_order(folder / "o.npy", 20)
        assert sorted(order.tolist()) == list(range(20)), "an order that names documents twice"
        return order

    yield Case("order", files, read)


@cache
def vocabulary_folder() -> Path:
    """Return a folder with small vocabularies of every kind, which stays for the life of the process."""
    import sentencepiece

    folder = Path(tempfile.mkdtemp(prefix="glm-fuzz-vocabulary-"))
    write_files(folder, {"bert/vocab.txt": ("\n".join(VOCABULARY) + "\n").encode()})
    from data_utils.tokenizers.text_tokenizers import _byte_alphabet

    characters = list(_byte_alphabet())
    pieces = {piece: number for number, piece in enumerate([*characters, "th", "the", "<|endoftext|>", *ROBERTA])}
    files = {"gpt2/vocab.json": json.dumps(pieces).encode(), "gpt2/merges.txt": b"#version: 0.2\nt h\nth e\n"}
    write_files(folder, files)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["The cat sat on the mat.", "It was warm and slept, one two three."] * 20),
        model_prefix=str(folder / "sp"), vocab_size=60, minloglevel=2, model_type="bpe", character_coverage=1.0,
    )  # fmt: skip
    return folder


@cache
def bert() -> Any:
    """Return a small tokenizer of the BERT family."""
    from data_utils.tokenizers.tokenizer import build_tokenizer

    path = vocabulary_folder() / "bert" / "vocab.txt"
    return build_tokenizer("BertWordPieceTokenizer", model_type="bert-base-uncased", path=path, task_mask=True)


def tokenizer_cases() -> Iterator[Case]:
    from data_utils.tokenizers.tokenizer import build_tokenizer

    def reader(kind: str, path: str, **options: Any) -> Callable[[Path], Any]:
        def read(folder: Path) -> Any:
            tokenizer = build_tokenizer(kind, path=folder / path, task_mask=True, **options)
            ids = [tokenizer.encode(text) for text in TEXTS]
            return ids, [tokenizer.decode(one) for one in ids], tokenizer.num_tokens, tokenizer.fingerprint

        return read

    folder = vocabulary_folder()
    files = {"vocab.txt": (folder / "bert/vocab.txt").read_bytes()}
    yield Case("BERT", files, reader("BertWordPieceTokenizer", "vocab.txt", model_type="bert-base-uncased"))
    files = contents(folder / "gpt2")
    yield Case("GPT-2", files, reader("GPT2BPETokenizer", ".", model_type="gpt2"))
    yield Case("RoBERTa", files, reader("GPT2BPETokenizer", ".", model_type="roberta"))
    files = {"tokenizer.model": (folder / "sp.model").read_bytes()}
    yield Case("SentencePiece", files, reader("SentencePieceTokenizer", "tokenizer.model"))


# -------------------------------------------------------------------------------------------------- checkpoints


class Run:
    """A small model in training."""

    def __init__(self, seed: int = 1) -> None:
        from model.config import GLMConfig
        from model.modeling_glm import GLMModel
        from training.optimizer import build_optimizer
        from training.schedule import AnnealingLR
        from training.settings import OptimizerSettings

        config = GLMConfig(1, 8, 2, 16, max_position_embeddings=8)
        self.model = GLMModel(config, generator=torch.Generator().manual_seed(seed))
        self.optimizer = build_optimizer(self.model, OptimizerSettings("adam", 0.01, 0.1, 0.9, 0.99, 1e-8))
        self.scheduler = AnnealingLR(
            self.optimizer, start_lr=0.01, warmup_iters=2.0, num_iters=20, decay_style="cosine"
        )

    def step(self) -> None:
        self.optimizer.zero_grad()
        sum((p * torch.linspace(0.5, 1.5, p.numel()).view_as(p)).sum() for p in self.model.parameters()).backward()
        self.optimizer.step()
        self.scheduler.step()

    def parts(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler}


def state_of(run: Run) -> Any:
    return run.model.state_dict(), run.optimizer.state_dict(), run.scheduler.state_dict()


def resumed(folder: Path) -> Any:
    """Continue from the checkpoints in a folder, as a run does."""
    from training.checkpointing import load_checkpoint

    run, states = Run(seed=9), (random.getstate(), np.random.get_state(), torch.get_rng_state())
    try:
        found = load_checkpoint(folder / "run", **run.parts())
        drawn = random.getstate(), np.random.get_state(), torch.get_rng_state()
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
    assert all(torch.isfinite(value).all() for value in run.model.state_dict().values()), "weights that are not finite"
    return found.iteration, found.data_state, state_of(run), drawn


def make_run(folder: Path, *, seed: int = 1, saves: tuple[int, ...] = (1, 2)) -> None:
    from training.checkpointing import save_checkpoint

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    run = Run(seed)
    for number in range(1, max(saves) + 1):
        run.step()
        if number in saves:
            state = {"samples": 4 * number, "nested": {"list": [1.5, None, "x"], "tensor": torch.ones(2)}}
            save_checkpoint(folder / "run", tag=str(number), iteration=number, data_state=state, **run.parts())


def checkpoint_cases() -> Iterator[Case]:
    from change_mp import change_model_parallel_size
    from model.checkpoints.reading import read_whole_weights

    files, other = in_folder(make_run), in_folder(lambda folder: make_run(folder, seed=2))
    older = {name: data for name, data in files.items() if not name.startswith("run/2/")}
    for name in older:
        if "/" not in name.removeprefix("run/") and name.removeprefix("run/").startswith("latest"):
            older[name] = b"1"
    yield Case("resume", files, resumed, strict=True, other=other, also=(older,))
    newest = tuple(name for name in files if name.startswith("run/2/"))
    yield Case("resume, newest damaged", files, resumed, targets=newest, strict=True, other=other, also=(older,))

    def divided(seed: int) -> Callable[[Path], None]:
        def make(folder: Path) -> None:
            make_run(folder, seed=seed, saves=(2,))
            change_model_parallel_size(folder / "run", 2)
            shutil.rmtree(folder / "run")

        return make

    def whole(folder: Path) -> Any:
        weights = read_whole_weights(folder / "run_MP2")
        return {name: weights.read(name) for name in weights.pieces}

    files, other = in_folder(divided(1)), in_folder(divided(2))
    yield Case("whole weights of two shards", files, whole, strict=True, other=other)


def quantized(tensor: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch is about to drop them; files hold them still
        return torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.quint8)


def odd_tensors() -> list[Callable[[Any], Any]]:
    def of(make: Callable[[torch.Tensor], Any]) -> Callable[[Any], Any]:
        return lambda value: make(value if isinstance(value, torch.Tensor) else torch.ones(3))

    return [
        *(
            lambda _, odd=odd: odd
            for odd in (
                None,
                True,
                -1,
                0,
                10**30,
                1.5,
                float("nan"),
                float("inf"),
                "",
                "x",
                b"x",
                [],
                {},
                (),
                [None],
                {"a": 1},
                {1: 2},
            )
        ),
        *(lambda value, kind=kind: kind(value) for kind in (str, lambda value: [value], lambda value: {"x": value})),
        of(lambda t: t.double()),
        of(lambda t: t.to(torch.int64)),
        of(lambda t: t.to(torch.complex64)),
        of(lambda t: t.bool()),
        of(lambda t: t[:0]),
        of(lambda t: t.flatten()[:-1]),
        of(lambda t: t.T if t.dim() == 2 else t[None]),
        of(lambda t: torch.full_like(t, float("nan")) if t.is_floating_point() else t),
        of(lambda t: t.to_sparse()),
        of(lambda t: t.to("meta")),
        of(lambda t: t.flatten()[:1].expand(1000)),
        of(lambda t: torch.ones(())),
        of(lambda t: t.flatten().repeat(2)),
        of(quantized),
        of(lambda t: torch.nn.Parameter(t) if t.is_floating_point() else t),
        of(lambda t: np.asarray(t.float())),
    ]


def content_cases() -> Iterator[Case]:
    """Checkpoints that another program wrote: whole files, without checksums, with odd things in them."""
    from model.checkpoints.reading import read_whole_weights

    files = in_folder(lambda folder: make_run(folder, saves=(2,)))
    shard = next(name for name in files if name.endswith(".pt"))
    kept = {name: files[name] for name in files if name == shard or "latest" in name}

    def change(folder: Path, generator: random.Random) -> str:
        content = torch.load(folder / shard, weights_only=False)
        said = odd_content(content, generator, odd_tensors())
        torch.save(content, folder / shard)
        return said

    def weights(folder: Path) -> Any:
        whole = read_whole_weights(folder / "run")
        return {name: whole.read(name) for name in whole.pieces}

    yield Case("resume", kept, resumed, change=change)
    yield Case("whole weights", kept, weights, change=change)

    def change_pickle(folder: Path, generator: random.Random) -> str:
        """Damage the pickle in the archive; its CRCs are right again, as somebody who means it would leave it."""
        with zipfile.ZipFile(folder / shard) as archive:
            inside = {entry: archive.read(entry) for entry in archive.namelist()}
        name = next(name for name in inside if name.endswith("data.pkl"))
        found, what = damaged({"data.pkl": inside[name]}, generator)
        inside[name] = found.get("data.pkl", b"")
        with zipfile.ZipFile(folder / shard, "w") as archive:
            for entry, data in inside.items():
                archive.writestr(entry, data)
        return what

    def legacy(folder: Path) -> None:
        """Write the checkpoint as torch did before 1.6: pickles and bytes without an archive, without checksums."""
        make_run(folder, saves=(2,))
        content = torch.load(folder / shard, weights_only=False)
        torch.save(content, folder / shard, _use_new_zipfile_serialization=False)

    yield Case("pickle in the archive", kept, weights, change=change_pickle)
    old = {name: data for name, data in in_folder(legacy).items() if name in kept}
    yield Case("written before torch 1.6", old, weights, targets=(shard,))


# ------------------------------------------------------------------------------------ the layout of Hugging Face


def exported(folder: Path, *, seed: int = 1, layout: str = "safetensors") -> None:
    from data_utils.tokenizers.tokenizer import build_tokenizer
    from model.checkpoints.reading import read_whole_weights, shard_name
    from model.checkpoints.writing import write_shard
    from model.config import GLMConfig
    from model.hub.describe import ModelDescription, TokenizerDescription
    from model.hub.export import ExportOptions, TokenizerFiles, export_folder
    from model.modeling_glm import GLMModel

    config = GLMConfig(1, 8, 2, 128, max_position_embeddings=16)
    model = GLMModel(config, generator=torch.Generator().manual_seed(seed))
    checkpoint = folder / "native"
    checkpoint.mkdir()
    write_shard(checkpoint / shard_name(0), {"module": model.state_dict()})
    described = TokenizerDescription("BertWordPieceTokenizer", model_type="bert-base-uncased")
    tokenizer = build_tokenizer(
        "BertWordPieceTokenizer", model_type="bert-base-uncased", path=vocabulary_folder() / "bert/vocab.txt"
    )
    ids = {"eos_token_id": tokenizer.special.eop, "pad_token_id": tokenizer.special.pad}
    files = TokenizerFiles(described.hub_class(), tokenizer.files, tokenizer.num_tokens, ids, True)
    size = 10**9 if layout == "safetensors" else 4000
    described_model = ModelDescription(tokenizer=described)
    options = ExportOptions(max_shard_size=size).of_description(described_model, checkpoint)
    export_folder(
        read_whole_weights(checkpoint), folder / "hub", config=config, tokenizer=files,
        options=options, name="tiny",
    )  # fmt: skip
    shutil.rmtree(checkpoint)
    for path in (folder / "hub").iterdir():
        if path.suffix in (".py", ".md"):
            path.unlink()


def hub_model(folder: Path) -> Any:
    """Read a folder as ``load_model`` does."""
    from generation.api import load_model

    glm = load_model(folder / "hub", prepack=False)
    return glm.model.config, glm.model.state_dict(), glm.tokenizer.encode(TEXTS[0])


def imported(folder: Path) -> Any:
    """Read a folder as the conversion to a checkpoint does, to its last step."""
    from model.hub.importing import import_folder, open_hub_model

    model = open_hub_model(folder / "hub")
    import_folder(model, folder / "native")
    found = {name: model.weights.read(name) for name in model.weights.pieces}
    return model.config, found, (folder / "native" / "model.sh").read_text(encoding="utf-8")


def safetensors_cases() -> Iterator[Case]:
    from model.checkpoints.reading import read_whole_weights

    def weights(folder: Path) -> Any:
        whole = read_whole_weights(folder / "hub")
        return {name: whole.read(name) for name in whole.pieces}

    for layout in ("safetensors", "several files"):
        files, other = (in_folder(partial(exported, seed=seed, layout=layout)) for seed in (1, 2))
        heavy = tuple(name for name in files if "safetensors" in name)
        yield Case(layout, files, weights, targets=heavy, strict=True, other=other)
        yield Case(f"{layout}, loaded", files, hub_model, targets=heavy, strict=True, other=other)


def config_cases() -> Iterator[Case]:
    from model.config import LoraSettings
    from model.hub.adapters import load_adapter, read_adapter, save_adapter
    from model.lora import add_adapters

    # Written by another program, without checksums: what is in the JSON is all there is.
    files = {name: data for name, data in in_folder(exported).items() if not name.endswith("SHA256SUMS")}
    texts = tuple(name for name in files if name.endswith((".json", ".txt")))
    config = tuple(name for name in texts if name.endswith("/config.json"))
    yield Case("config.json, loaded", files, hub_model, targets=config)
    yield Case("config.json, imported", files, imported, targets=config)
    yield Case("tokenizer and index, loaded", files, hub_model, targets=texts)
    several = {
        name: data
        for name, data in in_folder(lambda folder: exported(folder, layout="")).items()
        if not name.endswith("SHA256SUMS")
    }
    yield Case("index, imported", several, imported, targets=tuple(name for name in several if name.endswith(".json")))

    settings = LoraSettings(rank=2, alpha=4.0)

    def adapt(folder: Path) -> None:
        model = Run().model
        add_adapters(model, settings, generator=torch.Generator().manual_seed(1))
        save_adapter(folder / "adapter", model, topology=model.topology, base_model="x")

    def read(folder: Path) -> Any:
        adapter = read_adapter(folder / "adapter")
        model = Run().model
        load_adapter(model, model, adapter, topology=model.topology)
        return adapter.settings, model.state_dict()

    files = {name: data for name, data in in_folder(adapt).items() if not name.endswith("SHA256SUMS")}
    yield Case("adapter_config.json", files, read, targets=tuple(name for name in files if name.endswith(".json")))
    yield Case("adapter", files, read)


def settings_cases() -> Iterator[Case]:
    """The config.json of a training run, from which a model is described."""
    from model.hub.describe import of_run
    from training.arguments import parse_settings
    from training.settings import PretrainingSettings

    words = [*PRETRAINING, "--tokenizer-path", "sp.model"]
    values = dict(parse_settings(PretrainingSettings, words, environment={"GLM_DATE": "01-02-03-04"}).values)
    files = {"config.json": json.dumps(values, indent=2, default=str).encode()}
    yield Case("config.json of a run", files, lambda folder: of_run(folder / "config.json"))

    from generation.api import load_model
    from model.checkpoints.reading import shard_name
    from model.checkpoints.writing import write_shard
    from model.config import GLMConfig
    from model.modeling_glm import GLMModel

    def store(folder: Path) -> None:
        config = GLMConfig(1, 8, 2, 128, max_position_embeddings=16)
        model = GLMModel(config, generator=torch.Generator().manual_seed(1))
        (folder / "ck").mkdir()
        write_shard(folder / "ck" / shard_name(0), {"module": model.state_dict()})
        sizes = {"num_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "max_position_embeddings": 16}
        vocabulary = {"tokenizer_type": "BertWordPieceTokenizer", "tokenizer_model_type": "bert-base-uncased"}
        path = {"tokenizer_path": str(vocabulary_folder() / "bert" / "vocab.txt"), "task_mask": False}
        run = {**values, **sizes, **vocabulary, **path}
        (folder / "config.json").write_text(json.dumps(run, default=str), encoding="utf-8")

    def load(folder: Path) -> Any:
        glm = load_model(folder / "ck", settings=folder / "config.json", prepack=False)
        return glm.model.config, glm.model.state_dict(), glm.tokenizer.encode(TEXTS[0])

    yield Case(
        "config.json of a run, loaded", in_folder(store), load, targets=("config.json",), named=("vocab.txt",)
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------- the tasks

SPAN = {"span1_text": "Bea", "span1_index": 2, "span2_text": "she", "span2_index": 4}
WSC = {
    "text": "Ann thanked Bea because she helped him.",
    "target": SPAN,
    "label": True,
    "idx": 7,
    "candidates": [{"text": "Ann"}, {"text": "Tom"}],
}
PASSAGE = {"text": "Ann met Bea.", "entities": [{"start": 0, "end": 2}, {"start": 8, "end": 10}]}
CHINESE = {
    "target": {"span2_index": 4, "span1_index": 0, "span1_text": "小明", "span2_text": "他"},
    "idx": 0,
    "label": "true",
    "text": "小明说，他饿了",
}
ANSWERS = [{"idx": 0, "text": "yes", "label": 1}, {"idx": 1, "text": "no", "label": 0}]
PAIR = {"premise": "The cat sat.", "hypothesis": "It sat.", "label": "entailment", "idx": 0}
RACE = {
    "id": "m1",
    "article": "The cat sat . It slept",
    "questions": ["who _ ?", "what ?"],
    "options": [list("abcd")] * 2,
    "answers": ["A", "C"],
}
QUESTION = {
    "id": "q1",
    "question": "Who sat?",
    "answers": [{"text": "The cat", "answer_start": 0}, {"text": "cat", "answer_start": 4}],
    "is_impossible": False,
}
NESTED = {
    "version": "v2.0",
    "data": [{"title": "t", "paragraphs": [{"context": "The cat sat.", "qas": [QUESTION, {**QUESTION, "id": "q2"}]}]}],
}
# For each task: the files of a split, and the split.
TASK_FILES: dict[str, tuple[str, Files]] = {
    "rte": ("train", {"train.jsonl": json_lines(PAIR, {**PAIR, "idx": 1, "label": "not_entailment"})}),
    "cb": ("dev", {"val.jsonl": json_lines(PAIR, {**PAIR, "idx": 1, "label": "neutral"})}),
    "boolq": (
        "train",
        {
            "train.jsonl": json_lines(
                {"passage": "The cat.", "question": "is it", "label": True, "idx": 0},
                {"passage": "b", "question": "a", "label": False, "idx": 1},
            )
        },
    ),
    "copa": (
        "train",
        {
            "train.jsonl": json_lines(
                {"premise": "A", "choice1": "B.", "choice2": "C.", "question": "cause", "label": 1, "idx": 0}
            )
        },
    ),
    "wic": (
        "dev",
        {
            "val.jsonl": json_lines(
                {
                    "sentence1": "A bank.",
                    "sentence2": "The bank.",
                    "word": "bank",
                    "idx": 3,
                    "label": True,
                    "start1": 2,
                    "end1": 6,
                    "start2": 4,
                    "end2": 8,
                }
            )
        },
    ),
    "wsc": ("dev", {"val.jsonl": json_lines(WSC, {**WSC, "label": False, "idx": 8})}),
    "wsc1": ("train", {"train.jsonl": json_lines(WSC, {**WSC, "label": False, "idx": 8})}),
    "multirc": (
        "train",
        {
            "train.jsonl": json_lines(
                {
                    "idx": 0,
                    "passage": {"text": "A cat.", "questions": [{"idx": 0, "question": "is it", "answers": ANSWERS}]},
                },
                {"idx": 1, "passage": {"text": "B", "questions": [{"idx": 1, "question": "c", "answers": ANSWERS}]}},
            )
        },
    ),
    "record": (
        "train",
        {
            "train.jsonl": json_lines(
                {
                    "idx": 0,
                    "passage": PASSAGE,
                    "qas": [
                        {"idx": 1, "query": "@placeholder waved", "answers": [{"text": "Bea", "start": 8, "end": 10}]}
                    ],
                }
            )
        },
    ),
    "ax-b": (
        "test",
        {"AX-b.jsonl": json_lines({"sentence1": "A", "sentence2": "B", "label": "entailment", "idx": 0, "logic": "x"})},
    ),
    "ax-g": ("test", {"AX-g.jsonl": json_lines(PAIR, {**PAIR, "idx": 1})}),
    "mnli": (
        "train",
        {"train.tsv": b'index\tsentence1\tsentence2\tgold_label\n0\tA cat\tB\tentailment\n1\tC\tD "q\tneutral\n'},
    ),
    "sst2": ("train", {"train.tsv": b"sentence\tlabel\nthe cat \t1\nsat\t0\n"}),
    "cola": ("train", {"train.tsv": b"gj04\t1\t\tThe cat sat.\ngj04\t0\t*\tSat cat the.\n"}),
    "mrpc": (
        "train",
        {"train.tsv": b"Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tA cat\tB cat\n0\t1\t2\tC\tD\n"},
    ),
    "qqp": (
        "train",
        {"train.tsv": b"id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n0\t1\t2\tA?\tB?\t1\n1\t3\t4\tC\tD\t0\n"},
    ),
    "qnli": (
        "train",
        {"train.tsv": b"index\tquestion\tsentence\tlabel\n0\tWho?\tThe cat\tentailment\n1\tA\tB\tnot_entailment\n"},
    ),
    "agnews": ("train", {"train.csv": b'"1","The cat","sat, on"\n"2","a ""b""","c\\nd"\n'}),
    "yahoo": ("train", {"train.csv": b'"1","The cat","sat, on","it"\n"10","a","b","c"\n'}),
    "yelp-full": ("train", {"train.csv": b'"1","The cat sat"\n"5","a ""b"""\n'}),
    "xstance": (
        "train",
        {"train.jsonl": json_lines({"id": 1, "question": "A?", "comment": "B", "language": "de", "label": "FAVOR"})},
    ),
    "race": ("dev", {"dev/middle/1.txt": json_lines(RACE), "dev/high/2.txt": json_lines({**RACE, "id": "h"})}),
    "squad": ("dev", {"dev-v2.0.json": json.dumps(NESTED).encode()}),
    "afqmc": (
        "train",
        {
            "train.json": json_lines(
                {"sentence1": "你", "sentence2": "好", "label": "1"}, {"sentence1": "a", "sentence2": "b", "label": "0"}
            )
        },
    ),
    "tnews": (
        "train",
        {"train.json": json_lines({"label": "102", "label_desc": "x", "sentence": "你好", "keywords": "a,b"})},
    ),
    "cluewsc": ("train", {"train.json": json_lines(CHINESE, {**CHINESE, "idx": 1, "label": "false"})}),
    "multichoice": (
        "m.jsonl",
        {
            "m.jsonl": json_lines(
                {"inputs_pretokenized": "The cat", "choices_pretokenized": [" sat", " ran"], "label": 1},
                {"inputs_pretokenized": "A", "choices_pretokenized": ["b"]},
            )
        },
    ),
}


def task_cases() -> Iterator[Case]:
    from tasks.registry import TASKS
    from tasks.superglue.readers import DataOptions
    from tasks.superglue.samples import EncodingOptions

    def reader(name: str, split: str, *, cloze: bool, for_training: bool) -> Callable[[Path], Any]:
        options = DataOptions(cloze_eval=cloze, wsc_negative=cloze and name == "wsc", for_training=for_training)
        encoding = EncodingOptions(
            seq_length=64, cloze_eval=cloze, multi_token=True, wsc_negative=cloze and name == "wsc"
        )

        def read(folder: Path) -> Any:
            task = TASKS[name]
            examples = task.examples(folder, split, options)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                samples = (
                    []
                    if task.only_mixed
                    else task.build_samples(examples, bert(), encoding, for_training=for_training).samples
                )
            scored = task.counted_rows(examples)
            if scored and task.metrics and not for_training:
                task.evaluate([0] * len(scored), [examples[row] for row in scored])
            return examples, len(samples)

        return read

    for name, (split, files) in TASK_FILES.items():
        for cloze in (True, False):
            if cloze and TASKS[name].pvp is None and name != "multichoice":
                continue
            if not cloze and (TASKS[name].head_texts is None or TASKS[name].only_mixed):
                continue
            for_training = split == "train"
            yield Case(
                f"{name}{'' if cloze else ', head'}", files, reader(name, split, cloze=cloze, for_training=for_training)
            )


def seq2seq_cases() -> Iterator[Case]:
    from tasks.language_model.readers import read_documents, read_endings
    from tasks.seq2seq.readers import Seq2SeqOptions, read_examples

    options = Seq2SeqOptions(src_seq_length=24, tgt_seq_length=8, task_mask=True)

    def reader(task: str, split: str) -> Callable[[Path], Any]:
        def read(folder: Path) -> Any:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return read_examples(task, folder, split, tokenizer=bert(), options=options)

        return read

    sources, targets = b"The cat sat.\nIt was warm\nA , b\n", b"cat\nwarm\nb\n"
    nested = json.dumps(NESTED).encode()
    pairs = {"train.source": sources, "train.target": targets}
    blanks = {"train.source": b"The [MASK] sat.\n[MASK] was [MASK]\n", "train.target": b"cat\nIt|warm\n"}
    summary = b"[SN]URL[SN]\nhttp://x\n\n[SN]FIRST-SENTENCE[SN]\nThe cat sat.\n\n[SN]RESTBODY[SN]\nIt was\nwarm.\n"
    splits = json.dumps({"train": ["1", "2"], "validation": ["1"], "test": ["2"]}).encode()
    xsum = {"XSum-TRAINING-DEV-TEST-SPLIT-90-5-5.json": splits, "1.summary": summary, "2.summary": summary}
    for task in ("gigaword", "cnn_dm", "cnn_dm_original", "customization"):
        yield Case(task, pairs, reader(task, "train"))
    yield Case("xsum", xsum, reader("xsum", "train"))
    yield Case("extraction", blanks, reader("extraction", "train"))
    yield Case("blank", {"train.txt": sources}, reader("blank", "train"))
    tested = {"test.txt": b"The cat sat .\n", "blank/test.maskratio0.1.blank": b"The <blank> sat .\n"}
    yield Case("blank, test", tested, reader("blank", "test"))
    for task in ("squad_generation", "cmrc"):
        yield Case(task, {"train.json": nested}, reader(task, "train"))
    for task, version in (("squad", "v2.0"), ("squad_v1", "v1.1")):
        for split in ("train", "dev"):
            yield Case(f"{task}, {split}", {f"{split}-{version}.json": nested}, reader(task, split))
    text = {"t.txt": b" = Title = \n\n The cat @-@ sat <unk> .\n It was warm .\n"}
    for task in ("wikitext", "language_model"):
        yield Case(task, text, lambda folder, task=task: read_documents(folder / "t.txt", task=task, tokenizer=bert()))
    endings = {"l.jsonl": json_lines({"text": "The cat sat"}, {"text": "It was warm"})}
    yield Case("lambada", endings, lambda folder: read_endings(folder / "l.jsonl", tokenizer=bert()))


def multilingual_cases() -> Iterator[Case]:
    from tasks.multilingual.run import read_multilingual
    from tasks.registry import TASKS
    from tasks.seq2seq.readers import Seq2SeqOptions

    options = Seq2SeqOptions(src_seq_length=24, tgt_seq_length=8, task_mask=True)
    pair, nested = b"The cat sat\tIt sat\tentailment\nA\tB\tneutral\n", json.dumps(NESTED).encode()
    tokens = b"The\tO\nPar\tB-LOC\nis\tI-LOC\n\nAnn\tB-PER\n"
    for name, files in {
        "xnli": {"train-en.tsv": pair, "train-de.tsv": pair},
        "pawsx": {"train-en.tsv": b"A\tB\t1\nC\tD\t0\n"},
        "panx": {"train-en.tsv": tokens},
    }.items():
        yield Case(name, files, lambda folder, name=name: TASKS[name].examples(folder, "train"))
    url, paper = "http://x", b"<PAPER><S>T</S><SECTION title='a'><S>One .</S><S>Two .</S></SECTION></PAPER>"
    articles = {url: {f"Part {n}": {"document": "The cat", "summary": "cat"} for n in range(5)}}
    part = {"document": "Katze", "summary": "k", "english_url": url, "english_section_name": "Part 0"}
    german = {"u": {f"Teil {n}": part for n in range(5)}}
    place = "scisummnet/top1000_complete/P1/Documents_xml/P1.xml"
    summary = [json_lines({"text": "你好", "summary": "好", "en-summary": "well", "title": "t"})] * 2
    lines = dict(zip(("train.jsonl", "german_train.jsonl"), summary, strict=True))
    pickles = {"english.pkl": pickle.dumps(articles), "german.pkl": pickle.dumps(german)}
    for case, task, split, files in (
        ("xquad", "xquad", "dev", {"xquad/xquad.de.json": nested, "xquad/xquad.en.json": nested}),
        ("tydiqa", "tydiqa", "train", {"tydiqa/tydiqa-goldp-v1.1-train/tydiqa.goldp.en.train.json": nested}),
        ("ncls", "ncls", "train", {"train.txt": "The cat\n猫\nIt sat\n它\n".encode()}),
        ("lcsts", "lcsts", "train", lines),
        ("xlsum", "xlsum", "train", lines),
        (
            "wikilingua",
            "wikilingua",
            "train",
            {"english.json": json.dumps(articles).encode(), "german.json": json.dumps(german).encode()},
        ),
        ("wikilingua, pickles", "wikilingua", "train", pickles),
        ("scitldr", "scitldr", "train", {"train.jsonl": json_lines({"source": ["A.", "B."], "target": ["C", "D"]})}),
        ("mtg_crosssum", "mtg_crosssum", "train", {"train.doc.en": b"The cat\n", "train.sum.zh": b"cat\n"}),
        (
            "zhsum",
            "zhsum",
            "train",
            {
                place: paper,
                "scisummnet/scisummnet-zh.txt": json_lines({"pid": "P1", "zh_sum": "x"}),
                "train.txt": b"a\nb\n",
            },
        ),
    ):
        yield Case(
            case, files,
            lambda folder, task=task, split=split: read_multilingual(
                task, folder, split, tokenizer=bert(), options=options
            ),
        )  # fmt: skip


# ------------------------------------------------------------------------------------------------- the programs


def prompts_cases() -> Iterator[Case]:
    from generation.inputs import encode_prompt
    from generation.prompts import read_prompts

    def reader(name: str) -> Callable[[Path], Any]:
        def read(folder: Path) -> Any:
            records = read_prompts(folder / name)
            encoded = [encode_prompt(record.prompt, tokenizer=bert()) for record in records]
            return (
                records,
                [json.dumps(record.fields, ensure_ascii=False).encode("utf-8", "strict") for record in records],
                encoded,
            )

        return read

    prompts = ["The [MASK] sat.", "It was [gMASK]", "[MASK] and [MASK] 你好"]
    rows = [{"prompt": prompt, "id": number, "truth": "x"} for number, prompt in enumerate(prompts)]
    files = {
        "p.txt": "".join(f"{prompt}\n" for prompt in prompts).encode("utf-8"), "p.jsonl": json_lines(*rows),
        "p.json": json.dumps(rows, indent=1).encode("utf-8"), "P.NDJSON": json_lines(*rows),
    }  # fmt: skip
    for name, data in files.items():
        yield Case(name, {name: data}, reader(name))


def hostfile_cases() -> Iterator[Case]:
    import launch

    files = {"hosts": b"# ours\nnode-a slots=4\n\nnode-b   slots=4  # c\n10.0.0.3 slots=08\n"}

    def read(folder: Path) -> Any:
        hosts = launch.read_hostfile(str(folder / "hosts"))
        words, nodes, ranks = launch.build_command({"HOST_FILE_PATH": str(folder / "hosts"), "MASTER_ADDR": "node-a"})
        assert not any(host.startswith("-") or set("@:;$`'\" ") & set(host) for host in hosts), hosts
        return list(hosts.items()), len(words), nodes, ranks

    yield Case("hostfile", files, read)
    variables = json.dumps({
        "NUM_WORKERS": "2", "NUM_GPUS_PER_WORKER": "4", "NODE_RANK": "1", "MASTER_ADDR": "node-a",
        "MASTER_PORT": "29500",
        "LAUNCHER": "torchrun", "CUDA_VISIBLE_DEVICES": "0,1,2,3", "SLURM_STEP_ID": "1", "SLURM_CPUS_PER_TASK": "4",
    }).encode()  # fmt: skip

    def build(folder: Path) -> Any:
        from files.reading import read_json

        given = {str(name): str(value) for name, value in read_json(folder / "variables").items()}
        try:
            return launch.build_command(given)
        except ValueError as error:
            raise ValueError(f"variables: {error}") from None

    yield Case("environment", {"variables": variables}, build)
    slurm = json.dumps({
        "SLURM_JOB_ID": "12", "SLURM_JOB_NODELIST": "gpu[1-2]", "SLURM_JOB_NUM_NODES": "2", "MASTER_ADDR": "gpu1",
        "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NUM_TASKS": "2", "NUM_GPUS_PER_WORKER": "8",
    }).encode()  # fmt: skip
    yield Case("SLURM", {"variables": slurm}, build)


PRETRAINING = [
    "--block-lm", "--num-layers", "2", "--hidden-size", "32", "--num-attention-heads", "4", "--train-data", "x.jsonl",
    "--tokenizer-type", "SentencePieceTokenizer",
]  # fmt: skip
DEEPSPEED = {
    "train_micro_batch_size_per_gpu": 4,
    "gradient_accumulation_steps": 2,
    "steps_per_print": 10,
    "zero_optimization": {
        "stage": 1,
        "contiguous_gradients": True,
        "offload_optimizer": {"device": "none"},
        "reduce_bucket_size": 1000,
    },
    "zero_allow_untested_optimizer": True,
    "fp16": {"enabled": True, "loss_scale": 0, "loss_scale_window": 100, "hysteresis": 2, "min_loss_scale": 1},
    "optimizer": {"type": "Adam", "params": {"lr": 1e-4, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.01}},
    "gradient_clipping": 1.0,
    "activation_checkpointing": {"partition_activations": False},
    "wall_clock_breakdown": False,
    "scheduler": {"type": "WarmupLR", "params": {}},
}


def deepspeed_cases() -> Iterator[Case]:
    from training.arguments import parse_settings
    from training.deepspeed.config import deepspeed_plan
    from training.settings import PretrainingSettings

    def read(folder: Path) -> Any:
        words = [*PRETRAINING, "--deepspeed", "--deepspeed_config", str(folder / "ds.json")]
        settings = parse_settings(PretrainingSettings, words, environment={"GLM_DATE": "01-02-03-04"})
        try:
            plan = deepspeed_plan(settings, device=torch.device("cpu"))
        except ValueError as error:
            raise ValueError(f"ds.json: {error}") from None
        chosen = settings.batch, settings.optimizer, settings.precision
        return plan, [{**vars(one)} for one in chosen]

    yield Case("fp16", {"ds.json": json.dumps(DEEPSPEED, indent=1).encode()}, read)
    less = {name: value for name, value in DEEPSPEED.items() if name not in ("fp16", "scheduler")} | {
        "bf16": {"enabled": True},
        "train_batch_size": 8,
    }
    yield Case("bf16", {"ds.json": json.dumps(less).encode()}, read)
    for name in ("config_block_10B.json", "config_block_tiny.json"):
        yield Case(name, {"ds.json": (REPOSITORY / "config" / name).read_bytes()}, read)


def metrics_cases() -> Iterator[Case]:
    import process_grid

    from training.logging import JsonLinesWriter, validation_table

    rows: list[dict[str, Any]] = []
    for number in range(1, 8):
        rows.append({"kind": "train", "iteration": number, "loss": 1 / number, "learning_rate": 0.1, "elapsed_ms": 3.5})
        if number % 3 == 0:
            rows.append(
                {"kind": "evaluation", "iteration": number, "loss": 2 / number, "bert_loss": None, "perplexity": 3.0}
            )

    def resume(folder: Path) -> Any:
        writer = JsonLinesWriter(folder / "metrics.jsonl", iteration=5)
        writer.write({"kind": "train", "iteration": 6, "loss": float("nan")}, ())
        writer.close()
        return (folder / "metrics.jsonl").read_bytes()

    yield Case("resumed", {"metrics.jsonl": json_lines(*rows)}, resume)
    yield Case("table", {"metrics.jsonl": json_lines(*rows)}, lambda folder: validation_table(folder / "metrics.jsonl"))
    result = json.dumps({"type": "rte", "epoch": 2, "accuracy": 0.5, "f1": 1.0}).encode()
    grid = {f"{name}/{file}": result for name in ("a", "b") for file in ("results.json", "test_results.json")}
    yield Case("results of a grid", grid, lambda folder: process_grid.table(process_grid.read_results(f"{folder}/*")))


SURFACES: dict[str, Callable[[], Iterator[Case]]] = {
    "corpus": corpus_cases,
    "store": store_cases,
    "lazy": lazy_cases,
    "order": order_cases,
    "tokenizer": tokenizer_cases,
    "checkpoint": checkpoint_cases,
    "checkpoint-content": content_cases,
    "safetensors": safetensors_cases,
    "config": config_cases,
    "run-settings": settings_cases,
    "tasks": task_cases,
    "seq2seq": seq2seq_cases,
    "multilingual": multilingual_cases,
    "prompts": prompts_cases,
    "hostfile": hostfile_cases,
    "deepspeed-json": deepspeed_cases,
    "metrics": metrics_cases,
}
