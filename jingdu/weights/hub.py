"""Weights from the Hugging Face hub or a mirror of it, with our deadline and our check of the content.

The hub's library lists files, adds them to its cache, and reads the user's token. The bytes come through
`download.fetch`, because the library waits minutes for a silent server and does not hash them. What is in the
cache is read without the library (its layout: huggingface_hub/file_download.py).
"""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jingdu.errors import JingduError, Missing, Refused, UsageError, need_extra
from jingdu.weights.download import Patience, Say, Unreachable, attempt, cache_folder, checksum, fetch
from jingdu.weights.folders import CONFIG_FILES, TOKENIZER_FILES, WEIGHT_FILES, read_index

HOME = "https://huggingface.co"


def endpoint() -> str:
    """The hub's address, or the mirror that HF_ENDPOINT names."""
    return (os.environ.get("HF_ENDPOINT") or HOME).rstrip("/")


def hub_cache() -> Path:
    """The hub library's own cache (HF_HUB_CACHE, HF_HOME), which other programs share."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(os.path.expandvars(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")).expanduser()


def parse(source: str) -> tuple[str, str]:
    """`hf:OWNER/NAME[@revision]` as repository and revision. Raises UsageError."""
    word = r"[A-Za-z0-9][\w.-]*"
    match = re.fullmatch(rf"hf:({word}/{word})(?:@([\w./-]+))?", source, re.ASCII)
    if match is None or ".." in source:
        raise UsageError(f"cannot read {source!r}: write hf:OWNER/NAME or hf:OWNER/NAME@revision")
    return match[1], match[2] or "main"


def by_hand_folder(repo: str, revision: str = "main") -> Path:
    """Where a user puts the files of a repository that no connection reaches."""
    return cache_folder() / "hub" / (repo if revision == "main" else f"{repo}@{revision}")


def repository(repo: str) -> Path:
    """A repository's folder in the hub library's cache."""
    return hub_cache() / f"models--{repo.replace('/', '--')}"


def snapshot(repo: str, revision: str) -> Path | None:
    """The cached files of a revision (a branch, a tag or a commit), complete or not; None if there are none."""
    folder = repository(repo)
    try:
        commit = (folder / "refs" / revision).read_text("utf-8").strip()
    except (OSError, ValueError):
        commit = revision
    found = folder / "snapshots" / commit
    return found if re.fullmatch(r"\w[\w.-]*", commit) and found.is_dir() else None


def kind_of_tag(etag: str) -> str | None:
    """Which checksum an entity tag of the hub is: large files have their sha256, small ones git's."""
    if re.fullmatch("[0-9a-f]{64}", etag):
        return "sha256"
    return "git" if re.fullmatch("[0-9a-f]{40}", etag) else None


def _blob(path: Path) -> Path:
    """What a name in a snapshot leads to: a file that is called by its checksum (where links are used)."""
    return Path(os.path.normpath(path.parent / os.readlink(path))) if path.is_symlink() else path


def is_intact(blob: Path) -> bool | None:
    """Whether a cached file is what it is named after; None: its name says nothing of its content."""
    kind = kind_of_tag(blob.name) if blob.parent.name == "blobs" else None
    return None if kind is None else checksum(blob, kind) == blob.name


def discard(blob: Path) -> None:
    """Remove a damaged file from the hub's cache, and the names that lead to it."""
    content = blob.resolve()  # the library may keep it once for all repositories: then the blob is a name of it
    if content.is_relative_to(hub_cache().resolve()):
        content.unlink(missing_ok=True)
    blob.unlink(missing_ok=True)
    for name in (blob.parents[1] / "snapshots").rglob("*"):
        if name.is_symlink() and _blob(name) == blob:
            name.unlink(missing_ok=True)


def files_of(folder: Path) -> list[Path]:
    """The files of a complete local snapshot; empty if it has no weights or lacks a shard."""
    name = next((name for name in WEIGHT_FILES if (folder / name).exists()), None)
    if name is None:
        return []
    files = [folder / name]
    if name.endswith(".index.json"):
        files += [folder / shard for shard in sorted(set(read_index(folder / name).values()))]
    files += [folder / name for name in (*CONFIG_FILES, *TOKENIZER_FILES) if (folder / name).exists()]
    return files if all(path.exists() for path in files) else []


def _cached(repo: str, revision: str, say: Say) -> Path | None:
    """The cached snapshot of a revision, if it is complete and undamaged."""
    folder = snapshot(repo, revision)
    name = next((name for name in WEIGHT_FILES if folder and (folder / name).exists()), None)
    if folder is None or name is None:
        return None
    # An index of shards is believed when it is known to be whole.
    beside = (folder / other for other in (*CONFIG_FILES, *TOKENIZER_FILES))
    first = [folder / name, *(path for path in beside if path.exists())]
    damaged = [path for path in first if is_intact(_blob(path)) is False]
    files = files_of(folder) if not damaged else []
    damaged += [path for path in files if path not in first and is_intact(_blob(path)) is False]
    for path in damaged:
        say(f"{path}: the cached copy was damaged and is removed")
        discard(_blob(path))
    if damaged:  # without the name of its weights, a snapshot that lacks its configuration now is not taken as it is
        (folder / name).unlink(missing_ok=True)
    return folder if files and not damaged else None


def hub_folder(source: str, *, offline: bool, deadline: float, licence: str | None, say: Say) -> Path:
    """A local folder with the weights of `hf:OWNER/NAME[@revision]` and their configuration.

    In this order: files put by hand into our cache, the hub library's cache (used as it is, without
    asking the hub), the hub. Raises Missing, UsageError, or Refused for wrong content.
    """
    repo, revision = parse(source)
    by_hand = by_hand_folder(repo, revision)
    if files_of(by_hand):
        return by_hand
    cached = _cached(repo, revision, say)
    if cached is not None:
        return cached

    def missing(reason: str) -> Missing:
        return Missing(
            f"{source}: {reason}. Fetch {' and '.join((CONFIG_FILES[0], WEIGHT_FILES[0]))} from "
            f"{HOME}/{repo}/tree/{revision} and put them in {by_hand}; or let HF_ENDPOINT name a mirror "
            f"(now {endpoint()})"
        )

    if offline:
        raise missing("it is not in the cache and connections are switched off")
    try:
        import huggingface_hub  # noqa: F401
    except ImportError:
        raise need_extra("huggingface_hub", "hub", source) from None
    try:
        return _fetch_snapshot(source, repo, revision, deadline, licence, say)
    except Unreachable as error:
        raise missing(f"cannot fetch it ({error})") from None


def _fetch_snapshot(source: str, repo: str, revision: str, deadline: float, licence: str | None, say: Say) -> Path:
    from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    address = endpoint()
    # The user's token is for the hub alone: a mirror never sees it. None lets the library look for one.
    token = None if address == HOME else False
    patience = Patience(deadline)

    def ask(function: Callable[[], Any], again: bool = True) -> Any:
        try:
            return attempt(patience, function)
        except (JingduError, Unreachable):
            raise
        except Exception as error:  # the library has dozens of its own, and those of its HTTP client
            # A server may close a kept connection in the moment in which the client uses it again.
            if again and type(error).__name__ == "RemoteProtocolError":
                return ask(function, again=False)
            raise Unreachable(_reason(error, repo, revision)) from None

    info = ask(lambda: HfApi(endpoint=address, token=token).model_info(repo, revision=revision))
    names = {file.rfilename for file in info.siblings or ()}
    weights = next((name for name in WEIGHT_FILES if name in names), None)
    if weights is None:
        raise Refused(f"{source}: none of {', '.join(WEIGHT_FILES)} is there")
    stated = getattr(info.card_data, "license", None) or "not stated"
    said = False

    def get(name: str) -> Path:
        nonlocal said
        url = hf_hub_url(repo, name, revision=revision, endpoint=address)
        meta = ask(lambda: get_hf_file_metadata(url, token=token, endpoint=address, timeout=deadline))
        kind = kind_of_tag(meta.etag or "")
        if kind is None:
            raise Unreachable(f"{address} gives no checksum for {name}")
        if not said:
            said = True
            say(f"fetching {source} from {address} (licence of the weights: {licence or stated})")
        blob = repository(repo) / "blobs" / meta.etag
        if not blob.exists():
            headers = {k: v for k, v in build_hf_headers(token=token).items() if k.lower() == "authorization"}
            fetch(url, blob, meta.etag, kind=kind, headers=headers, deadline=deadline)
        patience.renew()
        # The content is in its place: the library finds it there and adds the names that lead to it.
        link = Path(
            ask(
                lambda: hf_hub_download(
                    repo, name, revision=revision, endpoint=address, token=token, cache_dir=hub_cache()
                )
            )
        )
        if link.resolve() != blob.resolve() and is_intact(_blob(link)) is False:
            raise Refused(f"{source}: wrong content in {name}")
        patience.renew()
        return link

    for name in (*CONFIG_FILES, *TOKENIZER_FILES):
        if name in names:
            get(name)
    path = get(weights)
    if weights.endswith(".index.json"):
        for shard in sorted(set(read_index(path).values())):
            get(shard)
    return path.parent


def _reason(error: Exception, repo: str, revision: str) -> str:
    """One phrase for an error of the hub's library."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if "GatedRepoError" in names:
        return f"its owner asks you to accept conditions at {HOME}/{repo} and to log in with `hf auth login`"
    if "RepositoryNotFoundError" in names:
        return "there is no such repository, or it is private and you are not logged in"
    if "RevisionNotFoundError" in names:
        return f"it has no revision {revision!r}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return f"the server answered HTTP {status}"
    if isinstance(error, json.JSONDecodeError):
        return "the server's answer is not a hub's"
    return (str(error).splitlines() or [""])[0] or type(error).__name__
