import math

import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss, top_k_accuracy_score

from jingdu.errors import Refused
from jingdu.metrics.classification import Accuracy


def random_batches(classes: int, sizes: tuple[int, ...]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(classes)
    return [
        (3 * torch.randn(n, classes, generator=generator), torch.randint(classes, (n,), generator=generator))
        for n in sizes
    ]


@pytest.mark.parametrize("classes", [2, 7, 10, 23])
def test_equals_scikit_learn(classes):
    accuracy, batches = Accuracy(), random_batches(classes, (17, 1, 64, 5))
    for logits, labels in batches:
        accuracy.update(logits, labels)
    ours = accuracy.compute()
    logits, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    every = list(range(classes))
    probabilities = logits.double().softmax(1).numpy()
    assert ours["error"] == pytest.approx(1 - accuracy_score(labels, logits.argmax(1)), abs=1e-9)
    assert ours["loss"] == pytest.approx(log_loss(labels, probabilities, labels=every), abs=1e-9)
    if classes >= 10:
        top5 = top_k_accuracy_score(labels, probabilities, k=5, labels=every)
        assert ours["top5_error"] == pytest.approx(1 - top5, abs=1e-9)
    else:
        assert "top5_error" not in ours


def test_the_batches_do_not_matter():
    results = []
    for sizes in ((91,), (13,) * 7):
        logits, labels = random_batches(11, (91,))[0]
        accuracy = Accuracy()
        for part, own in zip(logits.split(sizes), labels.split(sizes), strict=True):
            accuracy.update(part, own)
        results.append(accuracy.compute())
    assert results[0]["error"] == results[1]["error"]
    assert results[0]["top5_error"] == results[1]["top5_error"]
    assert results[0]["loss"] == pytest.approx(results[1]["loss"], rel=1e-12)


def test_counts_are_exact_where_float32_is_not():
    accuracy = Accuracy()
    accuracy.update(torch.eye(2)[[0, 1]], torch.tensor([0, 0]))
    accuracy.count, accuracy.wrong = accuracy.count + 2**25, accuracy.wrong + 2**24
    assert accuracy.compute()["error"] == (2**24 + 1) / (2**25 + 2)


def test_equal_logits_go_to_the_first_class():
    accuracy = Accuracy()
    accuracy.update(torch.zeros(12, 12), torch.arange(12))
    values = accuracy.compute()
    assert values["error"] == 11 / 12
    assert values["top5_error"] == 7 / 12
    assert values["loss"] == pytest.approx(math.log(12), abs=1e-12)


def test_nan_is_wrong():
    accuracy = Accuracy()
    logits = torch.zeros(3, 10)
    logits[0], logits[1, 4] = math.nan, math.nan
    logits[2, 3] = 1.0
    accuracy.update(logits, torch.tensor([0, 0, 3]))
    values = accuracy.compute()
    assert values["error"] == 2 / 3
    assert math.isnan(values["loss"])


def test_compute_starts_again_and_refuses_nothing_at_all():
    accuracy = Accuracy()
    accuracy.update(torch.eye(3), torch.tensor([1, 1, 1]))
    assert accuracy.compute()["error"] == 2 / 3
    with pytest.raises(Refused, match="nothing to evaluate"):
        accuracy.compute()
    accuracy.update(torch.eye(3), torch.tensor([0, 1, 2]))
    assert accuracy.compute()["error"] == 0


def test_half_precision_logits_keep_their_gradient_graph_out():
    accuracy = Accuracy()
    logits = torch.eye(3, dtype=torch.bfloat16, requires_grad=True)
    accuracy.update(logits, torch.tensor([0, 1, 2]))
    assert isinstance(accuracy.loss, float)
    assert accuracy.compute()["error"] == 0
