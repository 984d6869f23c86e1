"""Models to share: a folder that explains itself, and the Hugging Face Hub (`hf://OWNER/NAME`)."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ames_jax.model.ames import RELEASED
from ames_jax.model.kinds import Model, fields_of, kind_of, title_of
from ames_jax.model.weights import MODEL_FILE, save_model
from ames_jax.runtime.errors import UserError, requires
from ames_jax.runtime.files import write_file, write_json
from ames_jax.runtime.paths import path_of

HUB = "hf://"
CARD = "README.md"
# What a run adds: its settings (in a run, config.json), its table, and what its descriptors are extracted with.
RECIPE, TABLE, STATISTICS = OF_A_RUN = "recipe.json", "results.md", "sift_statistics.npz"
TITLES = {
    "data_set": "trained on",
    "backbone": "descriptors",
    "global": "global descriptor",
    "role": "role",
    "step": "best step",
    "validation_map": "validation mAP (%)",
    "lam": "λ",
    "gamma": "γ",
    "released": "released by the authors of AMES as",
    "converted_from": "converted from",
}
# What a card says of the method, by kind of model.
METHODS = {
    "ames": "The method: Suma et al., AMES: Asymmetric and Memory-Efficient Similarity Estimation for Instance-level "
    "Retrieval, ECCV 2024, https://arxiv.org/abs/2408.03282",
    "elvis": "The method: ELViS, ICLR 2026, https://arxiv.org/abs/2603.28603",
    "matching": "The method: nearest neighbours among local descriptors, above a threshold; only the bits are learned.",
}


def is_on_hub(name: str | Path) -> bool:
    """True for `hf://OWNER/NAME`."""
    return str(name).startswith(HUB)


def download(address: str) -> Path:
    """The folder of a model on the hub, in the hub's own cache, where it is kept; raises UserError."""
    with requires("huggingface_hub", address):
        import huggingface_hub
    files = [MODEL_FILE, "config.json", CARD, *OF_A_RUN]
    try:
        folder = Path(huggingface_hub.snapshot_download(_repository(address), allow_patterns=files))
    except Exception as error:  # of its HTTP library, too, which differs between its versions
        raise UserError(f"{address}: cannot be downloaded: {_first_line(error)}") from error
    if not (folder / MODEL_FILE).is_file():
        raise UserError(f"{address}: holds no {MODEL_FILE}; a model is put there by convert --to={address}")
    return folder


def upload(model: Model, address: str, facts: Mapping[str, Any], run: Path | None, terms: str | None) -> None:
    """Writes what `write_folder` writes to a repository of the hub, made where there is none; raises UserError."""
    with requires("huggingface_hub", address):
        import huggingface_hub
    repository = _repository(address)
    origin = Path(facts.get("converted_from", "")).name  # where it lies here is nobody's business
    with tempfile.TemporaryDirectory() as folder:
        write_folder(model, Path(folder), {**facts, "converted_from": origin}, run, terms, name=address)
        try:
            hub = huggingface_hub.HfApi()
            hub.create_repo(repository, exist_ok=True)
            hub.upload_folder(repo_id=repository, folder_path=folder, commit_message="Model of ames_jax")
        except Exception as error:
            raise UserError(
                f"{address}: cannot be written: {_first_line(error)} (hf auth login gives access)"
            ) from error


def write_folder(
    model: Model, folder: Path, facts: Mapping[str, Any], run: Path | None, terms: str | None, name: str = ""
) -> None:
    """Writes a model directory with `config.json`, a model card (`README.md`), and what its run has of `OF_A_RUN`.

    Args:
      facts: saved with the model.
      run: folder of its run or an earlier such folder; None where there is none.
      terms: licence of the weights, as the hub spells it.
      name: under which others load it (default: the folder).

    Raises:
      UserError: it cannot be written.
    """
    folder = path_of(folder)
    kept = _kept_of(run) if run else {}
    save_model(model, folder, dict(facts))
    write_json(folder / "config.json", fields_of(model.config))
    for file, content in kept.items():
        write_file(folder / file, content)
    table = kept.get(TABLE, b"").decode()
    write_file(folder / CARD, model_card(model, name or str(folder), facts, table, RECIPE in kept, terms))


def _kept_of(run: Path) -> dict[str, bytes]:
    """Contents of the files of OF_A_RUN that are there, by their names here."""
    settings = RECIPE if (run / MODEL_FILE).is_file() else "config.json"
    places = {RECIPE: run / settings, TABLE: run / TABLE, STATISTICS: run / STATISTICS}
    return {file: place.read_bytes() for file, place in places.items() if place.is_file()}


def model_card(
    model: Model, name: str, facts: Mapping[str, Any], table: str = "", recipe: bool = False, terms: str | None = None
) -> str:
    """The card: what the model is and reads, how it was made, what it reaches, under which terms; nothing that is not known."""
    config, released = model.config, facts.get("released")
    stored = f"{config.bits} bits" if config.bits else f"{config.model_width} values"
    facts = dict(zip(("lam", "gamma"), RELEASED.get(released, ()))) | dict(facts)
    rows = [f"| {title} | {_value(facts[key])} |" for key, title in TITLES.items() if facts.get(key) is not None]
    licence = terms or ("that of its authors" if released else "none was given with the weights")
    return "\n".join(
        [
            *("---", "library_name: ames_jax", *([f"license: {terms}"] if terms else [])),
            *("tags: [image-retrieval, re-ranking]", "---", ""),
            *(f"# {name.removeprefix(HUB)}", ""),
            f"{title_of(config)} re-ranks the shortlist of an image search. This model reads local descriptors of "
            f"{config.descriptor_width} values and stores {stored} per descriptor of a database image.",
            *("", "| | |", "|---|---|", *rows, f"| licence | {licence} |", ""),
            *("```python", "from ames_jax import load_model", "", f'model = load_model("{name}")', "```", ""),
            *([f"Its settings in training: `{RECIPE}`.", ""] if recipe else []),
            *([table.strip(), ""] if table else []),
            METHODS[kind_of(config)],
            "",
        ]
    )


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "\\|").replace("\n", " ")


def _repository(address: str) -> str:
    repository = address.removeprefix(HUB)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise UserError(f"{address}: expected {HUB}OWNER/NAME")
    return repository


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
