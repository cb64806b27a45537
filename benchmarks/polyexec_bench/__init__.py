"""The benchmark: the same workload on backends of polyexec and on bare engines, side by side in one run.

``polyexec bench`` is the command. What distorts a comparison is controlled here, in one place, and stands with every
result: workers and threads of linear algebra, warm-up, purity, distinct arguments, results consumed, rounds in turn.
"""
