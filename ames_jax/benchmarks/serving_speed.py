"""`python -m ames_jax.benchmark serve`: `search serve` under load on this machine, compared with the offline search.

Clients ask over HTTP as fast as they are answered; then some do while images are added and removed; at the end the server is
told to stop while it is at work.
"""

from __future__ import annotations

import dataclasses
import http.client
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ames_jax.benchmarks.extraction_speed import dead_leaves
from ames_jax.benchmarks.flags import ServeFlags
from ames_jax.benchmarks.search_speed import Load, make_up_index
from ames_jax.index.searcher import Searcher, SearchResult
from ames_jax.report.tables import markdown
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import write_json
from ames_jax.runtime.progress import Progress

PICTURES, TOP, CHANGING_CLIENTS = 32, 10, 4
ADDED = "added-"
SEARCH = f"/search?top={2 * TOP}"
# Scores of one query may differ in the last digits with the number of images that are scored beside it.
TOLERANCE = 1e-4
BOUNDARY = "a-line-that-no-picture-holds"
HEADINGS = {
    "clients": "clients",
    "rate": "answers/s",
    "share": "of the offline rate",
    "p50": "p50 ms",
    "p95": "p95 ms",
    "p99": "p99 ms",
    "answered": "answered",
    "busy": "503",
    "errors": "errors",
    "wrong": "wrong",
    "memory_mb": "memory MB after",
}


@dataclasses.dataclass
class Tally:
    """The outcomes of requests: seconds of each answer, and the numbers of those refused (503), failed, or answered wrongly."""

    seconds: list[float] = dataclasses.field(default_factory=list)
    busy: int = 0
    errors: int = 0
    wrong: int = 0


class Client:
    """One connection to the server, opened again where it was closed."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Status and body of an answer; raises OSError or HTTPException where there is none."""
        headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"} if body else {}
        try:
            self._connection.request(method, path, body, headers)
            response = self._connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException):
            self._connection.close()
            raise

    def close(self) -> None:
        """Ends the connection."""
        self._connection.close()


@dataclasses.dataclass(frozen=True)
class ClientLoad:
    """The load that clients put on a server, and the answers that are right.

    Attributes:
      port: of the server. seconds: how long they do. pictures: requests with one picture each.
      expected: what the offline search finds for each, in all its shortlist; shortlist: images re-ranked.
    """

    port: int
    seconds: float
    pictures: Sequence[bytes]
    expected: Sequence[SearchResult]
    shortlist: int

    def load(self, clients: int, *more: Callable[[float], Tally]) -> dict[str, Any]:
        """The row of so many clients, and of what `more` do beside them until the given time."""
        ends, start = time.monotonic() + self.seconds, time.perf_counter()
        work = [*(partial(self._ask, first) for first in range(clients)), *more]
        with ThreadPoolExecutor(len(work)) as pool:
            tallies = [future.result() for future in [pool.submit(one, ends) for one in work]]
        return {**_row(tallies, time.perf_counter() - start), "memory_mb": _memory(self.port)}

    def _ask(self, first: int, ends: float) -> Tally:
        tally, number = Tally(), 5 * first
        with closing(Client(self.port)) as client:
            while time.monotonic() < ends:
                number = (number + 1) % len(self.pictures)
                start = time.perf_counter()
                try:
                    status, body = client.ask("POST", SEARCH, self.pictures[number])
                except (OSError, http.client.HTTPException):
                    tally.errors += 1
                    continue
                if status == 200:
                    tally.seconds.append(time.perf_counter() - start)
                    tally.wrong += not self._is_right(json.loads(body), number)
                else:
                    tally.busy += status == 503
                    tally.errors += status != 503
                    time.sleep(0.1)
        return tally

    def _is_right(self, answer: Mapping[str, Any], number: int) -> bool:
        """True if an answer lists what the offline search found. An image that was added meanwhile may stand between, and
        take the place of the last one of the shortlist."""
        found = [hit["score"] for hit in answer["hits"] if not hit["id"].startswith(ADDED)]
        count = min(TOP, self.shortlist - 1, len(found))

        def is_that_of(shortlist: int) -> bool:
            expected = [hit.score for hit in self.expected[number].hits if hit.old_place <= shortlist]
            # Equal scores may change places, so scores are compared, not ids.
            return count > 0 and all(
                abs(a - b) < TOLERANCE for a, b in zip(found[:count], expected[:count], strict=True)
            )

        return is_that_of(self.shortlist) or is_that_of(self.shortlist - 1)

    def under_way_at_the_end(self, process: subprocess.Popen) -> dict[str, Any]:
        """Tells the server to stop while it is at work: how many requests it still answered, and its exit code."""

        def ask(number: int) -> bool:
            with closing(Client(self.port)) as client:
                status, body = client.ask("POST", SEARCH, self.pictures[number])
            return status == 200 and self._is_right(json.loads(body), number)

        with ThreadPoolExecutor(CHANGING_CLIENTS) as pool:
            answers = [pool.submit(ask, number) for number in range(CHANGING_CLIENTS)]
            while _figure(self.port, "ames_searches_under_way") < CHANGING_CLIENTS and not answers[0].done():
                time.sleep(0.005)
            process.send_signal(signal.SIGTERM)
            answered = sum(answer.result() for answer in answers)
        return {"answered_after_stop": answered, "exit_code": process.wait(60)}


def measure(flags: ServeFlags) -> dict[str, Any]:
    """Measures all loads, prints their table and returns the figures."""
    with tempfile.TemporaryDirectory(prefix="ames_jax_serve_") as name:
        root = Path(name)
        load = Load(flags.images, flags.budget, "flat", flags.shortlist, flags.query_descriptors)
        index = make_up_index(root, load, flags.index)
        files = _draw_pictures(root, range(PICTURES))
        with Progress("the offline search"):
            expected, offline = _search_offline(index, files, flags)
        with _served(index, flags) as (process, port):
            bodies = [_form(file.read_bytes()) for file in files]
            asking = ClientLoad(port, flags.seconds, bodies, expected, min(flags.shortlist, flags.images))
            rows, start = [], _memory(port)
            for clients in flags.clients:
                with Progress(f"clients: {clients}"):
                    rows.append({"clients": str(clients), **asking.load(clients)})
            with Progress("adding and removing"):
                changes = Changes(port, _draw_pictures(root, range(PICTURES, PICTURES + 8)))
                rows.append({"clients": f"{CHANGING_CLIENTS}, changes", **asking.load(CHANGING_CLIENTS, changes.make)})
            end = asking.under_way_at_the_end(process)
    rows = [{**row, "share": row["rate"] / offline} for row in rows]
    facts = {**dataclasses.asdict(flags), "offline_rate": offline, "memory_mb_at_start": start, **end, "rows": rows}
    facts |= {"added": changes.made, "json": None, "index": flags.index and str(flags.index)}
    print(
        f"{flags.images:,} images, first {flags.shortlist} re-ranked, {PICTURES} pictures of 640 × 480. Offline, in one batch: "
        f"{offline:.2f} queries/s. Memory at the start: {start:.0f} MB. In the last load {changes.made} images were added, "
        f"found and removed again. After SIGTERM {end['answered_after_stop']} requests under way were answered, exit code "
        f"{end['exit_code']}.\n\n{markdown(rows, HEADINGS)}"
    )
    if flags.json is not None:
        write_json(flags.json, facts)
    return facts


def _draw_pictures(folder: Path, seeds: Sequence[int]) -> list[Path]:
    files = [folder / f"{seed}.jpg" for seed in seeds]
    for seed, file in zip(seeds, files):
        cv2.imwrite(str(file), dead_leaves(seed))
    return files


def _search_offline(index: Path, files: Sequence[Path], flags: ServeFlags) -> tuple[list[SearchResult], float]:
    """The results of the search without a server for each picture, and its queries per second in one batch."""
    searcher = Searcher(index, shortlist=flags.shortlist, query_descriptors=flags.query_descriptors)
    results, rounds, start = searcher.search_many(files, flags.shortlist), 0, time.perf_counter()
    while rounds == 0 or time.perf_counter() - start < flags.seconds / 2:
        searcher.search_many(files, TOP)
        rounds += 1
    return results, rounds * len(files) / (time.perf_counter() - start)


@contextmanager
def _served(index: Path, flags: ServeFlags) -> Iterator[tuple[subprocess.Popen, int]]:
    settings = {"index": index, "port": 0, "shortlist": flags.shortlist, "queue": flags.queue}
    if flags.query_descriptors:
        settings["query-descriptors"] = flags.query_descriptors
    command = [
        sys.executable,
        "-m",
        "ames_jax.search",
        "serve",
        *(f"--{key}={value}" for key, value in settings.items()),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            address = re.search(r"http://127\.0\.0\.1:(\d+)", process.stdout.readline())
            if address is None:
                raise UserError(f"the server did not start: {' '.join(command)} says why")
            yield process, int(address[1])
        finally:
            process.kill()


class Changes:
    """Adds an image, searches for it, removes it, searches again, and so on."""

    def __init__(self, port: int, files: Sequence[Path]) -> None:
        self._client, self._files, self.made = Client(port), files, 0

    def make(self, ends: float) -> Tally:
        """Changes the index until then."""
        tally = Tally()
        while time.monotonic() < ends:
            name, picture = f"{ADDED}{self.made}", self._files[self.made % len(self._files)].read_bytes()
            tally.errors += self._client.ask("POST", "/images", _form(picture, name))[0] != 201
            tally.wrong += self._found(picture)["query_id"] != name
            tally.errors += self._client.ask("DELETE", f"/images/{name}")[0] != 200
            after = self._found(picture)
            tally.wrong += name in (after["query_id"], *(hit["id"] for hit in after["hits"]))
            self.made += 1
        self._client.close()
        return tally

    def _found(self, picture: bytes) -> dict[str, Any]:
        while True:
            status, body = self._client.ask("POST", SEARCH, _form(picture))
            if status == 200:
                return json.loads(body)
            if status != 503:
                raise UserError(f"the server answered a search with {status}: {body[:200].decode()}")
            time.sleep(0.1)


def _row(tallies: Sequence[Tally], taken: float) -> dict[str, Any]:
    seconds = np.array([value for tally in tallies for value in tally.seconds] or [np.nan])
    row = {f"p{share}": 1e3 * float(np.percentile(seconds, share)) for share in (50, 95, 99)}
    counts = {name: sum(getattr(tally, name) for tally in tallies) for name in ("busy", "errors", "wrong")}
    answered = sum(len(tally.seconds) for tally in tallies)
    return {"rate": answered / taken, "answered": answered, **row, **counts}


def _memory(port: int) -> float:
    return _figure(port, "process_resident_memory_bytes") / 1e6


def _figure(port: int, name: str) -> float:
    with closing(Client(port)) as client:
        text = client.ask("GET", "/metrics")[1].decode()
    found = re.search(
        rf"^{name} (\S+)$", text, re.MULTILINE
    )  # of a system without /proc there are no figures of processes
    return float(found[1]) if found else float("nan")


def _form(picture: bytes, name: str | None = None) -> bytes:
    parts = [] if name is None else [('name="id"', name.encode())]
    parts.append(('name="image"; filename="f.jpg"', picture))
    heads = [f"--{BOUNDARY}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + body for head, body in parts]
    return b"\r\n".join([*heads, f"--{BOUNDARY}--\r\n".encode()])
