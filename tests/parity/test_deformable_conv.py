"""Deformable convolution against ONNX's reference evaluator, and whole networks against torchvision's ResNet over it.

torchvision's own operator is compiled for one build of torch; ONNX's DeformConv (opset 19, 22) is the same function.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import jingdu
from jingdu.papers.cnn.deformable_conv import deform_conv2d
from tests.parity.references import assert_close, import_torchvision, randomise_


def onnx_operator(
    x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None, **attributes: int
) -> Tensor:
    """DeformConv of opset 22 by onnx's interpreter, which is numpy and loops."""
    from onnx import TensorProto, helper
    from onnx.reference import ReferenceEvaluator

    feeds = {"x": x, "w": weight, "o": offset, "b": bias} | ({} if mask is None else {"m": mask})
    kind = TensorProto.DOUBLE if x.dtype == torch.float64 else TensorProto.FLOAT
    stride, padding, dilation = (attributes[name] for name in ("stride", "padding", "dilation"))
    node = helper.make_node(
        "DeformConv", list(feeds), ["y"], strides=[stride] * 2, pads=[padding] * 4, dilations=[dilation] * 2,
        kernel_shape=list(weight.shape[2:]), offset_group=offset.shape[1] // (2 * weight[0, 0].numel()),
    )  # fmt: skip
    inputs = [helper.make_tensor_value_info(name, kind, list(value.shape)) for name, value in feeds.items()]
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("y", kind, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)])
    return torch.from_numpy(
        np.asarray(ReferenceEvaluator(model).run(None, {k: v.numpy() for k, v in feeds.items()})[0])
    )


CASES = [
    # batch, inputs, outputs, height, width, kernel, stride, padding, dilation, groups, modulated
    (1, 3, 2, 5, 7, 3, 1, 1, 1, 1, False),
    (2, 4, 3, 9, 6, 3, 2, 1, 1, 2, True),
    (1, 6, 2, 5, 4, 3, 1, 2, 2, 3, True),
    (2, 2, 4, 6, 5, 1, 1, 0, 1, 1, True),
    (1, 2, 3, 10, 9, 5, 3, 2, 1, 1, False),
]


@pytest.mark.parametrize("case", CASES)
def test_the_operator(case: tuple) -> None:
    batch, inputs, outputs, height, width, kernel, stride, padding, dilation, groups, modulated = case
    generator = torch.Generator().manual_seed(sum(case))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, weight, bias = normal(batch, inputs, height, width), normal(outputs, inputs, kernel, kernel), normal(outputs)
    size = torch.nn.functional.conv2d(x, weight, bias, stride, padding, dilation).shape[2:]
    offset = 2 * normal(batch, 2 * groups * kernel**2, *size)
    mask = normal(batch, groups * kernel**2, *size) if modulated else None
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    ours = deform_conv2d(x, offset, weight, bias, mask, **options)
    # It computes in float32 whatever it is given; in float64 ours is compared with a loop (tests/papers).
    assert_close(ours, onnx_operator(x, offset, weight, bias, mask, **options), relative=2e-6)
    single = deform_conv2d(
        x.float(), offset.float(), weight.float(), bias.float(), None if mask is None else mask.float(), **options
    )
    assert_close(single, ours, relative=1e-5)


class GridSampled(nn.Module):
    """mmdetection's layer by its names, over torch's grid_sample: one tap after the other, in place of its compiled operator."""

    def __init__(self, old: nn.Conv2d, groups: int, modulated: bool, dilation: int):
        super().__init__()
        self.weight = old.weight
        self.stride, self.groups, self.modulated, self.dilation = old.stride[0], groups, modulated, dilation
        channels = groups * (27 if modulated else 18)
        self.conv_offset = nn.Conv2d(old.in_channels, channels, 3, self.stride, dilation, dilation)

    def forward(self, x: Tensor) -> Tensor:
        found = self.conv_offset(x)
        height, width = x.shape[2:]
        offset, mask = found[:, : 18 * self.groups], None
        if self.modulated:
            mask = found[:, 18 * self.groups :].sigmoid()
        rows, columns = found.shape[2:]
        total = 0
        for tap in range(9):
            parts = []
            for g, part in enumerate(x.chunk(self.groups, 1)):
                dy, dx = offset[:, 18 * g + 2 * tap], offset[:, 18 * g + 2 * tap + 1]
                y = dy + torch.arange(rows, dtype=x.dtype)[:, None] * self.stride + (tap // 3 - 1) * self.dilation
                z = dx + torch.arange(columns, dtype=x.dtype) * self.stride + (tap % 3 - 1) * self.dilation
                grid = torch.stack((2 * z / (width - 1) - 1, 2 * y / (height - 1) - 1), -1)
                read = torch.nn.functional.grid_sample(part, grid, padding_mode="zeros", align_corners=True)
                parts.append(read if mask is None else read * mask[:, 9 * g + tap, None])
            total = total + torch.nn.functional.conv2d(
                torch.cat(parts, 1), self.weight[:, :, tap // 3, tap % 3, None, None]
            )
        return total


def reference(
    layers: tuple[str, ...],
    groups: int,
    modulated: bool,
    dilated: bool,
    depths: tuple[int, ...] = (3, 4, 6, 3),
    **options: object,
) -> nn.Module:
    """torchvision's ResNet (by default of 50 layers) with those layers in place of its own."""
    resnet = import_torchvision().models.resnet
    model = resnet.ResNet(resnet.Bottleneck, depths, replace_stride_with_dilation=[False, False, dilated], **options)
    for name in layers:
        for block in getattr(model, name):
            block.conv2 = GridSampled(block.conv2, groups, modulated, 2 if dilated else 1)
    randomise_(model, torch.Generator().manual_seed(7))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, GridSampled):
                module.conv_offset.weight.mul_(0.3)
    return model


CASES_OF_FILES = {
    "deformable_conv_resnet50_dcn_c5": (("layer4",), 1, False, True, (1, 1, 1, 3)),
    "deformable_conv_resnet50_mdcn_c3_c5": (("layer2", "layer3", "layer4"), 1, True, False, (3, 4, 6, 3)),
}


@pytest.mark.parametrize("variant", CASES_OF_FILES)
def test_features_of_a_detectors_file(variant: str, tmp_path: Path) -> None:
    """A file as mmdetection writes it: the backbone under its prefix, and other parts beside it."""
    theirs = reference(*CASES_OF_FILES[variant]).eval()
    depths = CASES_OF_FILES[variant][-1]
    state = {f"backbone.{name}": x.clone() for name, x in theirs.state_dict().items() if not name.startswith("fc.")}
    state["neck.lateral_convs.0.conv.weight"] = torch.zeros(2, 3)
    path = tmp_path / "detector.pth"
    torch.save({"meta": {"epoch": 12}, "state_dict": state}, path)
    ours = jingdu.create(variant, weights=path, depths=depths)
    older = {key.replace(".conv2.conv_offset.", ".conv2_offset."): x for key, x in state.items()}
    save_file(older, tmp_path / "older.safetensors")
    again = jingdu.create(variant, weights=tmp_path / "older.safetensors", depths=depths)
    for shape in [(1, 3, 65, 97), (2, 3, 33, 40)]:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
        y, wanted = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x)))), []
        for name in ("layer1", "layer2", "layer3", "layer4"):
            y = getattr(theirs, name)(y)
            wanted.append(y)
        with torch.inference_mode():
            for a, b, c in zip(ours.features(x), wanted, again.features(x), strict=True):
                assert_close(a, b)
                assert torch.equal(a, c)


def test_train_mode_gradients_and_statistics() -> None:
    theirs = reference(("layer4",), 4, True, True, (1, 1, 1, 2), num_classes=11).double()
    ours = jingdu.create(
        "deformable_conv_resnet50_dcn_c5", depths=(1, 1, 1, 2), offset_groups=4, mask_scale=1.0, num_classes=11
    )
    ours = ours.double()

    def name(key: str) -> str:
        for i in range(2, 6):
            key = key.replace(f"conv{i}_x", f"layer{i - 1}")
        key = key.replace("shortcut.conv", "downsample.0").replace("shortcut.bn", "downsample.1")
        return key.replace("conv2.offset", "conv2.conv_offset")

    ours.load_state_dict({key: theirs.state_dict()[name(key)] for key in ours.state_dict()})
    x = torch.randn(3, 3, 33, 65, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for model in (ours, theirs):
        model.train()
        torch.nn.functional.cross_entropy(model(x), torch.tensor([1, 5, 9])).backward()
    gradients = {key: p.grad for key, p in theirs.named_parameters()}
    for key, p in ours.named_parameters():
        assert_close(p.grad, gradients[name(key)], relative=1e-7)
    for key, p in ours.state_dict().items():
        if p.is_floating_point():
            assert_close(p, theirs.state_dict()[name(key)], relative=1e-9)
