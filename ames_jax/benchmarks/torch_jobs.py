"""Jobs of the PyTorch side, in a process of its own: `PYTHON torch_jobs.py JOB.npz RESULT.npz`. Needs torch and NumPy;
`evaluate` and `data` also h5py.

JOB.npz holds `settings` (JSON text) and arrays; `param/NAME` are weights under the authors' names. A result holds what is
compared, `seconds`, and `units`, the number of things that took so long.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from measuring import peak_bytes, read_times, reset_peak
from torch_models import LogDomainELViS, ReleaseAMES, vision_transformer

METADATA = 5  # columns before a descriptor in the release's files
BATCHES = (2, 8, 32)  # pairs at a time among which the fastest is looked for
WORKERS = 4  # of the loader
bce = torch.nn.functional.binary_cross_entropy_with_logits
mse = torch.nn.functional.mse_loss


def main() -> None:
    """Reads a job, does it, writes the result."""
    with np.load(sys.argv[1]) as file:
        arrays = dict(file)
    settings = json.loads(str(arrays.pop("settings")))
    device = "cuda" if settings["gpu"] and torch.cuda.is_available() else "cpu"
    jobs = {"score": score, "train": train, "evaluate": evaluate, "extract": extract, "data": data}
    result = jobs[settings["job"]](settings, arrays, device)
    np.savez(sys.argv[2], version=torch.__version__, **{"peak_bytes": memory_peak(device), **result})


def score(settings: dict, arrays: dict, device: str) -> dict:
    """Logits of query [Q, D] with database [K, T, D]; the median seconds of scoring all, `batch` at a time and at best."""
    model = load(settings["config"], arrays, "param/", device).eval()
    model = torch.compile(model) if settings["compile"] else model
    query = torch.from_numpy(arrays["query"]).to(device)
    database = torch.from_numpy(arrays["database"]).to(device)

    def once(batch: int, count: int = len(database)) -> torch.Tensor:
        parts = [database[i : min(i + batch, count)] for i in range(0, count, batch)]
        return torch.cat([model(query.expand(len(part), -1, -1), part)[0].float() for part in parts])

    with torch.inference_mode(), precision(settings, device):
        batch = min(settings["batch"], len(database))
        logits = once(batch)
        reset_peak()
        seconds, peak = median(lambda: once(batch), settings["repeats"], device), memory_peak(device)
        tried = {}
        for size in BATCHES:
            if size < len(database):
                once(size, size)  # the first of a shape may compile or choose kernels
                tried[size] = median(lambda size=size: once(size, size), 1, device) / size
        fastest = min(tried, key=tried.get, default=batch)
        best = min(seconds, median(lambda: once(fastest), settings["repeats"], device))
    times = {"seconds": seconds, "best_seconds": best, "units": len(database)}
    return {"logits": logits.cpu().numpy(), "peak_bytes": peak, **times}


def train(settings: dict, arrays: dict, device: str) -> dict:
    """Loss and gradient norm of the first step, and the median seconds of the later ones; AdamW with the cosine."""
    student = load(settings["config"], arrays, "param/", device).train()
    teacher = load(settings["teacher"], arrays, "teacher/", device).eval() if settings["teacher"] else None
    optimizer = torch.optim.AdamW(student.parameters(), lr=2e-4, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings["total_steps"])
    images = {role: torch.from_numpy(arrays[role]).to(device) for role in ("anchor", "positive", "negative")}
    query = images["anchor"].repeat_interleave(2, 0)
    database = torch.stack([images["positive"], images["negative"]], 1).flatten(0, 1)
    labels = torch.tensor([1.0, 0.0], device=device).repeat(len(images["anchor"]))
    q, t = settings["lengths"]

    def step() -> tuple[float, float]:
        with precision(settings, device):
            logits, tokens = student(query[:, :q], database[:, :t])
            loss = bce(logits.float(), labels)
            if teacher is not None:
                with torch.no_grad():
                    target = teacher(query, database)[1]
                full = query.shape[1]
                target = torch.cat([target[:, : 1 + q], target[:, 1 + full : 1 + full + t]], 1)
                loss = loss + 10.0 * mse(tokens.float(), target.float())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.sqrt(sum((p.grad**2).sum() for p in student.parameters()))
        optimizer.step()
        schedule.step()
        return loss.item(), norm.item()

    loss, norm = step()
    reset_peak()
    seconds = median(step, settings["repeats"], device)
    return {"loss": loss, "gradient_norm": norm, "seconds": seconds, "units": len(images["anchor"])}


def evaluate(settings: dict, arrays: dict, device: str) -> dict:
    """The release's way: the shortlists int [Nq, k] of Medium and of Hard apart; their logits [Nq, k].

    For each rank of the shortlists the whole HDF5 rows of all queries' images at that rank are read, cut to T descriptors
    and scored as one batch.
    """
    import h5py

    model = load(settings["config"], arrays, "param/", device).eval()
    q, t = settings["lengths"]
    found = {}

    def tensor(file: h5py.File, images: np.ndarray, count: int) -> torch.Tensor:
        rows = np.stack([file["features"][i] for i in images])
        return torch.from_numpy(rows[:, :count, METADATA:].astype(np.float32)).to(device)

    start = wait(device)
    with torch.inference_mode(), precision(settings, device):
        for protocol in ("medium", "hard"):
            images = arrays[protocol]
            with h5py.File(settings["query"]) as queries, h5py.File(settings["gallery"]) as gallery:
                query = tensor(queries, np.arange(len(images)), q)
                columns = [model(query, tensor(gallery, column, t))[0].float().cpu().numpy() for column in images.T]
            found[f"{protocol}_logits"] = np.stack(columns, axis=1)
    return {**found, "seconds": wait(device) - start, "units": len(images) / settings["of"]}


def extract(settings: dict, arrays: dict, device: str) -> dict:
    """Tokens [1, N, d] of the first of images [B, 3, H, W], and the median seconds of the forward pass over all."""
    weights = {name.removeprefix("param/"): torch.from_numpy(array).to(device) for name, array in arrays.items()}
    images = weights.pop("images")
    network = torch.compile(vision_transformer) if settings["compile"] else vision_transformer
    with torch.inference_mode(), precision(settings, device):
        tokens = network(weights, settings["config"], images)[:1].float().cpu().numpy()
        seconds = median(lambda: network(weights, settings["config"], images), settings["repeats"], device)
    return {"tokens": tokens, "seconds": seconds, "units": len(images)}


class Rows(torch.utils.data.Dataset):
    """Items of images (int [items, n]) as the release reads them: whole rows, one after the other, [n, K, 5 + D]."""

    def __init__(self, path: str, images: np.ndarray) -> None:
        self.path, self.file, self.images = path, None, images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: int) -> torch.Tensor:
        if self.file is None:
            import h5py

            self.file = h5py.File(self.path, "r")["features"]
        return torch.from_numpy(np.stack([self.file[row] for row in self.images[item]]))


def data(settings: dict, arrays: dict, device: str) -> dict:
    """Seconds of items read by a DataLoader, and the share of waiting where a step of `step_seconds` follows each."""
    items = settings["items"]
    rows = np.random.default_rng(0).integers(0, settings["images"], (2 * items + 1, settings["per_item"]))
    loader = torch.utils.data.DataLoader(Rows(settings["path"], rows), batch_size=None, num_workers=WORKERS)
    seconds, waiting = read_times(iter(loader), items, settings["step_seconds"])
    return {"seconds": seconds, "units": items * settings["per_item"], "waiting": waiting}


def memory_peak(device: str) -> int:
    """Bytes at most in use, of the GPU or else of this process, since it started or `reset_peak`."""
    return torch.cuda.max_memory_allocated() if device == "cuda" else peak_bytes()


def load(config: dict, arrays: dict, prefix: str, device: str) -> torch.nn.Module:
    """A model with the weights that stand under `prefix`; raises where one is missing or left over."""
    model = LogDomainELViS(config) if config.get("kind") == "elvis" else ReleaseAMES(config)
    names = [name for name in arrays if name.startswith(prefix)]
    model.load_state_dict({name.removeprefix(prefix): torch.from_numpy(arrays[name]) for name in names})
    return model.to(device)


def precision(settings: dict, device: str) -> AbstractContextManager:
    """bfloat16 by autocast, or nothing."""
    return torch.autocast(device, torch.bfloat16) if settings["dtype"] == "bfloat16" else nullcontext()


def median(work: Callable, repeats: int, device: str) -> float:
    """Median seconds of `work()`."""
    timed = []
    for _ in range(repeats):
        start = wait(device)
        work()
        timed.append(wait(device) - start)
    return statistics.median(timed)


def wait(device: str) -> float:
    """The clock, once the device is idle."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
