"""Small programs, one for each thing that an executor can do, and some well-known patterns made of them.

Each is a script, ``python -m polyexec.testing.programs.actors``, which connects to the backend that
``POLYEXEC_BACKEND`` names, and a module whose ``main`` takes an executor. What one prints is the same on every backend;
the conformance suite runs them all and compares.
"""

PRINTED = {
    ("A3", "actors"): """
        Bob has 120
        error: Ada has only 230
        Ada has 230
        Bob's account: ActorDied
    """,
    ("G1", "streams"): """
        sums of parts: [45, 145, 245, 345, 445]
        items: first second
        then: the third part cannot be read
        some of many: [0, 1, 2, 3, 4, 5]
    """,
    ("S11", "several_results"): """
        sums: 20 25
        of a generator: ['x', 'y', 'z']
        both fail: ['SpecificationError', 'SpecificationError']
    """,
    ("R11", "gangs"): """
        total: 190
        held: 2 bundles
        too much: InfeasibleResources
    """,
    ("D1", "environment"): """
        hello world in English
        files: ['.gitignore', 'name.txt']
        elsewhere: None
    """,
    ("S10", "logs"): """
        results: [0, 1, 4]
        printed: working on 0
        printed: working on 1
        printed: working on 2
    """,
    ("E1", "events"): """
        result: 16 error: broken
        good was submitted, ready, running, done
        bad was submitted, ready, running, failed
    """,
    ("M1", "progress"): """
        sum: 4.278543
        three of an endless map: [1.0, 0.5, 0.333]
        in any order: 40 values
        before the error: 0.5 1.0
        at its place: division by zero
    """,
    ("A1", "parameter_server"): """
        after 6 rounds: slope 2.460918, offset 1.568734
    """,
    ("W1", "pending_limit"): """
        sum of squares: 328350
        most at a time: 8
        with map: 328350
    """,
    ("N1", "quicksort"): """
        sorted: True first: [21, 31, 35] last: 99982
    """,
    ("G2", "pipeline"): """
        written: 0 1 4 9 16 25 36 49 64 81 100 121 144 169 196 225 256 289 324 361
        never more than 5 items: True
    """,
}
"""What each prints, by the clause that it is mostly about and its name."""
