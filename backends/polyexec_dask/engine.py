"""The parts of Dask that strict type checking cannot follow, as ``Any``: Dask annotates only some of its functions."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import dask.context
import distributed.comm.core
import distributed.protocol.pickle
import distributed.security
from distributed.protocol.serialize import Serialize

VERSION = version("distributed")

Client: Any = distributed.Client
CommClosedError = distributed.comm.core.CommClosedError
connect: Any = distributed.comm.core.connect
dumps: Any = distributed.protocol.pickle.dumps
loads: Any = distributed.protocol.pickle.loads
secede: Any = distributed.secede
Security: Any = distributed.security.Security
temporary_security: Any = distributed.security.Security.temporary
thread_state: Any = dask.context.thread_state
to_serialize: Any = Serialize
