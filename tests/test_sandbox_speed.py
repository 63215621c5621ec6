"""What makes the offline Earth fast changes no bit of it: caches, batches and short cuts against the slow way."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from mmbuild.sandbox import modes
from mmbuild.sandbox.earth import SyntheticWorld
from mmbuild.sandbox.earth_noise import noise, points, smoothstep
from mmbuild.sandbox.earth_optics import snow_limit, snow_share
from mmbuild.sandbox.earth_site import SKIES_KEPT, SiteCache, Window, site_at
from mmbuild.sandbox.earth_world import band_info, lattice_site, milliseconds, square_transform
from mmbuild.sandbox.picking import gather, indices
from mmbuild.sandbox.raster import Grid, Reader, Stored, positions, together
from mmbuild.sandbox.values import Projection

DYNAMIC_WORLD = "GOOGLE/DYNAMICWORLD/V1"
BAND = band_info("B2", {"dtype": "uint16"}, "EPSG:32631", square_transform(10.0, 600_000.0, 5_000_000.0), (100, 100))
PLACES = {"north": (10.6, 59.9), "south": (151.1, -33.7)}


def stored(world: SyntheticWorld, place: str) -> list[Stored]:
    """The label bands of half a year of Dynamic World at a place."""
    lon, lat = PLACES[place]
    dataset = world.synthetic_dataset(DYNAMIC_WORLD)
    spans = {"start_ms": milliseconds("2019-05-01"), "end_ms": milliseconds("2019-11-01")}
    nodes = []
    for image in dataset.images(bounds=(lon, lat, lon, lat), **spans):
        band = next(band for band in image.bands if band.id == "label")
        nodes.append(Stored(dataset, image, band, Projection(band.crs, band.transform)))
    return nodes


def chip(node: Stored, size: int = 40) -> Grid:
    """A grid on the band's lattice, well inside it, the same ground for tiles of one zone."""
    a, _, left, _, e, top = node.projection.transform
    return Grid(node.projection.crs, (a, 0.0, left + 5000 * a, 0.0, e, top + 5000 * e), size, size)


def same(first: tuple[NDArray, NDArray], second: tuple[NDArray, NDArray]) -> bool:
    return all(a.tobytes() == b.tobytes() for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("place", PLACES)
def test_a_warm_cache_two_threads_and_a_batch_give_what_fresh_worlds_give(place: str) -> None:
    world = SyntheticWorld()
    nodes = stored(world, place)
    assert len(nodes) > 10
    fresh = []
    for number in range(0, len(nodes), 7):
        node = stored(SyntheticWorld(), place)[number]
        fresh.append(node.read(Reader(), chip(node)))
    with together(nodes):
        batch = [node.read(Reader(), chip(node)) for node in nodes]
    again = [node.read(Reader(), chip(node)) for node in nodes]
    others = stored(SyntheticWorld(), place)
    with ThreadPoolExecutor(2) as pool:
        threads = list(pool.map(lambda node: node.read(Reader(), chip(node)), others))
    assert all(same(a, b) for a, b in zip(fresh, batch[::7], strict=True))
    assert all(same(a, b) and same(a, c) for a, b, c in zip(batch, again, threads, strict=True))


@pytest.mark.parametrize("asset", ["COPERNICUS/S2_SR_HARMONIZED", "COPERNICUS/S1_GRD"])
def test_a_window_cut_from_a_cached_one_holds_the_same_bits(asset: str) -> None:
    def first(world: SyntheticWorld) -> Stored:
        lon, lat = PLACES["north"]
        dataset = world.synthetic_dataset(asset)
        spans = {"start_ms": milliseconds("2019-06-01"), "end_ms": milliseconds("2019-07-01")}
        image = dataset.images(bounds=(lon, lat, lon, lat), **spans)[0]
        return Stored(dataset, image, image.bands[1], Projection(image.bands[1].crs, image.bands[1].transform))

    cut, whole = first(SyntheticWorld()), first(SyntheticWorld())
    cut.dataset.window(cut.image, cut.band.id, 4990, 4980, 70, 64)
    small = cut.dataset.window(cut.image, cut.band.id, 5000, 4990, 33, 41)
    assert same(small, whole.dataset.window(whole.image, whole.band.id, 5000, 4990, 33, 41))


def test_the_cache_of_sites_and_the_skies_of_a_site_stay_bounded() -> None:
    cache = SiteCache(limit=1000)
    for number in range(30):
        x, y = np.arange(10.0) * 10 + 600_000 + 1000 * number, np.arange(10.0) * 10 + 5_000_000
        window = Window(lattice=("a",), left=100 * number, top=0, width=10, height=10)
        cache.get(window, lambda x=x, y=y: lattice_site(BAND.crs, BAND.transform[0], x, y, cache.blocks))
    assert cache.count == 1000
    scenes = [node.image.private for node in stored(SyntheticWorld(), "north")]
    scenes = [scene for scene in scenes if scene.tile.epsg == scenes[0].tile.epsg]
    site = site_at(*np.meshgrid(np.linspace(10.6, 10.61, 5), np.linspace(59.9, 59.91, 5)))
    days = [type(s)(**{**vars_of(s), "orbit": s.orbit + 143 * k}) for s in scenes for k in range(20)]
    for scene in days:
        site.is_clear(scene, days)
    assert 0 < len(site.lasting(("clear", scenes[0].tile.epsg), dict)) <= SKIES_KEPT < len(days)


def vars_of(scene: object) -> dict[str, object]:
    """The fields of a scene, without what it worked out and kept."""
    return {name: getattr(scene, name) for name in type(scene).__dataclass_fields__}  # type: ignore[attr-defined]


def test_a_noise_turned_to_other_phases_is_the_sum_of_its_waves_in_them() -> None:
    field = noise(71, 900.0, 3, ratio=2.4, roughness=0.3, bend=0.0)
    rng = np.random.default_rng(5)
    p = points(10.0 + rng.random(500) * 0.1, 50.0 + rng.random(500) * 0.1)
    phases = rng.random(field.phases.shape)
    turns = np.stack([p.x, p.y, p.z], axis=1) @ field.vectors.reshape(-1, 3).T + phases.ravel()
    heights = np.repeat(field.amplitudes, 3) * np.sqrt(2.0 / 3.0)
    found = field.turned(field.basis(p), phases)
    assert np.abs(found - np.sin(2.0 * np.pi * turns) @ heights).max() < 1e-5
    assert np.abs(found).max() < field.most
    alone = field.turned(field.basis(p.take(np.array([77]))), phases)
    assert alone.tobytes() == found[77:78].tobytes()


def test_days_below_the_limit_of_snow_are_those_on_which_its_share_says_so() -> None:
    snowy = []
    for lon, lat in ((10.6, 59.9), (7.86, 45.93), (-40.0, 75.0), (30.0, 5.0), (-30.0, 81.0), (147.0, -42.0)):
        site = site_at(*np.meshgrid(np.linspace(lon, lon + 0.2, 30), np.linspace(lat, lat + 0.2, 30)))
        limit = snow_limit(site.ground, site.cover)
        for day in range(5, 365, 30):
            temperature = site.temperature(float(day))
            share = snow_share(site.ground, site.cover, temperature)
            sure = np.abs(share - 0.55) > 1e-9
            assert ((temperature < limit) == (share > 0.55))[sure].all()
            snowy.append((share > 0.55).mean())
    assert 0.2 < np.mean(snowy) < 0.8
    assert any(0.0 < share < 1.0 for share in snowy)


def test_counting_finds_the_mode_that_ranking_finds() -> None:
    rng = np.random.default_rng(3)
    values = rng.integers(0, 9, (31, 20, 20)).astype(np.float64)
    mask = (rng.random(values.shape) < 0.1).astype(np.float64)
    assert (mask.max(axis=0) == 0).any(), "some pixels have no valid value"
    ranked = modes._ranked(values, mask)
    assert modes.mode(values, mask).tobytes() == ranked.tobytes()
    for others in (values + 0.5, values - 1.0, values + 300.0):
        assert modes._counted(list(zip(others, mask, strict=True))) is None


@pytest.mark.parametrize("count", [1, 31, 600])
@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_the_mode_of_layers_is_that_of_their_stack(count: int, shift: float) -> None:
    """More layers than a byte can count, masks between 0 and 1, codes and other numbers."""
    rng = np.random.default_rng(4)
    values = rng.integers(0, 3, (count, 8, 8)) + shift
    mask = np.maximum(rng.random(values.shape) - 0.5, 0.0)
    values = np.where(mask > 0, values, 0.0)
    found, top = modes.mode_of_layers(list(zip(values, mask, strict=True)))
    assert found.tobytes() == np.where(mask.max(axis=0) > 0, modes._ranked(values, mask), 0.0).tobytes()
    assert top.tobytes() == mask.max(axis=0).tobytes()


@pytest.mark.parametrize("place", PLACES)
def test_a_grid_on_the_lattice_reads_what_looking_up_every_pixel_reads(place: str) -> None:
    node = stored(SyntheticWorld(), place)[0]
    grid = chip(node)
    rows, cols = (indices(position) for position in positions(Reader(), grid, node.projection))
    assert same(node.read(Reader(), grid), gather(node._native, rows, cols)[0])
    steps = np.arange(40)[:, None] // 2 + int(rows[0, 0]), cols
    picked = gather(node._native, *steps)[0]
    assert (picked[0] == node.read(Reader(), grid)[0][np.arange(40) // 2]).all()


def test_smoothstep_is_its_formula() -> None:
    value = np.linspace(-3.0, 3.0, 1001)
    t = np.clip((value + 1.0) / 2.5, 0.0, 1.0)
    assert smoothstep(value, -1.0, 1.5).tobytes() == (t * t * (3.0 - 2.0 * t)).tobytes()
