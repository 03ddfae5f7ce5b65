"""Gated ReLU networks as convex programs on five tables: objectives, gaps, gates, test errors, and a private run.

    python benchmarks/convex.py --out benchmarks/results/convex.jsonl

For each table, seeds 0 to 4 split off 30 % of the rows for testing. Test error is the share of wrong classes, and for
diabetes the squared error over the variance of the target. Beside the optimum stand the neural tangent kernel of the
same gates (``max_iter=0``), ridge regression at the same weight decay on the same standardised features, and a ReLU
network of one layer of 32 units trained by Adam. ``private`` is a query over loopback of the first seed's networks:
bytes do not depend on the machine, seconds do. Rows that are in the file are not measured again.
"""

import argparse
import json
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import Ridge, RidgeClassifier
from torch import nn

from deepreshape.convex.estimator import ConvexGatedReLU, ConvexGatedReLURegressor
from deepreshape.convex.gates import Gates
from deepreshape.convex.saved import Fitted
from deepreshape.convex.tables import TABLES, Table, read_table
from deepreshape.pricing.calibrate import machine, versions
from deepreshape.private.program.lower import lower
from deepreshape.private.program.program import from_fixed, to_fixed
from deepreshape.private.service.local_run import run_local
from deepreshape.training.runs import append_row, read_rows

GATES, LAM, SEEDS, HIDDEN, STEPS = 500, 0.1, 5, 32, 400
Real = NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="*", default=TABLES, choices=TABLES)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    known = read_rows(options.out) if options.out and options.out.exists() else []
    done = {row["table"] for row in known}
    for name in options.tables:
        if name in done:
            continue
        row = measured(name, options.seeds)
        print(json.dumps(row, indent=1), flush=True)
        if options.out:
            append_row(options.out, row)


def measured(name: str, seeds: int) -> dict[str, Any]:
    """One table's row."""
    table = read_table(name)
    fits: list[dict[str, Any]] = []
    runs: dict[str, Any] = {}
    for seed in range(seeds):
        train, test = table.split(0.3, seed)
        started = time.process_time()
        kind: Any = ConvexGatedReLU if table.classes else ConvexGatedReLURegressor
        model = kind(GATES, LAM, random_state=seed).fit(table.rows[train], table.target[train])
        seconds = time.process_time() - started
        kernel = kind(GATES, LAM, max_iter=0, random_state=seed).fit(table.rows[train], table.target[train])
        scaled = model.gates_.standardise(table.rows)
        ridge: Any = RidgeClassifier(LAM) if table.classes else Ridge(LAM)
        ridge.fit(scaled[train], table.target[train])
        network = trained(table, scaled, train, seed)
        errors = {
            "optimum": error(table, model.predict(table.rows[test]), test),
            "ntk": error(table, kernel.predict(table.rows[test]), test),
            "ridge": error(table, ridge.predict(scaled[test]), test),
            "relu network": error(table, answers(network, scaled[test], table, train), test),
        }
        fits.append({"model": model, "errors": errors, "seconds": seconds})
        if not seed:
            runs = {
                "gated": private_gated(table, model, train, test),
                f"{HIDDEN} ReLUs": private_relus(network, scaled[train], scaled[test]),
            }
    return {
        "table": name,
        "rows": len(table.rows),
        "features": len(table.features),
        "seeds": seeds,
        "gates": GATES,
        "lam": LAM,
        "objective_over_ntk": [round(fit["model"].objective_ / fit["model"].ntk_objective_, 4) for fit in fits],
        "gap": [float(f"{fit['model'].gap_:.2g}") for fit in fits],
        "active_gates": [fit["model"].active_gates_ for fit in fits],
        "cpu_seconds": round(statistics.median(fit["seconds"] for fit in fits), 2),
        "test_error": {
            who: {"mean": round(statistics.mean(each), 4), "each": [round(value, 4) for value in each]}
            for who in fits[0]["errors"]
            for each in [[fit["errors"][who] for fit in fits]]
        },
        "private": runs,
        "command": "python benchmarks/convex.py --out benchmarks/results/convex.jsonl",
        "machine": machine(),
        "versions": versions(),
    }


def error(table: Table, predictions: NDArray[Any], places: NDArray[np.intp]) -> float:
    """Share of wrong classes, or squared error over the variance of the target."""
    wanted = table.target[places]
    if table.classes:
        return float((predictions != wanted).mean())
    return float(np.square(predictions - wanted).mean() / table.target.var())


def trained(table: Table, scaled: Real, train: NDArray[np.intp], seed: int) -> nn.Module:
    """A ReLU network of one hidden layer, as a user would train it."""
    torch.manual_seed(seed)
    x = torch.from_numpy(scaled[train]).float()[:, :, None, None]
    outputs = len(table.classes) or 1
    network = nn.Sequential(nn.Flatten(), nn.Linear(x.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, outputs))
    target = table.target[train]
    y = torch.from_numpy(target) if table.classes else torch.from_numpy((target - target.mean()) / target.std()).float()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=1e-2)
    for _ in range(STEPS):
        out = network(x)
        loss = nn.functional.cross_entropy(out, y) if table.classes else nn.functional.mse_loss(out[:, 0], y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


@torch.no_grad()
def answers(network: nn.Module, scaled: Real, table: Table, train: NDArray[np.intp]) -> NDArray[Any]:
    """Classes, or numbers on the scale of the rows it was trained on."""
    out = network(torch.from_numpy(scaled).float()[:, :, None, None])
    if table.classes:
        return out.argmax(1).numpy()
    target = table.target[train]
    return out[:, 0].numpy() * float(target.std()) + float(target.mean())


def private_gated(table: Table, model: Any, train: NDArray[np.intp], test: NDArray[np.intp]) -> dict[str, Any]:
    """One private query of the gated network."""
    fitted = Fitted(model.gates_, model.weights_, model.offset_, table.features, table.classes, {}, {})
    gates: Gates = fitted.gates
    known = gates.expand(table.rows[train][:256])[:, :, None, None].astype(np.float32)
    return run(fitted.to_module(), known, gates.expand(table.rows[test][:3])[:, :, None, None].astype(np.float32))


def private_relus(network: nn.Module, known: Real, new: Real) -> dict[str, Any]:
    """One private query of the ReLU network."""
    shaped = [rows[:, :, None, None].astype(np.float32) for rows in (known[:256], new[:3])]
    return run(network, *shaped)


@torch.no_grad()
def run(network: nn.Module, known: NDArray[np.float32], new: NDArray[np.float32]) -> dict[str, Any]:
    """Between two processes over loopback."""
    program = lower(network, known).program
    report = run_local(program, to_fixed(new, program.input_fraction))
    outputs = from_fixed(np.array(report["outputs"]), program.values[program.outputs[0]].fraction).reshape(len(new), -1)
    kind = next(network.parameters()).dtype
    wanted = network(torch.from_numpy(new).to(kind)).double().numpy()
    return {
        "inputs": int(np.prod(program.input_shape)),
        "relus": report["relus"],
        "rounds": report["rounds"],
        "bytes": report["bytes"],
        "seconds": {phase: round(value, 3) for phase, value in report["seconds"].items()},
        "agree": report["agree"],
        "largest_difference_from_float": float(f"{np.abs(outputs - wanted).max():.2g}"),
        "largest_output": float(f"{np.abs(wanted).max():.3g}"),
    }


if __name__ == "__main__":
    main()
