"""What is part of another modality's images is found with them, not asked for again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from mmbuild.choose import Scene
from mmbuild.sandbox.earth import Earth
from mmbuild.sandbox.rest import Answer
from mmbuild.sources import Ask
from tests.test_sources import MODALITIES, Scripted, sample_at, scripted, source_of

YEAR = (datetime(2020, 1, 1, tzinfo=UTC), datetime(2021, 1, 1, tzinfo=UTC))
NAMES = ("sentinel2_scl", "sentinel2_l2a", "cloud_score_plus", "sentinel2_l1c")


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Scripted]:
    with scripted(Earth().world) as sandbox:
        yield sandbox


def ask(name: str) -> Ask:
    limit = 40.0 if "cloud_property" in MODALITIES[name].sources["earthengine"] else None
    return Ask(modality=MODALITIES[name], window=YEAR, max_cloud=limit)


def found(*names: str) -> list[Scene]:
    sample = sample_at(10.68, 48.34, 64)
    return source_of(*NAMES).search([sample], {0: [ask(name) for name in names]})


def test_a_scenes_own_classes_are_found_where_the_scene_is(sandbox: Scripted) -> None:
    scenes = found("sentinel2_scl", "sentinel2_l2a")
    images = [scene for scene in scenes if scene.modality == "sentinel2_l2a"]
    classes = [scene for scene in scenes if scene.modality == "sentinel2_scl"]
    assert len(images) > 10
    assert classes == [replace(scene, modality="sentinel2_scl", cloud=None) for scene in images]
    alone = {scene.scene_id: scene for scene in found("sentinel2_scl")}
    assert classes == [alone[scene.scene_id] for scene in classes]


def test_only_what_lies_in_the_same_images_is_left_out_of_the_question(sandbox: Scripted) -> None:
    sent: list[bytes] = []

    def listen(path: str, body: bytes, answer: Answer) -> Answer:
        sent.append(body)
        return answer

    sandbox.change = listen
    try:
        scenes = found(*NAMES)
    finally:
        sandbox.change = None
    asked = {name: MODALITIES[name].sources["earthengine"]["collection"] for name in NAMES}
    times = {name: sum(body.count(f'"{collection}"'.encode()) for body in sent) for name, collection in asked.items()}
    assert times == dict.fromkeys(NAMES, 1)
    assert Counter(scene.modality for scene in scenes).keys() == set(NAMES)
