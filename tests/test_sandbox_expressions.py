"""Earth Engine's little languages through the genuine client: `image.expression`, and filters written as text."""

from __future__ import annotations

from collections.abc import Iterator

import ee
import numpy as np
import pytest

from mmbuild.sandbox.rest import Sandbox
from tests.sandbox_worlds import connected, grid, pixels, sentinel_world


@pytest.fixture(scope="module", autouse=True)
def sandbox() -> Iterator[Sandbox]:
    with connected(sentinel_world()) as sandbox:
        yield sandbox


def scene(*bands: str, day: int = 0) -> ee.Image:
    return ee.Image(f"C/S2/S{day:03d}").select(list(bands) or ["B4"])


def row(image: ee.Image) -> list[float]:
    """The first four pixels of the only band; of the scene they are 0, 1, 2, 3."""
    found = pixels(image, grid(600000.0, 5000040.0, size=(1, 4)))
    return found[found.dtype.names[0]][0].tolist()


# -- expressions: API reference of ee.Image.expression and ee.Image.parseExpression -----------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("b(0) + 1", [1, 2, 3, 4]),
        ("b('B4') * 2 - 1", [-1, 1, 3, 5]),
        ('b("B4") / 2', [0, 0.5, 1, 1.5]),
        ("b() % 2", [0, 1, 0, 1]),
        ("b(0) ** 2 ** 0.5", [0, 1, 2**2**0.5, 3**2**0.5]),
        ("-b(0) ** 2", [0, -1, -4, -9]),
        ("10 - b(0) - 1", [9, 8, 7, 6]),
        ("2 + b(0) * 3", [2, 5, 8, 11]),
        ("(2 + b(0)) * 3", [6, 9, 12, 15]),
        ("b(0) > 1", [0, 0, 1, 1]),
        ("b(0) >= 1 && b(0) != 2", [0, 1, 0, 1]),
        ("b(0) < 1 || b(0) == 3", [1, 0, 0, 1]),
        ("!(b(0) <= 1)", [0, 0, 1, 1]),
        ("(b(0) > 0) ^ (b(0) > 1)", [0, 1, 0, 0]),
        ("b(0) > 1 ? 10 : 20", [20, 20, 10, 10]),
        ("b(0) > 2 ? 3 : b(0) > 0 ? 2 : 1", [1, 2, 2, 3]),
        ("B4>1?B4:x", [7, 7, 2, 3]),
        ("sqrt(pow(b(0), 2))", [0, 1, 2, 3]),
        ("max(b(0), 1, 2)", [2, 2, 2, 3]),
        ("min(b(0), 1.5)", [0, 1, 1.5, 1.5]),
        ("abs(b(0) - 2)", [2, 1, 0, 1]),
        ("1e1 + .5 + b(0)", [10.5, 11.5, 12.5, 13.5]),
    ],
)
def test_an_expression_means_what_its_operators_mean(text: str, expected: list[float]) -> None:
    np.testing.assert_allclose(row(scene().expression(text, {"B4": scene(), "x": 7})), expected)


def test_an_expression_takes_images_by_name_and_bands_by_name_or_number() -> None:
    other = ee.Image([10, 20]).rename(["x", "y"])
    assert row(scene().expression("b(0) + o.x", {"o": other})) == [10, 11, 12, 13]
    assert row(scene().expression("b(0) + o[1]", {"o": other})) == [20, 21, 22, 23]
    assert row(scene().expression("a * k", {"a": scene(day=1), "k": 3})) == [3, 6, 9, 12]
    assert scene("B4", "B5").expression("b('B5', 0)").bandNames().getInfo() == ["B5", "B4"]


def test_an_expression_names_its_band_only_by_assignment() -> None:
    assert scene().expression("ndvi = b(0) / 2").bandNames().getInfo() == ["ndvi"]
    assert scene().expression("2 * b(0)").bandNames().getInfo() == ["constant"]
    with pytest.raises(ee.EEException, match="names one band, the expression has 2"):
        scene("B4", "B5").expression("x = b()").getInfo()


def test_an_expression_as_deep_as_a_tower_is_refused_and_not_a_failure() -> None:
    with pytest.raises(ee.EEException, match=r"Expression is nested too deeply\."):
        row(scene().expression("+".join(["b(0)"] * 600)))


def test_a_choice_is_masked_where_the_condition_or_the_chosen_value_is() -> None:
    """The value that was not chosen may be masked."""
    image, ones = scene(), ee.Image(1)
    chosen = ee.Image(0).expression("c ? x : y", {"c": image.gt(1), "x": image.updateMask(image.gt(2)), "y": ones})
    assert row(chosen.mask()) == [1, 1, 0, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("b(0) +", r"Unexpected 'the end' at position 6 of 'b\(0\) \+'"),
        ("b(0) $ 2", r"Unexpected character '\$' at position 4"),
        ("nir + 1", "Unknown variable 'nir' at position 0"),
        ("median(b(0))", "No function 'median' of 1 arguments at position 0"),
        ("pow(b(0))", "No function 'pow' of 1 arguments"),
        ("b(0) b(0)", "Unexpected 'b' at position 5"),
        ("b(0)[x]", "Unexpected 'x'"),
        ("b(0) = 2", "Unexpected '=' at position 5"),
    ],
)
def test_an_expression_that_is_not_understood_is_refused_where_it_ends(text: str, message: str) -> None:
    with pytest.raises(ee.EEException, match=message):
        scene().expression(text).getInfo()


# -- filters written as text: references of ee.Filter.expression and ee.FeatureCollection.filter -----------------------


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("t > 2", [3, 4]), ("t >= 2 && t != 3", [2, 4]), ("t == 1 || t == 4", [1, 4]), ("t < -1", []),
        ("!(t < 3)", [3, 4]), ("not t == 1 and t <= 2", [2]), ("t == 1 or t == 2 and t == 3", [1]),
        ("name == 'n2'", [2]), ("t in [1, 3, 9]", [1, 3]), ("system:index == \"0\"", [1]),
    ],
)  # fmt: skip
def test_a_filter_may_be_written_as_text(text: str, kept: list[int]) -> None:
    rows = ee.FeatureCollection([ee.Feature(None, {"t": i, "name": f"n{i}"}) for i in (1, 2, 3, 4)])
    assert rows.filter(text).aggregate_array("t").getInfo() == kept
    assert rows.filter(ee.Filter.expression(text)).aggregate_array("t").getInfo() == kept


def test_a_filter_that_is_not_understood_is_refused_where_it_ends() -> None:
    rows = ee.FeatureCollection([ee.Feature(None, {"t": 1})])
    with pytest.raises(ee.EEException, match=r"Filter\.expression: Unexpected 'the end' at position 3 of 't >'"):
        rows.filter("t >").getInfo()
    with pytest.raises(ee.EEException, match="Unexpected '3' at position 0"):
        rows.filter("3 < t").getInfo()
