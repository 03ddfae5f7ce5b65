"""Claims about exits (MESS), judged by the rows of ``benchmarks/exits.py`` on the shapes and, if there, on CamVid.

The paper's are of ResNet-50 and 101 on MS COCO and PASCAL VOC; ours are small networks, one seed on the shapes and two
on CamVid. Thresholds are those written before the first rows, which refuted MES-1, -3 and -5: there trunks had their
exits for two epochs only, the later exits at every second or third step. The networks judged now were trained with
their exits from the first step.
"""

from collections.abc import Iterator
from statistics import mean
from typing import Any

from papers_claim import Claim, Measured, Verdict, rows_of

MESS = "MESS (ECCV 2022)"


def qualities() -> dict[tuple[str, str, str, str, int], list[float]]:
    """By data set, kind of heads, trunk, what taught the heads, and seed: the quality by exit, the end's last."""
    return {
        (row["data"], row["heads"], row["trunk"], row["distillation"], row["seed"]): [
            each["quality"] for each in row["exits"]
        ]
        for row in rows_of("exits.jsonl")
    }


def aware() -> Measured:
    """By how many points exits of an aware trunk are better than those of a final one, heads trained alike."""
    rows, by_exit = qualities(), dict[str, list[float]]()
    for (data, heads, trunk, way, seed), final in rows.items():
        one = rows.get((data, heads, "aware", way, seed))
        if (trunk, way) == ("final", "none") and one:
            by_exit[f"{data}, {heads}, seed {seed}"] = [round(a - b, 2) for a, b in zip(one, final, strict=True)]
    return {
        "mean_points_at_exits": round(mean(gain for gains in by_exit.values() for gain in gains[:-1]), 2),
        "points_at_the_end": round(mean(gains[-1] for gains in by_exit.values()), 2),
        "by_exit": by_exit,
    }


def gains(points: float):
    """Judges the mean over exits, kinds of heads, data sets and seeds."""

    def judge(measured: Measured) -> Verdict:
        reached = measured["mean_points_at_exits"]
        return "re-made" if reached >= points else "in part" if reached > 0 else "refuted"

    return judge


def filtering() -> Measured:
    """By how many points heads taught by positive filtering are better than others, over exits, trunks and sets."""
    rows, points_over = qualities(), dict[str, list[float]](kd=[], none=[])
    for (data, heads, trunk, way, seed), ours in rows.items():
        for other, points in points_over.items():
            theirs = rows.get((data, heads, trunk, other, seed))
            if way == "pfd" and theirs:
                points += [a - b for a, b in zip(ours[:-1], theirs[:-1], strict=True)]
    return {f"points_over_{name}": round(mean(values), 2) for name, values in points_over.items() if values}


def both_beaten(measured: Measured) -> Verdict:
    """Judges MES-2."""
    better = [value > 0 for value in measured.values()]
    return "re-made" if all(better) else "in part" if any(better) else "refuted"


def searches() -> Iterator[tuple[str, dict[str, Any]]]:
    """What searches of the aware networks gave, as their training left them, by data set, heads and seed."""
    for row in rows_of("exits.jsonl"):
        if (row["trunk"], row["distillation"]) == ("aware", "joint"):
            yield f"{row['data']}, {row['heads']}, seed {row['seed']}", row["search"]


def saved() -> Measured:
    """How many times less the best that loses nothing spends: multiply-adds, and predicted seconds of two parties."""
    return {
        "macs_ratio": {of: search["macs"][0]["times_less"] for of, search in searches()},
        "private_seconds_ratio": {
            of: max(rows[0]["times_less"] for way in ("gc-full", "ot") for rows in search[way].values())
            for of, search in searches()
        },
    }


def early(name: str) -> dict[str, float]:
    """Of the easy or the hard shapes, the share that ends before the last exit."""
    return {of: search[name] for of, search in searches() if name in search}


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
        aware,
        gains(2.0),
        "2 points of mIoU in the mean over exits, kinds of heads, data sets and seeds; heads taught by labels alone",
        3,
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
        "more points than by either, in the mean over exits, trunks and data sets; in part if than by one only",
        minutes=3,
        needs=("benchmarks/results/exits.jsonl",),
    ),
    Claim(
        "MES-3",
        MESS,
        "Up to 2.83 times less latency at no loss of accuracy",
        "2.83 (read: abstract)",
        "time",
        saved,
        cheaper,
        "multiply-adds of the whole network over the expected ones of the best policy that loses nothing, heads as "
        "trained with the trunk: 2.83; in part from 1.5",
        minutes=3,
        needs=("benchmarks/results/exits.jsonl",),
    ),
    Claim(
        "MES-4",
        MESS,
        "A search of configurations takes less than a GPU hour",
        "below 1 hour on a GPU (secondary)",
        "time",
        lambda: {"seconds": {of: search["seconds"] for of, search in searches()}},
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
        lambda: {name: early(name) for name in ("easy_that_end_early", "hard_that_end_early")},
        easy_first,
        "on the shapes, with 0.5 points to lose, 80 % of the easy images end before the last exit; in part if more "
        "easy than hard ones do",
        minutes=3,
        needs=("benchmarks/results/exits.jsonl",),
    ),
)
