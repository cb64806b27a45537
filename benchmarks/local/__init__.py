"""The benchmark of the local engine against its peers; ``benchmarks/local_engine.py`` is the command."""
