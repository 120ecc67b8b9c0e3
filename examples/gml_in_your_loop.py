"""GML in a plain PyTorch loop of your own: only the losses and the memory of longtail, on long-tailed 8x8 digits.

It shows how the parts fit, not what they gain: two small dense layers on digits leave nothing for a contrast to add.
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from longtail.losses import GMLLoss, LogitAdjustedCrossEntropy
from longtail.memory import ClassQueue, FrozenTeacher

torch.manual_seed(0)
digits = load_digits()
pixels, targets = torch.tensor(digits.images).float().flatten(1) / 16, torch.tensor(digits.target)
of_class = [(targets == c).nonzero().squeeze(1) for c in range(10)]
train = torch.cat([rows[40 : 40 + int(120 * 20 ** (-c / 9))] for c, rows in enumerate(of_class)])  # 120 down to 6
test = torch.cat([rows[:40] for rows in of_class])
images, labels, class_counts = pixels[train], targets[train], torch.bincount(targets[train])


def network(inputs, outputs):
    return nn.Sequential(nn.Linear(inputs, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, outputs))


def view(ids):  # your augmentation
    return images[ids] + 0.15 * torch.randn(len(ids), 64)


def fit(modules, loss_of, epochs=40):
    optimiser = torch.optim.SGD(modules.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    for _ in range(epochs):
        for ids in torch.randperm(len(labels)).split(32)[:-1]:
            optimiser.zero_grad()
            loss_of(ids).backward()
            optimiser.step()
    recall = (modules[1](modules[0].eval()(pixels[test])).argmax(1) == targets[test]).float().mean()
    print(f"balanced accuracy {recall:.3f}")


# Stage 1, the teacher: logit-adjusted cross entropy alone.
classification = LogitAdjustedCrossEntropy(class_counts)
first = nn.ModuleList([network(64, 64), nn.Linear(64, 10)])
fit(first, lambda ids: classification(first[1](first[0](view(ids))), labels[ids]))
teacher = FrozenTeacher(encoder=first[0], head=first[1])

# Stage 2, the student: the same, plus GML against the teacher's features in the class-wise queue.
contrast = GMLLoss(class_counts, temperature=0.1)
queue = ClassQueue(class_counts, capacity=256, dim=64, min_per_class=4)
queue.prime(labels, encode=lambda ids, rounds: teacher.features(view(ids)))
encoder, head, to_query, to_key = network(64, 64), nn.Linear(64, 10), network(64, 32), network(64, 32)


def student_loss(ids):
    queue.enqueue(teacher.features(view(ids)), labels[ids], ids)  # the key view
    queries = F.normalize(to_query(encoder(view(ids))))
    keys = F.normalize(to_key(queue.features))
    gml = contrast(queries, labels[ids], keys, queue.offsets, ids, queue.ids, queue.filled)
    return classification(head(encoder(view(ids))), labels[ids]) + gml


fit(nn.ModuleList([encoder, head, to_query, to_key]), student_loss)
print(f"information in the last batch: {contrast.information:.2f} bits")
