"""Micro-batches: what is answered together, alone, or not at all."""

from __future__ import annotations

import threading

import pytest

from ames_jax.serving.batching import Batcher, Busy


class Doubling:
    """Doubles numbers, once it is let to; an odd hundred cannot be doubled."""

    def __init__(self) -> None:
        self.batches, self.go = [], threading.Event()

    def __call__(self, questions: list[int]) -> list[int]:
        assert self.go.wait(10)
        self.batches.append(questions)
        if 100 in questions:
            raise ValueError("a hundred")
        return [2 * question for question in questions]


@pytest.fixture
def work() -> Doubling:
    return Doubling()


def test_what_waits_is_answered_together(work):
    batcher = Batcher(work, places=20, most=4)
    futures = [batcher.ask(number) for number in range(9)]
    work.go.set()
    assert [future.result(10) for future in futures] == [2 * number for number in range(9)]
    assert max(map(len, work.batches)) == 4
    batcher.close()


def test_a_question_that_cannot_be_answered_fails_alone(work):
    batcher = Batcher(work, places=20, most=8)
    futures = [batcher.ask(number) for number in (1, 2, 100, 3)]
    work.go.set()
    assert [futures[i].result(10) for i in (0, 1, 3)] == [2, 4, 6]
    with pytest.raises(ValueError, match="a hundred"):
        futures[2].result(10)
    batcher.close()


def test_who_has_gone_is_not_answered(work):
    batcher = Batcher(work, places=20, most=1)
    first, second, third = (batcher.ask(number) for number in (1, 2, 3))
    second.cancel()
    work.go.set()
    assert (first.result(10), third.result(10)) == (2, 6)
    assert work.batches == [[1], [3]]
    batcher.close()


def test_places_are_few(work):
    batcher = Batcher(work, places=2, most=1)
    with batcher.place(), batcher.place():
        assert batcher.taken == 2
        with pytest.raises(Busy, match="try again in 1 s") as busy, batcher.place():
            pass
        assert busy.value.retry_after == 1
    with batcher.place():
        assert batcher.taken == 1
    batcher.close()


def test_closing_answers_what_waits(work):
    batcher = Batcher(work, places=20, most=2)
    futures = [batcher.ask(number) for number in range(5)]
    work.go.set()
    batcher.close()
    assert [future.result(0) for future in futures] == [0, 2, 4, 6, 8]
