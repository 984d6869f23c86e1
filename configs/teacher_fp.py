"""The full-precision teacher.

On the embedded landmarks, rendered on first use:

    python -m ames_jax.train --config=teacher_fp

On GLDv2, the release's recipe, from a data set that `python -m ames_jax.prepare shards` has written (docs/data.md):

    python -m ames_jax.train --config=teacher_fp:gldv2 --config.data_dir=DIR
"""

from ml_collections import ConfigDict, config_dict

from ames_jax.runtime.command_line import refuse_variant

VARIANTS = ("landmarks", "gldv2")


def get_config(variant: str = "landmarks") -> ConfigDict:
    """Variants: "landmarks" (data set built on first use) and "gldv2" (750k images, needs prepared data)."""
    if variant not in VARIANTS:
        raise refuse_variant(variant, VARIANTS)
    config = ConfigDict()
    config.dataset = variant  # "landmarks" is built on first use; any other name is read from data_dir
    config.data_dir = ""  # folder of a prepared data set (python -m ames_jax.prepare shards); "" for the built-in one
    config.seed = 0  # of initial values, triplets and lengths
    config.init = "matching"  # "matching" (ours, see docs/differences.md) or "release"; release value: "release"
    config.start = ""  # model to go on from instead (run directory, model directory or .pt), of the same shape
    config.size = "mini"  # "mini" (2 layers, feed-forward 256) or "released" (5 layers, feed-forward 1024)

    config.model, config.data, config.optimizer = _model(), _data(), _optimizer()

    config.validation = validation = ConfigDict()
    validation.every = 200  # steps between validations
    validation.queries = 48  # queries of the validation split that are used
    validation.shortlist = 50  # images re-ranked per query
    validation.query_descriptors = 48  # Q at validation
    validation.database_descriptors = 48  # T at validation

    config.checkpoint = checkpoint = ConfigDict()
    checkpoint.every = 100  # steps between checkpoints
    checkpoint.minutes = 10.0  # and minutes between them, looked at when a line is logged
    checkpoint.keep = 2  # newest checkpoints that stay

    config.log_every = 10  # steps between lines of metrics.jsonl and TensorBoard
    config.profile = ""  # START:STOP records these steps with JAX's profiler, e.g. "20:30"

    config.distributed = "auto"  # "auto" (Cloud TPU, GKE, SLURM, MPI; else one process), "off", HOST:PORT of process 0
    config.process = -1  # with HOST:PORT: which process this is, 0 … processes − 1
    config.processes = 0  # with HOST:PORT: how many there are
    config.start_timeout = 300.0  # seconds to wait for the other processes

    if variant == "gldv2":
        _use_recipe_of_the_release(config)
    return config


def _model() -> ConfigDict:
    model = ConfigDict()
    model.bits = config_dict.placeholder(int)  # bits per descriptor; None = full precision; release: None
    model.model_width = 128  # d, width of the tokens; release: 128
    model.heads = 2  # attention heads; release: 2
    model.activation = "relu"  # "relu" or "gelu" (exact); release: "relu"
    model.pre_norm = False  # LayerNorm before each block instead of after; release: False
    model.binarizer = "straight_through"  # "straight_through" or "erf" (binary models); release: "erf"
    model.sigma = 1e-6  # variance of the erf surrogate; release: 1e-6
    model.match_weight = 0.0  # of the matches of bits, or of a teacher's tokens, in the logit (ours); release: 0
    model.match_threshold = 0.0  # cosine from which descriptors match
    model.match_form = "query"  # "query" (best partners of the query's) or "mutual" (each other's best)
    model.match_query = "bits"  # "bits" or "floats": the query's bits, or its projections before they are binarized
    model.match_learned = False  # weight and threshold are parameters that start from these values
    model.dtype = "float32"  # compute type, "float32" or "bfloat16"; release: "float32"
    return model


def _data() -> ConfigDict:
    data = ConfigDict()
    data.rebuild = False  # build the embedded landmarks again
    data.descriptors = 48  # K, descriptors per image, strongest first; release: 400
    data.lengths = (10, 49)  # both sides' lengths of a step are drawn uniformly from [low, high); release: (10, 400)
    data.buckets = (48,)  # padded lengths, rising; each pair of them is one compiled program
    data.drop = 0.0  # share of descriptors left out at random, augmentation; release: 0
    data.noise = 0.0  # random vector added to a descriptor, in shares of its length, augmentation; release: 0
    data.batch = 16  # triplets per step (2 pairs each); release: 100
    data.top = 100  # global neighbours that partners are drawn from; release: 300
    data.minimum = 1  # images of its own and of other labels among them that make an anchor valid; release: 5
    data.power = 3.0  # partners are drawn with probability ∝ similarity^power; release: 3
    data.accumulate = 1  # parts in which a device takes its share of a batch, where memory is short
    data.workers = 0  # reading processes; 0 = threads, best on few cores
    return data


def _optimizer() -> ConfigDict:
    optimizer = ConfigDict()
    optimizer.epochs = config_dict.placeholder(float)  # length of training in epochs; release: 15
    optimizer.steps = 600  # or in steps: these count where epochs is None, and where a command line gives them
    optimizer.learning_rate = 1e-3  # peak of AdamW; release: 2e-4
    optimizer.weight_decay = 1e-4  # on every parameter; release: 5e-4
    optimizer.beta2 = 0.99  # AdamW's second-moment decay; release: 0.999
    optimizer.warmup = 30  # steps of linear warm-up; release: 0
    optimizer.clip = 1.0  # largest gradient norm; None = no clipping; release: None
    return optimizer


def _use_recipe_of_the_release(config: ConfigDict) -> None:
    config.size = "released"
    config.data.update(
        descriptors=400, lengths=(10, 400), buckets=(100, 200, 300, 400), batch=100, top=300, minimum=5, workers=8
    )
    config.optimizer.update(epochs=15.0, learning_rate=2e-4, weight_decay=5e-4, beta2=0.999, warmup=0, clip=None)
    # Held in memory: 200 × 50 images × 100 descriptors × 1.5 kB = 1.5 GB at most. Take public test queries for it.
    config.validation.update(every=5000, queries=200, shortlist=50, query_descriptors=100, database_descriptors=100)
    config.checkpoint.every = 1000
    config.log_every = 50
