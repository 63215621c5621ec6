"""The words of Earth Engine's little languages (`image.expression`, filters as text), and a cursor over them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mmbuild.sandbox.values import EarthEngineError

_WORD = re.compile(
    r"""\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<name>[A-Za-z_][\w:]*(?<!:)|[A-Za-z_]\w*)"""
    r"""|(?P<text>'[^']*'|"[^"]*")|(?P<sign>\*\*|&&|\|\||[=!<>]=|[-+*/%<>!^?:()\[\],.=]))"""
)


@dataclass(frozen=True)
class Word:
    """kind: number, name, text, sign, or end."""

    kind: str
    text: str
    position: int

    @property
    def number(self) -> int | float:
        return int(self.text) if self.text.isdigit() else float(self.text)


class Words:
    """Steps through a text word by word; a refusal names the algorithm, the place and the text."""

    def __init__(self, text: str, algorithm: str, *, colons: bool = False) -> None:
        self.text, self.algorithm, self.place = text, algorithm, 0
        self.all = self._split(colons)

    def _split(self, colons: bool) -> list[Word]:
        """The words, an end mark last; with `colons` a name may have them inside (`system:index`)."""
        found, position, length = [], 0, len(self.text.rstrip())
        while position < length:
            match = _WORD.match(self.text, position)
            if match is None:
                character = self.text[position:].lstrip()[0]
                raise self.refused(position, f"Unexpected character '{character}'")
            kind = str(match.lastgroup)
            word = match.group(kind)
            if kind == "name" and not colons:
                word = word.partition(":")[0]
            found.append(Word(kind, word, match.start(kind)))
            position = match.start(kind) + len(word)
        return [*found, Word("end", "the end", len(self.text))]

    @property
    def next(self) -> Word:
        return self.all[self.place]

    def step(self) -> Word:
        """The next word, stepped over."""
        self.place += 1
        return self.all[self.place - 1]

    def take(self, *signs: str) -> str | None:
        """Step over the next word if it is one of these signs or names."""
        if self.next.kind in ("sign", "name") and self.next.text in signs:
            return self.step().text
        return None

    def need(self, sign: str) -> None:
        if self.take(sign) is None:
            raise self.unexpected()

    def unexpected(self) -> EarthEngineError:
        return self.refused(self.next.position, f"Unexpected '{self.next.text}'")

    def refused(self, position: int, problem: str) -> EarthEngineError:
        return EarthEngineError(f"{self.algorithm}: {problem} at position {position} of '{self.text}'.")
