"""A re-ranker of one's own photographs: teacher and binary student, learned without labels from strongly warped views of them.

    python -m ames_jax.train --config=photos --config.photos=DIR --workdir=runs/mine
    python -m ames_jax.search index --images=DIR --backbone=xfeat --model=runs/mine/student --out=mine.index

DIR is a folder; several go with commas, and a text list (`path` or `path,label` per line) is as good. Every photo is an
instance of its own, but for photos in one sub-folder, which show the same thing (--config.views.labels=false where they do
not). Descriptors of photos and views are extracted once and kept in the cache; a killed run goes on where it was.
XFeat and DINOv2 are downloaded once; offline, --config.backbone=sift --config.global_backbone= needs neither.
"""

from pathlib import Path

from ml_collections import ConfigDict, config_dict

from ames_jax.runtime.command_line import load_config


def get_config() -> ConfigDict:
    """No variants."""
    config = load_config(Path(__file__).with_name("student_bin.py"), "landmarks")
    config.dataset = "photos"  # made of `photos` on first use
    config.photos = ""  # folder of photographs, or text list of them; several by commas
    config.backbone = "xfeat"  # of the local descriptors, as extract's --backbone
    config.weights = ""  # file of its authors; "" downloads it once
    config.block = config_dict.placeholder(int)  # of a DINOv2 network, tokens after so many blocks; None: all
    config.global_backbone = "dinov2_small_pooled"  # of the global descriptors; "" for the local backbone's own
    config.global_weights = ""  # file of its authors; "" downloads it once
    config.global_block = config_dict.placeholder(int)  # as `block`, of the global backbone

    config.views = views = ConfigDict()
    views.count = 6  # warped views of every photo in training, beside the photo itself
    views.queries = 2  # warped views that ask for a photo of validation or test
    views.strength = 1.0  # of the warps, 0 to 2
    views.labels = True  # sub-folders and labels of a list are scenes, all of whose photos show the same
    views.validation = 0.15  # share of photos, or scenes, that is set apart to choose λ, γ and the best step
    views.test = 0.15  # share that is set apart for the table at the end
    views.rendered = 0  # rendered scenes mixed into training, with as many pictures of each as a photo has
    views.side = config_dict.placeholder(int)  # longer side of pictures in pixels; None: the local backbone's own
    views.descriptors = 256  # strongest local descriptors of a picture that are kept

    config.model.bits = 64  # bits stored per descriptor: 128 descriptors are 1 KB
    matches = {"match_weight": 4.0, "match_threshold": 0.5, "match_form": "mutual"}
    config.model.update(matches, match_query="floats")  # the student begins as hand-made matching of its bits
    config.train_teacher.model.update(matches)  # and the teacher as that of whitened descriptors
    config.data.update(descriptors=128, lengths=(32, 129), buckets=(64, 128), batch=12, top=200)
    config.validation.update(query_descriptors=128, database_descriptors=128)
    config.report.update(query_descriptors=(128,), database_descriptors=(32, 64, 128))
    config.train_teacher.data.update(config.data)
    config.train_teacher.validation.update(config.validation)
    return config
