"""What a training run would need: memory, time, network and cost, counted without running it."""
