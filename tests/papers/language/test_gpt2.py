"""GPT-2: its parts, sampling, and text from a trained run."""

import json
import math
from pathlib import Path

import pytest
import torch

import jingdu
from jingdu.cli import main
from jingdu.errors import UsageError
from jingdu.papers.language.gpt2 import GPT2, sampler, top_k, top_p

SMALL = {"vocabulary": 101, "width": 24, "layers": 3, "heads": 4, "context": 37, "dropout": 0.0}


def test_residual_projections_start_smaller_and_positions_too() -> None:
    model = GPT2(vocabulary=1009, width=192, layers=8, heads=4, context=257)
    for block in model.blocks:
        assert block.attention.project.weight.std().item() == pytest.approx(0.02 / math.sqrt(16), rel=0.05)
        assert block.mlp.project.weight.std().item() == pytest.approx(0.02 / math.sqrt(16), rel=0.05)
        assert block.mlp.expand.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert (block.mlp.expand.bias == 0).all()
    assert model.places.weight.std().item() == pytest.approx(0.01, rel=0.05)


def test_a_block_leaves_the_sum_as_it_is() -> None:
    """With projections of zero every block is the identity, and the last norm sees the embeddings."""
    model = GPT2(**SMALL).eval()
    for block in model.blocks:
        torch.nn.init.zeros_(block.attention.project.weight)
        torch.nn.init.zeros_(block.mlp.project.weight)
    x = torch.randint(101, (3, 7))
    expected = model.norm(model.words(x) + model.places.weight[:7]) @ model.words.weight.T
    torch.testing.assert_close(model(x), expected)


def test_no_token_sees_a_later_one_and_all_parameters_get_gradients() -> None:
    model = GPT2(**SMALL)
    x = torch.randint(101, (2, 11))
    changed = x.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % 101
    a, b = model(x), model(changed)
    torch.testing.assert_close(a[:, :7], b[:, :7])
    assert not torch.allclose(a[:, 7:], b[:, 7:])
    model(torch.randint(101, (3, 37))).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_too_many_tokens_are_named() -> None:
    model = GPT2(**SMALL)
    with pytest.raises(UsageError, match="38 tokens: this network has positions for 37"):
        model(torch.zeros(1, 38, dtype=torch.int64))
    with pytest.raises(UsageError, match="positions for 37"):
        model.init_state(1, 38)
    with pytest.raises(UsageError, match="width 25 does not divide into 4 heads"):
        GPT2(**{**SMALL, "width": 25})


def test_top_k_and_nucleus_keep_what_they_say() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.05, 0.15, 0.3, 0.5]]).log()
    assert (top_k(logits, 2) > -math.inf).tolist() == [[True, True, False, False], [False, False, True, True]]
    kept = {p: (top_p(logits, p) > -math.inf).sum(1).tolist() for p in (0.01, 0.45, 0.6, 0.81, 1.0)}
    assert kept == {0.01: [1, 1], 0.45: [1, 1], 0.6: [2, 2], 0.81: [3, 3], 1.0: [4, 4]}
    released = {p: (top_p(logits, p, crossing=False) > -math.inf).sum(1).tolist() for p in (0.01, 0.6, 0.81)}
    assert released == {0.01: [1, 1], 0.6: [1, 1], 0.81: [2, 2]}


def test_the_sampler_draws_from_what_is_left() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(20_000, 4)
    drawn = sampler(k=3, p=0.75)(logits, torch.Generator().manual_seed(1))
    shares = torch.bincount(drawn, minlength=4) / len(drawn)
    assert torch.allclose(shares, torch.tensor([0.625, 0.375, 0.0, 0.0]), atol=0.015)
    assert (sampler(0.0)(logits, None) == 0).all()


@pytest.mark.parametrize(
    "options, message",
    [({"temperature": -1.0}, "temperature"), ({"temperature": math.nan}, "temperature"), ({"k": 0}, "top-k"),
     ({"p": 0.0}, "top-p"), ({"p": 1.5}, "top-p"), ({"p": math.nan}, "top-p")],
)  # fmt: skip
def test_impossible_sampling_is_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        sampler(**options)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few steps of the laptop recipe on a text of our own, by the command line."""
    folder = tmp_path_factory.mktemp("gpt2")
    lines = [f"the {a} of {b} is {a} and {b}, not {c}" for a in ("cat", "sun", "sea") for b in "xyz" for c in "uvw"]
    (folder / "text.txt").write_text("\n".join(20 * lines))
    words = ["train", "gpt2", "--out", str(folder / "run"), "--steps", "4", "--batch-size", "3", "--quiet", "--data",
             f"bpe.tokens(of='{folder}/text.txt', vocabulary=300, length=16)"]  # fmt: skip
    words += ["--override", "vocabulary=300", "width=16", "layers=2", "heads=2", "context=24"]
    assert main(words) == 0
    return folder / "run"


def test_a_run_keeps_its_tokenizer_and_goes_on_with_text(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert jingdu.load(run).origin.tokenizer.name == "tokenizer.json"
    assert main(["predict", "gpt2", "the cat", "the sun of", "--weights", str(run), "--length", "9", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["prompt"] for row in rows] == ["the cat", "the sun of"]
    assert all(len(row["tokens"]) <= 9 and row["prompt_tokens"] >= 1 for row in rows)
    greedy = ["predict", "gpt2", "the cat", "--weights", str(run), "--temperature", "0", "--length", "9"]
    assert main(greedy) == 0
    whole = capsys.readouterr().out
    assert main([*greedy, "--stream"]) == 0
    assert capsys.readouterr().out == whole and whole.startswith("the cat")


def test_what_does_not_fit_is_said(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "gpt2", "the cat", "--weights", str(run), "--length", "40"]) == 2
    assert "positions for 24" in capsys.readouterr().err
    assert main(["predict", "gpt2", "the cat", "--weights", str(run), "--top-p", "2"]) == 2
    assert "top-p is 2" in capsys.readouterr().err
    assert main(["eval", "gpt2", "--weights", str(run)]) == 0
    assert "bits_per_byte" in capsys.readouterr().out
    assert main(["eval", "gpt2", "--weights", str(run), "--data", str(run.parent / "text.txt"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["perplexity"] > 1
