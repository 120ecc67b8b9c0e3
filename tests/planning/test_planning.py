"""`longtail plan`: its counts by hand, its refusals, what it prints."""

import json

import pytest
import torch

import longtail
from longtail.cli import main
from longtail.errors import UserError
from longtail.models import build_encoder
from longtail.planning import calibrate as calibration
from longtail.planning.estimate import seconds_of
from longtail.planning.facts import tail_counts
from longtail.planning.hardware import DEVICES, assumed_rates

TEACHER = {"teacher": {"backbone": "cifar_resnet20"}}
SMALL = {"data": "cifar100-lt", "backbone": "cifar_resnet20", "quiet": True, "epochs": 2, **TEACHER}


def planned(**options):
    return longtail.plan(**{**SMALL, "gpu": "h100", "batch_size": 64, **options})


ONE = {"teacher": {"backbone": "cifar_resnet32"}, "queue": {"capacity": 1024, "projection_dim": 32}}
TINY = {"backbone": "small_net", "teacher": {"backbone": "small_net"}}


@pytest.fixture(scope="module")
def one():
    return planned(**ONE)


def test_weights_and_queue_by_hand(one):
    teacher, student = (stage.count for stage in one.stages)
    assert [teacher.stage.backbone, student.stage.backbone] == ["cifar_resnet32", "cifar_resnet20"]
    encoder = build_encoder("cifar_resnet20", 3)
    held = sum(x.numel() * x.element_size() for x in (*encoder.parameters(), *encoder.buffers()))
    trained = sum(p.numel() for p in encoder.parameters())
    dim = encoder.feature_dim
    head, projection = 100 * dim, dim * dim + 2 * dim + dim * 32 + 32
    learned = trained + head + 2 * projection + 1  # and the temperature
    assert student.sizes.gradient_bytes == 4 * learned == student.memory["gradients"] == student.memory["optimiser"]
    assert held + 4 * (head + 2 * projection) < student.memory["weights"] < held + 4 * (head + 2 * projection) + 4096
    # Features, label, id and mark of each slot, and the lengths and offsets of the classes.
    slots = 1024 * (4 * dim + 8 + 8 + 1)
    assert slots < student.memory["queue"] < slots + 8 * 8 * 101
    assert student.sizes.queue_bytes == 1024 * dim * 4
    assert teacher.memory["queue"] == teacher.memory["teacher"] == 0


def test_a_step_is_the_sum_of_its_products(one):
    student = one.stages[1].count
    flops = {
        part: sum(op.flops for op in student.operations if op.part == part) for part in ("projections", "contrast")
    }
    batch, keys, dim, width = 64, 1024, 64, 32
    # Queue and queries through two maps, forward and backward; of the queue's features nothing asks for a gradient.
    maps = dim * dim + dim * width
    assert flops["projections"] == 2 * (3 * (batch + keys) * maps - keys * dim * dim)
    # One product for both copies, and one for each side's gradient.
    assert flops["contrast"] == 3 * 2 * batch * keys * width


def test_images_and_steps(one):
    images = sum(max(1, int(500 * 0.01 ** (c / 99))) for c in range(100))
    student = one.stages[1].count
    assert len(one.data.train) == images
    assert student.steps == 2 * (images // 64)
    assert student.memory["images (this batch and the next)"] == 2 * 3 * 64 * 3 * 32 * 32 * 4
    assert student.memory["training images"] == images * 3 * 32 * 32


def test_more_devices_take_less_time_and_memory_each():
    plans = [planned(batch_size=512, gpus=gpus, **TINY) for gpus in (1, 2, 8)]
    activations = [p.stages[1].count.memory["activations and working memory"] for p in plans]
    assert activations == sorted(activations, reverse=True)
    flops = [p.stages[1].count.flops for p in plans]
    assert flops == sorted(flops, reverse=True)
    sent = [sum(x.sent for x in p.stages[1].exchanged) for p in plans]
    assert sent == sorted(sent)
    assert sent[0] == 0 < sent[1]
    assert plans[0].stages[1].waiting == 0 < plans[2].stages[1].waiting
    assert plans[0].stages[1].computing > plans[1].stages[1].computing > plans[2].stages[1].computing


def test_a_sharded_queue_is_projected_in_parts():
    def projected(plan):
        return sum(op.flops for op in plan.stages[1].count.operations if op.part == "projections")

    whole, parts = (planned(gpus=4, queue={"capacity": 4096, "sharded": sharded}, **TINY) for sharded in (False, True))
    assert parts.stages[1].count.sizes.queue_bytes * 4 == whole.stages[1].count.sizes.queue_bytes
    assert projected(parts) < 0.3 * projected(whole)


def test_sharded_encoders_take_a_share_of_the_memory_and_send_less_of_gradients():
    own = {"gpus": 8, "batch_size": 64, "optimiser": {"ema": 0.9, "name": "adamw"}}
    whole = planned(**ONE, **own).stages[1]
    dealt = planned(**ONE, **{**own, "optimiser": {**own["optimiser"], "shard": True}}).stages[1]
    # Batch normalisation stays whole: a few vectors.
    encoder, teacher = (
        4 * sum(p.numel() for p in build_encoder(name, 3).parameters() if p.ndim > 1)
        for name in ("cifar_resnet20", "cifar_resnet32")
    )
    saved = {name: size - dealt.count.memory[name] for name, size in whole.count.memory.items()}
    for name, size in {"weights": 1, "gradients": 1, "optimiser": 2, "moving average": 1}.items():
        assert saved[name] == pytest.approx(7 / 8 * size * encoder, abs=8), name
    assert saved["teacher"] == pytest.approx(7 / 8 * teacher, abs=8)
    assert 0 < dealt.count.memory["weights put together"] < encoder + teacher
    sent = {x.what: x for x in dealt.exchanged}
    assert sent["weights put together"].sent == pytest.approx(7 / 8 * (2 * encoder + teacher))
    assert sent["gradients of shards"].sent == pytest.approx(7 / 8 * encoder)
    assert sent["gradients"].tensor_bytes == pytest.approx(whole.count.sizes.gradient_bytes - encoder)


def test_a_teacher_of_the_same_kind_costs_a_third_of_the_student():
    def flops(stage, part):
        return sum(op.flops for op in stage.count.operations if op.part == part)

    for encoder, image_size in (("cifar_resnet20", 32), ("test_vit", 32)):
        plan = planned(backbone=encoder, teacher={"backbone": encoder}, image_size=image_size)
        taught, student = plan.stages
        # The key view forward in inference mode; forward and backward of both views of the student. (Of the first
        # layer no gradient goes on to the images.)
        one = flops(taught, "student")
        assert flops(student, "student") == 2 * one
        distilled = 2  # the key view, and the classifier view for distillation
        assert flops(student, "teacher") == pytest.approx(distilled * one / 3, rel=0.05)


def test_several_devices_are_gpus():
    assert "a100" in planned(gpu=None, gpus=8, **TINY).gpu


def test_micro_batches_take_less_memory_and_more_operations():
    plans = [planned(**ONE, batch_size=512, optimiser={"accumulate": parts}).stages[1].count for parts in (1, 4)]
    key = "activations and working memory"
    assert plans[1].memory[key] < 0.5 * plans[0].memory[key]
    assert len(plans[1].operations) > 2 * len(plans[0].operations)


def test_bfloat16_and_efficiency_take_less(one):
    half, full = planned(precision="bfloat16", **ONE).stages[1], one.stages[1]
    key = "activations and working memory"
    assert 0.4 < half.count.memory[key] / full.count.memory[key] < 0.8
    slow, fast = (sum(seconds_of(full.count, assumed_rates(DEVICES["cpu"], share)).values()) for share in (0.1, 0.7))
    assert 3 < slow / fast < 7  # what only moves numbers is as fast as before


def test_price_and_power(one):
    plan = planned(gpus=2, price=3.0, **TINY)
    assert plan.cost == pytest.approx(3.0 * 2 * plan.hours)
    assert plan.kilowatt_hours == pytest.approx(2 * 0.7 * plan.hours)
    assert one.cost is None


def test_the_largest_batch_fits_and_one_of_a_tenth_more_does_not():
    plan = planned(method="cross_entropy", gpu="l4", backbone="small_net")

    def taken(batch):
        return planned(method="cross_entropy", gpu="l4", backbone="small_net", batch_size=batch).stages[0].total_memory

    images = len(plan.data.train)
    if plan.largest < images:
        assert taken(plan.largest) <= 24e9 < taken(int(plan.largest * 1.1))
    else:
        assert taken(images) < 24e9


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"gpu": "h20"}, r"unknown --gpu 'h20'; did you mean 'h200'"),
        ({"gpus": 3}, r"--batch_size 64 .* cannot be dealt evenly to 3 processes; give --batch_size 63"),
        ({"gpus": 12}, r"--gpus 12 does not fill machines of 8"),
        ({"gpus": 0}, r"--gpus must be above 0"),
        ({"efficiency": 1.5}, r"--efficiency must be above 0 and at most 1, got 1.5"),
        ({"price": -1.0}, r"--price must be 0 or above"),
        ({"backbone": "resnet5"}, r"unknown encoder 'resnet5'"),
        ({"images": 10}, r"--images and --classes go together"),
        ({"images": 10, "classes": 20}, r"--classes must be from 2 to the number of images \(10\), got 20"),
        ({"task": "segmentation"}, r"no plan for --task segmentation"),
        ({"data": None}, r"no data given"),
        ({"method": "cross_entropy", "queue": {"sharded": True}, "gpus": 2}, r"--queue.sharded shares out a queue"),
        ({"teacher": {"run": "nowhere"}}, r"nowhere"),
        ({"gpu": "here"}, r"run longtail plan --calibrate first"),
    ],
)
def test_what_is_refused(options, sentence, monkeypatch, tmp_path):
    monkeypatch.setenv("LONGTAIL_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=sentence):
        planned(**options)


def test_the_command_prints_every_part_and_assumption(capsys, tmp_path):
    file = tmp_path / "plan.json"
    words = "plan --images 1000 --classes 10 --backbone resnet18 --image_size 64 --gpus 16 --gpu a100 --batch_size 64"
    assert main([*words.split(), "--price", "2", "--json", str(file)]) == 0
    said = capsys.readouterr().out
    for text in (
        "gml, resnet18 at 64 x 64, float32; batch 64 on 16 x A100 SXM 80 GB (4 each)",
        "memory a device, GiB: weights",
        "activations and working memory",
        "a step computes",
        "gradients of those features",
        "BatchNorm sums",
        "input: ",
        "epochs an hour",
        "largest batch that fits",
        "kWh",
        "cost",
        "assumed: A100 SXM 80 GB: 19.5 TFLOP/s",
        "NVIDIA A100 data sheet",
        "assumed: 2 machines; 300 GB/s between devices of a machine, 50 between machines",
    ):
        assert text in said
    figures = json.loads(file.read_text())
    assert [stage["name"] for stage in figures["stages"]] == ["teacher", "student"]
    assert figures["hours"] == pytest.approx(sum(stage["hours"] for stage in figures["stages"]))


def test_published_sets_have_their_sizes():
    counts = tail_counts(115_846, 1000, 5)
    assert (int(counts.sum()), len(counts), int(counts.min())) == (115_846, 1000, 5)
    assert bool((counts[1:] <= counts[:-1]).all())
    assert tail_counts(10, 10, 5).tolist() == [1] * 10


def test_every_device_says_where_its_figures_are_from():
    for name, device in DEVICES.items():
        rates = assumed_rates(device)
        assert device.source, name
        assert rates.half_flops["product"] >= rates.flops["product"]
        assert rates.bandwidth < device.bandwidth


def test_this_machine_is_measured_once_and_known_again(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("LONGTAIL_CACHE", str(tmp_path))
    monkeypatch.setattr(calibration, "_SECONDS_EACH", 0.0)
    monkeypatch.setattr(calibration, "_COPIED", 2**16)
    monkeypatch.setattr(calibration, "_PRODUCTS", ((64, 64, 64),))
    shapes = {
        kind: ((8, 8, 8, 3, 1, groups),) for kind, groups in (("convolution", 1), ("grouped", 2), ("depthwise", 8))
    }
    monkeypatch.setattr(calibration, "_CONVOLUTIONS", shapes)
    assert main(["plan", "--calibrate", "--device", "cpu"]) == 0
    file = next(tmp_path.glob("*.json"))
    figures = json.loads(file.read_text())
    assert figures["torch"] == torch.__version__
    known = calibration.calibrated()
    assert dict(known.rates.flops) == figures["flops"]
    assert planned(gpu=None, **TINY).gpu == "here"
    assert "measured here (cpu" in capsys.readouterr().out
    file.write_text("{}")
    with pytest.raises(UserError, match="is no calibration; run longtail plan --calibrate again"):
        planned(gpu=None)
