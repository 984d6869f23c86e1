"""The detector of an extractor: which local features of a frozen backbone are worth keeping.

python -m ames_jax.train --config=detector --config.images=DIR --config.backbone=dinov2 --workdir=runs/detector

DIR holds a sub-folder of images per class (or LIST lines `path,label`). Writes WORKDIR/detector.pt in the release's layout,
for `python -m ames_jax.extract --detector=…`. The attention of DELG (Cao et al., ECCV 2020): the features are pooled by
their weights and classified.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """No variants."""
    config = ConfigDict()
    config.images = ""  # folder with a sub-folder per class, or list with lines `path,label`
    config.root = ""  # folder that the paths of a list are relative to; "" for the list's own
    config.backbone = "dinov2"  # "dinov2" or "cvnet", which stays as it is
    config.weights = ""  # file of the backbone's authors; "" downloads dinov2's
    config.dtype = "float32"  # compute type of the backbone, "float32" or "bfloat16"
    config.seed = 0  # of initial values, order and crops
    config.side = 518  # images are cropped to squares of this side; for dinov2 a multiple of 14
    config.crop = (0.5, 1.0)  # share of an image's area that a crop keeps, drawn uniformly
    config.batch = 32  # images per step
    config.workers = 8  # threads that read images
    config.validation = 0.1  # share of every class's images that is kept for validation

    config.optimizer = optimizer = ConfigDict()
    optimizer.epochs = 10.0  # length of training
    optimizer.learning_rate = 1e-3  # peak of AdamW; cosine to 0
    optimizer.weight_decay = 1e-4  # on every parameter

    config.validate_every = 500  # steps between validations
    config.log_every = 20  # steps between lines of metrics.jsonl and TensorBoard
    config.checkpoint = checkpoint = ConfigDict()
    checkpoint.every = 500  # steps between checkpoints
    checkpoint.keep = 2  # newest checkpoints that stay
    return config
