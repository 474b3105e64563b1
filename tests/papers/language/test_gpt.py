"""GPT: its parts, tasks as sequences, and fine-tuning."""

from pathlib import Path

import pytest
import torch

from jingdu.cli import main
from jingdu.engine import Recipe, Stage, train
from jingdu.errors import UsageError
from jingdu.papers.language.gpt import (
    GPT,
    PACKAGES,
    FineTuning,
    build,
    multiple_choice,
    pair,
    recipes,
    similarity,
    single,
    snippets,
    take_up,
)

SMALL = {"vocabulary": 101, "width": 24, "layers": 3, "heads": 4, "context": 37, "dropout": 0.0}


def batch(count: int, sequences: int, time: int = 11) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(count)
    sizes = torch.randint(2, time + 1, (count, sequences, 1), generator=draw)
    return {
        "tokens": torch.randint(104, (count, sequences, time), generator=draw),
        "mask": torch.arange(time) < sizes,
        "label": torch.randint(2, (count,), generator=draw),
    }


def test_sums_are_normalised_and_the_table_is_used_twice() -> None:
    """With projections of zero a block is its two norms, and the output layer is the table of words."""
    model = GPT(**SMALL).eval()
    for block in model.blocks:
        torch.nn.init.zeros_(block.attention.project.weight)
        torch.nn.init.zeros_(block.mlp.project.weight)
    x = torch.randint(101, (3, 7))
    expected = model.words(x) + model.places.weight[:7]
    for _ in range(2 * len(model.blocks)):
        expected = torch.nn.functional.layer_norm(expected, (24,))
    torch.testing.assert_close(model(x), expected @ model.words.weight.T)


def test_every_parameter_gets_a_gradient() -> None:
    model = GPT(**SMALL)
    model(torch.randint(101, (3, 37))).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_tasks_become_sequences() -> None:
    """Figure 1, right: start 100, delimiter 101, end 102."""
    assert single([1, 2], 100) == [[100, 1, 2, 102]]
    assert pair([1, 2], [3], 100) == [[100, 1, 2, 101, 3, 102]]
    assert similarity([1], [3], 100) == [[100, 1, 101, 3, 102], [100, 3, 101, 1, 102]]
    assert multiple_choice([1], [[3], [4, 5]], 100) == [[100, 1, 101, 3, 102], [100, 1, 101, 4, 5, 102]]


def test_the_second_aim_is_the_language_models_loss() -> None:
    """Equation 5 by hand: what is added is lambda times the mean over real targets."""
    torch.manual_seed(1)
    network = GPT(**SMALL, marks=3, classes=2)
    data = batch(5, 1)
    with_it, without = (FineTuning(network, auxiliary=value)(data, "loss") for value in (0.5, 0.0))
    tokens, mask = data["tokens"][:, 0], data["mask"][:, 0]
    nats = -network(tokens, mask).log_softmax(2)[:, :-1].gather(2, tokens[:, 1:, None])[..., 0]
    expected = nats[mask[:, 1:]].mean()
    torch.testing.assert_close(with_it[0] - without[0], 0.5 * expected)


def test_the_state_at_the_end_is_read() -> None:
    torch.manual_seed(2)
    network = GPT(**SMALL, marks=3, classes=2).eval()
    data = batch(5, 2)
    scores, _ = FineTuning(network)._read(data)
    for row in range(5):  # without padding, one at a time; two sequences are added
        states = [
            network.hidden(data["tokens"][row, i, : int(data["mask"][row, i].sum())][None])[0, -1] for i in range(2)
        ]
        torch.testing.assert_close(scores[row], network.head(sum(states)), atol=1e-5, rtol=1e-4)


def test_what_was_learnt_is_taken_up_and_only_the_rest_is_new() -> None:
    torch.manual_seed(3)
    old, new = GPT(**SMALL), GPT(**SMALL, marks=3, classes=2)
    marks = new.words.weight[101:].clone()
    take_up(new, old)
    assert torch.equal(new.words.weight[:101], old.words.weight) and torch.equal(new.words.weight[101:], marks)
    assert torch.equal(new.blocks[2].mlp.expand.weight, old.blocks[2].mlp.expand.weight)
    frozen = FineTuning(new, frozen=True)
    assert [name for name, p in frozen.named_parameters() if p.requires_grad] == [
        "network.head.weight",
        "network.head.bias",
    ]


def test_what_cannot_be_fine_tuned_is_refused() -> None:
    with pytest.raises(UsageError, match="marks=3 and classes"):
        FineTuning(GPT(**SMALL))
    with pytest.raises(UsageError, match="no earlier stage 'reading'"):
        FineTuning(GPT(**SMALL, marks=3, classes=2), start="reading")


TOKENS = "bpe.tokens(of='pydoc_topics', vocabulary=300, length=16)"


def test_snippets_are_functions_of_eight_packages() -> None:
    data, held_out = (snippets(split, TOKENS, length=24, labelled=41, fold=2) for split in ("train", "test"))
    assert data.classes == PACKAGES and len(data) == 40
    labels = data.fields["label"]
    assert torch.bincount(labels).tolist() == [5] * 8
    assert torch.bincount(held_out.fields["label"]).tolist() == [30] * 8
    tokens, mask = data.fields["tokens"][:, 0], data.fields["mask"][:, 0]
    count = data.tokenizer.n_vocab
    ends = tokens[torch.arange(40), mask.sum(1) - 1]
    assert (tokens[:, 0] == count).all() and (ends == count + 2).all() and (tokens[~mask] == 0).all()
    other = snippets("train", TOKENS, length=24, labelled=41, fold=3)
    assert not torch.equal(tokens, other.fields["tokens"][:, 0])


def test_pre_training_and_fine_tuning_by_the_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = "vocabulary=300, width=16, layers=2, heads=2, context=24"
    base = Stage(batch_size=4, steps=2, optimizer="adamw", lr=1e-3)
    import dataclasses

    reading = dataclasses.replace(
        base, name="reading", system="language_modelling", networks={"network": f"gpt1({network})"}, data=TOKENS
    )
    task = dataclasses.replace(
        base, name="task", system="gpt.FineTuning(start='reading')", networks={"network": f"gpt1({network}, marks=3, classes=8)"},
        data=f'gpt.snippets(tokenizer="{TOKENS}", length=24, labelled=40)',
    )  # fmt: skip
    run = train(Recipe((reading, task), 1, {}), tmp_path / "run", device="cpu", quiet=True)
    assert 0 <= run.metrics["error"] <= 1
    assert main(["predict", "gpt", "return self.parent", "--weights", str(tmp_path / "run")]) == 0
    assert any(name in capsys.readouterr().out for name in PACKAGES)
    assert main(["predict", "gpt", "if x", "--weights", str(tmp_path / "run" / "reading"), "--length", "5"]) == 0
    assert capsys.readouterr().out.startswith("if x")


def test_the_recipes_networks_fit_each_other() -> None:
    from jingdu.names import Call

    stages = recipes["laptop"].stages
    old, new = (build("gpt1", **Call.parse(stage.networks["network"]).arguments) for stage in stages)
    take_up(new, old)
    assert new.head is not None and new.head.out_features == len(PACKAGES)
