"""Summaries in one language of texts in another: NCLS, LCSTS, XL-Sum, XWikis, WikiLingua, SciTLDR, MTG, and mixtures.

Every reader yields drafts: texts, the language of the source, and ``meta`` with ``tgt_lang`` and ``task`` (``sum`` or
``trans``), which choose the prompt.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from data_utils.tokenizers.tokenizer import Tokenizer
from files.names import is_file_name
from files.reading import described, read_json
from model.checkpoints.pickles import check_pickle
from tasks.multilingual.files import language_code
from tasks.readers import MissingFileError, read_json_lines, read_text, standardize
from tasks.seq2seq.detokenizers import cnn_dm
from tasks.seq2seq.readers import Seq2SeqExample, Seq2SeqOptions, read_line_pairs, read_lines

# The mixtures: how many papers are trained on, and how much of each other collection there is.
PAPERS_OF_ZHSUM = 799  # the next row is left out, the rest is evaluated
PAPERS_OF_ENSUM = 800
ZHSUM_TOTAL = 40_000
ENSUM_TRAIN = {"xwikis": 20_000, "lcsts": 10_000}  # xwikis: of each language
ENSUM_EVALUATION = 200
WIKILINGUA_TURNS = {0: "dev", 1: "test"}  # of ten examples; the other eight are for training
MTG_LANGUAGES = ("de", "es", "fr", "zh")


@dataclass(frozen=True)
class Draft:
    """An example before it is numbered.

    Attributes:
        source, target: the texts.
        number: in the original's numbering.
        tgt_lang, task: see the module; empty where the prompt does not ask.
        language: of the source where a task has several.
        decoded: the reference is what the tokenizer makes of the target, not the target itself.
    """

    source: str
    target: str
    number: int
    tgt_lang: str = ""
    task: str = "sum"
    language: str = ""
    decoded: bool = False


def read_summaries(
    task: str, data_dir: Path, split: str, *, tokenizer: Tokenizer, options: Seq2SeqOptions
) -> list[Seq2SeqExample]:
    """Return the examples of a split, in the order of file names and lines.

    Raises MissingFileError for missing files, ValueError for anything malformed and for a language without examples.
    """
    drafts = list(READERS[task](data_dir, split))
    wanted = [language_code(name) for name in options.languages] if split != "train" else []
    known = {draft.language for draft in drafts}
    if missing := [name for name in wanted if name not in known]:
        raise ValueError(
            f"{data_dir}: {task} {split} has no text in {missing[0]}; it has {', '.join(sorted(known)) or 'none'} "
            "(--languages)"
        )
    kept = [draft for draft in drafts if not wanted or draft.language in wanted]
    if not kept:
        raise ValueError(f"{data_dir}: no text to summarise in the split {split!r} of {task}")
    decoded = iter(tokenizer.encode_batch([draft.target for draft in kept if draft.decoded]))
    examples = []
    for draft in kept:
        reference = tokenizer.decode(next(decoded)) if draft.decoded else draft.target
        meta = {name: value for name, value in (("tgt_lang", draft.tgt_lang), ("task", draft.task)) if value}
        guid = f"{split}-{draft.number}" + ("-trans" if draft.task == "trans" else "")
        examples.append(Seq2SeqExample(guid, draft.source, draft.target, reference, meta, draft.language))
    return examples


def _groups(path: Path, size: int) -> Iterator[list[str]]:
    """Yield the lines of a file in groups. Raise ValueError when the last one is not whole."""
    lines = read_lines(path)
    if len(lines) % size:
        raise ValueError(
            f"{path} has {len(lines)} lines; {size} lines belong together, so that their number has to be a multiple "
            f"of {size}"
        )
    for start in range(0, len(lines), size):
        yield [standardize(line) for line in lines[start : start + size]]


def _ncls(data_dir: Path, split: str, *, first: int = 1) -> Iterator[Draft]:
    """Yield the pairs of NCLS: an English text, a Chinese summary."""
    for number, (source, target) in enumerate(_groups(data_dir / f"{split}.txt", 2), start=first):
        yield Draft(source, target, number, "zh")


def _ncls_multitask(data_dir: Path, split: str) -> Iterator[Draft]:
    """Yield triples as a summary and a translation; NCLS itself is evaluated."""
    if split != "train":
        yield from _ncls(data_dir, split)
        return
    places = (data_dir / "both", data_dir.parent / "both")
    folder = next((place for place in places if place.is_dir()), places[0])
    for number, (source, english, chinese) in enumerate(_groups(folder / "train.txt", 3), start=1):
        yield Draft(source, chinese, number, "zh")
        yield Draft(english, chinese, number, "zh", "trans")


def _zhsum(data_dir: Path, split: str) -> Iterator[Draft]:
    """Yield the released mixture to Chinese: papers, and in training pairs of NCLS, ``ZHSUM_TOTAL`` together."""
    folder = data_dir / "scisummnet"
    path = folder / "scisummnet-zh.txt"
    rows = list(read_json_lines(path))
    if split != "train":
        rows = rows[PAPERS_OF_ZHSUM + 1 :]
        if not rows:
            raise MissingFileError(f"{path}: rows are evaluated from number {PAPERS_OF_ZHSUM + 2} on; there are fewer")
    elif not rows:
        raise ValueError(f"{path}: the file is empty")
    else:
        rows = rows[:PAPERS_OF_ZHSUM]
    for row in rows:
        yield Draft("".join(paper_sentences(folder, row.text("pid"))), row.text("zh_sum"), row.number + 1, "zh")
    if split == "train":
        yield from islice(_ncls(data_dir, split, first=PAPERS_OF_ZHSUM + 2), ZHSUM_TOTAL - len(rows))


def paper_sentences(folder: Path, identity: str) -> list[str]:
    """Return the sentences in the sections of a paper of ScisummNet; of one without sections all there are.

    ``folder`` holds ``top1000_complete``. Raises MissingFileError for a paper that is not there, ValueError for one
    that is damaged or whose id is no name of a folder.
    """
    if not is_file_name(identity):
        raise ValueError(f"{folder}: paper {described(identity)}; the name of its folder is needed")
    path = folder / "top1000_complete" / identity / "Documents_xml" / f"{identity}.xml"
    try:
        root = ElementTree.fromstring(read_text(path))
    except ElementTree.ParseError as error:
        raise ValueError(f"{path}: not valid XML ({error}); copy it again") from None
    sections = list(root.iter("SECTION")) or [root]
    return ["".join(sentence.itertext()) for section in sections for sentence in section.iter("S")]


def _running_text(line: str, *, is_target: bool = True) -> str:
    return cnn_dm(standardize(line.strip()), is_target=is_target)


def _ensum(data_dir: Path, split: str) -> Iterator[Draft]:
    """Yield the released mixture to English: papers, XWikis, LCSTS, and for evaluation CNN/DailyMail in Japanese."""
    papers = data_dir / "scisummnet" / "top1000_complete"
    folders = sorted(path for path in papers.glob("*") if path.is_dir())
    if not folders:
        raise MissingFileError(f"{papers}: no papers there; ensum needs scisummnet, xwikis and lcsts below --data-dir")
    training = split == "train"
    numbered = list(enumerate(folders, start=1))
    for number, folder in numbered[:PAPERS_OF_ENSUM] if training else numbered[PAPERS_OF_ENSUM:]:
        sentences = paper_sentences(papers.parent, folder.name)
        target = "".join(map(_running_text, read_lines(folder / "summary" / f"{folder.name}.gold.txt")))
        source = "".join(_running_text(sentence, is_target=False) for sentence in sentences)
        yield Draft(source, target, number, "en", language="en")
    limits = ENSUM_TRAIN if training else dict.fromkeys(ENSUM_TRAIN, ENSUM_EVALUATION)
    counts: dict[str, int] = {}
    for draft in _xwikis(data_dir / "xwikis", split):
        counts[draft.language] = counts.get(draft.language, 0) + 1
        if counts[draft.language] <= limits["xwikis"]:
            yield _to_english(draft, f"xwikis-{draft.language}")
    english = (draft for draft in _lcsts(data_dir / "lcsts", split) if draft.tgt_lang == "en")
    for draft in islice(english, limits["lcsts"]):
        yield _to_english(draft, "lcsts")
    if not training:
        folder, name = data_dir / "cnndm-ja", "val" if split == "dev" else split
        pairs = read_line_pairs(folder / f"{name}.source", folder / f"{name}.target")
        for number, (source, target) in enumerate(pairs, start=1):
            yield Draft(source, target, number, "en", language="ja")


def _to_english(draft: Draft, collection: str) -> Draft:
    return Draft(draft.source, _running_text(draft.target), draft.number, "en", "sum", draft.language)


def _lcsts(data_dir: Path, split: str) -> Iterator[Draft]:
    """Yield summaries of Chinese texts in English, and for training in Chinese, too."""
    number = 0
    for record in read_json_lines(data_dir / f"{split}.jsonl"):
        for field, language in (("en-summary", "en"), ("summary", "zh"))[: 2 if split == "train" else 1]:
            number += 1
            yield Draft(record.text("text"), record.text(field), number, language, language="zh", decoded=True)


def _xlsum(data_dir: Path, split: str) -> Iterator[Draft]:
    name = "val" if split == "dev" else split
    paths = sorted(data_dir.glob(f"*_{name}.jsonl"))
    if not paths:
        raise MissingFileError(f"{data_dir}/LANGUAGE_{name}.jsonl: no such file")
    number = 0
    for path in paths:
        language = language_code(path.name.removesuffix(f"_{name}.jsonl"))
        for record in read_json_lines(path):
            number += 1
            source = standardize(f"{record.text('title')} {record.text('text')}")
            target = standardize(record.text("summary"))
            yield Draft(source, target, number, task="", language=language, decoded=True)


def _xwikis(data_dir: Path, split: str) -> Iterator[Draft]:
    """Yield English summaries of Czech, German and French articles; the validation files serve both evaluations."""
    name = "train" if split == "train" else "val"
    paths = sorted(data_dir.glob(f"*-en/{name}.*_en_src_documents.txt"))
    if not paths:
        raise MissingFileError(f"{data_dir}/LANGUAGE-en/{name}.LANGUAGE_en_src_documents.txt: no such file")
    number = 0
    for path in paths:
        targets = path.with_name(path.name.replace("src_documents", "tgt_summaries_prep"))
        for source, target in read_line_pairs(path, targets):
            number += 1
            yield Draft(source, target, number, "en", language=path.parent.name.removesuffix("-en"), decoded=True)


class _PlainUnpickler(pickle.Unpickler):
    """Reads pickles of dictionaries and texts, which need no code."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it would run {module}.{name}")


def _wikilingua_articles(path: Path) -> dict[str, Any]:
    if path.suffix == ".json":
        return read_json(path)
    try:
        data = path.read_bytes()
        check_pickle(data)
        content = _PlainUnpickler(BytesIO(data)).load()
    except (
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        LookupError,
        ArithmeticError,
        TypeError,
        AttributeError,
    ) as error:
        raise ValueError(
            f"{path}: not a pickle of dictionaries and texts ({error}); a .json file of the same content does as well"
        ) from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: {described(content)} is no dictionary of articles")
    return content


def _wikilingua(data_dir: Path, split: str) -> Iterator[Draft]:
    """Yield English summaries of the sections of how-to articles; of ten running examples one is dev and one test."""
    paths = sorted(path for path in data_dir.glob("*") if path.suffix in (".json", ".pkl"))
    english = next((path for path in paths if path.stem == "english"), None)
    if english is None:
        raise MissingFileError(f"{data_dir}/english.json (or .pkl): no such file")
    summaries = _wikilingua_articles(english)
    number = -1
    for path in paths:
        articles = summaries if path == english else _wikilingua_articles(path)
        for url, sections in articles.items():
            for name, section in _entries(sections, f"{path}, {url}"):
                number += 1
                if WIKILINGUA_TURNS.get(number % 10, "train") != split:
                    continue
                place = f"{path}, {url}, {name}"
                source, target = section, section
                if path != english:
                    target = _english_section(summaries, section, place)
                language = language_code(path.stem)
                yield Draft(_text(source, "document", place), _text(target, "summary", place), number, "en",
                            language=language)  # fmt: skip


def _entries(sections: Any, place: str) -> Iterable[tuple[str, Mapping[str, Any]]]:
    if not isinstance(sections, dict) or not all(isinstance(section, dict) for section in sections.values()):
        raise ValueError(f"{place}: {described(sections)} is no dictionary of sections")
    return sections.items()


def _english_section(summaries: Mapping[str, Any], section: Mapping[str, Any], place: str) -> Mapping[str, Any]:
    url, name = section.get("english_url"), section.get("english_section_name")
    found = (summaries.get(url) or {}).get(name) if isinstance(url, str) and isinstance(name, str) else None
    if not isinstance(found, dict):
        raise ValueError(f"{place}: the English file has no section {described(name)} of {described(url)}")
    return found


def _text(section: Mapping[str, Any], name: str, place: str) -> str:
    value = section.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{place}: {name} is {described(value)}; a text is needed")
    return value


def _scitldr(data_dir: Path, split: str) -> Iterator[Draft]:
    """Yield the last of the short summaries of scientific papers, whose sentences follow each other directly."""
    for record in read_json_lines(data_dir / f"{split}.jsonl"):
        source, target = record.texts("source"), record.texts("target")
        yield Draft("".join(source), target[-1], record.number + 1, task="")


def _mtg_crosssum(data_dir: Path, split: str) -> Iterator[Draft]:
    """Yield Chinese summaries: of English texts in training, of other languages in the evaluation."""
    if split == "train":
        files = [(data_dir / "train.doc.en", data_dir / "train.sum.zh", "en")]
    else:
        name = f"{split}.annotation"
        found = [language for language in MTG_LANGUAGES if (data_dir / f"{name}.doc.{language}").is_file()]
        if not found:
            raise MissingFileError(f"{data_dir}/{name}.doc.LANGUAGE ({', '.join(MTG_LANGUAGES)}): no such file")
        files = [(data_dir / f"{name}.doc.{one}", data_dir / f"{name}.sum.zh", one) for one in found]
    number = 0
    for path, targets, language in files:
        for source, target in read_line_pairs(path, targets):
            texts = (_running_text(source, is_target=False), _running_text(target))
            yield Draft(*texts, number, "zh", "", language, decoded=True)
            number += 1


READERS: Mapping[str, Callable[[Path, str], Iterator[Draft]]] = {
    "ncls": _ncls,
    "ncls_multitask": _ncls_multitask,
    "zhsum": _zhsum,
    "ensum": _ensum,
    "lcsts": _lcsts,
    "xlsum": _xlsum,
    "xwikis": _xwikis,
    "wikilingua": _wikilingua,
    "scitldr": _scitldr,
    "mtg_crosssum": _mtg_crosssum,
}
