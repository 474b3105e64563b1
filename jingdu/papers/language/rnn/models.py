"""What is built around a recurrent network: many inputs to one output, to many, to the next symbol, to another sequence."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from jingdu.errors import UsageError

from .scan import Hidden, Recurrent


class ManyToOne(nn.Module):
    """A linear map of the last layer's state after each row's true end (in both directions): one output a sequence."""

    def __init__(self, recurrent: Recurrent, outputs: int):
        super().__init__()
        self.recurrent = recurrent
        self.output = nn.Linear(recurrent.outputs, outputs)

    def forward(
        self, x: Float[Tensor, "a b inputs"], lengths: Int64[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch outputs"]:
        _, state = self.recurrent(x, None, lengths)
        return self.output(torch.cat(tuple(state[0][-self.recurrent.directions :]), -1))


class ManyToMany(nn.Module):
    """A linear map of the last layer's output at every step."""

    def __init__(self, recurrent: Recurrent, outputs: int):
        super().__init__()
        self.recurrent = recurrent
        self.output = nn.Linear(recurrent.outputs, outputs)

    def forward(
        self,
        x: Float[Tensor, "a b inputs"],
        state: tuple[Tensor, ...] | None = None,
        lengths: Int64[Tensor, " batch"] | None = None,
    ) -> tuple[Float[Tensor, "a b outputs"], Hidden]:
        y, state = self.recurrent(x, state, lengths)
        return self.output(y), state


class LanguageModel(nn.Module):
    """The next symbol from those before it.

    Args:
        recurrent: reads the symbols' vectors, batch first, from the first symbol to the last.
        vocabulary: how many symbols there are.
        embedding: size of a symbol's learned vector; None is Elman's unit vectors, one place a symbol.
        drop: a part that the vectors and the last layer's outputs go through (dropout).
        tie: the output layer's matrix is the table of embeddings.
        output: logits from the last layer's outputs; by default a linear map. One with a method
            `nats(y, targets)` gives the loss itself without all logits (an adaptive softmax).
    """

    def __init__(
        self,
        recurrent: Recurrent,
        vocabulary: int,
        embedding: int | None = None,
        drop: nn.Module | None = None,
        tie: bool = False,
        output: nn.Module | None = None,
    ):
        super().__init__()
        if (
            recurrent.inputs != (embedding or vocabulary)
            or recurrent.direction != "forwards"
            or not recurrent.batch_first
        ):
            raise UsageError("a language model reads forwards, batch first, vectors of the size of its embedding")
        if tie and (embedding != recurrent.outputs or output is not None):
            raise UsageError(
                f"tied matrices have one shape: embedding {embedding} must be the outputs' size, {recurrent.outputs}, "
                "and the output layer the default one"
            )
        self.vocabulary = vocabulary
        self.embedding = nn.Embedding(vocabulary, embedding) if embedding else None
        self.recurrent = recurrent
        self.drop = drop if drop is not None else nn.Identity()
        self.output = output if output is not None else nn.Linear(recurrent.outputs, vocabulary)
        if tie and self.embedding is not None:
            self.output.weight = self.embedding.weight

    def read(
        self,
        tokens: Int64[Tensor, "batch time"],
        state: tuple[Tensor, ...] | None = None,
        lengths: Int64[Tensor, " batch"] | None = None,
    ) -> tuple[Float[Tensor, "batch time hidden"], Hidden]:
        """The last layer's outputs: what the network makes of the symbols so far."""
        if self.embedding is not None:
            x = self.embedding(tokens)
        else:
            x = F.one_hot(tokens, self.vocabulary).to(self.recurrent.layers[0].cells[0].weight_ih.dtype)
        y, state = self.recurrent(self.drop(x), state, lengths)
        return self.drop(y), state

    def forward(
        self,
        tokens: Int64[Tensor, "batch time"],
        state: tuple[Tensor, ...] | None = None,
        targets: Int64[Tensor, "batch time"] | None = None,
    ) -> tuple[Tensor, Hidden]:
        """Logits [batch, time, vocabulary] and the new state; with `targets`, their loss in nats [batch, time] instead."""
        y, state = self.read(tokens, state)
        if targets is None:
            return self.output(y), state
        if hasattr(self.output, "nats"):
            return self.output.nats(y, targets), state
        nats = F.cross_entropy(self.output(y).float().flatten(0, 1), targets.flatten(), reduction="none")
        return nats.view(targets.shape), state

    def init_state(self, batch: int, capacity: int = 0) -> Hidden:
        """The state before the first symbol."""
        return self.recurrent.init_state(batch, capacity)

    def step(
        self, tokens: Int64[Tensor, "batch time"], state: Hidden, lengths: Int64[Tensor, " batch"] | None = None
    ) -> tuple[Float[Tensor, "batch vocabulary"], Hidden]:
        """See `generation`."""
        y, state = self.read(tokens, state, lengths)
        return self.output(_last(y, lengths)), state


def _last(y: Tensor, lengths: Tensor | None) -> Tensor:
    """[batch, time, size] at each row's last real step."""
    return y[:, -1] if lengths is None else y[torch.arange(len(y), device=y.device), lengths - 1]


class EncoderDecoder(nn.Module):
    """One network reads a sequence; another starts from its last state and writes a sequence, without looking back.

    Args:
        encoder, decoder: of the same layers and sizes, batch first; they read embeddings.
        source_vocabulary, target_vocabulary: how many symbols each side has.
        drop: a part that embeddings and the decoder's outputs go through.
    """

    def __init__(
        self,
        encoder: Recurrent,
        decoder: Recurrent,
        source_vocabulary: int,
        target_vocabulary: int,
        drop: nn.Module | None = None,
    ):
        super().__init__()
        if encoder.sizes != decoder.sizes or len(encoder.layers) != len(decoder.layers) or encoder.direction == "both":
            raise UsageError(
                "the decoder starts from the encoder's last state: give both the same layers and sizes, one direction"
            )
        self.encoder, self.embedding = encoder, nn.Embedding(source_vocabulary, encoder.inputs)
        self.decoder = LanguageModel(decoder, target_vocabulary, decoder.inputs, drop)

    def encode(self, source: Int64[Tensor, "batch source"], lengths: Int64[Tensor, " batch"] | None = None) -> Hidden:
        """The state after the source, which is all that the decoder knows of it."""
        return self.encoder(self.decoder.drop(self.embedding(source)), None, lengths)[1]

    def forward(
        self,
        source: Int64[Tensor, "batch source"],
        target: Int64[Tensor, "batch time"],
        lengths: Int64[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch time vocabulary"]:
        """Logits of the symbol after each of `target`; `lengths` are the source's."""
        return self.decoder(target, self.encode(source, lengths))[0]

    def reading(
        self, source: Int64[Tensor, "batch source"], lengths: Int64[Tensor, " batch"] | None = None
    ) -> "Conditioned":
        """The decoder after these sources, for `generate`: each prompt is how its row's target begins."""
        return Conditioned(self.decoder, self.encode(source, lengths))


class Conditioned:
    """A decoder whose first state is not zero: for `generate` over what an encoder has read."""

    def __init__(self, decoder: Any, state: Any):
        self.decoder, self.state = decoder, state

    def init_state(self, batch: int, capacity: int) -> Any:
        return self.state

    def step(self, tokens: Tensor, state: Any, lengths: Tensor | None = None) -> tuple[Tensor, Any]:
        return self.decoder.step(tokens, state, lengths)


def masked_nats(
    logits: Float[Tensor, "batch time vocabulary"],
    targets: Int64[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"] | None = None,
) -> Float[Tensor, "batch time"]:
    """Each target's cross-entropy in nats; zero where `mask` is False."""
    nats = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
    return nats if mask is None else nats * mask
