"""XLA compiles these tests' small programs without its expensive passes: they take a third of the time.

Only a process that has not begun to use JAX listens; elsewhere the tests are slower, not different.
"""

from __future__ import annotations

import os

os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
)
