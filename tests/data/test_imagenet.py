from jingdu.data.imagenet import class_names


def test_order_and_names() -> None:
    names = class_names()
    assert len(names) == len(set(names)) == 1000
    # Landmarks of the order that every published classifier has.
    assert (names[0], names[207], names[281], names[817]) == ("tench", "golden retriever", "tabby", "sports car")
