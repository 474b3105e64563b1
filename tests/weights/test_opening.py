import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from jingdu.data.preprocess import Preprocess
from jingdu.engine.checkpoint import write_checkpoint
from jingdu.engine.state import tree_bytes
from jingdu.errors import Missing, Refused, UsageError
from jingdu.weights import Weights, export, fill, locate, open_weights, read, save
from jingdu.weights.tables import tables

TABLE = """
[torchvision]
rules = [
  ["stem.{*}", "features.0.{*}"],
  ["norm.{*}", "features.1.{*}"],
  ["head.weight", "classifier.weight", "transpose"],
  ["head.bias", "classifier.bias"],
]
ignore = ["*.num_batches_tracked"]

[transformers]
rules = [["{*}", "{*}"]]
prefix = "toy."
"""


class Toy(nn.Module):
    def __init__(self, num_classes: int = 5, width: int = 3):
        super().__init__()
        self.stem = nn.Conv2d(2, width, 3)
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.stem(x)).mean((2, 3)))


@pytest.fixture(autouse=True)
def family(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("keys")
    (folder / "toy.toml").write_text(TABLE)
    monkeypatch.setattr("jingdu.weights.tables.KEYS", folder)
    tables.cache_clear()
    yield
    tables.cache_clear()


@pytest.fixture
def toy():
    torch.manual_seed(3)
    network = Toy()
    network.norm.running_mean.normal_()
    return network


def open_toy(source: object, **options: object) -> Weights:
    return open_weights(source, **{"family": "toy", "variants": ("toy", "toy_large"), **options})


def check(weights: Weights, wanted: nn.Module, network: nn.Module | None = None) -> None:
    network = network or Toy()
    weights.fill(network)
    for (name, a), b in zip(network.state_dict().items(), wanted.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("library", ["jingdu", "torchvision", "transformers"])
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_file_in_any_format_fills_the_network(tmp_path, toy, library, suffix):
    path = tmp_path / f"w.{suffix}"
    content = export(toy, library, family="toy")
    save_file(content, path) if suffix == "safetensors" else torch.save(content, path)
    weights = open_toy(str(path))
    assert (weights.variant, weights.classes, weights.preprocess) == (None, None, None)
    assert weights.description == str(path)
    check(weights, toy)


def test_export_gives_the_librarys_names_and_shapes(toy):
    content = export(toy, "torchvision", family="toy")
    assert set(content) == {
        *(f"features.0.{name}" for name in ("weight", "bias")),
        *(f"features.1.{name}" for name in toy.norm.state_dict()),
        "classifier.weight",
        "classifier.bias",
    }
    assert torch.equal(content["classifier.weight"], toy.head.weight.T)
    with pytest.raises(UsageError, match=r"'timm'.*torchvision"):
        export(toy, "timm", family="toy")
    with pytest.raises(UsageError, match="give family="):
        export(toy, "torchvision")
    toy.more = nn.Linear(2, 2)
    with pytest.raises(UsageError, match="torchvision has no name for more"):
        export(toy, "torchvision", family="toy")


def test_old_files_without_counters_leave_the_networks(tmp_path, toy):
    content = export(toy, "torchvision", family="toy")
    del content["features.1.num_batches_tracked"]
    save_file(content, tmp_path / "w.safetensors")
    network = Toy()
    network.norm.num_batches_tracked.fill_(7)
    open_toy(tmp_path / "w.safetensors").fill(network)
    assert network.norm.num_batches_tracked == 7 and torch.equal(network.head.weight, toy.head.weight)


def test_dtypes_become_the_networks(tmp_path, toy):
    save_file({name: x.double() for name, x in toy.state_dict().items()}, tmp_path / "w.safetensors")
    network = Toy().to(torch.bfloat16)
    open_toy(tmp_path / "w.safetensors").fill(network)
    assert network.stem.weight.dtype == torch.bfloat16
    assert torch.equal(network.stem.weight, toy.stem.weight.to(torch.bfloat16))


def test_numbers_that_are_not_finite_are_loaded(tmp_path, toy):
    toy.head.bias.data[1] = float("nan")
    toy.head.bias.data[2] = float("inf")
    save_file(toy.state_dict(), tmp_path / "w.safetensors")
    network = Toy()
    open_toy(tmp_path / "w.safetensors").fill(network)
    assert network.head.bias.isnan().tolist() == [False, True, False, False, False] and network.head.bias[2] == float(
        "inf"
    )


def broken(state: dict[str, Tensor], how: str) -> dict[str, Tensor]:
    state = dict(state)
    if how == "renamed":
        state["heed.weight"] = state.pop("head.weight")
    elif how == "dropped":
        del state["stem.bias"]
    elif how == "added":
        state["extra"] = torch.ones(2)
    elif how == "transposed":
        state["head.weight"] = state["head.weight"].T.contiguous()
    elif how == "integers":
        state["head.weight"] = state["head.weight"].to(torch.int8)
    elif how == "complex":
        state["head.weight"] = state["head.weight"].to(torch.complex64)
    return state


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("renamed", r"1 missing: head\.weight \(nearest in the file: heed\.weight\); 1 unexpected: heed\.weight"),
        ("dropped", r"1 missing: stem\.bias"),
        ("added", r"1 unexpected: extra"),
        ("transposed", r"1 of another shape: head\.weight \(the network has \[5, 3\], the file \[3, 5\]\)"),
        ("integers", r"head\.weight \(the network has torch\.float32, the file torch\.int8\)"),
        ("complex", r"head\.weight \(the network has torch\.float32, the file torch\.complex64\)"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_loaded(tmp_path, toy, how, says):
    path = tmp_path / "w.safetensors"
    save_file(broken(toy.state_dict(), how), path)
    network = Toy()
    before = {name: x.clone() for name, x in network.state_dict().items()}
    with pytest.raises(Refused, match=says) as caught:
        open_toy(path).fill(network)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value) and caught.value.exit_code == 4
    assert all(torch.equal(x, before[name]) for name, x in network.state_dict().items())


@pytest.mark.parametrize("library", ["jingdu", "torchvision"])
def test_a_head_of_another_size_names_the_remedy(tmp_path, library):
    save_file(export(Toy(num_classes=11), library, family="toy"), tmp_path / "w.safetensors")
    with pytest.raises(Refused, match=r"2 of another shape.*pass num_classes=11"):
        open_toy(tmp_path / "w.safetensors").fill(Toy())


def test_a_network_of_another_width_has_no_such_remedy(tmp_path):
    save_file(Toy(width=7).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(Refused) as caught:
        open_toy(tmp_path / "w.safetensors").fill(Toy())
    assert "of another shape" in str(caught.value) and "num_classes" not in str(caught.value)


def test_a_wrapped_network_is_wrong_usage(tmp_path, toy):
    save_file(toy.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(UsageError, match="wrapped"):
        open_toy(tmp_path / "w.safetensors").fill(nn.DataParallel(Toy()))


def test_the_asked_library_must_fit(tmp_path, toy):
    save_file(export(toy, "torchvision", family="toy"), tmp_path / "w.safetensors")
    check(open_toy(tmp_path / "w.safetensors", library="torchvision"), toy)
    with pytest.raises(Refused, match="read as transformers"):
        open_toy(tmp_path / "w.safetensors", library="transformers").fill(Toy())
    with pytest.raises(UsageError, match="'flax'"):
        open_toy(tmp_path / "w.safetensors").fill(Toy(), library="flax")


def test_our_own_file_brings_what_was_saved_with_it(tmp_path):
    network = Toy(num_classes=2)
    about = {
        "variant": "toy_large",
        "overrides": {"num_classes": 2},
        "classes": ["猫", "dog"],
        "preprocess": {"size": 11, "mean": [0.5]},
    }
    save(network.state_dict(), tmp_path / "w.safetensors", about)
    weights = open_toy(tmp_path / "w.safetensors", library="torchvision")
    assert (weights.variant, weights.overrides, weights.classes) == ("toy_large", {"num_classes": 2}, ("猫", "dog"))
    assert weights.preprocess == Preprocess(size=11, mean=(0.5,))
    check(weights, network, Toy(**weights.overrides))
    with pytest.raises(UsageError, match="weights of toy_large, not of toy"):
        open_toy(tmp_path / "w.safetensors", variant="toy")


def make_folder(folder: Path, content: dict[str, Tensor], **files: object) -> Path:
    folder.mkdir()
    save_file(content, folder / "model.safetensors")
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


def test_a_folder_with_a_config(tmp_path, toy):
    folder = make_folder(
        tmp_path / "hf",
        export(toy, "transformers", family="toy"),
        config={"model_type": "toy", "architectures": ["Toy"]},
        preprocessor_config={"size": {"shortest_edge": 9}, "crop_size": 7, "do_center_crop": True, "resample": 2},
    )
    weights = open_toy(folder)
    assert weights.preprocess == Preprocess(7, 9)
    check(weights, toy)
    fill(network := Toy(), locate(folder), family="toy")
    assert torch.equal(network.head.weight, toy.head.weight)


def test_the_folders_library_is_believed_over_the_keys(tmp_path, toy):
    folder = make_folder(tmp_path / "hf", export(toy, "torchvision", family="toy"), config={"model_type": "toy"})
    with pytest.raises(Refused, match="read as transformers"):
        open_toy(folder).fill(Toy())


def test_timms_architecture_is_the_variant(tmp_path, toy):
    folder = make_folder(tmp_path / "timm", toy.state_dict(), config={"architecture": "toy.in1k", "pretrained_cfg": {}})
    weights = open_toy(folder)
    assert weights.variant == "toy"
    check(weights, toy)
    with pytest.raises(UsageError, match="create toy instead"):
        open_toy(folder, variant="toy_large")
    with pytest.raises(Refused, match="none of toy's variants"):
        open_toy(folder, variants=("other",))


def shards(folder: Path, state: dict[str, Tensor], weight_map: dict[str, str]) -> Path:
    folder.mkdir()
    for name in set(weight_map.values()):
        save_file({key: state[key] for key, file in weight_map.items() if file == name}, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def test_a_sharded_folder(tmp_path, toy):
    state = toy.state_dict()
    folder = shards(tmp_path / "s", state, {key: f"model-{i % 3}.safetensors" for i, key in enumerate(state)})
    check(open_toy(folder), toy)
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(Missing, match=r"model-1\.safetensors is not there"):
        open_toy(folder)


def test_shards_that_differ_from_their_index_are_refused(tmp_path, toy):
    state = toy.state_dict()
    folder = shards(tmp_path / "s", state, dict.fromkeys(state, "model-0.safetensors"))
    save_file({**state, "extra": torch.ones(1)}, folder / "model-0.safetensors")
    with pytest.raises(Refused, match=r"differs from the index of shards in 1 tensors: extra"):
        open_toy(folder).fill(Toy())


@pytest.mark.parametrize("name", ["../w.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "a\\b", "a\0b"])
def test_an_index_may_name_files_of_its_folder_alone(tmp_path, name):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(Refused, match="only files in the same folder"):
        open_toy(tmp_path)


@pytest.mark.parametrize(
    "index", [[], {}, {"weight_map": {}}, {"weight_map": {"x": 3}}, {"weight_map": "x"}, "no json"]
)
def test_an_index_of_another_kind_is_refused(tmp_path, index):
    text = index if isinstance(index, str) else json.dumps(index)
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(Refused, match=r"index\.json"):
        open_toy(tmp_path)


def test_a_shard_may_not_be_a_link_out_of_the_folder(tmp_path, toy):
    save_file(toy.state_dict(), tmp_path / "secret.safetensors")
    folder = tmp_path / "s"
    folder.mkdir()
    (folder / "a.safetensors").symlink_to(tmp_path / "secret.safetensors")
    index = {"weight_map": dict.fromkeys(toy.state_dict(), "a.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(Refused, match="leads out of its folder"):
        open_toy(folder)


def test_a_configuration_of_another_kind_is_refused(tmp_path, toy):
    for number, text in enumerate(("[]", "{", '{"a":' * 100_000, "\xff")):
        folder = tmp_path / f"f{number}"
        folder.mkdir()
        save_file(toy.state_dict(), folder / "model.safetensors")
        (folder / "config.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(Refused, match=r"config\.json"):
            open_toy(folder)


CLASSES = ["a", "b", "c"]


def make_run(run: Path, networks: dict[str, tuple[str, nn.Module]], ema: dict[str, nn.Module] | None = None) -> Path:
    """A run folder as the engine writes it, with two checkpoints."""
    model = {
        "format": "jingdu",
        "system": "toy.Game",
        "networks": {
            name: {"variant": variant, "overrides": {"num_classes": 3}} for name, (variant, _) in networks.items()
        },
        "classes": CLASSES,
        "preprocess": {
            "size": 8,
            "resize": None,
            "mean": [0.3],
            "std": [0.4],
            "interpolation": "bilinear",
            "channels": 1,
        },
    }

    def state(modules: dict[str, nn.Module]) -> bytes:
        return tree_bytes({f"{name}.{key}": x for name, m in modules.items() for key, x in m.state_dict().items()})

    files = {
        "model.safetensors": state({name: module for name, (_, module) in networks.items()}),
        "model.json": json.dumps(model).encode(),
        "state.safetensors": tree_bytes({"step": 3}),
    }
    if ema is not None:
        files["ema.safetensors"] = state(ema)
    run.mkdir(parents=True)
    (run / "recipe.json").write_text("[]")
    for step in (2, 10):
        write_checkpoint(run / "checkpoints", step, files, keep=2, about={})
    return run


def test_a_run_folder_gives_its_newest_checkpoint(tmp_path):
    network = Toy(3)
    run = make_run(tmp_path / "run", {"network": ("toy", network)})
    for source in (run, str(run / "checkpoints" / "step-000000010")):
        weights = open_toy(source, library="torchvision")
        assert (weights.variant, weights.overrides) == ("toy", {"num_classes": 3})
        assert weights.classes == tuple(CLASSES) and weights.preprocess == Preprocess(
            8, None, (0.3,), (0.4,), channels=1
        )
        assert weights.description.endswith("step-000000010")
        check(weights, network, Toy(3))


def test_averaged_weights_are_preferred(tmp_path):
    average = Toy(3)
    run = make_run(tmp_path / "run", {"network": ("toy", Toy(3))}, ema={"network": average})
    check(open_toy(run), average, Toy(3))


def test_a_run_with_several_networks_gives_the_asked_one(tmp_path):
    first, second, other = Toy(3), Toy(3, width=7), Toy(3)
    run = make_run(
        tmp_path / "run", {"critic": ("other", other), "generator": ("toy", first), "judge": ("toy_large", second)}
    )
    check(open_toy(run), first, Toy(3))
    check(open_toy(run, variant="toy_large"), second, Toy(3, width=7))
    with pytest.raises(UsageError, match=r"no network of toy_huge.*generator = toy"):
        open_toy(run, variant="toy_huge")
    with pytest.raises(UsageError, match="no network of gan"):
        open_toy(run, family="gan", variants=("gan",))


def test_a_damaged_checkpoint_is_passed_over_loudly_and_two_are_refused(tmp_path):
    network = Toy(3)
    run = make_run(tmp_path / "run", {"network": ("toy", network)})

    def damage(step: int) -> Path:
        path = run / "checkpoints" / f"step-{step:09d}" / "model.safetensors"
        content = bytearray(path.read_bytes())
        content[-3] ^= 1
        path.write_bytes(bytes(content))
        return path.parent

    newest = damage(10)
    said: list[str] = []
    weights = open_toy(run, say=said.append)
    assert "step-000000010" in said[0] and weights.description.endswith("step-000000002")
    check(weights, network, Toy(3))
    with pytest.raises(Refused, match="sha256"):
        open_toy(newest)
    damage(2)
    with pytest.raises(Refused, match="none of its 2 checkpoints is intact"):
        open_toy(run, say=said.append)


def test_a_run_without_a_checkpoint_is_refused(tmp_path):
    (tmp_path / "recipe.json").write_text("[]")
    with pytest.raises(Refused, match="no checkpoint yet"):
        open_toy(tmp_path)


class Counts:
    """A model without gradients, as an n-gram table."""

    def __init__(self) -> None:
        self.counts: dict[str, object] = {}

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.counts = {"words": state["words"], "table": state["table"]}


def test_a_plain_object_gets_its_state_from_a_run(tmp_path):
    state = {"words": ["a", "b"], "table": torch.ones(2, 3)}
    model = {"format": "jingdu", "system": "toy.Count", "networks": {"model": {"variant": "toy", "overrides": {}}}}
    files = {
        "model.safetensors": tree_bytes({"model": state, "passes": 1}),
        "model.json": json.dumps(model).encode(),
    }
    write_checkpoint(tmp_path / "checkpoints", 1, files, keep=2, about={})
    weights = open_toy(tmp_path)
    weights.fill(counts := Counts())
    assert counts.counts["words"] == ["a", "b"] and torch.equal(counts.counts["table"], torch.ones(2, 3))
    with pytest.raises(Refused, match="do not fit"):
        weights.fill(Toy())
    save_file({"x": torch.ones(2)}, tmp_path / "w.safetensors")
    with pytest.raises(Refused, match="not the state of a Counts"):
        open_toy(tmp_path / "w.safetensors").fill(Counts())
    torch.save({"x": torch.ones(2)}, tmp_path / "w.pth")
    with pytest.raises(Refused, match="from a run or a file of ours"):
        open_toy(tmp_path / "w.pth").fill(Counts())


def test_the_default_is_the_first_published_of_the_variant(tmp_path, toy):
    save_file(export(toy, "torchvision", family="toy"), tmp_path / "w.safetensors")
    published = (
        {"variant": "toy_large", "source": "hf:a/b", "licence": "MIT"},
        {
            "variant": "toy",
            "source": str(tmp_path / "w.safetensors"),
            "licence": "BSD",
            "format": "torchvision",
            "preprocess": {"size": 5},
        },
    )
    weights = open_toy("default", published=published, variant="toy")
    assert (weights.variant, weights.library, weights.preprocess) == ("toy", "torchvision", Preprocess(size=5))
    check(weights, toy)
    with pytest.raises(Missing, match=r"no published weights of toy_huge are known \(known: toy, toy_large\)"):
        open_toy("default", published=published, variant="toy_huge")
    with pytest.raises(Missing, match="no published weights of this paper are known: train it"):
        open_toy("default")


@pytest.mark.parametrize(
    ("source", "kind", "says"),
    [
        ("no/such/file.pth", Missing, r"no such file or folder; weights are a file, a folder, a run folder, hf:"),
        ("timm/resnet18", Missing, r"or hf:timm/resnet18\?"),
        ("imagenet", UsageError, r"unknown weights 'imagenet'.*default"),
        ("ftp://a/b#sha256=00", UsageError, "http or https"),
        ("https://a.org/w.pth", UsageError, "URL#sha256=HEX"),
        ("https://a.org/w.pth#sha256=12", UsageError, "URL#sha256=HEX"),
        ("https://a.org/net-0676ba61.pth", UsageError, "URL#sha256=HEX"),
        ("a/" + "b" * 5000, UsageError, "as a path"),
        ("a\0b/c", Missing, "no such file"),
        ("hf:only", UsageError, "hf:OWNER/NAME"),
    ],
)
def test_sources_that_cannot_be_are_told_apart(source, kind, says):
    with pytest.raises(kind, match=says):
        locate(source)


def test_a_folder_without_weights_is_missing(tmp_path):
    with pytest.raises(Missing, match=r"no weights in this folder \(looked for a run and for model\.safetensors"):
        locate(tmp_path)


def test_safetensors_come_before_a_pickle(tmp_path, toy):
    torch.save({"wrong": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    save_file(toy.state_dict(), tmp_path / "model.safetensors")
    assert set(read(locate(tmp_path))) == set(toy.state_dict())


def test_a_home_folder_may_be_abbreviated(tmp_path, toy, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save_file(toy.state_dict(), tmp_path / "w.safetensors")
    check(open_toy("~/w.safetensors"), toy)


def test_a_file_that_is_no_weights_is_refused_when_opened(tmp_path):
    path = tmp_path / "notes.safetensors"
    path.write_text("not weights")
    with pytest.raises(Refused, match=re.escape(str(path))):
        open_toy(path)
    path.write_bytes(b"PK\x03\x04" + bytes(50))
    with pytest.raises(Refused):
        open_toy(path).fill(Toy())


@pytest.mark.parametrize("text", ["[]", "{", '{"classes": 3}', '{"overrides": "x"}', '{"preprocess": {"size": "big"}}'])
def test_a_damaged_description_of_ours_is_refused(tmp_path, text):
    save_file({"x": torch.ones(2)}, tmp_path / "w.safetensors", {"jingdu": text})
    with pytest.raises(Refused):
        open_toy(tmp_path / "w.safetensors")
