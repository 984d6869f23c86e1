"""The release's way of evaluating, in plain PyTorch: `PYTHON torch_evaluation.py JOB.npz RESULT.npz`. Needs torch and h5py.

Medium and Hard are scored apart. For each rank of the shortlists the whole HDF5 rows of all queries' images at that rank
are read, cut to T descriptors and scored as one batch by the dense, masked model.
"""

from __future__ import annotations

import json
import sys
import time

import h5py
import numpy as np
import torch
from torch_jobs import load, precision, wait

METADATA = 5  # columns before the descriptor; the fourth is the mask
JUNK = {"medium": ("junk",), "hard": ("junk", "easy")}


def main() -> None:
    """Reads a job, evaluates, writes the logits of each protocol and the seconds."""
    with np.load(sys.argv[1]) as file:
        arrays = dict(file)
    settings = json.loads(str(arrays.pop("settings")))
    device = "cuda" if settings["gpu"] and torch.cuda.is_available() else "cpu"
    model = load(settings["config"], arrays, "param/", device).eval()
    start = time.perf_counter()
    with torch.inference_mode(), precision(settings, device):
        scores = {name: protocol(name, settings, arrays["ranks"], model, device) for name in JUNK}
    seconds = wait(device) - start
    parts = {
        f"{name}_{part}": array for name, pair in scores.items() for part, array in zip(("images", "logits"), pair)
    }
    np.savez(sys.argv[2], seconds=seconds, **parts)


def protocol(
    name: str, settings: dict, ranks: np.ndarray, model: torch.nn.Module, device: str
) -> tuple[np.ndarray, np.ndarray]:
    """Shortlists int [Nq, k] with the protocol's junk moved behind, and their logits float32 [Nq, k]."""
    with open(settings["ground_truth"]) as file:
        truth = json.load(file)
    lists = []
    for row, entry in zip(ranks, truth):
        junk = np.isin(row, np.concatenate([entry[kind] for kind in JUNK[name]]))
        lists.append(np.concatenate([row[~junk], row[junk]])[: settings["rerank"]])
    images = np.stack(lists)
    q, t = settings["lengths"]
    columns = []
    with h5py.File(settings["query"]) as query_file, h5py.File(settings["gallery"]) as gallery_file:
        query = tensor(np.stack([query_file["features"][i] for i in range(len(images))]), q, device)
        for rank in range(images.shape[1]):
            rows = np.stack([gallery_file["features"][i] for i in images[:, rank]])
            columns.append(model(query, tensor(rows, t, device))[0].float().cpu().numpy())
    return images, np.stack(columns, axis=1)


def tensor(rows: np.ndarray, count: int, device: str) -> torch.Tensor:
    """The first `count` descriptors float32 [B, count, D] of whole rows [B, K, 5 + D]."""
    return torch.from_numpy(rows[:, :count, METADATA:].astype(np.float32)).to(device)


if __name__ == "__main__":
    main()
