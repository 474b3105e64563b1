"""NASNet-A and PNASNet-5 against timm and pytorchcv with the same random weights and statistics.

The large networks have 88M weights each: here the same classes are built with few channels and cells. The names and
shapes of the whole ones are compared by tests/weights/test_every_table.py.
"""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import jingdu
from jingdu.errors import Refused
from jingdu.papers.cnn.nas import GaussianProcess, digits_space
from jingdu.weights.configs import sizes
from jingdu.weights.tables import tables
from tests.parity.references import assert_close, import_timm, randomise_

SHAPES = [(1, 3, 65, 65), (2, 3, 75, 91), (3, 3, 64, 50)]
ALIASES = {"nasnetalarge": "nasnet_a_large_6at4032", "pnasnet5large": "nas_pnasnet5_large"}


def narrow_timm(name: str, classes: int = 13) -> tuple[nn.Module, dict[str, object]]:
    """timm's own class with few channels and two cells a stage, and the arguments of ours."""
    timm = import_timm()
    if name == "nasnetalarge":
        module = timm.models.nasnet
        model = module.NASNetALarge(num_classes=classes, stem_size=7, num_features=24 * 8, pad_type="same")
        # 6 cells a stage become 2: the others are skipped over.
        model.forward_features = lambda x: _two_cells(model, x)
        kept = [0, 1, 6, 7, 12, 13]
        for i in range(18):
            if i not in kept:
                delattr(model, f"cell_{i}")
        return model, {"width": 8, "stem": 7, "repeats": 2, "num_classes": classes}
    module = timm.models.pnasnet
    model = module.PNASNet5Large(num_classes=classes, pad_type="same")
    same = {"pad_type": "same"}
    cell, w = module.Cell, 8
    model.conv_0.conv = nn.Conv2d(3, 7, 3, 2, bias=False)
    model.conv_0.bn = nn.BatchNorm2d(7, eps=1e-3)
    model.cell_stem_0 = module.CellStem0(7, w // 4, 7, w // 4, **same)
    model.cell_stem_1 = cell(7, w // 2, 5 * w // 4, w // 2, match_prev_layer_dims=True, is_reduction=True, **same)
    widths = [5 * w // 4, 5 * w // 2]
    reductions = {4: 2, 8: 4}
    for i in range(12):
        inside = w * (1 if i < 4 else 2 if i < 8 else 4)
        halves = i in (0, 5, 9)
        made = cell(
            widths[-2], inside, widths[-1], inside, is_reduction=i in reductions, match_prev_layer_dims=halves, **same
        )
        setattr(model, f"cell_{i}", made)
        widths.append(5 * inside)
    model.last_linear = nn.Linear(widths[-1], classes)
    return model, {"width": w, "stem": 7, "num_classes": classes}


def _two_cells(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    conv = model.conv0(x)
    stem0 = model.cell_stem_0(conv)
    stem1 = model.cell_stem_1(conv, stem0)
    a = model.cell_0(stem1, stem0)
    b = model.cell_1(a, stem1)
    r = model.reduction_cell_0(b, a)
    c = model.cell_6(r, a)
    d = model.cell_7(c, r)
    s = model.reduction_cell_1(d, c)
    e = model.cell_12(s, c)
    return model.act(model.cell_13(e, s))


def renamed(name: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Cells 6, 7, 12 and 13 of the cut network are its cells 2 to 5."""
    if name != "nasnetalarge":
        return state
    places = {"6": "2", "7": "3", "12": "4", "13": "5"}
    return {re.sub(r"^cell_(\d+)", lambda m: f"cell_{places.get(m[1], m[1])}", key): x for key, x in state.items()}


@pytest.mark.parametrize("name", ALIASES)
def test_timm(name: str, tmp_path: Path) -> None:
    reference, options = narrow_timm(name)
    randomise_(reference, torch.Generator().manual_seed(7)).eval()
    save_file(renamed(name, reference.state_dict()), tmp_path / "model.safetensors")
    ours = jingdu.create(f"timm/{name}", weights=tmp_path / "model.safetensors", **options)
    assert ours.dropout.p == 0 and not ours.training
    with torch.inference_mode():
        for shape in SHAPES:
            x = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
            print(f"{name} {shape}: {assert_close(ours(x), reference(x)):.1e}")
    # Without the zeros of timm's strided averages NASNet is another network; PNASNet has no averages.
    other = jingdu.create(ALIASES[name], dropout=0.0, **options).eval()
    other.load_state_dict(ours.state_dict())
    with torch.inference_mode():
        gap = (other(x) - ours(x)).abs().max() / ours(x).abs().max()
    assert gap > 1e-3 if name == "nasnetalarge" else gap < 1e-6


@pytest.mark.parametrize("name", ALIASES)
def test_training_gradients_and_statistics_of_timm(name: str) -> None:
    reference, options = narrow_timm(name)
    randomise_(reference, torch.Generator().manual_seed(3)).double()
    ours = jingdu.create(f"timm/{name}", **options).double()
    table = tables("nas")["timm"]
    theirs = renamed(name, reference.state_dict())
    names = {key: table.from_ours(key).theirs[0] for key in ours.state_dict()}
    ours.load_state_dict({key: theirs[names[key]] for key in names})
    x = torch.randn(3, 3, 65, 43, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for model in (ours, reference):
        model.train()
        nn.functional.cross_entropy(model(x), torch.tensor([1, 5, 9])).backward()
    gradients = renamed(name, {key: p.grad for key, p in reference.named_parameters()})
    for key, parameter in ours.named_parameters():
        assert_close(parameter.grad, gradients[names[key]], relative=1e-9)
    after = renamed(name, reference.state_dict())
    for key, value in ours.state_dict().items():
        assert_close(value, after[names[key]], relative=1e-9)


def test_gaussian_process_of_scikit_learn() -> None:
    """The Hamming distance of one-hot codes is half of the squared Euclidean one: the kernel is a Gaussian."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF

    space = digits_space()
    codes = [space.sample(torch.Generator().manual_seed(i)) for i in range(41)]
    bits = space.one_hot(codes)
    y = torch.rand(31, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for length, noise in ((0.2, 1e-2), (0.8, 1e-1)):
        ours = GaussianProcess(bits[:31], y, choices=8, lengths=(length,), noises=(noise,))
        kernel = RBF((8 * length) ** 0.5, "fixed")
        theirs = GaussianProcessRegressor(kernel, alpha=noise, optimizer=None, normalize_y=True)
        theirs.fit(bits[:31].numpy(), y.numpy())
        mean, deviation = theirs.predict(bits[31:].numpy(), return_std=True)
        found = ours.posterior(bits[31:])
        assert_close(found[0], torch.from_numpy(mean), relative=1e-9)
        assert_close(found[1], torch.from_numpy(deviation), relative=1e-9)
        assert ours.likelihood == pytest.approx(theirs.log_marginal_likelihood_value_, rel=1e-9)
    chosen = GaussianProcess(bits[:31], y, choices=8)
    assert chosen.likelihood >= ours.likelihood


@pytest.mark.parametrize("name", ALIASES)
def test_timms_configuration(name: str) -> None:
    card = jingdu.paper("nas")
    inner = {
        "input_size": [3, 331, 331],
        "crop_pct": 0.911,
        "interpolation": "bicubic",
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
    }
    config = {"architecture": name, "num_classes": 23, "model_args": {"drop_rate": 0.3}, "pretrained_cfg": inner}
    found = sizes(config, "nas", variants=tuple(card.variants), aliases=card.aliases)
    assert found.variant == ALIASES[name]
    assert found.overrides == {"zeros": True, "dropout": 0.3, "num_classes": 23}
    assert found.preprocess is not None and (found.preprocess.size, found.preprocess.resize) == (331, 363)
    with pytest.raises(Refused, match="pad_type"):
        sizes({**config, "model_args": {"pad_type": ""}}, "nas", variants=tuple(card.variants), aliases=card.aliases)


PYTORCHCV = [
    (r"features\.init_block", "conv0"),
    (r"features\.stem([12])_unit", lambda m: f"cell_stem_{int(m[1]) - 1}"),
    (r"conv1x1_prev\.", "previous."),
    (r"conv1x1\.", "current."),
    (r"path\.path(\d)\.conv", r"halve.path\1"),
    (r"path\.bn", "halve.norm"),
    (r"comb(\d)_(left|right)\.conv(\d)\.conv\.dw_conv", r"pair\1_\2.depthwise\3"),
    (r"comb(\d)_(left|right)\.conv(\d)\.conv\.pw_conv", r"pair\1_\2.pointwise\3"),
    (r"comb(\d)_(left|right)\.conv(\d)\.bn", r"pair\1_\2.bn\3"),
    (r"output\.fc", "fc"),
]


def test_pytorchcv_mobile() -> None:
    """NASNet-A mobile: the cell after a reduction sees the reduction's input, and averages leave padding out."""
    from pytorchcv.models.nasnet import get_nasnet

    reference = get_nasnet(
        repeat=2, penultimate_filters=24 * 8, init_block_channels=5, final_pool_size=2, extra_padding=True,
        skip_reduction_layer_input=False, in_size=(64, 64), num_classes=17,
    )  # fmt: skip
    randomise_(reference, torch.Generator().manual_seed(5)).eval()
    ours = jingdu.create("nasnet_a_mobile_4at1056", width=8, stem=5, repeats=2, num_classes=17).eval()
    state = {}
    for key, value in reference.state_dict().items():
        name = re.sub(r"features\.stage(\d)\.unit(\d)", _cell, key)
        for pattern, to in PYTORCHCV:
            name = re.sub(pattern, to, name)
        state[name] = value
    ours.load_state_dict(state)
    x = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        print(f"pytorchcv: {assert_close(ours(x), reference(x)):.1e}")


def _cell(match: re.Match[str]) -> str:
    """Two cells a stage; from the second stage on the first unit is the reduction."""
    stage, unit = int(match[1]) - 1, int(match[2]) - 1
    if stage == 0:
        return f"cell_{unit}"
    return f"reduction_cell_{stage - 1}" if unit == 0 else f"cell_{2 * stage + unit - 1}"
