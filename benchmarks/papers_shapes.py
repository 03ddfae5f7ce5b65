"""Claims on the shapes of networks: Sphynx and Network Adjustment."""

from papers_claim import Claim, Measured, Verdict

from deepreshape.counting import count
from deepreshape.models import architecture, build

SPHYNX, ADJUSTMENT = "Sphynx (Cho et al., 2021)", "Network Adjustment (CVPR 2020)"

PUBLISHED_CELLS = {
    "sphynx-c5-l5-r0.1": (32, 100, 25_600),
    "sphynx-c5-l6-r0.1": (32, 100, 30_720),
    "sphynx-c5-l8-r1.3": (32, 100, 40_960),
    "sphynx-c5-l10-r0.5": (32, 100, 51_200),
    "sphynx-c7-l10-r0.5": (32, 100, 71_680),
    "sphynx-c10-l10-r0.5": (32, 100, 102_400),
    "sphynx-c15-l10-r0.5": (64, 200, 614_400),
    "sphynx-c20-l10-r1.5-imagenet": (224, 1000, 344_960),
    "sphynx-c60-l10-r1.5-imagenet": (224, 1000, 1_034_880),
}
WIDTHS = "resnet20-w16.6.17.6.17.9.16.26.23.28.24.29.29.78.66.93.97.112.128"


def traced_relus(name: str, side: int, classes: int) -> int:
    """ReLUs of a network by a trace of it."""
    network = architecture(name, (3, side, side), classes)
    return count(build(network, "meta"), network.input).total.relus


def cells() -> Measured:
    """By network, the ReLUs that a trace finds, and the published ones."""
    return {
        "relus": {name: traced_relus(name, side, classes) for name, (side, classes, _) in PUBLISHED_CELLS.items()},
        "published": {name: relus for name, (_, _, relus) in PUBLISHED_CELLS.items()},
    }


def adjusted_widths() -> Measured:
    """ReLUs of ResNet-20 with the published widths, and with its own."""
    return {"adjusted": traced_relus(WIDTHS, 32, 100), "before": traced_relus("resnet20", 32, 100)}


def equal_counts(measured: Measured) -> Verdict:
    """Judges SPH-1."""
    return "re-made" if measured["relus"] == measured["published"] else "refuted"


def fewer_relus(measured: Measured) -> Verdict:
    """Judges NAD-1."""
    return "re-made" if measured == {"adjusted": 166_528, "before": 188_416} else "refuted"


CLAIMS = (
    Claim(
        "SPH-1",
        SPHYNX,
        "Cells with one ReLU layer each have cells x C x side^2 ReLUs, whatever they consist of",
        "25.6 K to 614.4 K, and 345 K to 1,034 K on ImageNet (read)",
        "exact",
        cells,
        equal_counts,
        "all of nine networks by trace",
        0.2,
        test="tests/models/test_cells.py::test_published_networks_have_their_relus",
    ),
    Claim(
        "SPH-2",
        SPHYNX,
        "More accurate than ResNets and other searched networks at equal ReLU count on CIFAR-100",
        "69.57 % with 51,200 ReLUs (digitised)",
        "accuracy",
        why="600 epochs of networks of 195 to 283 M multiply-adds are weeks of this machine; no shorter run was done",
    ),
    Claim(
        "NAD-1",
        ADJUSTMENT,
        "Widths moved by measurement at equal multiply-adds leave ResNet-20 with fewer ReLUs",
        "the widths (read); 188,416 to 166,528 ReLUs by our count",
        "exact",
        adjusted_widths,
        fewer_relus,
        "166,528 by trace, from 188,416",
        0.1,
        test="tests/models/test_layer_widths.py::test_the_published_widths_have_their_relus",
    ),
    Claim(
        "NAD-2",
        ADJUSTMENT,
        "ResNet-20 gains 2.05 points on CIFAR-100 at equal multiply-adds",
        "69.52 to 71.57 % (read)",
        "accuracy",
        why="eleven trainings of 20 epochs and a long one are days of this machine; `deepreshape adjust` does them",
    ),
)
