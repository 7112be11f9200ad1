"""Appearance of synthetic people: hair and clothes add to the surface, where they should, and nowhere else."""

import numpy as np
import pytest
import trimesh

from shapespace.synthetic import appearance
from shapespace.synthetic.appearance import SIZE_LIMITS, Person, sample_bare, sample_dressed
from shapespace.synthetic.body import Body


@pytest.fixture(scope="module")
def body() -> Body:
    return Body.load()


@pytest.fixture(scope="module")
def people() -> list[Person]:
    rng = np.random.default_rng(0)
    return [sample_dressed(rng) for _ in range(60)]


def at_rest(person: Person, body: Body) -> np.ndarray:
    return person.skin(np.tile(np.eye(3), (len(body.joints), 1, 1)))


def test_half_have_hair_and_half_are_dressed(people: list[Person]) -> None:
    assert 0.3 < np.mean([person.hair != "none" for person in people]) < 0.7
    assert 0.3 < np.mean([person.clothes != "none" for person in people]) < 0.7
    assert {person.hair for person in people} == set(appearance.HAIR)
    assert {person.clothes for person in people} == set(appearance.CLOTHES)


def test_people_differ_more_than_bare_ones(people: list[Person], body: Body) -> None:
    rng = np.random.default_rng(1)
    statures = [np.ptp(at_rest(person, body)[:, 1]) for person in people]
    bare = [np.ptp(at_rest(sample_bare(rng), body)[:, 1]) for _ in range(60)]
    assert np.std(statures) > 1.2 * np.std(bare)
    assert 1.2 < min(statures) < max(statures) < 2.3
    assert all(SIZE_LIMITS[0] <= person.size <= SIZE_LIMITS[1] for person in people)


def test_surfaces_stay_closed_and_hardly_fold(people: list[Person], body: Body) -> None:
    for person in people[:12]:
        mesh = trimesh.Trimesh(at_rest(person, body), body.faces, process=False)
        plain = trimesh.Trimesh(at_rest(person._replace(offsets=None), body), body.faces, process=False)
        assert mesh.is_watertight
        turned = np.einsum("fd,fd->f", mesh.face_normals, plain.face_normals) < 0
        assert (turned * plain.area_faces).sum() / plain.area < 2e-3
        assert np.abs(mesh.volume / plain.volume - 1) < 0.2


def test_hair_is_on_the_head_and_clothes_are_not(body: Body) -> None:
    rest, rng = body.rest_pose(np.zeros(len(body.components)))[0], np.random.default_rng(2)
    head = body.moved_by("head", "eye")
    for hair in ("cap", "bun"):
        height = appearance._hair(body, rest, hair, rng)
        assert np.abs(height[~head]).max() == 0
        assert 0.005 < height.max() < 0.09
        front = head & (rest[:, 2] > np.quantile(rest[head, 2], 0.8)) & (rest[:, 1] < rest[head, 1].mean())
        assert np.abs(height[front]).max() == 0  # the face stays free
    hands_and_feet = body.moved_by("finger", "toe")
    for clothes in ("shirt", "trousers", "both"):
        for _ in range(10):
            height = appearance._clothes(body, rest, clothes, rng)
            assert np.abs(height[hands_and_feet | (head & (rest[:, 1] > rest[head, 1].mean()))]).max() == 0
            assert 0.001 <= height.max() < 0.02
            assert height.min() >= 0


def test_clothes_end_at_hems(body: Body) -> None:
    rest = body.rest_pose(np.zeros(len(body.components)))[0]
    height = appearance._clothes(body, rest, "trousers", np.random.default_rng(3))
    place = dict(zip(body.joints, body.mean[-len(body.joints) :], strict=True))
    assert (height[rest[:, 1] > place["root"][1] + 0.14] == 0).all()
    thighs = body.moved_by("upperleg") & (rest[:, 1] < place["upperleg01.L"][1] - 0.05)
    assert (height[thighs & (rest[:, 1] > place["lowerleg01.L"][1] + 0.2)] > 0).mean() > 0.95


def test_the_offsets_follow_the_pose(people: list[Person], body: Body) -> None:
    person = next(person for person in people if person.hair == "bun")
    rotations = np.tile(np.eye(3), (len(body.joints), 1, 1))
    rotations[body.joints.index("root")] = trimesh.transformations.rotation_matrix(0.3, [0, 1, 0])[:3, :3]
    turned, still = person.skin(rotations), at_rest(person, body)
    moved = still @ rotations[body.joints.index("root")].T
    np.testing.assert_allclose(turned - turned.mean(axis=0), moved - moved.mean(axis=0), atol=2e-5)
