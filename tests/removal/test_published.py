"""Each method does what its paper says: what can be checked by hand or by a formula of its own."""

import copy
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.few_digits import RECIPE, KilledError, digits, equal, kill_at, task, trained, weights
from torch import nn
from torch.nn.functional import cross_entropy

from deepreshape.models import convert
from deepreshape.models.saved import Manifest, load, save
from deepreshape.nn import MaskedReLU, PolynomialReLU
from deepreshape.removal import SNL, AutoReP, Coarse, Descent, SENet, Taylor, linearize, masks_of
from deepreshape.removal.autorep import _Search as AutoRePSearch
from deepreshape.removal.autorep import nearest_quadratic
from deepreshape.removal.descent import _Search as DescentSearch
from deepreshape.removal.senet import _Search as SENetSearch
from deepreshape.removal.senet import layer_budgets, sensitivities
from deepreshape.removal.snl import _Search as SNLSearch
from deepreshape.removal.taylor import _Search as TaylorSearch
from deepreshape.training import TrainingRun
from deepreshape.training.convolution import MatrixConvolutions

DATA = digits()
MODEL = trained()
TASK = task(MODEL)
MASKS = TASK.masks


def snl(**settings) -> SNLSearch:
    return SNLSearch(SNL(200, **settings), copy.deepcopy(MODEL), TASK)


def test_snl_charges_the_l1_norm_of_its_gates():
    search = snl(strength=0.5)
    assert search.penalty().item() == pytest.approx(0.5 * sum(int(mask.sum()) for mask in MASKS.values()))
    with torch.no_grad():
        search.gates()[0].mul_(0.5)
    assert search.penalty().item() == pytest.approx(0.5 * (576 - 64))
    fewer = replace(TASK, masks=MASKS | {"stem.act": torch.zeros_like(MASKS["stem.act"])})
    assert SNLSearch(SNL(9, strength=1.0), copy.deepcopy(MODEL), fewer).penalty().item() == pytest.approx(576 - 128)


def test_snl_keeps_its_gates_between_0_and_1_and_ends_where_its_mask_is():
    search = snl(gate_lr=0.5, strength=0.01)
    seen: list[float] = []
    recipe = replace(RECIPE, optimizer="adamw", lr=1e-3)
    watch = lambda at: seen.extend((min(g.min() for g in search.gates()), max(g.max() for g in search.gates())))  # noqa: E731
    TrainingRun(search, DATA, recipe, seed=0, hook=search).complete(None, watch)
    assert min(seen) >= 0
    assert max(seen) <= 1
    assert min(seen) < 0.9
    # wholly pulled, the network with gates gives what the one with the mask gives: nothing jumps at the end
    search.before(999, 1000 - 1)
    x = DATA.normalize(DATA.validation.images)
    pulled = search.eval()(x)
    assert torch.allclose(pulled, search.finished(search.masks()).eval()(x), atol=1e-5)


def test_snl_raises_lambda_only_while_too_many_gates_are_open():
    search = snl(growth=2.0)
    search.after(9, 10, torch.empty(0), torch.empty(0))
    assert float(search.strength) == pytest.approx(2e-5)
    with torch.no_grad():
        for gate in search.gates():
            gate.zero_()
    search.after(9, 10, torch.empty(0), torch.empty(0))
    assert float(search.strength) == pytest.approx(2e-5)


def test_the_first_order_of_taylor_gates_is_the_gradient_to_the_gate():
    search = TaylorSearch(Taylor(200), copy.deepcopy(MODEL), TASK).eval()
    x, labels = DATA.normalize(DATA.train.images[:16]), DATA.train.labels[:16]
    with MatrixConvolutions():
        cross_entropy(search(x), labels).backward()
    path = "stage2.0.act1"
    first = search.seen[path][: MASKS[path].numel()].view(MASKS[path].shape)

    @torch.no_grad()
    def loss(gate: float, at: tuple[int, ...]) -> float:
        """With one ReLU opened to x + gate relu(-x), by hand."""

        def opened(_, inputs, out):
            out = out.clone()
            out[(slice(None), *at)] = (inputs[0] + gate * (-inputs[0]).clamp(min=0))[(slice(None), *at)]
            return out

        handle = search.network.get_submodule(path).register_forward_hook(opened)
        try:
            return float(cross_entropy(search(x), labels))
        finally:
            handle.remove()

    for at in [(0, 0, 0), (1, 2, 3), (3, 3, 1)]:
        slope = (loss(1.0 + 0.01, at) - loss(1.0 - 0.01, at)) / 0.02
        assert -float(first[at]) == pytest.approx(slope, abs=2e-5)


def test_senet_finds_layers_less_sensitive_whose_weights_matter():
    scores = sensitivities(MODEL, TASK, 0.1)
    assert scores.keys() == MASKS.keys()
    assert all(0 <= value <= 1 for value in scores.values())
    assert scores["stage3.0.act1"] < 1.0
    idle = copy.deepcopy(MODEL)
    with torch.no_grad():
        idle.stage3[0].conv1[0].weight.mul_(1e-9)
    # weights that do nothing are pruned, and their ReLUs matter more
    assert sensitivities(idle, TASK, 0.1)["stage3.0.act1"] == 1.0


def test_senet_measures_without_a_batch_of_a_single_image():
    """Which a batch norm over vectors refuses in training mode."""
    layers = nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 10)
    model = convert(nn.Sequential(*layers), DATA.shape)
    given = replace(task(model), recipe=replace(RECIPE, batch=199))
    assert len(DATA.train) % given.recipe.batch == 1
    assert sensitivities(model, given, 0.1).keys() == {"3"}


@given(
    room=st.lists(st.integers(0, 50), min_size=1, max_size=6),
    matter=st.lists(st.floats(0, 1), min_size=6, max_size=6),
    share=st.floats(0, 1),
)
def test_layer_budgets_add_up_and_fit(room: list[int], matter: list[float], share: float):
    masks = {str(at): torch.ones(size, 1, 1, dtype=torch.bool) for at, size in enumerate(room)}
    budget = round(share * sum(room))
    budgets = layer_budgets({str(at): matter[at] for at in range(len(room))}, masks, budget)
    assert sum(budgets.values()) == budget
    assert all(0 <= budgets[str(at)] <= size for at, size in enumerate(room))


def test_layer_budgets_go_by_what_matters():
    masks = {name: torch.ones(100, 1, 1, dtype=torch.bool) for name in "abc"}
    assert layer_budgets({"a": 0.2, "b": 0.3, "c": 0.5}, masks, 100) == {"a": 20, "b": 30, "c": 50}
    assert layer_budgets({"a": 0.1, "b": 0.1, "c": 0.8}, masks, 200) == {"a": 50, "b": 50, "c": 100}


def test_autorep_changes_a_state_only_outside_its_band():
    search = AutoRePSearch(AutoReP(200, hysteresis=0.1), copy.deepcopy(MODEL), TASK)
    layer = search.layer("stem.act")
    gate, state = layer.gate.data.view(-1), layer.get_buffer("state").view(-1)
    history = []
    for value in (0.05, -0.05, -0.2, -0.05, 0.05, 0.2):
        gate[0] = value
        search.before(0, 10)
        history.append(bool(state[0]))
    assert history == [True, True, False, False, False, True]
    assert float(layer.pulled[0]) == 1.0


def test_autorep_charges_only_the_density_above_the_one_wanted():
    few, many = (AutoRePSearch(AutoReP(budget), copy.deepcopy(MODEL), TASK) for budget in (500, 576))
    assert few.penalty().item() == pytest.approx(100 / 576 * 76)
    assert many.penalty().item() == 0.0
    few.layer("stem.act").get_buffer("state").zero_()
    assert few.penalty().item() == 0.0


@given(mean=st.floats(-2, 2), deviation=st.floats(0.2, 3))
def test_the_quadratic_is_the_least_squares_one(mean: float, deviation: float):
    x = mean + deviation * torch.linspace(-7, 7, 4001, dtype=torch.float64)
    weight = torch.exp(-(((x - mean) / deviation) ** 2) / 4)  # the square root of the density
    basis = torch.stack([torch.ones_like(x), x, x * x], 1)
    best = torch.linalg.lstsq(basis * weight[:, None], (x.clamp(min=0) * weight)[:, None]).solution[:, 0]
    coefficients = nearest_quadratic(
        torch.tensor([mean], dtype=torch.float64), torch.tensor([deviation], dtype=torch.float64)
    )
    assert torch.allclose(coefficients[0], best, atol=1e-3)


def test_autorep_with_polynomials_is_saved_and_counted(tmp_path):
    gentle = replace(RECIPE, lr=1e-3)
    model, record = linearize(MODEL, AutoReP(200, polynomial=True), DATA, recipe=gentle)
    assert record.relus == 200
    layer = model.get_submodule("stem.act")
    assert isinstance(layer, PolynomialReLU)
    x = torch.randn(2, *MASKS["stem.act"].shape)
    c = layer.coefficients.detach()[:, :, None, None]
    by_hand = torch.where(layer.mask, x.relu(), c[:, 0] + c[:, 1] * x + c[:, 2] * x * x)
    assert torch.allclose(layer(x), by_hand, atol=1e-5)
    save(model, tmp_path, Manifest(model.architecture))
    again = load(tmp_path)
    images = DATA.normalize(DATA.validation.images)
    assert torch.allclose(again(images), model(images), atol=1e-4)


def test_descent_takes_the_best_of_its_tries():
    search = DescentSearch(Descent(200, moves=1, until=1.0, tries=6), copy.deepcopy(MODEL), TASK)
    batch, labels = DATA.normalize(DATA.train.images[:50]), DATA.train.labels[:50]
    kept = {path: mask.clone() for path, mask in search.masks().items()}
    losses = []
    for number in range(6):
        search.choose(search._without_a_block(kept, 200, number))
        losses.append(cross_entropy(search.eval()(batch), labels).item())
    search.choose(kept)
    search.after(0, 1, batch, labels)
    assert cross_entropy(search.eval()(batch), labels).item() == pytest.approx(min(losses))


def test_coarse_removal_cuts_few_layers():
    model, record = linearize(MODEL, Coarse(200), DATA, recipe=RECIPE)
    cut = [mask for mask in masks_of(model, DATA.shape).values() if mask.any() and not mask.all()]
    assert len(cut) == 1
    assert sum(bool(channel.any() and not channel.all()) for channel in cut[0].flatten(1)) <= 1
    # of the plan just above 200, culling stage 1: 192 after it and 0 of the 128 before; then thinning, in part
    assert record.kept["stage3.0.act2"] == 32


def test_senet_measures_each_round_anew():
    theirs = {path: torch.ones(4, *mask.shape) for path, mask in MASKS.items()}
    ours = {path: torch.zeros(4, *mask.shape) for path, mask in MASKS.items()}
    ours["stem.act"][:, 0] = 2.5  # differs by 1.5 where the others differ by 1
    search = SENetSearch(SENet(64, rounds=2), copy.deepcopy(MODEL), TASK, dict.fromkeys(MASKS, 32), theirs)
    search.ours = ours
    search.after(0, 4, torch.empty(0), torch.empty(0))
    assert search.layer("stem.act").get_buffer("difference")[0].unique().tolist() == [6.0]
    search.after(1, 4, torch.empty(0), torch.empty(0))
    assert search.layer("stem.act").get_buffer("difference").unique().tolist() == [0.0]
    assert search.masks()["stem.act"].flatten(1).sum(1).tolist() == [32, 0]


def test_senet_needs_a_teacher_with_the_same_relus():
    with pytest.raises(ValueError, match="SENet compares every ReLU with the teacher's, which has none of shape"):
        linearize(MODEL, SENet(200, mismatch=0.0), DATA, recipe=RECIPE, teacher=trained("resnet9-m2"))


def test_a_mismatch_with_another_network_is_refused_in_one_line():
    with pytest.raises(ValueError, match=r"the teacher has no layer .* mismatch=0 compares none"):
        linearize(MODEL, Taylor(200), DATA, recipe=RECIPE, teacher=trained("resnet9-m2"))


def test_masked_layers_hold_what_was_chosen():
    model, _ = linearize(MODEL, Taylor(200, mismatch=0.0), DATA, recipe=RECIPE)
    layers = [module for module in model.modules() if isinstance(module, MaskedReLU)]
    assert [name for name, _ in layers[0].named_buffers()] == ["mask"]


def test_snl_as_its_authors_published_it_ends_within_the_budget_and_continues_after_a_kill(tmp_path, monkeypatch):
    monkeypatch.setattr("deepreshape.training.loop.CHECKPOINT_SECONDS", 0.0)
    procedure = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "linearize.py"))["Published"]
    hasty = procedure(200, search_epochs=50, search_lr=0.3, strength=0.1, patience=1)

    phases: list[str] = []

    def run(**more):
        return linearize(MODEL, hasty, DATA, recipe=RECIPE, **more)

    model, record = run()
    assert record.relus <= 200
    with pytest.raises(KilledError):
        run(folder=tmp_path, progress=kill_at("search", 3))
    monkeypatch.setattr("deepreshape.training.loop.CHECKPOINT_SECONDS", 1e9)
    with pytest.raises(KilledError):
        run(folder=tmp_path, progress=kill_at("tune", 1))
    assert run(folder=tmp_path, progress=lambda phase, at: phases.append(phase))[1].relus == record.relus
    assert set(phases) == {"tune"}
    again, _ = run(folder=tmp_path)
    assert equal(weights(model), weights(again))
    assert len((tmp_path / "search" / "metrics.jsonl").read_text().splitlines()) < 50


def test_a_search_has_exact_signs_and_a_fine_tuning_may_have_faults():
    faulty = replace(RECIPE, relu="stochastic:drop=4,fraction=8")
    assert linearize(MODEL, Taylor(200, mismatch=0.0), DATA, recipe=faulty)[1].relus == 200
    with pytest.raises(
        ValueError, match=r"mismatch=10.0 compares exact ReLUs and relu=stochastic:drop=4,fraction=8 has"
    ):
        linearize(MODEL, Taylor(200), DATA, recipe=faulty)
