"""Builds the transfer set with the code that builds the embedded landmarks."""

from __future__ import annotations

from pathlib import Path

from ames_jax.scenes import landmarks
from ames_jax.scenes.transfer_scene import transfer_world
from ames_jax.scenes.transfer_settings import TransferSettings


def build(
    root: Path | None = None,
    settings: TransferSettings | None = None,
    *,
    processes: int | None = None,
    rebuild: bool = False,
    progress: bool = True,
) -> Path:
    """The folder of the ready data set, built first where it is not there yet: as `landmarks.build`."""
    settings = settings or TransferSettings()
    return landmarks.build(
        root, settings, processes=processes, rebuild=rebuild, progress=progress, open_world=transfer_world
    )
