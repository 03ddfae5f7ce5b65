"""Gated ReLU networks as convex programs: the optimum, its certificate, and scikit-learn's interface."""

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.utils.estimator_checks import check_estimator

from deepreshape.convex.estimator import LARGEST_TABLE, ConvexGatedReLU, ConvexGatedReLURegressor
from deepreshape.convex.gates import Gates
from deepreshape.convex.solver import solve

Real = NDArray[np.float64]


def problem(rows: int = 80, features: int = 5, gates: int = 60, seed: int = 0) -> tuple[Real, Real, Real]:
    """Rows, patterns and targets of a small regression."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((rows, features))
    patterns = (x @ random.standard_normal((features, gates)) >= 0).astype(float)
    return x, patterns, random.standard_normal((rows, 1))


def group_lasso(x: Real, patterns: Real, y: Real, penalty: float, steps: int) -> float:
    """The optimum of 1/2 ||sum_j D_j X u_j - y||^2 + penalty sum_j ||u_j||, by FISTA on the whole problem."""
    n, gates = patterns.shape
    wide = (patterns[:, :, None] * x[:, None, :]).reshape(n, -1)
    pace = 1 / np.linalg.norm(wide, 2) ** 2
    u = v = np.zeros((gates, x.shape[1]))
    t, last = 1.0, np.inf
    for _ in range(steps):
        slope = (wide.T @ (wide @ v.reshape(-1) - y[:, 0])).reshape(u.shape)
        moved = v - pace * slope
        norms = np.linalg.norm(moved, axis=1, keepdims=True)
        new = moved * np.maximum(0, 1 - pace * penalty / np.maximum(norms, 1e-300))
        value = 0.5 * np.sum((wide @ new.reshape(-1) - y[:, 0]) ** 2) + penalty * np.linalg.norm(new, axis=1).sum()
        after = (1 + np.sqrt(1 + 4 * t * t)) / 2
        v = new + (t - 1) / after * (new - u) if value <= last else new
        u, t, last = new, after if value <= last else 1.0, value
    return float(last)


def test_the_optimum_is_that_of_the_group_lasso():
    x, patterns, y = problem()
    gates = patterns.shape[1]
    solution = solve(x, patterns, y, np.ones(gates), lam=0.3, tol=1e-7, max_iter=20_000)
    total = np.linalg.norm(solution.weights[:, :, 0], axis=1).sum()
    fitted = sum(patterns[:, j] * (x @ solution.weights[j, :, 0]) for j in range(gates))
    loss = 0.5 * np.sum((fitted - y[:, 0]) ** 2)
    assert loss + 0.3 / 2 * total**2 == pytest.approx(solution.objectives[-1], rel=1e-5)
    other = group_lasso(x, patterns, y, 0.3 * total, 6000)
    assert loss + 0.3 * total * total == pytest.approx(other, rel=1e-5)


def test_the_objective_never_rises_and_the_gap_is_a_bound():
    x, patterns, y = problem(seed=1)
    start = np.ones(patterns.shape[1])
    rough = solve(x, patterns, y, start, lam=0.1, tol=1e-2, max_iter=5000, trim=False)
    fine = solve(x, patterns, y, start, lam=0.1, tol=1e-7, max_iter=50_000, trim=False)
    assert all(after <= before for before, after in zip(rough.objectives, rough.objectives[1:], strict=False))
    assert rough.gap <= 1e-2
    assert 0 <= rough.objectives[-1] - fine.objectives[-1] <= rough.gap * rough.objectives[-1]


def test_the_certificate_covers_gates_that_have_no_weight():
    x, patterns, y = problem(seed=2)
    start = np.ones(patterns.shape[1])
    whole = solve(x, patterns, y, start, lam=0.1, tol=1e-4, max_iter=5000)
    best = int(whole.eta.argmax())
    start[best] = 0
    without = solve(x, patterns, y, start, lam=0.1, tol=1e-4, max_iter=300)
    assert without.objectives[-1] > whole.objectives[-1] * (1 + 1e-3)
    assert without.gap * without.objectives[-1] >= without.objectives[-1] - whole.objectives[-1]


def test_sampled_gates_come_to_the_neural_tangent_kernel():
    """K(x, z) = x'z (pi - angle) / 2 pi: arc-cosine kernel of degree 0 (Cho and Saul, 2009) times the linear one."""
    random = np.random.default_rng(0)
    x = random.standard_normal((30, 6))
    gram = x @ x.T
    length = np.linalg.norm(x, axis=1)
    closed = gram * (np.pi - np.arccos(np.clip(gram / np.outer(length, length), -1, 1))) / (2 * np.pi)
    errors = []
    for gates in (400, 40_000):
        patterns = (x @ random.standard_normal((6, gates)) >= 0).astype(float)
        errors.append(np.linalg.norm(gram * (patterns @ patterns.T) / gates - closed) / np.linalg.norm(closed))
    assert errors[1] < 0.02
    assert 5 < errors[0] / errors[1] < 20


def test_planted_gates_are_recovered_and_the_ntk_does_not():
    random = np.random.default_rng(3)
    x, new = random.standard_normal((150, 8)), random.standard_normal((500, 8))
    gates = random.standard_normal((8, 150))
    weights = {j: random.standard_normal(8) * 3 for j in (0, 1, 2)}

    def target(rows: Real) -> Real:
        return sum((rows @ gates[:, j] >= 0) * (rows @ weight) for j, weight in weights.items())

    patterns, y = (x @ gates >= 0).astype(float), target(x)[:, None]
    errors = {}
    for name, steps in (("ntk", 0), ("mkl", 3000)):
        best = np.inf
        for lam in (1e-3, 1e-2, 1e-1, 1.0):
            solution = solve(x, patterns, y, np.ones(150), lam=lam, tol=1e-3, max_iter=steps)
            fitted = ((new @ gates >= 0) * (new @ solution.weights[:, :, 0].T)).sum(1)
            best = min(best, float(np.mean((fitted - target(new)) ** 2)))
        errors[name] = best
    assert errors["mkl"] <= 0.1 * errors["ntk"]


def test_breast_cancer_at_a_tenth():
    x, y = load_breast_cancer(return_X_y=True)
    classifier = ConvexGatedReLU(n_gates=500, lam=0.1, tol=0.02, random_state=0).fit(x, y)
    assert classifier.objective_ <= 0.70 * classifier.ntk_objective_
    assert classifier.gap_ <= 0.02
    assert all(
        after <= before for before, after in zip(classifier.objectives_, classifier.objectives_[1:], strict=False)
    )
    assert classifier.score(x, y) > 0.97


@pytest.mark.parametrize("estimator", [ConvexGatedReLU(40, max_iter=200), ConvexGatedReLURegressor(40, max_iter=200)])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.EstimatorCheckFailedWarning")
def test_scikit_learn_accepts_it(estimator: ConvexGatedReLU | ConvexGatedReLURegressor):
    check_estimator(estimator)


def test_predictions_are_those_of_the_products_of_gates_and_features():
    x, y = load_iris(return_X_y=True)
    classifier = ConvexGatedReLU(30, tol=1e-2, random_state=0).fit(x, y)
    by_hand = classifier.gates_.expand(x) @ classifier.weights_.reshape(-1, 3)
    assert np.allclose(by_hand, classifier.decision_function(x), atol=1e-9)


def test_a_gate_whose_product_is_exactly_zero_is_open():
    gates = Gates(np.zeros(1), np.ones(1), np.array([[1.0, 0.0], [1.0, -1e-9]]))
    assert gates.expand(np.zeros((1, 1))).tolist() == [[0.0, 1.0, 0.0, 0.0]]


def test_pruning_keeps_the_heaviest():
    x, y = load_iris(return_X_y=True)
    classifier = ConvexGatedReLU(60, tol=1e-2, random_state=0).fit(x, y)
    few = classifier.prune(3)
    assert few.active_gates_ == len(few.gates_) == 3 < classifier.active_gates_
    assert min(few.eta_) >= sorted(classifier.eta_)[-3]
    assert few.predict(x).shape == (150,)
    with pytest.raises(ValueError, match="0 gates cannot be kept"):
        classifier.prune(0)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"n_gates": 0}, "n_gates is a whole number of at least 1, not 0"),
        ({"lam": 0.0}, "lam is a number above 0, not 0.0"),
        ({"lam": float("nan")}, "lam is a number above 0, not nan"),
        ({"tol": -1}, "tol is a number above 0, not -1"),
        ({"subsample": 1}, "subsample is a whole number of at least 2, not 1"),
    ],
)
def test_settings_that_make_no_sense(setting: dict[str, float], words: str):
    x, y = load_iris(return_X_y=True)
    with pytest.raises(ValueError, match=words):
        ConvexGatedReLU(**setting).fit(x, y)


def test_more_rows_than_memory_says_the_size_and_what_would_do():
    x = np.random.default_rng(0).standard_normal((LARGEST_TABLE + 1, 2))
    y = (x[:, 0] > 0).astype(int)
    with pytest.raises(ValueError, match=r"3,001 rows need matrices of .* GB.*subsample=3000"):
        ConvexGatedReLU(10).fit(x, y)
    classifier = ConvexGatedReLU(10, tol=0.1, subsample=100, random_state=0).fit(x, y)
    assert classifier.score(x, y) > 0.9


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="all rows are of one class"):
        ConvexGatedReLU(5).fit(np.eye(4), np.zeros(4))
