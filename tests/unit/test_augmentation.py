"""Augmentation of whole batches against torchvision's of single images."""

import numpy as np
import pytest
import torch
from torchvision.transforms import functional

from leokit.images.augmentation import Draws, Recipe, augment, centre, draw

SIDE = 24
PLAIN = Recipe(size=SIDE, scale=(1.0, 1.0), flip=0.0, jitter=0.0, lighting=0.0)


@pytest.fixture(scope="module")
def pixels():
    smooth = torch.rand(6, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(smooth, SIDE, mode="bilinear", align_corners=False)
    return (255 * smooth).round().byte().permute(0, 2, 3, 1).contiguous()


def plain_draws(count, **changes):
    draws = draw(PLAIN, count, np.random.default_rng(0))
    whole = np.tile(np.array([0, 0, 1, 1], np.float32), (count, 1))
    return draws._replace(boxes=whole, **changes)


def test_without_changes_an_image_stays_itself(pixels):
    made = augment(pixels, PLAIN, plain_draws(6))
    torch.testing.assert_close(made, pixels.permute(0, 3, 1, 2).float() / 255, atol=1e-5, rtol=0)
    assert made.is_contiguous(memory_format=torch.channels_last)


def test_a_part_is_cut_out_and_resized_as_torchvision_does(pixels):
    left, top, width, height = 4, 6, 12, 16
    box = [2 * (left + width / 2) / SIDE - 1, 2 * (top + height / 2) / SIDE - 1, width / SIDE, height / SIDE]
    boxes = np.tile(np.array(box, np.float32), (6, 1))
    boxes[3:, 2] *= -1
    made = augment(pixels, PLAIN, plain_draws(6)._replace(boxes=boxes))
    images = pixels.permute(0, 3, 1, 2).float() / 255
    expected = functional.resized_crop(images, top, left, height, width, [SIDE, SIDE], antialias=False)
    inner = slice(2, -2)  # at the edge one of them looks beyond the part
    torch.testing.assert_close(made[:3, :, inner, inner], expected[:3, :, inner, inner], atol=1e-5, rtol=0)
    torch.testing.assert_close(made[3:, :, inner, inner], expected[3:].flip(3)[:, :, inner, inner], atol=1e-5, rtol=0)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_colours_change_as_torchvision_changes_them(pixels, order):
    factors = np.random.default_rng(1).uniform(0.6, 1.4, (6, 3)).astype(np.float32)
    made = augment(pixels, PLAIN, plain_draws(6, factors=factors, order=np.array(order)))
    change = (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation)
    for index, image in enumerate(pixels.permute(0, 3, 1, 2).float() / 255):
        for kind in order:
            image = change[kind](image, factors[index, kind])
        torch.testing.assert_close(made[index], image, atol=2e-3, rtol=0)  # its weights of grey have fewer digits


def test_light_is_added_and_quarters_are_turned(pixels):
    light = np.linspace(-0.1, 0.1, 18).reshape(6, 3).astype(np.float32)
    turns = np.array([0, 1, 2, 3, 1, 2])
    recipe = Recipe(size=SIDE, scale=(1.0, 1.0), flip=0.0, jitter=0.0, lighting=0.1, rotation=True)
    made = augment(pixels, recipe, plain_draws(6, light=light, turns=turns))
    images = pixels.permute(0, 3, 1, 2).float() / 255 + torch.from_numpy(light)[:, :, None, None]
    for index, quarter in enumerate(turns):
        torch.testing.assert_close(made[index], images[index].rot90(int(quarter), (1, 2)), atol=1e-5, rtol=0)


def test_a_share_of_the_draws_makes_a_share_of_the_images(pixels):
    recipe = Recipe(size=16, rotation=True)
    draws = draw(recipe, 6, np.random.default_rng(2))
    whole = augment(pixels, recipe, draws)
    torch.testing.assert_close(augment(pixels[2:5], recipe, draws.rows(slice(2, 5))), whole[2:5])


def test_what_is_cut_out_has_the_area_and_ratio_asked_for():
    draws = draw(Recipe(size=8, scale=(0.2, 0.5)), 5000, np.random.default_rng(3))
    width, height = np.abs(draws.boxes[:, 2]), draws.boxes[:, 3]
    area = width * height
    assert 0.2 - 1e-6 <= area.min() and area.max() <= 0.5 + 1e-6
    assert np.abs(np.log(width / height)).max() <= np.log(4 / 3) + 1e-6
    assert (np.abs(draws.boxes[:, 0]) + width <= 1 + 1e-6).all()
    assert (np.abs(draws.boxes[:, 1]) + height <= 1 + 1e-6).all()
    assert abs((draws.boxes[:, 2] < 0).mean() - 0.5) < 0.03
    assert isinstance(draws, Draws)


def test_the_middle_is_what_testing_cuts_out(pixels):
    assert torch.equal(centre(pixels, 16), pixels[:, 4:20, 4:20])


def test_large_parts_are_made_smaller_without_aliasing():
    """Stripes of one pixel, an eighth of the size, become grey."""
    stripes = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    stripes[:, :, ::2] = 255
    made = augment(stripes, Recipe(size=8, scale=(1.0, 1.0), flip=0.0, jitter=0.0, lighting=0.0), plain_draws(1))
    assert (made - 0.5).abs().max() < 0.06


def test_light_has_the_covariance_of_imagenets_colours():
    """As published: deviations by principal component, and the components as columns (red, green, blue)."""
    deviations = 0.1 * np.diag([0.2175, 0.0188, 0.0045])
    components = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
    light = draw(Recipe(size=8, lighting=0.1), 40_000, np.random.default_rng(4)).light
    expected = components @ deviations**2 @ components.T
    along = components.T @ np.cov(light.T) @ components  # where each component shows, the least one too
    np.testing.assert_allclose(np.cov(light.T), expected, rtol=0.05)
    np.testing.assert_allclose(np.diag(along), np.diag(deviations) ** 2, rtol=0.05)
