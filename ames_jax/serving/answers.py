"""The JSON of the API."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from ames_jax.index.explaining import Explanation
from ames_jax.index.searcher import SearchResult
from ames_jax.index.shortlist_scoring import Hit

Numbers = list[float]
LabelOf = Callable[[str], str | None]


class QueryById(BaseModel):
    """An image of the collection as a query."""

    model_config = ConfigDict(extra="forbid")

    id: str


class QueryDescriptors(BaseModel):
    """Descriptors of a picture that was extracted as those of the collection were, strongest first."""

    model_config = ConfigDict(extra="forbid")

    local: Annotated[list[Numbers], Field(min_length=1, max_length=5000, description="local descriptors [N, width]")]
    global_: Annotated[
        Numbers | None,
        Field(alias="global", description="global descriptor, of length 1; may be left out where it is a VLAD of SIFT"),
    ] = None


class QueryByDescriptors(BaseModel):
    """Descriptors as a query."""

    model_config = ConfigDict(extra="forbid")

    descriptors: QueryDescriptors


class FoundImage(BaseModel):
    """An image of a ranking; `score`, `logit` and `probability` are null below the shortlist, which alone is re-ranked."""

    id: str
    label: str | None = Field(description="what it shows, where the server knows labels")
    score: float | None
    global_: float = Field(serialization_alias="global", description="similarity of the first stage")
    logit: float | None
    probability: float | None = Field(
        description="that it shows what the query shows; null, too, where the index is not calibrated"
    )
    old_place: int = Field(description="place in the first stage's ranking, counted from 1")
    through: str | None = Field(
        description="the sure match that its logit comes through; null where it is the query's own"
    )

    @classmethod
    def of(cls, hit: Hit, label: str | None) -> FoundImage:
        """From a hit."""
        return cls.model_construct(
            id=hit.id,
            label=label,
            score=hit.score,
            global_=hit.global_similarity,
            logit=hit.logit,
            probability=hit.probability,
            old_place=hit.old_place,
            through=hit.through,
        )


class SearchAnswer(BaseModel):
    """Images found, best first: re-ranked, and in the order of the first stage; seconds by stage."""

    hits: list[FoundImage]
    first_stage: list[FoundImage]
    query_id: str | None = Field(
        description="the image of the collection whose picture the query itself is, byte for byte; it is left out"
    )
    match: bool | None = Field(
        description="whether a listed image shows what the query shows; null where the index is not calibrated"
    )
    seconds: dict[str, float]

    @classmethod
    def of(cls, result: SearchResult, seconds: Mapping[str, float], label_of: LabelOf) -> SearchAnswer:
        """From a result, the seconds of all stages, and the label of an image by its id."""
        hits, before = (
            [FoundImage.of(hit, label_of(hit.id)) for hit in hits] for hits in (result.hits, result.first_stage)
        )
        own = {"query_id": result.query_id, "match": result.match}
        return cls.model_construct(hits=hits, first_stage=before, **own, seconds=dict(seconds))


class ExplanationAnswer(BaseModel):
    """Correspondences of a query and an image; positions are shares of a picture's width and height, from the top left."""

    score: float
    global_: float = Field(serialization_alias="global")
    logit: float
    lam: float
    gamma: float
    pairs: list[Numbers] = Field(
        description="x and y in the query, x and y in the image, strength 0..1; strongest first"
    )
    query_attention: list[Numbers] = Field(
        description="x, y, and the matching token's attention to the descriptor there"
    )
    image_attention: list[Numbers]

    @classmethod
    def of(cls, explained: Explanation, share: list[Numbers]) -> ExplanationAnswer:
        """From an explanation. share: offset and size of the part of the query's picture that was searched for."""
        (left, top), (width, height) = share
        query_xy = [[left + width * x, top + height * y] for x, y in explained.query_xy.tolist()]
        xy = explained.xy.tolist()
        pairs = zip(explained.pairs.tolist(), explained.strengths.tolist())
        attention = [
            [[*at, weight] for at, weight in zip(positions, weights.tolist())]
            for positions, weights in ((query_xy, explained.query_attention), (xy, explained.attention))
        ]
        return cls(
            score=explained.hit.score,
            global_=explained.hit.global_similarity,
            logit=explained.hit.logit,
            lam=explained.lam,
            gamma=explained.gamma,
            pairs=[[*query_xy[i], *xy[j], strength] for (i, j), strength in pairs],
            query_attention=attention[0],
            image_attention=attention[1],
        )


class Collection(BaseModel):
    """A stretch of the images whose ids hold a text."""

    name: str
    images: int = Field(description="how many there are")
    ids: list[str]
    labels: list[str | None] = Field(description="what these images show, where the server knows labels")
    changeable: bool = Field(description="whether images can be added and removed")


class Health(BaseModel):
    """The answer of `GET /health`, for load balancers."""

    status: str
    images: int
    version: str


class Changed(BaseModel):
    """The image that was added or removed."""

    id: str
    images: int = Field(description="images of the index now")


class Refusal(BaseModel):
    """Why a request was refused."""

    error: str
