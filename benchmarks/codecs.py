"""What each Blosc codec makes of the chips of a corpus: bytes a chip and decoding time beside HDF5's gzip.

    python -m benchmarks.codecs OUT [--chips N]

Times are CPU seconds of one thread. A corpus of the offline Earth is synthetic; measure your own.
"""

from __future__ import annotations

import argparse
import time
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
from numcodecs import blosc

from mmbuild.cube import Corpus, open_corpus

CANDIDATES = (("zstd", 1), ("zstd", 3), ("zstd", 5), ("lz4", 5), ("lz4", 9), ("lz4hc", 5), ("lz4hc", 9))
SHUFFLES = {0: "none", 1: "shuffle", 2: "bitshuffle"}
REPEATS = 3


def stored_chips(corpus: Corpus, name: str, most: int) -> list[np.ndarray]:
    step = max(1, corpus.n_slots // most)
    chips = (corpus.read_chip(name, slot) for slot in range(0, corpus.n_slots, step))
    return [chip for chip in chips if not (chip == corpus.layouts[name].modality.fill).all()]


def decode_us(packed: Sequence[bytes], out: np.ndarray) -> float:
    best = float("inf")
    for _ in range(REPEATS):
        began = time.thread_time()
        for chunk in packed:
            blosc.decompress(chunk, out)
        best = min(best, time.thread_time() - began)
    return best / len(packed) * 1e6


def gzip_row(chips: Sequence[np.ndarray]) -> tuple[float, float]:
    packed = [zlib.compress(chip.tobytes(), 4) for chip in chips]
    began = time.thread_time()
    for chunk in packed:
        zlib.decompress(chunk)
    return float(np.mean([len(chunk) for chunk in packed])), (time.thread_time() - began) / len(packed) * 1e6


def rows(chips: Sequence[np.ndarray]) -> Iterator[tuple[str, float, float]]:
    yield "gzip-4 (HDF5)", *gzip_row(chips)
    out = np.empty_like(chips[0])
    for name, level in CANDIDATES:
        for shuffle, word in SHUFFLES.items():
            packed = [bytes(blosc.compress(chip, name.encode(), level, shuffle, 0)) for chip in chips]
            yield f"{name}-{level} {word}", float(np.mean([len(chunk) for chunk in packed])), decode_us(packed, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus")
    parser.add_argument("--chips", type=int, default=16)
    given = parser.parse_args()
    corpus = open_corpus(given.corpus)
    blosc.set_nthreads(1)
    print(repr(corpus))
    for name in corpus.modalities:
        chips = stored_chips(corpus, name, given.chips)
        if corpus.gsd(name) is None or not chips:
            continue
        print(f"\n{name}: {len(chips)} chips of {chips[0].nbytes} bytes, {chips[0].dtype}")
        for label, size, us in rows(chips):
            print(f"  {label:22s} {size:9.0f} bytes  {chips[0].nbytes / size:6.2f}x  {us:8.1f} us")


if __name__ == "__main__":
    main()
