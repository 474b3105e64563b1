"""optimize_for_decoding: the same text by the same loop, one program, the choice kept."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import jingdu
from jingdu import canon
from jingdu.errors import UsageError
from jingdu.papers.language.gpt2 import GPT2
from jingdu.papers.language.rnn import generate
from jingdu.speed import case, decoding
from jingdu.speed.decoding import KERNELS, optimize_for_decoding
from jingdu.speed.peak import Limits
from jingdu.speed.references import import_library, randomise_

SMALL = {"vocabulary": 101, "width": 24, "layers": 1, "heads": 4, "context": 61, "dropout": 0.0}


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return randomise_(jingdu.create("gpt2", **SMALL), torch.Generator().manual_seed(3)).eval()


def prompts(*sizes: int) -> list[Tensor]:
    return [torch.randint(101, (n,), generator=torch.Generator().manual_seed(n)) for n in sizes]


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("width", [24, 35])
def test_every_kernel_multiplies(name: str, width: int) -> None:
    draw = torch.Generator().manual_seed(1)
    matrix, x = torch.randn(17, width, generator=draw), torch.randn(width, generator=draw)
    torch.testing.assert_close(KERNELS[name](matrix, x), matrix @ x)
    torch.testing.assert_close(KERNELS[name](matrix.bfloat16(), x).float(), matrix @ x, rtol=0.05, atol=0.1)


def test_the_same_text_in_float32_and_the_choice_is_kept(
    network: nn.Module, _own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding._Trial, "rank", lambda trial, rounds: [("float32", "4 rows")])
    monkeypatch.setattr(decoding._Trial, "time", lambda trial, program, rounds: (1.0, 2.0))
    quick = optimize_for_decoding(network, capacity=40, tolerance=1e-4)
    found = quick.optimization
    assert isinstance(quick, GPT2) and quick.origin == network.origin and found.dtype == "float32"
    assert found.difference < 1e-5 and json.dumps(found.as_json()) and found.bytes == 4 * (101 * 24 + 12 * 24 * 24)
    for sizes, length in (((7,), 31), ((1,), 40), ((5, 11), 9), ((7,), 50)):  # compiled twice; a batch; too long for it
        ours, plain = (generate(model, prompts(*sizes), length) for model in (quick, network))
        assert [row.tolist() for row in ours] == [row.tolist() for row in plain]
    state = quick.init_state(1, 12)
    _, state = quick.step(prompts(5)[0][None], state)
    two = state.select(torch.tensor([0, 0]))  # as beam search does
    logits, _ = quick.step(torch.tensor([[3], [4]]), two)
    torch.testing.assert_close(logits[0], quick.step(torch.tensor([[3]]), state)[0][0], rtol=1e-4, atol=1e-5)
    assert len(list((_own_cache / "decoding").iterdir())) == 1
    again = optimize_for_decoding(network, capacity=40, tolerance=1e-4).optimization
    assert again.cached and (again.kernel, again.seconds) == (found.kernel, found.seconds)
    with torch.no_grad():
        assert torch.equal(quick(prompts(6)[0][None]), network(prompts(6)[0][None]))


def test_the_quickest_kernel_comes_first(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "KERNELS", {name: KERNELS[name] for name in ("linear", "mv")})
    trial = decoding._Trial(network, 40, 0.02)
    order = [", ".join(pair) for pair in trial.rank(3)]
    assert sorted(order) == ["bf16, linear", "bf16, mv", "float32, linear", "float32, mv"]
    assert order == sorted(order, key=trial.tried.__getitem__)


def test_narrow_weights_within_a_tolerance(network: nn.Module) -> None:
    trial = decoding._Trial(network, 40, 0.02)
    program = trial.enter("bf16", "4 rows")
    assert program is not None and 1e-4 < trial.difference <= 0.02
    assert program.bytes == 2 * (101 * 24 + 12 * 24 * 24)
    assert decoding._Trial(network, 40, 1e-4).enter("bf16", "4 rows") is None


def test_the_bench_makes_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Eager and compiled, in both precisions; the compiler stays away, for speed."""
    transformers = import_library("transformers")
    sizes = {"n_embd": 24, "n_layer": 2, "n_head": 4, "vocab_size": 101, "n_positions": 61}
    theirs = randomise_(transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)), torch.Generator()).eval()
    theirs.save_pretrained(tmp_path)

    def pair(*arguments: object) -> case.Pair:
        ours = jingdu.create("gpt2", weights=tmp_path)
        return case.Pair(canon.resolve("gpt2"), "transformers/gpt2", ours, theirs, prompt, 0.0)

    prompt = (torch.stack(prompts(37)),)
    monkeypatch.setattr(case, "make_pair", pair)
    monkeypatch.setattr(case, "limits", lambda device: Limits({"float32": 1e11, "bf16": 2e11}, 2e10))
    monkeypatch.setattr(decoding, "_compile", lambda traced, inputs: traced)
    monkeypatch.setattr(decoding._Trial, "rank", lambda trial, rounds: [("bf16", "mv"), ("float32", "linear")])
    monkeypatch.setattr(decoding._Trial, "time", lambda trial, program, rounds: (1.0, 2.0))
    eager, quick = case.bench_decoding("gpt2", length=9)
    assert (eager["mode"], quick["mode"]) == ("decoding", "compiled decoding")
    assert eager["same_tokens"] and quick["same_tokens"] and quick["optimization"]["dtype"] == "float32"
    size = 24 * (101 + 2 * 12 * 24)
    assert eager["bytes"] == quick["bytes"] == 4 * size
    assert quick["share_of_bandwidth"] == pytest.approx(4 * size * 9 / quick["ours"] / 2e10)
    assert quick["tokens_per_second"] == pytest.approx(9 / quick["ours"])
    rows = case.bench_decoding("gpt2", "transformers", dtype="bf16", length=9)
    assert [row["bytes"] for row in rows] == [2 * size] * 2 and rows[1]["optimization"]["dtype"] == "bf16"
    monkeypatch.setattr(case, "bench", lambda name, **options: {"mode": "inference"})
    monkeypatch.setattr(case, "bench_decoding", lambda name, **options: [{"mode": "decoding", **options}])
    assert [row["mode"] for row in case.bench_all(["gpt2"], rounds=60)] == ["inference", "decoding"]
    assert case.bench_all(["gpt2"], decode=True, dtype="bf16") == [{"mode": "decoding", "dtype": "bf16", "rounds": 6}]
    assert [row["mode"] for row in case.bench_all(["resnet18"])] == ["inference"]
    assert [row["mode"] for row in case.bench_all(["gpt2"], train=True)] == ["inference"]


def test_a_bench_of_no_text_is_refused() -> None:
    with pytest.raises(UsageError, match="makes no text"):
        case.bench_decoding("resnet18")


def test_what_cannot_be_is_refused(network: nn.Module) -> None:
    with pytest.raises(UsageError, match="ResNet does not make one token after the other"):
        optimize_for_decoding(jingdu.create("resnet20_cifar", width=4))
    with pytest.raises(UsageError, match="capacity 5"):
        optimize_for_decoding(network, capacity=5)
    with pytest.raises(UsageError, match="not float32"):
        optimize_for_decoding(jingdu.create("gpt2", **SMALL).double())


def test_without_a_compiler_the_library_does_it(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> None:
        raise RuntimeError("no g++")

    monkeypatch.setattr(decoding, "_compile", broken)
    with pytest.warns(RuntimeWarning, match=r"left out \(RuntimeError: no g"):
        quick = optimize_for_decoding(network, capacity=40, rounds=2, cache=False)
    assert quick.optimization.kernel == "as it was" and "no g++" in str(quick.optimization.tried)
    ours, plain = (generate(model, prompts(7), 20) for model in (quick, network))
    assert ours[0].tolist() == plain[0].tolist()
