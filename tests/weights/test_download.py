import hashlib
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from jingdu.errors import Missing, Refused
from jingdu.limits import HUB_SECONDS, PROGRESS_BYTES
from jingdu.weights import locate
from jingdu.weights.download import Patience, Unreachable, alone, attempt, checksum, fetch, fetch_url, url_place

CONTENT = os.urandom(200_003)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
pytestmark = pytest.mark.usefixtures("online")


def get(url: str, deadline: float = 5.0, offline: bool = False, said: list[str] | None = None) -> Path:
    said = [] if said is None else said
    return fetch_url(url, DIGEST, offline=offline, deadline=deadline, licence="MIT", say=said.append)


@pytest.fixture
def url(server):
    server.files["/w.pth"] = CONTENT
    return f"{server.url}/w.pth"


def test_fetches_once_verified_and_whole(server, url, online):
    said: list[str] = []
    path = get(url, said=said)
    assert path.read_bytes() == CONTENT and path.is_relative_to(online / "cache")
    assert said == [f"fetching {url} (licence of the weights: MIT)"]
    assert [one.name for one in path.parent.iterdir()] == ["w.pth"]
    assert get(url, said=said) == path and len(said) == 1 and len(server.seen) == 1


def test_the_licence_is_said_before_a_byte_is_asked_for(server, url):
    seen: list[int] = []
    fetch_url(url, DIGEST, offline=False, deadline=5.0, licence="MIT", say=lambda _: seen.append(len(server.seen)))
    assert seen == [0]


def test_a_damaged_cached_copy_is_fetched_again(server, url):
    path = get(url)
    path.write_bytes(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))
    said: list[str] = []
    assert get(url, said=said).read_bytes() == CONTENT
    assert "damaged" in said[0] and len(server.seen) == 2


def test_wrong_content_is_refused_and_removed(server, url, online):
    server.files["/w.pth"] = CONTENT[:-1] + b"!"
    with pytest.raises(Refused, match="wrong content, removed"):
        get(url)
    assert not [path for path in (online / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"]


@pytest.mark.parametrize("behaviour", ["half", "half always", "half norange"])
def test_a_cut_connection_is_taken_up_again(server, url, behaviour):
    server.behaviour["/w.pth"] = behaviour
    started = time.monotonic()
    if behaviour == "half":
        assert get(url).read_bytes() == CONTENT
        assert server.seen[1][2]["range"] == f"bytes={len(CONTENT) // 2}-"
        return
    with pytest.raises(Missing, match=r"cut after .* bytes are kept and the next try goes on"):
        get(url)
    assert time.monotonic() - started < 5
    server.behaviour.clear()
    assert get(url).read_bytes() == CONTENT
    assert "range" in server.seen[-1][2]


def test_a_part_of_another_file_does_not_spoil_the_next_try(server, url):
    server.behaviour["/w.pth"] = "half norange"
    with pytest.raises(Missing):
        get(url)
    server.behaviour.clear()
    (part,) = (Path(os.environ["JINGDU_CACHE"])).rglob("*.part")
    part.write_bytes(b"x" * 5000)
    assert get(url).read_bytes() == CONTENT
    server.behaviour["/w.pth"] = ""
    get(url).unlink()
    part.write_bytes(CONTENT + b"too long")
    assert get(url).read_bytes() == CONTENT


@pytest.mark.parametrize("behaviour", ["silent", "trickle"])
def test_a_server_without_progress_is_given_up_in_time(server, url, behaviour):
    server.behaviour["/w.pth"] = behaviour
    started = time.monotonic()
    with pytest.raises(Missing, match=r"no answer within 0.6 s.*fetch it by hand and put it at .*w\.pth"):
        get(url, deadline=0.6)
    assert 0.5 < time.monotonic() - started < 2.5


def test_the_deadline_is_that_of_the_promise():
    assert HUB_SECONDS <= 15 and PROGRESS_BYTES / HUB_SECONDS < 10_000


@pytest.mark.parametrize(
    ("status", "says"), [(429, "too many requests were made"), (503, "server failed"), (404, "no such file")]
)
def test_an_error_of_the_server_is_said(server, url, status, says):
    server.behaviour["/w.pth"] = str(status)
    with pytest.raises(Missing, match=rf"{says} \(HTTP {status}\)"):
        get(url)


def test_a_closed_port_is_missing_at_once(online):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = time.monotonic()
    with pytest.raises(Missing, match="refused"):
        get(f"http://127.0.0.1:{port}/w.pth")
    assert time.monotonic() - started < 2


def test_offline_opens_no_connection(server, url):
    with pytest.raises(Missing, match=r"connections are switched off.*put it at"):
        get(url, offline=True)
    assert server.seen == []
    path = get(url)
    assert get(url, offline=True) == path and len(server.seen) == 1


def test_by_hand_is_where_the_message_says(server, url):
    with pytest.raises(Missing) as caught:
        get(url, offline=True)
    place = Path(str(caught.value).rpartition("put it at ")[2])
    place.parent.mkdir(parents=True)
    place.write_bytes(CONTENT)
    assert get(url, offline=True) == place


def test_a_redirect_to_another_host_gets_no_token(server, url, tmp_path):
    server.redirects["/far"] = url.replace("127.0.0.1", "localhost")
    server.redirects["/near"] = url
    for path, kept in (("/near", True), ("/far", False)):
        target = tmp_path / path[1:]
        fetch(server.url + path, target, DIGEST, headers={"Authorization": "Bearer secret"})
        first, last = server.seen[-2:]
        assert first[2]["authorization"] == "Bearer secret" and ("authorization" in last[2]) is kept
        assert target.read_bytes() == CONTENT


def test_two_that_fetch_at_once_fetch_once(server, url):
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(get(url))) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1 and len(found) == 5 and len(server.seen) == 1


def test_another_process_that_gets_no_further_is_not_waited_for(server, url, online):
    part = url_place(url, DIGEST).with_name("w.pth.part")
    part.parent.mkdir(parents=True)
    part.touch()
    grown: list[float] = []

    def grow(until: float) -> None:
        while time.monotonic() < until:
            part.write_bytes(bytes(len(grown) + 1))
            grown.append(time.monotonic())
            time.sleep(0.1)

    with alone(part):
        other = threading.Thread(target=grow, args=(time.monotonic() + 1.2,))
        other.start()
        started = time.monotonic()
        with pytest.raises(Missing, match="another process is fetching it and gets no further"):
            get(url, deadline=0.5)
        other.join()
        assert 1.2 < time.monotonic() - started < 3, "it was waited for while it grew"
        part.unlink()
    assert get(url).read_bytes() == CONTENT and len(server.seen) == 1


def test_a_lock_whose_file_is_gone_is_no_lock(tmp_path):
    part = tmp_path / "w.part"
    with alone(part):
        (tmp_path / "w.part.lock").unlink()
        with alone(part, deadline=0):
            assert (tmp_path / "w.part.lock").exists()
    assert list(tmp_path.iterdir()) == []


def test_no_room_is_said_before_anything_is_written(server, url, monkeypatch):
    monkeypatch.setattr("jingdu.weights.download.shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(Refused, match=r"200,003 bytes needed, 1,000 free"):
        get(url)


def test_the_published_prefix_of_a_sha256_is_enough(server, online):
    name = f"net-{DIGEST[:8]}.pth"
    server.files[f"/{name}"] = CONTENT
    published = [{"variant": "net", "source": f"{server.url}/{name}", "licence": "BSD", "format": "torchvision"}]
    said: list[str] = []
    found = locate("default", published=published, say=said.append)
    assert found.path.read_bytes() == CONTENT and found.library == "torchvision" and "BSD" in said[0]
    server.files[f"/{name}"] = CONTENT[1:]
    found.path.unlink()
    with pytest.raises(Refused, match="wrong content"):
        locate("default", published=published, say=said.append)


def test_git_names_content_by_its_sha1(tmp_path):
    (tmp_path / "a").write_bytes(b"hello\n")
    # `printf 'hello\n' | git hash-object --stdin`
    assert checksum(tmp_path / "a", "git") == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_patience_starts_again_with_progress_only():
    patience = Patience(0.3)
    time.sleep(0.1)
    patience.received(PROGRESS_BYTES - 1)
    assert patience.left() < 0.25
    patience.received(1)
    assert patience.left() > 0.25


def test_an_exception_of_the_worker_is_the_callers():
    def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        attempt(Patience(5), fail)
    late = Patience(0.1)
    with pytest.raises(Unreachable, match=r"0\.1 s"):
        attempt(late, lambda: time.sleep(1))
    assert late.cancelled
