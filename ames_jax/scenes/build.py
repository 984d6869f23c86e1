"""Builds the embedded data set: renders, describes, and writes it like any other data set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ames_jax.runtime.cache import home
from ames_jax.scenes import cache
from ames_jax.scenes.rendering import Task, Views, run_tasks
from ames_jax.scenes.scene import World, world
from ames_jax.scenes.settings import Settings
from ames_jax.scenes.splits import Split, splits
from ames_jax.scenes.writing import write_set


def build(
    root: Path | None = None,
    settings: Settings | None = None,
    *,
    processes: int | None = None,
    rebuild: bool = False,
    progress: bool = True,
    open_world: Callable[[Settings], World] = world,
) -> Path:
    """The folder of the ready data set, built first where it is not there yet.

    Args:
      root: folder to keep built sets in; by default AMES_JAX_HOME or the platform's cache directory.
      settings: what to build; another content has another folder.
      processes: rendering processes; by default one for each core this process may use.
      rebuild: build again even where it is there.
      progress: show a progress bar on stderr.
      open_world: from the settings to the world that is photographed; worker processes import it.

    Raises:
      UserError: when a file of the built set is missing or damaged (named, with how to rebuild), or `root` cannot be
        written.
    """
    settings = settings or Settings()
    folder = Path(root or home()) / f"{settings.folder}-{settings.key()}"
    if folder.exists() and not rebuild:
        cache.check(folder)
        return folder
    cache.publish(folder, lambda target: _fill(target, settings, processes, progress, open_world), replace=rebuild)
    return folder


def _fill(
    target: Path, settings: Settings, processes: int | None, progress: bool, open_world: Callable[[Settings], World]
) -> None:
    parts = splits(settings)
    tasks = {part.name: _tasks(target, part, settings, open_world) for part in parts}
    views = _render(tasks, settings, processes, progress)
    write_set(target, parts, views, settings)


def _tasks(target: Path, part: Split, settings: Settings, open_world: Callable[[Settings], World]) -> list[Task]:
    """What is to be rendered of a split; photos of all but the training split are written below images/."""
    photos = None if part.stage == "train" else target / "images"
    if photos:
        (photos / part.name).mkdir(parents=True)
    return part.tasks(settings, photos, open_world)


def _render(
    tasks: dict[str, list[Task]], settings: Settings, processes: int | None, progress: bool
) -> dict[str, Views]:
    """Views of every split."""
    from tqdm import tqdm

    owners = [name for name, some in tasks.items() for _ in some]
    everything = [task for some in tasks.values() for task in some]
    found: dict[str, list[Views]] = {name: [] for name in tasks}
    images = sum(task.views for task in everything)
    with tqdm(
        total=images, desc=f"building {settings.name}", unit="photo", mininterval=0.5, disable=not progress
    ) as bar:
        for owner, task, views in zip(owners, everything, run_tasks(everything, processes)):
            found[owner].append(views)
            bar.update(task.views)
    return {name: Views.join(parts_of) for name, parts_of in found.items()}
