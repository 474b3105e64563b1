"""One page a paper: it runs by itself, and says where each line comes from."""

import types

import pytest

from jingdu import canon
from jingdu.cli import main
from jingdu.flat import flat

KEYS = [paper.key for paper in canon.papers()]


@pytest.mark.parametrize("key", KEYS)
def test_the_page_is_the_paper(key: str) -> None:
    """Nothing of another paper is imported any more, and what it builds is the same."""
    page, card = flat(key), canon.paper(key)
    assert "from jingdu.papers" not in page.replace("# from jingdu.papers", "")
    module = types.ModuleType(f"flat_{key}")
    import sys

    sys.modules[module.__name__] = module  # dataclasses look their module up
    try:
        exec(compile(page, f"{key}.py", "exec"), module.__dict__)
    finally:
        del sys.modules[module.__name__]
    original = card.load()
    assert module.__doc__ == original.__doc__
    assert list(getattr(module, "VARIANTS", {})) == list(getattr(original, "VARIANTS", {}))
    assert all(hasattr(module, name) for name in original.__all__)


def test_imports_are_marked(capsys: pytest.CaptureFixture[str]) -> None:
    borrowing = [paper for paper in canon.papers() if paper.builds_on]
    for card in borrowing:
        page = flat(card.key)
        assert all(f"# from {canon.paper(parent).module}" in page for parent in card.builds_on)
    assert main(["show", "resnet", "--flat"]) == 0
    assert "class Bottleneck" in capsys.readouterr().out
