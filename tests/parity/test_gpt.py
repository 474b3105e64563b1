"""GPT against transformers' OpenAIGPTLMHeadModel with the same random weights, saved by save_pretrained."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jingdu
from jingdu.papers.language.rnn import generate
from tests.parity.references import assert_close, import_transformers, randomise_
from tests.parity.test_gpt2 import copy_exactly, tokens

SIZES = {"n_embd": 24, "n_layer": 3, "n_head": 4, "vocab_size": 101, "n_positions": 37}
STILL = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


def reference(folder: Path, **more: Any) -> nn.Module:
    """A small GPT of theirs with random weights, saved in `folder`."""
    transformers = import_transformers()
    model = transformers.OpenAIGPTLMHeadModel(transformers.OpenAIGPTConfig(**{**SIZES, **more}))
    randomise_(model, torch.Generator().manual_seed(3))
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize("more", [{}, {"n_embd": 35, "n_head": 7, "n_layer": 2}, STILL])
def test_same_logits(more: dict[str, Any], tmp_path: Path) -> None:
    theirs = reference(tmp_path, **more)
    ours = jingdu.create("gpt", weights=tmp_path)
    with torch.inference_mode():
        for shape in ((1, 37), (5, 7), (2, 1)):
            assert_close(ours(tokens(*shape)), theirs(tokens(*shape)).logits)


def test_the_published_size(tmp_path: Path) -> None:
    theirs = import_transformers().OpenAIGPTLMHeadModel(import_transformers().OpenAIGPTConfig(n_layer=12)).eval()
    theirs.save_pretrained(tmp_path)
    ours = jingdu.create("gpt1", weights=tmp_path)
    with torch.inference_mode():
        assert_close(ours(tokens(1, 11)), theirs(tokens(1, 11)).logits)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side(side: str, tmp_path: Path) -> None:
    theirs = reference(tmp_path)
    ours = jingdu.create("gpt", weights=tmp_path)
    x, sizes = tokens(4, 11), (11, 3, 7, 1)
    place = torch.arange(11)
    mask = torch.stack([place >= 11 - n if side == "left" else place < n for n in sizes])
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    with torch.inference_mode():
        expected = theirs(x, attention_mask=mask.long(), position_ids=positions).logits
        found = ours(x, mask)
        assert_close(found[mask], expected[mask])
        for row in range(len(sizes)):  # as if there were no padding
            assert_close(found[row][mask[row]], ours(x[row][mask[row]][None])[0])


def test_gradients_in_train_mode(tmp_path: Path) -> None:
    theirs = reference(tmp_path, **STILL).double()
    ours = jingdu.create("gpt", weights=tmp_path).double()
    copy_exactly(ours, theirs, "gpt")
    x = tokens(3, 13)
    ours.train()
    theirs.train()
    for logits in (ours(x[:, :-1]), theirs(x[:, :-1]).logits):  # their own loss is in float32
        nn.functional.cross_entropy(logits.flatten(0, 1), x[:, 1:].flatten()).backward()
    from jingdu.weights.tables import tables

    table, named = tables("gpt")["transformers"], dict(theirs.named_parameters())
    for name, p in ours.named_parameters():
        entry = table.from_ours(name)
        assert_close(p.grad, entry.transform.load([named[key].grad for key in entry.theirs])[0], relative=1e-8)


def test_greedy_text_is_theirs(tmp_path: Path) -> None:
    theirs = reference(tmp_path, n_positions=64)
    ours = jingdu.create("gpt", weights=tmp_path)
    prompts = [tokens(n) for n in (5, 11, 8)]
    for prompt, row in zip(prompts, generate(ours, prompts, 17), strict=True):
        whole: Tensor = prompt
        with torch.inference_mode():
            for _ in range(17):
                whole = torch.cat([whole, theirs(whole[None]).logits[0, -1:].argmax(-1)])
        assert row.tolist() == whole[len(prompt) :].tolist()


def test_two_heads(tmp_path: Path) -> None:
    """Their DoubleHeads model: scores of choices, read at the last token of each."""
    transformers = import_transformers()
    config = transformers.OpenAIGPTConfig(**{**SIZES, **STILL}, summary_first_dropout=0.0)
    theirs = transformers.OpenAIGPTDoubleHeadsModel(config)
    randomise_(theirs, torch.Generator().manual_seed(5)).eval()
    ours = jingdu.create(
        "gpt1", vocabulary=98, marks=3, width=24, layers=3, heads=4, context=37, dropout=0.0, classes=1
    )
    state = theirs.state_dict()
    from jingdu.weights.tables import tables

    table = tables("gpt")["transformers"]
    with torch.no_grad():
        for name, value in ours.state_dict().items():
            if name.startswith("head."):
                value.copy_(state[f"multiple_choice_head.summary.{name.removeprefix('head.')}"])
            else:
                entry = table.from_ours(name)
                value.copy_(entry.transform.load([state[key] for key in entry.theirs])[0])
    from jingdu.papers.language.gpt import FineTuning

    x = tokens(5, 2, 13)
    mask = torch.arange(13) < torch.tensor([[13, 4], [7, 9], [3, 13], [12, 2], [6, 5]])[..., None]
    found, _ = FineTuning(ours.eval(), choices=True)._read({"tokens": x, "mask": mask})
    with torch.inference_mode():
        expected = theirs(x, mc_token_ids=mask.sum(2) - 1).mc_logits
    assert_close(found, expected)
