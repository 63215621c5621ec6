"""The names that published code gives to the weights of our models, and back; nothing is read or written here.

CROMA has two layouts, that of its pretraining code and that of its released weights; Scale-ALiBi has the first.
A table maps the beginnings of names, ours to theirs; ``{n}`` stands for a number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Table = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Words:
    """What two dialects of one code call the same things; cross: what stands before q, k and v of cross-attention.

    down: the index of an MLP's second layer, which a dropout layer before it shifts.
    """

    qkv: str
    out: str
    cross: str
    down: str


PRETRAINING = Words(qkv="create_qkv", out="out", cross="create_", down="2")
RELEASED = Words(qkv="to_qkv", out="to_out", cross="to_", down="3")


def _attention(ours: str, theirs: str, words: Words) -> Table:
    return {
        f"{ours}norm.": f"{theirs}input_norm.",
        f"{ours}qkv.": f"{theirs}{words.qkv}.",
        f"{ours}out.": f"{theirs}{words.out}.",
    }


def _mlp(ours: str, theirs: str, words: Words) -> Table:
    return {
        f"{ours}norm.": f"{theirs}input_norm.",
        f"{ours}up.": f"{theirs}net.0.",
        f"{ours}down.": f"{theirs}net.{words.down}.",
    }


def _encoder(ours: str, theirs: str, words: Words) -> Table:
    return {f"{ours}embed.": f"{theirs}linear_input."} | _blocks(ours, f"{theirs}transformer.", words)


def _blocks(ours: str, theirs: str, words: Words) -> Table:
    block, layer = f"{ours}blocks.{{n}}.", f"{theirs}layers.{{n}}."
    return (
        _attention(f"{block}attention.", f"{layer}0.", words)
        | _mlp(f"{block}mlp.", f"{layer}1.", words)
        | {f"{ours}norm.": f"{theirs}norm_out."}
    )


def _fusion(ours: str, theirs: str, words: Words) -> Table:
    block, layer = f"{ours}blocks.{{n}}.", f"{theirs}layers.{{n}}."
    projections = {f"{block}cross.{one}.": f"{layer}1.{words.cross}{one}." for one in "qkv"}
    cross = {f"{block}cross.norm.": f"{layer}1.input_norm.", f"{block}cross.out.": f"{layer}1.to_out."}
    return (
        _attention(f"{block}attention.", f"{layer}0.", words)
        | projections
        | cross
        | _mlp(f"{block}mlp.", f"{layer}2.", words)
        | {f"{ours}norm.": f"{theirs}norm_out."}
    )


def _pool(ours: str, theirs: str) -> Table:
    return {f"{ours}norm.": f"{theirs}0.", f"{ours}up.": f"{theirs}1.", f"{ours}down.": f"{theirs}3."}


def _pretraining(sensors: Mapping[str, str], fusions: Mapping[str, str]) -> Table:
    """sensors: our role -> their word. fusions: our module -> theirs."""
    table = {
        "decoder.mask_token": "decoder.mask_token",
        "decoder.embed.": "decoder.encoder_to_decoder.",
        "decoder.out.": "decoder.linear_output.",
        "contrast.logit_scale": "global_contrast_loss.logit_scale",
        **_blocks("decoder.", "decoder.decoder.", PRETRAINING),
    }
    for ours, theirs in fusions.items():
        table |= _fusion(f"{ours}.", f"{theirs}.", PRETRAINING)
    for role, word in sensors.items():
        table |= _encoder(f"encoders.{role}.", f"{word}_encoder.", PRETRAINING)
        table |= _pool(f"pools.{role}.", f"GAP_FFN_{word}.")
        table[f"contrast.projections.{role}."] = f"global_contrast_loss.{word}_proj."
    return table


CROMA_PRETRAINING = _pretraining({"radar": "radar", "optical": "optical"}, {"fusion": "cross_encoder"})
SCALE_ALIBI = _pretraining({"radar": "radar", "lores": "optical", "hires": "hires"}, {"fusions.lores": "cross_encoder"})
# The five state dicts of a released CROMA file, joined by "/".
CROMA_RELEASED: Table = {
    **_encoder("encoders.radar.", "s1_encoder/", RELEASED),
    **_pool("pools.radar.", "s1_GAP_FFN/"),
    **_encoder("encoders.optical.", "s2_encoder/", RELEASED),
    **_pool("pools.optical.", "s2_GAP_FFN/"),
    **_fusion("fusion.", "joint_encoder/", RELEASED),
}


def renamer(table: Mapping[str, str]) -> Callable[[str], str | None]:
    """A function that exchanges the beginning of a name as ``table`` says; None when no entry fits."""
    patterns = [
        (re.compile(re.escape(ours).replace(r"\{n\}", r"(?P<n>\d+)")), theirs) for ours, theirs in table.items()
    ]

    def rename(name: str) -> str | None:
        for pattern, theirs in patterns:
            if found := pattern.match(name):
                return theirs.replace("{n}", found.groupdict().get("n", "")) + name[found.end() :]
        return None

    return rename


def inverse(table: Mapping[str, str]) -> Table:
    """The way back."""
    return {theirs: ours for ours, theirs in table.items()}
