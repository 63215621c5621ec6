"""Several sources as one: every modality is asked of its own, and the answers come back together.

It decides nothing; a source is asked only for what it keeps, so no request goes out for nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mmbuild.choose import Choice, Sample, Scene
from mmbuild.sources import Ask, Source, TellsCompute, Usage

if TYPE_CHECKING:
    import geopandas as gpd


class Several:
    """The Source made of a corpus's own one and of those that single modalities name.

    others: modality -> source; one object may stand for several modalities. Usage is that of all together.
    """

    def __init__(self, own: Source, others: Mapping[str, Source]) -> None:
        self.own, self.others, self.usage = own, dict(others), Usage()
        for source in self._all():
            source.usage = self.usage

    def _all(self) -> Iterator[Source]:
        """Each source once, the corpus's own first."""
        yield from {id(source): source for source in (self.own, *self.others.values())}.values()

    def identity(self) -> dict[str, Any]:
        """The corpus's own identity and that of each modality's source; one synthetic source makes it synthetic."""
        others = {name: source.identity() for name, source in sorted(self.others.items())}
        own = self.own.identity()
        synthetic = own["synthetic"] or any(other["synthetic"] for other in others.values())
        return {**own, "synthetic": synthetic, "others": others}

    def tells_compute(self) -> bool:
        return all(isinstance(source, TellsCompute) and source.tells_compute() for source in self._all())

    def search(self, samples: Sequence[Sample], asks: Mapping[int, Sequence[Ask]]) -> list[Scene]:
        scenes: list[Scene] = []
        for source in self._all():
            own = {slot: [a for a in all_ if self.keeper(a.modality.name) is source] for slot, all_ in asks.items()}
            asked = [sample for sample in samples if own[sample.slot]]
            scenes += source.search(asked, own) if asked else []
        return scenes

    def screen(self, pairs: Sequence[tuple[Sample, Scene]]) -> list[float | None]:
        found: dict[int, float | None] = {}
        for source in self._all():
            places = [i for i, (_, scene) in enumerate(pairs) if self.keeper(scene.modality) is source]
            if places:
                found |= zip(places, source.screen([pairs[i] for i in places]), strict=True)
        return [found[i] for i in range(len(pairs))]

    def read(self, sample: Sample, choices: Mapping[str, Choice]) -> dict[str, np.ndarray]:
        chips: dict[str, np.ndarray] = {}
        for source in self._all():
            own = {key: choice for key, choice in choices.items() if self.keeper(choice.modality) is source}
            chips |= source.read(sample, own) if own else {}
        return {key: chips[key] for key in choices if key in chips}

    def regions(self, name: str) -> gpd.GeoDataFrame:
        return self.own.regions(name)

    def keeper(self, modality: str) -> Source:
        """The source that a modality is asked of."""
        return self.others.get(modality, self.own)
