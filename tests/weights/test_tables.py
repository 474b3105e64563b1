import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jingdu.errors import Refused, UsageError
from jingdu.weights import KeyTable, detect
from jingdu.weights.tables import Pattern, Rule, tables
from jingdu.weights.transforms import Transform

DEPTHS = {"resnet18": ("basic", (2, 2, 2, 2)), "resnet50": ("bottleneck", (3, 4, 6, 3))}
BN = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def resnet_keys(variant: str) -> set[str]:
    """Our names for a ResNet of Table 1."""
    block, depths = DEPTHS[variant]
    keys = {"conv1.weight", *(f"bn1.{name}" for name in BN), "fc.weight", "fc.bias"}
    for stage, depth in enumerate(depths, start=2):
        for b in range(depth):
            for c in (1, 2, 3)[: 2 if block == "basic" else 3]:
                keys |= {f"conv{stage}_x.{b}.conv{c}.weight", *(f"conv{stage}_x.{b}.bn{c}.{name}" for name in BN)}
        if stage > 2 or block == "bottleneck":
            short = f"conv{stage}_x.0.shortcut"
            keys |= {f"{short}.conv.weight", *(f"{short}.bn.{name}" for name in BN)}
    return keys


def test_a_family_without_tables_has_our_own_format():
    assert list(tables("no_such_family")) == ["jingdu"]
    assert detect({"a"}, None, "no_such_family", None, {"a"}).table.name == "jingdu"


TABLE = KeyTable(
    "other",
    (
        Rule("conv{s}_x.{b}.{*}", "layer{s-1}.{b}.{*}"),
        Rule("up.{i}.w", "stages.{i+3}.kernel", "transpose"),
        Rule("attention.{i}.qkv.{p}", ["block{i}.q.{p}", "block{i}.k.{p}", "block{i}.v.{p}"], "concatenate(0)"),
        Rule(["gate.{i}.a", "gate.{i}.b"], "gates.{i}", "split(1)"),
        Rule("head.{p}", "classifier.{p}"),
    ),
    prefix="model.",
)
LISTS = """
[other]
rules = [["head.{*}", "classifier.{*}"]]
lists = { features = { small = "a . b", large = "a . c . . b" } }

[third]
same_as = "other"
rules = [["head.{*}", "fc.{*}"]]
"""


def test_lists_number_the_layers_of_each_variant(tmp_path, monkeypatch):
    (tmp_path / "numbered.toml").write_text(LISTS)
    monkeypatch.setattr("jingdu.weights.tables.KEYS", tmp_path)
    for library, head in (("other", "classifier"), ("third", "fc")):
        table = tables("numbered")[library]
        assert table.variants == ("small", "large")
        assert table.from_ours("b.weight") is None, "without a variant"
        small, large = table.of("small"), table.of("large")
        assert small.from_ours("b.weight").theirs == ("features.2.weight",)
        assert large.from_ours("b.weight").theirs == ("features.5.weight",)
        assert large.from_theirs("features.2.running_mean").ours == ("c.running_mean",)
        assert large.from_theirs("features.1.weight") is None
        assert small.from_ours("head.bias").theirs == (f"{head}.bias",)
    keys = {"features.0.w", "features.5.w", "features.2.w", "classifier.w"}
    fit = detect(keys, None, "numbered", None, {"a.w", "b.w", "c.w", "head.w"}, "large")
    assert fit.exact and fit.table.name == "other"
    with pytest.raises(Refused, match=r"no name for: a\.w"):
        detect(keys, None, "numbered", "other", {"a.w", "b.w", "c.w", "head.w"})
    with pytest.raises(UsageError, match="format of numbered weights"):
        detect(keys, None, "numbered", "other", {"a.w"}, "another variant")


def test_more_rules_come_before_those_of_another(tmp_path, monkeypatch):
    text = LISTS + '\n[fourth]\nsame_as = "other"\nmore = [["head.w", ["copy.w", "head.w"], "same"]]\n'
    (tmp_path / "extended.toml").write_text(text)  # tables are read once
    monkeypatch.setattr("jingdu.weights.tables.KEYS", tmp_path)
    table = tables("extended")["fourth"].of("small")
    assert table.from_ours("head.w").theirs == ("copy.w", "head.w")
    assert table.from_ours("head.b").theirs == ("classifier.b",)
    assert table.from_ours("a.w").theirs == ("features.0.w",)


def test_names_inside_a_list_and_rules_of_one_variant(tmp_path, monkeypatch):
    text = """
[other]
[other.lists."net.blocks"]
inside = [["a.conv.{*}", "first.{*}"], ["b.{which}.w", "second.{which}.w", "transpose"]]
small = "stages.0.0 . stages.1.0"
large = "stages.0.0 stages.1.0 stages.1.1"
[[other.only]]
variants = ["large"]
rules = [["stem.{*}", "begin.{*}"]]
"""
    (tmp_path / "inside.toml").write_text(text)
    monkeypatch.setattr("jingdu.weights.tables.KEYS", tmp_path)
    small, large = (tables("inside")["other"].of(variant) for variant in ("small", "large"))
    assert small.from_ours("stages.1.0.a.conv.bias").theirs == ("net.blocks.2.first.bias",)
    entry = large.from_theirs("net.blocks.2.second.reduce.w")
    assert entry.ours == ("stages.1.1.b.reduce.w",) and entry.transform.load([torch.ones(2, 3)])[0].shape == (3, 2)
    assert large.from_ours("stem.w").theirs == ("begin.w",) and small.from_ours("stem.w") is None
    for name in ("stages.2.0.a.conv.w", "stages.1.0.a.bias", "stages.1.0"):
        assert large.from_ours(name) is None
    assert small.from_theirs("net.blocks.1.first.w") is None


def test_copies_of_one_tensor_must_be_equal():
    same, x = Transform("same", theirs=3), torch.randn(2, 3)
    assert torch.equal(same.load([x, x.clone(), x])[0], x)
    assert [torch.equal(copy, x) for copy in same.export([x])] == [True] * 3
    for other in (x + 1, x.T):
        with pytest.raises(ValueError, match="differ"):
            same.load([x, x, other])
    meta = x.to("meta")
    assert same.load([meta, meta, meta])[0].shape == (2, 3)
    with pytest.raises(ValueError, match="different shapes"):
        same.load([meta, meta, meta.T])
    with pytest.raises(ValueError, match="same"):
        Transform("same")


OLDER = """
[other]
prefix = "model."
bare = true
outside = ["top."]
spare = ["*extra.weight"]
old = { ".gamma" = ".weight" }
rules = [["norm.{*}", "norm.{*}"], ["extra.{*}", "extra.{*}"], ["head.{*}", "top.{*}"]]
"""


def test_older_names_names_outside_the_prefix_and_spare_ones(tmp_path, monkeypatch):
    (tmp_path / "older.toml").write_text(OLDER)
    monkeypatch.setattr("jingdu.weights.tables.KEYS", tmp_path)
    table, ours = tables("older")["other"], {"norm.weight", "head.weight"}
    for keys in ({"model.norm.weight", "top.weight"}, {"model.norm.gamma", "top.weight"}, {"norm.gamma", "top.weight"}):
        for more in (set(), {"model.extra.weight"} if "model.norm.gamma" in keys else {"extra.weight"}):
            fit = table.fit(keys | more, ours)
            assert fit.exact and {name for entry in fit.entries for name in entry.theirs} == keys, keys
    assert not table.fit({"model.norm.weight", "model.top.weight"}, ours).exact
    assert not table.fit({"model.norm.weight", "top.weight"}, {*ours, "extra.weight"}).exact  # spare, not absent
    both = table.fit({"model.norm.weight", "model.norm.gamma", "top.weight"}, ours)
    assert both.unexpected == ("model.norm.gamma",)


words = st.text(st.characters(blacklist_characters=".{}", blacklist_categories=("Cs",)), min_size=1, max_size=8)
numbers = st.integers(0, 10**9)


@settings(max_examples=200)
@given(numbers, words, words)
def test_translation_and_back_is_the_identity(n, word, other):
    keys = [f"conv{n + 1}_x.{word}.{other}", f"conv{n + 1}_x.{word}.{other}.{word}", f"up.{n}.w", f"head.{word}"]
    keys += [f"attention.{word}.qkv.{other}", f"gate.{word}.a", f"gate.{word}.b"]
    for key in keys:
        entry = TABLE.from_ours(key)
        assert entry is not None and key in entry.ours
        assert all(name.startswith("model.") and TABLE.from_theirs(name) == entry for name in entry.theirs)
    names = [f"model.layer{n}.{word}.{other}", f"model.stages.{n + 3}.kernel", f"model.block{word}.k.{other}"]
    for name in names:
        entry = TABLE.from_theirs(name)
        assert entry is not None and name in entry.theirs
        assert all(TABLE.from_ours(key) == entry for key in entry.ours)


@settings(max_examples=100)
@given(st.sets(st.tuples(st.integers(2, 9), numbers, words), max_size=30))
def test_different_keys_stay_different(parts):
    keys = {f"conv{s}_x.{b}.{word}" for s, b, word in parts}
    assert len({TABLE.from_ours(key).theirs for key in keys}) == len(keys)


@settings(max_examples=200)
@given(st.text(max_size=40))
def test_no_text_breaks_a_table(text):
    for table in (TABLE, *tables("resnet").values()):
        for entry in (table.from_ours(text), table.from_theirs(text), table.from_theirs(f"layer{text}.conv1.weight")):
            assert entry is None or (entry.ours and entry.theirs)


def test_numbers_do_not_become_negative_or_get_zeros_in_front():
    assert TABLE.from_ours("conv0_x.b.w") is None
    assert TABLE.from_theirs("model.stages.2.kernel") is None
    assert TABLE.from_ours("conv01_x.b.w") is None
    assert TABLE.from_theirs("model.layer" + "9" * 5000 + ".b.w") is None
    assert TABLE.from_theirs("layer1.b.w") is None, "without the prefix it is no name of theirs"


@pytest.mark.parametrize(
    ("ours", "theirs", "says"),
    [
        ("a.{x}", "b.{y}", "different fields"),
        ("a.{x}", "b", "different fields"),
        ("a.{x}.{x}", "b.{x}.{x}", "repeats"),
        ("a.{x}{y}", "b.{x}.{y}", "between them"),
        ("a.{*}.b", "b.{*}", "at the end"),
        ("a.{X}", "b.{X}", "a field is"),
        ("a.{x*2}", "b.{x}", "a field is"),
    ],
)
def test_a_rule_that_has_no_way_back_is_an_error(ours, theirs, says):
    with pytest.raises(ValueError, match=says):
        Rule(ours, theirs)


def test_rules_that_collide_are_found_when_used():
    table = KeyTable("bad", (Rule("a.{x}", "c.{x}"), Rule("b.{x}", "c.{x}")))
    assert table.from_ours("a.1") is not None
    with pytest.raises(ValueError, match="lead back"):
        table.from_ours("b.1")


def test_patterns_take_words_without_dots():
    pattern = Pattern("a.{x}.b{y}")
    pattern.compile(set())
    assert pattern.match("a.one.b2") == {"x": "one", "y": "2"}
    assert pattern.match("a.one.two.b2") is None


TENSOR = torch.arange(2 * 3 * 5 * 7.0).reshape(2, 3, 5, 7)


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("", (2, 3, 5, 7)),
        ("transpose", (2, 3, 7, 5)),
        ("permute(3, 1, 0, 2)", (7, 3, 2, 5)),
        ("reshape((2, 3, 5, 7), (6, 35))", (6, 35)),
        ("flip(1)", (2, 3, 5, 7)),
        ("unsqueeze(2)", (2, 3, 1, 5, 7)),
        ("reorder(3, (4, 0, 6, 1, 2, 5, 3))", (2, 3, 5, 7)),
        ("permute(3, 2, 0, 1) | flip(1) | reshape((7, 5, 2, 3), (35, 6)) | transpose", (6, 35)),
    ],
)
def test_transforms_are_undone_by_their_inverse(text, shape):
    transform = Transform(text)
    (ours,) = transform.load([TENSOR])
    assert tuple(ours.shape) == shape
    (back,) = transform.export([ours])
    assert torch.equal(back, TENSOR)


def test_transforms_do_what_their_names_say():
    (ours,) = Transform("transpose").load([TENSOR[0, 0]])
    assert torch.equal(ours, TENSOR[0, 0].T)
    x = torch.arange(6.0)
    assert Transform("reorder(0, (2, 0, 1))").load([x])[0].tolist() == [4, 5, 0, 1, 2, 3]
    assert Transform("squeeze(1)").load([x[:, None]])[0].shape == (6,)
    joined = Transform("transpose | concatenate(0)", theirs=3)
    parts = [torch.full((2, 5), float(i)) for i in range(3)]
    (one,) = joined.load(parts)
    assert one.shape == (15, 2) and one[:, 0].tolist() == [0.0] * 5 + [1.0] * 5 + [2.0] * 5
    assert all(torch.equal(a, b) for a, b in zip(joined.export([one]), parts, strict=True))
    split = Transform("split(1)", ours=2)
    a, b = split.load([torch.arange(8.0).reshape(2, 4)])
    assert a.tolist() == [[0, 1], [4, 5]] and torch.equal(split.export([a, b])[0], torch.arange(8.0).reshape(2, 4))


@pytest.mark.parametrize(
    ("text", "theirs", "ours"),
    [
        ("turn", 1, 1),
        ("concatenate(0)", 1, 1),
        ("", 2, 1),
        ("split(0)", 1, 1),
        ("concatenate(0) | split(0)", 2, 2),
        ("permute(0, x)", 1, 1),
        ("flip(axis=0)", 1, 1),
    ],
)
def test_transforms_that_cannot_be_are_errors(text, theirs, ours):
    with pytest.raises(ValueError):
        Transform(text, theirs=theirs, ours=ours)


def test_shapes_are_compared_where_another_would_pass():
    """A matrix that was transposed has as many numbers."""
    transform = Transform("reshape((-1, 6), (-1, 2, 3))")
    assert transform.load([torch.ones(5, 6)])[0].shape == (5, 2, 3)
    assert transform.export([torch.ones(5, 2, 3)])[0].shape == (5, 6)
    for wrong in (torch.ones(6, 5), torch.ones(30), torch.ones(5, 2, 3)):
        with pytest.raises(ValueError, match=r"shape \[-1, 6\] was expected"):
            transform.load([wrong])
    with pytest.raises(ValueError, match="different shapes"):
        Transform("concatenate(0)", theirs=2).load([torch.ones(2, 3), torch.ones(4, 3)])
    with pytest.raises(ValueError, match="different shapes"):
        Transform("split(0)", ours=2).export([torch.ones(2, 3), torch.ones(4, 3)])


def test_unequal_parts_are_an_error():
    with pytest.raises(ValueError, match="equal parts"):
        Transform("split(0)", ours=2).load([torch.ones(5)])


@pytest.fixture
def family(tmp_path, monkeypatch):
    """Writes the tables of a family called `toy`."""
    monkeypatch.setattr("jingdu.weights.tables.KEYS", tmp_path)
    tables.cache_clear()
    yield lambda text: (tmp_path / "toy.toml").write_text(text)
    tables.cache_clear()


def test_the_librarys_name_decides(family):
    family('[one]\nrules = [["a.{x}", "b.{x}"]]\n[two]\nrules = [["a.{x}", "b.{x}", "transpose"]]')
    assert detect({"b.w"}, None, "toy", "two", {"a.w"}).table.name == "two"
    with pytest.raises(UsageError, match=r"several formats of toy \(one, two\).*LIBRARY/NAME"):
        detect({"b.w"}, None, "toy", None, {"a.w"})
    with pytest.raises(UsageError, match=r"'tow'.*two"):
        detect({"b.w"}, None, "toy", "tow", {"a.w"})


def test_the_config_decides_where_the_keys_do_not(family):
    family('[timm]\nrules = [["a.{x}", "b.{x}"]]\n[transformers]\nrules = [["a.{x}", "b.{x}", "transpose"]]')
    assert detect({"b.w"}, {"architecture": "net"}, "toy", None, {"a.w"}).table.name == "timm"
    assert detect({"b.w"}, {"model_type": "net"}, "toy", None, {"a.w"}).table.name == "transformers"


def test_tables_that_mean_the_same_are_no_ambiguity(family):
    family('[one]\nrules = [["{*}", "{*}"]]\n[two]\nsame_as = "one"')
    assert detect({"a", "b.c"}, None, "toy", None, {"a", "b.c"}).exact


def test_swapped_names_are_an_ambiguity(family):
    """Two formats with the same set of names, which call each other's tensors so."""
    family('[swapped]\nrules = [["a", "b"], ["b", "a"]]')
    with pytest.raises(UsageError, match="jingdu, swapped"):
        detect({"a", "b"}, None, "toy", None, {"a", "b"})


def test_tables_may_be_of_some_variants(family):
    family('[one]\nvariants = ["x"]\nrules = [["a", "b"]]\n[two]\nvariants = ["y"]\nrules = [["a", "b", "flip(0)"]]')
    assert detect({"b"}, None, "toy", None, {"a"}, "y").table.name == "two"


def test_what_may_be_absent_may_be_absent_on_both_sides(family):
    family('[one]\nrules = [["a.{*}", "b.{*}"]]\nignore = ["*.steps", "mask"]')
    fit = detect({"b.w", "mask"}, None, "toy", None, {"a.w", "a.steps", "mask"})
    assert fit.exact and [entry.ours for entry in fit.entries] == [("a.w",)]
    assert len(detect({"b.w", "b.steps"}, None, "toy", None, {"a.w", "a.steps"}).entries) == 2


def test_the_refusal_lists_both_sides_of_the_nearest_table():
    ours = resnet_keys("resnet18")
    theirs = {name for key in ours for name in tables("resnet")["torchvision"].from_ours(key).theirs}
    broken = (theirs - {"fc.weight", "fc.bias"}) | {"fc.weigth", "head.extra"}
    with pytest.raises(Refused) as caught:
        detect(broken, None, "resnet", None, ours)
    text = str(caught.value)
    assert (
        "torchvision" in text and "2 missing: fc.bias" in text and "fc.weight (nearest in the file: fc.weigth)" in text
    )
    assert "2 unexpected: fc.weigth, head.extra" in text and caught.value.exit_code == 4


def test_the_refusal_says_what_our_name_for_a_missing_tensor_is():
    ours = resnet_keys("resnet18")
    theirs = {name for key in ours for name in tables("resnet")["torchvision"].from_ours(key).theirs}
    with pytest.raises(Refused, match=r"1 missing: layer3\.0\.conv1\.weight \(our conv4_x\.0\.conv1\.weight\)"):
        detect(theirs - {"layer3.0.conv1.weight"}, None, "resnet", None, ours)


def test_names_from_a_file_are_printed_safely():
    with pytest.raises(Refused) as caught:
        detect({"\x1b[2J" + "x" * 5000}, None, "resnet", None, {"fc.weight"})
    assert "\x1b" not in str(caught.value) and len(str(caught.value)) < 600
