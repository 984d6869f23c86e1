"""First stages refined by global descriptors alone: SuperGlobal against its authors' code, query expansion, augmentation."""

from __future__ import annotations

import numpy as np
import pytest
import synthetic
from conftest import GOLDEN

from ames_jax.commands.prepare import neighbours
from ames_jax.data.neighbours import open_neighbours
from ames_jax.retrieval.refinement import (
    Lists,
    augment_database,
    expand_queries,
    refine,
    refined_set,
    superglobal,
    superglobal_lists,
)
from ames_jax.retrieval.sets import RetrievalSet
from ames_jax.runtime.errors import UserError


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "superglobal_rerank.npz") as file:
        return dict(file)


@pytest.mark.parametrize(("setting", "options"), [("M60_K9_b0.15", (60, 9, 0.15)), ("M100_K5_b0.3", (100, 5, 0.3))])
def test_superglobal_gives_the_rankings_of_its_authors(golden: dict, setting: str, options: tuple) -> None:
    first = golden[f"{setting}/first"]
    ranks = superglobal(golden["query"], golden["database"], first, *options)
    np.testing.assert_array_equal(ranks, golden[f"{setting}/ranks"])
    head, similarities = superglobal_lists(golden["query"], golden["database"], first, *options)
    np.testing.assert_array_equal(head, ranks[:, : options[0]])
    assert (np.diff(similarities, axis=1) <= 0).all()


def test_query_expansion_and_augmentation_are_their_formulas(golden: dict) -> None:
    query, database = golden["query"], golden["database"]
    ranks = np.argsort(-query @ database.T, axis=1, kind="stable")
    found = expand_queries(query, database, ranks, neighbours=3, alpha=2)
    cosines = query[0] @ database[ranks[0, :3]].T
    expected = query[0] + np.maximum(cosines, 0) ** 2 @ database[ranks[0, :3]]
    np.testing.assert_allclose(found[0], expected / np.linalg.norm(expected), atol=1e-6)
    own = np.argsort(-database @ database.T, axis=1, kind="stable")
    found = augment_database(database, own, neighbours=3, alpha=2, block=7)
    np.testing.assert_allclose(found[5:6], expand_queries(database[5:6], database, own[5:6, 1:4], 3, 2), atol=1e-6)


def test_several_refinements_one_after_another(golden: dict) -> None:
    first = Lists.search(golden["query"], golden["database"], 50)
    found = refine(first, "augment+expand+superglobal")
    assert found.ranks.shape == first.ranks.shape
    assert (np.diff(found.similarities, axis=1) <= 1e-6).all()
    assert (found.ranks != first.ranks).any()
    with pytest.raises(UserError, match=r"refine=expnd: expected .*did you mean expand"):
        refine(first, "expnd")


def test_vectors_and_lists_that_do_not_belong_together(golden: dict) -> None:
    ranks = np.zeros((9, 5), int)
    with pytest.raises(UserError, match="differ in width"):
        superglobal(golden["query"][:, :5], golden["database"], ranks)
    with pytest.raises(UserError, match="one list per query"):
        superglobal(golden["query"], golden["database"], ranks[:3])
    with pytest.raises(UserError, match="name database row 300, but there are 300"):
        superglobal(golden["query"], golden["database"], ranks + 300)


def test_a_prepared_set_and_the_command_give_the_same_lists(tmp_path) -> None:
    root = synthetic.write(tmp_path / "set")
    data = RetrievalSet.load(root, "validation")
    if data.global_files is None:
        rng = np.random.default_rng(0)
        (root / "global").mkdir(exist_ok=True)
        for side, count in (("query", len(data.queries)), ("gallery", len(data.database))):
            np.save(root / "global" / f"validation_{side}.npy", rng.standard_normal((count, 8)).astype(np.float32))
        with pytest.raises(UserError, match="has no global descriptors"):
            refined_set(data, "expand")
        data = RetrievalSet.load(root, "validation")
    refined = refined_set(data, "expand")
    assert refined.first_stage.endswith(" + expand")
    assert refined.judged.length == refined.ranks.shape[1]
    files = [path for side in data.global_files for path in side]
    neighbours(queries=[files[0]], database=[files[1]], k=data.ranks.shape[1], out=tmp_path / "lists", refine="expand")
    assert open_neighbours(tmp_path / "lists").indices.shape == data.ranks.shape
