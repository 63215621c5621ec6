"""How a recipe says where its samples lie: one model per sampler, its keys and their limits.

Each choice that a published corpus made otherwise has a switch of its own, and the default is the sound one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mmbuild.explain import Problem, cross_error, suggest

Text = Annotated[str, Field(min_length=1)]
# Tiles as web maps write them; mercantile and the Scale-ALiBi command line use the same order.
TILE = r"^\d{1,2}/\d{1,8}/\d{1,8}$"
# Lists of cities that need no file.
CITY_LISTS = ("geonames", "simplemaps")
# The areas of the Census Bureau's boundary file, by the names it gives them.
US_STATES = (
    "Alabama", "Alaska", "American Samoa", "Arizona", "Arkansas", "California", "Colorado",
    "Commonwealth of the Northern Mariana Islands", "Connecticut", "Delaware", "District of Columbia",
    "Florida", "Georgia", "Guam", "Hawaii", "Idaho", "Illinois", "Indiana", "Iowa", "Kansas", "Kentucky",
    "Louisiana", "Maine", "Maryland", "Massachusetts", "Michigan", "Minnesota", "Mississippi", "Missouri",
    "Montana", "Nebraska", "Nevada", "New Hampshire", "New Jersey", "New Mexico", "New York",
    "North Carolina", "North Dakota", "Ohio", "Oklahoma", "Oregon", "Pennsylvania", "Puerto Rico",
    "Rhode Island", "South Carolina", "South Dakota", "Tennessee", "Texas", "United States Virgin Islands",
    "Utah", "Vermont", "Virginia", "Washington", "West Virginia", "Wisconsin", "Wyoming",
)  # fmt: skip


class Strict(BaseModel):
    """What every part of a recipe refuses: unknown keys, values of another type, changes after reading."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class PointsSampler(Strict):
    """The places of a table, in its order."""

    kind: Literal["points"]
    file: Text = Field(description="CSV, GeoJSON or Parquet file of places, relative to the recipe")
    date_column: Text | None = Field(None, description="column with each place's own date")
    id_column: Text | None = Field(None, description="column with each place's name")


class AreaSampler(Strict):
    """Places drawn uniformly on the sphere inside polygons."""

    kind: Literal["area"]
    file: Text = Field(description="GeoJSON, GeoPackage, Shapefile or Parquet file of polygons, relative to the recipe")


class BiomeSampler(Strict):
    """Biomes in turn, their ecoregions by area, places uniform inside an ecoregion."""

    kind: Literal["biome"]
    ecoregions: Text = Field(
        "RESOLVE/ECOREGIONS/2017", description="table asked from the source, or a file of polygons"
    )
    biomes: list[Annotated[int, Field(ge=1, le=14)]] | None = Field(
        None, min_length=1, description="RESOLVE biome numbers, 1 to 14; all when left out"
    )
    exclude: list[Text] = Field(default_factory=list, description="names of ecoregions to leave out")
    allocation: Literal["divisor", "floor"] = Field(
        "divisor", description="places of an ecoregion in proportion, or its share rounded down as MMEarth did"
    )
    areas: Literal["polygons", "published"] = Field(
        "polygons", description="areas of the polygons that are used, or the table that MMEarth published"
    )
    points: Literal["counter", "published_seeds"] = Field(
        "counter", description="a draw of its own for every place, or MMEarth's seeds for batches of 5000"
    )

    @property
    def can_grow(self) -> bool:
        """Whether a larger number of samples keeps the places of a smaller one."""
        return self.allocation == "divisor" and self.points == "counter"


class CitiesSampler(Strict):
    """Places scattered around large cities."""

    kind: Literal["cities"]
    cities: Text = Field(
        "geonames", description="geonames, simplemaps, or a CSV file with columns of longitude, latitude, population"
    )
    keep: Text | None = Field(None, description="column of that list; only rows where it is 1 or true are cities")
    top: int = Field(10_000, ge=1, le=1_000_000, description="so many of the most populated are used")
    weights: Literal["uniform", "population"] = Field("uniform", description="how often a city is drawn")
    std_km: float = Field(50.0, ge=0, le=2000, description="standard deviation of the offset in each direction")
    offset: Literal["metres", "degrees"] = Field(
        "metres", description="Gaussian on the ground, or in degrees of both axes as SSL4EO-S12 did"
    )
    overlap: Literal["refuse", "published", "allow"] = Field(
        "refuse", description="refuse chips that share ground, by SSL4EO-S12's distance in a cell, or allow them"
    )


class XyzSampler(Strict):
    """Web-mercator tiles of the grid's zoom inside areas, each at most once."""

    kind: Literal["xyz"]
    file: Text | None = Field(None, description="GeoJSON, GeoPackage, Shapefile or Parquet file of polygons")
    tiles: list[Annotated[str, Field(pattern=TILE)]] | None = Field(
        None, min_length=1, description="tiles as z/x/y, each with all it holds at the grid's zoom"
    )
    states: list[Text] | None = Field(None, min_length=1, description="names of US states")
    covered_by: Text | None = Field(
        None, description="only tiles that an image of this modality covers, each with its date"
    )

    @model_validator(mode="after")
    def _says_where(self) -> XyzSampler:
        problems = [*self._one_of_three(), *self._no_such_tile(), *self._no_such_state()]
        if problems:
            raise cross_error(problems)
        return self

    def _one_of_three(self) -> Iterator[Problem]:
        if sum(area is not None for area in (self.file, self.tiles, self.states)) != 1:
            reason = "needs exactly one of file, tiles and states"
            yield Problem(key=(), reason=reason, fix="name a file of polygons, or list tiles or states")

    def _no_such_tile(self) -> Iterator[Problem]:
        for index, tile in enumerate(self.tiles or ()):
            z, x, y = map(int, tile.split("/"))
            if z > 24 or max(x, y) >= 2**z:
                fix = f"columns and rows at zoom {z} go from 0 to {2**z - 1}" if z <= 24 else "zoom ends at 24"
                yield Problem(key=("tiles", index), reason="is no tile", fix=fix)

    def _no_such_state(self) -> Iterator[Problem]:
        for index, state in enumerate(self.states or ()):
            if state not in US_STATES:
                yield Problem(key=("states", index), reason="is no US state", fix=suggest(state, US_STATES))


Sampler = PointsSampler | AreaSampler | BiomeSampler | CitiesSampler | XyzSampler
