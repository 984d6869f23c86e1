"""The figures that each benchmark reports. The only place where evaluation knows data sets by name."""

from __future__ import annotations

from ames_jax.retrieval.metrics import REVISITED, Protocol, gldv2_protocols
from ames_jax.runtime.errors import UserError, did_you_mean

MEDIUM_HARD = REVISITED[1:]
HITS = tuple(Protocol(f"R@{k}", depth=k, hit=True) for k in (1, 10, 100))
MAP_AT_100 = (Protocol("mAP@100", depth=100), *HITS)

# By name, for manifests of own data.
METRICS: dict[str, tuple[Protocol, ...]] = {
    "map": (Protocol("mAP"),),
    "map@100": MAP_AT_100,
    "map@1000": (Protocol("mAP@1000", depth=1000),),
    "revisited": MEDIUM_HARD,
    "gldv2": gldv2_protocols(),
}

DATASETS: dict[str, tuple[Protocol, ...]] = {
    "roxford5k": MEDIUM_HARD,
    "rparis6k": MEDIUM_HARD,
    "roxford5k+1m": MEDIUM_HARD,
    "rparis6k+1m": MEDIUM_HARD,
    "gldv2-test": gldv2_protocols(),
    "gldv2-val": gldv2_protocols()[:1],
    "instre": MAP_AT_100,
    "product1m": MAP_AT_100,
    "met": MAP_AT_100,
    "sop-1k": MAP_AT_100,
    "rp2k": MAP_AT_100,
    "ilias": METRICS["map@1000"],
}
# gldv2-val is the public part of gldv2-test: the same files, tuned on and never reported on.
FOLDERS = {"gldv2-val": "gldv2-test"}


def protocols_of(dataset: str) -> tuple[Protocol, ...]:
    """The protocols of a known benchmark; raises UserError with the nearest name for another."""
    if dataset not in DATASETS:
        known = f"expected {', '.join(DATASETS)} or custom{did_you_mean(dataset, DATASETS)}"
        raise UserError(f"dataset={dataset!r} is not known: {known}")
    return DATASETS[dataset]


def metric_of(name: str) -> tuple[Protocol, ...]:
    """The protocols behind the `metric` of a manifest."""
    if name not in METRICS:
        raise UserError(f"metric {name!r} is not known: expected one of {', '.join(METRICS)}")
    return METRICS[name]
