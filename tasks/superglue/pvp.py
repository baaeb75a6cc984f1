"""The patterns of all tasks."""

from __future__ import annotations

from tasks.patterns import PVP
from tasks.superglue.patterns_chinese import AfqmcPVP, CluewscPVP, TnewsPVP
from tasks.superglue.patterns_glue import (
    AgnewsPVP,
    ColaPVP,
    MnliPVP,
    MrpcPVP,
    QnliPVP,
    QqpPVP,
    RacePVP,
    SquadPVP,
    Sst2PVP,
    XstancePVP,
    YahooPVP,
    YelpFullPVP,
    YelpPolarityPVP,
)
from tasks.superglue.patterns_superglue import (
    BoolqPVP,
    CbPVP,
    CopaPVP,
    MultircPVP,
    RecordPVP,
    RtePVP,
    WicPVP,
    WscPVP,
)

PVPS: dict[str, type[PVP]] = {
    "rte": RtePVP,
    "cb": CbPVP,
    "boolq": BoolqPVP,
    "copa": CopaPVP,
    "wic": WicPVP,
    "wsc": WscPVP,
    "multirc": MultircPVP,
    "record": RecordPVP,
    "ax-b": RtePVP,
    "ax-g": RtePVP,
    "mnli": MnliPVP,
    "mnli-mm": MnliPVP,
    "sst2": Sst2PVP,
    "cola": ColaPVP,
    "mrpc": MrpcPVP,
    "qqp": QqpPVP,
    "qnli": QnliPVP,
    "agnews": AgnewsPVP,
    "yahoo": YahooPVP,
    "yelp-polarity": YelpPolarityPVP,
    "yelp-full": YelpFullPVP,
    "xstance": XstancePVP,
    "xstance-de": XstancePVP,
    "xstance-fr": XstancePVP,
    "race": RacePVP,
    "squad": SquadPVP,
    "afqmc": AfqmcPVP,
    "tnews": TnewsPVP,
    "cluewsc": CluewscPVP,
}
