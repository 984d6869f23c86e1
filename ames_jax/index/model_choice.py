"""The model of an index: its choice, the λ and γ that go with it, and whether it fits the descriptors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ames_jax.index.reranking import check_setting
from ames_jax.model.ames import RELEASED
from ames_jax.model.kinds import Model
from ames_jax.model.released import SHIPPED, folder_of, load_model
from ames_jax.model.weights import facts_of, find_model
from ames_jax.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class ChosenModel:
    """A binary model with the facts that go with it.

    Attributes:
      name: as the user gave it.
      facts: saved with the model: data_set, backbone, statistics, …
      lam, gamma: λ and γ of the ensemble, None where they are unknown.
    """

    model: Model
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
            raise UserError(f"--model is missing: no model is shipped for {backbone} descriptors; give one")
        folder = folder_of(name)
        facts = facts_of(find_model(folder)) if folder.is_dir() else {}
        released_lam, released_gamma = RELEASED.get(facts.get("released", Path(name).stem), (None, None))
        lam = facts.get("lam", released_lam) if lam is None else lam
        gamma = facts.get("gamma", released_gamma) if gamma is None else gamma
        return cls(load_model(folder), str(name), facts, lam, gamma)

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
        trained, found = self.facts.get("backbone"), about.get("backbone")
        if trained and found and trained != found:
            raise UserError(
                f"{self.name} was trained on {trained} descriptors, these are {found}; give another --model"
            )
        wanted = self.facts.get("statistics")
        if wanted and statistics and wanted != statistics:
            raise UserError(
                f"{self.name} was trained with other SIFT statistics ({wanted[:8]}) than these descriptors were extracted "
                f"with ({statistics[:8]}): their bits would mean something else. Extract them with "
                "--statistics=RUN/sift_statistics.npz of the model's run directory, or give another --model"
            )
