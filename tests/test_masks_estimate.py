"""Mask estimation: the published numbers, and what each variant means, against plain definitions."""

from pathlib import Path

import numpy as np
import pytest

from masks import estimate
from masks.estimate import collect, masks_from

GOLDENS = Path(__file__).parent / "goldens" / "pds"


def random_images(count=6, h=5, w=6, seed=0):
    """Images with power of its own in every direction and channel."""
    rng = np.random.default_rng(seed)
    return rng.uniform(0, 1, (count, h, w, 3)) * rng.uniform(0.3, 1, (1, h, w, 3))


class ListSource:
    name = "list"

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return {"image": self.images[index], "label": 0}


@pytest.mark.parametrize("name", ["masks_smooth_rgb8", "masks_gray16"])
def test_masks_match_the_published_program(name):
    golden = np.load(GOLDENS / f"{name}.npz")
    images = np.moveaxis(golden["images"], 1, -1)
    freq, space = masks_from(collect([images[:3], images[3:]]))
    np.testing.assert_allclose(freq, np.moveaxis(golden["freq_mask"], 0, -1), rtol=2e-6)  # made in float32
    np.testing.assert_allclose(space, np.moveaxis(golden["space_mask"], 0, -1), rtol=1e-6)


@pytest.mark.parametrize("h, w", [(5, 6), (4, 7), (3, 3), (2, 2), (4, 1)])
def test_power_is_the_full_plane_of_the_complex_transform_and_exactly_even(h, w):
    images = random_images(h=h, w=w)
    power = collect([images]).power
    np.testing.assert_allclose(power, (np.abs(np.fft.fft2(images, axes=(1, 2))) ** 2).sum(0), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(power, np.roll(power[::-1, ::-1], (1, 1), (0, 1)), rtol=1e-12, atol=1e-12)


def test_the_split_into_chunks_does_not_matter():
    images = random_images()
    whole, parts = collect([images]), collect([images[:1], images[1:5], images[5:]])
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-13)


def test_bytes_are_read_as_images_from_zero_to_one():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), np.uint8)
    np.testing.assert_allclose(collect([pixels]).square, collect([pixels / 255.0]).square, rtol=1e-14)


def test_images_in_the_model_s_range_are_refused():
    with pytest.raises(ValueError, match=r"images in \[0, 1\]; these span \[-1, "):
        collect([2 * np.round(random_images()) - 1])


def test_no_images_is_an_error_that_names_the_setting():
    with pytest.raises(ValueError, match="No images to estimate masks from; set config.data.source"):
        collect([])


def test_centred_masks_are_those_of_images_without_their_mean():
    images = random_images()
    deviations = images - images.mean(0)
    freq, space = masks_from(collect([images]), centred=True)
    np.testing.assert_allclose(freq, np.log1p((np.abs(np.fft.fft2(deviations, axes=(1, 2))) ** 2).mean(0)), atol=1e-12)
    np.testing.assert_allclose(space, (deviations**2).mean(0), atol=1e-14)


def test_radial_masks_depend_on_the_radius_alone_and_keep_the_total_power():
    moments = collect([random_images(h=6, w=6)])
    plain, radial = masks_from(moments), masks_from(moments, radial=True)
    ring = estimate.rings(6, 6)
    assert ring[0, 2] == ring[2, 0] == ring[0, -2] == 2 and ring[3, 3] == 4  # 3 sqrt(2) rounds to 4
    for radius in range(ring.max() + 1):
        assert np.ptp(radial.freq[ring == radius], axis=0).max() < 1e-12
    np.testing.assert_allclose(np.expm1(radial.freq).sum((0, 1)), np.expm1(plain.freq).sum((0, 1)), rtol=1e-12)
    np.testing.assert_array_equal(radial.space, plain.space)


def test_rings_of_oblong_images_count_cycles_per_longer_side():
    ring = estimate.rings(4, 8)
    assert ring[0, 3] == 3 and ring[1, 0] == 2


def test_the_channel_mean_treats_all_channels_alike():
    moments = collect([random_images()])
    masks = masks_from(moments, channel_mean=True)
    np.testing.assert_allclose(masks.freq[..., 1], np.log1p((moments.power / 6).mean(-1)), rtol=1e-13)
    np.testing.assert_allclose(masks.space[..., 2], (moments.square / 6).mean(-1), rtol=1e-13)


def test_the_stream_covers_the_source_once_or_draws_the_same_few_across_it():
    values = [np.full((4, 4, 3), i, np.uint8) for i in range(150)]
    source = ListSource(values)
    chunks = list(estimate.stream(source, 4, 3))
    assert all(len(chunk) <= estimate.CHUNK for chunk in chunks)
    np.testing.assert_array_equal(np.concatenate(chunks)[:, 0, 0, 0], np.arange(150))
    few = [np.concatenate(list(estimate.stream(source, 4, 3, limit=30)))[:, 0, 0, 0] for _ in range(2)]
    np.testing.assert_array_equal(*few)
    assert len(set(few[0])) == 30 and few[0].max() > 100
