"""Claims about exits (MESS), judged by the rows of ``benchmarks/exits.py`` on the shapes and on CIFAR-100.

The paper's are of ResNet-50 and 101 on MS COCO and PASCAL VOC; ours are small networks, one to three seeds. Thresholds
were written when two rows of CIFAR-100 (heads on a final trunk) had been seen, and none of an aware trunk.
"""

from statistics import mean

from papers_claim import Claim, Measured, Verdict, rows_of

MESS = "MESS (ECCV 2022)"
TAUGHT = ("pfd", "kd", "none")


def qualities(data: str) -> dict[tuple[str, str], list[list[float]]]:
    """By trunk and distillation, for each seed, the quality by exit, the end's last."""
    found: dict[tuple[str, str], list[list[float]]] = {}
    for row in rows_of("exits.jsonl"):
        if row["data"] == data:
            found.setdefault((row["trunk"], row["distillation"]), []).append([e["quality"] for e in row["exits"]])
    return found


def aware(data: str) -> Measured:
    """By how many points exits of an aware trunk are better than those of a final one, heads trained alike."""
    rows = qualities(data)
    exits = [
        [
            [round(one - other, 2) for one, other in zip(a, b, strict=True)]
            for a, b in zip(rows["aware", t], rows["final", t], strict=True)
        ]
        for t in TAUGHT
    ]
    ends = [seed[-1] for taught in exits for seed in taught]
    gains = [gain for taught in exits for seed in taught for gain in seed[:-1]]
    return {"mean_points_at_exits": round(mean(gains), 2), "points_at_the_end": round(mean(ends), 2), "by_exit": exits}


def gains(points: float):
    """Judges the mean over exits, distillations and seeds."""

    def judge(measured: Measured) -> Verdict:
        reached = measured["mean_points_at_exits"]
        return "re-made" if reached >= points else "in part" if reached > 0 else "refuted"

    return judge


def filtering() -> Measured:
    """By how many points heads taught by positive filtering are better than others, over exits, trunks and sets."""
    found: dict[str, list[float]] = {"kd": [], "none": []}
    for data in ("cifar100", "shapes"):
        rows = qualities(data)
        for trunk in ("aware", "final"):
            for other, list_ in found.items():
                for ours, theirs in zip(rows[trunk, "pfd"], rows[trunk, other], strict=True):
                    list_ += [a - b for a, b in zip(ours[:-1], theirs[:-1], strict=True)]
    return {f"points_over_{name}": round(mean(values), 2) for name, values in found.items()}


def both_beaten(measured: Measured) -> Verdict:
    """Judges MES-2."""
    better = [value > 0 for value in measured.values()]
    return "re-made" if all(better) else "in part" if any(better) else "refuted"


def searched(name: str) -> Measured:
    """What a search of the aware, positively filtered networks gives, by data set and seed."""
    rows = [row for row in rows_of("exits.jsonl") if (row["trunk"], row["distillation"]) == ("aware", "pfd")]
    return {row["data"] + f", seed {row['seed']}": row["search"][name] for row in rows}


def cheaper(measured: Measured) -> Verdict:
    """Judges MES-3."""
    best = max(measured["macs_ratio"].values())
    return "re-made" if best >= 2.83 else "in part" if best >= 1.5 else "refuted"


def quick(measured: Measured) -> Verdict:
    """Judges MES-4."""
    return "re-made" if max(measured["seconds"].values()) < 3600 else "refuted"


def easy_first(measured: Measured) -> Verdict:
    """Judges MES-5."""
    share = mean(measured["easy_that_end_early"].values())
    return (
        "re-made"
        if share >= 0.8
        else "in part"
        if share > mean(measured["hard_that_end_early"].values())
        else "refuted"
    )


CLAIMS = (
    Claim(
        "MES-1",
        MESS,
        "Training the trunk with its exits makes the exits better than heads on a trunk that was trained for its end",
        "larger mIoU at early exits (secondary); 2 points are ours",
        "accuracy",
        lambda: aware("shapes"),
        gains(2.0),
        "on the shapes, 2 points of mIoU in the mean over exits, ways to teach and seeds",
        3,
        needs=("benchmarks/results/exits.jsonl",),
    ),
    Claim(
        "MES-1c",
        MESS,
        "The same of a classifier",
        "not of the paper, which segments",
        "accuracy",
        lambda: aware("cifar100"),
        gains(2.0),
        "on CIFAR-100, 2 points of top-1 in the mean over exits and ways to teach, one seed",
        7,
        needs=("benchmarks/results/exits.jsonl",),
    ),
    Claim(
        "MES-2",
        MESS,
        "Positive filtering distillation trains better heads than distillation everywhere, and than labels alone",
        "a gain (secondary, without a figure)",
        "accuracy",
        filtering,
        both_beaten,
        "more than 0 points in the mean over both; over one of them in part",
        minutes=3,
        needs=("benchmarks/results/exits.jsonl",),
    ),
    Claim(
        "MES-3",
        MESS,
        "Up to 2.83 times less latency at no loss of accuracy",
        "2.83 (read: abstract)",
        "time",
        lambda: {name: searched(name) for name in ("macs_ratio", "private_seconds_ratio")},
        cheaper,
        "multiply-adds of the whole over the expected ones of the best that loses nothing: 2.83; from 1.5 in part",
        minutes=3,
        needs=("benchmarks/results/exits.jsonl",),
    ),
    Claim(
        "MES-4",
        MESS,
        "A search of configurations takes less than a GPU hour",
        "below 1 hour on a GPU (secondary)",
        "time",
        lambda: {"seconds": searched("seconds")},
        quick,
        "below 3600 s of one core",
        minutes=3,
        needs=("benchmarks/results/exits.jsonl",),
    ),
    Claim(
        "MES-5",
        MESS,
        "A policy by edge-aware confidence lets easy images end early and hard ones go on",
        "no figure; 80 % is ours",
        "accuracy",
        lambda: {
            name: {of: value for of, value in searched(name).items() if value is not None}
            for name in ("easy_that_end_early", "hard_that_end_early")
        },
        easy_first,
        "on the shapes, 0.5 points lost: 80 % of the easy images end before the last exit; more easy than hard in part",
        minutes=3,
        needs=("benchmarks/results/exits.jsonl",),
    ),
)
