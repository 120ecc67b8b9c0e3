"""What a contrastive method remembers between steps: past batches' keys, and the network that makes them."""

from longtail.memory.class_directions import ClassDirections
from longtail.memory.class_queue import ClassQueue, queue_lengths
from longtail.memory.key_queue import KeyQueue
from longtail.memory.teacher import FrozenTeacher, MomentumTeacher
from longtail.memory.teacher_cache import TeacherCache

__all__ = [
    "ClassDirections",
    "ClassQueue",
    "FrozenTeacher",
    "KeyQueue",
    "MomentumTeacher",
    "TeacherCache",
    "queue_lengths",
]
