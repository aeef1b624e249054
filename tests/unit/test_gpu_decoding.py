"""What a GPU decodes, by the same code on the CPU: as Pillow does up to rounding, and no damaged file passes."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from leokit.images.gpu import decode_by_torchvision, fit_tensor, gpu_decoder, is_plain_jpeg
from leokit.images.preprocess import Preprocessing, decode_image

HALF = (0.5, 0.5, 0.5)


def prep(**options):
    return Preprocessing(32, 0.8, "center", HALF, HALF, "bilinear", decoder="torchvision", **options)


def jpeg(mode="RGB", **options):
    ramp = np.linspace(0, 255, 120 * 160).reshape(120, 160).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.stack([ramp, ramp.T.reshape(120, 160), 255 - ramp], 2)).convert(mode).save(
        file, "JPEG", **options
    )
    return file.getvalue()


@pytest.mark.parametrize("views", ["center", "ten-crop"])
def test_a_tensor_is_fitted_as_an_image_is(views):
    data = jpeg(quality=95)
    picture = decode_by_torchvision(torch.frombuffer(bytearray(data), dtype=torch.uint8), torch.device("cpu"))
    fitted = fit_tensor(picture, prep(views=views)).numpy()
    expected = decode_image(data, prep(views=views))
    assert fitted.shape == expected.shape
    assert np.abs(fitted.astype(int) - expected).max() <= 2


def test_what_is_not_plain_is_left_to_pillow():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert is_plain_jpeg(jpeg(), prep())
    assert is_plain_jpeg(jpeg("L"), prep())
    assert not is_plain_jpeg(jpeg("CMYK"), prep())
    assert not is_plain_jpeg(jpeg(exif=exif.tobytes()), prep())
    assert not is_plain_jpeg(jpeg()[:-100], prep())
    assert not is_plain_jpeg(b"\xff\xd8\xff\xd9", prep())
    assert not is_plain_jpeg(b"", prep())


def test_a_block_comes_in_order_with_its_reasons(tmp_path):
    (tmp_path / "0.jpg").write_bytes(jpeg())
    (tmp_path / "1.jpg").write_bytes(jpeg()[:-100])
    (tmp_path / "2.jpg").write_bytes(b"")
    (tmp_path / "3.jpg").write_bytes(jpeg("CMYK"))
    with gpu_decoder(tmp_path, prep(), torch.device("cpu"), 2) as decode:
        blocks = list(decode([("0.jpg", "1.jpg"), ("2.jpg", "3.jpg")] * 4))
    assert len(blocks) == 8
    assert blocks[0].reasons == {1: "truncated: the file ends before the image does"}
    assert blocks[1].reasons == {0: "empty file"}
    assert not blocks[0].pixels[1].any() and not blocks[1].pixels[0].any()
    assert np.abs(blocks[0].pixels[0].numpy().astype(int) - decode_image(jpeg(), prep())).max() <= 2
    np.testing.assert_array_equal(blocks[1].pixels[1].numpy(), decode_image(jpeg("CMYK"), prep()))
