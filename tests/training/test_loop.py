import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from torch.nn import functional

from deepreshape.data import Dataset, Split
from deepreshape.models import architecture, build
from deepreshape.nn import Escape, MaskedReLU, PolynomialReLU, StochasticReLU
from deepreshape.training import RECIPES, Progress, Recipe, distillation_loss, train
from deepreshape.training.convolution import MatrixConvolutions, matrix_convolution
from deepreshape.training.muon import Muon, orthogonal
from deepreshape.training.optimizer import make_optimizer

TINY = architecture("resnet20-m2-phi1.1.1", (1, 8, 8), 10)
SHORT = Recipe(epochs=2, batch=32, lr=0.1, crop=1, flip=False, precision="float32")


@pytest.fixture(scope="module")
def digits() -> Dataset:
    """A few of the digits, so that runs are short."""
    whole = Dataset.load("digits")
    few = Split(whole.train.images[:200], whole.train.labels[:200])
    return Dataset("digits", few, whole.validation, whole.test, whole.class_names, whole.mean, whole.std)


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


class KilledError(Exception):
    pass


def kill_at(step: int):
    def progress(now: Progress) -> None:
        if now.step == step:
            raise KilledError

    return progress


def test_two_runs_of_one_seed_agree(digits: Dataset):
    models = [build(TINY, seed=1) for _ in range(3)]
    tops = [
        train(model, digits, SHORT, seed=seed).top1_validation for model, seed in zip(models, (5, 5, 6), strict=True)
    ]
    assert equal(weights(models[0]), weights(models[1]))
    assert tops[0] == tops[1]
    assert not equal(weights(models[0]), weights(models[2]))


@pytest.mark.parametrize(
    "recipe", [SHORT, replace(SHORT, optimizer="adamw", ema=0.9, lr=0.01), replace(SHORT, optimizer="muon")]
)
def test_a_killed_run_continues_to_the_same_weights(digits: Dataset, tmp_path: Path, monkeypatch, recipe: Recipe):
    monkeypatch.setattr("deepreshape.training.loop.CHECKPOINT_SECONDS", 0.0)
    whole = build(TINY, seed=1)
    train(whole, digits, recipe, seed=3)
    for stop in (2, 7, 9):
        with pytest.raises(KilledError):
            train(build(TINY, seed=1), digits, recipe, seed=3, folder=tmp_path, progress=kill_at(stop))
    again = build(TINY, seed=2)
    trained = train(again, digits, recipe, seed=3, folder=tmp_path)
    assert equal(weights(whole), weights(again))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows[-1]["top1_validation"] == trained.top1_validation
    assert trained.seconds > 0


def test_without_a_holdout_the_validation_split_is_trained_on_and_says_nothing(digits: Dataset, tmp_path: Path):
    few = replace(digits, validation=Split(digits.validation.images[:40], digits.validation.labels[:40]))
    both = replace(few, train=few.whole, validation=digits.validation)
    assert len(few.whole) == 240
    models = [build(TINY, seed=1) for _ in range(2)]
    trained = train(models[0], few, replace(SHORT, holdout=False), seed=3, folder=tmp_path)
    train(models[1], both, SHORT, seed=3)
    assert equal(weights(models[0]), weights(models[1]))
    assert trained.top1_validation is None
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["top1_validation"] for row in rows] == [None, None]


def test_the_other_parameters_have_a_rate_of_their_own(digits: Dataset):
    start = build(TINY, seed=1)
    tried = {"still": replace(SHORT, lr_other=1e-9), "moved": SHORT}
    models = {name: build(TINY, seed=1) for name in tried}
    for name, recipe in tried.items():
        train(models[name], digits, recipe, seed=3)
    for at, first in start.named_parameters():
        far = {name: torch.dist(first, model.get_parameter(at)) for name, model in models.items()}
        assert (far["still"] < 1e-6) == (first.dim() != 4), at
        assert far["moved"] > 1e-6, at


@pytest.mark.parametrize("activation", ["relu", "herpn"])
def test_images_grow_in_two_steps_to_their_size(digits: Dataset, activation: str):
    sides: list[int] = []
    model = build(replace(TINY, activation=activation), seed=1)
    model.register_forward_pre_hook(lambda _, inputs: sides.append(inputs[0].shape[2]) if model.training else None)
    train(model, digits, replace(SHORT, grow=0.5), seed=3)
    assert [(side, sides.count(side)) for side in (4, 6, 8)] == [(4, 4), (6, 3), (8, 7)]
    assert sides == sorted(sides)


def test_images_do_not_grow_under_masks(digits: Dataset):
    model = build(TINY, seed=1)
    model.stem.act = MaskedReLU(torch.ones(2, 8, 8, dtype=torch.bool))  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValueError, match=r"grow=0\.5 .* masks"):
        train(model, digits, replace(SHORT, grow=0.5), seed=3)


@pytest.mark.parametrize("shape", [(8, 30), (30, 8), (12, 12)])
def test_an_orthogonal_step_has_the_singular_vectors_and_none_of_the_values(shape: tuple[int, int]):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    cosines = (left.T @ orthogonal(matrix) @ right.T).diagonal()
    assert cosines.min() > 0.6
    assert cosines.max() < 1.3
    assert torch.linalg.norm(orthogonal(matrix) - left @ cosines.diag() @ right) < 1e-3


@pytest.mark.parametrize("shape", [(8, 72), (72, 8), (16, 16), (6, 1)])
def test_rounds_on_the_square_matrix_are_those_of_the_iteration_itself(shape: tuple[int, int]):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = matrix / (matrix.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    assert torch.dist(orthogonal(matrix), x) < 1e-9
    assert torch.dist(orthogonal(matrix.float()), x) < 1e-4
    assert orthogonal(matrix.bfloat16()).dtype == torch.float32


def test_muon_moves_convolutions_by_its_rate_and_everything_else_as_sgd_does():
    generator = torch.Generator().manual_seed(0)
    first = [torch.randn(shape, generator=generator) for shape in ((6, 4, 3, 3), (5, 7))]
    gradients = [[torch.randn(weight.shape, generator=generator) for weight in first] for _ in range(3)]
    convolution, matrix = (torch.nn.Parameter(weight.clone()) for weight in first)
    same = torch.nn.Parameter(first[1].clone())
    muon = Muon(
        [
            {"params": [convolution], "orthogonal": True, "lr": 0.1},
            {"params": [matrix], "weight_decay": 0.01, "lr": 0.1},
        ]
    )
    sgd = torch.optim.SGD([same], lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
    for one, other in gradients:
        convolution.grad, matrix.grad, same.grad = one, other.clone(), other.clone()
        before = convolution.detach() * (6**0.5 / convolution.detach().norm())
        muon.step()
        sgd.step()
        assert torch.dist(before, convolution.detach()) == pytest.approx(0.1 * 6**0.5, rel=1e-4)
    assert torch.allclose(matrix, same, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "kernel", "stride", "padding"),
    [((7, 4, 4), 3, 1, 1), ((7, 8, 8), 4, 2, 1), ((7, 7, 5), 3, 2, 1), ((7, 4, 6), 1, 2, 0), ((7, 3, 3), 3, 1, 0)],
)
def test_a_matrix_convolution_is_a_convolution(shape: tuple[int, ...], kernel: int, stride: int, padding: int):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, *shape, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, shape[0], kernel, kernel, generator=generator, dtype=torch.float64, requires_grad=True)
    steps = (stride, stride), (padding, padding)
    ours, theirs = matrix_convolution(x, weight, *steps), functional.conv2d(x, weight, None, *steps)
    assert torch.allclose(ours, theirs)
    grad = torch.randn(ours.shape, generator=generator, dtype=torch.float64)
    for gradient, expected in zip(
        torch.autograd.grad(ours, (x, weight), grad), torch.autograd.grad(theirs, (x, weight), grad), strict=True
    ):
        assert torch.allclose(gradient, expected)


@pytest.mark.parametrize(
    ("channels", "side", "settings", "taken"),
    [
        (128, 4, {}, True),
        (128, 8, {"stride": 2}, True),
        (128, 8, {}, False),  # a large map
        (16, 4, {}, False),  # a short window
        (128, 4, {"groups": 2}, False),
        (128, 4, {"dilation": 2}, False),
        (128, 4, {"bias": True}, False),
    ],
)
def test_only_wide_convolutions_of_small_maps_become_products(
    channels: int, side: int, settings: dict[str, int], taken: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    layer = torch.nn.Conv2d(channels, 8, 3, padding=1, **({"bias": False} | settings))  # pyright: ignore[reportArgumentType]
    x = torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(0))
    with MatrixConvolutions():
        plain = layer(x)
        with torch.autocast("cpu", torch.bfloat16):
            low = layer(x)
    assert "Matrix" not in str(plain.grad_fn)
    assert ("Matrix" in str(low.grad_fn)) == taken
    assert low.dtype == torch.bfloat16
    assert torch.allclose(low.float(), plain, atol=0.05)


@pytest.mark.parametrize(
    ("channels", "stride", "taken"), [(4, 2, True), (4, (1, 3), True), (4, 1, False), (8, 2, True), (16, 2, False)]
)
def test_strided_1x1_convolutions_of_few_channels_select_pixels_first(
    channels: int, stride: int | tuple[int, int], taken: bool
):
    layer = torch.nn.Conv2d(channels, 6, 1, stride=stride).double()
    x = torch.randn(2, channels, 7, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        plain = layer(x)
    with MatrixConvolutions():
        ours = layer(x.requires_grad_())
    assert torch.allclose(ours, plain)
    convolution = ours.grad_fn
    assert convolution is not None
    assert (max(convolution._saved_stride) == 1) == (taken or stride == 1)


def test_faults_in_the_loop_change_the_weights_and_leave_the_relus(digits: Dataset):
    recipes = [
        replace(SHORT, relu=relu) for relu in ("", "stochastic:drop=8,fraction=10", "stochastic:drop=8,fraction=10")
    ]
    models = [build(TINY, seed=1) for _ in recipes]
    for model, recipe in zip(models, recipes, strict=True):
        train(model, digits, recipe, seed=5)
        assert not any(isinstance(layer, StochasticReLU) for layer in model.modules())
    assert equal(weights(models[1]), weights(models[2]))
    assert not equal(weights(models[0]), weights(models[1]))


def test_a_folder_with_another_run_is_refused(digits: Dataset, tmp_path: Path):
    train(build(TINY, seed=1), digits, SHORT, seed=3, folder=tmp_path)
    with pytest.raises(ValueError, match=r"holds another run \(lr was 0.1, now 0.2; seed was 3, now 4\)"):
        train(build(TINY, seed=1), digits, SHORT.with_values({"lr": 0.2}), seed=4, folder=tmp_path)


def test_a_folder_with_another_network_is_refused(digits: Dataset, tmp_path: Path):
    train(build(TINY, seed=1), digits, SHORT, seed=3, folder=tmp_path)
    with pytest.raises(ValueError, match="holds a run of another network; use that one, or another folder"):
        train(build(architecture("resnet9-m2", digits.shape, 10), seed=1), digits, SHORT, seed=3, folder=tmp_path)


def test_a_last_metric_that_was_cut_off_is_made_again(digits: Dataset, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("deepreshape.training.loop.CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(KilledError):
        train(build(TINY, seed=1), digits, SHORT, seed=3, folder=tmp_path, progress=kill_at(3))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 1, "st')
    train(build(TINY, seed=1), digits, SHORT, seed=3, folder=tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == list(range(1, SHORT.epochs + 1))


@pytest.mark.parametrize(
    ("settings", "teacher", "message"),
    [
        ({"mismatch": 1.0}, True, "mismatch=1.0 compares maps at masked ReLUs, and there are none; leave it out"),
        ({"grow": 0.5}, False, "grow=0.5 begins with images of 4x4, too small for this network; leave it out"),
    ],
)
def test_settings_that_do_not_fit_the_network_are_one_line(
    settings: dict, teacher: bool, message: str, digits: Dataset
):
    network = build(architecture("vgg16-m2" if "grow" in settings else "resnet9-m2", digits.shape, 10), seed=0)
    taught_by = build(TINY, seed=1) if teacher else None
    with pytest.raises(ValueError, match=message):
        train(network, digits, SHORT.with_values(settings), seed=0, teacher=taught_by)


def test_decay_is_for_weights_of_convolutions_and_linear_layers():
    network = build(architecture("resnet9-m2", (1, 8, 8), 10), seed=0)
    network.set_submodule("stem.act", PolynomialReLU(torch.ones(2, 8, 8, dtype=torch.bool), torch.zeros(2, 3)))
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    groups = make_optimizer(network, replace(SHORT, weight_decay=0.1), None).param_groups
    decayed = {names[id(weight)] for group in groups if group["weight_decay"] for weight in group["params"]}
    kinds = (torch.nn.Conv2d, torch.nn.Linear)
    assert decayed == {f"{name}.weight" for name, module in network.named_modules() if isinstance(module, kinds)}
    assert sorted(names.values()) == sorted(names[id(weight)] for group in groups for weight in group["params"])


def test_a_checkpoint_is_never_half_written(digits: Dataset, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("deepreshape.training.loop.CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(KilledError):
        train(build(TINY, seed=1), digits, SHORT, seed=3, folder=tmp_path, progress=kill_at(3))
    (tmp_path / "checkpoint.safetensors.part").write_bytes(b"cut off")
    steps: list[int] = []
    train(build(TINY, seed=1), digits, SHORT, seed=3, folder=tmp_path, progress=lambda now: steps.append(now.step))
    assert steps[0] == 4


def test_training_learns_the_digits():
    data = Dataset.load("digits")
    model = build(architecture("resnet9-m4", data.shape, 10), seed=0)
    assert train(model, data, RECIPES["digits"].with_values({"epochs": 4}), seed=0).top1_validation > 80


def test_the_teacher_is_left_alone_and_heard(digits: Dataset):
    teacher = build(TINY, seed=9)
    before = weights(teacher)
    taught, alone = build(TINY, seed=1), build(TINY, seed=1)
    train(taught, digits, SHORT, seed=0, teacher=teacher)
    train(alone, digits, SHORT, seed=0)
    assert equal(before, weights(teacher))
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not equal(weights(taught), weights(alone))


def test_the_test_split_is_not_read_in_training(digits: Dataset):
    class Untouchable(Split):
        def __getattribute__(self, name: str):
            raise AssertionError("the test split was read")

    sealed = Dataset("digits", digits.train, digits.validation, Untouchable(*vars(digits.test).values()),
                     digits.class_names, digits.mean, digits.std)  # fmt: skip
    train(build(TINY, seed=0), sealed, SHORT, seed=0)


def test_a_loss_that_is_not_a_number_ends_the_run(digits: Dataset):
    model = build(TINY, seed=0)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match=r"the loss became nan in epoch 1; a lower lr than 90"):
        train(model, digits, Recipe(**{**vars(SHORT), "lr": 90.0}), seed=0)


def test_distillation_is_the_published_loss():
    student, teacher = torch.randn(6, 10), torch.randn(6, 10)
    labels = torch.arange(6)
    soft, hard = functional.softmax(teacher / 4, 1), functional.softmax(student / 4, 1)
    by_hand = 0.1 * functional.cross_entropy(student, labels) + 0.9 * 16 * (soft * (soft / hard).log()).sum(1).mean()
    assert torch.allclose(distillation_loss(student, labels, teacher), by_hand, atol=1e-5)
    assert torch.equal(distillation_loss(student, labels, None), functional.cross_entropy(student, labels))


def test_recipes_are_checked():
    assert Recipe().with_values({"lr": "0.1", "flip": "false", "epochs": "3"}) == Recipe(lr=0.1, flip=False, epochs=3)
    for values, message in [
        ({"learning_rate": 1}, "unknown setting 'learning_rate'; known are epochs, batch"),
        ({"lr": "fast"}, "lr='fast'"),
        ({"epochs": 0}, "epochs must be from 1"),
        ({"schedule": "step"}, "schedule='step'"),
    ]:
        with pytest.raises(ValueError, match=message):
            Recipe().with_values(values)


def test_a_backward_slope_changes_what_is_learned_and_leaves_the_network_its_modules(digits: Dataset):
    learned = []
    for slope in (0.0, 0.1):
        model = build(TINY, seed=0)
        modules = [type(module) for module in model.modules()]
        train(model, digits, replace(SHORT, backward_slope=slope), seed=0)
        assert [type(module) for module in model.modules()] == modules
        learned.append(weights(model))
    assert not equal(*learned)


def test_a_slope_and_faults_exclude_each_other():
    with pytest.raises(ValueError, match=r"backward_slope=0\.1 is for exact ReLUs"):
        Recipe(backward_slope=0.1, relu="stochastic:drop=12,fraction=20")


def test_inputs_of_squares_are_held_in_by_default(digits: Dataset, monkeypatch: pytest.MonkeyPatch):
    squares = architecture("resnet20-m2-phi1.1.1-herpn", (1, 8, 8), 10)
    held, free = (build(squares, seed=1) for _ in range(2))
    seen: list[float] = []
    take = Escape.take
    monkeypatch.setattr(Escape, "take", lambda self: (seen.append(len(self._sites)), take(self))[1])
    train(held, digits, SHORT, seed=5)
    steps = len(seen)
    assert steps == 2 * 7
    assert set(seen) == {7}  # every square of the network, in every step
    train(free, digits, replace(SHORT, escape=0.0), seed=5)
    assert len(seen) == steps
    assert not equal(weights(held), weights(free))


def test_a_network_may_call_convolutions_with_few_arguments(digits: Dataset):
    class Own(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(2, 1, 3, 3))
            self.head = torch.nn.Linear(2, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(functional.conv2d(x, self.weight, None, 2).mean((2, 3)))

    model = Own()
    before = weights(model)
    train(model, digits, replace(SHORT, epochs=1), seed=0)
    assert not equal(before, weights(model))


def test_a_folder_where_another_run_is_at_work_is_refused(digits: Dataset, tmp_path: Path):
    with FileLock(tmp_path / "lock"), pytest.raises(ValueError, match="another run is at work in") as refused:
        train(build(TINY, seed=1), digits, SHORT, seed=3, folder=tmp_path)
    assert str(tmp_path) in str(refused.value)
    train(build(TINY, seed=1), digits, SHORT, seed=3, folder=tmp_path)


@pytest.mark.parametrize(("images", "steps"), [(33, 1), (34, 2), (65, 2), (64, 2)])
def test_a_last_batch_of_one_image_joins_the_one_before(digits: Dataset, images: int, steps: int):
    few = replace(digits, train=Split(digits.train.images[:images], digits.train.labels[:images]))
    layers = torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 10)
    seen: list[Progress] = []
    train(torch.nn.Sequential(*layers), few, replace(SHORT, epochs=1, crop=0), seed=0, progress=seen.append)
    assert [at.step for at in seen] == list(range(1, steps + 1))
