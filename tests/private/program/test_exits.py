"""The program of an exit is a part of the whole one: the same operations, the same integers."""

import numpy as np
import pytest
from support.few_digits import digits, trained

from deepreshape.models import attach_exits
from deepreshape.models.exits import HEADS
from deepreshape.private.program import interpret
from deepreshape.private.program.encoding import from_bytes, to_bytes
from deepreshape.private.program.lower import lower
from deepreshape.private.program.quantize import Lowered


@pytest.fixture(scope="module", params=HEADS)
def lowered(request: pytest.FixtureRequest) -> Lowered:
    return lower(attach_exits(trained(), (1, 2), request.param), digits())


def test_a_program_gives_an_answer_for_every_exit(lowered: Lowered):
    inner = "out.2" if any(op.name == "exits.1.act" for op in lowered.program.ops) else "2"
    assert lowered.program.outputs == (f"exits.1.{inner}", f"exits.2.{inner}", "head.2")


@pytest.mark.parametrize("place", range(3))
def test_an_exit_computes_the_integers_of_the_whole(lowered: Lowered, place: int):
    whole, output = lowered.program, lowered.program.outputs[place]
    part = lowered.up_to(output)
    inputs = np.random.default_rng(0).integers(-whole.input_bound, whole.input_bound + 1, (3, *whole.input_shape))
    seen, also = {}, {}
    interpret.run(whole, inputs, observe=lambda name, value: seen.update({name: value}))
    answer = interpret.run(part.program, inputs, observe=lambda name, value: also.update({name: value}))
    assert all(np.array_equal(seen[name], value) for name, value in also.items())
    assert np.array_equal(answer, seen[output])
    assert set(part.program.ops) <= set(whole.ops)
    assert part.program.modulus == whole.modulus
    assert {form.name for form in part.formats} == set(part.program.values)
    assert part.error.shape == (10,)
    others = {op.name for op in whole.ops} - {op.name for op in part.program.ops}
    heads = {name.rpartition(".")[0] for name in whole.outputs if name != output}
    if place == 2:
        assert {name[:7] for name in others} == {name[:7] for name in heads}
    else:
        assert "head.2" in others
    again = from_bytes(to_bytes(part.program))
    assert np.array_equal(interpret.run(again, inputs), answer)


def test_only_outputs_can_be_asked_for(lowered: Lowered):
    with pytest.raises(ValueError, match=r"'stem.act' is no output of the program, which gives exits\.1\."):
        lowered.up_to("stem.act")
