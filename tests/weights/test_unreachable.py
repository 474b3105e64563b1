"""Row 15 of the promises: whatever a server does, there is an answer in time, nothing wrong is kept, and the next try goes on."""

import hashlib
import os
import sys
import time
from pathlib import Path

import pytest

from jingdu.errors import Missing
from jingdu.limits import HUB_SECONDS
from jingdu.weights.download import cache_folder, fetch_url
from jingdu.weights.hub import hub_cache, hub_folder
from tests.weights.server import add_repository

CONTENT = os.urandom(150_001)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
REPO, FILES = "lab/net", {"config.json": b'{"model_type": "resnet"}', "model.safetensors": CONTENT}
SHORT = 1.0
"""Seconds that stand for the promised ones."""
PLACES = {
    "url": "/w.pth",
    "info": f"/api/models/{REPO}/revision/main",
    "head": f"HEAD /{REPO}/resolve/main/model.safetensors",
    "get": f"GET /{REPO}/resolve/main/model.safetensors",
}
BEHAVIOURS = ("silent", "trickle", "429", "500", "503", "half always")
pytestmark = pytest.mark.usefixtures("online")
_watching: list[str] | None = None


def _hook(event: str, _: object) -> None:
    if _watching is not None and event.startswith("socket."):
        _watching.append(event)


sys.addaudithook(_hook)


@pytest.fixture
def sockets(monkeypatch):
    """What is done with sockets while a test runs."""
    monkeypatch.setattr(sys.modules[__name__], "_watching", seen := [])
    return seen


@pytest.fixture
def both(server, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    server.files["/w.pth"] = CONTENT
    add_repository(server, REPO, FILES)
    return server


def get(place: str, server, offline: bool = False) -> Path:
    options = {"offline": offline, "deadline": SHORT, "licence": "MIT", "say": lambda _: None}
    if place == "url":
        return fetch_url(f"{server.url}/w.pth", DIGEST, **options)
    return hub_folder(f"hf:{REPO}", **options) / "model.safetensors"


def whole() -> list[Path]:
    """Files of the caches under their final names, but for the small ones of the hub."""
    paths = [path for root in (cache_folder(), hub_cache()) for path in root.rglob("*") if path.is_file()]
    return [path for path in paths if path.suffix not in (".part", ".lock") and path.stat().st_size > 1000]


@pytest.mark.parametrize("how", BEHAVIOURS)
@pytest.mark.parametrize("place", PLACES)
def test_there_is_an_answer_in_time_and_the_next_try_succeeds(both, place, how):
    if (place in ("info", "head") and how == "half always") or (place, how) == ("head", "trickle"):
        pytest.skip("these answers are too short to be cut")
    both.behaviour[PLACES[place]] = how
    started = time.monotonic()
    with pytest.raises(Missing) as caught:
        get(place, both)
    assert time.monotonic() - started < SHORT + 1.5
    assert caught.value.exit_code == 3 and "\n" not in str(caught.value) and str(cache_folder()) in str(caught.value)
    assert whole() == []
    both.behaviour.clear()
    assert get(place, both).read_bytes() == CONTENT
    if how == "half always":
        assert "range" in both.seen[-1][2] or any("range" in headers for _, _, headers in both.seen)


@pytest.mark.parametrize("place", ["url", "get"])
def test_the_offline_flag_opens_no_socket(both, sockets, place):
    with pytest.raises(Missing, match="connections are switched off"):
        get(place, both, offline=True)
    assert sockets == [] and both.seen == []
    get(place, both)
    assert sockets, "the hook hears of connections"
    sockets.clear()
    assert get(place, both, offline=True).read_bytes() == CONTENT and sockets == []


def test_the_promised_time_is_the_limits():
    assert HUB_SECONDS <= 15
