"""X.509 certificates of a deployment: certificate authorities, and the certificates that they sign."""

from __future__ import annotations

import datetime
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from matu_flwr.texts import Brief

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

Usage = Literal["server", "client"]

AUTHORITY_DAYS = 3650
# The longest validity that browsers accept in a server's certificate. It lasts for a study, and is not forever.
CERTIFICATE_DAYS = 398
# A certificate is valid from this long before it was made, so that a machine whose clock is slow accepts it at once.
CLOCK_SKEW = datetime.timedelta(minutes=5)
HOST = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*"
)


class KeysError(Brief, ValueError):
    """Credentials cannot be made; the text names the file or value, what was expected, and what to do."""


@dataclass(frozen=True)
class Pair:
    """A certificate and its private key.

    Attributes
    ----------
    certificate : x509.Certificate
        The certificate. An authority has signed it; that of an authority is signed with its own key.
    key : ec.EllipticCurvePrivateKey
        The private key, on the curve P-384.
    """

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def certificate_bytes(self) -> bytes:
        """Return the certificate in PEM form."""
        from cryptography.hazmat.primitives.serialization import Encoding

        return self.certificate.public_bytes(Encoding.PEM)

    def key_bytes(self) -> bytes:
        """Return the private key in PEM form (PKCS #8), without a pass phrase."""
        # Services start when nobody is there to type a pass phrase.
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def new_key() -> ec.EllipticCurvePrivateKey:
    """Return a private key on P-384, the curve that Flower's own node keys use."""
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP384R1())


def authority(name: str, days: int = AUTHORITY_DAYS, *, now: datetime.datetime | None = None) -> Pair:
    """Make a certificate authority. It may sign certificates of servers and operators, not of other authorities."""
    from cryptography import x509

    key = new_key()
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    builder = (
        _builder(subject, subject, key.public_key(), days, now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return Pair(_sign(builder, key), key)


def issue(
    signer: Pair,
    name: str,
    usage: Usage,
    hosts: Sequence[str] = (),
    days: int = CERTIFICATE_DAYS,
    *,
    now: datetime.datetime | None = None,
) -> Pair:
    """Make a key and have an authority sign its certificate.

    Parameters
    ----------
    signer : Pair
        The authority.
    name : str
        Common name. It says whose certificate it is, to people and in the proxy's log.
    usage : {"server", "client"}
        The side of a TLS connection on which the certificate is valid.
    hosts : sequence of str
        DNS names and IP addresses under which the server is reached (subject alternative names).
    days : int
        Days until it expires. It never lasts longer than the authority's own certificate.
    now : datetime, optional
        Start of the validity, in UTC; the present time if not given.

    Returns
    -------
    Pair
        The new certificate and its private key.

    Raises
    ------
    KeysError
        One of `hosts` is neither a DNS name nor an IP address.
    """
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    key = new_key()
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    purpose = ExtendedKeyUsageOID.SERVER_AUTH if usage == "server" else ExtendedKeyUsageOID.CLIENT_AUTH
    last = signer.certificate.not_valid_after_utc
    signer_id = signer.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = (
        _builder(subject, signer.certificate.subject, key.public_key(), days, now, last)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(signer_id), critical=False)
    )
    if hosts:
        names = [alternative_name(host) for host in dict.fromkeys(hosts)]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return Pair(_sign(builder, signer.key), key)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    days: int,
    now: datetime.datetime | None,
    last: datetime.datetime | None = None,
) -> x509.CertificateBuilder:
    from cryptography import x509

    start = now or datetime.datetime.now(datetime.UTC)
    end = start + datetime.timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - CLOCK_SKEW)
        .not_valid_after(min(end, last) if last else end)
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _sign(builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    from cryptography.hazmat.primitives.hashes import SHA384

    return builder.sign(key, SHA384())


def alternative_name(host: str) -> x509.GeneralName:
    """Return a host as an entry for a certificate; KeysError if it is neither a DNS name nor an IP address."""
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    # Digits and dots alone are a mistyped IP address, although they fit the pattern of a DNS name.
    if not HOST.fullmatch(host) or host.replace(".", "").isdigit():
        raise KeysError(
            f"{host!r} is neither a host name nor an IP address; give what sites type to reach the server, without "
            "https:// and without a port, e.g. --host fl.example.org"
        )
    return x509.DNSName(host)
