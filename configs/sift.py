"""The shipped `sift` model, on rendered scenes whose SIFT is like that of real photographs (built on first use).

    python -m ames_jax.train --config=sift:teacher --workdir=runs/sift_teacher
    python -m ames_jax.train --config=sift:longer --workdir=runs/sift_longer
    python -m ames_jax.train --config=sift:student --workdir=runs/sift
    python -m ames_jax.search calibrate --run=runs/sift --out=ames_jax/model/shipped/sift

Each run starts from the one before it in `runs/`. The README beside the model says how long they took and what came out.
"""

from pathlib import Path

from ml_collections import ConfigDict

from ames_jax.runtime.command_line import load_config, refuse_variant

VARIANTS = ("student", "teacher", "longer")


def get_config(variant: str = "student") -> ConfigDict:
    """Variants: "teacher", "longer" (the teacher trained on, with augmentation) and "student" (binary)."""
    if variant not in VARIANTS:
        raise refuse_variant(variant, VARIANTS)
    base = "student_bin.py" if variant == "student" else "teacher_fp.py"  # what it shares with the embedded landmarks
    config = load_config(Path(__file__).with_name(base), "landmarks")
    config.dataset = "transfer"  # rendered on first use, see ames_jax/scenes
    config.data.update(descriptors=64, lengths=(24, 65), buckets=(64,), batch=12)
    config.validation.update(query_descriptors=64, database_descriptors=64)
    if variant == "teacher":
        config.data.update(top=200, power=2.0)
        config.optimizer.update(steps=500, learning_rate=1e-3)
        config.validation.every = 250
        return config
    config.data.update(drop=0.2, noise=0.2)
    if variant == "longer":
        config.start = "runs/sift_teacher"
        config.optimizer.update(steps=700, learning_rate=7e-4)
        config.validation.every = 175
        return config
    config.teacher = "runs/sift_longer"  # run of the variant "longer"
    config.model.update(match_weight=4.0, match_threshold=0.5)
    config.optimizer.update(steps=300, learning_rate=1e-3)
    config.validation.every = 100  # steps
    config.report.update(query_descriptors=(100,), database_descriptors=(16, 50, 64))
    return config
