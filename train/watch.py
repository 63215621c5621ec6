"""A look at the features while a model trains: nearest neighbours among train samples, scored on validation samples."""

from __future__ import annotations

from collections.abc import Callable
from itertools import takewhile
from typing import Any

import numpy as np
import torch

from mmbuild.cube import Corpus
from mmbuild.errors import UserError
from mmbuild.stream.loader import Loader
from train import metrics
from train.config import LoopProbe, View
from train.labels import dominant_class
from train.views import Viewer

NEIGHBOURS = 20
BATCH = 32
SPLITS = ("train", "val")
COLUMN = "knn:"


class Watch:
    """Scores a model's frozen features on one label. Every process scores all samples: sharded weights need them all.

    inputs: the modalities that the model sees. crop: side of the centred window in pixels of the finest modality.
    """

    def __init__(
        self, corpus: Corpus, settings: LoopProbe, *, inputs: list[str], view: View, crop: int, device: torch.device
    ) -> None:
        self.settings, self._inputs, self._device = settings, inputs, device
        found = corpus.modalities.get(settings.label)
        if found is None or found.values != "categorical":
            known = ", ".join(m.name for m in corpus.modalities.values() if m.values == "categorical")
            reason = f"probe.label: no categorical modality {settings.label!r} in this corpus"
            raise UserError(reason, corpus.store.url, f"choose from {known}")

        def make(split: str) -> Callable[[], Loader]:
            names = [*inputs, settings.label]
            return lambda: Loader(
                corpus, split=split, modalities=names, batch_size=BATCH, shuffle=False, crop=crop, device=device,
                time=view.still_time,
            )  # fmt: skip

        self._loaders = {split: make(split) for split in SPLITS}
        fields = self._loaders["train"]().fields
        self._view = Viewer(view, fields, side=crop, seed=0, still=True)
        self._classes = next(field.n_classes for field in fields if field.name == settings.label)

    @property
    def columns(self) -> tuple[str, ...]:
        return (COLUMN + self.settings.label,)

    def is_due(self, step: int, total: int) -> bool:
        """Every so many steps, and at the end."""
        return step % self.settings.every == 0 or step == total

    def score(self, module: Any) -> dict[str, float]:
        """Accuracy on validation samples, NaN where a split has no label."""
        module.eval()
        (train, labels), (test, truth) = (self._features(module, split) for split in SPLITS)
        module.train()
        if not len(labels) or not len(truth):
            return {self.columns[0]: float("nan")}
        train, test = metrics.standardise(train, test)
        said = metrics.knn_predict(train, labels, test, k=NEIGHBOURS, weighted=True, classes=self._classes)
        return {self.columns[0]: float((said == truth).mean())}

    @torch.no_grad()
    def _features(self, module: Any, split: str) -> tuple[np.ndarray, np.ndarray]:
        """(n, d) features and (n,) class indexes of the samples that have one."""
        features: list[np.ndarray] = []
        codes: list[np.ndarray] = []
        loader = self._loaders[split]()
        limit = self.settings.samples
        for batch in takewhile(lambda _: sum(map(len, codes)) < limit, loader):
            seen = self._view(batch)
            features.append(module.features(seen).float().cpu().numpy())
            codes.append(dominant_class(seen[self.settings.label].cpu(), self._classes))
        x, y = np.concatenate(features)[:limit].astype(np.float64), np.concatenate(codes)[:limit]
        return x[y >= 0], y[y >= 0]
