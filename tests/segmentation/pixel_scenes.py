"""Little scenes for tests of pixel methods: a long-tailed set of masks, images of them, a tiny encoder."""

from pathlib import Path

import torch
from torch import nn

from longtail.config import TrainConfig, replace_options
from longtail.data.path_table import PathTable
from longtail.methods.base import Stage
from longtail.segmentation.data.batch import DenseBatch
from longtail.segmentation.data.mask_set import IGNORE, MaskFiles
from longtail.segmentation.methods import DenseContext, get_dense_method

CLASSES = 4
SIZE = 16


class TinyEncoder(nn.Module):
    """A map of 6 channels at stride 4."""

    feature_dim, stride = 6, 4

    def __init__(self, width=6):
        super().__init__()
        self.feature_dim = width
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 4, 4), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 1)
        )

    def forward(self, images):
        return self.layers(images)


def scenes(images=6):
    """Masks [N, 16, 16]: class 0 everywhere, 1 in a stripe of each, 2 in a block of half of them, 3 in a corner of one.

    The last row of each is ignored.
    """
    masks = torch.zeros(images, SIZE, SIZE, dtype=torch.int64)
    masks[:, :, 12:] = 1
    masks[::2, 4:8, 0:8] = 2
    masks[1, 0:4, 0:4] = 3
    masks[:, -1] = IGNORE
    return masks


def files_of(masks, classes=CLASSES, size=None):
    """The set of images that these masks belong to; nothing is read from disk."""
    pixels = torch.stack([(masks == label).sum((1, 2)) for label in range(classes)], 1)
    names = [f"{index}.png" for index in range(len(masks))]
    return MaskFiles(
        root=Path("/nowhere"),
        images=PathTable(names),
        masks=PathTable(names),
        read_mask=lambda path: torch.zeros(0),
        class_names=tuple(f"class{label}" for label in range(classes)),
        palette=torch.zeros(classes, 3, dtype=torch.uint8),
        pixels=pixels,
        sizes=torch.tensor([masks.shape[1:]] * len(masks)),
        size=size,
    )


def painted(masks, seed=0):
    """Images [N, 3, H, W] of masks: a colour a class, and noise."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randn(CLASSES + 1, 3, generator=torch.Generator().manual_seed(99))
    clean = colours[masks.clamp(min=-1)].movedim(-1, 1)
    return clean + 0.3 * torch.randn(clean.shape, generator=generator)


def batch_of(masks, ids, step=0):
    """The training batch of the images at ``ids``."""
    ids = torch.as_tensor(ids)
    views = {name: painted(masks, 2 * step + place)[ids] for place, name in enumerate(("classifier", "key"))}
    return DenseBatch(views, masks[ids], ids, keys=ids + 1000 * step)


def fetch_of(masks):
    """What a loader's ``fetch`` does for these masks."""

    def fetch(view, ids, rounds):
        return DenseBatch({view: painted(masks, 7)[ids]}, masks[ids], ids, keys=ids + 5000 * (1 + rounds))

    return fetch


DEFAULTS = {
    "task": "segmentation",
    "backbone": "tiny",
    "epochs": 4,
    "batch_size": 4,
    "views.classifier": "none",
    "views.key": "colour",
    "loss.temperature": 0.1,
    "loss.contrast_weight": 1.0,
    "loss.distillation_weight": 0.0,
    "loss.class_weights": "none",
    "queue.capacity": 40,
    "queue.min_per_class": 2,
    "queue.projection_dim": 5,
    "teacher.kind": "frozen",
    "teacher.backbone": "tiny",
    "teacher.epochs": 3,
    "segmentation.queries": 60,
    "segmentation.queries_per_class": 4,
    "segmentation.keys_per_class": 3,
}


def config_of(method, **options):
    """Resolved options; dots of their names are written as two underscores."""
    given = {name.replace("__", "."): value for name, value in options.items()}
    return replace_options(TrainConfig(), {**DEFAULTS, "method": method, **given})


def build(method, files, previous=None, **options):
    """A method on tiny networks (see ``tiny_networks``), of the run's last stage."""
    config = config_of(method, **options)
    torch.manual_seed(3)
    stage = Stage("student", method, config.backbone, config.epochs)
    context = DenseContext(config, stage, files, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), previous)
    return get_dense_method(method).build(context)


def gml(masks, **options):
    """A GML student whose queue is filled, and the set that it was filled from."""
    files = files_of(masks)
    frozen = options.get("teacher__kind", "frozen") == "frozen"
    teacher = build("logit_adjustment", files).classifier() if frozen else None
    method = build("gml", files, teacher, **options)
    method.prepare(fetch_of(masks), files.pixels)
    return method
