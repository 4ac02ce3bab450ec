"""The pipeline: geometry, and batches that are a pure function of (seed, step)."""

import numpy as np
import pytest
from PIL import Image as Pillow

from data import pipeline
from data.pipeline import Batches


class ListSource:
    """A source over arrays in memory."""

    name = "list"

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return {"image": self.images[index], "label": index % 3}


def numbered_images(count, size=4):
    """Image i holds i in its left half and 100 + i in its right half."""
    images = np.empty((count, size, size, 3), np.uint8)
    images[:, :, : size // 2] = np.arange(count, dtype=np.uint8)[:, None, None, None]
    images[:, :, size // 2 :] = 100 + np.arange(count, dtype=np.uint8)[:, None, None, None]
    return images


def test_an_integer_factor_gives_rounded_block_means_of_the_centre_crop():
    image = np.random.default_rng(0).integers(0, 256, (8, 13, 3), np.uint8)
    small = pipeline.crop_and_resize(image, 4)
    crop = image[:, 2:10].astype(float)
    for row in range(4):
        for column in range(4):
            block = crop[2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            np.testing.assert_array_equal(small[row, column], np.rint(block.mean(axis=(0, 1))))


def test_the_crop_is_central_along_either_side():
    image = np.arange(10, dtype=np.uint8)[:, None, None] * np.ones((1, 4, 3), np.uint8)
    assert list(pipeline.crop_and_resize(image, 4)[:, 0, 0]) == [3, 4, 5, 6]
    assert list(pipeline.crop_and_resize(image.swapaxes(0, 1), 4)[0, :, 0]) == [3, 4, 5, 6]


def test_other_factors_use_lanczos_as_pillow_does_on_the_whole_image():
    image = np.random.default_rng(1).integers(0, 256, (7, 7, 3), np.uint8)
    expected = Pillow.fromarray(image).resize((5, 5), Pillow.Resampling.LANCZOS)
    np.testing.assert_array_equal(pipeline.crop_and_resize(image, 5), np.asarray(expected))
    assert pipeline.crop_and_resize(image, 9).shape == (9, 9, 3)


def test_grey_becomes_colour_by_repetition_and_colour_becomes_luma():
    grey = np.arange(4, dtype=np.uint8).reshape(2, 2, 1)
    np.testing.assert_array_equal(pipeline.match_channels(grey, 3, "x"), np.concatenate([grey] * 3, -1))
    pure_green = np.zeros((1, 1, 3), np.uint8)
    pure_green[..., 1] = 255
    assert pipeline.match_channels(pure_green, 1, "x")[0, 0, 0] == round(0.587 * 255)


def test_channels_that_cannot_be_mended_name_the_setting():
    with pytest.raises(ValueError, match=r"list have 4 channels, the model has 3; set config.data.num_channels=4"):
        pipeline.load_images(ListSource([np.zeros((4, 4, 4), np.uint8)]), 4, 3)


def test_load_images_mends_mixed_sizes_and_channels_into_one_array_with_labels():
    sizes = [(8, 8, 3), (9, 6, 1), (5, 5, 3), (4, 4, 1)]
    images, labels = pipeline.load_images(ListSource([np.full(s, 7, np.uint8) for s in sizes]), 4, 3)
    assert images.shape == (4, 4, 4, 3) and images.dtype == np.uint8 and (images == 7).all()
    np.testing.assert_array_equal(labels, [0, 1, 2, 0])


def test_every_image_comes_exactly_once_an_epoch_and_epochs_differ():
    batches = Batches(numbered_images(10), batch_size=4, seed=3)
    stream = np.concatenate([batches.batch(step)["index"] for step in range(5)])
    first, second = stream[:10], stream[10:]
    assert sorted(first) == sorted(second) == list(range(10))
    assert list(first) != list(second) and list(first) != list(range(10))


def test_a_batch_depends_on_seed_and_step_alone():
    images, labels = numbered_images(10), np.arange(10, dtype=np.int32)
    in_order = Batches(images, 4, seed=5, flip=True, labels=labels)
    recorded = [in_order.batch(step) for step in range(6)]
    pipeline._epoch_order.cache_clear()
    resumed = Batches(images, 4, seed=5, flip=True, labels=labels)
    for step in (4, 1, 5):
        for key, value in resumed.batch(step).items():
            np.testing.assert_array_equal(value, recorded[step][key])
    assert any((Batches(images, 4, seed=6).batch(s)["index"] != recorded[s]["index"]).any() for s in range(3))


def test_a_batch_holds_the_images_and_labels_its_index_names():
    images, labels = numbered_images(10), np.arange(10, dtype=np.int32) ** 2
    batch = Batches(images, 7, seed=0, labels=labels).batch(2)
    np.testing.assert_array_equal(batch["image"], images[batch["index"]])
    np.testing.assert_array_equal(batch["label"], labels[batch["index"]])
    assert batch["image"].dtype == np.uint8 and batch["label"].dtype == np.int32 and batch["index"].dtype == np.int64


def test_half_of_the_images_are_mirrored_and_each_epoch_draws_anew():
    images = numbered_images(200)
    batches = Batches(images, 200, seed=1, flip=True)
    mirrored = []
    for step in range(2):
        batch = batches.batch(step)
        original = images[batch["index"]]
        is_mirrored = (batch["image"] == original[:, :, ::-1]).all(axis=(1, 2, 3))
        assert (is_mirrored | (batch["image"] == original).all(axis=(1, 2, 3))).all()
        assert 70 < is_mirrored.sum() < 130
        mirrored.append(is_mirrored[np.argsort(batch["index"])])
    assert (mirrored[0] != mirrored[1]).any()


def test_a_batch_may_be_larger_than_the_data_set():
    index = Batches(numbered_images(3), 7, seed=0).batch(0)["index"]
    assert sorted(index[:3]) == sorted(index[3:6]) == [0, 1, 2]


def test_images_on_demand_give_the_same_batches_as_images_in_memory():
    source = ListSource(list(numbered_images(9, size=8)))
    in_memory, labels = pipeline.open_images(source, 4, memory_limit=9 * 4 * 4 * 3)
    on_demand, no_labels = pipeline.open_images(source, 4, memory_limit=9 * 4 * 4 * 3 - 1)
    assert isinstance(in_memory, np.ndarray) and isinstance(on_demand, pipeline.OnDemandImages) and no_labels is None
    expected = Batches(in_memory, 5, seed=2, flip=True, labels=labels).batch(1)
    for key, value in Batches(on_demand, 5, seed=2, flip=True).batch(1).items():
        np.testing.assert_array_equal(value, expected[key])


def test_prefetch_starts_at_the_given_step_and_keeps_the_order():
    batches = Batches(numbered_images(10), 4, seed=3)
    stream = pipeline.prefetch(batches, start_step=2)
    for step in (2, 3, 4, 5):
        np.testing.assert_array_equal(next(stream)["index"], batches.batch(step)["index"])
    stream.close()


def test_prefetch_raises_the_error_of_its_thread():
    corrupt = pipeline.OnDemandImages(ListSource([np.zeros((4, 4, 2), np.uint8)]), 4, 3)
    with pytest.raises(ValueError, match="2 channels"):
        next(pipeline.prefetch(Batches(corrupt, 1, seed=0)))


def test_model_range_maps_black_and_white_to_its_ends():
    pixels = np.array([0, 51, 255], np.uint8)
    np.testing.assert_allclose(pipeline.to_model_range(pixels, centered=False), [0, 0.2, 1], rtol=1e-6)
    np.testing.assert_allclose(pipeline.to_model_range(pixels, centered=True), [-1, -0.6, 1], rtol=1e-6)
    assert pipeline.to_model_range(pixels, centered=True).dtype == np.float32


@pytest.mark.parametrize(
    "images, batch_size, message",
    [(np.zeros((0, 4, 4, 3), np.uint8), 4, "data set is empty"), (numbered_images(2), 0, "batch_size=0")],
)
def test_batches_refuse_nothing_to_draw_from_and_empty_batches(images, batch_size, message):
    with pytest.raises(ValueError, match=message):
        Batches(images, batch_size, seed=0)
