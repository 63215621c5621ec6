"""The names and shapes that published code gives to the weights of our models; nothing is read or written here.

CROMA has two layouts, that of its pretraining code and that of its released weights; Scale-ALiBi has the first.
MP-MAE's published weights are those of sparse convolutions, whose kernels lie otherwise than those of dense ones.
A table maps the beginnings of names, ours to theirs; ``{n}`` stands for a number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

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
# The decoder's fixed positions, which ours computes.
POSITIONS = "decoder.decoder_pos_embed"
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


# -- MP-MAE

# What each of MP-MAE's own modules is called there; decoders and heads carry a task's name, see below.
MPMAE: Table = {
    "encoder.": "encoder.",
    "proj.": "proj.",
    "mask_token": "mask_token",
    "image_norm.": "layer_norm_tmp.",
    "loss.log_vars": "loss_fn.log_vars",
}
DECODERS, HEADS = "decoder_dict.", "pred_dict."


def densify(name: str, value: Tensor) -> tuple[str, Tensor]:
    """One sparse weight as the dense one; a dense weight as it is.

    A kernel (K, in, out) becomes (out, in, k, k), a depthwise one (K, dim) becomes (dim, 1, k, k); the row is the
    faster index of K = k x k. Biases and gates lose or gain an axis; ``.ln`` and ``.linear`` disappear from names.
    Source: MMEarth-train, helpers.remap_checkpoint_keys; a 1 x 1 kernel that is not depthwise has no K at all.
    """
    if name.endswith(".kernel"):
        if name.endswith("stem_orig.0.kernel") and value.ndim == 2:
            value = value[None]
        value = value[:, None] if value.ndim == 2 else value
        side = round(len(value) ** 0.5)
        value = value.reshape(side, side, *value.shape[1:]).permute(3, 2, 1, 0)
        return name.removesuffix("kernel") + "weight", value.contiguous()
    name = name.replace(".ln.", ".").replace(".linear.", ".")
    if name.endswith((".grn.gamma", ".grn.beta")):
        return name, value.reshape(1, 1, 1, -1)
    return name, value[0] if name.endswith("bias") and value.ndim == 2 else value


def sparsify(name: str, value: Tensor) -> tuple[str, Tensor]:
    """The way back, for names of the encoder."""
    module, _, kind = name.rpartition(".")
    if value.ndim == 4 and kind == "weight":
        kernel = value.permute(3, 2, 1, 0).flatten(0, 1)
        depthwise = module.endswith(("dwconv", "stem.0"))
        kernel = kernel[:, 0] if depthwise else kernel
        alone = len(kernel) == 1 and not depthwise
        return f"{module}.kernel", (kernel[0] if alone else kernel).contiguous()
    if kind in ("gamma", "beta"):
        return name, value.reshape(1, -1)
    if re.search(r"(norm|initial_conv\.1|stem\.1|stem_orig\.1|downsample_layers\.\d\.0)$", module):
        return f"{module}.ln.{kind}", value
    if re.search(r"pwconv\d$", module):
        return f"{module}.linear.{kind}", value
    return name, value[None] if kind == "bias" else value
