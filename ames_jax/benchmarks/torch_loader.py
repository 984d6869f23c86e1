"""The opponent of `throughput`: a PyTorch DataLoader that reads HDF5 as the release does. Run as a script, in its own Python.

An item is a batch: whole rows of 300 images, read one after the other; 4 workers make items. Prints JSON.
"""

from __future__ import annotations

import json
import sys
import time

import h5py
import numpy as np
import torch

WORKERS = 4


class Rows(torch.utils.data.Dataset):
    """Items of `per_item` random images each, as tensors [per_item, K, 5 + D]."""

    def __init__(self, path: str, images: int, per_item: int, items: int) -> None:
        self.path, self.file = path, None
        self.rows = np.random.default_rng(0).integers(0, images, (items, per_item))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: int) -> torch.Tensor:
        if self.file is None:
            self.file = h5py.File(self.path, "r")["features"]
        return torch.from_numpy(np.stack([self.file[row] for row in self.rows[item]]))


def main() -> None:
    """Times items without and with a step of `step_seconds` after each."""
    path, images, per_item, items, step_seconds = sys.argv[1], *map(int, sys.argv[2:5]), float(sys.argv[5])
    dataset = Rows(path, images, per_item, 2 * items + 1)
    stream = iter(torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=WORKERS))
    next(stream)
    start = time.perf_counter()
    for _ in range(items):
        next(stream)
    rate = items * per_item / (time.perf_counter() - start)
    waited, start = 0.0, time.perf_counter()
    for _ in range(items):
        asked = time.perf_counter()
        next(stream)
        waited += time.perf_counter() - asked
        time.sleep(step_seconds)
    print(json.dumps({"images_per_second": rate, "waiting": waited / (time.perf_counter() - start)}))


if __name__ == "__main__":
    main()
