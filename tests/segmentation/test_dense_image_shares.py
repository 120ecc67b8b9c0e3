"""Groups by images: a class's share is of all training images, also where no class is in all of them."""

import numpy as np
from mask_trees import write_names, write_pair

from longtail.files import read_json

RUN = [
    *("--task", "segmentation", "--backbone", "test_resnet.r160_in1k", "--pretrained", "none", "--device", "cpu"),
    *("--segmentation.width", "32", "--segmentation.crop", "[32,32]", "--batch_size", "2", "--epochs", "1"),
    *("--method", "cross_entropy", "--loading.workers", "0", "--quiet"),
]


def test_training_and_evaluate_know_all_training_images(desk):
    for split, images in (("train", 6), ("test", 2)):
        for index in range(images):  # each class alone, in every other image: in half of them, which is not "many"
            folder, name = desk.folder / "street" / split, f"{split}{index}.png"
            write_pair(
                folder / "images" / name, folder / "masks" / name, np.full((32, 32), index % 2, np.uint8), seed=index
            )
    write_names(desk.folder / "street", ["road", "grass"])
    desk.run("train", "street", *RUN, "--out", "out")
    trained = read_json(desk.folder / "out/evaluation.json")
    assert trained["image_counts"] == [3, 3]
    assert {name: group["classes"] for name, group in trained["groups_by_images"].items()} == {
        "many": 0,
        "medium": 2,
        "few": 0,
    }
    desk.run("evaluate", "out", "--quiet", "--device", "cpu")
    assert read_json(desk.folder / "out/evaluation.json") == trained
