"""The Transformer against torch.nn's layers and transformers' MarianMTModel, with the same random weights."""

import json
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jingdu
from jingdu.errors import Refused
from jingdu.papers.language.transformer import (
    DecoderLayer,
    EncoderLayer,
    beam_search,
    power,
    smoothed_cross_entropy,
    translate,
)
from tests.parity.references import assert_close, import_transformers, randomise_

WIDTH, INNER, HEADS = 20, 44, 5


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# torch.nn ---------------------------------------------------------------------------------------------


def copy_layer(ours: nn.Module, theirs: nn.Module) -> None:
    """Give our layer the weights of torch's, whose queries, keys and values are one matrix."""
    state = {}
    names = {"self_attn": "self_attention", "multihead_attn": "cross_attention"}
    norms = ["self_attention_norm", "feed_forward_norm"]
    if hasattr(theirs, "multihead_attn"):
        norms.insert(1, "cross_attention_norm")
    for name, x in theirs.state_dict().items():
        first, _, rest = name.partition(".")
        if first in names and rest.startswith("in_proj"):
            for letter, part in zip("qkv", x.chunk(3), strict=True):
                state[f"{names[first]}.{letter}.{rest.removeprefix('in_proj_')}"] = part
        elif first in names:
            state[f"{names[first]}.{rest.replace('out_proj', 'o')}"] = x
        elif first.startswith("linear"):
            state[f"feed_forward.w{first[-1]}.{rest}"] = x
        else:
            state[f"{norms[int(first[-1]) - 1]}.{rest}"] = x
    ours.load_state_dict(state)


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in module.named_parameters()}


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_layers_of_torch(norm: str, training: bool, batch: int) -> None:
    options = {"dropout": 0.0, "batch_first": True, "norm_first": norm == "pre", "dtype": torch.float64}
    theirs = nn.ModuleList(
        [
            nn.TransformerEncoderLayer(WIDTH, HEADS, INNER, **options),
            nn.TransformerDecoderLayer(WIDTH, HEADS, INNER, **options),
        ]
    )
    randomise_(theirs, torch.Generator().manual_seed(2))
    ours = nn.ModuleList(
        kind(WIDTH, INNER, HEADS, dropout=0.0, norm=norm, bias=True, eps=1e-5) for kind in (EncoderLayer, DecoderLayer)
    ).double()
    for mine, other in zip(ours, theirs, strict=True):
        copy_layer(mine, other)
    source_padding = torch.arange(7) >= torch.tensor([7, 4, 6])[:batch, None]
    target_padding = torch.arange(11) >= torch.tensor([9, 11, 5])[:batch, None]
    found = []
    for encoder, decoder, is_ours in ((*ours, True), (*theirs, False)):
        encoder.train(training), decoder.train(training)
        source, target = (numbers(batch, n, WIDTH, seed=n).requires_grad_() for n in (7, 11))
        if is_ours:
            mask, own = ~source_padding[:, None, None], ~target_padding[:, None, None]
            memory = encoder(source, mask)
            y = decoder(target, memory, mask, own)
        else:
            memory = encoder(source, src_key_padding_mask=source_padding)
            causal = torch.ones(11, 11, dtype=torch.bool).triu(1)
            y = decoder(
                target, memory, tgt_mask=causal, tgt_key_padding_mask=target_padding,
                memory_key_padding_mask=source_padding,
            )  # fmt: skip
        memory, y = memory[~source_padding], y[~target_padding]
        (memory.square().sum() + (y * numbers(*y.shape, seed=5)).sum()).backward()
        found.append((memory, y, source.grad[~source_padding], target.grad[~target_padding]))
    for mine, other in zip(*found, strict=True):
        assert_close(mine, other, relative=1e-9)
    for mine, other in zip(ours, theirs, strict=True):
        their_gradients = type(mine)(WIDTH, INNER, HEADS, bias=True).double()
        for p in other.parameters():
            p.data = p.grad
        copy_layer(their_gradients, other)
        for name, gradient in gradients(mine).items():
            expected = their_gradients.get_parameter(name)
            if not name.endswith("attention.k.bias"):  # zero but for rounding, in both
                assert_close(gradient, expected, relative=1e-9)


def test_a_whole_transformer_of_torch() -> None:
    """Pre-norm: with it, ours has the layer norm behind each stack that torch's always has."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that its nested tensors know no pre-norm
        theirs = nn.Transformer(
            WIDTH, HEADS, 2, 3, INNER, dropout=0.0, norm_first=True, batch_first=True, dtype=torch.float64
        )
    randomise_(theirs, torch.Generator().manual_seed(3))
    ours = jingdu.create(
        "transformer", vocabulary=31, width=WIDTH, inner=INNER, heads=HEADS, layers=(2, 3), dropout=0.0, norm="pre", bias=True,
        eps=1e-5,
    ).double().eval()  # fmt: skip
    for name in ("encoder", "decoder"):
        stack = getattr(theirs, name)
        for mine, other in zip(getattr(ours, name), stack.layers, strict=True):
            copy_layer(mine, other)
        getattr(ours, f"{name}_norm").load_state_dict(stack.norm.state_dict())
    source, target = torch.randint(2, 31, (2, 7)), torch.randint(2, 31, (2, 5))
    source[1, 4:] = 0
    embedded = [ours.embed(x, torch.arange(x.shape[1])[None], None) for x in (source, target)]
    causal = torch.ones(5, 5, dtype=torch.bool).triu(1)
    y = theirs.train()(
        *embedded, tgt_mask=causal, src_key_padding_mask=source == 0, memory_key_padding_mask=source == 0
    )
    assert_close(ours(source, target), y @ ours.embedding.weight.T, relative=1e-9)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_smoothing_over_all_is_torchs(smoothing: float) -> None:
    logits, targets = numbers(13, 29).requires_grad_(), torch.randint(0, 29, (13,))
    ours, nats = smoothed_cross_entropy(logits, targets, smoothing, "all")
    assert_close(nats, nn.functional.cross_entropy(logits, targets, reduction="none"), relative=1e-9)
    reference = nn.functional.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
    assert_close(ours, reference, relative=1e-9)
    pair = [torch.autograd.grad(x.sum(), logits, retain_graph=True)[0] for x in (ours, reference)]
    assert_close(*pair, relative=1e-9)


# transformers -----------------------------------------------------------------------------------------

SIZES: dict[str, Any] = {
    "vocab_size": 67, "d_model": 20, "encoder_layers": 2, "decoder_layers": 3, "encoder_ffn_dim": 28, "decoder_ffn_dim": 44,
    "encoder_attention_heads": 5, "decoder_attention_heads": 5, "max_position_embeddings": 64, "scale_embedding": True,
    "activation_function": "swish", "pad_token_id": 66, "decoder_start_token_id": 66, "eos_token_id": 0,
    "forced_eos_token_id": None, "dropout": 0.0,
}  # fmt: skip


def marian(folder: Path, seed: int = 0, spread: float = 1.0, **changes: Any) -> tuple[Any, Any]:
    """A MarianMTModel with random weights, and ours of its folder."""
    transformers = import_transformers()
    theirs = transformers.MarianMTModel(transformers.MarianConfig(**{**SIZES, **changes})).eval()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if "embed_positions" not in name:
                p.copy_(torch.randn(p.shape, generator=draw) * (spread * p.shape[-1] ** -0.5 if p.ndim > 1 else 0.3))
                p += "norm.weight" in name
        theirs.final_logits_bias.copy_(torch.randn(theirs.final_logits_bias.shape, generator=draw))
    theirs.save_pretrained(folder)
    return theirs, jingdu.create("transformer", weights=folder)


def sentences(rows: int, time: int, lengths: list[int], seed: int = 0, pad: int = 66) -> Tensor:
    tokens = torch.randint(1, pad, (rows, time), generator=torch.Generator().manual_seed(seed))
    return tokens.masked_fill(torch.arange(time) >= torch.tensor(lengths)[:, None], pad)


@pytest.mark.parametrize("activation", ["swish", "relu"])
@pytest.mark.parametrize("lengths", [[9], [9, 4, 7]])
def test_marian(activation: str, lengths: list[int], tmp_path: Path) -> None:
    theirs, ours = marian(tmp_path, activation_function=activation)
    assert ours.origin.variant == "transformer_opus_mt_en_de" and ours.marks == (66, 0, 66)
    source, target = sentences(len(lengths), 9, lengths), sentences(len(lengths), 6, [6] * len(lengths), seed=1)
    target[:, 0] = 66
    losses = []
    for model in (ours, theirs):
        if model is ours:
            logits = ours(source, target[:, :-1])
        else:
            logits = theirs(source, attention_mask=(source != 66).long(), decoder_input_ids=target[:, :-1]).logits
        losses.append((logits, nn.functional.cross_entropy(logits.flatten(0, 1), target[:, 1:].flatten())))
        losses[-1][1].backward()
    assert_close(losses[0][0], losses[1][0])
    assert_close(ours.embedding.weight.grad[:66], theirs.model.shared.weight.grad[:66])
    own = ours.decoder[1]
    other = theirs.model.decoder.layers[1]
    assert_close(own.cross_attention.q.weight.grad, other.encoder_attn.q_proj.weight.grad)
    assert_close(own.feed_forward.w1.weight.grad, other.fc1.weight.grad)


@pytest.mark.parametrize("early", [False, True, "never"])
@pytest.mark.parametrize("penalty", [0.0, 1.0, 0.6])
@pytest.mark.parametrize("ends", [4.0, -1e9])
def test_beam_search_of_transformers(early: bool | str, penalty: float, ends: float, tmp_path: Path) -> None:
    """All four hypotheses of each sentence; where none can end, all are cut at the limit in both."""
    until = {False: "likely", True: "enough", "never": "sure"}[early]
    lengths = set()
    for seed in range(3 if ends > 0 else 1):
        theirs, ours = marian(tmp_path / str(seed), seed, spread=1.6)
        theirs.final_logits_bias[0, 0] = ours.logits_bias[0] = ends
        source = sentences(3, 9, [9, 4, 7], seed)
        expected = theirs.generate(
            source, attention_mask=(source != 66).long(), num_beams=4, num_return_sequences=4, max_length=31,
            length_penalty=penalty, early_stopping=early, do_sample=False, return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
        found = beam_search(
            ours.reading(source), [torch.tensor([66])] * 3, 30, stop=0, penalty=partial(power, alpha=penalty), best=4,
            until=until,
        )  # fmt: skip
        for row, (sequence, score) in enumerate(zip(expected.sequences, expected.sequences_scores, strict=True)):
            hypothesis = found[row // 4][row % 4]
            n = len(hypothesis.tokens)
            assert hypothesis.score == pytest.approx(float(score), rel=1e-4)
            assert torch.equal(hypothesis.tokens, sequence[1 : 1 + n]) and (sequence[1 + n :] == 66).all()
            lengths.add(n)
    assert len(lengths) > 1 if ends > 0 else lengths == {30}


def test_translate_is_generate(tmp_path: Path) -> None:
    theirs, ours = marian(tmp_path, spread=1.6)
    theirs.final_logits_bias[0, 0] = ours.logits_bias[0] = 4.0
    sources = [row[row != 66] for row in sentences(5, 9, [9, 4, 7, 2, 5])]
    found = translate(ours, sources, penalty=power, until="likely")
    for source, best in zip(sources, found, strict=True):
        expected = theirs.generate(source[None], num_beams=4, max_new_tokens=len(source) + 50, length_penalty=1.0)[
            0, 1:
        ]
        assert torch.equal(best.tokens, expected)


def test_positions_far_out(tmp_path: Path) -> None:
    theirs, ours = marian(tmp_path, max_position_embeddings=900)
    source, target = sentences(1, 850, [850]), sentences(1, 700, [700], seed=1)
    with torch.inference_mode():
        assert_close(ours(source, target), theirs(source, decoder_input_ids=target).logits)


def test_a_published_size(tmp_path: Path) -> None:
    """The sizes of Helsinki-NLP/opus-mt-en-de."""
    sizes = {
        "d_model": 512, "encoder_layers": 6, "decoder_layers": 6, "encoder_ffn_dim": 2048, "decoder_ffn_dim": 2048,
        "encoder_attention_heads": 8, "decoder_attention_heads": 8, "max_position_embeddings": 512, "vocab_size": 58101,
        "pad_token_id": 58100, "decoder_start_token_id": 58100, "dropout": 0.1,
    }  # fmt: skip
    theirs, ours = marian(tmp_path, **sizes)
    count = sum(p.numel() for p in ours.parameters())
    frozen = sum(p.numel() for p in theirs.parameters() if not p.requires_grad)
    assert count == 73_886_208 and frozen == 2 * 512 * 512
    assert sum(p.numel() for p in theirs.parameters()) == 74_410_496
    source, target = sentences(2, 11, [11, 7], pad=58100), sentences(2, 5, [5, 5], seed=1, pad=58100)
    mask = (source != 58100).long()
    with torch.inference_mode():
        assert_close(ours(source, target), theirs(source, attention_mask=mask, decoder_input_ids=target).logits)


def test_old_files_with_all_their_keys(tmp_path: Path) -> None:
    """As the hub has them: pickled, tied embeddings and tables of positions written out."""
    theirs, ours = marian(tmp_path)
    state = theirs.state_dict()
    assert "model.encoder.embed_tokens.weight" in state and "lm_head.weight" in state
    (tmp_path / "model.safetensors").unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")
    again = jingdu.create("transformer_opus_mt_en_de", weights=tmp_path)
    for name, x in ours.state_dict().items():
        assert torch.equal(x, again.state_dict()[name])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"scale_embedding": False}, "scale_embedding"),
        ({"activation_function": "gelu"}, "gelu"),
        ({"decoder_attention_heads": 4}, "decoder_attention_heads"),
        ({"share_encoder_decoder_embeddings": False}, "share_encoder"),
        ({"normalize_before": True}, "normalize_before"),
        ({"model_type": "fsmt"}, "fsmt"),
    ],
)
def test_configurations_that_ours_has_not(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    marian(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(Refused, match=message):
        jingdu.create("transformer", weights=tmp_path)
