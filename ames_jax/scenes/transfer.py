"""A rendered training set whose SIFT descriptors are like those of real photographs; built offline, on first use.

A facade alone teaches a matcher the statistics of facades. Here an instance is either a landmark of the embedded set or
a scene of several depths covered with textures of natural statistics (dead leaves of all sizes, 1/f noise, strokes and
writing), photographed from strongly different places, in other light, season and weather, by other cameras.
"""

from __future__ import annotations

from ames_jax.scenes.transfer_build import build
from ames_jax.scenes.transfer_settings import NAME, TransferSettings

__all__ = ["NAME", "TransferSettings", "build"]
