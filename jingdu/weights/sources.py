"""Where weights come from: one text, found on this machine or fetched."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jingdu.errors import Missing, Refused, UsageError
from jingdu.limits import HUB_SECONDS
from jingdu.weights.download import Say, fetch_url, is_offline, say_to_stderr
from jingdu.weights.folders import CONFIG_FILES, TOKENIZER_FILES, WEIGHT_FILES, read_json, shard_paths
from jingdu.weights.hub import hub_folder

KINDS = "a file, a folder, a run folder, hf:OWNER/NAME[@revision], URL#sha256=HEX, or default"


@dataclass(frozen=True)
class Located:
    """Weights on this machine, not yet read."""

    source: str
    """What the user wrote; for "default" the published source."""
    kind: Literal["file", "folder", "checkpoint"]
    path: Path
    """The file, the folder, or the verified checkpoint folder of a run."""
    description: str
    """For people and records: the source, and for a run its checkpoint."""
    library: str | None = None
    """The format that the paper's card states for a published source."""
    variant: str | None = None
    """The variant that the card states for a published source."""
    preprocess: Mapping[str, Any] | None = None
    """The preprocessing that the card states for a published source."""
    files: Mapping[Path, frozenset[str] | None] = field(default_factory=dict)
    """Files with tensors, and for shards the names that each must hold."""

    def _json(self, name: str) -> dict[str, Any] | None:
        path = self.path / name
        return read_json(path) if self.kind != "file" and path.exists() else None

    @property
    def config(self) -> dict[str, Any] | None:
        """The folder's config.json."""
        return self._json(CONFIG_FILES[0])

    @property
    def preprocessor(self) -> dict[str, Any] | None:
        """The folder's preprocessor_config.json."""
        return self._json(CONFIG_FILES[1])

    @property
    def tokenizer(self) -> Path | None:
        """A checkpoint's tokenizer.json, or the folder where it holds the files of a tokenizer."""
        if self.kind == "checkpoint":
            return self.path / TOKENIZER_FILES[0] if (self.path / TOKENIZER_FILES[0]).exists() else None
        found = self.kind == "folder" and any((self.path / name).exists() for name in TOKENIZER_FILES)
        return self.path if found else None

    @property
    def model(self) -> dict[str, Any] | None:
        """The checkpoint's model.json."""
        return self._json("model.json")


def locate(
    source: str | Path,
    *,
    published: Sequence[Mapping[str, Any]] = (),
    variant: str | None = None,
    offline: bool | None = None,
    deadline: float = HUB_SECONDS,
    say: Say = say_to_stderr,
) -> Located:
    """Find the weights of a source on this machine, or fetch them.

    Args:
        source: a file; a folder with config.json and weights; a run folder or one of its checkpoints;
            hf:OWNER/NAME[@revision]; http(s)://...#sha256=HEX; or "default", the first published source.
        published: the card's tables, with source, variant, sha256, licence, format.
        variant: the variant that "default" is for; None takes the first table.
        offline: use only what is here. None: as JINGDU_OFFLINE, HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE say.
        deadline: seconds without progress after which a server is given up.
        say: receives a line before a download (with the licence of the weights) and for damaged caches.

    Raises UsageError for a source that cannot be read as one, Missing for one that is not there or cannot be
    reached, Refused for wrong or damaged content.
    """
    offline = is_offline() if offline is None else offline
    text = str(source)
    entry: Mapping[str, Any] = {}
    if text == "default":
        entry = _published(published, variant)
        text = str(entry["source"])
    else:
        entry = next((one for one in published if one.get("source") == text), {})
    licence = entry.get("licence")
    stated = {"library": entry.get("format"), "variant": entry.get("variant"), "preprocess": entry.get("preprocess")}
    if isinstance(source, Path):
        return _local(source, text, say, {})
    if text.startswith("hf:"):
        folder = hub_folder(text, offline=offline, deadline=deadline, licence=licence, say=say)
        revision = f"@{folder.name}" if folder.parent.name == "snapshots" else ""
        return _folder(folder, text, text.partition("@")[0] + revision if revision else text, stated)
    if "://" in text:
        url, digest = address(text, entry)
        path = fetch_url(url, digest, offline=offline, deadline=deadline, licence=licence or "not stated", say=say)
        return Located(text, "file", path, text, **stated, files={path: None})
    return _local(Path(text), text, say, stated)


def _published(published: Sequence[Mapping[str, Any]], variant: str | None) -> Mapping[str, Any]:
    found = next((one for one in published if variant in (None, one.get("variant"))), None)
    if found is not None:
        return found
    known = ", ".join(sorted({str(one.get("variant")) for one in published}))
    raise Missing(
        f"no published weights of {variant or 'this paper'} are known{f' (known: {known})' if known else ''}: "
        f"train it (jingdu train) or give weights as {KINDS}"
    )


def address(text: str, entry: Mapping[str, Any]) -> tuple[str, str]:
    """An http(s) address and the sha256 (or, for a published one, the start of it) of its content."""
    url, _, fragment = text.partition("#")
    if not re.match("https?://[^/]", url):
        raise UsageError(f"cannot fetch {text!r}: weights are {KINDS}, where the URL is http or https")
    match = re.fullmatch("sha256=([0-9a-fA-F]{64})", fragment)
    if match:
        return url, match[1].lower()
    stated = str(entry.get("sha256", "")).lower()
    # torch.hub's convention: the file's name ends with the first digits of its sha256.
    in_name = re.search(r"-([0-9a-f]{8,64})\.[a-z]+$", url)
    if entry and (stated or in_name):
        return url, stated or (in_name[1] if in_name else "")
    raise UsageError(
        f"{text}: an address needs the sha256 of its content, so that what arrives can be verified: "
        "write URL#sha256=HEX (`sha256sum FILE` prints it)"
    )


def _local(path: Path, text: str, say: Say, stated: Mapping[str, Any]) -> Located:
    path = path.expanduser()
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {text[:200]!r} as a path ({error}): weights are {KINDS}") from None
    if is_folder:
        return _folder(path, text, text, stated, say)
    if is_file:
        return Located(text, "file", path, text, **stated, files={path: None})
    if not ("/" in text or "." in text):
        raise UsageError(f"unknown weights {text!r}: weights are {KINDS}")
    hint = f" (or hf:{text}?)" if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", text) else ""
    raise Missing(f"{text}: there is no such file or folder{hint}; weights are {KINDS}")


def _folder(path: Path, text: str, about: str, stated: Mapping[str, Any], say: Say = say_to_stderr) -> Located:
    from jingdu.engine.checkpoint import newest_checkpoint, verify

    if _is_run(path):
        newest = newest_checkpoint(path, warn=lambda line: say(f"warning: {line}"))
        if newest is None:
            raise Refused(f"{path}: this run has no checkpoint yet")
        return _checkpoint(newest, text)
    if _is_checkpoint(path):
        verify(path)
        return _checkpoint(path, text)
    name = next((name for name in WEIGHT_FILES if (path / name).exists()), None)
    if name is None:
        raise Missing(f"{path}: no weights in this folder (looked for a run and for {', '.join(WEIGHT_FILES)})")
    files: Mapping[Path, frozenset[str] | None] = {path / name: None}
    if name.endswith(".index.json"):
        files = {shard: frozenset(keys) for shard, keys in shard_paths(path / name).items()}
    return Located(text, "folder", path, about, **stated, files=files)


def foreign_folder(source: str | Path) -> Located | None:
    """A folder on this machine that is no run and no checkpoint of ours, whatever it holds; None for anything else."""
    path = Path(source).expanduser()
    with suppress(OSError, ValueError):
        if path.is_dir() and not _is_run(path) and not _is_checkpoint(path):
            return Located(str(source), "folder", path, str(source))
    return None


def _is_run(path: Path) -> bool:
    return (path / "recipe.json").exists() or any((path / "checkpoints").glob("step-*"))


def _is_checkpoint(path: Path) -> bool:
    return (path / "model.json").exists() or (path / "manifest.json").exists()


def _checkpoint(path: Path, text: str) -> Located:
    averaged = path / "ema.safetensors"
    file = averaged if averaged.exists() else path / "model.safetensors"
    if not file.exists() or not (path / "model.json").exists():
        raise Refused(f"{path}: this checkpoint has no model")
    return Located(text, "checkpoint", path, str(path), files={file: None})
