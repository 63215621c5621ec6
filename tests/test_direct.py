"""direct.py: an exported MMEarth file streams with the batches of the corpus that an import makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmbuild.direct import PublishedLoader
from mmbuild.errors import UserError
from mmbuild.importers import import_corpus
from mmbuild.stream.loader import Loader


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mmbuild.export import Options, export_corpus
    from tests.corpora import build_small

    folder = tmp_path_factory.mktemp("published")
    corpus = build_small(folder / "corpus")
    export_corpus(corpus, folder / "file", format="mmearth", options=Options(allow_missing=True))
    return folder / "file"


def test_a_published_file_gives_the_batches_of_its_import(published: Path, tmp_path: Path) -> None:
    imported = import_corpus(published, tmp_path / "imported", format="mmearth")
    truth = {}
    for batch in Loader(imported, batch_size=5, normalize=False, crop=8, augment=True, seed=2):
        for i, sample_id in enumerate(batch["id"]):
            truth[sample_id] = {k: v[i] for k, v in batch.items() if isinstance(v, torch.Tensor)}
    loader = PublishedLoader(published, batch_size=4, crop=8, augment=True, seed=2)
    seen = []
    for batch in loader:
        for i, sample_id in enumerate(batch["id"]):
            seen.append(sample_id)
            for key, value in truth[sample_id].items():
                torch.testing.assert_close(batch[key][i], value, rtol=0, atol=0, equal_nan=True, msg=key)
    assert sorted(seen) == sorted(truth)
    assert len(loader) == len(list(loader))


def test_it_resumes_on_another_world_size(published: Path) -> None:
    first = PublishedLoader(published, batch_size=3)
    stream = iter(first)
    seen = [*next(stream)["id"], *next(stream)["id"]]
    state = first.state_dict()
    for rank in range(2):
        loader = PublishedLoader(published, batch_size=2, rank=rank, world_size=2)
        loader.load_state_dict(state)
        seen += [i for batch in loader for i in batch["id"]]
    assert sorted(seen) == sorted(i for batch in PublishedLoader(published, batch_size=4) for i in batch["id"])
    with pytest.raises(UserError, match="loader state: seed was 0 and is 1 now"):
        PublishedLoader(published, batch_size=2, seed=1).load_state_dict(state)


def test_rows_and_formats_that_do_not_exist_are_refused(published: Path) -> None:
    with pytest.raises(UserError, match="rows: 99 must be 0 to"):
        PublishedLoader(published, batch_size=2, rows=[0, 99])
    with pytest.raises(UserError, match="there is no format 'netcdf'"):
        PublishedLoader(published, format="netcdf", batch_size=2)
