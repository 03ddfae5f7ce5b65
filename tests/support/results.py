"""Rows of results, as an experiment leaves them."""

from deepreshape.training.runs import Result


def row(network: str, relus: int, top1: float, seed: int = 0, plan: str = "all ReLUs", method: str = "all") -> Result:
    return Result.of(
        {
            "method": method,
            "id": f"{network}{relus}{seed}",
            "network": network,
            "plan": plan,
            "budget": None,
            "relus": relus,
            "macs": 10 * relus,
            "params": 7,
            "top1": top1,
            "seed": seed,
            "data": "digits",
            "n": 360,
            "command": f"deepreshape train {network}",
            "priced_seconds": {"server-garbler": relus / 100},
        }
    )


ROWS = [
    row("base", 1000, 90.0), row("base", 1000, 92.0, seed=1), row("base", 250, 70.0, plan="thin"),
    row("base", 250, 70.0, seed=1, plan="thin"), row("hrn", 500, 85.0), row("hrn", 500, 87.0, seed=1),
]  # fmt: skip
