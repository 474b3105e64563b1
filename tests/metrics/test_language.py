"""Perplexity against its definition, and the system that trains by it."""

import math

import pytest
import torch
from torch import nn

from jingdu.engine.systems import LanguageModelling
from jingdu.errors import Refused
from jingdu.metrics.language import Perplexity


def test_by_definition_and_whatever_the_batches() -> None:
    draw = torch.Generator().manual_seed(1)
    logits, targets = torch.randn(5, 7, 11, generator=draw), torch.randint(11, (5, 7), generator=draw)
    mask = torch.rand(5, 7, generator=draw) < 0.6
    nats = -logits.double().log_softmax(2).gather(2, targets[..., None])[..., 0]
    whole, parts = Perplexity(), Perplexity()
    whole.update(logits, targets, mask, torch.tensor([3, 5, 2, 4, 6]))
    for rows in ([0, 1], [2], [3, 4]):
        parts.update(logits[rows], targets[rows], mask[rows], torch.tensor([3, 5, 2, 4, 6])[rows])
    found = whole.compute()
    assert found["loss"] == pytest.approx(float(nats[mask].mean()), rel=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
    assert found["bits_per_byte"] == pytest.approx(float(nats[mask].sum()) / math.log(2) / 20, rel=1e-6)
    assert parts.compute() == pytest.approx(found)
    with pytest.raises(Refused, match="no tokens"):
        whole.compute()


def test_the_system_predicts_the_next_token_and_leaves_padding_out() -> None:
    network = nn.Embedding(11, 11)  # a bigram model: a row of logits for each token
    system = LanguageModelling(network)
    tokens = torch.randint(11, (3, 6), generator=torch.Generator().manual_seed(2))
    mask = torch.arange(6) < torch.tensor([[6], [4], [2]])
    loss, _ = system({"tokens": tokens, "mask": mask}, "loss")
    rows = network.weight.log_softmax(1)
    pairs = [(tokens[i, t], tokens[i, t + 1]) for i, n in enumerate((6, 4, 2)) for t in range(n - 1)]
    expected = -torch.stack([rows[a, b] for a, b in pairs]).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    system.update({"tokens": tokens, "mask": mask})
    assert system.compute()["loss"] == pytest.approx(expected.item(), rel=1e-5)
