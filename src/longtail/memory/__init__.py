"""What a contrastive method remembers between steps: past batches' keys, and the network that makes them."""

from longtail.memory.class_directions import ClassDirections
from longtail.memory.class_queue import ClassQueue, QueueContent, queue_lengths
from longtail.memory.fifo_queue import FifoQueue
from longtail.memory.fresh_keys import FreshKeys
from longtail.memory.shard_projection import project_share
from longtail.memory.shard_state import own_share, whole_state
from longtail.memory.sharded_queue import ShardedClassQueue
from longtail.memory.teacher import FrozenTeacher, MomentumTeacher
from longtail.memory.teacher_cache import TeacherCache

__all__ = [
    "ClassDirections",
    "ClassQueue",
    "FifoQueue",
    "FreshKeys",
    "FrozenTeacher",
    "MomentumTeacher",
    "QueueContent",
    "ShardedClassQueue",
    "TeacherCache",
    "own_share",
    "project_share",
    "queue_lengths",
    "whole_state",
]
