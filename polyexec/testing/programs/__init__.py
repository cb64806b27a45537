"""Small programs, one for each thing that an executor can do, and some well-known patterns made of them.

Each is a script, ``python -m polyexec.testing.programs.actors``, which connects to the backend that
``POLYEXEC_BACKEND`` names, and a module whose ``main`` takes an executor. What one prints is the same on every backend;
the conformance suite runs them all and compares.
"""
