"""Jobs of the PyTorch side, in a process of its own: `PYTHON torch_jobs.py JOB.npz RESULT.npz`. Needs torch and NumPy.

JOB.npz holds `settings` (JSON text) and arrays; `param/NAME` are weights under the release's names.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import torch
from memory import peak_bytes, reset_peak
from torch_release import ReleaseAMES

BATCHES = (2, 8, 32)  # pairs at a time among which the fastest is looked for


def main() -> None:
    """Reads a job, does it, writes the result."""
    with np.load(sys.argv[1]) as file:
        arrays = dict(file)
    settings = json.loads(str(arrays.pop("settings")))
    device = "cuda" if settings["gpu"] and torch.cuda.is_available() else "cpu"
    result = JOBS[settings["job"]](settings, arrays, device)
    np.savez(sys.argv[2], version=torch.__version__, **{"peak_bytes": memory_peak(device), **result})


def memory_peak(device: str) -> int:
    """Bytes at most in use, of the GPU or else of this process, since it started or `reset_peak`."""
    return torch.cuda.max_memory_allocated() if device == "cuda" else peak_bytes()


def load(config: dict, arrays: dict, prefix: str, device: str) -> ReleaseAMES:
    """The model whose weights stand under `prefix`; raises where one is missing or left over."""
    model = ReleaseAMES(config)
    names = [name for name in arrays if name.startswith(prefix)]
    model.load_state_dict({name.removeprefix(prefix): torch.from_numpy(arrays[name]) for name in names})
    return model.to(device)


def precision(settings: dict, device: str) -> AbstractContextManager:
    """bfloat16 by autocast, or nothing."""
    return torch.autocast(device, torch.bfloat16) if settings["dtype"] == "bfloat16" else nullcontext()


def wait(device: str) -> float:
    """The clock, once the device is idle."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def score(settings: dict, arrays: dict, device: str) -> dict:
    """Logits of query [Q, D] with database [K, T, D]; the median seconds of scoring all, `batch` at a time and at best."""
    plain = load(settings["config"], arrays, "param/", device).eval()
    model = torch.compile(plain) if settings["compile"] else plain
    query = torch.from_numpy(arrays["query"]).to(device)
    database = torch.from_numpy(arrays["database"]).to(device)

    def part(images: torch.Tensor) -> torch.Tensor:
        return model(query.expand(len(images), -1, -1), images)[0].float()

    def once(batch: int, count: int) -> tuple[float, torch.Tensor]:
        start = wait(device)
        logits = torch.cat([part(database[i : min(i + batch, count)]) for i in range(0, count, batch)])
        return wait(device) - start, logits

    def median(batch: int) -> float:
        return statistics.median(once(batch, len(database))[0] for _ in range(settings["repeats"]))

    with torch.inference_mode(), precision(settings, device):
        batch = min(settings["batch"], len(database))
        logits = once(batch, len(database))[1]
        reset_peak()
        seconds, peak = median(batch), memory_peak(device)
        tried = {}
        for size in BATCHES:
            if size < len(database):
                part(database[:size])  # the first of a shape may compile or choose kernels
                tried[size] = once(size, size)[0] / size
        fastest = min(tried, key=tried.get, default=batch)
        best = min(seconds, median(fastest))
    return {
        "logits": logits.cpu().numpy(), "seconds": seconds, "best_seconds": best, "batch": batch, "peak_bytes": peak,
    }  # fmt: skip


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

    first = step()
    reset_peak()
    timed = []
    for _ in range(settings["repeats"]):
        start = wait(device)
        step()
        timed.append(wait(device) - start)
    return {"loss": first[0], "gradient_norm": first[1], "seconds": statistics.median(timed)}


bce = torch.nn.functional.binary_cross_entropy_with_logits
mse = torch.nn.functional.mse_loss
JOBS = {"score": score, "train": train}

if __name__ == "__main__":
    if not Path(sys.argv[1]).is_file():
        sys.exit(f"{sys.argv[1]}: no such job")
    main()
