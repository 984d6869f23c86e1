"""Questions of many askers, answered together: a bounded queue and one thread that takes what waits."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Generic, TypeVar

Question, Answer = TypeVar("Question"), TypeVar("Answer")

# A batch as large as the last one is worth so long a wait: askers that were answered together come back together.
LINGER_SECONDS = 0.02
# Of the mean time of a question, the weight of the last batch.
RECENT = 0.2


class Busy(Exception):
    """No more can be done at a time; `retry_after`: in how many seconds it is worth asking again."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"the server is busy; try again in {retry_after} s")
        self.retry_after = retry_after


class Batcher(Generic[Question, Answer]):
    """Answers questions in micro-batches.

    Args:
      work: the answers of a batch, in its order. Where it raises, every question of the batch is asked alone, so that
        one that cannot be answered does not fail the others.
      places: questions that may be under way, from reading to answering.
      most: questions in one batch.
    """

    def __init__(self, work: Callable[[list[Question]], Sequence[Answer]], places: int, most: int) -> None:
        self._work, self._places, self._most = work, places, most
        self._waiting: queue.SimpleQueue[tuple[Question, Future[Answer]] | None] = queue.SimpleQueue()
        self._lock, self._taken = threading.Lock(), 0
        self._expected, self._seconds = 1, 0.1
        self._thread = threading.Thread(target=self._run, name="batches", daemon=True)
        self._thread.start()

    @property
    def taken(self) -> int:
        """Questions under way."""
        return self._taken

    @contextmanager
    def place(self) -> Iterator[None]:
        """Holds a place among the questions under way; raises Busy where none is left."""
        with self._lock:
            if self._taken >= self._places:
                raise Busy(max(1, math.ceil(self._taken * self._seconds)))
            self._taken += 1
        try:
            yield
        finally:
            with self._lock:
                self._taken -= 1

    def ask(self, question: Question) -> Future[Answer]:
        """Hands in a question, for which a `place` is held. A future that is cancelled while it waits costs nothing."""
        future: Future[Answer] = Future()
        self._waiting.put((question, future))
        return future

    def close(self) -> None:
        """Answers what waits and ends."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (first := self._waiting.get()) is not None:
            batch, closing = self._gather(first)
            batch = [(question, future) for question, future in batch if future.set_running_or_notify_cancel()]
            if batch:
                start = time.monotonic()
                self._answer(batch)
                self._seconds += RECENT * ((time.monotonic() - start) / len(batch) - self._seconds)
            if closing:
                return

    def _gather(self, first: tuple[Question, Future[Answer]]) -> tuple[list[tuple[Question, Future[Answer]]], bool]:
        """The questions that wait, or come within a moment; and True if the request to end was among them."""
        batch, deadline = [first], time.monotonic() + LINGER_SECONDS
        while len(batch) < self._most:
            left = deadline - time.monotonic() if len(batch) < self._expected else 0.0
            try:
                following = self._waiting.get(timeout=left) if left > 0 else self._waiting.get_nowait()
            except queue.Empty:
                break
            if following is None:
                return batch, True
            batch.append(following)
        self._expected = len(batch)
        return batch, False

    def _answer(self, batch: list[tuple[Question, Future[Answer]]]) -> None:
        try:
            answers = self._work([question for question, _ in batch])
        except Exception as error:
            if len(batch) == 1:
                batch[0][1].set_exception(error)
                return
            for one in batch:
                self._answer([one])
            return
        for (_, future), answer in zip(batch, answers, strict=True):
            future.set_result(answer)
