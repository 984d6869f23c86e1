"""The model of an index: its choice, the λ and γ that go with it, and whether it fits the descriptors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ames_jax.data.readers import DescriptorReader
from ames_jax.index.reranking import check_setting
from ames_jax.model.initialisation import SAMPLE, SAMPLE_PER_IMAGE, learned_matching
from ames_jax.model.kinds import Model
from ames_jax.model.released import SHIPPED, known_facts, known_setting, load_model
from ames_jax.model.weights import refuse_other_descriptors
from ames_jax.retrieval.sets import sample_descriptors
from ames_jax.runtime.errors import UserError

# Hand-made matching in place of a model, and its settings, measured on photographs with XFeat (docs/photographs.md).
# From the logit on, matches of a query are sure enough to look through them.
MUTUAL, MUTUAL_LAM, MUTUAL_GAMMA = "mutual", 0.6, 0.8
MUTUAL_SEARCH = {"query_descriptors": 300, "shortlist": 200, "sure_logit": 2.0}
# Models by backbone for which none is shipped.
DEFAULTS = {"xfeat": MUTUAL}


@dataclasses.dataclass(frozen=True)
class ChosenModel:
    """A binary model with the facts that go with it.

    Attributes:
      model: None for hand-made matching whose bits are learned from the collection (`fitted`).
      name: as the user gave it.
      facts: saved with the model: data_set, backbone, statistics, …
      lam, gamma: λ and γ of the ensemble, None where they are unknown.
    """

    model: Model | None
    name: str
    facts: Mapping[str, Any]
    lam: float | None
    gamma: float | None

    @classmethod
    def load(
        cls, name: str | Path | None, backbone: str, lam: float | None = None, gamma: float | None = None
    ) -> ChosenModel:
        """The model `name` as `load_model` takes it; None: the one shipped for this backbone.

        λ and γ are the given ones, or those that validation chose in training, or those of a released model's authors.
        Raises UserError: nothing there, or no model shipped for the backbone.
        """
        name = name or SHIPPED.get(backbone)
        if name is None:
            raise UserError(
                f"--model is missing: no model is shipped for {backbone} descriptors; give one, or in search index "
                f"--model={MUTUAL}, hand-made matching"
            )
        facts = known_facts(name)
        known_lam, known_gamma = known_setting(name, facts)
        lam, gamma = known_lam if lam is None else lam, known_gamma if gamma is None else gamma
        return cls(load_model(name), str(name), facts, lam, gamma)

    @classmethod
    def for_collection(
        cls, name: str | Path | None, backbone: str, lam: float | None = None, gamma: float | None = None
    ) -> ChosenModel:
        """As `load`; or, for the name "mutual", hand-made matching, which needs no model: mutual nearest neighbours."""
        if str(name or SHIPPED.get(backbone) or DEFAULTS.get(backbone)) != MUTUAL:
            return cls.load(name, backbone, lam, gamma)
        return cls(None, MUTUAL, {}, MUTUAL_LAM if lam is None else lam, MUTUAL_GAMMA if gamma is None else gamma)

    def fitted(self, reader: DescriptorReader, about: Mapping[str, Any], bits: int | None = None) -> ChosenModel:
        """The same, but its model is there: bits of hand-made matching are learned from the collection's descriptors.

        reader: of the collection; about: about.json of its descriptors; bits: per descriptor (default: half as many as it has
        values, at most 128, in whole bytes).
        Raises UserError where they are too narrow for bits, or bits are given for a model that has its own.
        """
        if self.model is not None and bits:
            raise UserError(f"--bits={bits} belongs to --model={MUTUAL}: {self.name} has bits of its own; leave it out")
        if self.model is not None:
            return self
        per_image = max(SAMPLE_PER_IMAGE, -(-SAMPLE // len(reader)))
        sample = sample_descriptors(reader, SAMPLE, per_image, seed=0)
        width = sample.shape[1]
        bits = min(128, max(8, width // 16 * 8)) if bits is None else bits
        if bits > width or not len(sample):
            raise UserError(
                f"--model={MUTUAL} learns {bits} bits from descriptors of {bits} values and more: found {len(sample)} "
                f"descriptors of {width}"
            )
        facts = {"backbone": about.get("backbone"), "global": about.get("global"), "lam": self.lam, "gamma": self.gamma}
        facts |= MUTUAL_SEARCH
        return dataclasses.replace(self, model=learned_matching(sample, bits), facts=facts)

    def check(self, about: Mapping[str, Any], statistics: str | None) -> None:
        """Raises UserError where λ or γ are unknown, or the model was trained for other descriptors.

        about: about.json of the descriptors; statistics: fingerprint of their SIFT statistics, if any.
        """
        if self.lam is None or self.gamma is None:
            raise UserError(
                f"{self.name} does not say with which λ and γ its scores join the global ones; give --lam and --gamma "
                "(python -m ames_jax.evaluate finds good ones)"
            )
        check_setting(self.lam, self.gamma, self.name)
        refuse_other_descriptors(self.name, self.facts, about, statistics)
        width = about.get("width")
        if self.model and width and width != self.model.config.descriptor_width:
            raise UserError(
                f"{self.name} takes descriptors of {self.model.config.descriptor_width} values, those of "
                f"{about.get('backbone')} have {width}; give another --model or --backbone"
            )
        beside, found = self.facts.get("global"), about.get("global")
        own = (self.lam, self.gamma) == (self.facts.get("lam"), self.facts.get("gamma"))
        if own and beside and found and beside != found:
            raise UserError(
                f"{self.name}: its λ and γ were chosen with the global descriptor {beside}, these are {found}; give --lam and "
                "--gamma, or another --model or --global"
            )
