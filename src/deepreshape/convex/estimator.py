"""Gated ReLU networks with scikit-learn's interface: a classifier and a regressor."""

from __future__ import annotations

import warnings
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from deepreshape.convex.gates import Gates
from deepreshape.convex.solver import solve

__all__ = ["LARGEST_TABLE", "ConvexGatedReLU", "ConvexGatedReLURegressor"]

LARGEST_TABLE = 3000
"""Rows that are fitted without being asked twice: time grows with their cube."""


class _Gated(BaseEstimator):
    """What classifier and regressor share."""

    def __init__(
        self,
        n_gates: int = 500,
        lam: float = 0.1,
        tol: float = 1e-4,
        max_iter: int = 2000,
        subsample: int | None = None,
        random_state: Any = None,
    ) -> None:
        self.n_gates = n_gates
        self.lam = lam
        self.tol = tol
        self.max_iter = max_iter
        self.subsample = subsample
        self.random_state = random_state

    def _check_settings(self) -> None:
        wanted = {
            "n_gates": (Integral, 1, "a whole number of at least 1"),
            "lam": (Real, 0, "a number above 0"),
            "tol": (Real, 0, "a number above 0"),
            "max_iter": (Integral, 0, "a whole number of at least 0"),
            "subsample": (Integral, 2, "a whole number of at least 2"),
        }
        for name, (kind, smallest, words) in wanted.items():
            value = getattr(self, name)
            if name == "subsample" and value is None:
                continue
            fits = isinstance(value, kind) and value >= smallest and np.isfinite(float(value))
            if not fits or (kind is Real and value == 0):
                raise ValueError(f"{name} is {words}, not {value!r}")

    def _fit(self, x: NDArray[np.float64], y: NDArray[np.float64], *, centred: bool = True) -> None:
        """Fit to targets (rows, outputs), around their mean if they are to be ``centred``."""
        rows = len(x)
        random = check_random_state(self.random_state)
        if self.subsample is None and rows > LARGEST_TABLE:
            size = 3 * 8 * rows**2 / 1e9
            raise ValueError(
                f"{rows:,} rows need matrices of {rows:,} x {rows:,} ({size:.1f} GB) and time that grows with their "
                f"cube; subsample={LARGEST_TABLE} fits to that many of them"
            )
        if self.subsample is not None and rows > self.subsample:
            chosen = np.sort(random.choice(rows, self.subsample, replace=False))
            x, y = x[chosen], y[chosen]
        self.offset_ = y.mean(0) * centred
        mean, spread = x.mean(0), x.std(0)
        scale = np.where(spread > 1e-12 * np.maximum(np.abs(mean), 1e-300), spread, 1.0)
        whole = Gates(mean, scale, random.standard_normal((self.n_gates, x.shape[1] + 1)))
        standard = whole.standardise(x)
        # gates with one pattern are one gate to the data: the first stands for all, and starts with their weight
        patterns, first, share = np.unique(whole.open(standard), axis=1, return_index=True, return_counts=True)
        empty = ~patterns.any(0)
        if empty.all():
            raise ValueError(f"none of the {self.n_gates} gates is open for any row; more n_gates would help")
        patterns, first, share = patterns[:, ~empty], first[~empty], share[~empty]
        solution = solve(
            standard,
            patterns.astype(np.float64),
            y - self.offset_,
            share / share.sum(),
            lam=float(self.lam),
            tol=float(self.tol),
            max_iter=self.max_iter,
        )
        if solution.gap > self.tol and self.max_iter:
            warnings.warn(
                f"the gap is {solution.gap:.2g} after {self.max_iter} steps and tol is {self.tol:g}; more max_iter, or "
                "a larger tol",
                ConvergenceWarning,
                stacklevel=3,
            )
        used = np.flatnonzero(solution.eta)
        self.gates_ = Gates(mean, scale, whole.directions[first[used]])
        self.eta_ = solution.eta[used]
        self.weights_ = solution.weights[used]
        self.objectives_ = solution.objectives
        self.objective_, self.ntk_objective_ = solution.objectives[-1], solution.objectives[0]
        self.gap_ = solution.gap
        self.active_gates_ = len(used)
        self.n_iter_ = len(solution.objectives) - 1

    def _outputs(self, rows: Any) -> NDArray[np.float64]:
        """(N, outputs)."""
        check_is_fitted(self)
        rows = np.asarray(validate_data(self, rows, dtype=np.float64, reset=False))
        standard = self.gates_.standardise(rows)
        opened = self.gates_.open(standard)
        columns = [(opened * (standard @ self.weights_[:, :, k].T)).sum(1) for k in range(self.weights_.shape[2])]
        return np.stack(columns, 1) + self.offset_

    def prune(self, gates: int) -> Any:
        """A copy with only the heaviest ``gates`` gates, the others' weights dropped.

        Raises:
            ValueError: if it has not so many, or none is asked for.
        """
        check_is_fitted(self)
        if not 1 <= gates <= self.active_gates_:
            raise ValueError(f"{gates} gates cannot be kept of {self.active_gates_}; 1 to {self.active_gates_} can")
        kept = np.sort(np.argsort(-self.eta_, kind="stable")[:gates])
        copied = type(self)(**self.get_params())
        copied.__dict__ |= self.__dict__
        copied.gates_ = Gates(self.gates_.mean, self.gates_.scale, self.gates_.directions[kept])
        copied.eta_, copied.weights_ = self.eta_[kept], self.weights_[kept]
        copied.active_gates_ = gates
        return copied


class ConvexGatedReLU(ClassifierMixin, _Gated):
    """A two-layer gated ReLU network that classifies rows, trained to its global optimum.

    Several classes share the gates: one column of targets each, +1 for its rows and -1 for others, under one group
    norm. Rows are standardised by the mean and deviation of the training rows.

    Args:
        n_gates: gaussian gates that are drawn.
        lam: weight decay.
        tol: the relative gap to the optimum at which fitting ends.
        max_iter: steps of reweighting at most; 0 stays with the neural tangent kernel.
        subsample: fit to so many rows at most, drawn at random.
        random_state: of gates and subsample.

    Attributes:
        objective_, ntk_objective_: the training objective, and what the neural tangent kernel of the same gates
            reaches on it.
        gap_: proven bound on how far ``objective_`` is above the optimum over all gates drawn, as a share of it.
        active_gates_: how many gates have weights.
        gates_, weights_: the gates, and their weights (gates, features + 1, outputs).
        eta_: kernel weights of the gates, which sum to 1.
        objectives_: of every step; they never rise.
        classes_, n_iter_, n_features_in_: as everywhere in scikit-learn.
    """

    def fit(self, X: Any, y: Any) -> ConvexGatedReLU:  # noqa: N803 - scikit-learn's names
        """Fit to rows (N, features) and their classes (N,)."""
        self._check_settings()
        X, y = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2)  # noqa: N806
        check_classification_targets(y)
        self.classes_, places = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"all rows are of one class, {self.classes_[0]!r}; a classifier needs two")
        columns = np.arange(len(self.classes_)) if len(self.classes_) > 2 else np.array([1])
        self._fit(X, np.where(places[:, None] == columns, 1.0, -1.0), centred=False)
        return self

    def decision_function(self, X: Any) -> NDArray[np.float64]:  # noqa: N803
        """Outputs: (N,) of two classes, above 0 for the second; (N, classes) of more."""
        outputs = self._outputs(X)
        return outputs[:, 0] if outputs.shape[1] == 1 else outputs

    def predict(self, X: Any) -> NDArray[Any]:  # noqa: N803
        """Classes, (N,)."""
        scores = self.decision_function(X)
        return self.classes_[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(1)]


class ConvexGatedReLURegressor(RegressorMixin, _Gated):
    """A two-layer gated ReLU network that predicts a number, trained to its global optimum.

    Args and attributes are those of :class:`ConvexGatedReLU`; ``offset_`` is the mean of the targets, which the network
    is fitted around.
    """

    def fit(self, X: Any, y: Any) -> ConvexGatedReLURegressor:  # noqa: N803
        """Fit to rows (N, features) and numbers (N,)."""
        self._check_settings()
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True, ensure_min_samples=2)  # noqa: N806
        self._fit(X, y[:, None])
        return self

    def predict(self, X: Any) -> NDArray[np.float64]:  # noqa: N803
        """Numbers, (N,)."""
        return self._outputs(X)[:, 0]
