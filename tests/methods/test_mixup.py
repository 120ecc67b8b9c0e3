"""Mixup: images and losses of a batch against blending by hand."""

import pytest
import torch
import torch.nn.functional as F
from test_methods import build, loader_for

from longtail.methods.mixup import mixup


def test_images_and_loss_are_blended_by_one_share():
    torch.manual_seed(3)
    images, labels = torch.randn(5, 1, 2, 2), torch.tensor([0, 1, 2, 1, 0])
    mixed = mixup(images, labels, 0.4)
    share = float(mixed.share)
    assert 0 < share < 1
    for k in range(5):
        torch.testing.assert_close(mixed.images[k], share * images[k] + (1 - share) * images[k - 1])
    logits = torch.randn(5, 3)
    targets = share * F.one_hot(labels, 3) + (1 - share) * F.one_hot(labels.roll(1), 3)
    expected = -(targets * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(mixed.loss(F.cross_entropy, logits), expected)


def test_the_share_is_drawn_from_beta_by_the_seed_of_the_step():
    shares = []
    for seed in range(4000):
        torch.manual_seed(seed)
        shares.append(mixup(torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64), 0.5).share)
    shares = torch.stack(shares).double()
    # Beta(a, a) has mean 1/2 and variance 1 / (4 (2a + 1)).
    assert shares.mean() == pytest.approx(0.5, abs=0.02)
    assert shares.var() == pytest.approx(1 / 8, rel=0.06)
    torch.manual_seed(7)
    assert mixup(torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64), 0.5).share.double() == shares[7]


def test_off_it_is_the_batch_itself():
    images, labels = torch.randn(3, 1, 2, 2), torch.tensor([0, 1, 1])
    state = torch.get_rng_state()
    mixed = mixup(images, labels, 0.0)
    assert mixed.images is images
    assert torch.equal(torch.get_rng_state(), state)
    logits = torch.randn(3, 2)
    assert mixed.loss(F.cross_entropy, logits) == F.cross_entropy(logits, labels)


@pytest.mark.parametrize("name", ["cross_entropy", "ldam", "gml"])
def test_methods_mix_the_classifier_view_alone(name, tiny_config, tiny_splits):
    previous = build("logit_adjustment", tiny_config(), tiny_splits).classifier()
    method = build(name, tiny_config(loss__mixup=0.4), tiny_splits, previous)
    loader = loader_for(method, tiny_splits)
    method.prepare(loader.fetch, loader.labels)
    batch = loader.load(0, 0)
    seen = []
    handle = method.encoder.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    torch.manual_seed(5)
    found = method(batch, 0.0)
    handle.remove()
    torch.manual_seed(5)
    mixed = mixup(batch.views["classifier"], batch.labels, 0.4)
    assert not torch.equal(mixed.images, batch.views["classifier"])
    assert torch.equal(seen[0][:8], mixed.images)
    if name == "gml":
        assert torch.equal(seen[0][8:], batch.views["query"])
    loss = method.classifier_loss if name == "gml" else method.loss
    logits = method.head(method.encoder(seen[0])[:8])
    torch.testing.assert_close(next(iter(found.values())), mixed.loss(loss, logits))
    assert "bits" not in (method.readings() if name != "gml" else {})
