"""The way out: what `jingdu.export` writes is read by the libraries themselves, and gives the same."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import jingdu
from jingdu import canon
from jingdu.cli import main
from jingdu.data.images import load_image
from jingdu.data.preprocess import IMAGENET, Preprocess
from jingdu.errors import Refused, UsageError
from jingdu.prediction import Origin
from jingdu.speed.references import randomise_
from jingdu.weights.configs import preprocess_of, preprocessor_of, sizes, timm_config
from tests.parity.references import import_timm, import_torchvision, import_transformers

CLASSES = ("cat", "狗", "yak")


def network(name: str = "resnet18", classes: tuple[str, ...] | None = None, **overrides: object) -> nn.Module:
    made = randomise_(jingdu.create(name, **overrides), torch.Generator().manual_seed(3)).eval()
    made.origin = Origin(made.origin.variant, made.origin.overrides, None, classes, IMAGENET)
    return made


def same(ours: nn.Module, theirs: nn.Module, channels: int = 3) -> None:
    x = torch.randn(2, channels, 65, 63, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        a, b = ours(x), theirs.eval()(x)
    b: Tensor = getattr(b, "logits", b)
    assert a.shape == b.shape and torch.equal(a, b) and a.std() > 0.01


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_torchvision_loads_the_file(tmp_path, suffix):
    ours, path = network(num_classes=7), tmp_path / f"w.{suffix}"
    done = jingdu.export(ours, "torchvision", path)
    assert (done.files, done.network) == ((path,), "torchvision/resnet18")
    theirs = import_torchvision().models.resnet18(num_classes=7)
    if suffix == "pth":
        theirs.load_state_dict(torch.load(path, weights_only=True), strict=True)
    else:
        from safetensors.torch import load_file

        theirs.load_state_dict(load_file(path), strict=True)
    same(ours, theirs)
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_timm_loads_the_file_and_the_folder(tmp_path):
    ours, timm = network(), import_timm()
    assert jingdu.export(ours, "timm", tmp_path / "w.safetensors").network == "timm/resnet18"
    same(ours, timm.create_model("resnet18", checkpoint_path=str(tmp_path / "w.safetensors")))
    ours = network("resnet50", CLASSES, num_classes=3, in_channels=1, output_stride=16)
    done = jingdu.export(ours, "timm", tmp_path / "folder")
    assert [path.name for path in done.files] == ["model.safetensors", "config.json"]
    theirs = timm.create_model(f"local-dir:{tmp_path / 'folder'}", pretrained=True)
    same(ours, theirs, channels=1)
    assert timm.data.resolve_model_data_config(theirs)["crop_pct"] == 224 / 256
    again = jingdu.create("resnet", weights=tmp_path / "folder")
    assert again.origin.variant == "resnet50" and dict(again.origin.overrides) == dict(ours.origin.overrides)
    assert again.origin.classes == CLASSES and again.origin.preprocess == IMAGENET


def test_transformers_loads_the_folder(tmp_path):
    ours, transformers = network("resnet50", CLASSES, num_classes=3, stride_on="1x1"), import_transformers()
    done = jingdu.export(ours, "transformers", tmp_path / "hf")
    assert [path.name for path in done.files] == ["model.safetensors", "config.json", "preprocessor_config.json"]
    transformers.utils.logging.disable_progress_bar()
    theirs, report = transformers.ResNetForImageClassification.from_pretrained(
        tmp_path / "hf", output_loading_info=True
    )
    assert not any(report.values()) and theirs.config.id2label == dict(enumerate(CLASSES))
    same(ours, theirs)
    again = jingdu.create("resnet", weights=tmp_path / "hf")
    assert dict(again.origin.overrides) == dict(ours.origin.overrides)
    assert again.origin.classes == CLASSES and again.origin.preprocess == IMAGENET
    jingdu.export(ours, "transformers", tmp_path / "hf")  # an earlier export is replaced


def test_transformers_processes_a_picture_as_we_do(tmp_path):
    processor = import_transformers().CLIPImageProcessorPil
    preprocess = Preprocess(size=31, resize=37, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.1), interpolation="bicubic")
    config = preprocessor_of(preprocess)
    pixels = np.random.default_rng(0).integers(0, 255, (43, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    theirs = processor.from_dict(config)(Image.fromarray(pixels), return_tensors="pt")["pixel_values"][0]
    ours = load_image(tmp_path / "a.png", preprocess)
    assert theirs.shape == ours.shape and (theirs - ours).abs().max() < 1e-5


@pytest.mark.parametrize("size", [29, 160, 224, 299, 384])
@pytest.mark.parametrize("resize", [None, 31, 182, 256, 342, 448])
def test_preprocessing_comes_back(size, resize):
    if resize is not None and resize < size:
        return
    preprocess = Preprocess(size, resize, (0.4,) * 3, (0.2,) * 3, "bicubic")
    wanted = Preprocess(size, preprocess.shorter_side, (0.4,) * 3, (0.2,) * 3, "bicubic")
    assert preprocess_of(preprocessor_of(preprocess)) == wanted
    config = timm_config("resnet18", "resnet", {}, None, preprocess)
    assert sizes(json.loads(json.dumps(config)), "resnet").preprocess == wanted


def test_our_own_file_brings_everything(tmp_path):
    ours = network("resnet20_cifar", CLASSES, num_classes=3, width=5)
    jingdu.export(ours, "jingdu", tmp_path / "w.safetensors")
    again = jingdu.create("resnet", weights=tmp_path / "w.safetensors")
    assert again.origin.variant == "resnet20_cifar" and again.origin.classes == CLASSES
    assert again.origin.preprocess == IMAGENET
    same(ours, again)
    with pytest.raises(UsageError, match="is safetensors"):
        jingdu.export(ours, "jingdu", tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("name", "overrides", "library", "says"),
    [
        ("resnet20_cifar", {}, "timm", "timm has no network that is our resnet20_cifar"),
        ("resnet_plain18", {}, "torchvision", "no network that is our resnet_plain18; as 'jingdu'"),
        ("resnet50", {"stride_on": "1x1"}, "torchvision", "resnet50 with its stride_on"),
        ("resnet50", {"stride_on": "1x1"}, "timm", "resnet50 with its stride_on"),
        ("resnet18", {"width": 8, "in_channels": 2}, "torchvision", "with its in_channels, width"),
        ("resnet18", {"output_stride": 16}, "transformers", "with its output_stride"),
        ("resnet18", {}, "tim", "'tim'.*timm"),
        ("alexnet_scenes", {}, "torchvision", "no network that is our alexnet_scenes"),
    ],
)
def test_a_network_that_the_library_lacks_is_refused(tmp_path, name, overrides, library, says):
    ours = jingdu.create(name, **overrides)
    for path in (tmp_path / "w.pth", tmp_path / "folder"):
        with pytest.raises(UsageError, match=says):
            jingdu.export(ours, library, path)
    assert list(tmp_path.iterdir()) == []


def test_options_that_are_the_defaults_are_no_difference(tmp_path):
    ours = jingdu.create("resnet50", num_classes=1000, width=64, depths=[3, 4, 6, 3], stride_on="3x3")
    for library in ("torchvision", "timm"):
        assert jingdu.export(ours, library, tmp_path / "w.safetensors").network == f"{library}/resnet50"


def test_of_several_names_the_one_with_our_options_is_chosen(tmp_path, monkeypatch):
    card = canon.paper("resnet")
    aliases = {"timm/a": "resnet18", "timm/b": "resnet18(shortcut='C')", "timm/resnet50": "resnet50"}
    monkeypatch.setattr("jingdu.canon._cards", lambda: {"resnet": card.__class__(**{**vars(card), "aliases": aliases})})
    ours = jingdu.create("resnet18", shortcut="C", num_classes=3)
    assert jingdu.export(ours, "timm", tmp_path / "f").network == "timm/b"
    assert json.loads((tmp_path / "f" / "config.json").read_text())["architecture"] == "b"
    assert jingdu.export(jingdu.create("resnet18"), "timm", tmp_path / "w.pth").network == "timm/a"
    with pytest.raises(UsageError, match="with its shortcut"):
        jingdu.export(jingdu.create("resnet18", shortcut="A"), "timm", tmp_path / "w.pth")


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_torch_loads_recurrent_networks(kind, tmp_path):
    ours = jingdu.create(f"{kind.lower()}_cell_100_128")
    assert jingdu.export(ours, "torch", tmp_path / "w.pth").network == f"torch/{kind.lower()}"
    theirs = getattr(nn, kind)(100, 128, batch_first=True)
    theirs.load_state_dict(torch.load(tmp_path / "w.pth"))
    x = torch.randn(2, 7, 100)
    torch.testing.assert_close(ours(x)[0], theirs(x)[0], rtol=1e-4, atol=1e-6)


def test_a_network_that_was_changed_by_hand_is_refused(tmp_path):
    ours = jingdu.create("resnet18")
    ours.fc = nn.Linear(512, 3)
    with pytest.raises(UsageError, match=r"changed since it was made as resnet18: fc\.weight, fc\.bias"):
        jingdu.export(ours, "timm", tmp_path / "w.pth")
    with pytest.raises(UsageError, match="no origin"):
        jingdu.export(nn.Linear(2, 3), "timm", tmp_path / "w.pth")
    with pytest.raises(UsageError, match="ngram has no tensors"):
        jingdu.export(jingdu.create("ngram"), "timm", tmp_path / "w.pth")


def test_what_lies_there_is_kept(tmp_path, monkeypatch):
    ours = jingdu.create("resnet18")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match=r"not empty \(thesis\.tex\)"):
        jingdu.export(ours, "timm", tmp_path / "mine")
    with pytest.raises(UsageError, match="is a file: name a new folder"):
        jingdu.export(ours, "timm", tmp_path / "mine" / "thesis.tex")
    with pytest.raises(UsageError, match=r"no configuration.*folder\.safetensors"):
        jingdu.export(ours, "torchvision", tmp_path / "folder")
    path = tmp_path / "w.pth"
    path.write_text("the old file")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jingdu.weights.files.torch.save", full)
    with pytest.raises(Refused, match=r"No space left.*intact"):
        jingdu.export(ours, "torchvision", path)
    assert path.read_text() == "the old file" and len(list(tmp_path.iterdir())) == 2


def test_the_verb(tmp_path, capsys):
    ours = network("resnet20_cifar", num_classes=3)
    source, out = tmp_path / "source.safetensors", tmp_path / "out.safetensors"
    jingdu.export(ours, "jingdu", source)
    words = ["weights", "export", "resnet", "--weights", str(source), "--out", str(out)]
    assert main([*words, "--to", "jingdu"]) == 0
    assert capsys.readouterr().out == f"wrote {out}\n"
    assert main([*words, "--to", "timm"]) == 2
    assert "no network that is our resnet20_cifar" in capsys.readouterr().err
    resnet18 = jingdu.export(network(num_classes=3), "timm", tmp_path / "timm.pth").files[0]
    words = ["weights", "export", "timm/resnet18", "--weights", str(resnet18), "--to", "torchvision", "--json"]
    # The file alone does not say how many classes it has.
    assert main([*words, "--out", str(out)]) == 4 and "num_classes=3" in capsys.readouterr().err
    jingdu.export(network(num_classes=3), "timm", tmp_path / "timm")
    words[words.index(str(resnet18))] = str(tmp_path / "timm")
    assert main([*words, "--out", str(out)]) == 0
    assert json.loads(capsys.readouterr().out) == {"files": [str(out)], "network": "torchvision/resnet18"}


def test_a_run_leaves_as_a_file(tmp_path, capsys):
    run, out = tmp_path / "R", tmp_path / "w.safetensors"
    words = ["train", "resnet", "--steps", "1", "--override", "width=2", "--quiet", "--out", str(run)]
    assert main(words) == 0
    assert main(["weights", "export", "resnet", "--weights", str(run), "--to", "jingdu", "--out", str(out)]) == 0
    one, other = jingdu.load(run), jingdu.create("resnet", weights=Path(out))
    assert one.origin.classes == other.origin.classes and one.origin.preprocess == other.origin.preprocess
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
