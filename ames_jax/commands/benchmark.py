"""The commands of `python -m ames_jax.benchmark`."""

from __future__ import annotations

from etils import epy

from ames_jax.benchmarks.flags import DataFlags, EvaluateFlags, ExtractFlags, ScoreFlags, ServeFlags, TrainFlags

with epy.lazy_imports():  # help needs none of them
    from ames_jax.benchmarks import evaluation, extraction, reading, scoring, serving, training


def data(flags: DataFlags | None = None) -> None:
    """Measure images per second from disk to the training step, from each storage."""
    reading.measure(flags or DataFlags())


def score(flags: ScoreFlags | None = None) -> None:
    """Measure pairs per second of queries against their shortlists."""
    scoring.measure(flags or ScoreFlags())


def train(flags: TrainFlags | None = None) -> None:
    """Measure triplets per second of training steps, with and without a teacher."""
    training.measure(flags or TrainFlags())


def extract(flags: ExtractFlags | None = None) -> None:
    """Measure images per second of SIFT and of DINOv2's ViT."""
    extraction.measure(flags or ExtractFlags())


def evaluate(flags: EvaluateFlags | None = None) -> None:
    """Measure a whole evaluation of an ROxford-sized random set, from HDF5 files to mAP."""
    evaluation.measure(flags or EvaluateFlags())


def serve(flags: ServeFlags | None = None) -> None:
    """Measure a server of a made-up index under load, its answers compared with the offline search."""
    serving.measure(flags or ServeFlags())
