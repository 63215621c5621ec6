"""Random access to the samples of a corpus, for DataLoaders with worker processes, and several loaders as one stream.

Worker processes cost more than they give (pickling, a second copy): ``Loader`` is the fast way. This one is for people
who need a sampler of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset

from mmbuild.errors import UserError
from mmbuild.stream import order
from mmbuild.stream.loader import Batch, Loader


class Samples(Dataset[Batch]):
    """Map-style: ``samples[i]`` is one sample with the entries of a Loader's batch, without its first axis.

    Takes the options of Loader; order, ranks and batches are the DataLoader's business. It can be pickled, forked and
    spawned (spawned only on an object store, whose client does not survive a fork). With ``collate`` batches are those
    of a Loader.
    """

    def __init__(self, corpus: Any, **options: Any) -> None:
        for name in ("batch_size", "shuffle", "rank", "world_size", "drop_last", "prefetch", "device"):
            if name in options:
                raise UserError(f"Samples: {name} is not its business", fix="give it to the DataLoader")
        options.setdefault("threads", 1)
        self._loader = Loader(corpus, batch_size=1, **options)

        self.fields = self._loader.fields

    def __len__(self) -> int:
        return self._loader.n_samples

    def __getitem__(self, index: int) -> Batch:
        batch = self.__getitems__([index])[0]
        return batch

    def __getitems__(self, indexes: Sequence[int]) -> list[Batch]:
        """Several at once, as DataLoader asks for them."""
        n = len(self)
        for index in indexes:
            if not -n <= index < n:
                raise IndexError(f"sample {index} must be 0 to {n - 1}")
        positions = np.array([index % n for index in indexes], dtype=np.int64)
        return [self._loader.one(position) for position in positions.tolist()]


def collate(samples: Sequence[Batch]) -> Batch:
    """The batch of some samples, as a Loader would give it."""
    batch: Batch = {}
    for key, value in samples[0].items():
        values = [sample[key] for sample in samples]
        if isinstance(value, torch.Tensor):
            batch[key] = torch.stack(values)
        else:
            batch[key] = values if key == "id" else value
    return batch


class Mixture(IterableDataset[Batch]):
    """Batches of several loaders as one stream; iterating gives one epoch.

    weights: shares of the samples, of any sum: a batch is of one corpus, ``corpus`` says of which, and every rank
    chooses the same at the same step. Without weights every batch joins one batch of each loader, so that their batch
    sizes are the shares; ``corpus`` is then (B,) int64, and the fields of all have to be alike.
    An epoch ends when the first loader has been gone through once, and the next one goes on where the others stopped.
    """

    def __init__(self, loaders: Sequence[Loader], weights: Sequence[float] | None = None) -> None:
        if not loaders or (weights is not None and len(loaders) != len(weights)):
            told = "no weights" if weights is None else f"{len(weights)} weights"
            raise UserError(f"Mixture: {len(loaders)} loaders and {told}", fix="give one weight a loader")
        if weights is not None and min(weights) <= 0:
            raise UserError(f"Mixture: weights {list(weights)} must be above 0", fix="leave out what has no share")
        self._loaders, self._weights = list(loaders), None if weights is None else list(weights)
        self._taken = [0] * len(loaders)
        if weights is None:
            _check_alike(self._loaders)

    def state_dict(self) -> dict[str, Any]:
        """The states of the loaders and how many samples each has given."""
        return {"taken": list(self._taken), "loaders": [loader.state_dict() for loader in self._loaders]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state, on any number of ranks; UserError as the loaders say."""
        if len(state["taken"]) != len(self._loaders):
            reason = f"mixture state: of {len(state['taken'])} loaders, there are {len(self._loaders)}"
            raise UserError(reason, fix="use the loaders of the run that saved it")
        for loader, own in zip(self._loaders, state["loaders"], strict=True):
            loader.load_state_dict(own)
        self._taken = [int(count) for count in state["taken"]]

    def __iter__(self) -> Iterator[Batch]:
        streams: dict[int, Iterator[Batch]] = {}
        every = list(range(len(self._loaders)))
        try:
            while True:
                step = every if self._weights is None else [order.next_corpus(self._taken, self._weights)]
                batches = [self._next(which, streams) for which in step]
                found = [batch for batch in batches if batch is not None]
                if len(found) < len(step):
                    return
                yield _joined(found) if self._weights is None else found[0] | {"corpus": step[0]}
                if any(self._loaders[which].place[1] == 0 for which in step):
                    return
        finally:
            for stream in streams.values():
                stream.close()  # type: ignore[attr-defined]

    def _next(self, which: int, streams: dict[int, Iterator[Batch]]) -> Batch | None:
        """The next batch of one loader, from where it is in its own epoch."""
        loader = self._loaders[which]
        if which not in streams:
            streams[which] = loader.resume()
        before = loader.place
        batch = next(streams[which], None)
        if batch is not None:
            self._taken[which] += loader.given_since(before)
        return batch


def _check_alike(loaders: Sequence[Loader]) -> None:
    """UserError where batches cannot be joined."""
    forms = [{f.name: (f.bands, f.shape, f.n_classes, f.is_alias) for f in loader.fields} for loader in loaders]
    for i, other in enumerate(forms[1:], start=1):
        for name in sorted(forms[0].keys() | other.keys()):
            if forms[0].get(name) != other.get(name):
                reason = f"Mixture: {name} of loader {i} is not like that of loader 0: they cannot be joined"
                raise UserError(reason, fix="name the modalities that they share, at one crop, or give weights")


def _joined(batches: Sequence[Batch]) -> Batch:
    """One batch of several, in their order; ``epoch`` is the latest of them."""
    joined: Batch = {}
    for key, value in batches[0].items():
        if isinstance(value, torch.Tensor):
            joined[key] = torch.cat([batch[key] for batch in batches])
        elif key == "id":
            joined[key] = [sample_id for batch in batches for sample_id in batch["id"]]
        else:
            joined[key] = max(batch[key] for batch in batches) if key == "epoch" else value
    sizes = torch.tensor([len(batch["id"]) for batch in batches])
    return joined | {"corpus": torch.repeat_interleave(torch.arange(len(batches)), sizes)}
