"""The sift model that comes with the package: whole, small, and of the statistics that lie beside it."""

from ames_jax import load_model
from ames_jax.extraction.sift import SiftStatistics
from ames_jax.index.model_choice import ChosenModel
from ames_jax.model.released import SHIPPED
from ames_jax.model.weights import MODEL_FILE, facts_of


def test_the_shipped_model_fits_its_statistics():
    folder = SHIPPED["sift"]
    model, facts = load_model("sift"), facts_of(folder)
    assert (folder / MODEL_FILE).stat().st_size < 10e6
    assert (model.config.bits, model.config.descriptor_width) == (128, 128)
    fingerprint = SiftStatistics.load(folder / "sift_statistics.npz").fingerprint()
    assert facts["statistics"] == fingerprint
    ChosenModel.load(None, "sift").check({"backbone": "sift"}, fingerprint)
