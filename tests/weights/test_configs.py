import json

import pytest

from jingdu.data.preprocess import Preprocess
from jingdu.errors import Refused
from jingdu.weights import sizes
from jingdu.weights.configs import preprocess_from, preprocess_of
from tests.parity.references import import_timm, import_transformers

VARIANTS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnet20_cifar")
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def transformers_config(**changes: object) -> dict[str, object]:
    return json.loads(import_transformers().ResNetConfig(**changes).to_json_string(use_diff=True))


@pytest.mark.parametrize(
    ("changes", "variant", "overrides"),
    [
        ({}, "resnet50", {"num_classes": 2}),
        ({"num_labels": 1000}, "resnet50", {"num_classes": 1000}),
        ({"depths": [3, 8, 36, 3], "num_labels": 7}, "resnet152", {"num_classes": 7}),
        (
            {"layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "num_labels": 3},
            "resnet18",
            {"num_classes": 3},
        ),
        ({"downsample_in_bottleneck": True}, "resnet50", {"num_classes": 2, "stride_on": "1x1"}),
        (
            {"embedding_size": 10, "hidden_sizes": [40, 80], "depths": [1, 2], "num_channels": 1},
            "resnet50",
            {"num_classes": 2, "depths": (1, 2), "width": 10, "in_channels": 1},
        ),
    ],
)
def test_the_sizes_of_a_transformers_resnet(changes, variant, overrides):
    found = sizes(transformers_config(**changes), "resnet", variants=VARIANTS)
    assert (found.variant, dict(found.overrides)) == (variant, overrides)


def test_classes_are_in_the_order_of_their_numbers():
    names = {str(i): f"class {i}" for i in (10, 2, 0, 1, 3, 4, 5, 6, 7, 8, 9)}
    found = sizes({"model_type": "resnet", "id2label": names}, "resnet")
    assert found.classes == tuple(f"class {i}" for i in range(11)) and found.overrides == {"num_classes": 11}
    assert sizes({"model_type": "resnet", "id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, "resnet").classes is None


@pytest.mark.parametrize(
    "config",
    [
        {"hidden_act": "gelu"},
        {"downsample_in_first_stage": True},
        {"hidden_sizes": [64, 128, 256, 512]},
        {"layer_type": "other"},
        {"depths": 3},
        {"embedding_size": None},
        {"hidden_sizes": None},
        {"id2label": {"x": "y"}},
    ],
)
def test_what_the_paper_does_not_have_is_refused(config):
    with pytest.raises(Refused, match=r"config\.json"):
        sizes({"model_type": "resnet", **config}, "resnet")


def timm_config(tmp_path, name: str, **arguments: object) -> dict[str, object]:
    timm = import_timm()
    from timm.models._hub import save_config_for_hf

    model = timm.create_model(name, pretrained=False, **arguments)
    save_config_for_hf(model, str(tmp_path / "config.json"))
    return json.loads((tmp_path / "config.json").read_text())


def test_the_sizes_and_preprocessing_of_a_timm_resnet(tmp_path):
    config = timm_config(tmp_path, "resnet18.a1_in1k", num_classes=11)
    found = sizes(config, "resnet", variants=VARIANTS)
    assert (found.variant, dict(found.overrides)) == ("resnet18", {"num_classes": 11, "in_channels": 3})
    assert found.preprocess == Preprocess(224, 235, tuple(MEAN), tuple(STD), "bicubic")


def test_the_sizes_and_preprocessing_of_a_timm_vgg():
    from jingdu import paper

    card = paper("vgg")
    config = {"architecture": "vgg13_bn", "num_classes": 11, "global_pool": "avg", "model_args": {"drop_rate": 0.25}}
    found = sizes(config, "vgg", variants=tuple(card.variants), aliases=card.aliases)
    assert found.variant == "vgg13_bn"
    assert dict(found.overrides) == {"dense": True, "dropout": 0.25, "num_classes": 11}
    with pytest.raises(Refused, match="mlp_ratio"):
        sizes({**config, "model_args": {"mlp_ratio": 2.0}}, "vgg", variants=tuple(card.variants), aliases=card.aliases)


def test_timms_other_networks_are_refused_by_name(tmp_path):
    for name in ("resnet18d", "resnet50_gn"):
        with pytest.raises(Refused, match=rf"timm's {name}"):
            sizes({"architecture": name, "num_classes": 5}, "resnet", variants=VARIANTS)
    with pytest.raises(Refused, match="global_pool"):
        sizes({"architecture": "resnet18", "global_pool": "max"}, "resnet", variants=VARIANTS)
    with pytest.raises(Refused, match="global_pool"):
        sizes({"architecture": "resnet18", "model_args": {"global_pool": "max"}}, "resnet", variants=VARIANTS)
    with pytest.raises(Refused, match="drop_rate"):
        sizes({"architecture": "resnet18", "model_args": {"drop_rate": 0.1}}, "resnet", variants=VARIANTS)


def test_an_alias_of_the_card_is_followed():
    aliases = {"timm/tv_net": "resnet34(width=8)"}
    found = sizes({"architecture": "tv_net.a1", "num_classes": 4}, "resnet", variants=VARIANTS, aliases=aliases)
    assert (found.variant, dict(found.overrides)) == ("resnet34", {"width": 8, "num_classes": 4})


def test_timms_labels_are_named_by_their_descriptions():
    config = {
        "architecture": "resnet18",
        "num_classes": 2,
        "label_names": ["n01", "n02"],
        "label_descriptions": {"n01": "tench", "n02": "goldfish"},
    }
    assert sizes(config, "resnet", variants=VARIANTS).classes == ("tench", "goldfish")
    assert sizes({**config, "num_classes": 3}, "resnet", variants=VARIANTS).classes is None


CONVNEXT = {
    "feature_extractor_type": "ConvNextFeatureExtractor",
    "crop_pct": 0.875,
    "do_normalize": True,
    "do_resize": True,
    "image_mean": MEAN,
    "image_std": STD,
    "resample": 3,
    "size": 224,
}
CLIP = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": 240},
    "do_center_crop": True,
    "crop_size": {"height": 230, "width": 230},
    "resample": 2,
    "image_mean": MEAN,
    "image_std": STD,
    "rescale_factor": 0.00392156862745098,
}


def test_the_preprocessing_of_transformers():
    assert preprocess_of(CONVNEXT) == Preprocess(224, 256, tuple(MEAN), tuple(STD), "bicubic")
    assert preprocess_of(CLIP) == Preprocess(230, 240, tuple(MEAN), tuple(STD), "bilinear")
    newer = {**CONVNEXT, "size": {"shortest_edge": 160}, "image_processor_type": "ConvNextImageProcessor"}
    assert preprocess_of(newer) == Preprocess(160, 182, tuple(MEAN), tuple(STD), "bicubic")
    assert preprocess_of({**CLIP, "do_normalize": False}) == Preprocess(230, 240, (0.0,), (1.0,), "bilinear")
    assert preprocess_of({**CLIP, "resample": 1}) == Preprocess(230, 240, tuple(MEAN), tuple(STD), "lanczos")
    assert sizes(None, "resnet", preprocessor=CONVNEXT).preprocess == preprocess_of(CONVNEXT)


@pytest.mark.parametrize(
    "config",
    [
        {**CONVNEXT, "size": 384},
        {**CLIP, "size": {"height": 224, "width": 224}},
        {**CLIP, "crop_size": {"height": 224, "width": 200}},
        {**CLIP, "do_center_crop": False},
        {**CLIP, "resample": 5},
        {**CLIP, "rescale_factor": 1.0},
        {**CLIP, "do_resize": False},
        {},
        None,
    ],
)
def test_other_preprocessing_is_not_guessed(config):
    assert preprocess_of(config) is None


@pytest.mark.parametrize("crop_mode", ["squash", "border"])
def test_timms_other_crops_are_not_guessed(crop_mode):
    inner = {"input_size": [3, 224, 224], "interpolation": "bicubic", "crop_mode": crop_mode}
    assert sizes({"architecture": "resnet18", "pretrained_cfg": inner}, "resnet").preprocess is None


@pytest.mark.parametrize(
    "plain",
    [
        {"side": 3},
        {"size": -1},
        {"size": "224"},
        {"mean": [1, "x", 2]},
        {"std": [0, 1, 1]},
        {"interpolation": "area"},
        {"channels": 2},
        [1],
    ],
)
def test_damaged_preprocessing_of_ours_is_refused(plain):
    with pytest.raises(Refused, match="preprocessing saved"):
        preprocess_from(plain)


def test_our_preprocessing_comes_back():
    plain = {"size": 7, "resize": None, "mean": [0.5], "std": [0.25], "interpolation": "nearest", "channels": 1}
    assert preprocess_from(plain) == Preprocess(7, None, (0.5,), (0.25,), "nearest", 1)
    assert preprocess_from(None) is None


def test_a_configuration_of_nothing_we_know_says_nothing():
    for config in (None, {}, {"model_type": "gpt2"}):
        found = sizes(config, "no_such_family")
        assert found.variant is None and not found.overrides
