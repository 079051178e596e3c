"""Certificates as an administrator makes them: an authority's, and one of ours."""

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from django_tasks_local import DaskTLS

_DAY = timedelta(days=1)


class Certificates(NamedTuple):
    """Where they are."""

    ca_file: Path
    cert: Path
    key: Path

    @property
    def tls(self) -> DaskTLS:
        """For ``OPTIONS["TLS"]``."""
        return {"CA_FILE": self.ca_file, "CERT": self.cert, "KEY": self.key}

    @property
    def dask_options(self) -> list[str]:
        """For Dask's command line."""
        return [
            "--protocol=tls",
            f"--tls-ca-file={self.ca_file}",
            f"--tls-cert={self.cert}",
            f"--tls-key={self.key}",
        ]


def make_certificates(directory: Path) -> Certificates:
    """An authority of their own, and one certificate for all parts of the cluster."""
    directory.mkdir()
    authority = ec.generate_private_key(ec.SECP256R1())
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = _name("authority")
    ca = _builder(issuer, issuer, authority).add_extension(
        x509.BasicConstraints(ca=True, path_length=None), critical=True
    )
    own = _builder(_name("127.0.0.1"), issuer, key).add_extension(
        x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]),
        critical=False,
    )
    paths = Certificates(*(directory / name for name in ("ca.pem", "cert.pem", "key")))
    pem = serialization.Encoding.PEM
    signed = [each.sign(authority, hashes.SHA256()) for each in (ca, own)]
    paths.ca_file.write_bytes(signed[0].public_bytes(pem))
    paths.cert.write_bytes(signed[1].public_bytes(pem))
    paths.key.write_bytes(
        key.private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return paths


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _DAY)
        .not_valid_after(now + _DAY)
    )
