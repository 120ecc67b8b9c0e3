"""What a contrastive method remembers between steps: past batches' keys, and the network that makes them."""

from longtail.memory.class_directions import ClassDirections
from longtail.memory.class_queue import ClassQueue, QueueContent, queue_lengths
from longtail.memory.fifo_queue import FifoQueue
from longtail.memory.teacher import FrozenTeacher, MomentumTeacher
from longtail.memory.teacher_cache import TeacherCache

__all__ = [
    "ClassDirections",
    "ClassQueue",
    "FifoQueue",
    "FrozenTeacher",
    "MomentumTeacher",
    "QueueContent",
    "TeacherCache",
    "queue_lengths",
]
