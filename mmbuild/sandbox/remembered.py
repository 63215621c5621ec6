"""Answers that are worked out many at a time, and remembered for threads that ask at once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

Question = TypeVar("Question")
Answer = TypeVar("Answer")


class Remembered(Generic[Question, Answer]):
    """work: the answers to questions, in their order, None for none of them. key: what tells a question from others.

    Where more than ``most`` are remembered, all are forgotten.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Question]], Sequence[Answer]],
        *,
        key: Callable[[Question], Hashable],
        most: int,
    ) -> None:
        self._work, self._key, self.most = work, key, most
        self._kept: dict[Hashable, Answer] = {}

    def __call__(self, questions: Sequence[Question]) -> list[Answer]:
        """The answer to each; those that are new are worked out together, each once."""
        keys = [self._key(one) for one in questions]
        # Another thread may forget everything at any time: what is answered is in `known` alone.
        known = {key: answer for key in keys if (answer := self._kept.get(key)) is not None}
        new = {key: one for key, one in zip(keys, questions, strict=True) if key not in known}
        if new:
            found = dict(zip(new, self._work(list(new.values())), strict=True))
            if len(self._kept) > self.most:
                self._kept.clear()
            self._kept.update(found)
            known |= found
        return [known[key] for key in keys]
