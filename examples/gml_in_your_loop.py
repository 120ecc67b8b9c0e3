"""GML in a training loop of your own: the losses and the memory, nothing else of longtail.

Long-tailed handwritten digits of 8x8 pixels: 120 images of the digit 0 down to 6 of the digit 9 to train on, 40 of
each to test on. Runs in seconds on a CPU: python examples/gml_in_your_loop.py
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from longtail.losses import GMLLoss, LogitAdjustedCrossEntropy
from longtail.memory import ClassQueue, FrozenTeacher

torch.manual_seed(0)
torch.set_num_threads(1)  # so small a network gains nothing from more

digits = load_digits()
pixels, targets = torch.tensor(digits.images[:, None] / 16).float(), torch.tensor(digits.target)
of_class = [torch.nonzero(targets == c).squeeze(1) for c in range(10)]
test = torch.cat([rows[:40] for rows in of_class])
train = torch.cat([rows[40 : 40 + int(120 * 20 ** (-c / 9))] for c, rows in enumerate(of_class)])
images, labels = pixels[train], targets[train]
class_counts = torch.bincount(labels)


def view(ids):
    """Return training images, shifted by up to one pixel and with noise: new at every call."""
    down, right = torch.randint(-1, 2, (2,)).tolist()
    return images[ids].roll((down, right), (2, 3)) + 0.1 * torch.randn(len(ids), 1, 8, 8)


def encoder():
    """Return a small network from images to 64 features."""
    conv = nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)
    return nn.Sequential(*conv, nn.Flatten(), nn.Linear(256, 64), nn.BatchNorm1d(64), nn.ReLU())


def projection():
    """Return a head from features to the space in which queries and keys are compared."""
    return nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 32))


def fit(modules, loss_of, epochs=40, batch=32):
    """Train with SGD; ``loss_of(ids)`` is the loss of a batch, given as positions of training images."""
    optimiser = torch.optim.SGD(modules.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    for _ in range(epochs):
        for ids in torch.randperm(len(labels)).split(batch)[:-1]:
            optimiser.zero_grad()
            loss_of(ids).backward()
            optimiser.step()
        schedule.step()


def balanced_accuracy(network):
    """Return the accuracy on the test set, which holds equally many images of each class."""
    return (network.eval()(pixels[test]).argmax(1) == targets[test]).float().mean().item()


# Stage 1, the teacher: logit-adjusted cross entropy alone.
classification = LogitAdjustedCrossEntropy(class_counts)
first = nn.Sequential(encoder(), nn.Linear(64, 10))
fit(first, lambda ids: classification(first(view(ids)), labels[ids]))
teacher = FrozenTeacher(encoder=first[0], head=first[1])

# Stage 2, the student: the same loss, plus GML against the teacher's features in the queue.
contrast = GMLLoss(class_counts, temperature=0.1)
queue = ClassQueue(class_counts, capacity=256, dim=64, min_per_class=4)
queue.prime(labels, encode=lambda indices, rounds: teacher.features(view(indices)))
student = nn.Sequential(encoder(), nn.Linear(64, 10))
to_query, to_key = projection(), projection()


def student_loss(ids):
    """Return L_cls + L_GML from three views of each image: for the classifier, the query and the key."""
    queue.enqueue(teacher.features(view(ids)), labels[ids], ids)
    queries = F.normalize(to_query(student[0](view(ids))))
    keys = F.normalize(to_key(queue.features))
    gml = contrast(queries, labels[ids], keys, queue.offsets, ids, queue.ids, queue.filled)
    return classification(student(view(ids)), labels[ids]) + gml


fit(nn.ModuleList([student, to_query, to_key]), student_loss)
print(f"teacher: balanced accuracy {balanced_accuracy(first):.3f}")
print(f"student: balanced accuracy {balanced_accuracy(student):.3f}")
print(f"last batch: {contrast.information:.2f} bits about the label (own keys left out)")
