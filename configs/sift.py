"""The shipped `sift` model: teacher and binary student on rendered scenes whose SIFT is like that of real photographs.

    python -m ames_jax.train --config=configs/sift.py --workdir=runs/sift

No data needed: the scenes are rendered on first use. Then copy `runs/sift/student/best/model.safetensors` and the
data set's `sift_statistics.npz` to a folder, and that folder is a model of `python -m ames_jax.search`.
"""

from pathlib import Path

from ml_collections import ConfigDict

from ames_jax.command_line import load_config, refuse_variant

VARIANTS = ("transfer",)


def get_config(variant: str = "transfer") -> ConfigDict:
    """One variant, "transfer": the scenes of `ames_jax.data.transfer`."""
    if variant not in VARIANTS:
        raise refuse_variant(variant, VARIANTS)
    config = load_config(Path(__file__).with_name("student_bin.py"), "landmarks")
    config.dataset = config.train_teacher.dataset = variant
    for role in (config, config.train_teacher):
        role.data.update(descriptors=64, lengths=(24, 65), buckets=(64,), batch=12)
        role.data.update(top=200, power=2.0)  # harder positives than the nearest: photos of a place differ more
        role.validation.update(query_descriptors=64, database_descriptors=64)
    config.train_teacher.optimizer.update(steps=500, learning_rate=1e-3)
    config.train_teacher.validation.every = 250
    config.report.update(query_descriptors=(100,), database_descriptors=(16, 50, 64))
    return config
