"""The layers, positions and the model against the paper's equations; decoding against the whole sequence at once."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jingdu
from jingdu.errors import UsageError
from jingdu.papers.language.rnn import generate
from jingdu.papers.language.transformer import (
    DecoderLayer,
    EncoderLayer,
    FeedForward,
    MultiHeadAttention,
    Transformer,
    add_and_norm,
    attention_weights,
    sinusoids,
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tokens(*shape: int, vocabulary: int, seed: int = 0, low: int = 2) -> Tensor:
    return torch.randint(low, vocabulary, shape, generator=torch.Generator().manual_seed(seed))


def small(**options: Any) -> Transformer:
    torch.manual_seed(7)
    sizes = {"vocabulary": 29, "width": 12, "inner": 20, "heads": 3, "layers": (2, 3)}
    return jingdu.create("transformer", **{**sizes, **options}).eval()


def padded(source: Tensor, lengths: list[int]) -> Tensor:
    return source.masked_fill(torch.arange(source.shape[1]) >= torch.tensor(lengths)[:, None], 0)


# Layers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kv_heads", [None, 3, 1])
def test_heads_attend_in_subspaces_of_their_own(kv_heads: int | None, bias: bool) -> None:
    layer = MultiHeadAttention(12, 6, kv_heads, bias)
    assert all((projection.bias is not None) == bias for projection in (layer.q, layer.k, layer.v, layer.o))
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    x, memory, mask = draw(2, 5, 12), draw(2, 7, 12, seed=1), torch.rand(2, 1, 5, 7) < 0.8
    shared = 6 // (kv_heads or 6)
    heads = []
    for head in range(6):
        own, theirs = slice(2 * head, 2 * head + 2), slice(head // shared * 2, head // shared * 2 + 2)
        q, k, v = layer.q(x)[..., own], layer.k(memory)[..., theirs], layer.v(memory)[..., theirs]
        scores = (q @ k.mT / math.sqrt(2)).masked_fill(~mask[:, 0], -math.inf)
        heads.append(scores.softmax(-1).nan_to_num(0.0) @ v)
    torch.testing.assert_close(layer(x, memory, mask=mask), layer.o(torch.cat(heads, -1)))


def test_attention_weights_are_what_attention_takes() -> None:
    layer = MultiHeadAttention(12, 3)
    x, memory = draw(2, 5, 12), draw(2, 7, 12, seed=1)
    mask = (torch.arange(7) < torch.tensor([[7], [4]]))[:, None, None]
    weights = layer.weights(x, memory, mask=mask)
    assert weights.shape == (2, 3, 5, 7)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 5))
    assert not weights[1, :, :, 4:].any()
    _, v = layer.keys_values(memory)
    torch.testing.assert_close(layer.o((weights @ v).transpose(1, 2).flatten(2)), layer(x, memory, mask=mask))
    later = attention_weights(draw(1, 1, 5, 2), draw(1, 1, 5, 2), causal=True)
    assert not later.triu(1).any()


def test_heads_that_do_not_divide_are_refused() -> None:
    for sizes in ((12, 5, None), (12, 4, 3)):
        with pytest.raises(ValueError, match="divide"):
            MultiHeadAttention(*sizes)
    for options in ({"norm": "sandwich"}, {"activation": "sine"}):
        with pytest.raises(UsageError, match=str(next(iter(options)))):
            DecoderLayer(12, 20, 3, **options)


def test_equation_2() -> None:
    layer = FeedForward(6, 10)
    x = draw(2, 3, 6)
    expected = (x @ layer.w1.weight.T + layer.w1.bias).clamp_min(0) @ layer.w2.weight.T + layer.w2.bias
    torch.testing.assert_close(layer(x), expected)


def test_norm_placements() -> None:
    norm, x = nn.LayerNorm(6), draw(2, 3, 6)
    dropout = nn.Dropout(0.5).eval()
    torch.testing.assert_close(add_and_norm(x, torch.tanh, norm, dropout), norm(x + x.tanh()))
    torch.testing.assert_close(add_and_norm(x, torch.tanh, norm, dropout, "pre"), x + norm(x).tanh())


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_an_encoder_and_a_decoder_layer(norm: Any) -> None:
    own, x, memory = DecoderLayer(12, 20, 3, norm=norm).eval(), draw(2, 5, 12), draw(2, 7, 12, seed=1)
    names = ("self_attention", "cross_attention", "feed_forward")
    sublayers = {
        "self_attention": partial(own.self_attention, causal=True),
        "cross_attention": lambda y: own.cross_attention(y, memory),
        "feed_forward": own.feed_forward,
    }
    y = x
    for name in names:
        y = add_and_norm(y, sublayers[name], getattr(own, f"{name}_norm"), nn.Identity(), norm)
    torch.testing.assert_close(own(x, memory), y)
    encoder = EncoderLayer(12, 20, 3, norm=norm).eval()
    y = add_and_norm(x, encoder.self_attention, encoder.self_attention_norm, nn.Identity(), norm)
    y = add_and_norm(y, encoder.feed_forward, encoder.feed_forward_norm, nn.Identity(), norm)
    torch.testing.assert_close(encoder(x), y)


def test_dropout_is_where_the_paper_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []
    plain = nn.functional.dropout
    monkeypatch.setattr(
        nn.functional, "dropout", lambda x, p, *rest, **named: shares.append(p) or plain(x, p, *rest, **named)
    )
    model = small(dropout=0.3).train()
    model(tokens(2, 5, vocabulary=29), tokens(2, 4, vocabulary=29))
    # Both sums with positions, two sublayers in two layers, three in three; and nothing within the FFNs.
    assert sorted(shares) == [0.0] * 5 + [0.3] * (2 + 2 * 2 + 3 * 3)
    assert all(m.dropout == 0 for m in model.modules() if isinstance(m, MultiHeadAttention))
    later = small(attention_dropout=0.2, inner_dropout=0.4)
    assert {m.dropout for m in later.modules() if isinstance(m, MultiHeadAttention)} == {0.2}
    assert {m.dropout.p for m in later.modules() if isinstance(m, FeedForward)} == {0.4}


# Positions --------------------------------------------------------------------------------------------


def test_sinusoids_are_the_equations() -> None:
    width, places = 10, torch.tensor([[0, 1, 7, 4000]])
    found = {kind: sinusoids(places, width, kind, torch.float64) for kind in ("paper", "tensor2tensor", "marian")}
    for row, place in enumerate([0, 1, 7, 4000]):
        for i in range(width // 2):
            angle = place / 10000 ** (2 * i / width)
            assert found["paper"][0, row, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-9)
            assert found["paper"][0, row, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-9)
            assert found["marian"][0, row, i] == found["paper"][0, row, 2 * i]
            assert found["marian"][0, row, width // 2 + i] == found["paper"][0, row, 2 * i + 1]
            angle = place / 10000 ** (i / (width / 2 - 1))
            assert found["tensor2tensor"][0, row, i].item() == pytest.approx(math.sin(angle), abs=1e-9)
            assert found["tensor2tensor"][0, row, width // 2 + i].item() == pytest.approx(math.cos(angle), abs=1e-9)


def test_a_shift_is_a_linear_map_of_the_sinusoids() -> None:
    """Section 3.5's reason: PE(pos + k) is a linear function of PE(pos), one for all pos."""
    places = torch.arange(60)
    here, there = (sinusoids(places + k, 8, "paper", torch.float64) for k in (0, 5))
    solution = torch.linalg.lstsq(here, there).solution
    torch.testing.assert_close(here @ solution, there)


def test_positions_that_are_refused() -> None:
    with pytest.raises(UsageError, match="even"):
        sinusoids(torch.arange(3), 7)
    with pytest.raises(UsageError, match="marian"):
        small(positions="rotary")


@pytest.mark.parametrize("positions", ["paper", "tensor2tensor", "marian", 11, None])
def test_where_a_token_stands(positions: Any) -> None:
    model = small(positions=positions)
    source = tokens(2, 6, vocabulary=29)
    (memory, _), (turned, _) = model.encode(source), model.encode(source.flip(1))
    # Without positions, attention does not see any order.
    assert torch.allclose(memory, turned.flip(1), atol=1e-5) == (positions is None)
    if positions == 11:
        with pytest.raises(UsageError, match="place 11"):
            model.encode(tokens(1, 12, vocabulary=29))


# The model --------------------------------------------------------------------------------------------


def test_embeddings_are_tied_three_ways() -> None:
    model = small()
    assert sum(p.shape == (29, 12) for p in model.parameters()) == 1
    x, places = tokens(1, 5, vocabulary=29), torch.arange(5)[None]
    torch.testing.assert_close(
        model.embed(x, places, None),
        model.embedding.weight[x] * math.sqrt(12) + sinusoids(places, 12),
    )
    torch.testing.assert_close(model.logits(draw(3, 12)), draw(3, 12) @ model.embedding.weight.T)


def test_padding_changes_nothing() -> None:
    model = small()
    source, target = tokens(2, 7, vocabulary=29), tokens(2, 5, vocabulary=29, seed=1)
    whole = model(padded(source, [7, 4]), padded(target, [3, 5]))
    torch.testing.assert_close(whole[:1, :3], model(source[:1], target[:1, :3]))
    torch.testing.assert_close(whole[1:], model(source[1:, :4], target[1:]))
    # The same by lengths, whatever lies behind them.
    torch.testing.assert_close(whole, model(source, padded(target, [3, 5]), torch.tensor([7, 4])))


def test_no_later_token_is_seen() -> None:
    model = small()
    source, target = tokens(1, 7, vocabulary=29), tokens(1, 5, vocabulary=29, seed=1)
    changed = target.clone()
    changed[0, 3] = (target[0, 3] - 1) % 27 + 2
    before, after = model(source, target), model(source, changed)
    assert torch.equal(before[0, :3], after[0, :3]) and not torch.allclose(before[0, 3:], after[0, 3:])


def test_pre_norm_is_normed_at_its_end() -> None:
    model = small(norm="pre")
    assert isinstance(model.encoder_norm, nn.LayerNorm) and isinstance(model.decoder_norm, nn.LayerNorm)
    memory, _ = model.encode(tokens(2, 7, vocabulary=29))
    torch.testing.assert_close(memory.mean(-1), torch.zeros(2, 7), atol=1e-5, rtol=0)
    post, _ = small().encode(tokens(2, 7, vocabulary=29))
    torch.testing.assert_close(post.mean(-1), torch.zeros(2, 7), atol=1e-5, rtol=0)
    assert isinstance(small().encoder_norm, nn.Identity)


def test_initialisation() -> None:
    model = small(vocabulary=1009, width=96, inner=200)
    assert model.embedding.weight.std().item() == pytest.approx(96**-0.5, rel=0.02)
    weight = model.encoder[0].feed_forward.w1.weight
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (96 + 200)), rel=0.03)
    assert weight.abs().max() <= math.sqrt(6 / (96 + 200))
    assert not model.decoder[2].feed_forward.w2.bias.any()


@pytest.mark.parametrize("options", [{}, {"bias": True, "norm": "pre", "activation": "swish", "positions": 9}])
def test_every_parameter_gets_a_gradient(options: dict[str, Any]) -> None:
    model = small(**options).train()
    model(tokens(3, 7, vocabulary=29), tokens(3, 5, vocabulary=29, seed=1)).square().sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        # A key's bias adds the same to all products of a query, which the softmax takes away again.
        assert (p.grad.abs().max() > 1e-3) != name.endswith("attention.k.bias"), name


def test_attention_maps() -> None:
    model = small()
    source, target = padded(tokens(2, 7, vocabulary=29), [7, 4]), tokens(2, 5, vocabulary=29, seed=1)
    maps = model.attention_maps(source, target)
    assert [m.shape for m in maps] == [(2, 3, 5, 7)] * 3
    for m in maps:
        torch.testing.assert_close(m.sum(-1), torch.ones(2, 3, 5))
        assert not m[1, :, :, 4:].any()
    assert not any(layer.cross_attention._forward_pre_hooks for layer in model.decoder)


# One token after the other ----------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"norm": "pre", "bias": True, "positions": 13, "logits_bias": True}])
@pytest.mark.parametrize("ragged", [False, True])
def test_steps_give_what_the_whole_sequence_gives(options: dict[str, Any], ragged: bool) -> None:
    model = small(**options)
    if model.logits_bias is not None:
        model.logits_bias.copy_(draw(29))
    source, target = padded(tokens(3, 7, vocabulary=29), [7, 4, 6]), tokens(3, 11, vocabulary=29, seed=1)
    whole = model(source, target)
    reader = model.reading(source)
    state = reader.init_state(3, 11)
    lengths = [5, 2, 4] if ragged else [5, 5, 5]
    logits, state = reader.step(padded(target[:, :5], lengths), state, torch.tensor(lengths) if ragged else None)
    for row, n in enumerate(lengths):
        torch.testing.assert_close(logits[row], whole[row, n - 1])
    for _ in range(3):
        logits, state = reader.step(torch.stack([target[i, n] for i, n in enumerate(lengths)])[:, None], state)
        lengths = [n + 1 for n in lengths]
        torch.testing.assert_close(logits, torch.stack([whole[i, n - 1] for i, n in enumerate(lengths)]))


@pytest.mark.parametrize(
    "rows", [[2, 0, 1], [0, 0, 1, 1, 2, 2], [2, 2, 2], [0, 2], [0, 0, 1, 2, 2], [1, 1, 0, 0, 2, 2], [0, 2, 2, 0]]
)
def test_states_of_other_rows(rows: list[int]) -> None:
    model = small()
    source, target = padded(tokens(3, 7, vocabulary=29), [7, 4, 6]), tokens(3, 6, vocabulary=29, seed=1)
    reader = model.reading(source)
    _, state = reader.step(target[:, :4], reader.init_state(3, 9))
    state = state.select(torch.tensor(rows))
    logits, state = reader.step(target[rows, 4:5], state)
    torch.testing.assert_close(logits, model(source, target)[rows, 4])
    again = torch.arange(len(rows)).flip(0)
    logits, _ = reader.step(target[rows, 5:].flip(0), state.select(again))
    torch.testing.assert_close(logits, model(source, target)[rows, 5].flip(0))


def test_beams_of_a_sentence_share_its_memory() -> None:
    model = small()
    reader = model.reading(tokens(3, 7, vocabulary=29))
    state = reader.init_state(3, 5)
    beams = state.select(torch.tensor([0, 0, 1, 1, 2, 2]))
    assert beams.memory[0][0] is state.memory[0][0]
    assert beams.select(torch.tensor([1, 0, 2, 3, 5, 5])).memory[0][0] is state.memory[0][0]
    fewer = beams.select(torch.tensor([1, 0, 5, 5]))
    assert len(fewer.memory[0][0]) == 2


def test_greedy_by_the_loop_of_all_generators() -> None:
    model = small()
    source = padded(tokens(2, 7, vocabulary=29), [7, 4])
    start = torch.zeros(1, dtype=torch.int64)
    found = generate(model.reading(source), [start, start], 6, stop=(1,))
    for row, new in enumerate(found):
        target = start
        for token in new.tolist():
            assert int(model(source[row : row + 1], target[None])[0, -1].argmax()) == token
            target = torch.cat([target, torch.tensor([token])])
        assert len(new) == 6 or new[-1] == 1


def test_as_many_targets_as_sources() -> None:
    with pytest.raises(UsageError, match="2 targets to continue for 3 sources"):
        small().reading(tokens(3, 7, vocabulary=29)).init_state(2, 5)
