"""The flags of `python -m ames_jax.benchmark`: one class per benchmark."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter, Token

from ames_jax.runtime.flag_values import Count, Counts, Scale, Size, comma_separated

Shape = tuple[int, int]
Dtype = Literal["float32", "bfloat16"]


def _read_shapes(_: type, tokens: Sequence[Token]) -> tuple[Shape, ...]:
    text = ",".join(token.value for token in tokens)
    try:
        shapes = tuple(tuple(int(part) for part in shape.split("x")) for shape in text.split(","))
    except ValueError:
        shapes = ()
    if not shapes or any(len(shape) != 2 or min(shape) < 1 for shape in shapes):
        raise ValueError(f"expected QxT with commas between, e.g. 600x50,100x100, found {text!r}")
    return shapes


def _show_shapes(shapes: Sequence[Shape]) -> str:
    return ",".join(f"{q}x{t}" for q, t in shapes)


def _show_counts(counts: Sequence[int]) -> str:
    return ",".join(map(str, counts))


Shapes = Annotated[tuple[Shape, ...], Parameter(converter=_read_shapes, n_tokens=1, show_default=_show_shapes)]
Several = Annotated[Counts, Parameter(show_default=_show_counts)]
SeveralOrZero = Annotated[list[int], Parameter(converter=comma_separated, show_default=_show_counts)]


@Parameter(name="*")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Flags of every benchmark.

    Attributes:
      json: Write the figures there too.
      torch_python: A Python with torch, for the PyTorch columns; by default this one; none: leave them out.
    """

    json: Path | None = None
    torch_python: Annotated[str, Parameter(show_default=False)] = sys.executable


@Parameter(name="*")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ComputeFlags(Flags):
    """Flags of the benchmarks of the model.

    Attributes:
      shapes: Descriptors of query and database, QxT with commas between.
      dtype: Compute type of both sides.
      devices: Devices to use; by default all (on CPU: 1).
      repeats: Timings of which the median is taken.
    """

    shapes: Shapes = ()
    dtype: Dtype = "float32"
    devices: Count | None = None
    repeats: Count = 3


@Parameter(name="*")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreFlags(ComputeFlags):
    """Flags of `benchmark score`.

    Attributes:
      matcher: The model, full precision of the released size.
      shortlist: Images per query, with commas between.
      queries: Queries that ours scores in one timing; PyTorch scores one.
      torch_pairs: PyTorch scores no more pairs in one timing.
      torch_batch: Pairs that PyTorch scores at a time; the release takes 300.
      torch_compile: Compile the PyTorch model by torch.compile.
      skip_first_call: Do not time a fresh process up to its first shortlist.
    """

    shapes: Shapes = ((600, 50), (600, 600), (100, 100), (100, 50), (50, 50), (10, 10))
    shortlist: Several = (100,)
    queries: Count = 4
    torch_pairs: Count = 100
    torch_batch: Count = 300
    torch_compile: bool = False
    skip_first_call: bool = False
    matcher: Literal["ames", "elvis"] = "ames"


@Parameter(name="*")
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainFlags(ComputeFlags):
    """Flags of `benchmark train`.

    Attributes:
      triplets: Triplets per batch, two pairs each.
      descriptors: Descriptors per image, which the teacher sees.
      teacher: Whether a teacher guides the student.
    """

    shapes: Shapes = ((100, 100), (200, 200))
    triplets: Count = 100
    descriptors: Count = 400
    teacher: Literal["both", "on", "off"] = "both"


@Parameter(name="*")
@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateFlags(ComputeFlags):
    """Flags of `benchmark evaluate`; the set is by default as large as ROxford, with the release's 700 descriptors.

    Attributes:
      folder: Where the random set is kept or found; by default a temporary folder.
      queries: Queries of the set.
      gallery: Database images; 4,993 take 5.4 GB of HDF5.
      rerank: Images re-ranked per query.
      stored: Descriptors per image in the files.
      torch_queries: PyTorch does so many queries, and its time is scaled up; by default all.
    """

    shapes: Shapes = ((600, 50), (600, 600))
    repeats: Count = 1
    folder: Path | None = None
    queries: Count = 70
    gallery: Count = 4993
    rerank: Count = 400
    stored: Count = 700
    torch_queries: Count | None = None


@Parameter(name="*")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ExtractFlags(Flags):
    """Flags of `benchmark extract`.

    Attributes:
      images: Pictures for SIFT, a folder or a list; by default drawn ones of 640 × 480.
      pictures: Most pictures for SIFT.
      side: Sides of the ViT's square images, with commas between.
      batch: Images that the ViT takes at a time; by default 1 on CPU, 8 elsewhere.
      dtype: Compute type of both sides.
      torch_compile: Compile the PyTorch model by torch.compile.
      repeats: Timings of which the median is taken.
    """

    images: Path | None = None
    pictures: Count = 64
    side: Several = (518,)
    batch: Count | None = None
    dtype: Dtype = "float32"
    torch_compile: bool = False
    repeats: Count = 3


@Parameter(name="*")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeFlags:
    """Flags of `benchmark serve`.

    Attributes:
      json: Write the figures there too.
      index: What `search index` wrote: its backbone, model and settings are measured; by default SIFT, offline.
      images: Images of the made-up index.
      clients: Clients that ask at a time, each as soon as it is answered, with commas between.
      seconds: Length of each load.
      budget: Bytes of local bits per image; by default the index's, else 1024.
      shortlist: Images re-ranked.
      query_descriptors: Descriptors of a query; by default the index's.
      queue: Requests that may be under way.
    """

    json: Path | None = None
    index: Path | None = None
    images: Count = 100_000
    clients: Several = (1, 4, 16)
    seconds: Scale = 60
    budget: Annotated[Size | None, Parameter(show_default=False)] = None
    shortlist: Count = 100
    query_descriptors: Count | None = None
    queue: Count = 64


@Parameter(name="*")
@dataclasses.dataclass(frozen=True, kw_only=True)
class DataFlags(Flags):
    """Flags of `benchmark data`.

    Attributes:
      folder: Where the random files are kept or found; by default a temporary folder.
      images: Images of the random set; 1,200 take 2.2 GB.
      descriptors: Descriptors per image.
      width: Width of a descriptor.
      triplets: Triplets per batch.
      batches: Batches that are timed.
      step: Seconds of the imagined training step.
      workers: Reading processes, with commas between; 0: threads.
    """

    folder: Path | None = None
    images: Count = 1200
    descriptors: Count = 400
    width: Count = 768
    triplets: Count = 100
    batches: Count = 15
    step: Scale = 0.5
    workers: SeveralOrZero = (0,)
