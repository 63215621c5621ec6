"""The synthetic Earth is not noise: its products are linked as in nature, its seasons turn, its spectra fall off."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.planet import DEM, EARTH, L2A, RADAR, WORLD, chip, clearest, land_pixels, ndvi, scenes, summer, wet_place


def test_a_linear_probe_from_sentinel2_to_land_cover_is_neither_hopeless_nor_trivial() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    data = land_pixels()
    rng = np.random.default_rng(0)
    test_place = data["place"] % 3 == 0
    pick: dict[bool, list[NDArray]] = {True: [], False: []}
    classes = [
        c for c in np.unique(data["cover"]) if all((data["cover"][test_place == t] == c).sum() > 60 for t in pick)
    ]
    assert len(classes) >= 6
    for held_out, chosen in pick.items():
        for code in classes:
            rows = np.flatnonzero((data["cover"] == code) & (test_place == held_out))
            chosen.append(rng.choice(rows, min(600, rows.size), replace=False))
    train, test = np.concatenate(pick[False]), np.concatenate(pick[True])
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=400, class_weight="balanced"))
    probe.fit(data["s2"][train], data["cover"][train])
    right = probe.predict(data["s2"][test]) == data["cover"][test]
    score = np.mean([right[data["cover"][test] == code].mean() for code in classes])
    assert 0.60 < score < 0.95, score


def test_tall_canopies_scatter_more_in_cross_polarisation() -> None:
    data = land_pixels()
    land = data["cover"] != 80
    assert np.corrcoef(data["canopy"][land], data["vh"][land])[0, 1] > 0.4


def test_canopies_are_green() -> None:
    data = land_pixels()
    assert np.corrcoef(data["canopy"], ndvi(data["s2"]))[0, 1] > 0.3


def test_water_is_dark_to_radar_and_in_the_infrared_and_cities_are_bright_to_radar() -> None:
    lon, lat = wet_place()
    image = clearest(L2A, lon, lat, *summer(lat))
    radar = next(r for r in scenes(RADAR, lon, lat, *summer(lat)) if EARTH.product(RADAR, r.index, "VV", lon, lat)[1])
    x, y = lon + np.linspace(-0.02, 0.02, 60)[None, :], lat + np.linspace(-0.02, 0.02, 60)[:, None]
    water = EARTH.land_cover(x, y) == 80
    vv, infrared = EARTH.product(RADAR, radar.index, "VV", x, y)[0], EARTH.product(L2A, image.index, "B8", x, y)[0]
    assert 0.1 < water.mean() < 0.9
    assert vv[water].mean() < vv[~water].mean() - 4
    assert infrared[water].mean() < 0.5 * infrared[~water].mean()
    data = land_pixels()
    assert (data["vv"] > data["vh"]).mean() > 0.995


def test_high_places_are_colder() -> None:
    rng = np.random.default_rng(3)
    lon, lat = rng.uniform(60, 100, 4000), rng.uniform(27, 45, 4000)
    height = EARTH.elevation(lon, lat)
    land = height > 0
    assert np.corrcoef(height[land], EARTH.temperature(lon, lat)[land])[0, 1] < -0.7


def test_land_and_sea_are_where_they_are_on_the_real_earth() -> None:
    """Capitals and oceans, coordinates from an atlas."""
    land = {"Paris": (2.35, 48.86), "Nairobi": (36.82, -1.29), "Brasilia": (-47.9, -15.8), "Beijing": (116.4, 39.9),
            "Canberra": (149.1, -35.3), "Ottawa": (-75.7, 45.4), "South Pole": (0.0, -90.0)}  # fmt: skip
    sea = {"Atlantic": (-30.0, 20.0), "Pacific": (-150.0, 0.0), "Indian": (80.0, -20.0), "North Pole": (0.0, 90.0),
           "Mediterranean": (18.0, 35.0), "Bering": (-178.0, 58.0)}  # fmt: skip
    assert {k for k, v in land.items() if EARTH.elevation(*v) <= 0} == set()
    assert {k for k, v in sea.items() if EARTH.elevation(*v) >= 0} == set()


@pytest.mark.parametrize(
    ("lon", "lat", "biomes"),
    [
        (20, 23, {13}),
        (-62, -4, {1}),
        (100, 62, {6, 11}),
        (10, 50, {4}),
        (-42, 74, {11}),
        (134, -25, {13}),
        (22, 10, {7}),
    ],
)
def test_biomes_follow_the_climate(lon: float, lat: float, biomes: set[int]) -> None:
    assert int(EARTH.biome(lon, lat)) in biomes


def test_seasons_are_opposite_in_the_two_hemispheres() -> None:
    from mmbuild.sandbox.earth_optics import plants
    from mmbuild.sandbox.earth_site import site_at

    days = np.arange(15, 365, 30)
    rng = np.random.default_rng(1)
    greens = {}
    for name, low, high in (("north", 35, 60), ("south", -50, -30)):
        lon, lat = rng.uniform(-180, 180, 3000), rng.uniform(low, high, 3000)
        site = site_at(lon, lat)
        land = site.ground.land
        greens[name] = np.array([plants(site.ground, site.cover, float(d))[0][land].mean() for d in days])
    assert 4 <= greens["north"].argmax() <= 8
    assert greens["south"].argmax() in (10, 11, 0, 1, 2)
    assert np.corrcoef(greens["north"], greens["south"])[0, 1] < -0.6
    july, january = EARTH.temperature(10.0, 50.0, 200.0), EARTH.temperature(10.0, 50.0, 15.0)
    assert july > january + 8
    assert EARTH.temperature(145.0, -33.0, 200.0) < EARTH.temperature(145.0, -33.0, 15.0) - 8


def radial_spectrum(field: NDArray) -> NDArray:
    """Mean power in octaves of spatial frequency, from 2 cycles a window upwards."""
    size = field.shape[0]
    window = np.hanning(size)[:, None] * np.hanning(size)[None, :]
    power = np.abs(np.fft.fftshift(np.fft.fft2((field - field.mean()) * window))) ** 2
    axis = np.arange(size) - size // 2
    radius = np.hypot(axis[:, None], axis[None, :])
    edges = 2.0 ** np.arange(1, int(np.log2(size)))
    return np.array([power[(radius >= a) & (radius < 2 * a)].mean() for a in edges])


@pytest.mark.parametrize(("lon", "lat"), [(11.35, 48.1), (-60.1, -3.2), (86.0, 29.0), (29.0, -18.0)])
def test_spatial_spectra_fall_off(lon: float, lat: float) -> None:
    image = clearest(L2A, lon, lat, *summer(lat)) or clearest(L2A, lon, lat, "2020-01-01", "2020-12-31")
    assert image is not None
    dem = WORLD.synthetic_dataset(DEM).image("")
    x, y = lon + np.arange(128) * 1e-3, lat + np.arange(128) * 1e-3
    fields = {
        "elevation": EARTH.elevation(x[None, :], y[:, None]),
        "near infrared": chip(L2A, image, "B8", lon, lat, 256)[0].astype(float),
        "stored elevation": chip(DEM, dem, "b1", lon, lat, 256)[0].astype(float),
    }
    for name, field in fields.items():
        spectrum = radial_spectrum(field)
        assert spectrum[0] > 8 * spectrum[len(spectrum) // 2] > 16 * spectrum[-1], (name, spectrum)
