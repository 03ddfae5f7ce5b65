"""Claims about networks: one bit (ReActNet), backward slopes (ProxyGrad), removal (DeepReShape, SNL), signs (Circa).

What trains here trains on the digits, for tens of seconds; both sides' epochs are in the measured values. Claims about
CIFAR-100 are judged by rows that other benchmarks have written.
"""

from collections.abc import Callable
from dataclasses import replace
from statistics import mean, median

import torch
from papers_claim import Claim, Measured, Verdict, at_least, rows_of
from torch import Tensor, nn

from deepreshape.data import Dataset
from deepreshape.explain.dead import firing
from deepreshape.explain.maximize import maximize
from deepreshape.models import architecture, build
from deepreshape.nn import RPReLU, RSign, SignConv2d
from deepreshape.nn.binary import fused_threshold, sign
from deepreshape.private.arith.ring import CIRCA_PRIME, DELPHI_PRIME, Field
from deepreshape.private.program.ops import Relu
from deepreshape.private.program.relu_config import ReluConfig
from deepreshape.private.protocols.choose import relu_protocol
from deepreshape.removal import binarize
from deepreshape.removal.binarize import binary_recipe
from deepreshape.training import Recipe, accuracy, recipe_of, train

REACT, PROXY = "ReActNet (ECCV 2020)", "Leaky ReLUs that differ in forward and backward pass (IJCNN 2024)"
DRS, SNL, CIRCA = "DeepReShape (TMLR 2024)", "Selective network linearization (ICML 2022)", "Circa (NeurIPS 2021)"
BODY = "resnet20-m16-phi1.1.1"
"""On the digits: six inner convolutions."""
SEEDS = (0, 1, 2)


def digits() -> Dataset:
    torch.set_num_threads(1)
    return Dataset.load("digits")


def fused_cases() -> Measured:
    """Of 200,000 random inputs of an RPReLU and a sign, half of them next to the threshold, how many differ fused."""
    torch.manual_seed(0)
    channels = 400
    activation, threshold = RPReLU(channels), torch.randn(channels)
    with torch.no_grad():
        activation.slope.uniform_(0.01, 2)
        activation.before.normal_()
        activation.after.normal_()
        fused = fused_threshold(activation, threshold)
        near = fused.view(torch.int32)[None] + torch.arange(-125, 125, dtype=torch.int32)[:, None]
        x = torch.cat([near.view(torch.float32), torch.randn(250, channels)])[:, :, None, None]
        different = sign(activation(x), threshold) != sign(x, fused)
    return {"cases": x.numel(), "different": int(different.sum())}


def real(data: Dataset, seed: int) -> nn.Module:
    """A trained network of :data:`BODY`."""
    model = build(architecture(BODY, data.shape, 10), seed=seed)
    train(model, data, replace(recipe_of("digits"), epochs=10), seed=seed)
    return model


def binary_digits() -> Measured:
    """Validation accuracy of a real network and of the binary one made of it."""
    data, epochs, rows = digits(), 20, []
    for seed in SEEDS[:2]:
        _, record = binarize(real(data, seed), data, recipe=replace(binary_recipe("digits"), epochs=epochs), seed=seed)
        rows.append([record.top1_before, record.top1_step1, record.top1_validation])
    lost = [before - after for before, _, after in rows]
    epochs_of = {"real": 10, "each of two steps": epochs}
    return {"real_step1_binary": rows, "points_lost": [round(each, 2) for each in lost], "epochs": epochs_of}


def two_steps() -> Measured:
    """Validation accuracy after two steps, and after one of as many epochs that has one-bit weights from the start."""
    data, epochs, rows = digits(), 20, []
    for seed in SEEDS[:2]:
        whole = real(data, seed)
        recipe = replace(binary_recipe("digits"), epochs=epochs)
        _, record = binarize(whole, data, recipe=recipe, seed=seed)
        once = binarize(whole, data, recipe=replace(recipe, epochs=1), seed=seed)[0]
        for path in record.layers:
            layer = whole.get_submodule(path)
            assert isinstance(layer, nn.Conv2d)
            once.set_submodule(path, SignConv2d.of(layer).one_bit())
        state = whole.state_dict()
        once.load_state_dict({**once.state_dict(), **{k: v for k, v in state.items() if k in once.state_dict()}})
        trained = train(once, data, replace(recipe, epochs=2 * epochs), seed=seed, teacher=whole)
        rows.append([record.top1_validation, trained.top1_validation])
    return {"two_steps_one_step": rows, "epochs": 2 * epochs}


class Shifted(nn.Module):
    """Two layers of signs on vectors whose values were shifted."""

    def __init__(self, *, learned: bool, shift: float = 0.9) -> None:
        super().__init__()
        self.shift = shift
        self.layers = nn.Sequential(RSign(64), nn.Linear(64, 128), nn.BatchNorm1d(128), RSign(128), nn.Linear(128, 10))
        for module in self.layers:
            if isinstance(module, RSign):
                module.threshold.requires_grad_(learned)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.flatten(1) + self.shift)


def learned_thresholds() -> Measured:
    """Validation accuracy with thresholds that are learned and that stay 0, on inputs shifted by 0.9 (3 seeds)."""
    data = digits()
    recipe = Recipe(epochs=30, batch=64, optimizer="adamw", lr=5e-3, crop=0, flip=False, precision="float32")
    accuracies: dict[bool, list[float]] = {True: [], False: []}
    for seed in SEEDS:
        for learned in accuracies:
            torch.manual_seed(seed)
            trained = train(Shifted(learned=learned), data, recipe, seed=seed)
            accuracies[learned].append(trained.top1_validation or 0.0)
    points = [round(one - other, 2) for one, other in zip(accuracies[True], accuracies[False], strict=True)]
    return {"learned": accuracies[True], "zero": accuracies[False], "points": points, "epochs": recipe.epochs}


class Perceptron(nn.Sequential):
    """Eight layers of 64 on the digits."""

    def __init__(self) -> None:
        layers: list[nn.Module] = [nn.Flatten()]
        for _ in range(7):
            layers += [nn.Linear(64, 64), nn.ReLU()]
        super().__init__(*layers, nn.Linear(64, 10))


MLP = Recipe(epochs=20, batch=64, optimizer="adamw", lr=1e-3, crop=0, flip=False, precision="float32")


def maximized_units() -> Measured:
    """Mean activation of the last hidden layer's units after ascent, and units without any, plain and with a slope."""
    data, rows = digits(), []
    for seed in SEEDS:
        torch.manual_seed(seed)
        model = Perceptron()
        train(model, data, MLP, seed=seed)
        average, deviation = torch.tensor(data.mean[0]), torch.tensor(data.std[0])
        starts = (torch.rand(4, *data.shape, generator=torch.Generator().manual_seed(seed)) - average) / deviation
        box = -average / deviation, (1 - average) / deviation
        modes: dict[str, list[float]] = {
            mode: [
                float(maximize(model, "14", unit, starts, box, mode=mode, steps=100).values.max())  # pyright: ignore
                for unit in range(64)
            ]
            for mode in ("plain", "split")
        }
        dead = {mode: sum(value == 0 for value in values) for mode, values in modes.items()}
        gain = 100 * (mean(modes["split"]) / mean(modes["plain"]) - 1)
        rows.append({"gain_percent": round(gain, 1), "dead_units": dead})
    return {"by_seed": rows, "slope": 0.1, "epochs": MLP.epochs}


def trained_with_a_slope() -> Measured:
    """Validation accuracy and ReLUs that never fire, trained with backward slopes 0 and 0.1 (3 seeds)."""
    data, rows = digits(), []
    for seed in SEEDS:
        row: dict[str, list[float]] = {}
        for slope in (0.0, 0.1):
            torch.manual_seed(seed)
            model = Perceptron()
            trained = train(model, data, replace(MLP, backward_slope=slope), seed=seed)
            never = sum(int(site.never.sum()) for site in firing(model, data).values())
            row[str(slope)] = [trained.top1_validation or 0.0, never]
        rows.append(row)
    gains = [row["0.1"][0] - row["0.0"][0] for row in rows]
    return {"top1_and_dead_by_slope": rows, "points": [round(gain, 2) for gain in gains], "epochs": MLP.epochs}


def stored_rows(network: str, method: str, budget: int, file: str = "cifar100.jsonl") -> dict[int, float]:
    """Test accuracy by seed, from a file of rows; of several rows of one seed the last."""
    rows = [row for row in rows_of(file) if row["network"] == network and row["method"] == method]
    return {row["seed"]: row["top1"] for row in rows if row["budget"] == budget}


def equal_relus() -> Measured:
    """HRN-5x5x3x over ResNet-18 at 50,000 and 25,000 ReLUs, by Taylor gates (docs/removal.md)."""
    points: dict[str, float] = {}
    for budget in (50_000, 25_000):
        hybrid, plain = (stored_rows(name, "taylor", budget) for name in ("hrn-5x5x3x-m4", "resnet18-m16"))
        for seed in sorted(hybrid.keys() & plain.keys()):
            points[f"{budget:,}, seed {seed}"] = round(hybrid[seed] - plain[seed], 2)
    return {"points": points, "epochs": "6 + 1 + 2"}


def narrow_first() -> Measured:
    """HRN-2x5x2x over HRN-5x5x3x at 25,000 ReLUs and 66 M multiply-adds, by Taylor gates and coarsely."""
    points: dict[str, float] = {}
    for method in ("taylor", "coarse"):
        names = ("hrn-2x5x2x-m12", "hrn-5x5x3x-m4")
        narrow, wide = (stored_rows(name, method, 25_000, "shapes.jsonl") for name in names)
        leads = [narrow[seed] - wide[seed] for seed in narrow.keys() & wide.keys()]
        points[f"{method}, seeds: {len(leads)}"] = round(sum(leads) / len(leads), 2)
    narrow, wide = (stored_rows(name, "taylor", 25_000)[0] for name in ("hrn-2x5x2x-m8", "hrn-5x5x3x-m4"))
    return {"points": points, "with_0.45_times_the_multiply_adds": round(narrow - wide, 2), "epochs": "6 + 3"}


def fine_over_coarse() -> Measured:
    """SNL over coarse plans of ResNet-18 at 50,000 ReLUs, CIFAR-100."""
    fine, coarse = (stored_rows("resnet18-m16", method, 50_000)[0] for method in ("snl", "coarse"))
    return {"points": {"50,000": round(fine - coarse, 2)}, "epochs": "6 + 3 and 6 + 2"}


def smaller_store() -> Measured:
    """Bytes that a client stores for a ReLU: DELPHI's over its prime, Circa's sign with k = 12 over its own."""
    stored: dict[str, float] = {}
    for word, prime in (("gc-full", DELPHI_PRIME), ("gc-stochastic:drop=12", CIRCA_PRIME)):
        protocol = relu_protocol(ReluConfig.parse(word))
        layer = protocol.layer(Field(prime), Relu("relu", ("input",), 0), 8192)
        stored[word] = round(protocol.declared(layer).stored[0] / 8192, 1)
    return {"bytes": stored, "ratio": {"stored": round(stored["gc-full"] / stored["gc-stochastic:drop=12"], 2)}}


def free_faults() -> Measured:
    """Test accuracy of zoo:cifar100-25k with signs that leave 12 bits out, and with exact ones."""
    from deepreshape.models.saved import load
    from deepreshape.models.zoo import folder_of
    from deepreshape.nn import Faults, faulty
    from deepreshape.private.program.lower import lower

    data, model = Dataset.load("cifar100"), load(folder_of("zoo:cifar100-25k"))
    program = lower(model, data).program
    fractions = [program.values[op.inputs[0]].fraction for op in program.ops if isinstance(op, Relu)]
    faults = Faults(12, int(median(fractions)))
    exact = accuracy(model, data, data.test)
    with faulty(model, faults, torch.Generator().manual_seed(0)):
        wrong = accuracy(model, data, data.test)
    return {"exact": exact, "k_12": wrong, "points_lost": round(exact - wrong, 2), "fraction_bits": faults.fraction}


def at_most(name: str, whole: float, part: float) -> Callable[[Measured], Verdict]:
    """Judges the largest of several values, of which less is better."""

    def judge(measured: Measured) -> Verdict:
        worst = max(measured[name]) if isinstance(measured[name], list) else measured[name]
        return "re-made" if worst <= whole else "in part" if worst <= part else "refuted"

    return judge


def gains(name: str, whole: float) -> Callable[[Measured], Verdict]:
    """Judges points gained: their mean is at least ``whole``; in part if it is above 0."""

    def judge(measured: Measured) -> Verdict:
        points = measured[name]
        average = mean(points if isinstance(points, list) else points.values())
        return "re-made" if average >= whole else "in part" if average > 0 else "refuted"

    return judge


def every_seed(measured: Measured) -> Verdict:
    """Judges PRX-2: better with every seed; in part if on average."""
    points = measured["points"]
    return "re-made" if min(points) > 0 else "in part" if mean(points) > 0 else "refuted"


def both_seeds(measured: Measured) -> Verdict:
    """Judges REA-4."""
    better = [two > one for two, one in measured["two_steps_one_step"]]
    return "re-made" if all(better) else "in part" if any(better) else "refuted"


def no_difference(measured: Measured) -> Verdict:
    """Judges REA-1."""
    return "re-made" if measured["cases"] == 200_000 and measured["different"] == 0 else "refuted"


def livelier(measured: Measured) -> Verdict:
    """Judges PRX-3: 10 % more and at most 60 % as many dead units with every seed; in part if more with every seed."""
    rows = measured["by_seed"]
    more = [row["gain_percent"] for row in rows]
    fewer = all(row["dead_units"]["split"] <= 0.6 * row["dead_units"]["plain"] for row in rows)
    return "re-made" if min(more) >= 10 and fewer else "in part" if min(more) > 0 else "refuted"


CLAIMS = (
    Claim(
        "REA-1",
        REACT,
        "A sign behind an RPReLU needs one threshold of the RPReLU's input",
        "an identity",
        "exact",
        fused_cases,
        no_difference,
        "none of 200,000 inputs differs, bit for bit",
        0.1,
        test="tests/nn/test_binary.py::test_fused_thresholds_are_equal_bit_for_bit_in_200_000_cases",
    ),
    Claim(
        "REA-2",
        REACT,
        "A binary network comes within 3 points of the real one",
        "69.4 % against 72.4 %, ImageNet (secondary)",
        "accuracy",
        binary_digits,
        at_most("points_lost", 3, 6),
        f"at most 3 points lost by {BODY} on the digits with both of two seeds; in part to 6",
        3,
    ),
    Claim(
        "REA-3",
        REACT,
        "Signs with learned thresholds beat plain ones",
        "in the ablation; figures not re-read",
        "accuracy",
        learned_thresholds,
        gains("points", 2),
        "2 points on digits shifted by 0.9, two layers, mean of three seeds; in part above 0",
        1,
    ),
    Claim(
        "REA-4",
        REACT,
        "Two steps of training, signs first, beat one",
        "in the training recipe; no figure",
        "accuracy",
        two_steps,
        both_seeds,
        f"better than one step of as many epochs with both of two seeds ({BODY}, digits); in part with one",
        6,
    ),
    Claim(
        "PRX-2",
        PROXY,
        "Training with a backward slope gains accuracy on some benchmarks",
        "figures not recovered",
        "accuracy",
        trained_with_a_slope,
        every_seed,
        "a slope of 0.1 gains with each of three seeds (eight layers of 64, digits); in part on average",
        2,
    ),
    Claim(
        "PRX-3",
        PROXY,
        "Activation maximization with a backward slope finds stronger inputs, for more units",
        "figures not recovered",
        "accuracy",
        maximized_units,
        livelier,
        "10 % more activation and at most 60 % as many units without any, with each of three seeds",
        3,
    ),
    Claim(
        "DRS-3",
        DRS,
        "HybReNets are more accurate than ResNet-18 at equal ReLU count on CIFAR-100",
        "+2.1 points (read)",
        "accuracy",
        equal_relus,
        gains("points", 2.1),
        "2.1 points on average over budgets and seeds; in part above 0 (our figures were known when this was written)",
        400,
        needs=("benchmarks/results/cifar100.jsonl",),
    ),
    Claim(
        "DRS-4",
        DRS,
        "HybReNets with alpha = 2 are better at low ReLU budgets",
        "in figures of Pareto fronts (read)",
        "accuracy",
        narrow_first,
        gains("points", 0.5),
        "half a point over HRN-5x5x3x at 25,000 ReLUs and equal multiply-adds, mean of Taylor gates and coarse plans, "
        "each over its seeds; in part above 0 (our figures were known when this was written)",
        120,
        needs=("benchmarks/results/cifar100.jsonl", "benchmarks/results/shapes.jsonl"),
    ),
    Claim(
        "DRS-5",
        DRS,
        "Thinned HybReNets are better starts for SNL than whole ones",
        "in figures (read)",
        "accuracy",
        why="not tried: a dozen SNL runs on CIFAR-100 of some ten minutes of a quiet core each",
    ),
    Claim(
        "SNL-2",
        SNL,
        "More accurate than coarse removal at equal ReLU count",
        "+4.25 points (read)",
        "accuracy",
        fine_over_coarse,
        gains("points", 4.25),
        "4.25 points at 50,000 ReLUs, ResNet-18 on CIFAR-100, one seed; in part above 0 "
        "(our figures were known when this was written)",
        60,
        needs=("benchmarks/results/cifar100.jsonl",),
    ),
    Claim(
        "CIR-1",
        CIRCA,
        "A client stores less for each ReLU than under DELPHI",
        "4.7 times (read)",
        "bytes",
        smaller_store,
        at_least("ratio", 4.7, 1.5),
        "4.7 times by declared bytes, each over its prime; in part from 1.5",
        0.1,
    ),
    Claim(
        "CIR-2",
        CIRCA,
        "Three times less run time than DELPHI",
        "3 times (read)",
        "time",
        why="their seconds are of a C++ engine on two machines; ours are priced by `deepreshape cost "
        "--protocol gc-full,gc-stochastic:drop=12`",
    ),
    Claim(
        "CIR-3",
        CIRCA,
        "Signs that leave 12 bits out cost no accuracy",
        "under 1 point (read)",
        "accuracy",
        free_faults,
        at_most("points_lost", 1, 3),
        "at most 1 point of test accuracy on CIFAR-100 (zoo:cifar100-25k, one draw of faults); in part to 3",
        3,
        needs=("cifar100",),
    ),
    Claim(
        "FHE-2",
        "Practical privacy-preserving CNNs with homomorphic encryption (DISCC 2023)",
        "Optimised packing makes convolutions under CKKS several times faster",
        "in a table (secondary)",
        "time",
        why="the baseline's code is not public, and our packing has no bootstrapping to fill its slots for",
    ),
)
