"""Flags that commands of `python -m ames_jax.search` share: of a searcher, and of pictures."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from etils import epy

from ames_jax.commands.extract import DEFAULT_BACKBONE, BackboneFlags
from ames_jax.runtime.command_line import check_paths
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.flag_values import Count, CountOrZero, Fraction, Scale

with epy.lazy_imports():  # help needs none of them
    from ames_jax.extraction import backbone
    from ames_jax.index import collection, database_index, model_choice, searcher
    from ames_jax.model import released


@Parameter(name="*")
@dataclasses.dataclass(frozen=True, kw_only=True)
class SearcherFlags:
    """Flags of the commands that search.

    Attributes:
      index: What `search index` wrote.
      pictures: Folder of the indexed pictures, where they have moved.
      shortlist: Images that are re-ranked (default: the index's).
      query_descriptors: The strongest descriptors of a query, which are used (default: the index's).
      lam: Weight λ of the global similarity (default: the index's).
      gamma: Scale γ of the logits (default: the index's).
      refine: Refine the first stage by global descriptors alone: superglobal, expand, augment, or several joined by +.
      plan: Score from coarse to fine, e.g. kernel@40,100x64: stages QxT or kernel, each with how many images go on.
      through: The most sure matches of a query through which its shortlist is looked at again, 0 for none (default: 5 where
        the index knows from which logit on a match is sure, as one of --model=mutual does).
      faiss: Parameters of FAISS's search, e.g. nprobe=64 or efSearch=256.
      keep_query: List a query that is itself a picture of the index among its hits, too.
      database: Take the images from qdrant:PATH_OR_URL#COLLECTION, milvus:FILE.db_OR_URL#COLLECTION or
        pgvector:postgresql://…#TABLE.
    """

    index: Path
    pictures: Path | None = None
    shortlist: Count | None = None
    query_descriptors: Count | None = None
    lam: Fraction | None = None
    gamma: Scale | None = None
    refine: str = ""
    plan: str = ""
    through: CountOrZero | None = None
    faiss: str | None = None
    keep_query: bool = False
    database: str | None = None

    def __post_init__(self) -> None:
        check_paths(index=self.index, pictures=self.pictures)

    def open(self, opened: backbone.Backbone | None = None) -> searcher.Searcher:
        """The searcher that the flags describe; opened: the backbone, where it is open already."""
        if self.database and self.faiss:
            raise UserError("--faiss belongs to the index's own search: leave it out with --database")
        if self.database:
            index = database_index.DatabaseIndex.connect(self.index, self.database)
        else:
            index = collection.SearchIndex.open(self.index, self.faiss)
        counts = {"shortlist": self.shortlist, "query_descriptors": self.query_descriptors}
        counts |= {"refine": self.refine, "plan": self.plan, "through": self.through}
        own = {"keep_query": self.keep_query, "pictures": self.pictures, "backbone": opened}
        return searcher.Searcher(index, **counts, lam=self.lam, gamma=self.gamma, **own)


@Parameter(name="*")
@dataclasses.dataclass(frozen=True, kw_only=True)
class PictureFlags(BackboneFlags):
    __doc__ = BackboneFlags.__doc__.replace("of your own.", "of your own (default: the model's, else xfeat).")

    backbone: str | None = None
    # The name of the flag that extract has, --descriptors, is in search index that of a folder.
    descriptors: Annotated[Count | None, Parameter(name="--extracted-descriptors")] = None
    dtype: Literal["float32", "bfloat16"] | None = None  # inherited types are looked up in this file

    def name_of(self, model: str | None) -> str:
        """The backbone that is meant: the given one, that of the given model or SIFT statistics, else the default."""
        if self.backbone or self.statistics:
            return self.backbone or "sift"
        facts = released.known_facts(model) if model and model != model_choice.MUTUAL else {}
        return facts.get("backbone") or DEFAULT_BACKBONE

    def open(self, name: str) -> backbone.Backbone:
        """The backbone `name` with these flags; raises UserError."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(BackboneFlags)}
        try:
            return BackboneFlags(**{**own, "backbone": name}).open()
        except UserError as error:
            if self.backbone or name != DEFAULT_BACKBONE or (self.weights and self.global_weights):
                raise
            raise UserError(
                f"{error}. Or give the files with --weights and --global-weights, or take --backbone=sift, which needs none"
            ) from None


@Parameter(name="*")
@dataclasses.dataclass(frozen=True, kw_only=True)
class PhotoFlags(PictureFlags):
    __doc__ = f"""{PictureFlags.__doc__.rstrip()}
      images: A folder of pictures, or a list with one line per picture.
      skip_broken: Leave out pictures that cannot be read, instead of stopping.
    """

    images: Path | None = None
    skip_broken: bool = False
