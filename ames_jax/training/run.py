"""From a configuration to a training run: model, triplets, pipeline and validation put together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from ames_jax import scenes
from ames_jax.data.neighbours import open_neighbours
from ames_jax.data.shards import DescriptorSource, open_split, read_about
from ames_jax.extraction.backbone import STATISTICS_FILE
from ames_jax.extraction.backbones import open_backbone
from ames_jax.extraction.sift import statistics_of
from ames_jax.model.elvis import ELViS
from ames_jax.model.initialisation import SAMPLE, SAMPLE_PER_IMAGE, initialise
from ames_jax.model.kinds import Config, Model, config_of, new_model, title_of
from ames_jax.model.released import known_facts, refuse_unknown
from ames_jax.model.weights import read_model, refuse_other_descriptors
from ames_jax.retrieval.grid import Counts
from ames_jax.retrieval.matchers import ModelMatcher
from ames_jax.retrieval.score_keeper import ScoreKeeper
from ames_jax.retrieval.sets import RIGHT, RetrievalSet, sample_descriptors
from ames_jax.retrieval.tuning import tune
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import same_job, write_file
from ames_jax.runtime.paths import is_remote, path_of
from ames_jax.runtime.processes import is_lead, lead_first, say, start
from ames_jax.runtime.progress import Progress
from ames_jax.scenes.photographs import ViewSettings
from ames_jax.scenes.views import build_views
from ames_jax.training.kept_config import check_numbers, keep_config
from ames_jax.training.log import trace_steps
from ames_jax.training.loop import FitSettings
from ames_jax.training.model_task import ModelTask, finished, fit, load_finished
from ames_jax.training.pipeline import TripletPipeline
from ames_jax.training.step import Recipe
from ames_jax.training.triplets import Triplets

SIZES = {"mini": {"layers": 2, "feed_forward": 256}, "released": {"layers": 5, "feed_forward": 1024}}
OTHER_PHOTOS = (
    "The photographs are others than those that this run began with: use another --workdir, or delete this one"
)


def model_config(config: ConfigDict, descriptor_width: int) -> Config:
    """The model that a configuration asks for, on descriptors of this width."""
    fields = {"descriptor_width": descriptor_width, **config.model.to_dict()}
    if fields.get("kind") == "matching":
        raise UserError(
            "model.kind is 'matching': hand-made matching is not trained; search index --model=mutual makes it"
        )
    if fields.get("kind", "ames") != "ames":
        return config_of(fields)
    if config.size not in SIZES:
        raise UserError(f"size must be one of {', '.join(SIZES)}, found {config.size!r}")
    return config_of({**SIZES[config.size], **fields})


def open_run(config: ConfigDict, workdir: Path) -> Path:
    """Connects the processes and keeps the configuration in the work folder; returns the folder of the data set."""
    check_numbers(config)
    start(config)
    if is_remote(workdir) and config.get("report", {}).get("enabled"):
        raise UserError(
            "--config.report.enabled draws pictures, which needs a --workdir on disk; switch it off for gs://"
        )
    for key in ("teacher", "start"):
        if config.get(key):
            refuse_unknown(config[key])  # before data are made for nothing
    with lead_first():
        if (workdir / "config.json").exists():  # refused before data are made for nothing
            keep_config(config, workdir)
        root = data_root(config)
        keep_config(config, workdir)  # after the data: a mistake in the first command binds nobody
        if "photos" in config and is_lead():
            same_job(workdir / "photos.json", {"set": root.name}, advice=OTHER_PHOTOS)
    # What the model is to read is extracted with the statistics of the SIFT descriptors that it was trained on.
    if is_lead() and (root / STATISTICS_FILE).is_file():
        write_file(workdir / STATISTICS_FILE, (root / STATISTICS_FILE).read_bytes())
    return root


def data_root(config: ConfigDict) -> Path:
    """The folder of the data set: `data_dir`, else one that is built on first use, rendered or of photographs."""
    if config.data_dir:
        return path_of(config.data_dir)
    if "photos" in config:
        return _views_root(config)
    if config.dataset in (scenes.LANDMARKS.folder, scenes.TRANSFER.folder):
        return scenes.build(config.dataset, rebuild=config.data.rebuild)
    raise UserError(
        f"dataset {config.dataset!r} needs --config.data_dir=DIR, a folder prepared from its descriptors: "
        "python -m ames_jax.prepare shards (docs/data.md says where to get them)"
    )


def _views_root(config: ConfigDict) -> Path:
    """The folder of the views of `photos`, made on first use."""
    if not config.photos:
        raise UserError("--config.photos is missing: give a folder of photographs, or a text list of them")
    fields = config.views.to_dict()
    options = {"descriptors": fields.pop("descriptors"), "max_side": fields.pop("side")}
    other = {"name": config.global_backbone, "weights": _file(config.global_weights), "block": config.global_block}
    backbone = open_backbone(
        config.backbone,
        weights=_file(config.weights),
        block=config.block,
        global_backbone=other if config.global_backbone else None,
        **options,
    )
    settings = ViewSettings(**fields, seed=config.seed)
    return build_views(config.photos.split(","), backbone, settings, rebuild=config.data.rebuild)


def _file(path: str) -> Path | None:
    return Path(path) if path else None


def train_teacher(config: ConfigDict, root: Path, workdir: Path) -> Model:
    """The teacher that the configuration is of. For a student: the given one, or one that is trained in `workdir` first,
    with the student's data, seed and size."""
    if config.get("teacher"):
        teacher, given = load_finished("teacher", config.teacher), f"--config.teacher={config.teacher}"
        refuse_other_descriptors(given, known_facts(config.teacher), read_about(root), statistics_of(root))
        return teacher
    settings = config.get("train_teacher", config)
    if settings is not config:
        for key in {"dataset", "data_dir", "seed", "size", "profile"} & set(config):
            settings[key] = config[key]
        say(f"no teacher given (--config.teacher): training or reusing one in {workdir / 'teacher'}")
    return train_role(settings, root, workdir, "teacher", None)


def train_role(config: ConfigDict, root: Path, workdir: Path, label: str, teacher: Model | None) -> Model:
    """The best model of a "teacher" (`teacher` None) or "student" that is trained in WORKDIR/LABEL, or was before."""
    directory = workdir / label
    with lead_first():
        keep_config(config, directory)
    if finished(directory):
        say(f"{label}: finished before, taken from {directory}")
        return read_model(directory / "best")
    source, about = open_split(root, "train"), read_about(root)
    with Progress(f"{label}: choosing triplets and initial values"):
        pipeline = triplet_pipeline(config, source, root)
        model = _initial_model(config, source, about["name"], teacher)
    recipe = make_recipe(config, pipeline)
    size, fill = sum(p.size for p in jax.tree.leaves(nnx.state(model, nnx.Param))), pipeline.filled - pipeline.batch
    filled = (
        f"; {fill} more fill a step up to {jax.device_count()} devices' equal shares and do not count" if fill else ""
    )
    say(
        f"{label}: {size:,} parameters, {recipe.steps} steps of {pipeline.batch} triplets "
        f"({len(pipeline.triplets):,} anchors per epoch) on {about['name']}{filled}"
    )
    settings = FitSettings(
        directory=directory,
        label=label,
        log_every=config.log_every,
        validate_every=config.validation.every,
        checkpoint_every=config.checkpoint.every,
        checkpoint_minutes=config.checkpoint.minutes,
        keep=config.checkpoint.keep,
        profile=trace_steps(config.profile),
    )
    facts = {"data_set": about["name"], "backbone": about.get("backbone"), "global": about.get("global"), "role": label}
    if statistics := statistics_of(root):  # only descriptors made with them mean something to the model
        facts["statistics"] = statistics
    return fit(ModelTask(model, recipe, pipeline, settings, make_validation(config, root), teacher, facts))


def _initial_model(config: ConfigDict, source: DescriptorSource, data_set: str, teacher: Model | None) -> Model:
    """The model to begin with: that of `start`, or a fresh one, initialised from a sample of the training descriptors."""
    model = new_model(model_config(config, source.format.width), nnx.Rngs(config.seed))
    if teacher is not None:
        _refuse_teacher(teacher, model, data_set)
    if not config.start:
        sample = sample_descriptors(source, SAMPLE, SAMPLE_PER_IMAGE, config.seed)
        initialise(model, config.init, sample, teacher, config.seed)
        return model
    started = load_finished("start", config.start)
    if started.config != model.config:
        raise UserError(
            f"--config.start={config.start}: expected a model of {model.config}, found one of {started.config}"
        )
    return started


def _refuse_teacher(teacher: Model, student: Model, data_set: str) -> None:
    if type(teacher) is not type(student):
        kinds = title_of(teacher.config), title_of(student.config)
        raise UserError("--config.teacher is {}, and the student {}: give a teacher of its kind".format(*kinds))
    for key, why in (("descriptor_width", f"the descriptors of {data_set}"), ("model_width", "the student's tokens")):
        found, expected = getattr(teacher.config, key), getattr(student.config, key)
        if found != expected:
            raise UserError(
                f"--config.teacher: its {key} is {found}, but {why} have width {expected}; give another teacher"
            )


def triplet_pipeline(config: ConfigDict, source: DescriptorSource, root: Path) -> TripletPipeline:
    """Batches of the training split, the part of this process."""
    data = config.data
    neighbours = open_neighbours(root / "neighbours" / "train.train")
    triplets = Triplets(
        source.labels(), neighbours, seed=config.seed, top=data.top, minimum=data.minimum, power=data.power
    )
    if data.lengths[1] - 1 > data.descriptors or data.lengths[1] - 1 > max(data.buckets):
        raise UserError(
            f"data.lengths {tuple(data.lengths)} draws up to {data.lengths[1] - 1} descriptors, but data.descriptors is "
            f"{data.descriptors} and the largest of data.buckets {max(data.buckets)}"
        )
    return TripletPipeline(
        source,
        triplets,
        lengths=tuple(data.lengths),
        seed=config.seed,
        process=jax.process_index(),
        processes=jax.process_count(),
        multiple=jax.device_count() * data.accumulate,
        **{name: data[name] for name in ("batch", "descriptors", "drop", "noise", "workers")},
    )


def make_recipe(config: ConfigDict, pipeline: TripletPipeline) -> Recipe:
    """The optimizer's part of a configuration; epochs become steps."""
    optimizer = config.optimizer
    steps = optimizer.steps if optimizer.epochs is None else round(optimizer.epochs * pipeline.steps_per_epoch)
    if steps < 1:
        raise UserError(f"optimizer.steps must be at least 1, found {steps}")
    settings = {name: config[name] for name in ("distillation", "distil_padding") if name in config}
    fields = ("learning_rate", "weight_decay", "beta2", "warmup", "warmup_from", "clip")
    settings |= {name: optimizer[name] for name in fields if name in optimizer}
    if settings["warmup"] < 1:
        settings["warmup"] = round(settings["warmup"] * steps)
    return Recipe(
        steps=steps, buckets=tuple(sorted(config.data.buckets)), accumulate=config.data.accumulate, **settings
    )


def make_validation(config: ConfigDict, root: Path) -> Callable[[Model], dict[str, float]]:
    """model → validation mAP (percent) of the re-ranked lists at the best λ and γ, these, and the logits' balanced accuracy."""
    settings = config.validation
    data = RetrievalSet.load(root, "validation", queries=settings.queries)
    shortlist = min(settings.shortlist, data.ranks.shape[1])
    right = data.judged.columns_of(RIGHT, shortlist)
    counts = Counts(settings.query_descriptors, settings.database_descriptors)

    def validate(model: Model) -> dict[str, float]:
        found = tune(ScoreKeeper(), ModelMatcher(model, "model"), data, k=shortlist, counts=counts)
        logits = found.scores[:, :shortlist]
        if isinstance(model, ELViS):  # a sum of votes has no sign
            logits = np.asarray(model.head(logits.ravel())).reshape(logits.shape)
        scored = ~np.isnan(logits)
        accuracy = 0.5 * ((logits > 0)[right & scored].mean() + (logits <= 0)[~right & scored].mean())
        setting, figure = found.setting, float(np.mean(list(found.figures.values())))
        return {"map": figure, "accuracy": float(accuracy), "lam": setting.lam, "gamma": setting.gamma}

    return validate
