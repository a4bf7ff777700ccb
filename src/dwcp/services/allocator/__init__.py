"""The allocator: proposes a node for each workload. Its answers are advice; the control log decides."""
