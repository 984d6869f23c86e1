"""ELViS in full precision, and a binary ELViS on 128 bits per descriptor that is distilled from it.

On the embedded landmarks, rendered on first use, some minutes on 2 cores. Expect a test mAP of 66.1 of the binary
model at 64 stored descriptors, 1 KB per image, and 66.8 of the float one (seed 0; global search alone: 50.4):

    python -m ames_jax.train --config=elvis

On GLDv2, the authors' recipe, from a prepared data set; neither its time nor its figures are measured yet:

    python -m ames_jax.train --config=elvis:gldv2 --config.data_dir=DIR
"""

from pathlib import Path

from ml_collections import ConfigDict, config_dict

from ames_jax.runtime.command_line import load_config


def get_config(variant: str = "landmarks") -> ConfigDict:
    """Variants: "landmarks" (data set built on first use) and "gldv2" (750k images, needs prepared data)."""
    config = load_config(Path(__file__).with_name("student_bin.py"), variant)
    config.model, config.train_teacher.model = _model(), _model()
    config.model.bits = 128  # bits stored per descriptor (16 bytes); the authors have full precision alone
    for one in (config, config.train_teacher):
        del one.size
        optimizer = one.optimizer
        with optimizer.ignore_type():
            optimizer.warmup = 0.1  # steps of linear warm-up, or below 1 their share of all; authors: 0.1
        optimizer.warmup_from = 1 / 3  # share of the learning rate at which it starts; authors: 1/3
        optimizer.weight_decay = 5e-4  # on every parameter; authors: 5e-4
        if variant == "gldv2":
            optimizer.epochs, optimizer.learning_rate = 10.0, 5e-4
            one.data.lengths = (100, 400)  # authors: [100, 400)
        else:
            optimizer.learning_rate = 3e-3  # peak of AdamW; authors: 5e-4 in 10 epochs of GLDv2
    if variant == "landmarks":
        config.train_teacher.optimizer.steps, config.optimizer.steps = 1000, 400
        config.validation.every = 200
    return config


def _model() -> ConfigDict:
    model = ConfigDict()
    model.kind = "elvis"  # kind of the model: "elvis"
    model.bits = config_dict.placeholder(int)  # bits stored per descriptor; None = full precision
    model.model_width = 128  # d, width of the vectors that are compared; authors: 128
    model.padding = "counted"  # "counted" (padding takes no part) or "released" (it does); authors: "released"
    model.round_stored = True  # round full-precision database vectors through float16, as stored; authors: False
    model.binarizer = "straight_through"  # "straight_through" or "erf" (binary models)
    return model
