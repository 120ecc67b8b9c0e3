"""Losses of pixels against plain torch on the pixels that count, slow definitions and the library."""

import pytest
import segmentation_models_pytorch.losses as smp
import torch
import torch.nn.functional as F

from longtail.losses import FocalLoss, LogitAdjustedCrossEntropy, balancing_weights
from longtail.segmentation.data.mask_set import IGNORE
from longtail.segmentation.losses import OverlapLoss, PixelCrossEntropy, PixelFocalLoss, to_size

COUNTS = torch.tensor([900, 60, 30, 10])
WEIGHTS = balancing_weights(COUNTS, "inverse")


def drawn(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 4, 5, 7, generator=generator, dtype=dtype)
    labels = torch.randint(-1, 4, (2, 5, 7), generator=generator)
    return logits.requires_grad_(), labels


def counted(logits, labels):
    """The pixels that count, as samples."""
    return logits.movedim(1, -1)[labels != IGNORE], labels[labels != IGNORE]


ALL = {
    "plain": lambda: PixelCrossEntropy(COUNTS, 0.0),
    "adjusted": lambda: PixelCrossEntropy(COUNTS, 1.0),
    "weighted": lambda: PixelCrossEntropy(COUNTS, 0.5, WEIGHTS),
    "focal": lambda: PixelFocalLoss(2.0),
    "focal weighted": lambda: PixelFocalLoss(1.0, WEIGHTS),
    "dice": lambda: OverlapLoss("dice"),
    "lovasz": lambda: OverlapLoss("lovasz"),
}
OF_SAMPLES = {
    "plain": lambda: LogitAdjustedCrossEntropy(COUNTS, 0.0),
    "adjusted": lambda: LogitAdjustedCrossEntropy(COUNTS, 1.0),
    "weighted": lambda: LogitAdjustedCrossEntropy(COUNTS, 0.5, WEIGHTS),
    "focal": lambda: FocalLoss(2.0),
    "focal weighted": lambda: FocalLoss(1.0, WEIGHTS),
}


@pytest.mark.parametrize("name", OF_SAMPLES)
def test_a_pixel_counts_as_a_sample_and_an_ignored_one_not_at_all(name):
    logits, labels = drawn()
    loss = ALL[name]()(logits, labels)
    (gradient,) = torch.autograd.grad(loss, logits)
    wanted = OF_SAMPLES[name]()(*counted(logits, labels))
    (wanted_gradient,) = torch.autograd.grad(wanted, logits)
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(gradient, wanted_gradient)
    assert not gradient.movedim(1, -1)[labels == IGNORE].any()


def test_adjustment_is_the_prior_added_to_the_logits():
    logits, labels = drawn()
    prior = (COUNTS.double() / COUNTS.sum()).log().view(1, 4, 1, 1)
    wanted = F.cross_entropy(logits + 0.7 * prior, labels, ignore_index=IGNORE)
    torch.testing.assert_close(PixelCrossEntropy(COUNTS, 0.7)(logits, labels), wanted)


def test_dice_is_that_of_the_classes_shown():
    logits, labels = drawn()
    labels[labels == 2] = IGNORE
    shown, truth = counted(logits.softmax(1), labels)
    scores = [2 * shown[truth == c, c].sum() / (shown[:, c].sum() + (truth == c).sum()) for c in (0, 1, 3)]
    torch.testing.assert_close(OverlapLoss("dice")(logits, labels), 1 - torch.stack(scores).mean())


def test_dice_is_the_librarys_where_all_classes_are_shown():
    logits, labels = drawn()
    wanted = smp.DiceLoss("multiclass", ignore_index=IGNORE)(logits, labels)
    torch.testing.assert_close(OverlapLoss("dice")(logits, labels), wanted)


def test_lovasz_of_sure_predictions_is_one_minus_the_iou():
    _, labels = drawn()
    predicted = torch.randint(0, 4, labels.shape, generator=torch.Generator().manual_seed(1))
    logits = 1000 * F.one_hot(predicted, 4).movedim(-1, 1).double()
    truth, made = labels[labels != IGNORE], predicted[labels != IGNORE]
    ious = [((truth == c) & (made == c)).sum() / ((truth == c) | (made == c)).sum() for c in range(4)]
    assert OverlapLoss("lovasz")(logits, labels).item() == pytest.approx(1 - float(sum(ious)) / 4, abs=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_ignored_pixels_alone_give_exactly_nothing(name):
    logits = torch.randn(2, 4, 3, 3, requires_grad=True)
    loss = ALL[name]()(logits, torch.full((2, 3, 3), IGNORE))
    loss.backward()
    assert loss.item() == 0
    assert loss.ndim == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("name", ALL)
def test_autocast_changes_nothing(name):
    logits, labels = drawn(torch.float32)
    loss = ALL[name]()
    wanted = loss(logits, labels)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(logits, labels)
    assert found.dtype == torch.float32
    assert torch.equal(found, wanted)


def test_a_class_that_is_never_there_drops_out():
    logits, labels = drawn()
    labels[labels == 2] = 1
    loss = PixelCrossEntropy(torch.tensor([900, 60, 0, 10]), 1.0)(logits, labels)
    (gradient,) = torch.autograd.grad(loss, logits)
    kept = logits[:, [0, 1, 3]]
    wanted = PixelCrossEntropy(torch.tensor([900, 60, 10]), 1.0)(kept, torch.where(labels == 3, 2, labels))
    torch.testing.assert_close(loss, wanted)
    assert torch.isfinite(gradient).all()
    assert not gradient[:, 2].any()
    with pytest.raises(ValueError, match="count is 0"):
        PixelCrossEntropy(torch.tensor([900, 0, 60, 10]), 1.0)(logits, labels)


def test_shapes_that_do_not_fit_are_refused():
    logits, labels = drawn()
    for loss in (PixelCrossEntropy(COUNTS), PixelFocalLoss(), OverlapLoss("dice")):
        with pytest.raises(ValueError, match="labels must be"):
            loss(logits, labels[:, :4])
    with pytest.raises(ValueError, match="logits must be"):
        PixelCrossEntropy(COUNTS[:3])(logits, labels)


def test_logits_are_brought_to_the_masks_size_bilinearly():
    logits = torch.arange(4.0).view(1, 1, 2, 2)
    assert to_size(logits, (2, 2)) is logits
    row = to_size(logits, (2, 4))[0, 0, 0]
    torch.testing.assert_close(row, torch.tensor([0.0, 0.25, 0.75, 1.0]))
    assert to_size(logits.bfloat16(), (4, 4)).dtype == torch.float32
