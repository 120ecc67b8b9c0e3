"""Bytes and seconds of exchanges, by hand."""

import pytest

from longtail.errors import UserError
from longtail.planning.communication import StepSizes, exchanges, published_exchanges
from longtail.planning.network import BETWEEN_LATENCY, INSIDE_LATENCY, LINK_SHARE, Cluster

MIB = 2**20
IMAGENET_LT = StepSizes(
    batch=128,
    gradient_bytes=100 * MIB,
    student_views=2,
    student_dim=2048,
    teacher_dim=2048,
    norm_channels=(64, 256),
    queue_bytes=16384 * 2048 * 4,
)


def of(found, what):
    return next(x for x in found if x.what == what)


def test_a_ring_in_one_machine():
    one = Cluster(8, 8, inside=1e9, between=1e8).all_reduce(8e6)
    assert one.sent == 2 * 7 * 1e6  # each of 8 parts is passed on 7 times, twice
    assert one.seconds == pytest.approx(14e6 / (LINK_SHARE * 1e9) + 2 * 3 * INSIDE_LATENCY)


def test_what_goes_between_machines_is_shared_out_among_their_cards():
    gathered = Cluster(16, 8, inside=1e9, between=1e8).all_gather(16e6)
    assert gathered.sent == 15e6
    waits = 3 * INSIDE_LATENCY + BETWEEN_LATENCY
    assert gathered.seconds == pytest.approx((15e6 / 1e9 + 1e6 / 1e8) / LINK_SHARE + waits)


def test_one_device_sends_nothing():
    assert sum(x.sent + x.seconds for x in published_exchanges(IMAGENET_LT, Cluster(1, 8, 1e9, 1e8))) == 0


def test_a_step_sends_features_and_the_published_way_the_queue_too():
    cluster = Cluster(8, 8, 450e9, 50e9)
    ours, published = exchanges(IMAGENET_LT, cluster), published_exchanges(IMAGENET_LT, cluster)
    assert of(ours, "features of the teacher").tensor_bytes == 128 * 2048 * 4 == MIB
    assert of(ours, "features of the student").tensor_bytes == 2 * MIB
    assert of(ours, "BatchNorm statistics").tensor_bytes == 8 * of(ours, "BatchNorm sums").tensor_bytes == 8 * 8 * 320
    assert of(ours, "BatchNorm statistics").calls == of(ours, "BatchNorm sums").calls == 2
    assert of(ours, "gradients of those features").sent == of(ours, "features of the student").sent
    assert of(published, "the whole queue").sent == 128 * MIB
    assert not [x for x in ours if x.kind == "broadcast"]
    ours_only = {x.what for x in ours} - {x.what for x in published}
    assert ours_only == {"features of the student", "gradients of those features"}


def test_ours_does_not_grow_with_the_queue():
    def sent(way, queue):
        sizes = StepSizes(**(vars(IMAGENET_LT) | {"queue_bytes": queue}))
        return sum(x.sent for x in way(sizes, Cluster(8, 8, 450e9, 50e9)))

    assert sent(exchanges, 2**27) == sent(exchanges, 2**30)
    assert sent(published_exchanges, 2**30) - sent(published_exchanges, 2**27) == 2**30 - 2**27


def test_machines_must_be_full():
    assert Cluster(24, 8, 1, 1).nodes == 3
    assert Cluster(4, 8, 1, 1).nodes == 1
    with pytest.raises(UserError, match="--gpus 12 does not fill machines of 8; give a multiple of 8"):
        Cluster(12, 8, 1, 1)
