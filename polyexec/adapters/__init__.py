"""Other interfaces on any backend: what takes an executor of the standard library, joblib or Dask's collections.

Each module stands on the public interface of ``polyexec`` alone, and imports what it adapts; nothing here is imported
by ``import polyexec``.
"""
