"""Plans from coarse to fine: their syntax, and the order that their stages make."""

from __future__ import annotations

import numpy as np
import pytest

from ames_jax.retrieval.grid import Counts
from ames_jax.retrieval.plans import Plan
from ames_jax.runtime.errors import UserError


def test_both_directions_are_the_same_plan():
    coarse_first = Plan.parse("kernel@200,100x50@40,600x50", 400)
    assert coarse_first == Plan.parse("600x50@40, 100x50@200, kernel", 400)
    assert coarse_first.stages == (None, Counts(100, 50), Counts(600, 50))
    assert coarse_first.heads == (200, 40)
    assert coarse_first.most == Counts(600, 50)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("600x50", "expected stages"),
        ("kernel@40", "expected stages"),
        ("kernel@few,600x50", "expected stages"),
        ("100@40,600x50", "expected stages"),
        ("0x50@40,600x50", "expected stages"),
        ("100x50@40,600x50@3", "all but the last"),
        ("100x50@400,600x50", "does not shrink"),
        ("100x50@0,600x50", "does not shrink"),
        ("600x50@40,600x50", "does not shrink"),
        ("kernel@40,100x50@80,600x50", "does not shrink"),
        ("100x50@40,kernel@30,600x50", "does not shrink"),
        ("kernel@40,kernel", "does not shrink"),
    ],
)
def test_what_is_no_plan_is_one_line(text, message):
    with pytest.raises(UserError, match=message) as caught:
        Plan.parse(text, 400)
    assert "\n" not in str(caught.value)


def test_each_stage_ranks_the_head_of_the_one_before(rng):
    plan = Plan.parse("1x1@4,2x2@2,3x3", 6)
    values = {Counts(n, n): rng.standard_normal((2, 6)) for n in (1, 2)}
    columns, rest = plan.head(lambda stage, columns: np.take_along_axis(values[stage], columns, 1), 2, 6)
    for query in range(2):
        first = np.argsort(-values[1, 1][query])
        second = sorted(first[:4], key=lambda column: -values[2, 2][query][column])
        assert columns[query].tolist() == sorted(second[:2])
        assert rest[query].tolist() == [*second[2:], *first[4:]]
