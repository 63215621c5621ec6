"""STAC Collections of recipes that nobody has built here: what a build would hold, and under which licences.

Nothing in them is counted or measured, and no file is named that is not there.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pystac

from mmbuild.catalog.collection import (
    EXTENSIONS,
    about_modality,
    licence_pages,
    licences_of,
    providers_of,
    spdx_of,
)
from mmbuild.recipe import Recipe
from mmbuild.times import parse_date

# Where UTM grids and XYZ tiles of the samplers can lie: no bound of a corpus is known before its places are drawn.
ANYWHERE = [-180.0, -80.0, 180.0, 84.0]


def describe(recipe: Recipe, file: str) -> dict[str, Any]:
    """The collection of a recipe as far as it is known before a build; ``file``: where the recipe lies."""
    inside = recipe.modality_defs
    about = recipe.description or recipe.title
    sizes = sorted({gsd for name in inside if (gsd := recipe.gsd(name)) is not None})
    return {
        "type": "Collection",
        "stac_version": pystac.get_stac_version(),
        "stac_extensions": [name for name in EXTENSIONS if "projection" not in name],
        "id": recipe.name,
        "title": recipe.title,
        "description": f"What a build of this recipe holds; nothing here is built. {about}",
        "keywords": list(inside),
        "license": spdx_of(recipe),
        "providers": providers_of(inside, synthetic=False),
        "extent": {"spatial": {"bbox": [ANYWHERE]}, "temporal": {"interval": [_interval(recipe)]}},
        "summaries": {"gsd": sizes},
        "links": [
            {"rel": "license", "href": url, "title": text}
            for text, url in licence_pages(recipe, inside, synthetic=False)
        ],
        "assets": {
            "recipe": {"href": file, "type": "application/yaml", "roles": ["metadata"], "title": "The recipe"},
        },
        "item_assets": {name: about_modality(m, recipe.gsd(name), None, {}) for name, m in inside.items()},
        "mmbuild:built": False,
        "mmbuild:samples": {"planned": recipe.samples},
        "mmbuild:licence": recipe.licence,
        "mmbuild:licences": list(licences_of(recipe, inside, synthetic=False)),
    }


def _interval(recipe: Recipe) -> list[str | None]:
    """When an anchor may lie: the recipe's years, or around its dates and as far back as their phase goes."""
    dates, years = getattr(recipe.times, "dates", None), recipe.anchor.years
    if dates:
        reach = timedelta(days=recipe.times.max_days)  # type: ignore[union-attr]
        back = timedelta(days=recipe.times.phase_days)  # type: ignore[union-attr]
        return [_text(parse_date(dates[0]) - back - reach), _text(parse_date(dates[-1]) + reach)]
    if not years:
        return [None, None]
    return [_text(datetime(year, 1, 1, tzinfo=UTC)) for year in (min(years), max(years) + 1)]


def _text(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%S}Z"
