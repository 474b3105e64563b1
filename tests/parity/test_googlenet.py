"""GoogLeNet against torchvision, and the paper's network against Caffe's layers written with torch's functions."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

import jingdu
from jingdu.data.preprocess import IMAGENET
from jingdu.errors import Refused
from jingdu.weights import export
from jingdu.weights.tables import tables
from tests.parity.references import assert_close, import_torchvision, randomise_

SHAPES = [(1, 3, 224, 224), (2, 3, 193, 257), (5, 3, 65, 97)]


def reference(aux: bool, num_classes: int = 11, transform_input: bool = False) -> nn.Module:
    """torchvision's network with random weights and running statistics."""
    models = import_torchvision().models
    model = models.GoogLeNet(num_classes, aux, transform_input, init_weights=False)
    for name, buffer in model.named_buffers():
        if name.endswith("num_batches_tracked"):
            buffer.fill_(3)
    return randomise_(model, torch.Generator().manual_seed(3)).eval()


@torch.inference_mode()
def compare(ours: nn.Module, theirs: nn.Module, shapes: list[tuple[int, ...]]) -> None:
    for shape in shapes:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
        print(f"largest relative difference {assert_close(ours(x), theirs(x)):.1e}")


@pytest.mark.parametrize("file", ["m.pth", "m.safetensors"])
def test_same_logits_with_the_auxiliary_heads(file: str, tmp_path: Path) -> None:
    theirs = reference(aux=True)
    (torch.save if file.endswith("pth") else save_file)(theirs.state_dict(), tmp_path / file)
    ours = jingdu.create("torchvision/googlenet", weights=tmp_path / file, num_classes=11)
    assert not ours.training
    compare(ours, theirs, SHAPES[:2] if file == "m.pth" else SHAPES[2:])


def test_same_logits_without_them(tmp_path: Path) -> None:
    """From a file that has them, as the published one, and from one that has not."""
    with_heads, without = reference(aux=True), reference(aux=False)
    torch.save(with_heads.state_dict(), tmp_path / "with.pth")
    torch.save(without.state_dict(), tmp_path / "without.pth")
    for name, theirs, options in (
        ("googlenet_bn_torchvision", with_heads, {}),
        ("googlenet_bn_torchvision", without, {}),
        ("torchvision/googlenet", without, {"aux": False}),
    ):
        file = "with.pth" if theirs is with_heads else "without.pth"
        ours = jingdu.create(name, weights=tmp_path / file, num_classes=11, **options)
        assert not hasattr(ours, "aux1")
        compare(ours, theirs, SHAPES[2:])
    with pytest.raises(Refused, match=r"18 missing: aux1\.conv\.bn\.bias"):
        jingdu.create("torchvision/googlenet", weights=tmp_path / "without.pth", num_classes=11)
    with pytest.raises(Refused, match="num_classes=11"):
        jingdu.create("googlenet_bn_torchvision", weights=tmp_path / "without.pth")


def test_transform_input_is_a_preprocessing_of_the_published_weights(tmp_path: Path) -> None:
    theirs = reference(aux=False, transform_input=True)
    save_file(theirs.state_dict(), tmp_path / "m.safetensors")
    name = "googlenet_bn_torchvision"
    ours = jingdu.create(name, weights=tmp_path / "m.safetensors", num_classes=11, transform_input=True)
    compare(ours, theirs, SHAPES[2:])
    plain = jingdu.create(name, weights=tmp_path / "m.safetensors", num_classes=11)
    picture = torch.rand(2, 3, 65, 97, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET.mean, IMAGENET.std))
    (published,) = {tuple(w["preprocess"].items()) for w in map(dict, _weights()) if w["variant"] == name}
    preprocess = dict(published)
    half, scale = (torch.tensor(preprocess[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.inference_mode():
        assert_close(plain((picture - half) / scale), theirs((picture - mean) / std))


def _weights() -> list[dict[str, object]]:
    from jingdu import canon

    def plain(value: object) -> object:
        return (
            {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()} if isinstance(value, dict) else value
        )

    return [{key: plain(value) for key, value in entry.items()} for entry in canon.paper("googlenet").weights]


def test_train_mode_gradients_and_statistics() -> None:
    theirs = reference(aux=True).double()
    ours = jingdu.create("torchvision/googlenet", num_classes=11).double()
    table = tables("googlenet")["torchvision"]
    pairs = {key: table.from_ours(key).theirs[0] for key in ours.state_dict()}
    ours.load_state_dict({key: theirs.state_dict()[name] for key, name in pairs.items()})
    x = torch.randn(3, 3, 97, 65, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([1, 5, 9])
    for model in (ours, theirs):
        model.train()
        for layer in model.modules():
            if isinstance(layer, nn.Dropout):
                layer.p = 0.0
        output = model(x)
        logits, first, second = output if model is ours else (output.logits, output.aux_logits1, output.aux_logits2)
        loss = F.cross_entropy(logits, labels) + 0.3 * F.cross_entropy(first, labels)
        (loss + 0.3 * F.cross_entropy(second, labels)).backward()
    named = dict(theirs.named_parameters())
    for key, parameter in ours.named_parameters():
        assert_close(parameter.grad, named[pairs[key]].grad, relative=1e-7)
    after = theirs.state_dict()
    for key, value in ours.state_dict().items():
        assert_close(value, after[pairs[key]], relative=1e-9)


def test_export_gives_torchvision_its_own_keys() -> None:
    theirs = reference(aux=True)
    ours = randomise_(jingdu.create("torchvision/googlenet", num_classes=11), torch.Generator().manual_seed(4)).eval()
    theirs.load_state_dict(export(ours, "torchvision"))
    compare(ours, theirs, SHAPES[2:])


# Caffe's ------------------------------------------------------------------------------------------

BLOCKS = {  # name -> inputs, 1x1, 3x3_reduce, 3x3, 5x5_reduce, 5x5, pool_proj: bvlc_googlenet/train_val.prototxt
    "3a": (192, 64, 96, 128, 16, 32, 32), "3b": (256, 128, 128, 192, 32, 96, 64), "4a": (480, 192, 96, 208, 16, 48, 64),
    "4b": (512, 160, 112, 224, 24, 64, 64), "4c": (512, 128, 128, 256, 24, 64, 64),
    "4d": (512, 112, 144, 288, 32, 64, 64), "4e": (528, 256, 160, 320, 32, 128, 128),
    "5a": (832, 256, 160, 320, 32, 128, 128), "5b": (832, 384, 192, 384, 48, 128, 128),
}  # fmt: skip


def caffe_blobs(num_classes: int) -> dict[str, Tensor]:
    """Random weights and biases by the layers' names."""
    shapes = {"conv1/7x7_s2": (64, 3, 7, 7), "conv2/3x3_reduce": (64, 64, 1, 1), "conv2/3x3": (192, 64, 3, 3)}
    for name, (n, one, reduce3, three, reduce5, five, pool) in BLOCKS.items():
        layers = {
            "1x1": (one, n, 1, 1), "3x3_reduce": (reduce3, n, 1, 1), "3x3": (three, reduce3, 3, 3),
            "5x5_reduce": (reduce5, n, 1, 1), "5x5": (five, reduce5, 5, 5), "pool_proj": (pool, n, 1, 1),
        }  # fmt: skip
        shapes |= {f"inception_{name}/{layer}": shape for layer, shape in layers.items()}
    for number, n in ((1, 512), (2, 528)):
        shapes |= {f"loss{number}/conv": (128, n, 1, 1), f"loss{number}/fc": (1024, 2048)}
        shapes[f"loss{number}/classifier"] = (num_classes, 1024)
    shapes["loss3/classifier"] = (num_classes, 1024)
    g, blobs = torch.Generator().manual_seed(6), {}
    for name, shape in shapes.items():
        fan_in = torch.Size(shape[1:]).numel()
        blobs[f"{name}.weight"] = torch.randn(shape, generator=g) * (2 / fan_in) ** 0.5
        blobs[f"{name}.bias"] = 0.1 * torch.randn(shape[0], generator=g)
    return blobs


def caffe_net(b: dict[str, Tensor], x: Tensor, heads: bool = True) -> tuple[Tensor, ...]:
    """Scores of loss3, and with `heads` (for 224 pixels) of loss1 and loss2, for pictures with blue first."""

    def conv(name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = b[f"{name}.weight"]
        return F.relu(F.conv2d(x, weight, b[f"{name}.bias"], stride, weight.shape[-1] // 2))

    def pool(x: Tensor, stride: int = 2, pad: int = 0) -> Tensor:
        return F.max_pool2d(x, 3, stride, pad, ceil_mode=True)

    def aside(number: int, x: Tensor) -> Tensor:
        x = conv(f"loss{number}/conv", F.avg_pool2d(x, 5, 3, ceil_mode=True)).flatten(1)
        x = F.relu(F.linear(x, b[f"loss{number}/fc.weight"], b[f"loss{number}/fc.bias"]))
        return F.linear(x, b[f"loss{number}/classifier.weight"], b[f"loss{number}/classifier.bias"])

    def lrn(x: Tensor) -> Tensor:
        return F.local_response_norm(x, 5, alpha=1e-4, beta=0.75, k=1.0)

    x = conv("conv2/3x3", conv("conv2/3x3_reduce", lrn(pool(conv("conv1/7x7_s2", x, 2)))))
    x, asides = pool(lrn(x)), []
    for name in BLOCKS:
        if name in ("4a", "5a"):
            x = pool(x)
        i = f"inception_{name}"
        x = torch.cat([
            conv(f"{i}/1x1", x), conv(f"{i}/3x3", conv(f"{i}/3x3_reduce", x)),
            conv(f"{i}/5x5", conv(f"{i}/5x5_reduce", x)), conv(f"{i}/pool_proj", pool(x, 1, 1)),
        ], 1)  # fmt: skip
        if heads and name in ("4a", "4d"):
            asides.append(aside(len(asides) + 1, x))
    x = F.avg_pool2d(x, x.shape[2:]).flatten(1)
    return F.linear(x, b["loss3/classifier.weight"], b["loss3/classifier.bias"]), *asides


def test_caffes_layers(tmp_path: Path) -> None:
    blobs = caffe_blobs(num_classes=13)
    save_file(blobs, tmp_path / "m.safetensors")
    ours = jingdu.create("caffe/bvlc_googlenet", weights=tmp_path / "m.safetensors", num_classes=13)
    assert ours.origin.variant == "googlenet_with_aux"
    blue_first = 60 * torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected = caffe_net(blobs, blue_first)
        print(f"largest relative difference {assert_close(ours(blue_first.flip(1)), expected[0]):.1e}")
        ours.train()
        for layer in ours.modules():
            if isinstance(layer, nn.Dropout):
                layer.p = 0.0
        for found, wanted in zip(ours(blue_first.flip(1)), expected, strict=True):
            assert_close(found, wanted)
    # The deployed network has no heads: their blobs may be there for nothing, and be absent.
    deployed = jingdu.create("googlenet", weights=tmp_path / "m.safetensors", num_classes=13)
    wide = 60 * torch.randn(1, 3, 193, 257, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        assert_close(deployed(wide.flip(1)), caffe_net(blobs, wide, heads=False)[0])
    bare = {key: x for key, x in blobs.items() if not key.startswith(("loss1", "loss2"))}
    save_file(bare, tmp_path / "bare.safetensors")
    assert jingdu.create("googlenet", weights=tmp_path / "bare.safetensors", num_classes=13) is not None
    with pytest.raises(Refused, match="loss1/conv"):
        jingdu.create("caffe/bvlc_googlenet", weights=tmp_path / "bare.safetensors", num_classes=13)
