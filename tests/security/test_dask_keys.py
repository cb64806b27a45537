"""TLS of a Dask cluster that runs already, with the keys from the specification."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

import polyexec

distributed = pytest.importorskip("distributed")

LIMIT = 60.0
SCRIPT = """if True:
    import sys, distributed
    if __name__ == '__main__':
        ca, cert, key = sys.argv[1:]
        roles = {f"tls_{role}_{what}": path for role in ("scheduler", "worker", "client")
                 for what, path in (("cert", cert), ("key", key))}
        security = distributed.Security(tls_ca_file=ca, require_encryption=True, **roles)
        cluster = distributed.LocalCluster(n_workers=1, threads_per_worker=1, host='127.0.0.1', protocol="tls",
                                           dashboard_address=None, security=security)
        print(cluster.scheduler_address, flush=True)
        sys.stdin.read()
        cluster.close()
"""


@attrs.frozen
class Keys:
    """Files of one certificate, which has signed itself."""

    cert: Path
    key: Path

    def specification(self, address: str) -> str:
        return f"dask?address={address}&tls_ca_file={self.cert}&tls_cert={self.cert}&tls_key={self.key}"


def make_keys(folder: Path) -> Keys:
    pytest.importorskip("cryptography")
    security = distributed.Security.temporary()
    keys = Keys(folder / "cert.pem", folder / "key.pem")
    keys.cert.write_text(security.tls_client_cert)
    keys.key.write_text(security.tls_client_key)
    keys.key.chmod(0o600)
    return keys


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return make_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def address(keys: Keys, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a cluster with one worker."""
    folder = str(tmp_path_factory.mktemp("dask"))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "DASK_TEMPORARY_DIRECTORY": folder}
    command = [sys.executable, "-c", SCRIPT, str(keys.cert), str(keys.cert), str(keys.key)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.stdin.close()
        process.wait(LIMIT)


def test_keys_from_the_specification_open_the_cluster(
    keys: Keys, address: str, caplog: pytest.LogCaptureFixture
) -> None:
    with polyexec.connect(keys.specification(address)) as ex:
        assert ex.submit(len, b"x" * (1 << 20)).result(LIMIT) == 1 << 20
        report = ex.security()
    assert report.is_encrypted
    assert "TLS" in (report.authentication or "")
    assert report.weaknesses == ()
    assert [path.path for path in report.paths] == [str(keys.key)]
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_other_keys_do_not(address: str, tmp_path: Path) -> None:
    other = make_keys(tmp_path)
    with pytest.raises(polyexec.BackendLost) as caught:
        polyexec.connect(f"{other.specification(address)}&connect_timeout=3")
    assert "\n" not in str(caught.value)


def test_no_keys_do_not(address: str) -> None:
    with pytest.raises((polyexec.BackendLost, polyexec.SpecificationError)) as caught:
        polyexec.connect(f"dask?address={address}&connect_timeout=3")
    assert "\n" not in str(caught.value)


def test_a_key_with_a_passphrase_is_refused(keys: Keys, tmp_path: Path) -> None:
    """Nobody is asked for it on a terminal."""
    locked = tmp_path / "locked.pem"
    locked.write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n")
    with pytest.raises(polyexec.SpecificationError, match="has a passphrase"):
        polyexec.connect(Keys(keys.cert, locked).specification("tls://127.0.0.1:1"))


@pytest.mark.parametrize("text", ["", "no certificate"])
def test_a_file_that_is_no_key_is_refused(text: str, tmp_path: Path) -> None:
    bad = tmp_path / "bad.pem"
    bad.write_text(text)
    with pytest.raises(polyexec.SpecificationError, match="cannot be used"):
        polyexec.connect(Keys(bad, bad).specification("tls://127.0.0.1:1"))


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ("tls_cert={file}", "without address="),
        ("address=tcp://h:1&tls_cert={file}&tls_ca_file={file}", "tls://"),
        ("address=tls://h:1&tls_cert={file}", "go together"),
        ("address=tls://h:1&tls_key={file}", "go together"),
        ("address=tls://h:1&tls_cert=/no/such/file", "no file"),
        ("address=tls://h:1&tls=1", "has its own"),
        ("address=tcp://me:canary@h:1", "no user and no password"),
        ("address=tcp://", "is not like"),
        ("address=foo://h:1&connect_timeout=1", "foo"),
    ],
)
def test_what_makes_no_sense_is_refused(keys: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(polyexec.PolyexecError) as caught:
        polyexec.connect(f"dask?{keys.format(file=tmp_path / 'file')}")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "canary" not in str(caught.value)


def test_without_the_package_it_warns(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """What needs the package ``cryptography`` and does not find it does so, and says what that means; once."""
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with polyexec.connect("dask?workers=1") as ex:
        assert any("every user of this machine" in weakness for weakness in ex.security().weaknesses)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert "pip install cryptography" in warning
    with pytest.raises(polyexec.BackendBroken, match="cryptography"):
        polyexec.connect("dask?workers=1&tls=1")
