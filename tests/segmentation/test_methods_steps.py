"""The step of each method of segmentation against a slow version, and its contract with the loop."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from pixel_scenes import TinyEncoder, batch_of, build, config_of, fetch_of, files_of, gml, scenes

from longtail.errors import UserError
from longtail.memory import FrozenTeacher, MomentumTeacher
from longtail.methods.base import implied_prior
from longtail.segmentation.data.mask_set import IGNORE
from longtail.segmentation.methods import DENSE_METHODS, dense_is_read, get_dense_method
from longtail.segmentation.methods import gml as gml_file
from longtail.segmentation.methods.region_rebalance import region_means
from longtail.segmentation.sampling import labels_at, pixels_at, sample_pixels


@pytest.fixture(autouse=True)
def _tiny_networks(monkeypatch):
    monkeypatch.setattr("longtail.segmentation.methods.base.build_pixel_encoder", lambda *_: TinyEncoder())


def any_method(name, masks, **options):
    """The method, with a teacher and a full queue if it is GML."""
    return gml(masks, **options) if name == "gml" else build(name, files_of(masks), **options)


def step(method, batch):
    """What the loop does of a step, but for the optimiser."""
    method.update_memory(batch)
    return method(batch, 0.5)


def samples(method, batch):
    """The logits of the pixels that count and their labels."""
    logits = method.head(method.encoder(batch.views["classifier"]))
    logits = F.interpolate(logits, size=batch.labels.shape[1:], mode="bilinear")
    return logits.movedim(1, -1)[batch.labels != IGNORE], batch.labels[batch.labels != IGNORE]


@pytest.mark.parametrize(
    ("name", "options", "strength"),
    [
        ("cross_entropy", {}, 0.0),
        ("cross_entropy", {"loss__prior_strength": 2.0}, 0.0),
        ("logit_adjustment", {}, 1.0),
        ("logit_adjustment", {"loss__prior_strength": 0.5}, 0.5),
    ],
)
def test_cross_entropies_against_the_formula(name, options, strength):
    masks = scenes()
    method, batch = build(name, files_of(masks), **options).eval(), batch_of(masks, [0, 1, 2])
    logits, labels = samples(method, batch)
    prior = files_of(masks).class_counts / files_of(masks).class_counts.sum()
    torch.testing.assert_close(
        step(method, batch), {"classifier": F.cross_entropy(logits + strength * prior.log(), labels)}
    )


def test_the_prior_of_images():
    masks = scenes()
    method, batch = (
        build("logit_adjustment", files_of(masks), segmentation__prior="images").eval(),
        batch_of(masks, [1]),
    )
    logits, labels = samples(method, batch)
    prior = torch.tensor([6, 6, 3, 1]) / 16
    torch.testing.assert_close(step(method, batch)["classifier"], F.cross_entropy(logits + prior.log(), labels))


def test_class_weights_by_pixels():
    masks = scenes()
    method, batch = build("cross_entropy", files_of(masks), loss__class_weights="inverse").eval(), batch_of(masks, [1])
    logits, labels = samples(method, batch)
    weights = 1 / files_of(masks).class_counts.float()
    torch.testing.assert_close(step(method, batch)["classifier"], F.cross_entropy(logits, labels, weights))


@pytest.mark.parametrize("name", ["dice", "lovasz"])
def test_overlap_stands_beside_cross_entropy(name):
    masks = scenes()
    light, heavy = (build(name, files_of(masks), segmentation__overlap_weight=w).eval() for w in (1.0, 3.0))
    batch = batch_of(masks, [0, 1])
    one, three = step(light, batch), step(heavy, batch)
    logits, labels = samples(light, batch)
    torch.testing.assert_close(one["classifier"], F.cross_entropy(logits, labels))
    torch.testing.assert_close(three[name], 3 * one[name])
    assert 0 < one[name] < 1


def test_region_means_are_means():
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(3, 5, 4, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(-1, 3, (3, 4, 4), generator=generator)
    labels[2] = IGNORE
    means, classes = region_means(maps, labels, 3)
    wanted = [(maps[b][:, labels[b] == c].mean(1), c) for b in range(3) for c in range(3) if (labels[b] == c).any()]
    torch.testing.assert_close(means, torch.stack([mean for mean, _ in wanted]))
    assert classes.tolist() == [c for _, c in wanted]


def test_regions_are_adjusted_by_image_counts():
    masks = scenes()
    method, batch = build("region_rebalance", files_of(masks)).eval(), batch_of(masks, [0, 1, 3])
    maps = method.encoder(batch.views["classifier"])
    small = labels_at(batch.labels, 4)
    means = [(maps[b][:, small[b] == c].mean(1), c) for b in range(3) for c in range(4) if (small[b] == c).any()]
    logits = method.region_head(torch.stack([mean for mean, _ in means]))
    adjusted = logits + (torch.tensor([6.0, 6.0, 3.0, 1.0]) / 16).log()
    wanted = 0.3 * F.cross_entropy(adjusted, torch.tensor([c for _, c in means]))
    torch.testing.assert_close(step(method, batch)["region"], wanted)


def slow_gml(queries, labels, keys, key_labels, prior, temperature):
    """L_GML, query by query in float64."""
    losses = []
    for query, label in zip(queries.double(), labels.tolist(), strict=True):
        kernel = (keys.double() @ query / temperature).exp()
        mass = [prior[c] * kernel[key_labels == c].mean() for c in range(len(prior)) if (key_labels == c).any()]
        losses.append(-(prior[label] * kernel[key_labels == label].mean() / sum(mass)).log())
    return torch.stack(losses).mean()


def test_the_contrast_of_drawn_pixels_with_the_queue():
    masks = scenes()
    method, batch = gml(masks, segmentation__queries=15).eval(), batch_of(masks, [0, 1, 2])
    method.update_memory(batch)
    maps = method.encoder(batch.views["classifier"])
    seed = gml_file.derive_seed(method.seed, "queries")
    flat, labels, _ = sample_pixels(labels_at(batch.labels, 4), batch.keys, 15, 4, seed)
    assert len(flat) == 15
    assert set(labels.tolist()) == {0, 1, 2, 3}
    filled = method.queue.filled
    # 15 queries for batches of 4 images: 3.75 an image. Classes 0 and 1 are in 6 images, class 2 in 3, class 3 is one
    # cell of one image; each gives up to a level of (6 * 3.75 - 1) / (6 + 6 + 3).
    level = 21.5 / 15
    assert method.contrast_loss.class_counts.tolist() == pytest.approx([6 * level, 6 * level, 3 * level, 1])
    prior = method.contrast_loss.class_counts.double() / method.contrast_loss.class_counts.sum()
    wanted = slow_gml(
        method.query_projection(pixels_at(maps, flat)),
        labels,
        method.key_projection(method.queue.features[filled]),
        method.queue.labels[filled],
        prior,
        0.1,
    )
    torch.testing.assert_close(method(batch, 0.0)["gml"].double(), wanted, rtol=1e-5, atol=1e-5)


def test_bits_leave_out_keys_of_the_querys_own_image():
    masks = scenes()
    method, batch = gml(masks).eval(), batch_of(masks, [0, 1, 2])
    method.update_memory(batch)
    method(batch, 0.0)
    seed = gml_file.derive_seed(method.seed, "queries")
    flat, labels, images = sample_pixels(labels_at(batch.labels, 4), batch.keys, 60, 4, seed)
    queries = method.query_projection(pixels_at(method.encoder(batch.views["classifier"]), flat)).detach()
    queue, keys = method.queue, method.key_projection(method.queue.features).detach()
    counts = method.contrast_loss.class_counts.double()
    prior, losses = counts / counts.sum(), []
    for query, label, image in zip(queries, labels.tolist(), batch.ids[images].tolist(), strict=True):
        kept = queue.filled & ~((queue.ids == image) & (queue.labels == label))
        if (queue.labels[kept] == label).any():
            losses.append(slow_gml(query[None], torch.tensor([label]), keys[kept], queue.labels[kept], prior, 0.1))
    assert 0 < len(losses) < len(labels)  # class 3 is in one image alone
    bits = (-(prior * prior.log()).sum() - torch.stack(losses).mean()) / math.log(2)
    torch.testing.assert_close(method.readings()["bits"].double(), bits, rtol=1e-4, atol=1e-4)


def test_what_learns_and_what_does_not():
    masks = scenes()
    method = gml(masks)
    method.train()
    step(method, batch_of(masks, [0, 1, 2, 3]))["gml"].backward()
    for part in (method.encoder, method.query_projection, method.key_projection):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())
    assert method.contrast_loss.log_temperature.grad != 0
    assert all(p.grad is None for p in method.head.parameters())
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.parameters())
    trained = {id(p) for group in method.param_groups() for p in group["params"]}
    assert trained == {id(p) for p in method.parameters() if p.requires_grad}
    assert [group.get("weight_decay") for group in method.param_groups()] == [None, 0.0]


def test_the_primed_queue_holds_teacher_features_of_pixels_of_each_class():
    masks = scenes()
    method, files = gml(masks), files_of(masks)
    queue = method.queue
    assert torch.bincount(queue.labels[queue.filled]).tolist() == queue.lengths.tolist()
    assert queue.lengths[0] < 0.5 * queue.capacity  # of the pixels class 0 has two thirds
    maps = method.teacher.features(fetch_of(masks)("key", torch.arange(6), torch.zeros(6)).views["key"])
    cells = labels_at(masks, 4)
    for feature, label, image in zip(queue.features, queue.labels.tolist(), queue.ids.tolist(), strict=True):
        assert files.pixels[image, label] > 0
        own = maps[image][:, cells[image] == label]
        assert (own - feature[:, None]).abs().amax(0).min() < 1e-6


def test_pointers_advance_by_what_is_written():
    masks = scenes()
    method = gml(masks)
    before = method.queue.pointers.clone()
    method.update_memory(batch_of(masks, [0, 1, 2]))
    # Three pixels a class and image: classes 0 and 1 in three images, 2 (of two cells) in two, 3 (one cell) in one.
    written = torch.tensor([9, 9, 4, 1])
    assert torch.equal(method.queue.pointers, (before + written) % method.queue.lengths)


def test_a_step_takes_the_key_view_as_the_teacher_sees_it():
    masks = scenes()
    method, batch = gml(masks), batch_of(masks, [3])
    method.update_memory(batch)
    newest = method.queue.features[(method.queue.ids == 3) & (method.queue.labels == 0)]
    maps = method.teacher.features(batch.views["key"])[0].flatten(1).T
    assert (torch.cdist(newest, maps).amin(1) < 1e-5).sum() >= 3


@pytest.mark.parametrize("kind", ["none", "momentum"])
def test_without_a_trained_teacher(kind):
    masks = scenes()
    method = gml(masks, teacher__kind=kind)
    assert [stage.name for stage in type(method).stages(method.context.config, "gml")] == ["student"]
    assert isinstance(method.teacher, MomentumTeacher)
    with torch.no_grad():
        for parameter in method.encoder.parameters():
            parameter += 0.1
    batch = batch_of(masks, [3])
    method.update_memory(batch)
    method.encoder.eval()
    own = method.encoder(batch.views["key"])
    same = torch.allclose(method.teacher.features(batch.views["key"]), own, atol=1e-6)
    assert same == (kind == "none")


@pytest.mark.parametrize("name", DENSE_METHODS)
def test_ignored_pixels_alone_change_nothing(name):
    masks = scenes()
    method = any_method(name, masks)
    batch = batch_of(torch.full_like(masks, IGNORE), [0, 1])
    batch.views = batch_of(masks, [0, 1]).views
    held = copy.deepcopy(method.queue.state_dict()) if name == "gml" else {}
    losses = step(method, batch)
    assert all(loss.item() == 0 and loss.ndim == 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is None or torch.equal(p.grad, torch.zeros_like(p)) for p in method.parameters())
    for key, value in held.items():
        assert torch.equal(method.queue.state_dict()[key], value)


@pytest.mark.parametrize("name", DENSE_METHODS)
def test_saved_and_gone_on_is_bit_for_bit_the_same(name):
    masks = scenes()

    def train(method, optimiser, steps):
        seen = []
        for index in steps:
            losses = step(method, batch_of(masks, [index % 3, 3 + index % 3, 1], index))
            optimiser.zero_grad()
            sum(losses.values()).backward()
            optimiser.step()
            seen.append({key: loss.item() for key, loss in losses.items()})
        return seen

    method = any_method(name, masks)
    optimiser = torch.optim.SGD(method.param_groups(), lr=0.01)
    train(method, optimiser, range(2))
    saved = copy.deepcopy(method.state_dict())
    went_on = train(method, optimiser, range(2, 4))
    other = any_method(name, masks.flip(0), seed=0)
    other.load_state_dict(saved)
    assert train(other, torch.optim.SGD(other.param_groups(), lr=0.01), range(2, 4)) == went_on
    assert all(math.isfinite(value) for losses in went_on for value in losses.values())


def test_a_class_of_one_pixel_in_one_image():
    masks = scenes()
    masks[masks == 3] = 0
    masks[1, 2, 2] = 3  # the centre of a cell
    method = gml(masks)
    mine = method.queue.labels == 3
    assert method.queue.filled[mine].all()
    assert (method.queue.ids[mine] == 1).all()
    # Its own image's are the only keys that it has: the temperature learns from the other classes alone.
    losses = step(method, batch_of(masks, [0, 1]))
    assert all(torch.isfinite(loss) for loss in losses.values())
    masks[1, 2, 2], masks[1, 3, 3] = 0, 3  # seen by no cell
    method = gml(masks)
    assert not method.queue.filled[mine].any()
    losses = step(method, batch_of(masks, [0, 1]))
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)
    assert method.readings()["queue_filled"] == pytest.approx(1 - int(mine.sum()) / method.queue.capacity)


def test_a_class_that_no_training_mask_shows():
    masks = scenes()
    masks[masks == 3] = 1
    for name in DENSE_METHODS:
        losses = step(any_method(name, masks), batch_of(masks, [0, 1]))
        assert all(torch.isfinite(loss) for loss in losses.values()), name


def test_a_very_low_temperature():
    masks = scenes()
    method = gml(masks, loss__temperature=0.005)
    loss = step(method, batch_of(masks, [0, 1, 2]))["gml"]
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)
    assert method.readings()["temperature"] == pytest.approx(0.005)


def test_similarities_are_held_in_parts(monkeypatch):
    masks, rows = scenes(), []
    whole = step(gml(masks).eval(), batch_of(masks, [0, 1, 2]))["gml"]
    monkeypatch.setattr(gml_file, "MAX_SIMILARITIES", 160)
    spied = gml_file.GMLLoss.forward.__globals__["label_log_odds"]

    def spy(queries, keys, *others):
        rows.append(len(queries) * len(keys))
        return spied(queries, keys, *others)

    monkeypatch.setattr("longtail.losses.gml.label_log_odds", spy)
    parts = step(gml(masks).eval(), batch_of(masks, [0, 1, 2]))["gml"]
    torch.testing.assert_close(parts, whole)
    assert len(rows) > 1
    assert max(rows) <= 160
    monkeypatch.undo()
    # 65,536 queries against 16,384 keys are 4 GiB of similarities, four times that with what is made of them.
    assert 16 * gml_file.MAX_SIMILARITIES <= 2**29


def test_bits_are_those_of_the_pixels_drawn():
    masks = scenes()
    method = gml(masks)
    step(method, batch_of(masks, [0, 1, 2]))
    shares = method.contrast_loss.class_counts / method.contrast_loss.class_counts.sum()
    entropy = -(shares * shares.log2()).sum()
    readings = method.readings()
    assert -10 < readings["bits"] < entropy
    assert readings["queue_filled"] == 1


def test_without_contrast_nothing_of_it_is_made():
    masks = scenes()
    method = gml(masks, loss__contrast_weight=0.0)
    assert set(method.views) == {"classifier"}
    assert not method.queue.filled.any()
    batch = batch_of(masks, [0, 1])
    del batch.views["key"]
    assert set(step(method, batch)) == {"classifier"}
    assert method.readings() == {}


def test_distillation_is_nothing_from_a_twin_and_something_from_another():
    masks = scenes()
    batch = batch_of(masks, [0, 1])
    method = gml(masks, loss__distillation_weight=1.0).eval()
    with torch.no_grad():
        method.head.weight.neg_()
    assert step(method, batch)["distillation"].item() > 1e-4
    method.encoder.load_state_dict(method.teacher.encoder.state_dict())
    method.head.load_state_dict(method.teacher.head.state_dict())
    assert abs(step(method, batch)["distillation"].item()) < 1e-5


def test_a_decoders_coarse_prediction_is_trained_beside():
    masks = scenes()

    class Coarse(TinyEncoder):
        def forward(self, images, auxiliary=False):
            maps = super().forward(images)
            return (maps, maps[:, :4]) if auxiliary else maps

    built = []
    with pytest.MonkeyPatch.context() as patch:
        name = "longtail.segmentation.methods.base.build_pixel_encoder"
        patch.setattr(name, lambda *given: built.append(given) or Coarse())
        method = build("cross_entropy", files_of(masks), segmentation__decoder="ocr", segmentation__width=6).eval()
    assert built == [("tiny", "ocr", 3, 6, 4)]
    batch = batch_of(masks, [0, 1])
    coarse = method.encoder(batch.views["classifier"])[:, :4]
    logits = F.interpolate(coarse, size=(16, 16), mode="bilinear")
    wanted = 0.4 * F.cross_entropy(logits, batch.labels, ignore_index=IGNORE)
    torch.testing.assert_close(step(method, batch)["auxiliary"], wanted)


@pytest.mark.parametrize("name", DENSE_METHODS)
def test_a_few_steps_teach_it(name):
    masks = scenes()
    method = any_method(name, masks)
    optimiser = torch.optim.AdamW(method.param_groups(), lr=0.02)
    first = last = None
    for index in range(12):
        losses = step(method, batch_of(masks, [0, 1, 2, 3], index))
        optimiser.zero_grad()
        sum(losses.values()).backward()
        optimiser.step()
        last = {key: loss.item() for key, loss in losses.items()}
        first = first or last
    for key in first:
        assert last[key] < 0.9 * first[key], key


def test_what_is_deployed_implies_the_prior_that_it_was_trained_with():
    masks = scenes()
    files = files_of(masks)
    shares = files.class_counts.double() / files.class_counts.sum()

    def prior(name, **options):
        return any_method(name, masks, **options).classifier().logit_prior.double()

    torch.testing.assert_close(prior("cross_entropy"), shares, rtol=0, atol=1e-6)
    uniform = torch.full((4,), 0.25, dtype=torch.float64)
    torch.testing.assert_close(prior("gml"), uniform, rtol=0, atol=1e-6)
    torch.testing.assert_close(prior("cross_entropy", loss__class_weights="inverse"), uniform, rtol=0, atol=1e-6)
    by_images = shares / torch.tensor([6, 6, 3, 1])
    torch.testing.assert_close(
        prior("logit_adjustment", segmentation__prior="images"), by_images / by_images.sum(), rtol=0, atol=1e-6
    )


def test_implied_prior_of_absent_classes_is_finite():
    counts = torch.tensor([90, 10, 0])
    assert implied_prior(counts, 1.0).tolist() == pytest.approx([1 / 3] * 3)
    assert implied_prior(counts, 0.0).tolist() == pytest.approx([0.9, 0.1, 0])
    assert implied_prior(counts, 2.0).tolist() == pytest.approx([0.1, 0.9, 0])
    half = implied_prior(counts, 0.5, torch.tensor([1.0, 3.0, torch.nan]), torch.tensor([1, 1, 0]))
    assert half.tolist() == pytest.approx([0.75, 0.25, 0])


def test_the_teacher_is_a_stage_of_its_own_or_a_ready_run():
    config = config_of("gml")
    teacher, student = get_dense_method("gml").stages(config, "gml")
    assert (teacher.method, teacher.epochs, student.takes, student.ready) == ("logit_adjustment", 3, "teacher", None)
    (student,) = get_dense_method("gml").stages(config_of("gml", teacher__run="runs/ready"), "gml")
    assert (student.takes, student.ready) == ("teacher", "runs/ready")


@pytest.mark.parametrize(
    ("name", "options", "word"),
    [
        ("gml", {"teacher__kind": "pretrained"}, "teacher.kind pretrained"),
        ("gml", {"teacher__cache": 2}, "teacher.cache"),
        ("gml", {"teacher__kind": "momentum", "teacher__run": "runs/x"}, "teacher.run"),
        ("gml", {"teacher__kind": "none", "loss__distillation_weight": 1.0}, "distillation_weight"),
        ("gml", {"teacher__run": "/nowhere/run"}, "/nowhere/run"),
        ("gml", {"queue__capacity": 7}, "queue capacity of 7"),
        ("gml", {"queue__kind": "fifo"}, "queue.kind fifo"),
        ("gml", {"queue__project": False}, "queue.project"),
        ("gml", {"queue__sharded": True}, "queue.sharded"),
        ("gml", {"queue__fresh_share": 0.5}, "queue.fresh_share"),
        ("cross_entropy", {"loss__mixup": 0.2}, "mixup"),
        ("cross_entropy", {"loss__class_weights": "inverse", "loss__deferred_from": 0.8}, "deferred_from"),
    ],
)
def test_options_that_cannot_be_are_refused_in_a_sentence(name, options, word):
    get_dense_method(name).check(config_of(name), files_of(scenes()))
    with pytest.raises(UserError, match=word):
        get_dense_method(name).check(config_of(name, **options), files_of(scenes()))


def test_masks_without_a_pixel_are_refused():
    with pytest.raises(UserError, match="no training mask"):
        get_dense_method("cross_entropy").check(config_of("cross_entropy"), files_of(torch.full((2, 8, 8), IGNORE)))


def test_a_teacher_of_other_classes_or_another_size_is_refused():
    masks = scenes()
    teacher = build("logit_adjustment", files_of(masks)).classifier()
    with pytest.raises(UserError, match="teacher's classes"):
        build("gml", files_of(masks, classes=5), teacher)
    with pytest.raises(UserError, match="brought to no size"):
        build("gml", files_of(masks, size=(8, 8)), teacher)
    assert isinstance(build("gml", files_of(masks), teacher).teacher, FrozenTeacher)


def test_names_and_what_each_reads():
    with pytest.raises(UserError, match="cross_entropy"):
        get_dense_method("cross_entropi")
    assert dense_is_read("cross_entropy", "epochs")
    assert dense_is_read("dice", "segmentation.decoder")
    assert not dense_is_read("cross_entropy", "segmentation.queries_per_class")
    assert dense_is_read("gml", "segmentation.queries_per_class")
    assert dense_is_read("gml", "teacher.kind")
    assert not dense_is_read("dice", "teacher.kind")
    assert dense_is_read("dice", "segmentation.overlap_weight")
    assert not dense_is_read("gml", "views.query")
    assert dense_is_read("of someone else", "views.query")
    assert all(method.uses_progress for method in DENSE_METHODS.values())
