"""Certificates: keys, requests, roots, and what a certificate says of its holder. Pure functions over PEM text.

One kind of key (EC P-256) and one hash (SHA-256), so that there is nothing to negotiate. A certificate's subject tells
everything: CN the node's id or the user's name, OU the role, O the cluster's id. (SwarmKit: ca/certificates.go)
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from orch_proto import defaults
from orch_rpc.errors import InvalidArgument

#: Clients ask for a manager under this name, whatever its address: only a manager's certificate carries it.
MANAGER_SERVER_NAME: Final = "manager.orch"
_NODE_DOMAIN: Final = "orch"
_STACK_PREFIX_URI: Final = "orch://stack-prefix/"
_MAX_PEM_BYTES: Final = 64 * 1024  # a bundle of dozens of certificates; more comes from nobody honest
_CURVE: Final = ec.SECP256R1


class CertificateRole(StrEnum):
    """What a certificate lets its holder be: the subject's OU."""

    MANAGER = "orch-manager"
    WORKER = "orch-worker"
    USER_ADMIN = "orch-user-admin"
    USER_DEPLOY = "orch-user-deploy"
    USER_READ = "orch-user-read"

    @property
    def is_node(self) -> bool:
        """True for managers and workers, False for people."""
        return self in (CertificateRole.MANAGER, CertificateRole.WORKER)


@dataclass(frozen=True, slots=True)
class Subject:
    """Whom a certificate is for.

    Attributes:
        name: node id, or name of a user.
        role: what it may be.
        cluster_id: of which cluster.
        stack_prefix: of a user with the role deploy: only stacks whose names begin so; empty: all.
    """

    name: str
    role: CertificateRole
    cluster_id: str
    stack_prefix: str = ""


@dataclass(frozen=True, slots=True)
class CertificateFacts:
    """What a certificate says.

    Attributes:
        subject: whom it is for.
        not_before_unix_ms: begin of its life.
        not_after_unix_ms: end of its life.
        issuer_key_id: key identifier of the key that signed it (RFC 5280, 4.2.1.1), as hexadecimal digits.
    """

    subject: Subject
    not_before_unix_ms: int
    not_after_unix_ms: int
    issuer_key_id: str


# ---- keys and requests -----------------------------------------------------------------------------


def new_key() -> bytes:
    """A fresh private key, as PEM (PKCS #8, not encrypted)."""
    return ec.generate_private_key(_CURVE()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _load_key(key_pem: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(key_pem, password=None)
    except (ValueError, TypeError) as error:
        raise InvalidArgument("cannot read a private key", "it is no unencrypted key in PEM format") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, _CURVE):
        raise InvalidArgument("cannot use a private key", "it is no EC key on the curve P-256", "let orch make the key")
    return key


def new_request(key_pem: bytes, name: str = "") -> bytes:
    """A certificate signing request, as PEM. What it asks for is decided by the issuer; it only proves the key.

    Raises:
        InvalidArgument: the key is none of orch's.
    """
    request = x509.CertificateSigningRequestBuilder().subject_name(_name((NameOID.COMMON_NAME, name or "new node")))
    return request.sign(_load_key(key_pem), hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def check_key_matches(certificate_pem: bytes, key_pem: bytes) -> None:
    """Checks that a certificate is for a key.

    Raises:
        InvalidArgument: it is for another.
    """
    if _public_bytes(parse(certificate_pem).public_key()) != _public_bytes(_load_key(key_pem).public_key()):
        raise InvalidArgument(
            "cannot use the certificate", "its key is another one", "restore both files, or join again with a token"
        )


def request_is_by_holder_of(request_pem: bytes, certificate_pem: bytes) -> bool:
    """True when the request was signed with the certificate's own key: its holder asks for the next one."""
    return _public_bytes(_load_request(request_pem).public_key()) == _public_bytes(parse(certificate_pem).public_key())


def _public_bytes(key: object) -> bytes:
    assert isinstance(key, ec.EllipticCurvePublicKey), "other keys were refused when they were read"
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _load_request(request_pem: bytes) -> x509.CertificateSigningRequest:
    what = "cannot issue a certificate"
    if len(request_pem) > _MAX_PEM_BYTES:
        raise InvalidArgument(what, f"the request has more than {_MAX_PEM_BYTES} bytes")
    try:
        request = x509.load_pem_x509_csr(request_pem)
        signed = request.is_signature_valid
    except (ValueError, TypeError) as error:
        raise InvalidArgument(what, "the request is no certificate signing request in PEM format") from error
    key = request.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, _CURVE):
        raise InvalidArgument(what, "the request's key is no EC key on the curve P-256", "let orch make the key")
    if not signed:
        raise InvalidArgument(what, "the request is not signed by its own key")
    return request


# ---- roots and issuing -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Authority:
    """A root that can sign: the certificate, its key, and under a rotation what links it to the root before it.

    Attributes:
        certificate_pem: self-signed.
        key_pem: its key.
        cross_signed_pem: the same key certified by the root before it; goes along with what is issued, so that those
            who know only that one trust it too.
    """

    certificate_pem: bytes
    key_pem: bytes
    cross_signed_pem: bytes = b""

    def __repr__(self) -> str:
        return f"Authority({digest(self.certificate_pem)[:12]}…)"

    @property
    def key_id(self) -> str:
        """Identifier of the signing key, as in `CertificateFacts.issuer_key_id`."""
        return _key_id(_load_key(self.key_pem).public_key())

    def issue(self, request_pem: bytes, subject: Subject, *, lifetime_ms: int, now_unix_ms: int) -> bytes:
        """Signs a certificate for the key of a request; what the request says besides is ignored.

        Args:
            request_pem: the signing request.
            subject: whom it is for.
            lifetime_ms: from now; it never outlives the root. It begins an hour ago, for hosts whose clocks lag.
            now_unix_ms: the time.

        Returns:
            The certificate as PEM, followed by the cross-signed one if there is one.

        Raises:
            InvalidArgument: the request is not valid, or the subject cannot be written into a certificate.
        """
        request = _load_request(request_pem)
        root = parse(self.certificate_pem)
        key = _load_key(self.key_pem)
        ends = min(_time(now_unix_ms + lifetime_ms), root.not_valid_after_utc)
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if subject.role.is_node:
            usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
        builder = (
            x509.CertificateBuilder()
            .subject_name(_subject_name(subject))
            .issuer_name(root.subject)
            .public_key(request.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(_time(now_unix_ms - defaults.CERTIFICATE_BACKDATE_MS))
            .not_valid_after(ends)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        )
        names = _alternative_names(subject)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return _to_pem(builder.sign(key, hashes.SHA256())) + self.cross_signed_pem

    def cross_sign(self, other: Authority) -> bytes:
        """The other root's key, certified by this one, until the earlier of both ends."""
        theirs = parse(other.certificate_pem)
        ours = parse(self.certificate_pem)
        builder = _authority_builder(
            subject=theirs.subject,
            issuer=ours.subject,
            key=_load_key(other.key_pem).public_key(),
            begins=theirs.not_valid_before_utc,
            ends=min(theirs.not_valid_after_utc, ours.not_valid_after_utc),
        )
        key = _load_key(self.key_pem)
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
        )
        return _to_pem(builder.sign(key, hashes.SHA256()))


def new_authority(
    cluster_id: str, *, now_unix_ms: int, lifetime_ms: int = defaults.ROOT_CERTIFICATE_LIFETIME_MS
) -> Authority:
    """A fresh root for a cluster. Its name carries its key's identifier, so that two roots of a cluster differ."""
    key_pem = new_key()
    key = _load_key(key_pem)
    name = _name(
        (NameOID.ORGANIZATION_NAME, cluster_id), (NameOID.COMMON_NAME, f"orch root {_key_id(key.public_key())[:16]}")
    )
    builder = _authority_builder(
        subject=name,
        issuer=name,
        key=key.public_key(),
        begins=_time(now_unix_ms - defaults.CERTIFICATE_BACKDATE_MS),
        ends=_time(now_unix_ms + lifetime_ms),
    )
    return Authority(_to_pem(builder.sign(key, hashes.SHA256())), key_pem)


def _authority_builder(
    *,
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    begins: dt.datetime,
    ends: dt.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
        .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
        .add_extension(_key_usage(ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _key_id(key: ec.EllipticCurvePublicKey) -> str:
    return x509.SubjectKeyIdentifier.from_public_key(key).digest.hex()


def _name(*attributes: tuple[x509.ObjectIdentifier, str]) -> x509.Name:
    try:
        return x509.Name([x509.NameAttribute(kind, value) for kind, value in attributes])
    except ValueError as error:
        raise InvalidArgument("cannot issue a certificate", str(error), "use a name of 1 to 64 characters") from error


def _subject_name(subject: Subject) -> x509.Name:
    return _name(
        (NameOID.ORGANIZATION_NAME, subject.cluster_id),
        (NameOID.ORGANIZATIONAL_UNIT_NAME, subject.role),
        (NameOID.COMMON_NAME, subject.name),
    )


def _alternative_names(subject: Subject) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = []
    if subject.role.is_node:
        names.append(x509.DNSName(f"{subject.name}.{_NODE_DOMAIN}"))
    if subject.role is CertificateRole.MANAGER:
        names.append(x509.DNSName(MANAGER_SERVER_NAME))
    if subject.stack_prefix:
        names.append(x509.UniformResourceIdentifier(f"{_STACK_PREFIX_URI}{subject.stack_prefix}"))
    return names


# ---- reading ---------------------------------------------------------------------------------------


def parse(certificate_pem: bytes) -> x509.Certificate:
    """The first certificate of a PEM text.

    Raises:
        InvalidArgument: there is none, or its key is none that orch uses.
    """
    return parse_all(certificate_pem)[0]


def parse_all(bundle_pem: bytes) -> list[x509.Certificate]:
    """Every certificate of a PEM text; at least one.

    Raises:
        InvalidArgument: there is none, or the key of one is none that orch uses.
    """
    what = "cannot read a certificate"
    if len(bundle_pem) > _MAX_PEM_BYTES:
        raise InvalidArgument(what, f"the text has more than {_MAX_PEM_BYTES} bytes")
    try:
        found = x509.load_pem_x509_certificates(bundle_pem)
        keys = [certificate.public_key() for certificate in found]
    except (ValueError, TypeError) as error:
        raise InvalidArgument(what, "the text holds none in PEM format") from error
    if not all(isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, _CURVE) for key in keys):
        raise InvalidArgument(what, "its key is no EC key on the curve P-256")
    return found


def facts(certificate_pem: bytes) -> CertificateFacts:
    """What a certificate (the first of a chain) says of its holder.

    Raises:
        InvalidArgument: it is no certificate of orch.
    """
    certificate = parse(certificate_pem)
    what = "cannot use a certificate"
    try:
        subject = Subject(
            name=_attribute(certificate, NameOID.COMMON_NAME),
            role=CertificateRole(_attribute(certificate, NameOID.ORGANIZATIONAL_UNIT_NAME)),
            cluster_id=_attribute(certificate, NameOID.ORGANIZATION_NAME),
            stack_prefix=_stack_prefix(certificate),
        )
        issuer = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension) as error:
        raise InvalidArgument(what, "it is none that an orch cluster issues") from error
    return CertificateFacts(
        subject=subject,
        not_before_unix_ms=_unix_ms(certificate.not_valid_before_utc),
        not_after_unix_ms=_unix_ms(certificate.not_valid_after_utc),
        issuer_key_id=(issuer or b"").hex(),
    )


def _attribute(certificate: x509.Certificate, kind: x509.ObjectIdentifier) -> str:
    values = [str(each.value) for each in certificate.subject.get_attributes_for_oid(kind)]
    if len(values) != 1 or not values[0]:
        raise ValueError(f"{len(values)} values of {kind.dotted_string}")
    return values[0]


def _stack_prefix(certificate: x509.Certificate) -> str:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ""
    found = [
        uri.removeprefix(_STACK_PREFIX_URI)
        for uri in names.get_values_for_type(x509.UniformResourceIdentifier)
        if uri.startswith(_STACK_PREFIX_URI)
    ]
    if len(found) > 1:
        raise ValueError("several stack prefixes")
    return found[0] if found else ""


def digest(certificate_pem: bytes) -> str:
    """SHA-256 of the first certificate's DER form, as hexadecimal digits: what a join token binds."""
    return parse(certificate_pem).fingerprint(hashes.SHA256()).hex()


def bundle_digest(bundle_pem: bytes) -> str:
    """One digest of a set of roots, whatever their order and the text around them."""
    together = hashes.Hash(hashes.SHA256())
    for fingerprint in sorted(each.fingerprint(hashes.SHA256()) for each in parse_all(bundle_pem)):
        together.update(fingerprint)
    return together.finalize().hex()


def first(bundle_pem: bytes) -> bytes:
    """The first certificate of a PEM text, alone."""
    return _to_pem(parse(bundle_pem))


def join_bundle(roots_pem: Iterable[bytes]) -> bytes:
    """Certificates as one PEM text, each once."""
    seen: dict[bytes, bytes] = {}
    for text in roots_pem:
        for certificate in parse_all(text):
            seen.setdefault(certificate.fingerprint(hashes.SHA256()), _to_pem(certificate))
    return b"".join(seen.values())


def is_issued_by(certificate_pem: bytes, roots_pem: Sequence[bytes]) -> bool:
    """True when one of the roots signed the certificate itself, whether or not either has expired."""
    certificate = parse(certificate_pem)
    for text in roots_pem:
        for root in parse_all(text):
            try:
                certificate.verify_directly_issued_by(root)
            except (ValueError, TypeError, InvalidSignature):
                continue
            return True
    return False


def _time(unix_ms: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(unix_ms // 1000, tz=dt.UTC)


def _unix_ms(moment: dt.datetime) -> int:
    return int(moment.timestamp()) * 1000


def _to_pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
