"""Makes a model for `sift` search of a trained student: python -m ames_jax.benchmarks.calibrate --run=RUN --out=DIR

λ and γ are chosen on the validation pictures of a rendered data set or on some tens of your own photos (--photos, a
subfolder a scene, among distractors). Both are extracted with the statistics beside the run, as `python -m ames_jax.extract`
extracts photos, with 100 query and 64 database descriptors. DIR then holds model.safetensors and sift_statistics.npz.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ames_jax.benchmarks.photos import distractors_in, photo_set, read_scenes, rendered_scenes, statistics_beside
from ames_jax.extraction.backbone import STATISTICS_FILE
from ames_jax.extraction.backbones import open_backbone
from ames_jax.extraction.sift import SiftStatistics
from ames_jax.model.weights import facts_of, find_model, read_model, save_model
from ames_jax.retrieval.ranking import tune
from ames_jax.retrieval.scoring import Scorer
from ames_jax.runtime import cache
from ames_jax.runtime.errors import UserError, run_main
from ames_jax.scenes import transfer
from ames_jax.training.run import GAMMAS, LAMBDAS


def main(argv: Sequence[str] | None = None) -> int:
    """Chooses, saves and says what was chosen; returns the exit code."""
    arguments = _parser().parse_args(argv)
    cache.start()
    directory = find_model(arguments.run)
    model, facts = read_model(directory), facts_of(directory)
    scenes = read_scenes(arguments.photos) if arguments.photos else None
    file = statistics_beside(arguments.run, arguments.data)
    statistics = SiftStatistics.load(file)
    if facts.get("statistics", statistics.fingerprint()) != statistics.fingerprint():
        raise UserError(
            f"{arguments.run}: was trained with other SIFT statistics ({facts['statistics'][:8]}) than {file} holds "
            f"({statistics.fingerprint()[:8]}); put the {STATISTICS_FILE} of its run beside it"
        )
    backbone = open_backbone("sift", statistics=file)
    if scenes:
        validation = photo_set(scenes, distractors_in(arguments.distractors), backbone)
    else:
        root = arguments.data or transfer.build()
        validation = photo_set(rendered_scenes(root / "images"), [], backbone, arguments.queries)
    shortlist = min(arguments.shortlist, validation.ranks.shape[1])
    bits = model.tokenizer.binarize
    query, database = bits(validation.queries.truncate(100)), bits(validation.database.truncate(64))
    logits = Scorer(model).shortlists(query, database, validation.shortlists(shortlist), progress="scoring")
    setting, rows = tune(
        validation.similarities, logits, validation.measure(), k=[shortlist], lam=LAMBDAS, gamma=GAMMAS
    )
    found = next(row.scores["map"] for row in rows if row.setting == setting)
    facts = {
        **facts, "validation_map": found, "lam": setting.lam, "gamma": setting.gamma,
        "backbone": "sift", "statistics": statistics.fingerprint(),
    }  # fmt: skip
    before = validation.map_of(validation.ranks)
    print(f"{validation.name}: mAP {before:.1f} → {found:.1f} at λ {setting.lam:g}, γ {setting.gamma:g}")
    print(save_model(model, arguments.out, facts))
    statistics.save(arguments.out / STATISTICS_FILE)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ames_jax.benchmarks.calibrate", description=__doc__)
    add = parser.add_argument
    add("--run", type=Path, required=True, help="run of a binary student, or a model directory")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the calibrated model")
    add("--data", type=Path, metavar="DIR", help="rendered set with validation pictures (default: transfer scenes)")
    add("--photos", type=Path, metavar="DIR", help="choose on these photos instead: a subfolder a scene")
    add(
        "--distractors",
        type=Path,
        metavar="DIR",
        help="among these pictures (default: the rendered gallery of the landmarks)",
    )
    add("--queries", type=int, default=120, help="rendered pictures that ask (default: 120)")
    add("--shortlist", type=int, default=100, help="images re-ranked a query (default: 100)")
    return parser


if __name__ == "__main__":
    run_main(main)
