"""Images that are told apart by where a bright bar stands, of any size: what whole runs in the tests train on."""

import torch

from longtail.data import DataSplits, ImageSet


def bars(train, test, channels, side, views):
    """Return splits of three classes of noisy images, `train` and `test` images a class, a bar a quarter wide."""
    generator = torch.Generator().manual_seed(0)
    width = side // 4

    def images(counts):
        labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        pixels = torch.randint(0, 120, (len(labels), channels, side, side), generator=generator)
        for index, label in enumerate(labels.tolist()):
            pixels[index, label if channels == 3 else 0, :, width * label : width * (label + 1)] += 130
        return ImageSet(pixels.to(torch.uint8), labels, ("left", "middle", "right"))

    return DataSplits("bars", images(train), images(test), (0.4,) * channels, (0.25,) * channels, views)
