"""Tell English from other languages, for corpora that keep English only."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

MODEL_VARIABLE = "GLM_LANGUAGE_DETECTOR"
MODEL_HINT = "lid.176.bin of https://fasttext.cc/docs/en/language-identification.html"
ENGLISH_LABEL = "__label__en"


class DetectorMissingError(Exception):
    """Say that languages cannot be told apart here: a matter of the set-up, never of a row."""


def english_detector() -> Callable[[str], bool]:
    """Return a function that tells whether a text is English; line breaks in the text do not count.

    The environment variable ``GLM_LANGUAGE_DETECTOR`` names a fastText language model. Without it the package
    langdetect answers (slower, less exact).

    Raises:
        DetectorMissingError: neither is there; the message says what to install.
    """
    model_path = os.environ.get(MODEL_VARIABLE)
    return _fasttext_detector(model_path) if model_path else _langdetect_detector()


def _fasttext_detector(model_path: str) -> Callable[[str], bool]:
    if not Path(model_path).is_file():
        raise DetectorMissingError(f"no language model at {model_path}: download {MODEL_HINT}")
    try:
        import fasttext
    except ImportError:
        raise DetectorMissingError("telling languages apart needs fasttext: pip install fasttext-wheel") from None
    model = fasttext.load_model(model_path)

    def is_english(text: str) -> bool:
        # The module's own predict() breaks with NumPy 2; the compiled one below it does not.
        predictions = model.f.predict(text.replace("\n", "") + "\n", 1, 0.0, "strict")
        return bool(predictions) and predictions[0][1] == ENGLISH_LABEL

    return is_english


def _langdetect_detector() -> Callable[[str], bool]:
    try:
        from langdetect import DetectorFactory, LangDetectException, detect
    except ImportError:
        raise DetectorMissingError(
            f"telling English from other languages needs a detector: set {MODEL_VARIABLE} to the file of a fastText "
            f"model ({MODEL_HINT}; pip install fasttext-wheel), or pip install langdetect"
        ) from None
    DetectorFactory.seed = 0

    def is_english(text: str) -> bool:
        try:
            return detect(text.replace("\n", "")) == "en"
        except LangDetectException:
            return False

    return is_english
