"""Labelled data that a user brings: arrays, GEO-Bench's layout as its own writer makes it, and no code run."""

from __future__ import annotations

import datetime
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from mmbuild.errors import UserError
from tests.runs import SMALL, train_briefly
from tests.shards import write_corpus
from train.arrays import Labelled, is_labelled, read_labelled
from train.probe import main, probe_labelled
from train.scoring import DEFAULT_METHODS

SIDE, COUNT = 20, 24
BANDS = ("B1", "B2", "B4")


class BandInfo:
    """Stands for the classes that GEO-Bench pickles into its files."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.extra = {"a": [1, 2]}


class Harmful:
    """Would make a folder if it were unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def images(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(x, y, split): classes differ by brightness."""
    draw = np.random.default_rng(seed)
    y = np.arange(COUNT) % 2
    x = (draw.normal(size=(COUNT, len(BANDS), SIDE, SIDE)) * 100 + 500 + 300 * y[:, None, None, None]).astype("int16")
    split = np.array((["train"] * 4 + ["val"] + ["test"]) * 4)
    return x, y, split


def write_geobench(folder: Path, label: Callable[[int], Any] = np.int64, **more: Any) -> Path:
    """As geobench.dataset.write_sample_hdf5 does."""
    folder.mkdir()
    x, y, split = images()
    names = [f"sample_{i}" for i in range(COUNT)]
    for i, name in enumerate(names):
        about: dict[str, Any] = {"label": label(int(y[i]))} | more
        with h5py.File(folder / f"{name}.hdf5", "w") as file:
            for j, band in enumerate(BANDS):
                file.create_dataset(f"0{j} - {band}_2018-08-01", data=x[i, j])
                about[f"0{j} - {band}_2018-08-01"] = {
                    "date": datetime.date(2018, 8, 1), "spatial_resolution": 10.0, "band_info": BandInfo(band),
                }  # fmt: skip
            about["bands_order"] = [f"0{j} - {band}_2018-08-01" for j, band in enumerate(BANDS)]
            file.attrs["pickle"] = str(pickle.dumps(about))
    theirs = {"train": "train", "val": "valid", "test": "test"}
    partition = {theirs[s]: [n for n, one in zip(names, split, strict=True) if one == s] for s in theirs}
    (folder / "default_partition.json").write_text(json.dumps(partition))
    return folder


def write_npz(path: Path, **changes: Any) -> Path:
    x, y, split = images()
    np.savez(path, **{"x": x, "y": y, "split": split, "bands": np.array(BANDS)} | changes)
    return path


def test_geobench_is_read_as_it_was_written(tmp_path: Path) -> None:
    found = read_labelled(write_geobench(tmp_path / "m-set"), normalise=False)
    x, y, split = images()
    order = np.concatenate([np.flatnonzero(split == one) for one in ("train", "val", "test")])
    np.testing.assert_array_equal(found.x, x[order])
    np.testing.assert_array_equal(found.labels, y[order])
    assert found.split.tolist() == split[order].tolist()


def test_plain_labels_are_read_too(tmp_path: Path) -> None:
    found = read_labelled(write_geobench(tmp_path / "m-set", label=int), normalise=False)
    assert set(found.labels.tolist()) == {0, 1}


def test_no_code_of_a_file_is_run(tmp_path: Path) -> None:
    harm = tmp_path / "made by a pickle"
    found = read_labelled(write_geobench(tmp_path / "m-set", note=Harmful(harm)))
    assert len(found.x) == COUNT
    assert not harm.exists()
    pickle.loads(pickle.dumps(Harmful(harm)))
    assert harm.exists(), "the file was harmless: this test would prove nothing"


def test_images_are_scaled_by_the_train_split(tmp_path: Path) -> None:
    found = read_labelled(write_npz(tmp_path / "set.npz"))
    train = found.x[found.split == "train"]
    np.testing.assert_allclose(train.mean(axis=(0, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(train.std(axis=(0, 2, 3)), 1, atol=1e-5)
    assert found.normalisation == "(value - mean) / std by band, of the train split"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y": np.zeros(3, dtype=int)}, r"do not fit together; x is \(n, d\)"),
        ({"split": np.array(["holdout"] * COUNT)}, r"split 'holdout' is unknown; use train, val, test"),
        ({"y": np.full(COUNT, -1)}, r"label -1 is negative; number classes from 0"),
        ({"y": np.array([None] * COUNT)}, r"not a \.npz of plain arrays .*; write it with numpy\.savez"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        read_labelled(write_npz(tmp_path / "set.npz", **changes))


def test_what_cannot_be_probed_is_refused(tmp_path: Path) -> None:
    folder = write_geobench(tmp_path / "m-many", label=lambda y: np.full(3, y / 2))
    with pytest.raises(UserError, match=r"the label is NoneType, neither a class nor 0 and 1 for each class; only"):
        read_labelled(folder)
    folder = write_geobench(tmp_path / "m-two", label=lambda y: [y, 2])
    with pytest.raises(UserError, match=r"several classes a sample are not written as 0 and 1; write a column a class"):
        read_labelled(folder)
    (folder / "sample_0.hdf5").unlink()
    with pytest.raises(UserError, match=r"sample_0\.hdf5.*missing"):
        read_labelled(folder)
    with pytest.raises(UserError, match=r"there is nothing here; give a \.npz"):
        read_labelled(tmp_path / "nowhere.npz")
    assert not is_labelled(tmp_path)


@pytest.mark.parametrize("kind", [list, np.array, lambda y: np.array(y, dtype=bool)])
def test_several_classes_a_sample_are_a_truth_for_each(kind: Callable[..., Any], tmp_path: Path) -> None:
    """GEO-Bench writes them as a list or as a NumPy array, pickled."""
    found = read_labelled(write_geobench(tmp_path / "m-many", label=lambda y: kind([y, 1, 1 - y])), normalise=False)
    first = read_labelled(write_geobench(tmp_path / "m-one"), normalise=False).labels
    assert found.labels.dtype == bool
    np.testing.assert_array_equal(found.labels, np.stack([first, np.ones_like(first), 1 - first], axis=1))
    y = images()[1]
    given = read_labelled(write_npz(tmp_path / "set.npz", y=np.stack([y, 1 - y], axis=1)), normalise=False)
    np.testing.assert_array_equal(given.labels, np.stack([y, 1 - y], axis=1).astype(bool))


# -- a model on them


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_corpus(folder / "corpus", companions=True)
    sensors = {"radar": {"modality": "radar"}, "optical": {"modality": "colour"}}
    return train_briefly(folder / "corpus", folder, {"name": "croma", "crop": 12, **sensors, **SMALL})


def brought(x: np.ndarray | None = None) -> Labelled:
    own, y, split = images()
    x = own.astype(np.float32) if x is None else x
    return Labelled(name="set", x=x, labels=y, split=split, bands=BANDS, normalisation="as they came")


def test_images_of_one_sensor_are_scored_beside_the_baselines(run: Path) -> None:
    x = (images()[0].astype(np.float32) - 650) / 180
    result = probe_labelled(run, brought(x), input="colour", bands=["G", "R", "B"], methods=["knn"])
    scores = {s["features"]: s["accuracy"] for s in result["labels"][0]["scores"] if s["method"] == "kNN 5 plain"}
    assert set(scores) == {"image statistics", "random convolutions", "untrained encoder", "pretrained encoder"}
    assert scores["image statistics"] == 1.0
    assert result["inputs"] == [{"name": "colour", "side": 20}]
    assert result["normalisation"] == "as they came; missing pixels 0"


def test_bands_go_where_the_model_had_them(run: Path) -> None:
    """Images with their bands in another order give the same features, when the order is said."""
    x = (images()[0].astype(np.float32) - 650) / 180
    methods = ["logistic"]
    one = probe_labelled(run, brought(x), input="colour", bands=["R", "G", "B"], methods=methods)
    two = probe_labelled(run, brought(x[:, ::-1].copy()), input="colour", bands=["B", "G", "R"], methods=methods)
    ours, theirs = ([s for s in result["labels"][0]["scores"] if "encoder" in s["features"]] for result in (one, two))
    assert ours == theirs


def test_images_without_a_band_of_the_model_are_refused(run: Path) -> None:
    with pytest.raises(UserError, match=r"the images have no band R, G, B of colour; they have B1, B2, B4; say with"):
        probe_labelled(run, brought(), input="colour", methods=["knn"])
    with pytest.raises(UserError, match=r"--bands: 1 names for 3 bands"):
        probe_labelled(run, brought(), input="colour", bands=["R"], methods=["knn"])
    with pytest.raises(UserError, match=r"--input: the model has no input 'sonar'; choose from radar, colour"):
        probe_labelled(run, brought(), input="sonar", methods=["knn"])


def test_the_command_takes_geobench_and_says_what_was_done(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_geobench(tmp_path / "m-set")
    arguments = [str(run), str(folder), "--input", "colour", "--bands", "R,G,B"]
    assert main([*arguments, "--methods", "knn,logistic"]) == 0
    text = capsys.readouterr().out
    for word in ("m-set", "random", "kNN 20", "logistic", "(value - mean) / std by band, of the train split"):
        assert word in text
    assert main([*arguments, "--methods", "svm"]) == 2
    assert "--methods: there is no 'svm'; choose from knn, logistic, linear" in capsys.readouterr().err


def test_m7_several_classes_are_scored_by_map_and_by_f1(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A paper says the one and its code computes the other: both are told, and they differ."""
    y = images()[1]
    path = write_npz(tmp_path / "set.npz", y=np.stack([y, 1 - y, np.arange(COUNT) % 3 == 0], axis=1).astype(int))
    arguments = [str(run), str(path), "--input", "colour", "--bands", "R,G,B"]
    assert main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)["labels"][0]
    statistics = {s["method"]: s["accuracy"] for s in report["scores"] if s["features"] == "image statistics"}
    assert set(statistics) == {"logistic, micro mAP", "logistic, micro F1"}
    assert len(set(statistics.values())) == 2
    assert all(0.5 < value <= 1 for value in statistics.values()), "two of three classes are told by brightness"
    assert all(score["low"] <= score["accuracy"] <= score["high"] for score in report["scores"])
    assert len(report["differences"]) == 3 * 2
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "micro mAP and micro F1 on test in %" in " ".join(text.split())
    assert main([*arguments, "--methods", "knn"]) == 2
    assert "--methods: samples with several classes need logistic" in capsys.readouterr().err


def test_s12_a_model_of_three_sensors_is_scored_on_a_folder_of_geobench(tmp_path: Path) -> None:
    """The published code of Scale-ALiBi has no evaluation: here each of its sensors has one, beside the floors."""
    write_corpus(tmp_path / "corpus", companions=True)
    sensors = {"radar": "radar", "lores": "colour", "hires": "aerial"}
    model = {role: {"modality": name} for role, name in sensors.items()}
    run = train_briefly(tmp_path / "corpus", tmp_path, {"name": "scale_alibi", "crop": 24, **model, **SMALL})
    given = read_labelled(write_geobench(tmp_path / "m-set"))
    for sensor in ("colour", "aerial"):
        result = probe_labelled(run, given, input=sensor, bands=["R", "G", "B"], methods=["knn"])
        scores = {s["features"]: s["accuracy"] for s in result["labels"][0]["scores"] if s["method"] == "kNN 20 plain"}
        assert set(scores) == {"image statistics", "random convolutions", "untrained encoder", "pretrained encoder"}
        assert result["inputs"] == [{"name": sensor, "side": 20}]


def test_features_alone_are_scored_without_baselines_and_that_is_said(run: Path) -> None:
    x, y, split = images()
    given = Labelled(
        name="f", x=x.mean(axis=(2, 3)).astype(np.float32), labels=y, split=split, bands=("a", "b", "c"),
        normalisation="as they came",
    )  # fmt: skip
    report = probe_labelled(run, given, input=None, methods=DEFAULT_METHODS)["labels"][0]
    assert {score["features"] for score in report["scores"]} == {"features"}
    assert "there are no baselines to compare with" in " ".join(report["notes"])
