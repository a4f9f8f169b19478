"""A small OpenID provider on this machine's loopback: honest, unless a test says what it is to do wrong."""

import base64
import contextlib
import hashlib
import json
import secrets
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import ECKey, RSAKey

CLIENT, SECRET = "negindex", "a secret that is to be seen nowhere"


def jws(header, claims, key):
    return jwt.encode(header, claims, key, algorithms=[header["alg"]])


class IdentityProvider:
    """One provider, with whoever ``login`` names at its keyboard."""

    def __init__(self):
        self.key = ECKey.generate_key("P-256", {"kid": "first", "use": "sig"}, auto_kid=False)
        self.first = self.key
        self.user = {"sub": "u-1", "groups": []}
        self.codes, self.asked = {}, []  # codes that were given out; paths that were asked for
        self.described = {}  # what the description says otherwise
        self.answer = None  # what the token endpoint answers instead
        self.made = None  # (header, claims, key) -> the ID token, instead of an honest one
        self.extra = {}  # what goes back to the client beside the code
        handler = type("Handler", (_Handler,), {"provider": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.issuer = f"http://127.0.0.1:{self.server.server_address[1]}"

    def turn_key(self, kind="EC"):
        """Sign with another key from now on."""
        kid = secrets.token_hex(4)
        if kind == "EC":
            self.key = ECKey.generate_key("P-256", {"kid": kid}, auto_kid=False)
        else:
            self.key = RSAKey.generate_key(2048, {"kid": kid}, auto_kid=False)

    def get(self, path, query):
        """(status, headers, body) of what a browser or a client asks."""
        self.asked.append(path)
        if path == "/.well-known/openid-configuration":
            said = {
                "issuer": self.issuer,
                "authorization_endpoint": f"{self.issuer}/authorize",
                "token_endpoint": f"{self.issuer}/token",
                "jwks_uri": f"{self.issuer}/keys",
                "end_session_endpoint": f"{self.issuer}/logout",
            }
            return 200, {}, {name: value for name, value in {**said, **self.described}.items() if value is not None}
        if path == "/keys":
            odd = {"kty": "of the future", "kid": "odd"}
            return 200, {}, {"keys": [odd, self.key.as_dict(private=False)]}
        if path == "/authorize":
            return 302, {"Location": self._authorized(query)}, {}
        return 404, {}, {}

    def _authorized(self, query):
        assert query["response_type"] == "code"
        assert query["client_id"] == CLIENT
        assert query["code_challenge_method"] == "S256"
        assert "openid" in query["scope"].split()
        code = secrets.token_urlsafe(16)
        self.codes[code] = query
        return f"{query['redirect_uri']}?{urlencode({'code': code, 'state': query['state'], **self.extra})}"

    def post(self, path, form, authorization):
        """(status, headers, body) of what a client asks of the token endpoint."""
        self.asked.append(path)
        expected = base64.b64encode(f"{CLIENT}:{SECRET}".encode()).decode()
        if path != "/token" or authorization != f"Basic {expected}":
            return 401, {}, {"error": "invalid_client"}
        begun = self.codes.pop(form.get("code", ""), None)  # a code is good once
        challenge = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        proved = begun and begun["code_challenge"] == base64.urlsafe_b64encode(challenge).decode().rstrip("=")
        if not proved or form["redirect_uri"] != begun["redirect_uri"] or form["grant_type"] != "authorization_code":
            return 400, {}, {"error": "invalid_grant"}
        if self.answer is not None:
            return self.answer
        now = int(time.time())
        claims = {"iss": self.issuer, "aud": CLIENT, "iat": now, "exp": now + 300, "nonce": begun["nonce"], **self.user}
        header = {"alg": "RS256" if isinstance(self.key, RSAKey) else "ES256", "kid": self.key.kid}
        token = (self.made or jws)(header, claims, self.key)
        return 200, {}, {"access_token": secrets.token_hex(8), "token_type": "Bearer", "id_token": token}


class _Handler(BaseHTTPRequestHandler):
    provider: IdentityProvider

    def do_GET(self):
        parts = urlsplit(self.path)
        self._send(*self.provider.get(parts.path, {name: all_[-1] for name, all_ in parse_qs(parts.query).items()}))

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        form = {name: all_[-1] for name, all_ in parse_qs(body).items()}
        self._send(*self.provider.post(urlsplit(self.path).path, form, self.headers.get("Authorization")))

    def _send(self, status, headers, said):
        body = said if isinstance(said, bytes) else json.dumps(said).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def identity_provider():
    """A provider that runs."""
    made = IdentityProvider()
    thread = threading.Thread(target=made.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.server.shutdown()
        made.server.server_close()
        thread.join(10)
