"""Scale-ALiBi against the published code's own numbers and parameter counts, and against true distances."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.golden import close, detfill, fill_weights, needs_golden, recorded, same_gradients
from train.alibi import Grid, distances, pick, slopes
from train.contrastive import Contrast
from train.layouts import SCALE_ALIBI, renamer
from train.masking import removed_but
from train.models.croma import CROMA
from train.models.scale_alibi import ROLES, Compat, ScaleALiBi, removed_children, scrambled
from train.sensors import Sensor

CPU = torch.device("cpu")


def sensors(patch: int) -> dict[str, Sensor]:
    channels = {"radar": (2, 10.0), "lores": (3, 10.0), "hires": (3, 5.0)}
    return {
        role: Sensor(name=role, bands=("a", "b", "c")[:n], index=(0, 1, 2)[:n], patch=patch, gsd=gsd)
        for role, (n, gsd) in channels.items()
    }


def small(compat: Compat | None, **changes: object) -> ScaleALiBi:
    options = {"dim": 64, "depth": 4, "heads": 4, "decoder_dim": 32, **sensors(16)}
    return ScaleALiBi(**{**options, **changes}, compat=compat)  # type: ignore[arg-type]


def recorded_batch() -> dict[str, Tensor]:
    fill = detfill()
    batch = {
        role: torch.from_numpy(fill.image(f"salibi/{role}", 3, channels, side, side))
        for role, channels, side in (("radar", 2, 64), ("lores", 3, 64), ("hires", 3, 128))
    }
    return batch | {f"{role}_mask": torch.ones_like(x, dtype=torch.bool) for role, x in batch.items()}


# -- biases


def bias(heads: int, picked: Tensor) -> Tensor:
    return -slopes(heads)[:, None, None] * picked[:, None]


COARSE, FINE = Grid(height=4, width=4, token_m=160.0), Grid(height=8, width=8, token_m=80.0)


@needs_golden
def test_golden_biases_inside_each_resolution() -> None:
    golden = recorded("alibi")
    close(bias(4, distances(COARSE, COARSE, 160.0, CPU)[None]), golden["scale_alibi/h4_L16_s1"])
    close(bias(4, distances(FINE, FINE, 160.0, CPU)[None]), golden["scale_alibi/h4_L64_s0.5"])


@needs_golden
def test_golden_the_scrambled_bias_between_resolutions_and_the_true_one() -> None:
    """Defect S5: what the code looks up is no distance; ours is the distance of token centres."""
    golden = recorded("alibi")
    queries, keys = (torch.from_numpy(golden[f"scale_cross/ids_keep_{one}"]) for one in "qk")
    for ids, name, tokens in ((queries, "lores", 16), (keys, "hires", 64)):
        noise = detfill().arr(f"scale/noise_{name}", (2, tokens))
        assert torch.equal(detfill().mask_from_noise(noise, 0.4)["ids_keep"], ids)
    fine = distances(FINE, FINE, 160.0, CPU)
    close(bias(4, fine[:, ::4][None]), golden["scale_cross/strided_h4"])
    close(bias(4, pick(scrambled(fine, 16), queries, keys)), golden["scale_cross/code_masked"])
    true = distances(COARSE, FINE, 160.0, CPU)
    close(bias(4, true[None]), golden["scale_cross/geometric_h4_DERIVED"])
    close(bias(4, pick(true, queries, keys)), golden["scale_cross/geometric_masked_DERIVED"])
    assert abs(np.corrcoef(true.flatten(), scrambled(fine, 16).flatten())[0, 1]) < 0.2


@needs_golden
def test_golden_a_coarse_token_is_removed_where_any_child_is() -> None:
    golden = recorded("alibi")
    removed = torch.from_numpy(golden["scale_hires_mask/mask"]).bool()
    close(removed_children(removed, (8, 8), 2).float(), golden["scale_hires_mask/pooled"])


# -- the model


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return recorded("scale_alibi_small")


@pytest.fixture(scope="module")
def reference() -> ScaleALiBi:
    model = small("reference")
    fill_weights(model, renamer(SCALE_ALIBI))
    return model


def recorded_masks(golden: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {role: torch.from_numpy(golden[f"ids_keep_{word}"]).long() for role, word in zip(ROLES, "roh", strict=True)}


@needs_golden
def test_golden_masks_follow_from_the_recorded_noise(golden: dict) -> None:
    for role, kept, word, tokens in zip(ROLES, recorded_masks(golden).values(), "roh", (16, 16, 64), strict=True):
        noise = detfill().arr(f"salibi/noise_{role}", (3, tokens))
        assert torch.equal(detfill().mask_from_noise(noise, 0.4)["ids_keep"], kept)
        removed = removed_but(kept, tokens)
        removed = removed_children(removed, (8, 8), 2) if role == "hires" else removed
        close(removed.float(), golden[f"mask_for_mae_{word}"])


@needs_golden
def test_golden_encodings_and_predictions(reference: ScaleALiBi, golden: dict) -> None:
    seen: dict[str, list[Tensor]] = {}

    def note(name: str, _module: nn.Module, _given: object, out: Tensor) -> None:
        seen.setdefault(name, []).append(out)

    modules = {**reference.encoders, "joint": reference.fusions["lores"], "decoder": reference.decoder}
    hooks = [module.register_forward_hook(functools.partial(note, name)) for name, module in modules.items()]
    with torch.no_grad():
        reference(recorded_batch(), recorded_masks(golden))
    for hook in hooks:
        hook.remove()
    pooled = reference.pool({role: seen[role][0] for role in ROLES})
    for role in ROLES:
        close(seen[role][0], golden[f"{role}_enc"])
        close(pooled[role], golden[f"{role}_gap" if role != "hires" else "hires_gap_via_GAP_FFN_optical"])
    close(seen["joint"][0], golden["joint_1"])
    close(seen["joint"][1], golden["joint_2"])
    close(seen["decoder"][0][:, :1], golden["pred_tok0"])


@needs_golden
def test_golden_losses_and_gradients(reference: ScaleALiBi, golden: dict) -> None:
    reference.zero_grad()
    losses = reference(recorded_batch(), recorded_masks(golden))
    losses.total.backward()
    close(losses.per_task["contrastive"], golden["contrastive_loss"])
    close(sum(losses.per_task[role] for role in ROLES), golden["mae_loss"])
    # The pool that the published code gives the fine sensor is never used there, and ours has none in compat.
    names, norms = golden["grad_names"], golden["grad_l2"]
    same_gradients(reference, names, norms, renamer(SCALE_ALIBI), absent=6)


@needs_golden
def test_golden_each_contrast_and_the_symmetric_one(reference: ScaleALiBi, golden: dict) -> None:
    """Defect S2: the code contrasts the fine sensor with itself; ours takes all three pairs in both directions."""
    pooled = {role: torch.from_numpy(golden[f"{role}_gap"]) for role in ("radar", "lores")}
    pooled["hires"] = torch.from_numpy(golden["hires_gap_via_GAP_FFN_optical"])
    present = {role: torch.ones(3, dtype=torch.bool) for role in ROLES}
    with torch.no_grad():
        found = [total / count for total, count in reference.contrast(pooled, present)]
        for ours, name in zip(found, ("ce_o_r", "ce_r_o", "ce_h_h"), strict=True):
            close(ours, golden[name])
        symmetric: Contrast = small(None).contrast
        symmetric.load_state_dict(reference.contrast.state_dict())
        six = [total / count for total, count in symmetric(pooled, present)]
    assert len(six) == 6
    assert not any(a == b for a, b in symmetric.pairs)
    close(sum(six) / 6, golden["symmetric3_DERIVED"])


@needs_golden
def test_golden_projections_of_whole_images(reference: ScaleALiBi, golden: dict) -> None:
    with torch.no_grad():
        found = reference.encode(recorded_batch())
    for role in ROLES:
        close(found[role][:1], golden[f"project/{role}/enc0"])
        close(found[f"pooled_{role}"], golden[f"project/{role}/proj"])


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# The unused pool of the published code (4,723,968) and its fixed position table (256 x 512) are not among ours.
@pytest.mark.parametrize(("patch", "trainable"), [(16, 291_371_777), (8, 289_535_233 - 256 * 512)])
def test_golden_published_numbers_of_parameters(patch: int, trainable: int) -> None:
    with torch.device("meta"):
        model = ScaleALiBi(**sensors(patch), dim=768, depth=12, heads=16, compat="reference")
        corrected = ScaleALiBi(**sensors(patch), dim=768, depth=12, heads=16)
    assert count(model) + 4_723_968 == trainable
    assert count(corrected) == trainable + count(model.fusions["lores"])


@pytest.mark.parametrize(("patch", "total"), [(16, 200_175_361), (8, 198_945_601)])
def test_golden_numbers_of_parameters_of_its_baseline(patch: int, total: int) -> None:
    three = sensors(patch)
    with torch.device("meta"):
        model = CROMA(radar=three["radar"], optical=three["lores"], dim=768, depth=12, heads=16)
    assert count(model) + 256 * 512 == total


@needs_golden
def test_golden_number_of_parameters_of_the_small_model(reference: ScaleALiBi, golden: dict) -> None:
    pool = count(reference.pools["lores"])
    assert count(reference) + pool + 16 * 32 == int(golden["n_params"])
