"""Encoders of pixels, decoders, the pixel classifier."""

import pytest
import torch
import torch.nn.functional as F

from longtail.errors import UserError
from longtail.models import build_encoder
from longtail.segmentation.models import DECODERS, PixelHead, build_pixel_encoder, load_backbone, to_image
from longtail.segmentation.models.decoders import CellMeans
from longtail.segmentation.models.ocr import OCRDecoder


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_decoder_trains_on_two_small_odd_images(decoder):
    encoder = build_pixel_encoder("test_resnet", decoder, 3, 32).train()
    features = encoder(torch.randn(2, 3, 30, 33))
    assert features.shape == (2, encoder.feature_dim, 8, 9)
    assert encoder.feature_dim == 32
    features.square().sum().backward()
    assert not [key for key, p in encoder.named_parameters() if p.requires_grad and p.grad is None]
    assert all(bool(torch.isfinite(p.grad).all()) for p in encoder.parameters() if p.grad is not None)


@pytest.mark.parametrize("backbone", ["mobilenetv3_small_050", "test_convnext", "test_vit"])
def test_other_encoders_give_four_maps(backbone):
    encoder = build_pixel_encoder(backbone, "fpn", 3, 32)
    maps = encoder.backbone(torch.randn(2, 3, 64, 32))
    assert [tuple(part.shape[2:]) for part in maps] == [(16, 8), (8, 4), (4, 2), (2, 1)]
    assert tuple(part.shape[1] for part in maps) == encoder.backbone.channels
    encoder(torch.randn(2, 3, 20, 41)).sum().backward()
    assert not [key for key, p in encoder.named_parameters() if p.requires_grad and p.grad is None]


def test_swin_takes_any_size():
    with torch.device("meta"):
        encoder = build_pixel_encoder("swin_tiny_patch4_window7_224", "fpn", 3, 32)
        assert encoder(torch.empty(2, 3, 45, 101)).shape == (2, 32, 12, 26)


def test_deeplab_dilates_the_last_stage():
    encoder = build_pixel_encoder("test_resnet", "deeplabv3plus", 3, 32)
    assert encoder.backbone.strides == (4, 8, 16, 16)


@pytest.mark.parametrize(
    ("backbone", "decoder", "width", "said"),
    [
        ("cifar_resnet32", "fpn", None, "ResNet"),
        ("inception_v3", "fpn", None, "strides"),
        ("resnet1", "fpn", None, "did you mean"),
        ("test_resnet", "fpm", None, "fpn"),
        ("test_resnet", "fpn", 30, "multiple of 32"),
    ],
)
def test_what_cannot_be_built_is_said(backbone, decoder, width, said):
    with pytest.raises(UserError, match=said):
        build_pixel_encoder(backbone, decoder, 3, width)


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit", "mobilenetv3_small_050"])
def test_weights_of_a_run_on_images_are_loaded(backbone, tmp_path):
    from safetensors.torch import save_file

    whole = build_encoder(backbone, 3)
    file = tmp_path / "weights.safetensors"
    save_file({f"encoder.{key}": tensor.contiguous() for key, tensor in whole.state_dict().items()}, file)
    encoder = build_pixel_encoder(backbone, "fpn", 3, 32)
    load_backbone(encoder, backbone, str(file), 3)
    own = encoder.backbone.model.state_dict()
    assert own
    assert all(torch.equal(tensor, whole.state_dict()[key]) for key, tensor in own.items())


def test_maps_stay_over_their_pixels_at_odd_sizes():
    """A place's logit goes to the pixels around its middle, wherever the image ends."""
    places = torch.arange(12.0).view(1, 1, 1, 12) * 4 + 1.5  # of a map at stride 4: the middles of its places
    columns = to_image(places.expand(1, 1, 3, 12), (9, 46), 4)[0, 0, 4]
    assert torch.allclose(columns[2:], torch.arange(46.0)[2:], atol=1e-5)


def test_an_image_of_odd_size_is_the_padded_one_cut_back():
    encoder = build_pixel_encoder("test_resnet", "unet", 3, 16).eval()
    image = torch.randn(1, 3, 37, 50)
    assert torch.equal(encoder(image), encoder(F.pad(image, (0, 14, 0, 27)))[..., :10, :13])


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_a_head_of_pixels_is_that_of_images_at_every_place(kind):
    head, maps = PixelHead(kind, 6, 4, 20.0), torch.randn(2, 6, 3, 5)
    expected = torch.stack([head.head(maps[:, :, y, x]) for y in range(3) for x in range(5)], 2).view(2, 4, 3, 5)
    assert torch.allclose(head(maps), expected, atol=1e-5)
    assert head.weight.shape == (4, 6)


@pytest.mark.parametrize("cells", [1, 2, 3, 6])
@pytest.mark.parametrize("size", [(1, 1), (2, 5), (7, 13)])
def test_means_of_cells_are_adaptive_pooling(cells, size):
    maps = torch.randn(2, 3, *size, dtype=torch.float64)
    assert torch.allclose(CellMeans(cells)(maps), F.adaptive_avg_pool2d(maps, cells))


def test_regions_are_weighted_means_of_pixels():
    """Against loops: region vectors (Eq. 8) and attention (Eq. 9, 10) of OCR."""
    torch.manual_seed(0)
    decoder = OCRDecoder([4, 5], 6, 3).double().eval()
    maps = [torch.randn(1, 4, 2, 4, dtype=torch.float64), torch.randn(1, 5, 1, 2, dtype=torch.float64)]
    found, coarse = decoder.forward_with_auxiliary(maps)
    merged = decoder.lateral[0](maps[0])
    merged = merged + F.interpolate(decoder.lateral[1](maps[1]), size=(2, 4), mode="bilinear", align_corners=False)
    pixels = decoder.pixels(merged)
    regions = torch.zeros(1, 6, 3, 1, dtype=torch.float64)
    for region in range(3):
        weights = coarse[0, region].exp() / coarse[0, region].exp().sum()
        for y in range(2):
            for x in range(4):
                regions[0, :, region, 0] += weights[y, x] * pixels[0, :, y, x]
    query, key, value = decoder.query(pixels), decoder.key(regions), decoder.value(regions)
    context = torch.zeros(1, 3, 2, 4, dtype=torch.float64)
    for y in range(2):
        for x in range(4):
            scores = torch.stack([(query[0, :, y, x] * key[0, :, k, 0]).sum() / 3**0.5 for k in range(3)]).softmax(0)
            context[0, :, y, x] = sum(scores[k] * value[0, :, k, 0] for k in range(3))
    assert torch.allclose(found, decoder.fuse(torch.cat([decoder.up(context), pixels], 1)))


def test_coarse_logits_are_reachable():
    encoder = build_pixel_encoder("test_resnet", "ocr", 3, 16, regions=5).eval()
    features, coarse = encoder(torch.randn(2, 3, 33, 40), auxiliary=True)
    assert features.shape == (2, 16, 9, 10)
    assert coarse.shape == (2, 5, 9, 10)
    with pytest.raises(ValueError, match="ocr"):
        build_pixel_encoder("test_resnet", "unet", 3, 16)(torch.randn(2, 3, 32, 32), auxiliary=True)
