"""The processors of all tasks: which class reads whose files."""

from __future__ import annotations

from tasks.processors import DataProcessor
from tasks.superglue.processors_chinese import AfqmcProcessor, CluewscProcessor, TnewsProcessor
from tasks.superglue.processors_glue import (
    AgnewsProcessor,
    ColaProcessor,
    MnliMismatchedProcessor,
    MnliProcessor,
    MrpcProcessor,
    QnliProcessor,
    QqpProcessor,
    RaceProcessor,
    SquadProcessor,
    Sst2Processor,
    XstanceFrenchProcessor,
    XstanceGermanProcessor,
    XstanceProcessor,
    YahooProcessor,
    YelpFullProcessor,
    YelpPolarityProcessor,
)
from tasks.superglue.processors_record import RecordProcessor
from tasks.superglue.processors_superglue import (
    AxBroadProcessor,
    AxGenderProcessor,
    BoolqProcessor,
    CbProcessor,
    CopaProcessor,
    MultircProcessor,
    RteProcessor,
    WicProcessor,
)
from tasks.superglue.processors_wsc import WscPairProcessor, WscProcessor

PROCESSORS: dict[str, type[DataProcessor]] = {
    "rte": RteProcessor,
    "cb": CbProcessor,
    "boolq": BoolqProcessor,
    "copa": CopaProcessor,
    "wic": WicProcessor,
    "wsc": WscProcessor,
    "wsc1": WscPairProcessor,  # text and span as a pair: no patterns, for a classification head
    "multirc": MultircProcessor,
    "record": RecordProcessor,
    "ax-b": AxBroadProcessor,
    "ax-g": AxGenderProcessor,
    "mnli": MnliProcessor,
    "mnli-mm": MnliMismatchedProcessor,
    "sst2": Sst2Processor,
    "cola": ColaProcessor,
    "mrpc": MrpcProcessor,
    "qqp": QqpProcessor,
    "qnli": QnliProcessor,
    "agnews": AgnewsProcessor,
    "yahoo": YahooProcessor,
    "yelp-polarity": YelpPolarityProcessor,
    "yelp-full": YelpFullProcessor,
    "xstance": XstanceProcessor,
    "xstance-de": XstanceGermanProcessor,
    "xstance-fr": XstanceFrenchProcessor,
    "race": RaceProcessor,
    "squad": SquadProcessor,
    "afqmc": AfqmcProcessor,
    "tnews": TnewsProcessor,
    "cluewsc": CluewscProcessor,
}
