"""Evaluation of a model on a data set: scores every pair once, then sweeps λ, γ and k.

ROxford5k with a released model and the release's files:

    python -m ames_jax.evaluate --config.data_dir=DATA --config.dataset=roxford5k \\
        --config.model=dinov2_ames_dist --config.query_descriptors=600 --config.database_descriptors=50 \\
        --config.rerank=100,400 --config.lam=0.35,0.55 --config.gamma=0.1,0.3

The embedded landmarks, no data needed, with the student of `python -m ames_jax.train --config=student_bin`:

    python -m ames_jax.evaluate --config=evaluate:landmarks

Every method beside each other (docs/comparison.md), after `python -m ames_jax.train --config=elvis`, too:

    python -m ames_jax.evaluate --config=evaluate:comparison

Fields that take several values take them with commas: every combination is measured, from one set of scores.
"""

from ml_collections import ConfigDict

from ames_jax.runtime.command_line import refuse_variant

VARIANTS = ("benchmarks", "landmarks", "comparison")
# Every method of docs/comparison.md, on its first stage or on a refined one.
COMPARED = (
    *("global", "global@superglobal", "global@expand", "global@augment", "global@augment+expand"),
    *("kernel", "maxsim", "mutual", "floats", "ransac", "ransac16"),
    *("runs/student_bin", "runs/student_bin/teacher", "runs/elvis", "runs/elvis/teacher"),
    *("kernel@superglobal", "runs/student_bin@superglobal", "kernel@augment+expand", "runs/student_bin@augment+expand"),
)


def get_config(variant: str = "benchmarks") -> ConfigDict:
    """Variants: "benchmarks" (the release's data sets, or your own), "landmarks" (the embedded data set) and "comparison"
    (every method on it, in one table)."""
    if variant not in VARIANTS:
        raise refuse_variant(variant, VARIANTS)
    config = ConfigDict()
    config.data_dir = ""  # the release's folder, a prepared data set, a manifest's folder; "landmarks": embedded
    config.dataset = "roxford5k"  # a benchmark's name, a name in ground_truth/ of a prepared data set, or "custom"
    config.model = ""  # run, model directory, .pt file or released name; several by commas, also other methods (docs)
    config.backbone = "dinov2"  # prefix of the release's descriptor files: "dinov2" or "cvnet"
    config.first_stage = "dinov2"  # the release's neighbour list nn_NAME.pkl: "dinov2", "superglobal", …
    config.refine = ""  # lists by global descriptors alone: superglobal, expand, augment, or several joined by +
    config.store = ""  # packed store of the gallery, read instead of its floats (binary models); "" for floats

    config.query_descriptors = 600  # Q, strongest descriptors of a query; release: 600
    config.database_descriptors = 600  # T, strongest descriptors of a database image; release: 600, small memory: 50
    config.rerank = "100"  # k, images re-ranked per query, comma list; release: 1600, small: 100, 400
    config.lam = ""  # λ in 0..1, weight of the global similarity, comma list; "" for the released model's value
    config.gamma = ""  # γ ≥ 0, scale of the logit, comma list; "" for the released model's value
    config.tune_on = ""  # data set on which one λ, γ of the lists is chosen for `dataset`; release: gldv2-val

    config.plan = ""  # coarse to fine, plans with spaces between, e.g. "kernel@40,600x50 100x50@100,600x50"
    config.sweep_memory = False  # also at T = 10 … 600: tradeoff-*.png and a table of mAP against bytes per image
    config.match_kernel = True  # in sweep_memory: hand-made matching of the same descriptors
    config.logits = ""  # logits.npz of an earlier run: sweep from it, score nothing, need no model
    config.memory_gb = 2.0  # memory for descriptors on their way to the device, in 2³⁰ bytes

    config.distributed = "auto"  # "auto" (Cloud TPU, GKE, SLURM, MPI; else one process), "off", HOST:PORT of process 0
    config.process = -1  # with HOST:PORT: which process this is, 0 … processes − 1
    config.processes = 0  # with HOST:PORT: how many there are
    config.start_timeout = 300.0  # seconds to wait for the other processes

    if variant in ("landmarks", "comparison"):
        config.update(data_dir="landmarks", dataset="test", tune_on="validation", model="runs/student_bin")
        config.update(query_descriptors=100, database_descriptors=64, rerank="50", sweep_memory=True)
    if variant == "comparison":
        config.update(model=",".join(COMPARED), sweep_memory=False)
    return config
