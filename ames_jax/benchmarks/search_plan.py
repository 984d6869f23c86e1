"""Descriptors that fit a budget of bytes per image, and the cost of a query against such a collection on this machine."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from ames_jax.benchmarks import flops
from ames_jax.benchmarks.harness import matmul_peak
from ames_jax.model.ames import AMESConfig
from ames_jax.report.comparison import format_bytes
from ames_jax.report.tables import markdown
from ames_jax.runtime.errors import UserError

# Of the rate of large matrix products, what scoring reaches: softmax, LayerNorm and memory traffic take the rest.
EXPECTED_SHARE = 0.6
COUNT_BYTES = 2  # a packed store's count of each image's descriptors (`store.py`), beside the bits
MOST = 700  # descriptors that the release's files hold; more was never tried
HEADINGS = {
    "stored": "stored",
    "descriptor_bytes": "B per descriptor",
    "descriptors": "descriptors",
    "image": "per image",
    "total": "all images",
    "gflop": "GFLOP per query",
    "milliseconds": "expected ms per query",
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """The question, the machine's rate, and one row per way to store descriptors (`HEADINGS`, and plain byte counts)."""

    images: int
    budget: int
    shortlist: int
    query_descriptors: int
    model: str
    device: str
    matmul_rate: float
    rows: list[dict[str, Any]]

    def table(self) -> str:
        """The plan for people."""
        title = (
            f"{self.images:,} images, {format_bytes(self.budget)} each; {self.model}, {self.query_descriptors} query "
            f"descriptors, shortlist {self.shortlist}.\nExpected at {EXPECTED_SHARE:.0%} of this machine's "
            f"{self.matmul_rate / 1e9:,.0f} GFLOP/s ({self.device}), re-ranking alone: the global search comes before it.\n\n"
        )
        return title + markdown(self.rows, HEADINGS)

    def facts(self) -> dict[str, Any]:
        """The plan for programs."""
        return dataclasses.asdict(self)


def make_plan(
    *,
    images: int,
    budget: int,
    shortlist: int,
    query_descriptors: int,
    model: str,
    dtype: str,
    rate: float | None = None,
) -> Plan:
    """Plans for `budget` bytes of local descriptors per image.

    Args:
      model: a released name: a binary model stores bits; a full-precision one tokens in float16.
      rate: FLOP/s of matrix products; measured here where None.

    Raises:
      UserError: not even one descriptor fits in any way.
    """
    config = dataclasses.replace(AMESConfig.named(model), dtype=dtype)
    stores = {
        "bits (packed store)": (config.bits or 0) // 8,
        "tokens in float16": 0 if config.bits else 2 * config.model_width,
        "descriptors in float16": 2 * config.descriptor_width,
    }
    stores = {stored: size for stored, size in stores.items() if size}
    if budget < min(stores.values()):
        raise UserError(f"--budget={budget} B: one descriptor of {model} alone takes {min(stores.values())} B")
    rate, rows = rate or matmul_peak(dtype), []
    for stored, size in stores.items():
        fits = min(budget // size, MOST)
        row: dict[str, Any] = {"stored": stored, "descriptor_bytes": size, "descriptors": fits}
        if fits:
            # What is stored as bits or tokens need not be projected again.
            work = flops.shortlist(config, query_descriptors, fits, shortlist, packed="packed" in stored)
            work -= shortlist * flops.tokenizer(config, fits) if "tokens" in stored else 0
            total = images * (fits * size + (COUNT_BYTES if "packed" in stored else 0))
            row |= {"image_bytes": fits * size, "image": format_bytes(fits * size)}
            row |= {"total_bytes": total, "total": format_bytes(total)}
            row |= {"gflop": work / 1e9, "milliseconds": 1e3 * work / (rate * EXPECTED_SHARE)}
        rows.append(row)
    device = jax.local_devices()[0].device_kind
    return Plan(images, budget, shortlist, query_descriptors, model, device, rate, rows)
