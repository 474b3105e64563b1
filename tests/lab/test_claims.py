"""Claims as their authors write them, and what the lab takes from them."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch

from jingdu.errors import UsageError
from jingdu.lab import Claim, Lab, Test, claim

ONE = (Test("a.x", 0, above=0),)


def example(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    return {"a": {"x": float(seed)}}


def test_a_claim_is_the_function_and_its_statement() -> None:
    made = claim("It rises.", source="Fig. 1", tests=ONE, minutes=2, about="small")(example)
    assert isinstance(made, Claim)
    assert (made.name, made.paper, made.text, made.source) == ("example", "test_claims", "It rises.", "Fig. 1")
    assert (made.seeds, made.minutes, made.about, made.tests) == (3, 2, "small", ONE)
    assert made(Lab(), 4) == {"a": {"x": 4.0}}
    assert not made.deterministic and claim("t", "s", list(ONE), seeds=1)(example).deterministic
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.text = "another"


def test_the_figure_decorator_keeps_the_function() -> None:
    made = claim("t", source="s", tests=ONE)(example)
    other = claim("t", source="s", tests=ONE)(example)

    @made.figure
    def draw(figure: object, outcome: object) -> None:
        return None

    assert draw(None, None) is None
    assert made.drawings == [draw] and other.drawings == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seeds": 2}, "2 seeds"),
        ({"seeds": 0}, "0 seeds"),
        ({"tests": ()}, "no test"),
        ({"text": ""}, "a text and a source"),
        ({"source": ""}, "a text and a source"),
    ],
)
def test_a_claim_is_checked_when_it_is_written(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        claim(**{"text": "t", "source": "s", "tests": ONE, **arguments})


def test_budgets() -> None:
    assert Lab().budget(full=300, smoke=3) == 300
    assert Lab(smoke=True).budget(full=300, smoke=3) == 3
    assert Lab(smoke=True).smoke and not Lab().smoke


def test_curves_are_kept_as_numbers() -> None:
    lab = Lab()
    lab.curve("loss", range(2, 5), torch.tensor([0.5, 0.25, 0.125]), x="step", y="nats")
    assert lab.curves["loss"] == ([2.0, 3.0, 4.0], [0.5, 0.25, 0.125])
    assert lab.axes["loss"] == ("step", "nats")
    with pytest.raises(UsageError, match="already"):
        lab.curve("loss", [1], [1])
    with pytest.raises(UsageError, match="2 xs and 3 ys"):
        lab.curve("short", [1, 2], [1, 2, 3])


def test_images_become_what_imshow_takes() -> None:
    lab = Lab()
    colour = torch.rand(3, 5, 7, requires_grad=True)
    lab.image("colour", colour)
    lab.image("grey", np.array([[-0.5, 0.25], [np.nan, 1.5], [0, 1]]))
    lab.image("one", torch.ones(1, 5, 7, dtype=torch.bfloat16))
    assert lab.images["colour"].shape == (5, 7, 3)
    assert (lab.images["colour"] == colour.detach().permute(1, 2, 0).numpy()).all()
    assert lab.images["grey"].tolist() == [[0.0, 0.25], [0.0, 1.0], [0.0, 1.0]]
    assert lab.images["one"].shape == (5, 7)
    with pytest.raises(UsageError, match=r"shape \[4, 5, 7\]"):
        lab.image("four", torch.zeros(4, 5, 7))
    with pytest.raises(UsageError, match=r"shape \[5\]"):
        lab.image("row", np.zeros(5))
    with pytest.raises(UsageError, match="already"):
        lab.image("grey", np.zeros((2, 3)))


def _loaded(code: str, *modules: str) -> list[str]:
    program = f"import sys; {code}; print([m for m in {modules!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return eval(done.stdout)


def test_importing_is_light() -> None:
    heavy = ("torch", "numpy", "matplotlib", "sklearn", "scipy")
    assert _loaded("import jingdu.lab, jingdu.lab.reports, jingdu.lab.judge", *heavy) == []
    code = "from jingdu.lab import Lab, Test, claim, Claim, Outcome; import jingdu.lab.run"
    assert _loaded(code, "matplotlib", "sklearn", "scipy", "torch") == ["torch"]
    with pytest.raises(ImportError):
        from jingdu.lab import nothing  # noqa: F401
