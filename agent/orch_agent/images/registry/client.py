"""The conversation with registries: who may, what a name means, and content by digest.

Sources: OCI distribution specification 1.1 (pull, push), and Docker's token authentication (distribution's
spec/auth/token.md and oauth.md). Blocking; one client serves several threads.
"""

import base64
import json
import re
import ssl
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlencode, urljoin, urlsplit

import urllib3

from orch_agent.images import digests
from orch_agent.images.errors import DigestMismatch, LimitExceeded
from orch_agent.images.limits import DEFAULT_ARCHIVE_LIMITS
from orch_agent.images.reference import Reference
from orch_agent.images.registry import manifests
from orch_agent.images.registry.credentials import Credentials
from orch_agent.images.registry.errors import NotInRegistry, RegistryDenied, RegistryError, RegistryUnreachable
from orch_agent.images.registry.settings import Endpoint, Settings
from orch_proto.version import VERSION

CONNECT_TIMEOUT_S = 10.0
#: Silence until a connection counts as broken.
READ_TIMEOUT_S = 30.0
T = TypeVar("T")
_REDIRECTS = 5
_TOKEN_BYTES = 1024 * 1024
_ERROR_BYTES = 64 * 1024
_ACCEPT = ", ".join((*manifests.INDEX_TYPES, *manifests.MANIFEST_TYPES))
_CHALLENGE_PART = re.compile(r'([A-Za-z_]+)="([^"]*)"')
_HTTP_OK, _HTTP_CREATED, _HTTP_ACCEPTED, _HTTP_PARTIAL = 200, 201, 202, 206
_HTTP_UNAUTHORIZED, _HTTP_FORBIDDEN, _HTTP_NOT_FOUND = 401, 403, 404
_HTTP_TOO_MANY, _HTTP_SERVER_ERROR = 429, 500
_HTTP_REDIRECTS = (301, 302, 303, 307, 308)


@dataclass(frozen=True, slots=True)
class Document:
    """A manifest or index as the registry gave it, its digest computed here."""

    raw: bytes
    media_type: str
    digest: str


class RegistryClient:
    """Asks one registry, by its mirrors first, about one repository.

    Args:
        name: of the image; its registry and repository are what is asked.
        settings: of this node.
        find_credentials: for the name of a registry.
        pushes: whether it is written to, which mirrors are not for.
    """

    def __init__(
        self,
        name: Reference,
        settings: Settings,
        find_credentials: Callable[[str], Credentials | None],
        *,
        pushes: bool = False,
    ) -> None:
        self._name = name
        self._endpoints = settings.endpoints(name.registry, with_mirrors=not pushes)
        self._actions = "pull,push" if pushes else "pull"
        self._find_credentials = find_credentials
        self._pools: dict[tuple[bool, str], urllib3.PoolManager] = {}
        #: Another repository that a token must let us read, to take a blob from it.
        self._mounts_from = ""
        #: What is sent as Authorization, by endpoint.
        self._authorization: dict[str, str] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """End the connections."""
        for pool in self._pools.values():
            pool.clear()

    def manifest(self, wanted: str) -> Document:
        """The manifest or index of a tag or digest; a digest is checked.

        Raises:
            RegistryError: see its kinds.
            DigestMismatch: the content is not what was asked for.
        """
        limit_bytes = DEFAULT_ARCHIVE_LIMITS.document_bytes
        raw, headers = self._each(
            lambda endpoint: self._read(endpoint, f"manifests/{wanted}", limit_bytes, {"Accept": _ACCEPT})
        )
        digest = digests.of_bytes(raw)
        if wanted.startswith("sha256:") and digest != wanted:
            raise DigestMismatch(
                f"the registry {self._name.registry} gave other content than {wanted} for {self._name.name}; "
                "nothing of it is used; look after that registry, or its mirror"
            )
        return Document(raw, headers.get("Content-Type", ""), digest)

    def document(self, wanted: manifests.Descriptor) -> bytes:
        """A small blob whole, its digest checked."""
        raw, _ = self._each(lambda endpoint: self._read(endpoint, f"blobs/{wanted.digest}", wanted.size_bytes, {}))
        if digests.of_bytes(raw) != wanted.digest:
            raise DigestMismatch(f"the registry {self._name.registry} gave other content than {wanted.digest}")
        return raw

    def blob(self, wanted: manifests.Descriptor, offset: int) -> tuple[urllib3.BaseHTTPResponse, bool]:
        """A large blob as a stream that the caller closes, from an offset on if the registry can do that.

        Returns:
            The answer, and whether it begins at the offset; else it begins at the start.
        """
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        answer = self._each(lambda endpoint: self._ask(endpoint, f"blobs/{wanted.digest}", headers, may_end=True))
        return answer, answer.status == _HTTP_PARTIAL

    # ---- pushing -----------------------------------------------------------------------------------

    def has_blob(self, digest: str) -> bool:
        """Whether the repository has a blob."""

        def ask(endpoint: Endpoint) -> bool:
            url = f"{endpoint.url}/v2/{self._name.repository}/blobs/{digest}"
            answer = self._exchange(endpoint, "HEAD", url, {}, (_HTTP_OK, _HTTP_NOT_FOUND))
            answer.drain_conn()
            return answer.status == _HTTP_OK

        return self._each(ask)

    def mount_blob(self, digest: str, repository: str) -> bool:
        """Have a blob that another repository of the registry has; whether the registry does that."""

        def ask(endpoint: Endpoint) -> bool:
            query = urlencode({"mount": digest, "from": repository})
            url = f"{endpoint.url}/v2/{self._name.repository}/blobs/uploads/?{query}"
            answer = self._exchange(endpoint, "POST", url, {"Content-Length": "0"}, (_HTTP_CREATED, _HTTP_ACCEPTED))
            answer.drain_conn()
            return answer.status == _HTTP_CREATED

        self._mounts_from = repository
        return self._each(ask)

    def push_blob(self, digest: str, content: bytes | BinaryIO, size_bytes: int) -> None:
        """Upload a blob in one piece; the registry checks its digest."""

        def ask(endpoint: Endpoint) -> None:
            begin = f"{endpoint.url}/v2/{self._name.repository}/blobs/uploads/"
            answer = self._exchange(endpoint, "POST", begin, {"Content-Length": "0"}, (_HTTP_ACCEPTED,))
            answer.drain_conn()
            place = urljoin(begin, answer.headers.get("Location", ""))
            if endpoint.url.startswith("https:") and not place.startswith("https:"):
                raise RegistryError(f"the registry {self._name.registry} wants an upload without TLS; will not send it")
            url = f"{place}{'&' if '?' in place else '?'}{urlencode({'digest': digest})}"
            headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size_bytes)}
            self._exchange(endpoint, "PUT", url, headers, (_HTTP_CREATED,), body=content).drain_conn()

        self._each(ask)

    def push_manifest(self, tag: str, raw: bytes, media_type: str) -> None:
        """Have a tag mean a manifest whose blobs are all there."""

        def ask(endpoint: Endpoint) -> None:
            url = f"{endpoint.url}/v2/{self._name.repository}/manifests/{tag}"
            answer = self._exchange(endpoint, "PUT", url, {"Content-Type": media_type}, (_HTTP_CREATED,), body=raw)
            answer.drain_conn()

        self._each(ask)

    # ---- endpoints ---------------------------------------------------------------------------------

    def _each(self, ask: Callable[[Endpoint], T]) -> T:
        """Ask one endpoint after the other until one has an answer."""
        unreachable: list[str] = []
        refused: RegistryError | None = None
        for endpoint in self._endpoints:
            try:
                return ask(endpoint)
            except (urllib3.exceptions.HTTPError, ssl.SSLError, OSError) as error:
                unreachable.append(f"{endpoint.url}: {_reason(error)}")
            except RegistryError as error:
                refused = error  # the word of the last one, the registry itself, counts
        if refused is not None:
            raise refused
        raise RegistryUnreachable(
            f"cannot reach the registry {self._name.registry} ({'; '.join(unreachable)}); look at its address, "
            "the network and DNS of this node, and at its entry in /etc/orch/registries.yml"
        )

    def _read(
        self, endpoint: Endpoint, path: str, limit_bytes: int, headers: Mapping[str, str]
    ) -> tuple[bytes, Mapping[str, str]]:
        answer = self._ask(endpoint, path, headers)
        try:
            return _bounded(answer, limit_bytes, f"{endpoint.url} {path}"), answer.headers
        finally:
            answer.release_conn()

    def _ask(
        self, endpoint: Endpoint, path: str, headers: Mapping[str, str], *, may_end: bool = False
    ) -> urllib3.BaseHTTPResponse:
        """One GET; the answer is a success.

        With `may_end` a body that ends early is an end, not an error: what came of it counts.
        """
        url = f"{endpoint.url}/v2/{self._name.repository}/{path}"
        return self._exchange(endpoint, "GET", url, headers, (_HTTP_OK, _HTTP_PARTIAL), may_end=may_end)

    def _exchange(
        self,
        endpoint: Endpoint,
        method: str,
        url: str,
        headers: Mapping[str, str],
        good: Collection[int],
        *,
        body: bytes | BinaryIO | None = None,
        may_end: bool = False,
    ) -> urllib3.BaseHTTPResponse:
        """One request, authenticated when the registry asks for it; the answer has one of the `good` statuses."""
        sent = self._authorization.get(endpoint.url, "")
        answer = self._send(endpoint, method, url, {**headers, **_proof(sent)}, body=body, may_end=may_end)
        if answer.status == _HTTP_UNAUTHORIZED:
            answer.drain_conn()
            sent = self._authenticate(endpoint, answer.headers.get("WWW-Authenticate", ""), stale=sent)
            answer = self._send(endpoint, method, url, {**headers, **_proof(sent)}, body=body, may_end=may_end)
        if answer.status in good:
            return answer
        try:
            raise self._refusal(answer, has_credentials=self._find_credentials(endpoint.registry) is not None)
        finally:
            answer.release_conn()

    def _send(
        self,
        endpoint: Endpoint,
        method: str,
        url: str,
        headers: Mapping[str, str],
        *,
        body: bytes | BinaryIO | None,
        may_end: bool,
    ) -> urllib3.BaseHTTPResponse:
        """One request, a GET following redirects; what proves who we are goes to the registry's own host alone."""
        own = urlsplit(url)
        for _ in range(_REDIRECTS):
            place = urlsplit(url)
            sent = {"User-Agent": f"orch/{VERSION}", "Accept-Encoding": "identity", **headers}
            if (place.scheme, place.netloc) != (own.scheme, own.netloc):
                sent.pop("Authorization", None)
            if body is not None and not isinstance(body, bytes):
                body.seek(0)
            answer = self._pool(endpoint).request(
                method,
                url,
                body=body,
                headers=sent,
                preload_content=False,
                redirect=False,
                retries=False,
                enforce_content_length=not may_end,
            )
            if method not in ("GET", "HEAD") or answer.status not in _HTTP_REDIRECTS:
                return answer
            answer.drain_conn()
            url = urljoin(url, answer.headers.get("Location", ""))
            if own.scheme == "https" and urlsplit(url).scheme != "https":
                raise RegistryError(
                    f"the registry {self._name.registry} sends us to {urlsplit(url).netloc!r} without TLS; will not go"
                )
        raise RegistryError(f"the registry {self._name.registry} sends us round in circles; look after it")

    def _pool(self, endpoint: Endpoint) -> urllib3.PoolManager:
        key = (endpoint.verify, endpoint.ca)
        with self._lock:
            if key not in self._pools:
                context = ssl.create_default_context(cafile=endpoint.ca or None)
                if not endpoint.verify:
                    # Whoever wrote `insecure` knows; the warning would stand in every log line.
                    urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
                    context.check_hostname = False
                    context.verify_mode = ssl.CERT_NONE
                timeout = urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=READ_TIMEOUT_S)
                self._pools[key] = urllib3.PoolManager(ssl_context=context, timeout=timeout, maxsize=8)
            return self._pools[key]

    # ---- who we are --------------------------------------------------------------------------------

    def _authenticate(self, endpoint: Endpoint, challenge: str, *, stale: str) -> str:
        """Answer a registry's question who asks; returns the header to send.

        Args:
            endpoint: who asks.
            challenge: its WWW-Authenticate.
            stale: what was refused; another thread may have something newer by now.
        """
        with self._lock:
            known = self._authorization.get(endpoint.url, "")
        if known and known != stale:
            return known
        credentials = self._find_credentials(endpoint.registry)
        kind = challenge.partition(" ")[0].lower()
        if kind == "bearer":
            header = f"Bearer {self._token(endpoint, dict(_CHALLENGE_PART.findall(challenge)), credentials)}"
        elif kind == "basic" and credentials is not None and not credentials.identity_token:
            header = _basic(credentials)
        else:
            raise self._no_access(has_credentials=credentials is not None)
        with self._lock:
            self._authorization[endpoint.url] = header
        return header

    def _token(self, endpoint: Endpoint, challenge: Mapping[str, str], credentials: Credentials | None) -> str:
        realm = challenge.get("realm", "")
        allowed = ("https",) if endpoint.verify and endpoint.url.startswith("https:") else ("https", "http")
        if urlsplit(realm).scheme not in allowed:
            raise RegistryError(
                f"the registry {self._name.registry} names {realm[:200]!r} to get a token; will not ask"
            )
        scope = f"repository:{self._name.repository}:{self._actions}"
        scopes = [scope, f"repository:{self._mounts_from}:pull"] if self._mounts_from else [scope]
        fields = [("service", challenge.get("service", "")), *(("scope", one) for one in scopes)]
        headers = {"User-Agent": f"orch/{VERSION}"}
        if credentials is not None and credentials.identity_token:
            body = urlencode(
                [
                    ("service", challenge.get("service", "")),
                    ("scope", " ".join(scopes)),
                    ("grant_type", "refresh_token"),
                    ("client_id", "orch"),
                    ("refresh_token", credentials.identity_token),
                ]
            )
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            answer = self._pool(endpoint).request(
                "POST", realm, body=body, headers=headers, preload_content=False, redirect=False, retries=False
            )
        else:
            if credentials is not None:
                headers["Authorization"] = _basic(credentials)
            query = f"{realm}{'&' if '?' in realm else '?'}{urlencode(fields)}"
            answer = self._pool(endpoint).request(
                "GET", query, headers=headers, preload_content=False, redirect=False, retries=False
            )
        try:
            if answer.status != _HTTP_OK:
                raise self._refusal(answer, has_credentials=credentials is not None)
            document = json.loads(_bounded(answer, _TOKEN_BYTES, "a token"))
            token = document.get("token") or document.get("access_token")
        except (ValueError, AttributeError, RecursionError):
            token = None
        finally:
            answer.release_conn()
        if not isinstance(token, str) or not token.isprintable() or not token.isascii():
            raise RegistryError(f"{urlsplit(realm).netloc} gave no token for {self._name.name}; try again later")
        return token

    def _refusal(self, answer: urllib3.BaseHTTPResponse, *, has_credentials: bool) -> RegistryError:
        if answer.status in (_HTTP_UNAUTHORIZED, _HTTP_FORBIDDEN):
            return self._no_access(has_credentials=has_credentials)
        said = _what_it_says(answer)
        if answer.status == _HTTP_NOT_FOUND:
            return NotInRegistry(
                f"no such image: the registry {self._name.registry} has no {self._name.familiar}{said}; "
                "look at name and tag"
            )
        if answer.status == _HTTP_TOO_MANY:
            return RegistryError(
                f"the registry {self._name.registry} takes no more requests from here for now{said}; "
                "wait, log in, or use a mirror"
            )
        busy = "try again later" if answer.status >= _HTTP_SERVER_ERROR else "look after that registry"
        return RegistryError(f"the registry {self._name.registry} answered {answer.status}{said}; {busy}")

    def _no_access(self, *, has_credentials: bool) -> RegistryError:
        verb = "read" if self._actions == "pull" else "write"
        if has_credentials:
            return RegistryDenied(
                f"the registry {self._name.registry} does not let this node's login {verb} {self._name.familiar}; "
                "log in with one that may (docker login, podman login), or correct the name"
            )
        if verb == "write":
            return RegistryDenied(
                f"the registry {self._name.registry} lets nobody write {self._name.familiar} without a login; "
                "log in on this node (docker login, podman login: ~/.docker/config.json)"
            )
        return NotInRegistry(
            f"no such image: the registry {self._name.registry} shows no {self._name.familiar} to those who have not "
            "logged in; correct the name, or log in on this node (docker login, podman login: ~/.docker/config.json)"
        )


def _bounded(answer: urllib3.BaseHTTPResponse, limit_bytes: int, what: str) -> bytes:
    raw = answer.read(limit_bytes + 1)
    if len(raw) > limit_bytes:
        raise LimitExceeded(f"{what} has more than {limit_bytes} bytes; look after that registry")
    return raw


def _proof(authorization: str) -> dict[str, str]:
    return {"Authorization": authorization} if authorization else {}


def _basic(credentials: Credentials) -> str:
    pair = f"{credentials.username}:{credentials.password}".encode()
    return f"Basic {base64.b64encode(pair).decode()}"


def _what_it_says(answer: urllib3.BaseHTTPResponse) -> str:
    """The first message of an error document, in brackets; empty when it is none."""
    try:
        document: Any = json.loads(answer.read(_ERROR_BYTES))
        message = str(document["errors"][0]["message"])[:200]
    except (ValueError, LookupError, TypeError, RecursionError, urllib3.exceptions.HTTPError, OSError):
        return ""
    return f" ({' '.join(message.split())})" if message.isprintable() else ""


def _reason(error: BaseException) -> str:
    inner = getattr(error, "reason", None) or error
    return " ".join(str(inner).split())[:200]
