import json
import os
import socket
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from jingdu.errors import Missing, Refused, UsageError
from jingdu.weights import locate, read
from jingdu.weights.hub import hub_cache, parse
from tests.weights.server import add_repository

STATE = {"a": torch.arange(40_000.0)}
FILES = {"config.json": b'{"model_type": "resnet"}', "README.md": b"read me", "model.safetensors": save(STATE)}
REPO = "lab-1/net.v2"


@pytest.fixture
def hub(server, online, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    server.commit = add_repository(server, REPO, FILES)
    return server


def get(deadline: float = 5.0, source: str = f"hf:{REPO}", **options):
    said: list[str] = []
    found = locate(source, deadline=deadline, say=said.append, **options)
    return found, said


def asked(server, method: str = "GET") -> list[str]:
    return [path.rpartition("/")[2] for verb, path, _ in server.seen if verb == method and "/resolve/" in path]


def test_fetches_the_weights_and_their_configuration_alone(hub):
    found, said = get()
    assert torch.equal(read(found)["a"], STATE["a"]) and found.config == {"model_type": "resnet"}
    assert sorted(asked(hub)) == ["config.json", "model.safetensors"]
    assert said == [f"fetching hf:{REPO} from {hub.url} (licence of the weights: apache-2.0)"]
    assert found.description == f"hf:{REPO}@{hub.commit}"


def test_the_files_lie_in_the_hubs_own_cache(hub):
    from huggingface_hub import try_to_load_from_cache

    found, _ = get()
    assert try_to_load_from_cache(REPO, "model.safetensors", cache_dir=hub_cache()) == str(
        found.path / "model.safetensors"
    )


def test_the_cached_copy_is_used_without_a_connection(hub):
    get()
    count = len(hub.seen)
    for offline in (True, False):
        found, said = get(offline=offline)
        assert read(found)["a"].numel() == 40_000 and not said
    assert len(hub.seen) == count


def test_a_damaged_cached_copy_is_removed_and_fetched_again(hub):
    found, _ = get()
    path = (found.path / "model.safetensors").resolve()
    content = bytearray(path.read_bytes())
    content[-5] ^= 4
    path.write_bytes(bytes(content))
    with pytest.raises(Missing, match="switched off"):
        get(offline=True)
    again, said = get()
    assert torch.equal(read(again)["a"], STATE["a"]) and said
    path = (again.path / "config.json").resolve()
    path.write_bytes(b'{"model_type": "resneT"}')
    again, said = get()
    assert "damaged" in said[0] and again.config == {"model_type": "resnet"}


def test_offline_opens_no_connection_and_says_what_to_do(hub, monkeypatch):
    monkeypatch.setenv("JINGDU_OFFLINE", "1")
    with pytest.raises(Missing) as caught:
        get()
    text = str(caught.value)
    assert hub.seen == [] and caught.value.exit_code == 3
    for part in ("config.json and model.safetensors", f"huggingface.co/{REPO}", "HF_ENDPOINT", hub.url, "switched off"):
        assert part in text
    place = Path(os.environ["JINGDU_CACHE"]) / "hub" / REPO
    assert str(place) in text
    place.mkdir(parents=True)
    for name, content in FILES.items():
        (place / name).write_bytes(content)
    found, _ = get()
    assert found.path == place and torch.equal(read(found)["a"], STATE["a"])


def test_no_token_goes_to_a_mirror(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    get()
    assert hub.seen and all("authorization" not in headers for _, _, headers in hub.seen)
    assert not any("secret" in value for _, _, headers in hub.seen for value in headers.values())


def test_a_token_goes_to_the_hub_itself(hub, monkeypatch):
    monkeypatch.setattr("jingdu.weights.hub.HOME", hub.url)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    get()
    assert all(headers.get("authorization") == "Bearer hf_secret" for _, _, headers in hub.seen)


@pytest.mark.parametrize(
    ("where", "how"),
    [("info", "silent"), ("info", "trickle"), ("head", "silent"), ("get", "silent"), ("get", "trickle")],
)
def test_a_server_without_progress_is_given_up_in_time(hub, where, how):
    path = f"/{REPO}/resolve/main/model.safetensors"
    place = {"info": f"/api/models/{REPO}/revision/main", "head": f"HEAD {path}", "get": f"GET {path}"}[where]
    hub.behaviour[place] = how
    started = time.monotonic()
    with pytest.raises(Missing, match=r"no answer within 0\.8 s"):
        get(deadline=0.8)
    assert time.monotonic() - started < 3


def test_a_closed_port_is_missing_in_time(online, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
    started = time.monotonic()
    with pytest.raises(Missing, match=r"cannot fetch it.*HF_ENDPOINT"):
        get(deadline=1.5)
    assert time.monotonic() - started < 3


@pytest.mark.parametrize("status", ["429", "503", "404", "401", "403"])
def test_an_error_of_the_server_is_missing_in_time(hub, status):
    hub.behaviour[f"/api/models/{REPO}/revision/main"] = status
    started = time.monotonic()
    with pytest.raises(Missing, match=r"cannot fetch it"):
        get(deadline=1.5)
    assert time.monotonic() - started < 3


def test_wrong_content_is_refused_and_not_kept(hub):
    path = f"/{REPO}/resolve/main/model.safetensors"
    hub.files[path] = hub.files[path][:-1] + b"!"
    with pytest.raises(Refused, match="wrong content"):
        get()
    assert not any(path.is_file() and path.stat().st_size > 10_000 for path in hub_cache().rglob("*"))


def test_a_cut_download_goes_on_where_it_stopped(hub):
    path = f"/{REPO}/resolve/main/model.safetensors"
    hub.behaviour[f"GET {path}"] = "half always"
    with pytest.raises(Missing, match="bytes are kept"):
        get()
    hub.behaviour.clear()
    found, _ = get()
    assert torch.equal(read(found)["a"], STATE["a"])
    assert "range" in [headers for verb, where, headers in hub.seen if verb == "GET" and where == path][-1]


def test_a_connection_that_closes_between_two_requests_is_opened_again(hub):
    hub.behaviour[f"/api/models/{REPO}/revision/main"] = "hangs up once"
    found, _ = get()
    assert torch.equal(read(found)["a"], STATE["a"])


def test_shards_are_fetched_by_their_index(server, online, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    one, two = {"a": torch.ones(3), "b": torch.ones(5)}, {"c": torch.zeros(7)}
    index = {"weight_map": {"a": "m-1.safetensors", "b": "m-1.safetensors", "c": "m-2.safetensors"}}
    files = {
        "model.safetensors.index.json": json.dumps(index).encode(),
        "m-1.safetensors": save(one),
        "m-2.safetensors": save(two),
        "m-3.safetensors": save(two),
    }
    add_repository(server, "o/sharded", files)
    found, _ = get(source="hf:o/sharded")
    assert set(read(found)) == {"a", "b", "c"} and "m-3.safetensors" not in asked(server)
    again, _ = get(source="hf:o/sharded", offline=True)
    assert set(read(again)) == {"a", "b", "c"}
    (again.path / "m-2.safetensors").unlink()
    with pytest.raises(Missing, match="switched off"):
        get(source="hf:o/sharded", offline=True)


def test_shards_may_not_lead_out_of_their_folder(server, online, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    index = {"weight_map": {"a": "../../../secret.safetensors"}}
    add_repository(server, "o/evil", {"model.safetensors.index.json": json.dumps(index).encode()})
    with pytest.raises(Refused, match="only files in the same folder"):
        get(source="hf:o/evil")
    assert not any("secret" in path for _, path, _ in server.seen)


def test_a_repository_without_weights_is_refused(server, online, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    add_repository(server, "o/empty", {"README.md": b"nothing"})
    with pytest.raises(Refused, match=r"none of model\.safetensors"):
        get(source="hf:o/empty")


def test_a_mirror_without_checksums_is_not_believed(hub):
    for headers in hub.headers.values():
        headers.pop("X-Linked-Etag", None)
        headers["ETag"] = '"12345"'
    with pytest.raises(Missing, match="no checksum"):
        get()


def test_a_revision_is_part_of_the_source(hub):
    found, _ = get(source=f"hf:{REPO}@{hub.commit}")
    assert found.path.name == hub.commit
    with pytest.raises(Missing, match="cannot fetch it"):
        get(source=f"hf:{REPO}@other", deadline=1.5)


@pytest.mark.parametrize(
    "source", ["hf:", "hf:gpt2", "hf:a/b/c", "hf:../x", "hf:a/../b", "hf:a/b@../c", "hf:a/b@", "hf:-a/b", "hf:a b/c"]
)
def test_what_is_no_repository_is_wrong_usage(source):
    with pytest.raises(UsageError, match="hf:OWNER/NAME"):
        parse(source)


def test_parse():
    assert parse("hf:timm/resnet18.a1_in1k") == ("timm/resnet18.a1_in1k", "main")
    assert parse("hf:a/b@refs/pr/3") == ("a/b", "refs/pr/3")


def test_without_the_library_the_extra_is_named(online, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(Missing, match=r"pip install 'jingdu\[hub\]'"):
        get()
