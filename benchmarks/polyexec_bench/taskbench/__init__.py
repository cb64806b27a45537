"""Graphs of tasks with a kernel of any size, after Task Bench (Slaughter et al., SC 2020).

The patterns and the metric METG are those of the paper; everything here, and every figure that it gives, is
polyexec's own.
"""
