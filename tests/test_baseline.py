"""Baselines against plain computations of the same numbers."""

import numpy as np
import pytest

from raz.data import open_dataset
from raz.data.baseline import CELLS, PENALTIES, baselines, edge_counts, predict_ridge


def test_ridge_equals_the_normal_equations_with_the_penalty_of_least_left_out_error():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 5)) * [1, 10, 100, 1, 1] + 7
    y = x @ [3, -0.2, 0.01, 0, 0] + rng.normal(size=30)
    wanted = rng.normal(size=(4, 5)) + 7

    def solve(x, y, wanted, penalty, centre, spread):
        a = (x - centre) / spread
        w = np.linalg.solve(a.T @ a + penalty * np.eye(5), a.T @ (y - y.mean()))
        return y.mean() + (wanted - centre) / spread @ w

    centre, spread = x.mean(0), x.std(0)

    def left_out(penalty):  # each row left out in turn; the intercept is fitted anew, the scale is not
        errors = []
        for i in range(30):
            keep = np.arange(30) != i
            # Centring on the kept rows is what the leverage's 1/n stands for.
            errors.append(y[i] - solve(x[keep], y[keep], x[i : i + 1], penalty, x[keep].mean(0), spread)[0])
        return np.mean(np.square(errors))

    best = min(PENALTIES, key=left_out)
    expected = solve(x, y, wanted, best, centre, spread)
    assert np.allclose(predict_ridge(x, y, wanted), expected, rtol=1e-6)


def test_a_constant_feature_is_harmless():
    x = np.column_stack([np.ones(6), np.arange(6.0)])
    assert np.allclose(predict_ridge(x, 2 * np.arange(6.0), x), 2 * np.arange(6.0), atol=0.01)


def test_edges_are_counted_in_their_own_cell():
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, 8:] = 255  # an upright edge between columns 7 and 8 of the first cells: Sobel sees it in both
    counts = edge_counts(pixels).reshape(CELLS, CELLS)
    assert (counts[:, 0] == 2 * 16).all()
    assert counts[:, 1:].sum() == 0


@pytest.mark.long
def test_baselines_of_the_toy_crowd_lie_in_order():
    found = baselines(open_dataset("toy"))
    assert set(found) == {"median", "ridge"}
    dataset = open_dataset("toy")
    train = [len(item.load_heads()) for item in dataset.items["train"]]
    test = [len(item.load_heads()) for item in dataset.items["test"]]
    assert found["median"]["test.mae"] == np.mean([abs(n - np.median(train)) for n in test])
    assert 0 < found["ridge"]["test.mae"] < found["median"]["test.mae"]
