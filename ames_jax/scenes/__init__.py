"""Rendered data sets with real SIFT descriptors, built on first use, no download.

`folder = scenes.build("landmarks")` takes some two minutes on two cores the first time, a fraction of a second afterwards.
"landmarks" are the embedded landmarks: facades of buildings. "transfer" is a training set whose SIFT descriptors are like
those of photographs: a facade alone teaches a matcher the statistics of facades, so an instance here is either a facade or
a scene of several depths covered with textures of natural statistics (dead leaves of all sizes, 1/f noise, strokes and
writing), photographed from strongly different places, in other light, season and weather, by other cameras.

A set is a pure function of its settings. On one machine, whatever the number of processes, every byte is the same. On
another kind of processor OpenCV may round differently: with its vector instructions switched off, 1 pixel in 1000 changed,
by at most 2 of 255, and 99.98 % of the descriptors came back (within half a pixel, cosine above 0.95).

One small pool supplies window styles, ornaments, neighbouring buildings, and street items such as cars and posters to all
instances of all splits. The instances themselves are disjoint between train, validation and test.

`scenes.views` makes a data set of a folder of photographs instead, with the descriptors of any backbone.
"""

from etils import epy

# Imported on first use: the processes that render need none of what writes a data set.
with epy.lazy_api_imports(globals()):
    from ames_jax.scenes.building import build
    from ames_jax.scenes.rendering import write_contact_sheet
    from ames_jax.scenes.settings import LANDMARKS, PRESETS, TRANSFER, Settings

__all__ = ["LANDMARKS", "PRESETS", "TRANSFER", "Settings", "build", "write_contact_sheet"]
