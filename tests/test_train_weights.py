"""Published weights: their names and shapes as they are in the published files, there and back, and what is refused."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmbuild.errors import UserError
from tests.golden import needs_golden, recorded
from tests.test_train_croma import SENSORS
from tests.test_train_mpmae import MMEARTH, mmearth_tasks
from tests.test_train_scale_alibi import sensors as scale_sensors
from train import layouts
from train.losses import Task
from train.models.croma import CROMA
from train.models.mpmae import MPMAE
from train.models.scale_alibi import ScaleALiBi
from train.mpmae_weights import band_places, export_mpmae, load_mpmae
from train.weights import export_croma, export_scale_alibi, load_croma, load_scale_alibi

# -- CROMA


def croma(seed: int, **changes: Any) -> CROMA:
    torch.manual_seed(seed)
    return CROMA(**{"dim": 32, "depth": 4, "heads": 4, "decoder_dim": 16, **SENSORS, **changes})


def released_shapes(dim: int, depth: int) -> dict[str, dict[str, tuple[int, ...]]]:
    """A released file, written down from the published description."""

    def norm(name: str) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}

    def mlp(name: str) -> dict[str, tuple[int, ...]]:
        first = {f"{name}.net.0.weight": (4 * dim, dim), f"{name}.net.0.bias": (4 * dim,)}
        last = {f"{name}.net.3.weight": (dim, 4 * dim), f"{name}.net.3.bias": (dim,)}
        return first | last | norm(f"{name}.input_norm")

    def attention(name: str, projections: dict[str, int]) -> dict[str, tuple[int, ...]]:
        maps = {f"{name}.{one}.weight": (n * dim, dim) for one, n in projections.items()}
        return maps | {f"{name}.to_out.weight": (dim, dim), f"{name}.to_out.bias": (dim,)} | norm(f"{name}.input_norm")

    def encoder(channels: int, layers: int) -> dict[str, tuple[int, ...]]:
        made = {"linear_input.weight": (dim, 64 * channels), "linear_input.bias": (dim,)}
        for n in range(layers):
            made |= attention(f"transformer.layers.{n}.0", {"to_qkv": 3}) | mlp(f"transformer.layers.{n}.1")
        return made | norm("transformer.norm_out")

    joint = norm("norm_out")
    for n in range(depth // 2):
        joint |= attention(f"layers.{n}.0", {"to_qkv": 3})
        joint |= attention(f"layers.{n}.1", {"to_q": 1, "to_k": 1, "to_v": 1}) | mlp(f"layers.{n}.2")
    pool = norm("0") | {"1.weight": (4 * dim, dim), "1.bias": (4 * dim,), "3.weight": (dim, 4 * dim), "3.bias": (dim,)}
    return {
        "s1_encoder": encoder(2, depth // 2), "s1_GAP_FFN": pool, "s2_encoder": encoder(12, depth), "s2_GAP_FFN": pool,
        "joint_encoder": joint,
    }  # fmt: skip


def released(dim: int = 32, depth: int = 4) -> dict[str, dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(5)
    return {
        top: {name: torch.randn(shape, generator=draw) for name, shape in part.items()}
        for top, part in released_shapes(dim, depth).items()
    }


def test_a_released_croma_file_loads_and_is_written_again_with_the_same_names_and_values(tmp_path: Path) -> None:
    content = released()
    torch.save(content, tmp_path / "CROMA_small.pt")
    model = croma(0)
    found = load_croma(model, tmp_path / "CROMA_small.pt")
    assert not found.unused
    assert {name for name, _ in model.named_parameters()} - set(found.loaded) == {
        name for name, _ in model.named_parameters() if name.startswith(("decoder.", "contrast."))
    }
    assert torch.equal(model.fusion.blocks[1].cross.k.weight, content["joint_encoder"]["layers.1.1.to_k.weight"])
    assert torch.equal(model.pools["radar"].down.bias, content["s1_GAP_FFN"]["3.bias"])
    export_croma(model, tmp_path / "again.pt")
    again = torch.load(tmp_path / "again.pt", weights_only=True)
    assert again.keys() == content.keys()
    for top, part in content.items():
        assert again[top].keys() == part.keys()
        assert all(torch.equal(again[top][name], value) for name, value in part.items())


def test_released_croma_base_and_large_have_the_layout_of_our_models() -> None:
    for dim, depth in ((768, 12), (1024, 24)):
        with torch.device("meta"):
            model = CROMA(**SENSORS, dim=dim, depth=depth, heads=16)
        rename = layouts.renamer(layouts.CROMA_RELEASED)
        ours = {rename(name): tuple(value.shape) for name, value in model.state_dict().items() if rename(name)}
        flat = {f"{top}/{k}": shape for top, part in released_shapes(dim, depth).items() for k, shape in part.items()}
        assert ours == flat


def test_cromas_pretraining_layout_holds_everything_and_comes_back(tmp_path: Path) -> None:
    first, second = croma(0), croma(1)
    export_croma(first, tmp_path / "pretraining.pt", "pretraining")
    content = torch.load(tmp_path / "pretraining.pt", weights_only=True)
    assert content["decoder.decoder_pos_embed"].shape == (1, 225, 16)
    assert "cross_encoder.layers.0.1.create_k.weight" in content
    assert load_croma(second, tmp_path / "pretraining.pt").unused == ("decoder.decoder_pos_embed",)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_weights_of_another_size_are_refused_with_every_difference_and_nothing_is_changed(tmp_path: Path) -> None:
    content = released(dim=48, depth=6)
    del content["s1_encoder"]["linear_input.bias"]
    torch.save(content, tmp_path / "other.pt")
    model = croma(0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError) as refused:
        load_croma(model, tmp_path / "other.pt")
    text = str(refused.value)
    assert "other.pt" in text
    assert "1 missing: s1_encoder/linear_input.bias" in text
    assert "unknown: s1_encoder/transformer.layers.2.0.to_qkv.weight" in text
    assert "s1_encoder/linear_input.weight (48, 128) where (32, 128) is needed" in text
    assert "check the model's size, patch, bands and tasks" in text
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_what_is_no_checkpoint_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such file"):
        load_croma(croma(0), tmp_path / "absent.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UserError, match="holds a list, not named weights"):
        load_croma(croma(0), tmp_path / "list.pt")
    (tmp_path / "text.pt").write_text("no checkpoint")
    with pytest.raises(UserError, match="no checkpoint that can be read safely"):
        load_croma(croma(0), tmp_path / "text.pt")


class Trap:
    """Runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_file_cannot_run_code(tmp_path: Path) -> None:
    torch.save({"model": Trap(tmp_path / "sprung")}, tmp_path / "trap.pt")
    with pytest.raises(UserError, match="no checkpoint that can be read safely"):
        load_croma(croma(0), tmp_path / "trap.pt")
    assert not (tmp_path / "sprung").exists()


# -- Scale-ALiBi


def scale(seed: int, **changes: Any) -> ScaleALiBi:
    torch.manual_seed(seed)
    return ScaleALiBi(**{"dim": 32, "depth": 2, "heads": 4, "decoder_dim": 16, **scale_sensors(16), **changes})


def test_scale_alibis_layout_comes_back_in_compat_and_is_refused_for_the_corrected_model(tmp_path: Path) -> None:
    path = tmp_path / "salibi.pth"
    first, second = scale(0, compat="reference"), scale(1, compat="reference")
    export_scale_alibi(first, path)
    found = load_scale_alibi(second, path)
    assert sorted(found.unused) == ["GAP_FFN_hires.0.bias", "GAP_FFN_hires.0.weight", "GAP_FFN_hires.1.bias",
                                    "GAP_FFN_hires.1.weight", "GAP_FFN_hires.3.bias", "GAP_FFN_hires.3.weight",
                                    "decoder.decoder_pos_embed"]  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    with pytest.raises(UserError, match=r"train with model\.compat: reference"):
        export_scale_alibi(scale(0), path)


@needs_golden
def test_golden_names_of_scale_alibi_and_croma_are_all_ours(tmp_path: Path) -> None:
    export_scale_alibi(scale(0, compat="reference", depth=4), tmp_path / "s.pt")
    export_croma(croma(0), tmp_path / "c.pt", "pretraining")
    for file, names in (("s.pt", "scale_alibi_small/grad_names"), ("c.pt", "croma_pretrain_small/shared/grad_names")):
        golden, _, key = names.partition("/")
        written = torch.load(tmp_path / file, weights_only=True).keys() - {"decoder.decoder_pos_embed"}
        assert written == set(recorded(golden)[key].tolist())


# -- MP-MAE


def renamed(theirs: str) -> str:
    """Another name for a task than the file's, as a corpus would have."""
    return f"our_{theirs}"


NAMES = {renamed(name): name for name, *_ in MMEARTH}


def mpmae(seed: int, **changes: Any) -> MPMAE:
    tasks = [Task(**{**vars(task), "name": renamed(task.name)}) for task in mmearth_tasks(16)]
    options = {"size": "atto", "input": "our_sentinel2", "bands": 12, "patch": 16, "tasks": tasks, "decoder_dim": 32}
    model = MPMAE(**{**options, **changes})
    model.init_weights(torch.Generator().manual_seed(seed))
    draw = torch.Generator().manual_seed(seed + 100)
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    return model


@needs_golden
def test_golden_sparse_to_dense_remap() -> None:
    golden = recorded("mmearth_remap_lr")
    sparse = {name.removeprefix("sparse/"): value for name, value in golden.items() if name.startswith("sparse/")}
    dense = {name.removeprefix("dense/"): value for name, value in golden.items() if name.startswith("dense/")}
    ours = dict(layouts.densify(name, torch.from_numpy(value)) for name, value in sparse.items())
    assert {name.removeprefix("encoder.") for name in ours} == dense.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(value.numpy(), dense[name.removeprefix("encoder.")])
        back, again = layouts.sparsify(name, value)
        np.testing.assert_array_equal(again.numpy(), sparse[back])


# Facts 3.4: shapes of the published atto file, at patch 16 and 8.
PUBLISHED_SHAPES = {
    "encoder.initial_conv.0.kernel": (9, 12, 40),
    "encoder.initial_conv.0.bias": (1, 40),
    "encoder.initial_conv.1.ln.weight": (40,),
    "encoder.stem.0.kernel": (4, 40),
    "encoder.downsample_layers.0.1.kernel": (4, 40, 80),
    "encoder.stages.0.0.dwconv.kernel": (49, 40),
    "encoder.stages.0.0.pwconv1.linear.weight": (160, 40),
    "encoder.stages.0.0.grn.gamma": (1, 160),
    "proj.weight": (32, 320, 1, 1),
    "mask_token": (1, 32, 1, 1),
    "decoder_dict.biome.0.grn.gamma": (1, 1, 1, 128),
    "pred_dict.sentinel2.weight": (3072, 32, 1, 1),
    "pred_dict.eco_region.weight": (846, 32),
    "layer_norm_tmp.weight": (32,),
    "loss_fn.log_vars": (12,),
}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, MPMAE]:
    """A file as MMEarth-train leaves it, with the arguments of its run, and the model whose weights are in it."""
    folder = tmp_path_factory.mktemp("published")
    model = mpmae(0)
    export_mpmae(model, folder / "weights.pth", tasks=NAMES)
    content = torch.load(folder / "weights.pth", weights_only=True)
    content |= {"optimizer": {"state": {}, "param_groups": []}, "epoch": 199, "scaler": {},
                "args": argparse.Namespace(model="atto", data_dir=Path("/data"))}  # fmt: skip
    torch.save(content, folder / "checkpoint-199.pth")
    return folder / "checkpoint-199.pth", model


def test_a_published_mpmae_file_has_the_published_names_and_shapes(published: tuple[Path, MPMAE]) -> None:
    with torch.serialization.safe_globals([argparse.Namespace, type(published[0])]):
        state = torch.load(published[0], weights_only=True)["model"]
    assert {name: tuple(state[name].shape) for name in PUBLISHED_SHAPES} == PUBLISHED_SHAPES
    assert sum(name.startswith("decoder_dict.") for name in state) == 12 * 10


def same(first: MPMAE, second: MPMAE, *, parts: tuple[str, ...] = ("",)) -> bool:
    ours = second.state_dict()
    return all(torch.equal(v, ours[n]) for n, v in first.state_dict().items() if n.startswith(parts))


def test_a_sparse_file_with_all_tasks_comes_back(published: tuple[Path, MPMAE]) -> None:
    model = mpmae(1)
    found = load_mpmae(model, published[0], tasks=NAMES)
    assert same(published[1], model)
    assert not found.unused


def test_without_tasks_the_encoder_and_decoder_are_taken_and_the_heads_left(published: tuple[Path, MPMAE]) -> None:
    model = mpmae(1)
    found = load_mpmae(model, published[0])
    assert same(published[1], model, parts=("encoder.", "proj.", "decoder.", "mask_token"))
    assert not same(published[1], model, parts=("heads.",))
    assert "pred_dict.biome.weight" in found.unused


def test_some_tasks_get_their_own_heads_and_weights(published: tuple[Path, MPMAE]) -> None:
    tasks = [task for task in mpmae(0).tasks if task.name in ("our_month", "our_sentinel2")][::-1]
    model = mpmae(1, tasks=tasks)
    load_mpmae(model, published[0], tasks={t.name: NAMES[t.name] for t in tasks})
    source = published[1]
    assert torch.equal(model.heads["our_month"].weight, source.heads["our_month"].weight)
    assert torch.equal(model.loss.log_vars, source.loss.log_vars[[10, 0]])


def test_a_dense_file_with_its_unused_head_comes_back(tmp_path: Path) -> None:
    first, second = mpmae(0), mpmae(1)
    export_mpmae(first, tmp_path / "dense.pth", tasks=NAMES, sparse=False)
    content = torch.load(tmp_path / "dense.pth", weights_only=True)
    content["model"] |= {"encoder.norm.weight": torch.ones(320), "encoder.head.bias": torch.zeros(1000)}
    torch.save(content, tmp_path / "dense.pth")
    found = load_mpmae(second, tmp_path / "dense.pth", tasks=NAMES)
    assert same(first, second)
    assert set(found.unused) == {"encoder.norm.weight", "encoder.head.bias"}


@pytest.mark.parametrize(("patch", "stem"), [(8, "overlapping"), (16, "original"), (8, "original")])
def test_other_stems_and_patches_come_back(patch: int, stem: str, tmp_path: Path) -> None:
    first, second = (mpmae(seed, patch=patch, stem=stem, tasks=[], weighting="equal") for seed in (0, 1))
    export_mpmae(first, tmp_path / "f.pth", tasks={"": "sentinel2"})
    load_mpmae(second, tmp_path / "f.pth")
    assert same(first, second)


def test_separate_decoders_take_each_their_own_copy(published: tuple[Path, MPMAE]) -> None:
    model = mpmae(1, decoder="separate")
    load_mpmae(model, published[0], tasks=NAMES)
    for task in model.tasks:
        expected = published[1].decoder.state_dict()
        assert all(torch.equal(v, expected[n]) for n, v in model.decoders[task.name].state_dict().items())
    with pytest.raises(UserError, match="separate decoders have no place in that layout"):
        export_mpmae(model, Path("unused.pth"), tasks=NAMES)


def test_decoders_that_differ_are_refused_for_a_shared_one(tmp_path: Path) -> None:
    export_mpmae(mpmae(0), tmp_path / "f.pth", tasks=NAMES)
    content = torch.load(tmp_path / "f.pth", weights_only=True)
    content["model"]["decoder_dict.lat.0.dwconv.bias"] = torch.ones(32)
    torch.save(content, tmp_path / "f.pth")
    with pytest.raises(UserError, match="the decoder of lat differs from the others") as refused:
        load_mpmae(mpmae(1), tmp_path / "f.pth")
    assert "set model.decoder: separate" in str(refused.value)


def test_another_size_is_refused_with_the_differences(published: tuple[Path, MPMAE]) -> None:
    with pytest.raises(UserError, match="not the weights of this MP-MAE") as refused:
        load_mpmae(mpmae(1, size="femto"), published[0])
    assert "of another shape: " in str(refused.value)
    assert "encoder.initial_conv.0.weight (40, 12, 3, 3) where (48, 12, 3, 3) is needed" in str(refused.value)


def test_channels_in_another_order_are_put_in_place(published: tuple[Path, MPMAE]) -> None:
    """Defect M8: the published weights expect B8A before B8, a corpus has B8 first."""
    ours = ["B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B11", "B12"]
    theirs = [*ours[:7], "B8A", "B8", *ours[9:]]
    places = band_places(ours, theirs)
    assert places == [0, 1, 2, 3, 4, 5, 6, 8, 7, 9, 10, 11]
    moved, source = mpmae(1), published[1]
    load_mpmae(moved, published[0], tasks=NAMES, places=places)
    image = torch.randn(1, 12, 32, 32, generator=torch.Generator().manual_seed(0))
    removed = torch.tensor([[True, False, False, True]])
    with torch.no_grad():
        expected = source.predict(image, removed)
        found = moved.predict(image[:, places], removed)
    torch.testing.assert_close(found["our_lat"], expected["our_lat"])
    per_band = [x["our_sentinel2"].reshape(1, 4, 256, 12) for x in (found, expected)]
    torch.testing.assert_close(per_band[0], per_band[1][..., places], rtol=1e-3, atol=1e-4)
    with pytest.raises(UserError, match="no weights for band B10"):
        band_places(["B10"], theirs)
