"""`mmbuild bench`: how fast a corpus streams here, and where the time goes."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from mmbuild.cli.options import JsonOption, OutArg, console


def bench(
    out: OutArg,
    modalities: Annotated[str | None, typer.Option(metavar="A,B", help="Only these modalities or aliases.")] = None,
    crop: Annotated[int | None, typer.Option(min=1, metavar="PX", help="A centre window, finest pixels.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples a batch.")] = 128,
    threads: Annotated[int | None, typer.Option(min=1, help="Decoding threads; as many as there are cores.")] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long to measure, about.")] = 5.0,
    raw: Annotated[bool, typer.Option("--raw", help="Stored values, without masks and normalisation.")] = False,
    augment: Annotated[bool, typer.Option("--augment", help="Random windows, flips and turns.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure how fast a corpus streams on this machine, beside the memory-copy limit, and where the time goes."""
    from mmbuild.cube import open_corpus
    from mmbuild.stream.bench import default_threads, measure

    corpus = open_corpus(out)
    speed = measure(
        corpus, seconds=seconds, modalities=None if modalities is None else modalities.split(","), crop=crop, raw=raw,
        batch_size=batch_size, threads=threads or default_threads(), augment=augment,
        shuffle=True if corpus.store.is_local else "blocks",
    )  # fmt: skip
    if as_json:
        print(json.dumps(asdict(speed), indent=1))
        return
    other = 1 - speed.read_share - speed.decode_share - speed.copy_share
    table = Table(title=repr(corpus), show_header=False, title_justify="left")
    for what, value in (
        ("samples a second", f"{speed.samples_per_s:,.0f}  ({speed.samples} measured)"),
        ("memory-copy limit", f"{speed.copy_limit_samples_per_s:,.0f} samples/s; {speed.share_of_limit:.0%} reached"),
        ("decoded, read", f"{speed.decoded_mb_per_s:,.0f} MB/s, {speed.read_mb_per_s:,.0f} MB/s"),
        ("first batch", f"{speed.first_batch_s:.2f} s after opening"),
        ("CPU a sample", f"{speed.cpu_us_per_sample:,.0f} us"),
        ("peak memory", f"{speed.peak_memory_mb:,.0f} MB, Python and libraries included"),
        (
            f"time of {speed.threads} threads",
            f"read {speed.read_share:.0%}, decode {speed.decode_share:.0%}, copy {speed.copy_share:.0%}, "
            f"rest {max(0.0, other):.0%}",
        ),
        ("the consumer waited", f"{speed.consumer_wait_share:.0%} of the time"),
    ):
        table.add_row(what, value)
    console.print(table)
    if not speed.compiled:
        console.print(
            "decoded in Python, which is slower with several threads: this installation has no compiled code. Where "
            "there is a C compiler, pip install --force-reinstall --no-deps -e . in mmbuild's folder builds it",
            soft_wrap=True,
        )
