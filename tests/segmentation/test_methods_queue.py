"""The queue of pixels' keys: what it is filled with before the first step, and what of it is compared."""

import math

import pytest
import torch

from longtail.errors import UserError
from longtail.memory import ClassQueue
from longtail.segmentation.memory import filled_keys, prime_queue

COUNTS = [600, 60, 6, 0]
"""Of a queue of 24 slots with 2 at least: 16, 3, 2 and 2 more slots (see ``lengths``)."""


class Teacher:
    """Encodes an image as the pixels of the classes it holds, ``per_class`` each: feature (image, class, round)."""

    def __init__(self, pixels, per_class, shows=lambda image, label, turn: True):
        self.pixels, self.per_class, self.shows, self.asked = pixels, per_class, shows, []

    def __call__(self, ids, rounds):
        self.asked.append((ids.tolist(), rounds.tolist()))
        rows = [
            (image, label, turn)
            for image, turn in zip(ids.tolist(), rounds.tolist(), strict=True)
            for label in range(self.pixels.shape[1])
            for _ in range(min(self.per_class, int(self.pixels[image, label])))
            if self.shows(image, label, turn)
        ]
        rows = torch.tensor(rows, dtype=torch.int64).view(-1, 3)
        return rows.float(), rows[:, 1], rows[:, 0]


def pixels_of_images():
    """Ten images: class 0 in all, class 1 in three, class 2 in one (a single pixel), class 3 in none."""
    pixels = torch.zeros(10, 4, dtype=torch.int64)
    pixels[:, 0], pixels[[2, 5, 7], 1], pixels[5, 2] = 60, 20, 1
    return pixels


def primed(teacher, **options):
    queue = ClassQueue(COUNTS, 24, 3, min_per_class=2)
    prime_queue(queue, teacher.pixels, teacher, **{"per_class": 4, "batch_size": 3, "seed": 0, **options})
    return queue


def filled_by_class(queue):
    return torch.bincount(queue.labels[queue.filled], minlength=4).tolist()


def test_every_class_that_has_pixels_is_filled_class_0_too():
    queue = primed(Teacher(pixels_of_images(), 4))
    lengths = queue.lengths.tolist()
    assert filled_by_class(queue) == [*lengths[:3], 0]
    held = queue.features[queue.filled].long()
    assert torch.equal(held[:, 1], queue.labels[queue.filled])
    assert torch.equal(held[:, 0], queue.ids[queue.filled])
    # The only image of class 2 shows one pixel a round: its two slots hold two views of it.
    assert held[held[:, 1] == 2].tolist() == [[5, 2, 0], [5, 2, 1]]


def test_images_of_rare_classes_come_first_and_no_more_than_it_takes():
    teacher = Teacher(pixels_of_images(), 4)
    queue = primed(teacher)
    assert teacher.asked[0] == ([5], [0])
    in_round_0 = [image for ids, rounds in teacher.asked for image, turn in zip(ids, rounds, strict=True) if turn == 0]
    assert len(set(in_round_0)) == len(in_round_0)
    # Image 5 fills class 1 and 4 slots of class 0; the rest of class 0 takes 4 an image.
    assert int(queue.lengths[1]) <= 4
    assert len(in_round_0) == 1 + math.ceil((int(queue.lengths[0]) - 4) / 4)
    assert all(len(ids) <= 3 for ids, _ in teacher.asked)
    assert [ids for ids, rounds in teacher.asked if rounds[0] == 1] == [[5]]


def test_what_no_view_shows_stays_empty_after_the_last_round():
    teacher = Teacher(pixels_of_images(), 4, shows=lambda image, label, turn: label != 2)
    queue = primed(teacher, rounds=3)
    assert filled_by_class(queue)[2:] == [0, 0]
    assert [rounds[0] for ids, rounds in teacher.asked if ids == [5]] == [0, 1, 2]
    keys = filled_keys(queue)
    assert keys.offsets.tolist() == [0, *torch.tensor(filled_by_class(queue)).cumsum(0).tolist()]
    assert torch.equal(keys.features[:, 1].long(), torch.arange(4).repeat_interleave(keys.offsets.diff()))
    assert torch.equal(keys.features[:, 0].long(), keys.ids)


def test_filling_again_replaces_all_and_is_the_same():
    first = primed(Teacher(pixels_of_images(), 4))
    again = primed(Teacher(pixels_of_images(), 4))
    prime_queue(again, pixels_of_images(), Teacher(pixels_of_images(), 4), 4, 3, 0)
    for name, buffer in first.state_dict().items():
        assert torch.equal(buffer, again.state_dict()[name]), name


def test_a_feature_that_is_not_finite_names_its_image():
    def broken(ids, rounds):
        features, labels, images = Teacher(pixels_of_images(), 4)(ids, rounds)
        features[images == 5] = torch.nan
        return features, labels, images

    with pytest.raises(UserError, match="training image 5"):
        prime_queue(ClassQueue(COUNTS, 24, 3, 2), pixels_of_images(), broken, 4, 3, 0)
