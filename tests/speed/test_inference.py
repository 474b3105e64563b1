"""optimize_for_inference: the same answers by the same call, the choice kept, wrong inputs explained."""

import copy
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import jingdu
from jingdu.errors import UsageError
from jingdu.papers.cnn.resnet import ResNet
from jingdu.speed import inference
from jingdu.speed.inference import AS_IT_WAS, Steps, apply_steps, optimize_for_inference
from jingdu.speed.references import randomise_


@pytest.fixture
def network() -> nn.Module:
    return randomise_(jingdu.create("resnet20_cifar", width=4), torch.Generator().manual_seed(3)).eval()


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def gap(ours: Tensor, reference: Tensor) -> float:
    return float((ours - reference).abs().max() / reference.abs().max())


def test_same_class_same_answers_and_the_original_untouched(network: nn.Module) -> None:
    before, x = copy.deepcopy(network.state_dict()), images(6, 3, 32, 32)
    quick = optimize_for_inference(network, x, compile=False)
    assert isinstance(quick, ResNet) and quick.origin == network.origin
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(p.requires_grad and p.dtype == torch.float32 for p in network.parameters())
    found = quick.optimization
    for shape in ((6, 3, 32, 32), (1, 3, 32, 32), (5, 3, 17, 23)):
        output = quick(images(*shape))
        assert output.dtype == torch.float32 and not output.requires_grad
        with torch.no_grad():
            assert gap(output, network(images(*shape))) <= 2 * found.tolerance
    assert found.folded == 19 and found.difference <= found.tolerance == 0.02
    assert {AS_IT_WAS, "float32", "float32, channels-last", "bf16, channels-last"} == set(found.tried)
    assert found.seconds == min(v for name, v in found.tried.items() if name != AS_IT_WAS and isinstance(v, float))
    assert "batch norms folded" in str(found) and json.dumps(found.as_json())


def test_a_narrow_tolerance_keeps_float32(network: nn.Module) -> None:
    quick = optimize_for_inference(network, x := images(2, 3, 16, 16), tolerance=1e-4, compile=False)
    assert quick.optimization.dtype == "float32" and "more than 0.0001" in str(quick.optimization.tried)
    with torch.no_grad():
        assert gap(quick(x), network(x)) < 1e-5


def test_the_choice_is_kept_by_structure_shapes_and_machine(
    network: nn.Module, _own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = images(2, 3, 16, 16)
    first = optimize_for_inference(network, x, compile=False).optimization
    (path,) = (_own_cache / "inference").iterdir()
    monkeypatch.setattr(inference._Trial, "choose", lambda *_: pytest.fail("measured again"))
    # Other weights of the same structure share the choice; the tolerance is theirs.
    other = randomise_(jingdu.create("resnet20_cifar", width=4), torch.Generator().manual_seed(9))
    again = optimize_for_inference(other, x, compile=False).optimization
    assert again.cached and not first.cached
    assert (again.steps, again.seconds, again.tried) == (first.steps, first.seconds, first.tried)
    assert again.difference != first.difference
    for changed in (
        {"example": images(3, 3, 16, 16)},
        {"model": jingdu.create("resnet20_cifar", width=5)},
        {"tolerance": 0.03},
        {"cache": False},
    ):
        with pytest.raises(pytest.fail.Exception):
            optimize_for_inference(**{"model": network, "example": x, "compile": False, **changed})
    monkeypatch.setattr(inference, "machine", lambda: {"cpu": "another"})
    with pytest.raises(pytest.fail.Exception):
        optimize_for_inference(network, x, compile=False)
    monkeypatch.undo()
    monkeypatch.setenv("JINGDU_CACHE", str(_own_cache))
    path.write_text("{not json")
    assert not optimize_for_inference(network, x, compile=False).optimization.cached
    assert json.loads(path.read_text())["steps"]


def test_a_kept_choice_that_no_longer_keeps_the_outputs_is_made_again(network: nn.Module, _own_cache: Path) -> None:
    x = images(2, 3, 16, 16)
    optimize_for_inference(network, x, tolerance=1e-4, compile=False)
    (path,) = (_own_cache / "inference").iterdir()
    table = json.loads(path.read_text())
    path.write_text(json.dumps({**table, "steps": {"dtype": "bf16", "channels_last": True}}))
    again = optimize_for_inference(network, x, tolerance=1e-4, compile=False).optimization
    assert not again.cached and again.dtype == "float32"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((torch.zeros(3, 16, 16),), "x has 3 axes"),
        ((torch.zeros(2, 3, 16, 16, dtype=torch.float64),), "torch.float64"),
        (([[1.0]],), "x is a list"),
        ((), "missing a required argument: 'x'"),
        ((torch.zeros(2, 3, 16, 16), 1), "too many positional arguments"),
        ((torch.zeros(2, 1, 16, 16),), r"takes no input of \(2, 1, 16, 16\) .*optimised for \(2, 3, 16, 16\)"),
    ],
)
def test_wrong_inputs_are_explained(network: nn.Module, given: tuple[object, ...], says: str) -> None:
    quick = apply_steps(network, Steps("bf16", channels_last=True), (images(2, 3, 16, 16),))
    with pytest.raises(UsageError, match=says):
        quick(*given)
    assert quick(images(2, 3, 16, 16)).shape == (2, 10)


def test_wrong_use_is_explained(network: nn.Module) -> None:
    x = images(2, 3, 16, 16)
    for example in ([], {}):
        with pytest.raises(UsageError, match="example: give a tensor"):
            optimize_for_inference(network, example)
    with pytest.raises(UsageError, match=r"torch.float64"):
        optimize_for_inference(network, x.double())
    with pytest.raises(UsageError, match=r"torch.bfloat16: give the float32 one"):
        optimize_for_inference(copy.deepcopy(network).to(torch.bfloat16), x.to(torch.bfloat16))
    with pytest.raises(UsageError, match="tolerance 2"):
        optimize_for_inference(network, x, tolerance=2.0)
    quick = apply_steps(network, Steps(), (x,))
    assert quick.eval() is quick
    with pytest.raises(UsageError, match="cannot be trained"):
        quick.train()
    with pytest.raises(UsageError, match="already"):
        optimize_for_inference(optimize_for_inference(network, x, compile=False), x)


class Two(nn.Module):
    """Words and a mask; gives a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(11, 6), nn.Linear(6, 5)

    def forward(self, words: Tensor, mask: Tensor | None = None, *, scale: Tensor | None = None) -> dict[str, Tensor]:
        x = self.embed(words) if mask is None else self.embed(words) * mask[..., None]
        y = self.out(x)
        return {"logits": y if scale is None else y * scale, "length": torch.tensor(words.shape[1])}


@pytest.mark.parametrize("kind", ["positions", "names"])
def test_several_inputs_by_position_or_name(kind: str) -> None:
    model, words, mask, scale = Two().eval(), torch.arange(6).view(2, 3), torch.rand(2, 3), torch.rand(2, 3, 1)
    inputs = {"words": words, "mask": mask} | ({"scale": scale} if kind == "names" else {})
    example = inputs if kind == "names" else (words, mask)
    quick = optimize_for_inference(model, example, compile=False)
    with torch.no_grad():
        expected = model(**inputs)
    found = quick(**inputs)
    assert gap(found["logits"], expected["logits"]) < 0.02 and found["logits"].dtype == torch.float32
    assert found["length"] == 3
    if kind == "positions":
        assert torch.equal(quick(words, mask)["logits"], found["logits"])
        with pytest.raises(UsageError, match="optimised for words, mask, and was given words"):
            quick(words)


@pytest.mark.slow
def test_compiled_with_frozen_weights() -> None:
    model = randomise_(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()), torch.Generator()).eval()
    x = images(2, 3, 9, 11)
    quick = apply_steps(model, Steps("float32", channels_last=True, compiled=True), (x,))
    with torch.no_grad():
        assert gap(quick(x), model(x)) < 1e-5
        assert gap(quick(x[:1]), model(x[:1])) < 1e-5


def test_without_a_compiler_the_rest_stands_and_it_is_said(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.warns(RuntimeWarning, match=r"compiled was left out \(RuntimeError: No working C\+\+ compiler found\)"):
        quick = optimize_for_inference(network, images(2, 3, 16, 16))
    assert not quick.optimization.steps.compiled and "C++" in str(quick.optimization.tried)


def test_weights_that_give_no_number_are_not_called_equal(network: nn.Module) -> None:
    with torch.no_grad():
        network.fc.bias[0] = float("nan")
    with pytest.raises(UsageError, match="not finite"):
        optimize_for_inference(network, images(2, 3, 16, 16), compile=False)


def test_importing_jingdu_imports_no_torch_for_it() -> None:
    import subprocess

    code = (
        "import sys, jingdu; 'optimize_for_inference' in dir(jingdu) or sys.exit(3); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_tf32_is_on_inside_alone() -> None:
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [b.allow_tf32 for b in backends]
    with pytest.raises(KeyError), inference._tf32(True):
        assert all(b.allow_tf32 for b in backends)
        raise KeyError
    with inference._tf32(False):
        assert [b.allow_tf32 for b in backends] == before
    assert [b.allow_tf32 for b in backends] == before


def test_what_is_tried_where() -> None:
    on_cuda = inference.candidates(torch.device("cuda"), True)
    assert {steps.dtype for steps in on_cuda} == {"float32", "tf32", "bf16"}
    assert {steps.graph for steps in on_cuda} == {False, True} and all(steps.channels_last for steps in on_cuda)
    on_cpu = inference.candidates(torch.device("cpu"), False)
    assert [str(steps) for steps in on_cpu] == ["float32", "bf16"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "tf32", "bf16"])
def test_a_cuda_graph_gives_the_same(network: nn.Module, dtype: str) -> None:
    network, x = network.cuda(), images(4, 3, 16, 16).cuda()
    quick = apply_steps(network, Steps(dtype, channels_last=True, graph=True), (x,))
    first, other = quick(x), quick(2 * x)
    with torch.no_grad():
        assert gap(first, network(x)) < 0.02 and gap(other, network(2 * x)) < 0.02
        assert gap(quick(x[:3]), network(x[:3])) < 0.02
