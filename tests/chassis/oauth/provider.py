"""A provider of accounts on this machine, whose words tests can change."""

import base64
import hashlib
import json
import logging
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any
from urllib.parse import parse_qs, urlsplit
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import httpx2 as httpx
from joserfc import jwt
from joserfc.jwk import Key, KeySet, RSAKey
from werkzeug.serving import make_server

Claims = dict[str, Any]

DESCRIPTION = "/.well-known/openid-configuration"


class Provider:
    """oidc-provider-mock, which signs everyone in, behind a layer that notes and changes.

    It does not check PKCE itself, and its tokens are always right. So this layer checks the
    verifier, and signs the tokens anew with keys of its own.

    Attributes:
        claims: What a token says besides; None takes a claim away.
        description: The same for the provider's description of itself.
        answers: Other answers, by the path.
        signing: Another header and key than the first of `keys`.
        requests: The paths that were asked for.
        secrets: What may never be in a log.
    """

    def __init__(self) -> None:
        with warnings.catch_warnings():
            # it uses a module of Authlib that is deprecated
            warnings.simplefilter("ignore")
            import oidc_provider_mock

            self.mock: WSGIApplication = oidc_provider_mock.app()
        for name in ("oidc_provider_mock", "werkzeug"):
            logging.getLogger(name).propagate = False
        self.url = ""
        # to make one takes longer than a request
        self.client = httpx.Client()
        self.keys = [RSAKey.generate_key(2048, auto_kid=True)]
        self.reset()

    def reset(self) -> None:
        self.requests: list[str] = []
        self.secrets: set[str] = set()
        self.challenges: dict[str, str] = {}
        self.claims: Claims = {}
        self.description: Claims = {}
        self.answers: dict[str, Callable[[], tuple[str, bytes]]] = {}
        self.signing: tuple[Claims, Key] | None = None

    def answer(self, path: str, status: str, body: bytes) -> None:
        """Answer like this at the path, whatever is asked."""
        self.answers[path] = lambda: (status, body)

    def __call__(self, environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        self.requests.append(path)
        if path in self.answers:
            return respond(start, *self.answers[path]())
        if path.endswith(DESCRIPTION):
            # some have one for every tenant
            environ["PATH_INFO"] = path = DESCRIPTION
        if path == "/jwks":
            keys = KeySet(list(self.keys)).as_dict()
            return respond(start, "200 OK", json.dumps(keys).encode())
        if path == "/oauth2/authorize":
            query = parse_qs(environ["QUERY_STRING"])
            assert query["code_challenge_method"] == ["S256"]
            assert query["response_type"] == ["code"]
            self.secrets.update(query["nonce"] + query["state"])
        if path == "/oauth2/token" and not self.is_verified(environ):
            return respond(start, "400 Bad Request", b'{"error": "invalid_grant"}')
        status, body, headers = call(self.mock, environ)
        if path == "/oauth2/authorize" and status.startswith("302"):
            answer = parse_qs(urlsplit(dict(headers)["Location"]).query)
            self.challenges[answer["code"][0]] = query["code_challenge"][0]
        if path == DESCRIPTION:
            description = json.loads(body)
            description |= self.description
            return respond(start, status, json.dumps(description).encode())
        if path == "/oauth2/token" and status.startswith("200"):
            return respond(start, status, self.sign(json.loads(body)))
        start(status, headers)
        return [body]

    def is_verified(self, environ: WSGIEnvironment) -> bool:
        """Whether who brings the code is who has asked for it."""
        body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
        environ["wsgi.input"] = BytesIO(body)
        form = parse_qs(body.decode())
        (verifier,) = form["code_verifier"]
        (code,) = form["code"]
        digest = hashlib.sha256(verifier.encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        self.secrets.update([verifier, code, *form["client_secret"]])
        return self.challenges.get(code) == challenge

    def sign(self, answer: Claims) -> bytes:
        payload = answer["id_token"].split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        changed = {**claims, **self.claims}
        claims = {name: value for name, value in changed.items() if value is not None}
        header, key = self.signing or ({"alg": "RS256", "kid": self.keys[0].kid}, self.keys[0])
        answer["id_token"] = jwt.encode(header, claims, key, algorithms=[header["alg"]])
        self.secrets.update([answer["id_token"], answer["access_token"]])
        return json.dumps(answer).encode()


def respond(start: StartResponse, status: str, body: bytes) -> list[bytes]:
    start(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


def call(
    app: WSGIApplication, environ: WSGIEnvironment
) -> tuple[str, bytes, list[tuple[str, str]]]:
    """The application's answer as a whole."""
    started: list[tuple[str, list[tuple[str, str]]]] = []

    def start(status: str, headers: list[tuple[str, str]], _: object = None) -> Any:
        started.append((status, headers))

    body = b"".join(app(environ, start))
    return started[0][0], body, started[0][1]


@contextmanager
def serving(provider: Provider) -> Iterator[None]:
    server = make_server("localhost", 0, provider, threaded=True)
    provider.url = f"http://localhost:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        provider.client.close()
