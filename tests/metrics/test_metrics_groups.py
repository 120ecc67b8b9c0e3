"""Many, medium and few: the edges, the means, and what an empty group says."""

import math

import pytest
import torch

from longtail.metrics import GROUPS, group_accuracy, group_index


def test_edges_belong_to_medium():
    counts = torch.tensor([5000, 101, 100, 99, 21, 20, 19, 1, 0])
    names = [GROUPS[i] for i in group_index(counts).tolist()]
    assert names == ["many", "many", "medium", "medium", "medium", "medium", "few", "few", "few"]
    assert group_index(torch.tensor([11, 10, 9]), edges=(10, 10)).tolist() == [0, 1, 2]


def test_groups_of_cifar_100_lt_have_the_published_sizes():
    # floor(500 * 0.01^(c / 99)): 35 many, 35 medium, 30 few at imbalance 100.
    counts = torch.tensor([math.floor(500 * 0.01 ** (c / 99)) for c in range(100)])
    figures = group_accuracy(torch.ones(100), counts)
    assert [figures[name]["classes"] for name in GROUPS] == [35, 35, 30]


def test_group_accuracy_is_the_mean_of_tested_class_recalls():
    recall = torch.tensor([1.0, 0.5, math.nan, 0.25, math.nan, 0.0]).double()
    counts = torch.tensor([500, 300, 200, 50, 5, 4])
    assert group_accuracy(recall, counts) == {
        "many": {"accuracy": 0.75, "classes": 3, "tested_classes": 2},
        "medium": {"accuracy": 0.25, "classes": 1, "tested_classes": 1},
        "few": {"accuracy": 0.0, "classes": 2, "tested_classes": 1},
    }


def test_an_empty_group_has_no_accuracy_rather_than_zero():
    figures = group_accuracy(torch.tensor([0.0, math.nan]), torch.tensor([500, 5]))
    assert figures["many"]["accuracy"] == 0.0
    assert figures["medium"] == {"accuracy": None, "classes": 0, "tested_classes": 0}
    assert figures["few"] == {"accuracy": None, "classes": 1, "tested_classes": 0}


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="larger first"):
        group_index(torch.tensor([1, 2]), edges=(20, 100))
    with pytest.raises(ValueError, match="class_counts must be finite and not negative"):
        group_index(torch.tensor([1, -2]))
    with pytest.raises(ValueError, match=r"got \[3\] and \[2\]"):
        group_accuracy(torch.ones(3), torch.tensor([1, 2]))
