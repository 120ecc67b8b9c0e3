import math

import pytest
import torch

from longtail.errors import UserError
from longtail.models import CosineHead, LinearHead, ProjectionHead, build_head, unit_vectors


def slow_cosine_logits(features, weight, scale):
    """Float64 arithmetic of plain Python, one pair at a time."""
    rows = []
    for x in features.tolist():
        row = []
        for w in weight.tolist():
            dot = math.fsum(a * b for a, b in zip(x, w, strict=True))
            row.append(scale * dot / (math.sqrt(math.fsum(a * a for a in x)) * math.sqrt(math.fsum(b * b for b in w))))
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize(("batch", "dim", "classes"), [(1, 1, 2), (5, 7, 3), (4, 64, 100)])
def test_cosine_head_equals_a_float64_loop(batch, dim, classes, scale):
    torch.manual_seed(batch)
    head = CosineHead(dim, classes, scale)
    with torch.no_grad():
        head.weight.mul_(torch.rand(classes, 1) * 10 + 0.01)
    features = torch.randn(batch, dim) * 3
    logits = head(features)
    torch.testing.assert_close(logits.double(), slow_cosine_logits(features, head.weight, scale), atol=2e-5, rtol=1e-5)
    wide = head(features.double())
    assert wide.dtype == torch.float64
    torch.testing.assert_close(wide, slow_cosine_logits(features, head.weight, scale), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("factor", [1e-8, 1e-3, 1e8])
def test_cosine_head_ignores_the_length_of_features_and_weights(factor):
    torch.manual_seed(0)
    head, features = CosineHead(16, 5), torch.randn(6, 16)
    expected = head(features)
    torch.testing.assert_close(head(features * factor), expected, atol=1e-4, rtol=1e-5)
    with torch.no_grad():
        head.weight.mul_(factor)
    torch.testing.assert_close(head(features), expected, atol=1e-4, rtol=1e-5)


def test_a_zero_vector_gives_zero_logits_and_tame_gradients():
    torch.manual_seed(0)
    head = CosineHead(8, 3)
    features = torch.zeros(2, 8, requires_grad=True)
    with torch.no_grad():
        head.weight[1] = 0
    logits = head(features)
    assert torch.equal(logits, torch.zeros(2, 3))
    torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1])).backward()
    assert features.grad.abs().max() < 100
    assert torch.isfinite(head.weight.grad).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_cosine_head_works_in_float32_on_half_precision_features(dtype):
    torch.manual_seed(0)
    head, features = CosineHead(64, 10), torch.randn(4, 64).to(dtype)
    expected = slow_cosine_logits(features.double(), head.weight, 30.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = head(features)
    assert logits.dtype == torch.float32
    # A bfloat16 product would be off by about 0.1.
    torch.testing.assert_close(logits.double(), expected, atol=5e-5, rtol=1e-5)


def test_cosine_gradient_is_right():
    torch.manual_seed(0)
    head = CosineHead(5, 3).double()
    features = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(head, (features,))


def test_cosine_weights_start_as_random_directions():
    torch.manual_seed(0)
    weight = CosineHead(64, 500).weight.detach()
    torch.testing.assert_close(weight.norm(dim=1), torch.ones(500))
    # Uniform on the sphere: every coordinate has mean 0 and variance 1/64.
    assert weight.mean(0).abs().max() < 5 / math.sqrt(64 * 500)
    assert abs(float(weight.var()) * 64 - 1) < 0.01


def test_linear_head_is_an_affine_map():
    torch.manual_seed(0)
    head, features = LinearHead(6, 4), torch.randn(3, 6)
    expected = features.double() @ head.weight.double().T + head.bias.double()
    torch.testing.assert_close(head(features).double(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("hidden", "width"), [(None, 12), (20, 20)])
def test_projection_equals_its_formula(hidden, width):
    torch.manual_seed(0)
    head = ProjectionHead(12, 5, hidden)
    features = torch.randn(7, 12)
    first, norm, _, last = head.layers
    assert first.weight.shape == (width, 12)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.normal_()
        x = features.double() @ first.weight.double().T
        x = (x - x.mean(0)) / (x.var(0, correction=0) + norm.eps).sqrt()
        x = (x * norm.weight.double() + norm.bias.double()).clamp(min=0)
        x = x @ last.weight.double().T + last.bias.double()
        expected = x / x.square().sum(1, keepdim=True).sqrt()
        torch.testing.assert_close(head(features).double(), expected, atol=1e-5, rtol=1e-4)


def test_projection_gives_float32_unit_vectors_under_autocast():
    torch.manual_seed(0)
    head = ProjectionHead(64, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        projected = head(torch.randn(50, 64))
    assert projected.dtype == torch.float32
    torch.testing.assert_close(projected.norm(dim=1), torch.ones(50), atol=1e-6, rtol=0)


def test_unit_vectors_over_any_leading_shape():
    vectors = torch.tensor([[[3.0, 4.0], [0.0, 0.0]], [[0.0, -2.0], [1e-10, 0.0]]])
    expected = torch.tensor([[[0.6, 0.8], [0.0, 0.0]], [[0.0, -1.0], [1.0, 0.0]]])
    torch.testing.assert_close(unit_vectors(vectors), expected)


def test_heads_by_name():
    assert isinstance(build_head("linear", 4, 3), LinearHead)
    cosine = build_head("cosine", 4, 3, scale=16.0)
    assert isinstance(cosine, CosineHead)
    assert cosine(cosine.weight[:1]).detach()[0, 0].item() == pytest.approx(16.0)
    with pytest.raises(UserError, match="unknown head 'cosin'; did you mean 'cosine'"):
        build_head("cosin", 4, 3)
