"""`jingdu weights list|where|verify|prune`: what is said of the caches, and what is removed from them."""

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import save
from torch import ones

from jingdu import canon
from jingdu.cli import main
from jingdu.errors import Missing, UsageError
from jingdu.weights import locate
from jingdu.weights.download import alone, url_place
from jingdu.weights.hub import by_hand_folder, hub_cache, repository
from jingdu.weights.sources import address
from jingdu.weights.store import kept, offers, prune, where
from tests.weights.server import add_repository

CONTENT = os.urandom(70_001)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
FILES = {"config.json": b'{"model_type": "resnet"}', "model.safetensors": save({"a": ones(20_011)})}
OURS, CARDS = "someone/net.v2", "timm/resnet18.a1_in1k"
"""A repository that no card names, and one that resnet's does."""
pytestmark = pytest.mark.usefixtures("online")


@pytest.fixture
def url(server):
    server.files["/w.pth"] = CONTENT
    return f"{server.url}/w.pth#sha256={DIGEST}"


@pytest.fixture
def hub(server, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    for repo in (OURS, CARDS):
        add_repository(server, repo, FILES)
    return server


def get(source: str, deadline: float = 5.0):
    return locate(source, deadline=deadline, say=lambda _: None)


@pytest.fixture
def full(hub, url):
    """All three places have something: a file of an address, two repositories, and one put there by hand."""
    for source in (url, f"hf:{OURS}", f"hf:{CARDS}"):
        get(source)
    folder = by_hand_folder("by/hand")
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(FILES["model.safetensors"])
    return hub


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))


def weights(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[str], str]:
    code = main(["weights", *map(str, words)])
    said = capsys.readouterr()
    return code, said.out.splitlines(), said.err


def states() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for one in kept():
        found.setdefault(one.place, []).append(one.state())
    return found


def test_list_gives_the_published_sources_of_all_cards(capsys):
    code, lines, _ = weights(capsys, "list", "--json")
    rows = json.loads("\n".join(lines))
    assert code == 0
    assert [row["source"] for row in rows] == [one["source"] for card in canon.papers() for one in card.weights]
    for row in rows:
        assert row["variant"] in canon.paper(row["paper"]).variants and row["licence"] and row["state"] == "absent"
    _, lines, _ = weights(capsys, "list")
    assert len(lines) == 2 * len(rows)
    for row, about, source in zip(rows, lines[::2], lines[1::2], strict=True):
        assert source.strip() == row["source"] and row["licence"] in about and row["variant"] in about


def test_list_of_a_paper_a_variant_or_a_librarys_name(capsys):
    def listed(name: str) -> set[tuple[str, str]]:
        return {(one.variant, one.format) for one in offers(name)}

    assert listed("resnet") == {("resnet18", "timm"), ("resnet50", "timm")}
    assert listed("resnet50") == {("resnet50", "timm")} and listed("torchvision/resnet50") == set()
    assert listed("vgg16") == {("vgg16", "torchvision"), ("vgg16", "timm")} > listed("timm/vgg16")
    assert weights(capsys, "list", "ngram")[:2] == (0, ["no published weights of ngram are known"])
    assert weights(capsys, "list", "ngram", "--json")[1] == ["[]"]
    code, _, error = weights(capsys, "list", "resnte")
    assert code == 2 and "resnet" in error


def test_list_says_what_is_here_and_how_large_it_is(hub):
    def listed(variant: str):
        (one,) = offers(variant)
        return one.where

    assert (listed("resnet18").state, listed("resnet18").bytes) == ("absent", None)
    found = get(f"hf:{CARDS}")
    assert listed("resnet18").state == "here" and listed("resnet18").path == found.path
    assert listed("resnet18").bytes == sum(map(len, FILES.values()))
    hub.behaviour[f"GET /{OURS}/resolve/main/model.safetensors"] = "half always"
    with pytest.raises(Missing):
        get(f"hf:{OURS}")
    assert where(f"hf:{OURS}").state == "begun"
    folder = by_hand_folder("o/broken")
    folder.mkdir(parents=True)
    (folder / "model.safetensors.index.json").write_text("no index")
    assert where("hf:o/broken").state == "damaged"


def test_a_published_size_is_said_before_the_download(monkeypatch):
    card = canon.paper("resnet")
    table = {"variant": "resnet18", "source": "hf:o/n", "bytes": 46_830_571}
    monkeypatch.setattr(
        "jingdu.canon.papers", lambda area=None: [card.__class__(**{**vars(card), "weights": (table,)})]
    )
    (one,) = offers("resnet18")
    assert (one.where.bytes, one.licence, one.format) == (46_830_571, "not stated", "")


def test_where_the_folders_are(full, capsys, online, monkeypatch):
    _, lines, _ = weights(capsys, "where", "--json")
    found = json.loads("\n".join(lines))
    assert {row["place"]: (row["path"], row["files"]) for row in found["places"]} == {
        "address": (str(online / "cache" / "weights"), 1),
        "by hand": (str(online / "cache" / "hub"), 1),
        "hub": (str(hub_cache()), 4),
    }
    assert found["places"][0]["bytes"] == len(CONTENT)
    assert (found["hub"], found["offline"]) == (full.url, False)
    monkeypatch.setenv("JINGDU_OFFLINE", "1")
    code, lines, _ = weights(capsys, "where")
    assert code == 0 and str(hub_cache()) in lines and "switched off" in lines[-1] and full.url in lines[-2]


def test_where_a_source_is_or_would_be(hub, url, capsys, tmp_path):
    assert where(url).state == where(f"hf:{OURS}").state == "absent"
    assert where(f"hf:{OURS}").path == by_hand_folder(OURS), "the place to put it by hand"
    for source in (url, f"hf:{OURS}"):
        found, place = get(source), where(source)
        assert (place.path, place.state) == (found.path, "here")
    assert weights(capsys, "where", url)[1] == [f"{where(url).path} (here, 0.1 MB)"]
    assert json.loads("\n".join(weights(capsys, "where", url, "--json")[1]))["bytes"] == len(CONTENT)
    assert where(str(tmp_path)).state == "here" and where("no/such.pth").state == "absent"
    for source in ("imagenet", "hf:only", "https://a.org/w.pth"):
        assert weights(capsys, "where", source)[0] == 2
    published = canon.paper("vgg").weights[0]
    assert where(published["source"]).path == url_place(*address(published["source"], published))


def test_verify_reads_everything_and_finds_what_is_damaged(full, capsys, url):
    assert states() == {"address": ["intact"], "by hand": ["unrecorded"], "hub": ["intact"] * 4}
    code, lines, _ = weights(capsys, "verify")
    assert code == 0 and lines[-1] == "6 files, none damaged" and len(lines) == 7
    paths = [where(url).path, (get(f"hf:{OURS}").path / "config.json").resolve()]
    for path in paths:
        damage(path)
    code, lines, error = weights(capsys, "verify")
    assert code == 4 and "2 of 6 files are damaged" in error and "jingdu weights prune" in error
    assert {line.split()[-1] for line in lines if line.startswith("damaged")} == set(map(str, paths))
    code, lines, _ = weights(capsys, "verify", "--json")
    rows = json.loads("\n".join(lines))
    assert code == 4 and {row["path"] for row in rows if row["state"] == "damaged"} == set(map(str, paths))
    assert {row["source"] for row in rows} == {"w.pth", "hf:by/hand", f"hf:{OURS}", f"hf:{CARDS}"}


def test_a_file_that_cannot_be_read_is_no_success(full, capsys, url, monkeypatch):
    def fail(path: Path, kind: str = "sha256") -> str:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("jingdu.weights.store.checksum", fail)
    assert weights(capsys, "verify")[0] == 4 and states()["address"] == ["unreadable"]
    assert not [one for one in prune() if one.why == "damaged"], "what cannot be read is not known to be damaged"


def test_prune_removes_partial_downloads_and_damaged_files(full, capsys, url):
    assert weights(capsys, "prune")[:2] == (0, ["0 removed, 0.0 MB"])
    blob = (get(f"hf:{OURS}").path / "model.safetensors").resolve()
    damage(blob)
    partial = [path.with_name(f"{path.name}.part") for path in (where(url).path, blob.with_name("a" * 64))]
    for path in partial:
        path.write_bytes(b"half")
        path.with_name(f"{path.name}.lock").touch()
    _, lines, _ = weights(capsys, "prune", "--dry-run")
    assert len(lines) == 4 and all(line.startswith("would remove ") for line in lines[:3]) and blob.exists()
    code, lines, _ = weights(capsys, "prune", "--json")
    rows = json.loads("\n".join(lines))
    assert code == 0
    assert {row["path"]: row["why"] for row in rows} == {
        **{str(path): "partial download" for path in partial},
        str(blob): "damaged",
    }
    assert {row["bytes"] for row in rows} == {4, len(FILES["model.safetensors"])}
    assert not blob.exists() and not any(path.exists() for path in partial)
    assert not list(hub_cache().rglob("*.part.lock")) and where(url).state == "here"
    assert where(f"hf:{OURS}").state == "absent" and get(f"hf:{OURS}").path.exists(), "it is fetched again"


def test_prune_leaves_what_another_process_is_fetching(full, url):
    part = where(url).path.with_name("w.pth.part")
    part.write_bytes(b"half")
    with alone(part):
        (one,) = prune()
        assert (one.path, one.done) == (part, False) and part.exists()
    (one,) = prune()
    assert one.done and not part.exists()


def test_prune_of_a_source(full, url, capsys):
    (one,) = prune(url)
    assert one.bytes == len(CONTENT) and one.done and not one.path.parent.exists(), "no empty folder stays"
    (one,) = prune(f"hf:{OURS}")
    assert one.path == repository(OURS) and one.bytes >= sum(map(len, FILES.values()))
    (one,) = prune("hf:by/hand")
    assert one.path == by_hand_folder("by/hand") and not one.path.parent.exists()
    assert states() == {"hub": ["intact"] * 2}, "the others are there"
    assert list(prune(url)) == []
    for source in (f"hf:{OURS}@v1", "some/file.pth"):
        with pytest.raises(UsageError):
            list(prune(source))
    assert weights(capsys, "prune", url, "--all")[0] == weights(capsys, "prune", "--older-than", "-1")[0] == 2


def test_prune_all_removes_what_was_fetched_and_leaves_what_others_may_use(full, capsys, online):
    (online / "cache" / "lab").mkdir()
    (online / "cache" / "lab" / "part").write_text("a trained part of the lab")
    code, lines, _ = weights(capsys, "prune", "--all")
    assert code == 0 and len(lines) == 3 and lines[-1].startswith("2 removed, ")
    assert states() == {"by hand": ["unrecorded"], "hub": ["intact"] * 2}
    assert repository(OURS).exists() and not repository(CARDS).exists()
    assert (online / "cache" / "lab" / "part").exists()


def test_prune_by_age(full, url):
    def age(path: Path, days: float) -> None:
        for one in [path, *path.rglob("*")]:
            os.utime(one, (then := time.time() - 86400 * days, then), follow_symlinks=False)

    assert list(prune(older_than=1)) == []
    age(where(url).path, 9)
    age(repository(CARDS), 30)
    age(repository(OURS), 30)
    assert [one.path for one in prune(older_than=40)] == []
    assert [one.path for one in prune(older_than=10)] == [repository(CARDS)]
    assert [one.path for one in prune(older_than=8)] == [where(url).path]


def test_the_verb_is_quick_and_imports_no_torch(full):
    code = (
        "import sys, jingdu.cli as c; assert c.main({!r}) == 0\n"
        "heavy = {{'torch', 'numpy', 'huggingface_hub', 'rich'}} & set(sys.modules); assert not heavy, heavy"
    )
    for words in (["list"], ["list", "resnet", "--json"], ["where"], ["where", f"hf:{OURS}"], ["verify"], ["prune"]):
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", code.format(["weights", *words])], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0 and done.stdout, done.stderr
        assert time.monotonic() - started < 5, words


def test_cached_weights_need_no_library_of_the_hub(full, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert get(f"hf:{CARDS}").config == {"model_type": "resnet"}
