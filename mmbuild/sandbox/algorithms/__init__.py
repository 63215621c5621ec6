"""The algorithms the offline Earth Engine knows, one file per family; importing this package registers all of them.

To add one: write a function under `@algorithm("Family.name")` whose parameters are the algorithm's arguments.
"""

from mmbuild.sandbox.algorithms import (
    aggregating,
    arithmetic,
    bands,
    collections,
    dates,
    distances,
    elements,
    exporting,
    filter_text,
    filters,
    geometries,
    joins,
    lists,
    masks,
    parsing,
    plain,
    profiles,
    projecting,
    reducing,
    regions,
    sampling,
    terrain,
)

__all__ = [
    "aggregating",
    "arithmetic",
    "bands",
    "collections",
    "dates",
    "distances",
    "elements",
    "exporting",
    "filter_text",
    "filters",
    "geometries",
    "joins",
    "lists",
    "masks",
    "parsing",
    "plain",
    "profiles",
    "projecting",
    "reducing",
    "regions",
    "sampling",
    "terrain",
]
