"""Tasks in several languages: files, figures of each language, rules of comparison, bad input."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_utils.tokenizers.tokenizer import Tokenizer, build_tokenizer
from tasks.metrics import entity_f1
from tasks.multilingual.files import language_files, language_of
from tasks.multilingual.metrics import NORMALIZATIONS, answer_scores, by_language
from tasks.multilingual.run import first_sentence, question_scores, read_multilingual
from tasks.registry import TASKS
from tasks.seq2seq.metrics import bleu_signature, library_scores, rouge_figures
from tasks.seq2seq.outputs import output_texts
from tasks.seq2seq.readers import Seq2SeqExample, Seq2SeqOptions
from tasks.superglue.readers import DataOptions, InputExample

WORDS = st.lists(st.sampled_from(["门", "变成", "green", "door", "the", "река", "1987", "."]), max_size=8).map(" ".join)


@pytest.fixture(scope="module")
def tokenizer(golden) -> Tokenizer:
    file = golden.path("multilingual/mglm_tiny.model")
    return build_tokenizer("ChineseSPTokenizer", model_type=str(file), task_mask=True)


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    return folder


def nested(*questions: tuple[str, str, str]) -> str:
    """Return a file of questions: id, context, answer."""
    paragraphs = [
        {"context": context, "qas": [{"id": name, "question": "what?", "answers": [{"text": answer}]}]}
        for name, context, answer in questions
    ]
    return json.dumps({"data": [{"paragraphs": paragraphs}]})


def read(task: str, folder: Path, split: str, tokenizer: Tokenizer, **options) -> list[Seq2SeqExample]:
    chosen = Seq2SeqOptions(src_seq_length=64, tgt_seq_length=16, task_mask=True, **options)
    return read_multilingual(task, folder, split, tokenizer=tokenizer, options=chosen)


@pytest.mark.parametrize(
    ("name", "language"),
    [
        ("test-de.txt", "de"),
        ("dev-zh.tsv", "zh"),
        ("x-final/ko/test_2k.tsv", "ko"),
        ("xquad.ar.json", "ar"),
        ("tydiqa.goldp.en.train.json", "en"),
        ("tydiqa-goldp-dev-swahili.json", "sw"),
        ("tydiqa.goldp.fi.dev.json", "fi"),
        ("test-context-zh-question-zh.json", "zh"),
        ("test-context-zh-question-en.json", "zh-en"),
    ],
)
def test_the_language_is_in_the_name(name: str, language: str):
    assert language_of(Path("folder") / name) == language


def test_files_are_sorted_and_limited_to_languages(tmp_path: Path):
    write(tmp_path, {f"dev-{language}.tsv": "a\tb\n" for language in ("zh", "de", "en")})
    assert [language for _, language in language_files(tmp_path, ["dev*.tsv"])] == ["de", "en", "zh"]
    [(path, language)] = language_files(tmp_path, ["dev*.tsv"], languages=["chinese"])
    assert (path.name, language) == ("dev-zh.tsv", "zh")
    with pytest.raises(ValueError, match=r"dev\*\.tsv: no file of the language fr; there are files of de, en, zh"):
        language_files(tmp_path, ["dev*.tsv"], languages=["de", "fr"])
    with pytest.raises(ValueError, match=r"test\*\.txt or .*test\*\.tsv: no such file; --data-dir"):
        language_files(tmp_path, ["test*.txt", "test*.tsv"])


def test_figures_of_languages():
    scores = [100.0, 0.0, 50.0, 100.0, 100.0]
    found = by_language(
        lambda numbers: {"F1": sum(scores[n] for n in numbers) / len(numbers)}, ["en", "de", "de", "zh", "zh-de"]
    )
    assert found == {
        "F1": pytest.approx((100 + 25 + 100) / 3),
        "F1-without-en": pytest.approx((25 + 100) / 2),
        "F1-g-xlt": pytest.approx((100 + 25 + 100 + 100) / 4),
        "F1-pooled": pytest.approx(250 / 4),
        "F1/de": 25.0,
        "F1/en": 100.0,
        "F1/zh": 100.0,
        "F1/zh-de": 100.0,
    }
    assert by_language(lambda numbers: {"F1": float(len(numbers))}, ["", ""]) == {"F1": 2.0}
    assert by_language(lambda numbers: {"F1": 1.0}, ["de", "de"]) == {"F1": 1.0, "F1/de": 1.0}


@pytest.mark.parametrize(
    ("rule", "language", "text", "normalized"),
    [
        ("squad", "en", "The  Door, is-green!", "door isgreen"),
        ("squad", "de", "Das Köln", "das köln"),
        ("squad", "zh", "北京，1987年", "北京，1987年"),
        ("mlqa", "en", "A cat’s — the «door»", "cats door"),
        ("mlqa", "de", "Das Haus der einen Straße", "haus straße"),
        ("mlqa", "es", "Los niños y la niña", "niños y niña"),
        ("mlqa", "vi", "của cái nhà", "nhà"),
        ("mlqa", "hi", "गरम रोटी।", "गरम रोटी"),
        ("mlqa", "zh", "北京，1987年A级", "北 京 1987 年 a 级"),
        ("mlqa", "ar", "البيت والبيت", "بيت و بيت"),
        ("mlqa-fixed", "ar", "البيت والبيت", "بيت والبيت"),
        ("mlqa-fixed", "ar", "مسالك", "مسالك"),
        ("mlqa", "ar", "مسالك", "مس ك"),
        ("mlqa", "ru", "Это дом.", "это дом"),
        ("mglm", "zh", "北京，1987年", "Bei Jing 1987Nian"),
    ],
)
def test_rules_of_comparison(rule: str, language: str, text: str, normalized: str):
    assert NORMALIZATIONS[rule](text, language) == normalized


@pytest.mark.parametrize("rule", ["squad", "mlqa", "mlqa-fixed"])
def test_what_vanishes_has_a_stated_value(rule: str):
    def score(said: str, *answers: str) -> tuple[float, float]:
        return answer_scores(said, answers, normalization=rule, language="en")

    assert score("", "the") == (1.0, 0.0)
    assert score("...", "a") == (1.0, 0.0)
    assert score("", "door") == score("door", "") == score("door") == (0.0, 0.0)
    assert score("green door", "x", "the door") == (0.0, pytest.approx(2 / 3))


@given(WORDS, WORDS)
def test_scores_lie_between_nothing_and_equality(said: str, true: str):
    for rule in ("squad", "mlqa", "mlqa-fixed"):
        em, f1 = answer_scores(said, [true], normalization=rule, language="zh")
        assert 0.0 <= f1 <= 1.0 and em in (0.0, 1.0)
        assert answer_scores(true, [said], normalization=rule, language="zh") == (em, pytest.approx(f1))
        vanished = not NORMALIZATIONS[rule](true, "zh")
        assert answer_scores(true, [true], normalization=rule, language="zh") == (1.0, 0.0 if vanished else 1.0)


def asked(language: str, name: str, answer: str) -> Seq2SeqExample:
    return Seq2SeqExample("g", "", answer, answer, {"idx": name, "answers": (answer,)}, language)


def test_questions_with_the_same_id_are_told_apart_by_language():
    examples = [asked("de", "q", "Tür"), asked("de", "q", "Tür"), asked("zh", "q", "门"), asked("zh-de", "q", "门")]
    said = ["N/A", "die Tür", "Tür", "门"]
    scores = question_scores(said, examples, normalization="mlqa")
    assert (scores["EM/de"], scores["EM/zh"], scores["EM/zh-de"]) == (100.0, 0.0, 100.0)
    assert (scores["EM"], scores["EM-g-xlt"]) == (50.0, pytest.approx(200 / 3))
    merged = question_scores(said, examples, normalization="mlqa", merged=True)
    assert merged == {"EM": 100.0, "F1": 100.0}, "as the original: the first answer of any language counts"
    texts = output_texts("mlqa", said, examples, split="test")
    assert {name: json.loads(text) for name, text in texts.items() if "refs" not in name} == {
        "test.de.jsonl": {"q": "die Tür"}, "test.zh.jsonl": {"q": "Tür"}, "test.zh-de.jsonl": {"q": "门"},
    }  # fmt: skip


def test_evaluation_does_not_look_for_the_answer(tokenizer, tmp_path: Path):
    context = "the keeper painted the door green before the storm . " * 6 + "the tram is red ."
    write(tmp_path, {"squad/train-v1.1.json": nested(("1", context, "tram")), "xquad/xquad.de.json": nested(
        ("1", context, "tram"))})  # fmt: skip
    every = read("xquad", tmp_path, "test", tokenizer)
    legacy = read("xquad", tmp_path, "test", tokenizer, legacy_qa_eval=True)
    training = read("xquad", tmp_path, "train", tokenizer)
    assert len(every) > len(legacy) == len(training) > 0
    assert {example.language for example in every} == {"de"} and {example.language for example in training} == {"en"}
    elsewhere = write(tmp_path / "elsewhere", {"train-v1.1.json": nested(("1", "a b", "b"))})
    assert len(read("xquad", tmp_path, "train", tokenizer, squad_dir=str(elsewhere))) == 1
    with pytest.raises(ValueError, match=r"squad/train-v2\.0\.json: no such file, .*--squad-dir"):
        read("xquad_v2", tmp_path, "train", tokenizer)


def test_labels_of_xnli_and_pawsx(tmp_path: Path):
    write(tmp_path, {"dev-de.tsv": "a\tb\tcontradictory\nc\td\tneutral\n", "test-fr.txt": "a\tb\tmaybe\n"})
    assert [example.label for example in TASKS["xnli"].examples(tmp_path, "dev")] == ["contradiction", "neutral"]
    with pytest.raises(
        ValueError, match=r"test-fr\.txt, line 1: label is 'maybe'; the labels are neutral, entailment, contra"
    ):
        TASKS["xnli"].examples(tmp_path, "test")
    header = "id\tsentence1\tsentence2\tlabel\n"
    rows = "1\ta\tb\t1\n2\tNS\tb\t1\n3\tc\td\t0\n"
    write(tmp_path, {"x-final/de/test_2k.tsv": header + rows, "x-final/zh/test_2k.tsv": header + "1\tx\ty\t1\n"})
    examples = TASKS["pawsx"].examples(tmp_path, "test")
    figures = TASKS["pawsx"].evaluate([1, 0, 0, 0], examples)
    assert (figures["accuracy/de"], figures["accuracy/zh"], figures["accuracy"]) == (
        pytest.approx(200 / 3), 0.0, pytest.approx(100 / 3),
    )  # fmt: skip
    assert (figures["accuracy-without-ns"], figures["ns-rows"]) == (50.0, 1.0)


def test_words_of_panx(tmp_path: Path):
    lines = "Marta\tB-PER\nBrown\tI-PER\nin\tO\nBern\tB-LOC\n\nRiver\tB-ORG\n"
    write(tmp_path, {"train-en.tsv": lines, "train-zh.tsv": "北\tB-LOC\n", "dev-de.tsv": lines})
    task = TASKS["panx"]
    assert {example.language for example in task.examples(tmp_path, "train")} == {"en"}
    assert len(task.examples(tmp_path, "dev")) == 5, "the last sentence counts without a blank line after it"
    assert len(task.examples(tmp_path, "dev", DataOptions(dev_fraction=0.5))) == 2
    write(tmp_path, {"test-en.tsv": "a\tB-CITY\n"})
    with pytest.raises(ValueError, match=r"test-en\.tsv, line 1: tag is 'B-CITY'; the labels are O, B-LOC"):
        task.examples(tmp_path, "test")


def test_whole_entities():
    def words(tags: list[str]) -> list[InputExample]:
        return [InputExample(n, "", meta={"sentence": "s", "tag": tag}) for n, tag in enumerate(tags)]

    kinds = {"LOC": 0, "PER": 1, "ORG": 2, "O": 3}
    tags = ["B-PER", "I-PER", "O", "B-LOC", "B-LOC"]
    labels = [kinds[tag[-3:]] for tag in tags]
    assert entity_f1(labels, labels, words(tags)) == pytest.approx(2 * 1 / (3 + 2)), "two neighbours became one"
    assert entity_f1(labels[:4], labels[:4], words(tags[:4])) == 1.0
    assert entity_f1([1, 3, 3, 0], labels[:4], words(tags[:4])) == pytest.approx(2 * 1 / (2 + 2))
    assert entity_f1([3, 3, 3, 3], labels[:4], words(tags[:4])) == 0.0


@given(WORDS, WORDS)
def test_rouge_of_ids_is_that_of_the_library(tokenizer, said: str, true: str):
    from rouge_score.rouge_scorer import RougeScorer

    figures = rouge_figures([said], [true], unit="mglm", tokenizer=tokenizer, task="ncls")
    ids = [" ".join(map(str, tokenizer.encode(text))) for text in (true, said)]
    expected = RougeScorer(["rouge1", "rouge2", "rougeL"]).score(*ids)
    assert list(figures.values()) == pytest.approx([expected[kind].fmeasure for kind in expected])


def test_units_of_rouge_and_the_signature_of_bleu(tokenizer):
    def rouge_1(unit: str) -> float:
        return rouge_figures(["北京大学"], ["清华大学"], unit=unit, tokenizer=tokenizer, task="ncls")["rouge-1"]

    assert rouge_1("char") == pytest.approx(0.5)
    assert rouge_1("word") == 0.0, "words are made of Latin letters"
    assert 0.0 < rouge_1("mglm") < 1.0
    assert "tok:zh" in bleu_signature(chinese=True) and "tok:13a" in bleu_signature()
    import sacrebleu

    texts = ["the door is green today", "the tram stops"], ["the door is green now", "the tram stops"]
    assert library_scores(*texts)["sacrebleu"] == pytest.approx(sacrebleu.corpus_bleu(texts[0], [texts[1]]).score)


def test_lines_and_languages_that_do_not_fit(tokenizer, tmp_path: Path):
    write(tmp_path, {"test.txt": "a\nb\nc\n", "both/train.txt": "a\nb\n"})
    with pytest.raises(ValueError, match=r"test\.txt has 3 lines; 2 lines belong together"):
        read("ncls", tmp_path, "test", tokenizer)
    with pytest.raises(ValueError, match=r"train\.txt has 2 lines; 3 lines belong together"):
        read("ncls_multitask", tmp_path, "train", tokenizer)
    pairs = {"doc.de": "a\nb\n", "doc.fr": "c\n", "sum.zh": "x\ny\n"}
    write(tmp_path, {f"dev.annotation.{name}": text for name, text in pairs.items()})
    with pytest.raises(ValueError, match=r"doc\.fr has 1 lines, .*sum\.zh has 2"):
        read("mtg_crosssum", tmp_path, "dev", tokenizer)
    row = json.dumps({"title": "t", "text": "x", "summary": "s"})
    write(tmp_path, {"german_test.jsonl": row, "english_test.jsonl": f"{row}\n{row}\n"})
    assert [example.language for example in read("xlsum", tmp_path, "test", tokenizer)] == ["en", "en", "de"]
    assert len(read("xlsum", tmp_path, "test", tokenizer, languages=("de",))) == 1
    with pytest.raises(ValueError, match="xlsum test has no text in th; it has de, en"):
        read("xlsum", tmp_path, "test", tokenizer, languages=("th",))


class Call:
    """Pickles into a call that would create a file."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple:
        return Path.touch, (self.witness,)


def test_pickles_run_no_code(tokenizer, tmp_path: Path):
    witness = tmp_path / "ran"
    (tmp_path / "english.pkl").write_bytes(pickle.dumps({"u": Call(witness)}))
    with pytest.raises(ValueError, match=r"english\.pkl: not a pickle of dictionaries and texts"):
        read("wikilingua", tmp_path, "train", tokenizer)
    assert not witness.exists()
    (tmp_path / "english.pkl").unlink()
    content = {f"u{n}": {"s": {"document": f"d{n}", "summary": f"s{n}"}} for n in range(3)}
    write(tmp_path, {"english.json": json.dumps(content)})
    write(tmp_path, {"german.json": json.dumps({"v": {"t": {"document": "x", "english_url": "u9"}}})})
    with pytest.raises(ValueError, match=r"german\.json, v, t: the English file has no section"):
        read("wikilingua", tmp_path, "train", tokenizer)


def test_first_sentences():
    assert first_sentence("One. Two.") == "One."
    assert first_sentence("门是绿色的。河在。") == "门是绿色的。"
    assert first_sentence("v1.1 is it? yes") == "v1.1 is it?"
    assert first_sentence("no end") == "no end"


REAL = {
    "xquad": ("xquad", {"squad_dir": "mlqa/squad"}), "mlqa": ("mlqa", {}), "tydiqa": ("tydiqa", {}),
    "ncls": ("ncls_style", {}), "scitldr": ("scitldr", {}), "wikilingua": ("wikilingua_style", {}),
}  # fmt: skip


@pytest.mark.parametrize("task", REAL)
def test_real_data(task: str, tokenizer, data_dir: Path):
    folder, options = REAL[task]
    root = data_dir / "multilingual"
    chosen = {name: str(root / value) for name, value in options.items()}
    for split in ("train", "test"):
        options = Seq2SeqOptions(src_seq_length=256, tgt_seq_length=16, **chosen)
        examples = read_multilingual(task, root / folder, split, tokenizer=tokenizer, options=options)
        assert len(examples) >= 40 and all(example.source for example in examples)


def test_the_mixture_to_english_on_real_data(tokenizer, data_dir: Path, tmp_path: Path):
    """Real texts in the files that ensum reads: papers, German and Chinese sections, Japanese sentences."""
    root = data_dir / "multilingual"
    sections = read("wikilingua", root / "wikilingua_style", "train", tokenizer)
    pairs: dict[str, list[tuple[str, str]]] = {}
    for section in sections:
        texts = (" ".join(section.source.split()), " ".join(section.target.split()))
        pairs.setdefault(section.language, []).append(texts)
    sentences = [
        [line.split("\t")[0] for line in (root / "pawsx" / f"dev-{language}.tsv").read_text("utf-8").splitlines()]
        for language in ("ja", "en")
    ]
    rows = "".join(json.dumps({"text": a, "en-summary": b, "summary": a[:20]}) + "\n" for a, b in pairs["zh"])
    files = {f"lcsts/{split}.jsonl": rows for split in ("train", "dev")}
    for name in ("train", "val"):
        for kind, texts in zip(("src_documents", "tgt_summaries_prep"), zip(*pairs["de"])):
            files[f"xwikis/de-en/{name}.de_en_{kind}.txt"] = "\n".join(texts)
    files |= {f"cnndm-ja/val.{kind}": "\n".join(texts) for kind, texts in zip(("source", "target"), sentences)}
    write(tmp_path, files)
    (tmp_path / "scisummnet").symlink_to(root / "scisummnet")
    training, dev = (read("ensum", tmp_path, split, tokenizer) for split in ("train", "dev"))
    count = {"de": len(pairs["de"]), "zh": len(pairs["zh"])}
    assert Counter(example.language for example in training) == {"en": 40, **count}
    assert Counter(example.language for example in dev) == {**count, "ja": len(sentences[0])}
    assert all(example.meta == {"tgt_lang": "en", "task": "sum"} and example.target for example in (*training, *dev))
    assert [e.target for e in dev if e.language == "ja"][:3] == [line.strip() for line in sentences[1][:3]]
