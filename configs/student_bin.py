"""The binary student, and everything it needs: data, teacher, table and pictures.

On the embedded landmarks, rendered on first use: six minutes on 2 cores of an AMD EPYC, of which rendering takes one. Expect a
test mAP of 64.9 ± 0.3 over three seeds at 64 stored descriptors, 1 KB per image (global search alone: 50.4):

    python -m ames_jax.train --config=student_bin

On GLDv2, the release's recipe, from a prepared data set and a teacher of `--config=teacher_fp:gldv2`; neither its time nor its
figures are measured yet:

    python -m ames_jax.train --config=student_bin:gldv2 --config.data_dir=DIR --config.teacher=RUN
"""

from pathlib import Path

from ml_collections import ConfigDict

from ames_jax.runtime.command_line import load_config


def get_config(variant: str = "landmarks") -> ConfigDict:
    """Variants: "landmarks" (data set built on first use) and "gldv2" (750k images, needs prepared data)."""
    teacher = load_config(Path(__file__).with_name("teacher_fp.py"), variant)
    config = teacher.copy_and_resolve_references()
    config.model.bits = 128  # bits stored per descriptor (16 bytes); release: 128
    config.distillation = 10.0  # β, weight of the token loss beside the cross-entropy; release: 10
    config.distil_padding = False  # count padding rows in the token loss; release: True
    config.teacher = ""  # trained teacher (run directory, model directory or .pt); "" trains one first in the workdir
    config.train_teacher = teacher  # how, where none is given; seed, size and data follow this file

    config.report = report = ConfigDict()
    report.enabled = variant == "landmarks"  # evaluate the test split and draw the table and the pictures at the end
    report.shortlist = 50  # images re-ranked per query
    report.query_descriptors = (50, 100)  # Q; the smaller ones are measured at T = Q alone (student, hand-made)
    report.database_descriptors = (8, 16, 32, 50, 64, 100)  # T; 64 binary descriptors are 1 KB
    report.validation_queries = 48  # validation queries on which λ, γ and the kernels' thresholds are chosen
    report.gallery_queries = 6  # queries shown in gallery.png

    if variant == "landmarks":
        config.optimizer.update(steps=250, learning_rate=5e-4, warmup=20)
        config.validation.every = 125
    return config
