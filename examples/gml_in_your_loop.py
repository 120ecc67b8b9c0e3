"""GML in a training loop of your own: the losses and the memory, nothing else of longtail.

Long-tailed handwritten digits (8x8 pixels): 120 images of the digit 0 down to 4 of the digit 9, and a test set with
40 of each. Runs in seconds on a CPU: python examples/gml_in_your_loop.py
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from longtail.losses import GMLLoss, LogitAdjustedCrossEntropy
from longtail.memory import ClassQueue, FrozenTeacher

torch.manual_seed(0)
digits = load_digits()
pixels, targets = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, torch.tensor(digits.target)
of_class = [torch.nonzero(targets == c).squeeze(1) for c in range(10)]
train = torch.cat([rows[40 : 40 + int(120 * 30 ** (-c / 9))] for c, rows in enumerate(of_class)])
test = torch.cat([rows[:40] for rows in of_class])
images, labels = pixels[train], targets[train]
class_counts = torch.bincount(labels)


def view(batch):
    """Return the images shifted by up to one pixel, with noise."""
    down, right = torch.randint(-1, 2, (2,)).tolist()
    return batch.roll((down, right), (2, 3)) + 0.1 * torch.randn_like(batch)


def encoder():
    conv = (nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(*conv, nn.Flatten(), nn.Linear(256, 64), nn.BatchNorm1d(64), nn.ReLU())


def projection():
    return nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 32))


def fit(modules, losses_of, epochs=30, batch=64):
    optimiser = torch.optim.SGD(modules.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    for _ in range(epochs):
        for ids in torch.randperm(len(labels)).split(batch)[:-1]:
            optimiser.zero_grad()
            losses_of(ids).backward()
            optimiser.step()
        schedule.step()


@torch.no_grad()
def balanced_accuracy(network):
    network.eval()
    return (network(pixels[test]).argmax(1) == targets[test]).double().mean().item()


# Stage 1, the teacher: logit-adjusted cross entropy alone.
classify = LogitAdjustedCrossEntropy(class_counts)
first = nn.Sequential(encoder(), nn.Linear(64, 10))
fit(first, lambda ids: classify(first(view(images[ids])), labels[ids]))
teacher = FrozenTeacher(first[0], first[1])

# Stage 2, the student: the same, and GML against the teacher's features in the queue.
queue = ClassQueue(class_counts, capacity=256, dim=64, min_per_class=4)
queue.prime(labels, lambda indices, rounds: teacher.features(view(images[indices])))
contrast = GMLLoss(class_counts, temperature=0.1)
student = nn.ModuleDict({"encoder": encoder(), "head": nn.Linear(64, 10)})
student.update({"to_query": projection(), "to_key": projection()})


def losses_of(ids):
    queue.enqueue(teacher.features(view(images[ids])), labels[ids], ids)
    logits = student["head"](student["encoder"](view(images[ids])))
    queries = F.normalize(student["to_query"](student["encoder"](view(images[ids]))), dim=1)
    keys = F.normalize(student["to_key"](queue.features), dim=1)
    gml = contrast(queries, labels[ids], keys, queue.offsets, ids, queue.ids, queue.filled)
    return classify(logits, labels[ids]) + gml


fit(student, losses_of)
print(f"teacher: balanced accuracy {balanced_accuracy(first):.3f}")
network = nn.Sequential(student["encoder"], student["head"])
print(f"student: balanced accuracy {balanced_accuracy(network):.3f}, information {contrast.information:.2f} bits")
