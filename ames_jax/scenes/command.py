"""Builds the embedded landmarks, or draws a contact sheet of them.

python -m ames_jax.scenes.landmarks                            # build into the cache folder
python -m ames_jax.scenes.landmarks --contact-sheet=sheet.png  # a few landmarks, a row each; nothing is built
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np

from ames_jax.runtime.errors import UserError, run_main
from ames_jax.scenes.build import build
from ames_jax.scenes.scene import world
from ames_jax.scenes.settings import Settings


def draw_contact_sheet(settings: Settings, landmarks: int, views: int) -> np.ndarray:
    """uint8 [landmarks · 144, views · 192, 3]: a row for each of the first landmarks."""
    scene = world(settings)
    rows = []
    for number in range(landmarks):
        landmark = scene.landmark(number)
        jpegs = [scene.photograph(number, view, landmark) for view in range(views)]
        photos = [cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR) for jpeg in jpegs]
        rows.append(np.hstack([cv2.resize(photo, (192, 144), interpolation=cv2.INTER_AREA) for photo in photos]))
    return np.vstack(rows)


def main() -> None:
    """Reads the flags, builds the set or draws its contact sheet, and prints where it is."""
    parser = argparse.ArgumentParser(prog="python -m ames_jax.scenes.landmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--contact-sheet", type=Path, metavar="FILE.png", help="draw some photos instead of building")
    parser.add_argument("--root", type=Path, help="folder for built sets (default: AMES_JAX_HOME or the user's cache)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, help="rendering processes (default: one a core)")
    parser.add_argument("--rebuild", action="store_true", help="build again even where the set is there")
    arguments = parser.parse_args()
    settings = Settings(seed=arguments.seed)
    if arguments.contact_sheet is None:
        print(build(arguments.root, settings, processes=arguments.processes, rebuild=arguments.rebuild))
    else:
        try:
            written = cv2.imwrite(str(arguments.contact_sheet), draw_contact_sheet(settings, landmarks=8, views=6))
        except cv2.error as error:
            raise UserError(f"{arguments.contact_sheet}: cannot write a picture: {error.err}") from error
        if not written:
            raise UserError(f"{arguments.contact_sheet}: cannot be written; does its folder exist?")


if __name__ == "__main__":
    run_main(main)
