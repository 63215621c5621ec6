"""Probes against scikit-learn and hand-made truth: classifiers, intervals, labels, baselines, too small splits."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.neighbors import KNeighborsClassifier

from mmbuild.cube import open_corpus
from mmbuild.errors import UserError
from mmbuild.modality import Clear
from tests.runs import train_briefly
from tests.shards import MODALITIES, TinyCorpus, write_corpus
from train import heads, metrics, multilabel, optim
from train.features import image_statistics, random_convolutions
from train.labels import Label, default_labels, dominant_class, grain
from train.probe import main, probe
from train.scoring import score_label

pytestmark = pytest.mark.usefixtures("one_thread")


def blobs(n: int, *, spread: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Three Gaussian classes in eight dimensions."""
    draw = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(3, 8))
    labels = draw.integers(0, 3, n)
    return centres[labels] + draw.normal(scale=spread, size=(n, 8)), labels


@pytest.mark.parametrize("k", [1, 5, 20])
def test_plain_nearest_neighbours_equal_scikit_learn(k: int) -> None:
    train, labels = blobs(120, spread=1.0)
    test, _ = blobs(80, spread=1.0, seed=1)
    ours = metrics.knn_predict(train, labels, test, k=k, weighted=False, classes=3)
    theirs = KNeighborsClassifier(n_neighbors=k, algorithm="brute").fit(train, labels).predict(test)
    np.testing.assert_array_equal(ours, theirs)


def test_weighted_nearest_neighbours_equal_scikit_learn() -> None:
    train, labels = blobs(120, spread=1.5)
    test, _ = blobs(80, spread=1.5, seed=1)
    ours = metrics.knn_predict(train, labels, test, k=20, weighted=True, classes=3)
    votes = KNeighborsClassifier(
        n_neighbors=20, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07)
    )
    np.testing.assert_array_equal(ours, votes.fit(train, labels).predict(test))


def test_fewer_train_samples_than_neighbours_all_vote() -> None:
    train, labels = np.eye(3), np.array([0, 1, 1])
    said = metrics.knn_predict(train, labels, np.ones((1, 3)), k=20, weighted=False, classes=2)
    assert said.tolist() == [1]


def test_logistic_regression_separates_what_is_separable_and_chooses_c_on_val() -> None:
    train, labels = blobs(200, spread=0.2)
    test, truth = blobs(100, spread=0.2, seed=1)
    said, c = metrics.logistic_predict(train, labels, blobs(60, spread=0.2, seed=2), test)
    assert (said == truth).mean() > 0.98
    assert c in metrics.C_GRID
    without_val = (np.zeros((0, 8)), np.zeros(0, dtype=int))
    assert metrics.logistic_predict(train, labels, without_val, test)[1] == 1.0


def test_more_features_than_samples_give_the_regression_scikit_learn_gives() -> None:
    draw = np.random.default_rng(3)
    train, test, labels = draw.normal(size=(30, 60)), draw.normal(size=(200, 60)), draw.integers(0, 3, 30)
    ours, c = metrics.logistic_predict(train, labels, (np.zeros((0, 60)), np.zeros(0, dtype=int)), test)
    theirs = LogisticRegression(C=c, max_iter=1000, tol=1e-8).fit(train, labels).predict(test)
    assert (ours == theirs).mean() > 0.985


def test_a_train_split_of_one_class_predicts_that_class() -> None:
    said, _ = metrics.logistic_predict(
        np.ones((4, 2)), np.full(4, 2), (np.ones((1, 2)), np.array([2])), np.ones((3, 2))
    )
    assert said.tolist() == [2, 2, 2]


def test_the_bootstrap_interval_is_that_of_a_proportion() -> None:
    hits = np.arange(400) < 300
    low, high = metrics.bootstrap_interval(hits, seed=0)
    half = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert (low, high) == pytest.approx((0.75 - half, 0.75 + half), abs=0.006)
    assert metrics.bootstrap_interval(np.ones(5, dtype=bool), seed=0) == (1.0, 1.0)


def test_features_are_scaled_by_train_alone() -> None:
    train, test = np.array([[0.0, 7.0], [2.0, 7.0]]), np.array([[3.0, 9.0]])
    scaled = metrics.standardise(train, test)
    assert scaled[0].tolist() == [[-1, 0], [1, 0]]
    assert scaled[1].tolist() == [[2, 0]]


def test_image_statistics_equal_numpy_on_the_valid_pixels() -> None:
    draw = torch.Generator().manual_seed(0)
    image = torch.randn(3, 2, 9, 9, generator=draw)
    valid = torch.rand(image.shape, generator=draw) < 0.7
    valid[2, 1] = False
    ours = image_statistics(torch.where(valid, image, torch.nan), valid).reshape(3, 2, 7)
    for sample, band in ((0, 0), (1, 1), (2, 0)):
        values = image[sample, band][valid[sample, band]].double().numpy()
        expected = [values.mean(), values.std(), *np.percentile(values, [5, 25, 50, 75, 95])]
        np.testing.assert_allclose(ours[sample, band], expected, rtol=1e-6)
    assert (ours[2, 1] == 0).all()


def test_the_dominant_class_ignores_missing_pixels() -> None:
    codes = torch.tensor([[[1, 1, 0, -1]], [[-1, -1, -1, 2]], [[-1, -1, -1, -1]], [[0, 0, 1, 1]]])
    assert dominant_class(codes, 3).tolist() == [1, 2, -1, 0]


def test_the_grain_of_a_map_in_closed_form() -> None:
    n = 8
    halves, board = torch.zeros(2, 1, n, n, dtype=torch.int64)
    halves[..., n // 2 :] = 1
    board[0] = (torch.arange(n)[:, None] + torch.arange(n)) % 2
    pairs, diversity = 2 * n * (n - 1), 1 - (n * n / 2 - 1) / (n * n - 1)
    single = torch.zeros(1, n, n, dtype=torch.int64)
    found = grain(torch.stack([halves, board, single, single - 1]), 2)
    np.testing.assert_allclose(found, [n / pairs / diversity, 1 / diversity, np.nan, np.nan])


def test_the_grain_follows_from_where_pixels_lie_and_not_from_what_they_are() -> None:
    draw = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 3, (20, 1, 6, 6), generator=draw).repeat_interleave(8, 2).repeat_interleave(8, 3)
    shuffled = blocks.flatten(1)[:, torch.randperm(48 * 48, generator=draw)].view_as(blocks)
    np.testing.assert_allclose(grain(shuffled, 3), 1, atol=0.1)
    assert (grain(blocks, 3) < 0.2).all()
    np.testing.assert_allclose(grain(2 - blocks, 3), grain(blocks, 3))
    holes = torch.where(torch.rand(blocks.shape, generator=draw) < 0.3, -1, blocks)
    np.testing.assert_allclose(grain(holes, 3), grain(blocks, 3), atol=0.05)


@pytest.mark.parametrize("hidden", [None, 32])
def test_a_head_learns_what_is_separable_and_chooses_its_rate_on_val(hidden: int | None) -> None:
    train, labels = blobs(200, spread=0.2)
    test, truth = blobs(100, spread=0.2, seed=1)
    val = blobs(60, spread=0.2, seed=2)
    said, rate = heads.head_predict(train, labels, val, test, classes=3, hidden=hidden, epochs=60)
    assert (said == truth).mean() > 0.95
    assert rate in heads.RATES


def test_heads_take_the_steps_of_adamw() -> None:
    """All rates at once against torch.optim.AdamW with one of them."""
    train, labels = blobs(50, spread=0.5)
    x, y = torch.from_numpy(train).float(), torch.from_numpy(labels)
    many = heads._Heads([8, 3], [1e-3, 3e-2], seed=0)
    alone = torch.nn.Linear(8, 3)
    with torch.no_grad():
        alone.weight.copy_(many._layers[0][0][1].T)
        alone.bias.copy_(many._layers[0][1][1, 0])
    many.fit(x, y, epochs=10)
    optimizer = torch.optim.AdamW(alone.parameters(), lr=0.0, weight_decay=heads.DECAY)
    for step in range(10):
        optim.set_rate(optimizer, optim.learning_rate(step + 0.5, peak=3e-2, warmup=heads.WARMUP_EPOCHS, total=10))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(alone(x), y).backward()
        optimizer.step()
    torch.testing.assert_close(many._layers[0][0][1].T, alone.weight, atol=1e-5, rtol=1e-4)


def test_clusters_are_matched_to_classes_on_train() -> None:
    train, labels = blobs(200, spread=0.1)
    test, truth = blobs(100, spread=0.1, seed=1)
    assert (metrics.kmeans_predict(train, labels, test, classes=3) == truth).all()
    renamed = np.array([2, 0, 1])
    assert (metrics.kmeans_predict(train, renamed[labels], test, classes=3) == renamed[truth]).all()


def test_umap_without_its_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(UserError, match=r"--methods: umap is not installed; pip install 'mmbuild\[umap\]'"):
        metrics.umap_axes(np.zeros((4, 2)), np.zeros((2, 2)))


def test_random_convolutions_equal_sums_written_out() -> None:
    image = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    valid = torch.ones_like(image, dtype=torch.bool)
    valid[1, 2, 3] = False
    found = random_convolutions(torch.where(valid, image, torch.nan), valid, seed=5)
    filters = torch.randn(256, 3, 3, 3, generator=torch.Generator().manual_seed(5)).numpy()
    pixels = torch.where(valid, image, 0.0).numpy()
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (3, 3), axis=(2, 3))
    responses = np.einsum("bcyxij,kcij->bkyx", windows, filters)
    both = [np.maximum(sign * responses - 1, 0).mean(axis=(2, 3)) for sign in (1, -1)]
    np.testing.assert_allclose(found, np.concatenate(both, axis=1), atol=1e-4)


def test_several_classes_are_scored_as_scikit_learn_and_a_count_of_pairs_do() -> None:
    truth = np.array([[1, 0, 1], [0, 0, 1], [1, 1, 0]], dtype=bool)
    chances = np.array([[0.9, 0.6, 0.4], [0.2, 0.1, 0.8], [0.7, 0.3, 0.5]])
    assert multilabel.micro_map(truth, chances) == pytest.approx(
        average_precision_score(truth, chances, average="micro")
    )
    # Said: (0,0) (0,1) (1,2) (2,0) (2,2); right are three of them, and five are there.
    assert multilabel.micro_f1(truth, chances) == pytest.approx(2 * 3 / (5 + 5))


def test_a_regression_for_each_class_gives_what_one_alone_gives() -> None:
    train, labels = blobs(200, spread=0.8)
    test, _ = blobs(50, spread=0.8, seed=1)
    many = np.stack([labels == 0, labels > 0, np.ones(200, dtype=bool)], axis=1)
    chances = multilabel.logistic_chances(train, many, (np.zeros((0, 8)), np.zeros((0, 3), dtype=bool)), test)
    alone = LogisticRegression(C=1.0, max_iter=500).fit(train, many[:, 0]).predict_proba(test)[:, 1]
    np.testing.assert_allclose(chances[:, 0], alone)
    np.testing.assert_allclose(chances[:, 1], 1 - alone, atol=1e-3)
    assert (chances[:, 2] == 1).all()


def test_m9_the_head_that_is_scored_is_the_best_on_val_and_not_the_last_one() -> None:
    """The reference scores its last checkpoint. On labels of noise the last rate here has learnt most by heart."""
    draw = np.random.default_rng(0)
    train, labels = draw.normal(size=(60, 30)), np.arange(60) % 2
    train[:, 0] += labels
    val = (draw.normal(size=(400, 30)), np.arange(400) % 2)
    val[0][:, 0] += val[1]
    said, rate = heads.head_predict(train, labels, val, val[0], classes=2, epochs=40)
    last, _ = heads.head_predict(train, labels, (val[0][:0], val[1][:0]), val[0], classes=2, epochs=40)
    assert rate != heads.RATES[-1]
    assert (said == val[1]).mean() > (last == val[1]).mean()


def test_the_hidden_layer_is_as_wide_as_the_papers() -> None:
    """At its real width, on few epochs: 2048 hidden values, all 27 rates, one of them as good as any."""
    train, labels = blobs(120, spread=0.5)
    test, truth = blobs(60, spread=0.5, seed=1)
    assert heads.HIDDEN == 2048
    said, rate = heads.head_predict(
        train, labels, blobs(60, spread=0.5, seed=2), test, classes=3, hidden=heads.HIDDEN, epochs=8
    )
    assert (said == truth).mean() > 0.9
    assert rate in heads.RATES


# -- scoring


def scored(counts: tuple[int, int, int], *, classes: int = 3) -> dict[str, float]:
    """Accuracy by method for a perfectly informative feature, with this many samples in train, val and test."""
    part = np.repeat(["train", "val", "test"], counts)
    codes = np.arange(len(part)) % classes
    report = score_label(
        Label(name="x", about="", codes=codes, names=("a", "b", "c")), {"truth": np.eye(3)[codes]}, part
    )
    return {score.method: score.accuracy for score in report.scores}


def test_a_feature_that_is_the_label_scores_full_marks() -> None:
    result = scored((60, 12, 30))
    assert set(result) == {
        "kNN 5 cosine", "kNN 5 plain", "kNN 20 cosine", "kNN 20 plain", "logistic", "linear head", "k-means",
    }  # fmt: skip
    assert all(accuracy == 1.0 for accuracy in result.values())


def test_gains_are_paired_by_sample() -> None:
    """Two kinds of features that are right about the same samples differ by nothing, whatever their own intervals."""
    part, codes = np.repeat(["train", "val", "test"], (60, 12, 40)), np.arange(112) % 2
    half = np.where(np.arange(112) % 4 < 2, codes, 0)  # tells every second pair apart
    features = {"same": np.eye(2)[half], "whole": np.eye(2)[codes], "half": np.eye(2)[half]}
    label = Label(name="x", about="", codes=codes, names=("a", "b"))
    report = score_label(label, features, part, ["logistic"])
    accuracy = {score.features: score.accuracy for score in report.scores}
    gains = {one.over: (one.gain, one.low, one.high) for one in report.differences}
    assert gains["same"] == (0, 0, 0)
    assert gains["whole"][0] == pytest.approx(accuracy["half"] - accuracy["whole"])
    assert gains["whole"][2] < 0


def test_small_and_empty_splits_are_said_not_raised() -> None:
    codes, part = np.zeros(6, dtype=int), np.array(["train"] * 4 + ["test"] * 2)
    codes[-1] = 1
    label = Label(name="x", about="", codes=codes, names=("a", "b"))
    report = score_label(label, {"f": np.random.default_rng(0).normal(size=(6, 3))}, part)
    assert len(report.scores) == 7
    notes = " ".join(report.notes)
    assert "only 2 test samples" in notes
    assert "no val samples" in notes
    assert "only 4 train samples: kNN 20 takes them all" in notes
    assert "1 test samples have a class that train does not have" in notes
    report = score_label(label, {"f": np.zeros((6, 3))}, np.array(["train"] * 6))
    assert (report.scores, report.majority) == ([], None)
    assert report.notes == ["not scored: split test has no labelled sample"]


# -- the whole way


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> TinyCorpus:
    return write_corpus(tmp_path_factory.mktemp("corpus"), slots=48)


@pytest.fixture(scope="module")
def run(corpus: TinyCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    return train_briefly(corpus.path, folder, {"name": "mpmae", "crop": 24, "patch": 8, "decoder_dim": 16})


def test_a_probe_scores_the_model_beside_both_baselines(run: Path, corpus: TinyCorpus) -> None:
    result = probe(run, corpus.open())
    assert result["dimensions"] == {
        "image statistics": 21, "random convolutions": 512, "untrained encoder": 320, "pretrained encoder": 320,
    }  # fmt: skip
    assert [report["label"] for report in result["labels"]] == ["cover", "zone"]
    for report in result["labels"]:
        assert len(report["scores"]) == 4 * 7
        assert all(score["low"] <= score["accuracy"] <= score["high"] for score in report["scores"])
    assert result["same_corpus"] is True
    assert "from the train split of handmade" in result["normalisation"]


def test_labels_and_splits_are_those_of_the_samples(run: Path, corpus: TinyCorpus) -> None:
    """The counts of a report against the arrays the corpus was written from."""
    codes, fill = corpus.truth["cover"], MODALITIES["cover"].fill
    defined = np.isin(codes, MODALITIES["cover"].class_codes) & (codes != fill)
    expected = dict.fromkeys(("train", "val", "test"), 0)
    for item in corpus.items:
        if item["split"] and defined[item["mmbuild:index"]].any():
            expected[item["split"]] += 1
    assert probe(run, corpus.open(), ["cover"])["labels"][0]["counts"] == expected


def test_the_same_probe_gives_the_same_numbers(run: Path, corpus: TinyCorpus) -> None:
    assert probe(run, corpus.open(), ["zone"]) == probe(run, corpus.open(), ["zone"])


def test_default_labels_pass_over_quality_layers() -> None:
    quality = MODALITIES["cover"].model_copy(update={"name": "quality", "same_scene_as": "optic_a"})
    judge = MODALITIES["cover"].model_copy(update={"name": "judge"})
    optic = MODALITIES["optic_a"].model_copy(update={"clear": Clear(modality="judge", codes=(10,))})
    modalities = {"quality": quality, "judge": judge, **MODALITIES, "optic_a": optic}
    assert default_labels(modalities) == ["cover", "zone"]


def test_the_grain_of_a_map_is_a_label_of_three_classes_cut_on_train(run: Path, corpus: TinyCorpus) -> None:
    report = probe(run, corpus.open(), ["cover:grain"], ["logistic"])["labels"][0]
    assert (report["label"], report["about"]) == ("cover:grain", "how finely the classes are cut up")
    assert report["classes"] == 3
    with pytest.raises(UserError, match=r"no class label 'zone:grain'.*choose from cover, zone, cover:grain"):
        probe(run, corpus.open(), ["zone:grain"])


def test_an_unknown_label_is_refused_with_those_there_are(run: Path, corpus: TinyCorpus) -> None:
    with pytest.raises(UserError, match=r"no class label 'soil'.*choose from cover, zone"):
        probe(run, corpus.open(), ["soil"])


def test_a_tag_of_the_samples_can_be_the_label(run: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    tagged = write_corpus(tmp_path / "corpus", slots=24)
    for path in sorted((tmp_path / "corpus" / "shards").glob("*.parquet")):
        table = pq.read_table(path)
        tags = [json.dumps({"crop": "rice" if slot % 2 else "rye"}) for slot in table["slot"].to_pylist()]
        index = table.schema.get_field_index("tags")
        pq.write_table(table.set_column(index, "tags", pa.array(tags)), path)
    report = probe(run, tagged.open(), ["crop"])["labels"][0]
    splits = [item["split"] for item in tagged.items if item["split"]]
    assert report["counts"] == {split: splits.count(split) for split in ("train", "val", "test")}
    assert report["classes"] == 2


def test_the_command_prints_a_table_or_json(run: Path, corpus: TinyCorpus, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), str(corpus.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["corpus"]["synthetic"] is True
    assert main([str(run), str(corpus.path), "--label", "zone"]) == 0
    text = capsys.readouterr().out
    for word in (
        "image",
        "statistics",
        "random",
        "convolutions",
        "untrained",
        "pretrained",
        "logistic",
        "note:",
        "95 %",
        "synthetic",
    ):
        assert word in text


@pytest.mark.parametrize("missing", ["checkpoint", "corpus"])
def test_a_missing_checkpoint_or_corpus_is_refused_in_one_line(
    missing: str, run: Path, corpus: TinyCorpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = {"checkpoint": str(run), "corpus": str(corpus.path)} | {missing: str(tmp_path / "nowhere")}
    assert main([paths["checkpoint"], paths["corpus"]]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "there is no" in error


def test_a_model_is_not_probed_on_other_bands(run: Path, corpus: TinyCorpus) -> None:
    about = run / "checkpoints" / "latest" / "model.json"
    text = about.read_text()
    try:
        about.write_text(text.replace('"B4"', '"B5"'))
        with pytest.raises(UserError, match="trained on optic with bands B1, B2, B5, here they are B1, B2, B4"):
            probe(run, open_corpus(corpus.path))
    finally:
        about.write_text(text)
