"""The convex program of a gated ReLU network, solved by reweighting the kernels of its neural tangent kernel.

With 0/1 patterns D_j of gates on the data, a gated ReLU network with weight decay trains to the optimum of

    min over u of  1/2 ||sum_j D_j X u_j - Y||^2 + lam/2 (sum_j ||u_j||)^2,

a group lasso with the penalty squared, which has the solutions of the ordinary one at the penalty lam * sum_j ||u_j||.
In terms of kernel weights eta on the simplex it is the minimum over eta of

    J(eta) = lam/2 <Y, a>,  a = (K + lam)^-1 Y,  K = sum_j eta_j D_j X X' D_j

(multiple kernel learning). At eta_j = probability of the pattern K is the neural tangent kernel, so the NTK can never
be better on this objective, and iterative reweighting from there,

    eta_j <- eta_j sqrt(v_j) / sum_k eta_k sqrt(v_k),  v_j = ||X' D_j a||^2,

lowers J until no kernel is better (Dwaraknath, Ergen and Pilanci, NeurIPS 2023, sections 3 and 4). As dJ/deta_j =
-lam/2 v_j and J is convex, lam/2 (max_j v_j - sum_j eta_j v_j) bounds how far J is above its minimum. The maximum goes
over all gates, also those whose weight has become zero and cannot return.

Ours: the exponent 1/2 grows while J falls and is taken back where it would rise, which needs a quarter of the steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Solution", "solve"]

Real = NDArray[np.float64]

CAUTIOUS = 0.5
"""The exponent of reweighting that never raises the objective."""
BOLDEST = 64.0
GONE = 1e-12
"""Kernel weights below this are zero."""
SMALL = 1e-4
"""Gates whose weight is below this share of the largest are dropped at the end, where the certificate allows it."""


@dataclass(frozen=True, eq=False)
class Solution:
    """A gated ReLU network's weights, and how good they are.

    Attributes:
        eta: kernel weights, (gates,), which sum to 1; zero for gates that are not used.
        weights: u, (gates, features, outputs).
        objectives: J of each accepted step, of the NTK's weights first.
        gap: bound on (J - minimum) / J, over all gates.
    """

    eta: Real
    weights: Real
    objectives: tuple[float, ...]
    gap: float


@dataclass(frozen=True, eq=False)
class _Point:
    """Kernel weights, and what they come to: J, X' D_j a of (gates, features * outputs), its squared norms, the gap."""

    eta: Real
    objective: float
    gradients: Real
    norms: Real
    gap: float


def solve(
    x: Real, patterns: Real, y: Real, start: Real, *, lam: float, tol: float, max_iter: int, trim: bool = True
) -> Solution:
    """Minimise J from the kernel weights ``start``.

    Args:
        x: (rows, features).
        patterns: D_j, 0.0 or 1.0, (rows, gates).
        y: (rows, outputs).
        start: (gates,), positive or zero; those that are zero stay so, and count for the gap.
        lam: weight decay.
        tol: ends as soon as the relative gap is below.
        max_iter: ends after so many steps all the same; 0 gives the solution of ``start`` itself.
        trim: drop gates of next to no weight where the gap stays below ``tol``.
    """
    gram = x @ x.T

    def look(eta: Real) -> _Point:
        return _look(eta, x, patterns, y, gram, lam)

    point = look(start / start.sum())
    objectives = [point.objective]
    exponent = CAUTIOUS
    while point.gap > tol * point.objective and len(objectives) <= max_iter:
        following = look(_reweighted(point, exponent))
        if following.objective > point.objective:
            exponent = CAUTIOUS
            following = look(_reweighted(point, exponent))
        else:
            exponent = min(2 * exponent, BOLDEST)
        point = following
        objectives.append(point.objective)
    if trim and max_iter:
        large = np.where(point.eta >= SMALL * point.eta.max(), point.eta, 0.0)
        trimmed = look(large / large.sum())
        if trimmed.gap <= max(tol * trimmed.objective, point.gap):
            point = trimmed
    weights = (point.eta[:, None] * point.gradients).reshape(len(point.eta), x.shape[1], y.shape[1])
    relative = point.gap / point.objective if point.objective else 0.0
    return Solution(point.eta, weights, tuple(objectives), relative)


def _look(eta: Real, x: Real, patterns: Real, y: Real, gram: Real, lam: float) -> _Point:
    used = np.flatnonzero(eta)
    kernel = gram * ((patterns[:, used] * eta[used]) @ patterns[:, used].T)
    kernel[np.diag_indices_from(kernel)] += lam
    dual = np.linalg.solve(kernel, y)
    gradients = patterns.T @ (x[:, :, None] * dual[:, None, :]).reshape(len(x), -1)
    norms = np.square(gradients).sum(1)
    return _Point(
        eta,
        lam / 2 * float(np.vdot(y, dual)),
        gradients,
        norms,
        lam / 2 * float(norms.max() - eta @ norms),
    )


def _reweighted(point: _Point, exponent: float) -> Real:
    largest = point.norms[point.eta > 0].max()
    eta = point.eta * (point.norms / largest) ** exponent
    eta /= eta.sum()
    return np.where(eta < GONE, 0.0, eta)
