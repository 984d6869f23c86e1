"""The backbone `sift`: centred RootSIFT and VLAD on all cores, without a download and without a network."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from threadpoolctl import ThreadpoolController

from ames_jax.extraction.backbone import Extracted
from ames_jax.extraction.images import shrink
from ames_jax.extraction.keypoints import SIFT_WIDTH
from ames_jax.extraction.sift import SiftStatistics, global_descriptor, local_descriptors
from ames_jax.runtime.cores import usable_cores
from ames_jax.runtime.errors import UserError

SHIPPED = Path(__file__).parents[1] / "model" / "shipped" / "sift" / "sift_statistics.npz"
DESCRIPTORS, MAX_SIDE = 600, 640


class SiftBackbone:
    """RootSIFT of grey pixels; see `Backbone`."""

    name, width, together = "sift", SIFT_WIDTH, 32

    def __init__(
        self, *, statistics: Path | None = None, descriptors: int = DESCRIPTORS, max_side: int = MAX_SIDE
    ) -> None:
        """Reads the statistics (default: shipped); raises UserError where there are none."""
        path = Path(statistics or SHIPPED)
        if not path.is_file():
            raise UserError(
                f"{path}: no such SIFT statistics; give --statistics=FILE, e.g. the sift_statistics.npz of the embedded "
                "landmarks (python -m ames_jax.scenes.landmarks builds and names them)"
            )
        self.statistics = SiftStatistics.load(path)
        self.descriptors, self.max_side = descriptors, max_side
        self.global_width, self.global_name = self.statistics.centres.size, self.statistics.global_name
        self._libraries = ThreadpoolController()
        self._threads = ThreadPoolExecutor(usable_cores(), "sift", initializer=_use_one_thread)

    @property
    def settings(self) -> dict[str, Any]:
        """Without the statistics, which every data set keeps its own copy of."""
        return {"name": self.name, "descriptors": self.descriptors, "max_side": self.max_side}

    def fit(self, image: np.ndarray) -> np.ndarray:
        """The longer side at most `max_side`."""
        return shrink(image, self.max_side)

    def extract(self, images: Sequence[np.ndarray]) -> list[Extracted]:
        """See `Backbone.extract`; an image a core at a time."""
        # The matrices are small, and BLAS's own threads, waiting for each other, would take a third of all time.
        with self._libraries.limit(limits=1, user_api="blas"):
            return list(self._threads.map(self._one, images))

    def _one(self, image: np.ndarray) -> Extracted:
        grey = cv2.cvtColor(self.fit(image), cv2.COLOR_RGB2GRAY)
        found = local_descriptors(grey, self.descriptors, self.statistics)
        return Extracted(found, global_descriptor(found, self.statistics))


def _use_one_thread() -> None:
    """Images run side by side, so OpenCV's own threads would only get in the way."""
    cv2.setNumThreads(1)
