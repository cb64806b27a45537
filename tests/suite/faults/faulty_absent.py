"""A backend whose engine is not installed."""

import no_such_engine

Absent = no_such_engine.Engine
