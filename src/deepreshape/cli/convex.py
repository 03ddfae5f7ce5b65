"""The command that fits a gated ReLU network to a table, and how such a network and its rows enter a private run."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deepreshape.cli.console import NOTHING_KEPT, out, print_json, stoppable
from deepreshape.cli.options import Json, new_model, read_pairs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from deepreshape.cli.models import Inputs
    from deepreshape.convex.saved import Fitted
    from deepreshape.convex.tables import Table

app = typer.Typer(no_args_is_help=True, help="Gated ReLU networks for tables: optimal, and private without a ReLU.")

ROW = "One row: its numbers in the order of the columns with commas between, or as name=value, name=value."
CALIBRATION_ROWS = 256
GATES = "gates.json"
"""Beside a client's program: the gates that its row is multiplied by."""


@app.callback()
def convex() -> None:
    """Gated ReLU networks for tables: optimal with a certificate, and private without a ReLU."""


@app.command()
def fit(
    data: Annotated[str, typer.Argument(help="A .npz with X and y, a .csv with a header, or a table by name.")],
    to: Annotated[Path, typer.Option("--out", help="Folder for the fitted network.")],
    target: Annotated[
        str | None, typer.Option(help="The column of a .csv that is to be predicted.", show_default=False)
    ] = None,
    gates: Annotated[int, typer.Option(help="Gaussian gates to draw.")] = 500,
    lam: Annotated[float, typer.Option(help="Weight decay.")] = 0.1,
    tol: Annotated[float, typer.Option(help="Gap to the optimum at which fitting ends, relative.")] = 1e-4,
    keep: Annotated[
        int | None, typer.Option(help="Keep only so many gates, the heaviest; fewer bytes.", show_default=False)
    ] = None,
    test_share: Annotated[float, typer.Option(help="Share of the rows that is held out for the test error.")] = 0.3,
    subsample: Annotated[
        int | None, typer.Option(help="Fit to so many rows at most, drawn at random.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of gates, split and subsample.")] = 0,
    as_json: Json = False,
) -> None:
    """Fit a two-layer gated ReLU network to its global optimum, and say how far from it the fit can be at most."""
    from deepreshape.convex.estimator import ConvexGatedReLU, ConvexGatedReLURegressor
    from deepreshape.convex.saved import Fitted, save_fitted
    from deepreshape.convex.tables import read_table

    if not 0 < test_share < 1:
        raise ValueError(f"--test-share is between 0 and 1, not {test_share:g}")
    new_model(to)
    table = read_table(data, target)
    train, test = table.split(test_share, seed)
    if len(train) < 2 or not len(test):
        raise ValueError(f"{data} has {len(table.rows)} rows, too few to hold out {test_share:g} of them")
    kind = ConvexGatedReLU if table.classes else ConvexGatedReLURegressor
    settings = {"n_gates": gates, "lam": lam, "tol": tol, "subsample": subsample, "random_state": seed}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a gap that stayed above tol is printed
        model: Any = stoppable(lambda: kind(**settings).fit(table.rows[train], table.target[train]), NOTHING_KEPT)
        kernel: Any = kind(**settings, max_iter=0).fit(table.rows[train], table.target[train])
    drawn, active = gates, model.active_gates_
    if keep is not None:
        model = model.prune(keep)
    record = {
        **settings,
        "objective": model.objective_,
        "ntk_objective": model.ntk_objective_,
        "gap": model.gap_,
        "active_gates": active,
        "kept_gates": model.active_gates_,
        "steps": model.n_iter_,
        "rows": {"train": len(train), "test": len(test)},
        "test_error": _error(model, table, test),
        "ntk_test_error": _error(kernel, table, test),
    }
    source = {"data": data, "target": target, "test_share": test_share, "seed": seed}
    fitted = Fitted(model.gates_, model.weights_, model.offset_, table.features, table.classes, source, record)
    save_fitted(fitted, to)
    if as_json:
        print_json({"folder": str(to), **record})
        return
    what = "of the test rows are put into a wrong class" if table.classes else "is the mean squared error on test rows"
    out.print(
        f"objective {model.objective_:.5g}, at most {model.gap_:.2g} of it above the optimum over {drawn} gates, of "
        f"which {active} have weights; the neural tangent kernel has {model.ntk_objective_:.5g}",
        highlight=False,
    )
    if keep is not None:
        out.print(f"{keep} gates are kept; objective and gap are those before", highlight=False)
    out.print(
        f"{record['test_error']:.4g} {what} ({record['ntk_test_error']:.4g} with the neural tangent kernel)",
        highlight=False,
    )
    out.print(told_by(fitted), highlight=False)


def told_by(fitted: Fitted) -> str:
    """What the public gates tell a client, in words."""
    return (
        f"a client gets {len(fitted.gates)} gates and the mean and deviation of {len(fitted.features)} columns over "
        "the training rows; which gates were kept depends on those rows too, and all else is the server's secret"
    )


def _error(model: Any, table: Table, places: NDArray[np.intp]) -> float:
    """Share of wrong classes, or mean squared error."""
    import numpy as np

    predicted = model.predict(table.rows[places])
    wrong = predicted != table.target[places] if table.classes else np.square(predicted - table.target[places])
    return float(wrong.mean())


def read_row(text: str, features: tuple[str, ...]) -> NDArray[np.float64]:
    """One row from the command line, (1, features).

    Raises:
        ValueError: if a value is missing, too many, or no number.
    """
    import numpy as np

    parts = [part.strip() for part in text.split(",")]
    if "=" in text:
        named = read_pairs(parts, "--row")
        wrong = next((name for name in [*features, *named] if (name in features) != (name in named)), None)
        if wrong is not None:
            words = "is missing" if wrong in features else "is not a column of the table"
            raise ValueError(f"--row: {wrong!r} {words}; its columns are {', '.join(features)}")
        parts = [named[name] for name in features]
    if len(parts) != len(features):
        raise ValueError(f"--row has {len(parts)} numbers and the table {len(features)} columns: {', '.join(features)}")
    try:
        return np.array([[float(part) for part in parts]])
    except ValueError:
        raise ValueError(f"--row takes numbers, not {text!r}") from None


def inputs_of(fitted: Fitted, samples: Path | None, row: str | None, count: int) -> Inputs:
    """Products of gates and features: of its training rows to calibrate on, and of test or given rows to run.

    Raises:
        ValueError: if the table that it was fitted to has gone and no rows are given.
    """
    import numpy as np

    from deepreshape.cli.models import Inputs
    from deepreshape.convex.tables import read_inputs, read_table

    def expanded(rows: NDArray[np.float64]) -> NDArray[np.float32]:
        return fitted.gates.expand(rows)[:, :, None, None].astype(np.float32)

    source, labels = fitted.source, None
    if samples:
        known = new = read_inputs(samples, fitted.features)
    else:
        table = read_table(source["data"], source["target"])
        if table.features != fitted.features:
            raise ValueError(f"{source['data']} has other columns than when it was fitted; --samples gives rows to run")
        train, test = table.split(source["test_share"], source["seed"])
        known, new, labels = table.rows[train], table.rows[test], table.target[test]
    if row is not None:
        new, labels = read_row(row, fitted.features), None
    if len(new) < count:
        raise ValueError(f"{count:,} rows are wanted and there are {len(new):,} to run")
    valid = expanded(new[:1000])
    classes = labels if labels is not None and fitted.classes else None
    return Inputs(expanded(known[:CALIBRATION_ROWS]), valid, valid, classes, {"class_names": fitted.classes})


def write_gates(fitted: Fitted, folder: Path) -> None:
    """What a client needs beside the program to make an input of its row; none of it is secret."""
    arrays = {name: getattr(fitted.gates, name).tolist() for name in ("mean", "scale", "directions")}
    (folder / GATES).write_text(json.dumps({"features": fitted.features} | arrays) + "\n")


def gated_input(gates: Path, path: Path | None, row: str | None) -> NDArray[np.float64]:
    """A client's row times its gates, (gates * (features + 1), 1, 1).

    Args:
        gates: the file that :func:`write_gates` wrote.
        path: a file with one row, or
        row: the row as text.
    """
    import numpy as np

    from deepreshape.convex.gates import Gates
    from deepreshape.convex.tables import read_inputs

    try:
        known = json.loads(gates.read_text())
        features = tuple(map(str, known["features"]))
        fitted_gates = Gates(*(np.array(known[name], dtype=np.float64) for name in ("mean", "scale", "directions")))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{gates} holds no gates: {error}; `private lower` writes it beside the program") from None
    rows = read_row(row, features) if row is not None else read_inputs(path or Path(), features)
    if len(rows) != 1:
        raise ValueError(f"{path} holds {len(rows)} rows; a query is one")
    return fitted_gates.expand(rows)[0, :, None, None]


def predictions(outputs: NDArray[np.float64], classes: tuple[str, ...]) -> list[Any]:
    """Names of classes, or numbers, of outputs (N, outputs)."""
    return [classes[place] for place in outputs.argmax(1)] if classes else outputs[:, 0].tolist()
