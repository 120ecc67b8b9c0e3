"""Three classes of noisy bars, and options with which a cell takes half a second."""

import numpy as np

SHORT = {
    "epochs": 1,
    "device": "cpu",
    "batch_size": 8,
    "queue": {"projection_dim": 8},
    "checkpoint": {"every_seconds": 0.0},
}


def bars(counts=(24, 9, 2), tests=6, seed=0):
    """Arrays of noisy 8x8 images with one bright bar a class."""
    rng = np.random.default_rng(seed)

    def images(labels):
        pixels = rng.integers(0, 120, (len(labels), 8, 8), dtype=np.uint8)
        for image, label in zip(pixels, labels, strict=True):
            image[:, 2 * label : 2 * label + 2] += 130
        return pixels

    train, test = np.repeat(np.arange(len(counts)), counts), np.repeat(np.arange(len(counts)), tests)
    names = np.array(["left", "<b>middle</b>", "right"])
    return {
        "train_images": images(train),
        "train_labels": train,
        "test_images": images(test),
        "test_labels": test,
        "class_names": names[: len(counts)],
    }
