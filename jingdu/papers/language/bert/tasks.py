"""Pre-training (Section 3.1) and fine-tuning (3.2, 4): what each head is taught, and how its answers are read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

import jingdu
from jingdu.data.base import Batch, Data, Tensors
from jingdu.data.draws import Draws
from jingdu.data.roles import name_roles
from jingdu.engine.contracts import Stage, System
from jingdu.engine.loop import load_system
from jingdu.engine.training import open_source
from jingdu.errors import UsageError
from jingdu.metrics.classification import Accuracy
from jingdu.papers.language.bpe import read_tokenizer

from .examples import LEFT_OUT
from .model import BERT
from .text import Marked

__all__ = [
    "FineTuning",
    "PreTraining",
    "Sentences",
    "best_span",
    "features",
    "roles",
    "sentence_vectors",
    "sentences",
    "take_encoder",
]


class PreTraining(System):
    """Section 3.1: the mean loss over the gaps, and that of the next sentence where the network predicts it.

    A batch is one of `Examples`. Evaluation gives word_loss (nats), word_error, and follows_error.

    Args:
        network: a BERT with head words or pretraining; UsageError for another.
        start: what to go on from, as in `FineTuning`; all of it, with its heads.
        previous: the finished stages, by name.
    """

    def __init__(self, network: BERT, start: str | None = None, previous: Mapping[str, Any] | None = None):
        super().__init__()
        if network.words is None:
            raise UsageError(f"pre-training predicts words: head={network.head!r} is none of words, pretraining")
        self.network = network
        self.words, self.follows = Accuracy(), Accuracy()
        if start is not None:
            network.load_state_dict(_trained(start, previous or {}, network.head).state_dict())

    def _ask(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Logits and targets of the gaps that there are, and the logits of the next sentence."""
        found = self.network(batch["tokens"], batch["mask"], batch["segments"], batch["places"])
        words, follows = found if isinstance(found, tuple) else (found, None)
        asked = batch["targets"] != LEFT_OUT
        return words[asked].float(), batch["targets"][asked], follows

    def forward(self, batch: Batch, objective: str) -> tuple[Tensor, dict[str, Any]]:
        words, targets, follows = self._ask(batch)
        loss = F.cross_entropy(words, targets)
        values = {"word_loss": loss.detach(), "word_error": (words.detach().argmax(1) != targets).float().mean()}
        if follows is not None:
            loss = loss + F.cross_entropy(follows.float(), batch["follows"])
            values["follows_error"] = (follows.detach().argmax(1) != batch["follows"]).float().mean()
        return loss, values

    def update(self, batch: Batch) -> None:
        words, targets, follows = self._ask(batch)
        self.words.update(words, targets)
        if follows is not None:
            self.follows.update(follows.float(), batch["follows"])

    def compute(self) -> dict[str, float]:
        words = self.words.compute()
        found = {"word_loss": words["loss"], "word_error": words["error"]}
        return found | ({"follows_error": self.follows.compute()["error"]} if self.network.follows is not None else {})


@torch.no_grad()
def take_encoder(network: BERT, trained: BERT) -> None:
    """Copy what two networks share, all but their heads. Raises UsageError where it has other sizes."""
    new = dict(network.named_parameters())
    for name, old in trained.named_parameters():
        if name.startswith(("embeddings.", "layers.", "pooler.")) and name in new:
            if new[name].shape != old.shape:
                shapes = f"{list(new[name].shape)} here, {list(old.shape)} there"
                raise UsageError(f"{name} of the network to start from has another shape: {shapes}")
            new[name].copy_(old)


class FineTuning(System):
    """Section 4: one new layer, and all parameters are trained on.

    A batch has `tokens`, `mask` and maybe `segments` [batch, (choices,) time], and `label`: of the class, or of the
    choice, int64 [batch]; a number [batch] where there is one class; of each token [batch, time], -100 for none; the
    first and the last token of a span [batch, 2], both 0 ([CLS]) where there is no answer. Evaluation gives error and
    loss; of numbers, squared_error and correlation (Pearson's).

    Args:
        network: a BERT with head class, tags, span or choice.
        start: what to begin from: the name of an earlier stage, the folder of a run, or weights as `create` takes them.
        frozen: train the new layer alone.
        previous: the finished stages, by name.
    """

    def __init__(
        self, network: BERT, start: str | None = None, frozen: bool = False, previous: Mapping[str, Any] | None = None
    ):
        super().__init__()
        heads = ("class", "tags", "span", "choice")
        if network.head not in heads:
            raise UsageError(f"fine-tuning teaches a task: head={network.head!r} is none of {', '.join(heads)}")
        self.network, self.accuracy = network, Accuracy()
        self.numbers: list[tuple[float, float]] = []
        self.is_number = network.head == "class" and network.classifier.out_features == 1
        if start is not None:
            take_encoder(network, _trained(start, previous or {}))
        if frozen:
            network.requires_grad_(False)
            for layer in (network.classifier, network.span):
                if layer is not None:
                    layer.requires_grad_(True)

    def _answer(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits [answers, classes] and labels [answers]; or of numbers, both [batch]."""
        output = self.network(batch["tokens"], batch["mask"], batch.get("segments")).float()
        label = batch["label"]
        if self.is_number:
            return output[:, 0], label.float()
        if self.network.head == "span":  # two questions, each over all tokens of the input
            output = output.masked_fill(~batch["mask"][..., None], torch.finfo(torch.float32).min)
            return output.transpose(1, 2).flatten(0, 1), label.flatten()
        asked = label != LEFT_OUT
        return output[asked], label[asked]

    def forward(self, batch: Batch, objective: str) -> tuple[Tensor, dict[str, Any]]:
        output, label = self._answer(batch)
        if self.is_number:
            return F.mse_loss(output, label), {}
        return F.cross_entropy(output, label), {"error": (output.detach().argmax(1) != label).float().mean()}

    def update(self, batch: Batch) -> None:
        output, label = self._answer(batch)
        if self.is_number:
            self.numbers += zip(output.tolist(), label.tolist(), strict=True)
        else:
            self.accuracy.update(output, label)

    def compute(self) -> dict[str, float]:
        if not self.is_number:
            return self.accuracy.compute()
        found, wanted = np.array(self.numbers, dtype=np.float64).reshape(-1, 2).T
        self.numbers = []
        spread = found.std() * wanted.std()
        agreement = ((found - found.mean()) * (wanted - wanted.mean())).mean() / spread if spread else 0.0
        return {"squared_error": float(((found - wanted) ** 2).mean()), "correlation": float(agreement)}


def _trained(start: str, previous: Mapping[str, Any], head: str | None = None) -> BERT:
    """The network that `start` names (see `FineTuning`)."""
    if start in previous:
        return previous[start].network
    if (Path(start) / "recipe.json").exists():
        return load_system(Path(start)).network
    if not Path(start).exists() and ":" not in start:
        raise UsageError(f"no earlier stage {start!r}, and no run folder or weights: there are {sorted(previous)}")
    return jingdu.create("bert", weights=start, head=head)


# Reading answers ---------------------------------------------------------------------------------------


def best_span(
    scores: Float[Tensor, "time 2"],
    allowed: Bool[Tensor, " time"],
    longest: int = 30,
    threshold: float | int | None = None,
) -> tuple[int, int, float] | None:
    """Section 4.2, 4.3: the first and last token of the answer, and its score S T_i + E T_j.

    Args:
        scores: logits of every token to be the first and to be the last; [CLS], at 0, stands for no answer.
        allowed: tokens of the passage.
        longest: tokens of an answer.
        threshold: give an answer only where its score is higher than that of [CLS] by more than this; None always
            answers (SQuAD 1.1).

    Returns None for no answer.
    """
    sums = scores[:, None, 0] + scores[None, :, 1]
    shape = torch.ones_like(sums, dtype=torch.bool).triu().tril(longest - 1)
    sums = sums.masked_fill(~(shape & allowed[:, None] & allowed[None]), float("-inf"))
    first, last = divmod(int(sums.argmax()), len(sums))
    best = float(sums[first, last])
    if best == float("-inf") or (threshold is not None and best <= float(scores[0].sum()) + threshold):
        return None
    return first, last, best


@torch.no_grad()
def features(
    model: BERT, tokens: Int64[Tensor, "batch time"], mask: Bool[Tensor, "batch time"] | None = None, last: int = 4
) -> Float[Tensor, "batch time features"]:
    """The feature-based way (Sec. 5.3, Tab. 7): the states of the last layers beside each other, and nothing is trained on."""
    return torch.cat(model.states(tokens, mask, packed=mask is not None)[-last:], 2)


@torch.no_grad()
def sentence_vectors(
    model: BERT, rows: Sequence[tuple[list[int], list[int]]], marked: Marked, batch: int = 16
) -> Float[Tensor, "rows width"]:
    """Vectors of unit length: the mean of the last layer's states over the real tokens (sentence-transformers' MiniLM).

    Rows of similar length are read together, and nothing is computed for padding.
    """
    order = sorted(range(len(rows)), key=lambda row: len(rows[row][0]))
    parts = []
    for low in range(0, len(order), batch):
        tokens, mask, segments = (
            x.to(_place(model)) for x in marked.batch([rows[i] for i in order[low : low + batch]])
        )
        states = model.states(tokens, mask, segments, packed=not bool(mask.all()))[-1]
        weight = mask[..., None].to(states.dtype)
        parts.append(F.normalize((states * weight).sum(1) / weight.sum(1), dim=1))
    return torch.cat(parts)[torch.tensor(order).argsort().to(parts[0].device)]


def _place(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


# Labelled data -----------------------------------------------------------------------------------------


class Sentences:
    """Labelled sentences, or pairs of them: `tokens`, `mask`, `segments`, `label`."""

    def __init__(self, source: Data, marked: Marked, length: int):
        self.source, self.marked, self.tokenizer, self.length = source, marked, marked.tokenizer, length
        self.classes = source.classes

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, indices: np.ndarray, draws: Draws) -> Batch:
        found = self.source.batch(indices, draws)
        firsts, seconds = found.get("text", found.get("source")), found.get("target")
        if firsts is None or "label" not in found:
            raise UsageError(f"sentences to learn from need text and label: these data have {', '.join(found)}")
        pairs = zip(firsts, seconds or [None] * len(firsts), strict=True)
        encode, length = self.marked.encode, self.length
        rows = [self.marked.join(encode(a), None if b is None else encode(b), length) for a, b in pairs]
        tokens, mask, segments = self.marked.batch(rows)
        return {"tokens": tokens, "mask": mask, "segments": segments, "label": found["label"]}


def sentences(split: Literal["train", "test"], of: str, tokenizer: str, length: int = 128) -> Sentences:
    """Data with `text`, or with `source` and `target` for pairs, and `label`: "hf:PATH(text='sentence', label='label')".

    Args:
        split: train or test.
        of: the data.
        tokenizer: the file or folder of a vocabulary.
        length: tokens that an input is cut to.
    """
    return Sentences(open_source(of, split, Stage()), Marked(read_tokenizer(tokenizer)), length)


def roles(
    split: Literal["train", "test"],
    tokenizer: str,
    length: int = 128,
    labelled: int = 2000,
    tested: int = 8000,
    fold: int = 0,
) -> Tensors:
    """Which part each name plays in functions of the standard library (`jingdu.data.roles`): `tokens`, `mask`, `label`.

    The label stands at the first token of a name, as in the paper's named entities (Sec. 5.3), and is -100 elsewhere.

    Args:
        split: train or test, of modules that `stdlib(share=0.3)` holds out.
        tokenizer: the data whose vocabulary is used: "bert.examples(of='stdlib(share=0.3)')".
        length: tokens that a function is cut to.
        labelled: names to learn from.
        tested: names to be tested on.
        fold: which ones there are to learn from.
    """
    marked = Marked(open_source(tokenizer, "train", Stage()).tokenizer)
    # So many characters are about so many tokens: few functions are cut.
    source = name_roles(split, labelled, tested, fold, longest=5 * length // 2)
    rows, labels = [], []
    for text, names in zip(source.fields["text"], source.fields["names"], strict=True):
        tokens, spans = marked.tokenizer.encode_with_offsets(text, disallowed=())
        role_at = {start: role for start, _, role in names}
        row = marked.join(tokens, None, length)
        kinds = [role_at.get(start, LEFT_OUT) for start, _ in spans][: len(row[0]) - 2]
        rows.append(row)
        labels.append(torch.tensor([LEFT_OUT, *kinds, LEFT_OUT]))
    tokens, mask, _ = marked.batch(rows)
    label = nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=LEFT_OUT)
    data = Tensors({"tokens": tokens, "mask": mask, "label": label}, source.classes)
    data.tokenizer = marked.tokenizer
    return data
