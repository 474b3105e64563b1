"""GPT-2 against transformers' GPT2LMHeadModel with the same random weights, saved by save_pretrained."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jingdu
from jingdu.papers.language.rnn import generate
from tests.parity.references import assert_close, import_transformers, randomise_

SIZES = {"n_embd": 24, "n_layer": 3, "n_head": 4, "vocab_size": 101, "n_positions": 37}


def reference(folder: Path, **more: Any) -> nn.Module:
    """A small GPT-2 of theirs with random weights, saved in `folder`."""
    transformers = import_transformers()
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**SIZES, **more}))
    randomise_(model, torch.Generator().manual_seed(3))
    model.save_pretrained(folder)
    return model.eval()


def tokens(*shape: int, vocabulary: int = 101) -> Tensor:
    return torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize(
    "more", [{}, {"n_embd": 35, "n_head": 7, "n_layer": 2}, {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}]
)
def test_same_logits(more: dict[str, Any], tmp_path: Path) -> None:
    theirs = reference(tmp_path, **more)
    ours = jingdu.create("gpt2", weights=tmp_path)
    with torch.inference_mode():
        for shape in ((1, 37), (5, 7), (2, 1)):
            assert_close(ours(tokens(*shape)), theirs(tokens(*shape)).logits)


def test_float64_and_the_names_without_prefix(tmp_path: Path) -> None:
    theirs = reference(tmp_path).double()
    theirs.transformer.save_pretrained(tmp_path / "bare")  # as the published files are
    ours = jingdu.create("transformers/gpt2", weights=tmp_path / "bare").double()
    copy_exactly(ours, theirs)
    with torch.inference_mode():
        assert_close(ours(tokens(3, 29)), theirs(tokens(3, 29)).logits, relative=1e-9)


def copy_exactly(ours: nn.Module, theirs: nn.Module, family: str = "gpt2") -> None:
    """The reference's float64 values: `create` has rounded them to our float32."""
    from jingdu.weights.tables import tables

    table, state = tables(family)["transformers"], theirs.state_dict()
    for name, value in ours.state_dict().items():
        entry = table.from_ours(name)
        value.copy_(entry.transform.load([state[key] for key in entry.theirs])[0])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side(side: str, tmp_path: Path) -> None:
    theirs = reference(tmp_path)
    ours = jingdu.create("gpt2", weights=tmp_path)
    x, sizes = tokens(4, 11), (11, 3, 7, 1)
    place = torch.arange(11)
    mask = torch.stack([place >= 11 - n if side == "left" else place < n for n in sizes])
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    with torch.inference_mode():
        expected = theirs(x, attention_mask=mask.long(), position_ids=positions).logits
        found = ours(x, mask)
        assert_close(found[mask], expected[mask])
        for row, n in enumerate(sizes):  # as if there were no padding
            assert_close(found[row][mask[row]], ours(x[row][mask[row]][None])[0])
            assert int(mask[row].sum()) == n


def test_gradients_in_train_mode(tmp_path: Path) -> None:
    theirs = reference(tmp_path, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0).double()
    ours = jingdu.create("gpt2", weights=tmp_path).double()
    copy_exactly(ours, theirs)
    x = tokens(3, 13)
    ours.train()
    theirs.train()
    for logits in (ours(x[:, :-1]), theirs(x[:, :-1]).logits):  # their own loss is in float32
        nn.functional.cross_entropy(logits.flatten(0, 1), x[:, 1:].flatten()).backward()
    from jingdu.weights.tables import tables

    table, named = tables("gpt2")["transformers"], dict(theirs.named_parameters())
    for name, p in ours.named_parameters():
        entry = table.from_ours(name)
        assert_close(p.grad, entry.transform.load([named[key].grad for key in entry.theirs])[0], relative=1e-8)


def test_greedy_text_is_theirs_and_needs_no_cache(tmp_path: Path) -> None:
    theirs = reference(tmp_path, n_positions=64)
    ours = jingdu.create("gpt2", weights=tmp_path)
    prompts = [tokens(n) for n in (5, 11, 8)]
    found = generate(ours, prompts, 17)
    for prompt, row in zip(prompts, found, strict=True):
        with torch.inference_mode():
            expected = theirs.generate(
                prompt[None], attention_mask=torch.ones_like(prompt)[None], max_new_tokens=17, min_new_tokens=17,
                do_sample=False, pad_token_id=0, eos_token_id=None,
            )[0, len(prompt) :]  # fmt: skip
            whole = prompt.clone()
            for _ in range(17):
                whole = torch.cat([whole, ours(whole[None])[0, -1:].argmax(-1)])
        assert row.tolist() == expected.tolist() == whole[len(prompt) :].tolist()


def test_top_k_and_nucleus_are_theirs() -> None:
    import_transformers()
    from transformers.generation.logits_process import TopKLogitsWarper, TopPLogitsWarper

    from jingdu.papers.language.gpt2 import top_k, top_p

    logits = torch.randn(7, 53, generator=torch.Generator().manual_seed(2)) * 3
    for k in (1, 5, 53):
        assert torch.equal(top_k(logits, k), TopKLogitsWarper(k)(None, logits.clone()))
    for p in (0.1, 0.5, 0.9, 0.999):
        assert torch.equal(top_p(logits, p), TopPLogitsWarper(p)(None, logits.clone()))
