"""The algorithms the offline Earth Engine knows, one file per family; importing this package registers all of them.

To add one: write a function under `@algorithm("Family.name")` whose parameters are the algorithm's arguments.
"""

from mmbuild.sandbox.algorithms import (
    arithmetic,
    bands,
    collections,
    dates,
    elements,
    filters,
    geometries,
    joins,
    lists,
    plain,
    projecting,
    reducing,
    regions,
    terrain,
)

__all__ = [
    "arithmetic",
    "bands",
    "collections",
    "dates",
    "elements",
    "filters",
    "geometries",
    "joins",
    "lists",
    "plain",
    "projecting",
    "reducing",
    "regions",
    "terrain",
]
