"""`open_weights`: from what a user writes to weights that a network can be built for and filled with."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from jingdu.data.preprocess import Preprocess
from jingdu.errors import BadInput, Refused, UsageError
from jingdu.limits import HUB_SECONDS
from jingdu.weights.configs import Sizes, preprocess_from, sizes
from jingdu.weights.download import Say, say_to_stderr
from jingdu.weights.files import kind_of, read_metadata
from jingdu.weights.filling import fill, fill_network, load_plain, own_fit, read
from jingdu.weights.sources import Located, foreign_folder, locate


@dataclass(frozen=True)
class Weights:
    """Weights on this machine and what is known of their network. Tensors are read by `fill` alone."""

    located: Located
    family: str
    variant: str | None = None
    """Which variant they are of, where a run, our own file, a config.json or the card says so; else None."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of `build` that they need (num_classes, width, ...)."""
    classes: tuple[str, ...] | None = None
    preprocess: Preprocess | None = None
    library: str | None = None
    """The format that was asked for; None: it is detected."""
    network: str | None = None
    """The network's name within a run's system."""
    is_ours: bool = False
    """Written by us: the keys are ours as they are."""
    tensors: Mapping[str, Tensor] | None = None
    """By our names, where the paper itself read a file of its field's format."""

    @property
    def tokenizer(self) -> Path | None:
        """What says how text becomes tokens, where that lies beside the weights."""
        return self.located.tokenizer

    @property
    def description(self) -> str:
        """Where they came from, for `Origin.source`: the source; a hub source with its commit; a run's checkpoint."""
        return self.located.description

    def fill(
        self, network: Any, *, variant: str | None = None, library: str | None = None, compare: bool = True
    ) -> None:
        """Load the tensors into a network (or a plain object's state into it), strictly.

        Args:
            network: what `build(variant, **overrides)` gave. Dtypes and devices stay the network's.
            variant: the variant that was built; by default the weights' own.
            library: the format of the keys; by default as opened.
            compare: of a checkpoint of ours, the network must also give the outputs that it was saved with. A
                network that was built with other options on purpose need not.

        Raises Refused, with all missing, unexpected and mis-shaped tensors in one sentence, before anything is
        loaded; UsageError where the keys fit several formats with different meanings.
        """
        located = self.located
        if not isinstance(network, nn.Module):
            self._fill_plain(network)
        elif self.tensors is not None:
            try:
                fill_network(network, self.tensors, own_fit(self.tensors, network))
            except Refused as error:
                raise Refused(f"{self.description}: {error}") from None
        elif self.is_ours:
            tensors = read(located)
            if self.network is not None:
                prefix = f"{self.network}."
                tensors = {key[len(prefix) :]: x for key, x in tensors.items() if key.startswith(prefix)}
            try:
                fill_network(network, tensors, own_fit(tensors, network))
                if compare and located.kind == "checkpoint":
                    self._compare(network)
            except Refused as error:
                raise Refused(f"{located.description}: {error}") from None
        else:
            fill(
                network,
                located,
                family=self.family,
                variant=variant or self.variant,
                library=library or self.library,
            )

    def _compare(self, network: nn.Module) -> None:
        from jingdu.engine import parity
        from jingdu.engine.state import read_tree

        file = self.located.path / parity.FILE
        sample = read_tree(file).get(self.network) if file.exists() else None
        if sample is not None:
            parity.check(network, sample, self.network or "")

    def _fill_plain(self, model: Any) -> None:
        from jingdu.engine.state import read_tree

        if self.located.kind != "checkpoint" and not self.is_ours and hasattr(model, "read_file"):
            model.read_file(self.located.path)
            return
        (file, *more) = self.located.files
        if more or kind_of(file) != "safetensors":
            raise Refused(f"{self.description}: a {type(model).__name__} is read from a run or a file of ours alone")
        load_plain(model, read_tree(file), self.network or "model", self.description)


def open_weights(
    source: Any,
    *,
    family: str,
    variants: Sequence[str] = (),
    published: Sequence[Mapping[str, Any]] = (),
    variant: str | None = None,
    library: str | None = None,
    aliases: Mapping[str, str] | None = None,
    offline: bool | None = None,
    deadline: float = HUB_SECONDS,
    say: Say = say_to_stderr,
    plain: bool = False,
    own_format: Callable[[Path], tuple[Mapping[str, Any], Mapping[str, Tensor]] | None] | None = None,
) -> Weights:
    """Find weights and learn what network they are of; tensors are read later, by `Weights.fill`.

    The steps of `create` are: resolve the name; `open_weights`; `build(variant, **{**weights.overrides,
    **overrides})`, where `variant` is the asked one, or `weights.variant` if only the paper was named;
    `weights.fill(network)`; and an `Origin` of `description`, `classes` and `preprocess`.

    Args:
        source: a file, a folder (transformers or timm), a run folder or checkpoint of ours,
            hf:OWNER/NAME[@revision], URL#sha256=HEX, or "default".
        family: the paper's key: which key tables and which meaning of config.json are used.
        variants: the paper's variants. In a run with several networks the first of these is chosen.
        published: the card's tables of weights (source, variant, sha256, licence, format, preprocess).
        variant: the asked variant; None where only the paper was named, so that the weights decide.
        library: the format, from a qualified name; files that we wrote ignore it.
        aliases: the card's aliases, so that timm's architectures with other names are known.
        offline, deadline, say: see `locate`.
        plain: the paper has plain objects, no networks: a file or folder may be in the format of its field, which
            the object's `read_file(path)` reads, and no tensors.
        own_format: the paper's `read_weights(path)`: of a file in the format of its field the arguments of `build`
            and the tensors by our names, of another file None.

    Raises UsageError for an unreadable source, or weights that say they are of another variant than the asked
    one; Missing for weights that are not here and cannot be fetched; Refused for damaged ones.
    """
    found = foreign_folder(source) if plain else None
    located = found or locate(source, published=published, variant=variant, offline=offline, deadline=deadline, say=say)
    if located.kind == "checkpoint":
        return _from_checkpoint(located, family, variants, variant)
    if own_format is not None and located.kind == "file" and (read_here := own_format(located.path)) is not None:
        return Weights(located, family, located.variant, read_here[0], tensors=read_here[1])
    ours = None if found or (plain and not _is_safetensors(located)) else _from_own_file(located, family)
    if ours is not None:
        _same(ours.variant, variant, located)
        return ours
    known: Sizes = sizes(located.config, family, preprocessor=located.preprocessor, variants=variants, aliases=aliases)
    _same(known.variant, variant, located)
    if known.variant is not None and variants and known.variant not in variants:
        raise Refused(f"{located.description}: weights of {known.variant}, which {family} does not have")
    return Weights(
        located,
        family,
        known.variant or located.variant,
        known.overrides,
        known.classes,
        known.preprocess or preprocess_from(located.preprocess),
        library or located.library,
    )


def _is_safetensors(located: Located) -> bool:
    try:
        return all(kind_of(file) == "safetensors" for file in located.files)
    except BadInput:
        return False


def _same(found: str | None, asked: str | None, located: Located) -> None:
    if found is not None and asked is not None and found != asked:
        raise UsageError(f"{located.description}: these are weights of {found}, not of {asked}: create {found} instead")


def _from_checkpoint(located: Located, family: str, variants: Sequence[str], asked: str | None) -> Weights:
    model = located.model or {}
    networks = model.get("networks")
    if model.get("format") != "jingdu" or not isinstance(networks, dict):
        raise Refused(f"{located.path}: its model.json is not of a checkpoint of jingdu")
    cards = {name: card for name, card in networks.items() if isinstance(card, dict) and card.get("variant")}
    held = ", ".join(f"{name} = {card['variant']}" for name, card in cards.items()) or "none"
    for name, card in cards.items():
        if card["variant"] == asked if asked is not None else card["variant"] in variants:
            classes = model.get("classes")
            return Weights(
                located,
                family,
                card["variant"],
                card.get("overrides") or {},
                tuple(classes) if classes is not None else None,
                preprocess_from(model.get("preprocess")),
                network=name,
                is_ours=True,
            )
    raise UsageError(f"{located.description}: no network of {asked or family} in this run (it holds: {held})")


def _from_own_file(located: Located, family: str) -> Weights | None:
    """Weights that `save` wrote with their description."""
    (file, *more) = located.files
    text = None if more else read_metadata(file).get("jingdu")
    if text is None:
        return None
    try:
        about = json.loads(text)
        classes = about.get("classes")
        return Weights(
            located,
            family,
            about.get("variant"),
            dict(about.get("overrides") or {}),
            tuple(classes) if classes is not None else None,
            preprocess_from(about.get("preprocess")),
            is_ours=True,
        )
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise Refused(f"{file}: the description saved with these weights cannot be read ({error})") from None
