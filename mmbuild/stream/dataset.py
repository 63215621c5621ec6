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
    """Batches of several loaders, taken so that each gives its share of the samples; a batch is of one corpus.

    weights: shares, of any sum. Iterating gives one epoch: it ends when the first loader has been gone through once,
    and the next epoch goes on where the others stopped. Every rank chooses the same loader at the same step.
    """

    def __init__(self, loaders: Sequence[Loader], weights: Sequence[float]) -> None:
        if len(loaders) != len(weights) or not loaders:
            raise UserError(
                f"Mixture: {len(loaders)} loaders and {len(weights)} weights", fix="give one weight a loader"
            )
        if min(weights) <= 0:
            raise UserError(f"Mixture: weights {list(weights)} must be above 0", fix="leave out what has no share")
        self._loaders, self._weights = list(loaders), list(weights)
        self._taken = [0] * len(loaders)

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
        try:
            while True:
                which = order.next_corpus(self._taken, self._weights)
                loader = self._loaders[which]
                if which not in streams:
                    streams[which] = loader.resume()
                before = loader.place
                batch = next(streams[which], None)
                if batch is None:
                    return
                self._taken[which] += loader.given_since(before)
                yield batch | {"corpus": which}
                if loader.place[1] == 0:
                    return
        finally:
            for stream in streams.values():
                stream.close()  # type: ignore[attr-defined]
