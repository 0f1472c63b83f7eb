"""A resource server behind a Dipylon broker, written from docs/wire.md (section 6) and proto/ alone. Its interface:
GET /cases/ID is case.read, POST /accounts/ID/disable is account.disable; the body of a POST is
{"parameters": {name: value}, "salts": {name: salt of a sensitive parameter}}."""
import argparse, base64, json, pathlib, re, threading, time, urllib.parse, urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import grpc
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils
from agent import Broker, Refused, b64u, jcs, sha256, token_pb

LEEWAY_S = 5
TOKEN_LIFE_MAX_S = 3600

class Rejected(Exception):
    """Why a request is refused, with the answer of section 6.8."""
    def __init__(self, status, error, why):
        super().__init__(why)
        self.status, self.error = status, error

def unavailable(why): return Rejected(503, None, why)
def invalid_token(why): return Rejected(401, "invalid_token", why)
def invalid_proof(why): return Rejected(401, "invalid_dpop_proof", why)
def wrong_action(why): return Rejected(403, "insufficient_scope", why)

def require(condition, what):
    if not condition:
        raise ValueError(what)

def from_b64u(text):
    data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    require(b64u(data) == text, "base64url")
    return data

def strict_json(data):
    def once(pairs):
        require(len(dict(pairs)) == len(pairs), "a member stands twice")
        return dict(pairs)
    value = json.loads(data.decode(), object_pairs_hook=once)
    json.dumps(value, ensure_ascii=False, allow_nan=False).encode()  # a lone surrogate has no UTF-8
    return value

def open_jws(text):
    """Header, claims and signature of a compact JWS, by form only."""
    require(len(text) <= 8192 and text.count(".") == 2, "form")
    header, claims, signature = (from_b64u(part) for part in text.split("."))
    header, claims = strict_json(header), strict_json(claims)
    require(isinstance(header, dict) and isinstance(claims, dict) and len(signature) == 64, "form")
    return header, claims, signature

JWK_MEMBERS = {
    "kty": lambda v: v == "EC", "crv": lambda v: v == "P-256", "x": lambda v: len(from_b64u(v)) == 32, "y": lambda v: len(from_b64u(v)) == 32,
    "alg": lambda v: v == "ES256", "use": lambda v: v == "sig", "key_ops": lambda v: isinstance(v, list) and "verify" in v,
    "kid": lambda v: isinstance(v, str), "ext": lambda v: isinstance(v, bool),
}

def read_jwk(jwk):
    """The public key of a JWK and its thumbprint (section 4.1)."""
    require({"kty", "crv", "x", "y"} <= set(jwk) <= set(JWK_MEMBERS) and all(JWK_MEMBERS[name](value) for name, value in jwk.items()), "jwk")
    x, y = (int.from_bytes(from_b64u(jwk[name]), "big") for name in "xy")
    return ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key(), b64u(sha256(jcs({name: jwk[name] for name in ("crv", "kty", "x", "y")})))

def verify_es256(key, message, signature):
    require(len(signature) == 64, "signature")
    der = utils.encode_dss_signature(int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))
    key.verify(der, message, ec.ECDSA(hashes.SHA256()))

def verify(key, text, signature):
    verify_es256(key, text.rsplit(".", 1)[0].encode("ascii"), signature)

CLAIMS = {"iss", "aud", "sub", "client_id", "iat", "nbf", "exp", "jti", "txn", "cnf", "authorization_details", "epoch", "pos"}

def is_id(prefix, text):
    return isinstance(text, str) and re.fullmatch(prefix + "_[A-Za-z0-9_-]{22}", text) and len(from_b64u(text.removeprefix(prefix + "_"))) == 16

def check_token(text, key_of, issuer, audience, now):
    """Signature, form, issuer, audience and times (sections 6.1 and 6.2); returns the claims."""
    try:
        header, claims, signature = open_jws(text)
        require(set(header) == {"alg", "kid", "typ"} and header["alg"] == "ES256" and header["typ"] in ("at+jwt", "application/at+jwt"), "header")
        verify(key_of(header["kid"]), text, signature)
        require(CLAIMS <= set(claims) <= CLAIMS | {"uses", "approval"}, "claims")
        require(all(type(claims[name]) is int for name in ("iat", "nbf", "exp", "epoch", "pos")), "numbers")
        require("uses" not in claims or type(claims["uses"]) is int and claims["uses"] >= 1, "uses")
        [approved] = claims["authorization_details"]
        require(approved["type"] == "urn:dipylon:action:v1" and isinstance(approved["parameters"], dict) and isinstance(approved["target"], dict), "action")
        require(set(claims["cnf"]) == {"jkt"} and len(from_b64u(claims["cnf"]["jkt"])) == 32, "cnf")
        require(is_id("tok", claims["jti"]) and is_id("task", claims["txn"]), "ids")
        require(all(type(text) is str for text in (claims["sub"], claims["client_id"], approved["action"])), "texts")
        require(max(claims["nbf"], claims["iat"]) < claims["exp"], "times")
        require(claims["iss"] == issuer and claims["aud"] == audience, "issuer or audience")
        require(now < claims["exp"] <= claims["iat"] + TOKEN_LIFE_MAX_S and max(claims["nbf"], claims["iat"]) <= now + LEEWAY_S, "times")
        return claims
    except Rejected:
        raise
    except Exception as error:
        raise invalid_token(repr(error)) from None

def without_query(url):
    return re.split("[?#]", url)[0]

def normalized(url):
    """Without query, with scheme and host in lower case, no default port and no needless escape (RFC 9449 section 4.3, RFC 3986
    section 6.2)."""
    def plain(escape):
        byte = chr(int(escape[1], 16))
        return byte if re.fullmatch("[A-Za-z0-9._~-]", byte) else escape[0].upper()
    parts = urllib.parse.urlsplit(without_query(url))
    port = parts.port if parts.port != {"http": 80, "https": 443}.get(parts.scheme) else None
    return parts.scheme, parts.hostname, port, re.sub("%([0-9A-Fa-f]{2})", plain, parts.path or "/")

def check_proof(text, token, jkt, method, url, now, is_new):
    """The proof sent with a token (section 6.3); returns its id."""
    try:
        header, claims, signature = open_jws(text)
        require(set(header) == {"typ", "alg", "jwk"} and header["typ"] == "dpop+jwt" and header["alg"] == "ES256", "header")
        key, thumbprint = read_jwk(header["jwk"])
        verify(key, text, signature)
        needed = {"jti", "htm", "htu", "iat", "ath"}
        require(needed <= set(claims) <= needed | {"nonce", "adg", "evh"}, "claims")
        require(re.fullmatch("[!-~]{1,256}", claims.get("nonce", "none")), "nonce")
        require(claims["htm"] == method and normalized(claims["htu"]) == normalized(url), "htm or htu")
        require(type(claims["iat"]) in (int, float) and abs(int(now) - int(claims["iat"])) <= 60, "iat")
        require(claims["ath"] == b64u(sha256(token)), "ath")
        require(re.fullmatch("[!-~]{1,128}", claims["jti"]), "jti")
    except Exception as error:
        raise invalid_proof(repr(error)) from None
    if thumbprint != jkt:
        raise invalid_token("bound to another key")
    if not is_new(thumbprint, claims["jti"]):
        raise invalid_proof("used before")
    return claims["jti"]

def canonical(value):
    """A value with the elements of its sets distinct and sorted by their canonical JSON (section 5.3)."""
    if isinstance(value, list):
        return [json.loads(element) for element in sorted({jcs(canonical(element)) for element in value})]
    return {name: canonical(member) for name, member in value.items()} if isinstance(value, dict) else value

def check_action(approved, action, target, parameters, salts):
    """That the token is for exactly this action (section 6.4). Bytes are compared: in Python, True == 1."""
    if approved["action"] != action or approved["target"] != target or set(approved["parameters"]) != set(parameters):
        raise wrong_action("another action, target or set of parameters")
    for name, value in approved["parameters"].items():
        asked = jcs(canonical(parameters[name]))
        if isinstance(value, dict) and set(value) == {"$commitment"}:
            salt = salts.get(name)
            same = isinstance(salt, str) and value["$commitment"] == b64u(sha256("dipylon/commitment/v1\0", salt, "\0", asked))
        else:
            same = jcs(value) == asked
        if not same:
            raise wrong_action(f"parameter {name}")

class Feed:
    """What the revocation feed has said (section 6.6)."""
    SILENCE_MAX_S, KEPT_S = 5, 65 * 60

    def __init__(self):
        self.lock, self.heard, self.revoked = threading.RLock(), None, {}
        self.forget_position()

    def forget_position(self):
        self.position, self.last, self.is_complete = None, None, False

    def read(self, message, now):
        """Takes one message. False is a gap: watch again without a position."""
        with self.lock:
            self.heard, kind = now, message.WhichOneof("message")
            if kind == "resync":
                self.forget_position()
                return True
            body = getattr(message, kind) if kind else None
            if kind == "heartbeat":
                at, selector = (body.position.epoch, body.position.index), "none"
                before = after = body.last_event if body.HasField("last_event") else None
                in_order = not self.position or at[0] == self.position[0] and at[1] >= self.position[1]
            elif kind == "event":
                at, selector = (body.epoch, body.index), body.WhichOneof("selector")
                before, after = body.previous if body.HasField("previous") else None, body.index
                selector = selector and self.ids_of(selector, body) and selector
                in_order = not self.position or at[0] == self.position[0] and at[1] > self.position[1]
            if not kind or not selector or not in_order or (self.position and before != self.last):
                self.forget_position()
                return False
            self.position, self.last = at, after
            if kind == "heartbeat":
                self.is_complete = True
            else:
                self.remember(selector, body, at, now)
            return True

    @staticmethod
    def ids_of(selector, event):
        """What the selector names; None when one of them is no id."""
        is_name = lambda text: re.fullmatch("[A-Za-z0-9][A-Za-z0-9._-]{0,63}", text)
        ids, is_valid = {
            "tasks": (event.tasks.task_ids, lambda text: is_id("task", text)), "tokens": (event.tokens.jtis, lambda text: is_id("tok", text)),
            "agent_id": ([event.agent_id], is_name), "agents": (event.agents.agent_ids, is_name),
            "action": ([event.action], is_name), "all": ([""], lambda _: True),
        }[selector]
        return ids if all(map(is_valid, ids)) else None

    def remember(self, selector, event, at, now):
        for one in self.ids_of(selector, event):
            self.revoked["agent_id" if selector == "agents" else selector, one] = (at, now)
        for key in [key for key, (_, since) in self.revoked.items() if key[0] != "all" and now - since > self.KEPT_S]:
            del self.revoked[key]

    def is_in_touch(self, now):
        return self.is_complete and now - self.heard <= self.SILENCE_MAX_S

    def judge(self, claims, now):
        """`accepted`, `revoked`, or `unknown`, which rejects too."""
        with self.lock:
            decided = claims["epoch"], claims["pos"]
            def is_revoked_later(*key): return key in self.revoked and decided < self.revoked[key][0]
            if not self.is_in_touch(now) or decided[0] > self.position[0]:
                return "unknown"
            revoked = (
                decided[0] < self.position[0] or ("tasks", claims["txn"]) in self.revoked or ("tokens", claims["jti"]) in self.revoked
                or is_revoked_later("agent_id", claims["client_id"]) or is_revoked_later("all", "")
                or is_revoked_later("action", claims["authorization_details"][0]["action"])
            )
            return "revoked" if revoked else "accepted"

    def follow(self, broker, key):
        """Follows the feed for ever. A connection may be dead without a sign, so silence ends it."""
        pause, current, began = 0.05, [None], [0.0]
        def end_silent_stream():
            while True:
                time.sleep(0.5)
                if current[0] and time.monotonic() - max(self.heard or 0, began[0]) > self.SILENCE_MAX_S:
                    current[0].cancel()
        threading.Thread(target=end_silent_stream, daemon=True).start()
        while True:
            after = token_pb.Position(epoch=self.position[0], index=self.position[1]) if self.position else None
            try:
                stream, message = broker.call(key, "TokenService/WatchRevocations", token_pb.WatchRevocationsRequest(after=after))
                current[0], began[0], pause = stream, time.monotonic(), 0.05
                while self.read(message, time.monotonic()):
                    message = next(stream)
                stream.cancel()
            except Refused as refused:
                if refused.reason in ("EPOCH_MISMATCH", "POSITION_AHEAD"):
                    self.forget_position()
                print("feed:", refused.code, refused.reason, flush=True)
            except (grpc.RpcError, StopIteration) as error:
                print("feed:", type(error).__name__, flush=True)
            current[0] = None
            time.sleep(pause)
            pause = min(2 * pause, 1)

class KeySet:
    """The broker's keys (section 9), fetched again after five minutes and for an unknown `kid`, at most once in ten seconds."""
    def __init__(self, broker_url):
        self.url, self.keys, self.fetched, self.lock = f"{broker_url}/.well-known/jwks.json", {}, -1e9, threading.Lock()

    def __call__(self, kid):
        with self.lock:
            age = time.monotonic() - self.fetched
            if age > 300 or (kid not in self.keys and age > 10):
                try:
                    with urllib.request.urlopen(self.url, timeout=5) as answer:
                        self.keys = {key["kid"]: read_jwk(key)[0] for key in strict_json(answer.read())["keys"]}
                except Exception as error:
                    raise unavailable(f"key set: {error}") from None
                self.fetched = time.monotonic()
            return self.keys[kid]

class UsedProofs:
    """Ids of proofs, for longer than a proof is accepted. Called with a key and an id: whether they are new."""
    KEPT_S = 130

    def __init__(self):
        self.seen, self.lock = {}, threading.Lock()

    def __call__(self, thumbprint, jti):
        with self.lock:
            now = time.monotonic()
            self.seen = {key: since for key, since in self.seen.items() if now - since <= self.KEPT_S}
            is_new = (thumbprint, jti) not in self.seen
            self.seen[thumbprint, jti] = now
            return is_new

class Guard:
    """The checks of section 6.2, in their order."""
    def __init__(self, broker, key, feed, audience, own_url):
        self.broker, self.key, self.feed, self.audience, self.own_url = broker, key, feed, audience, own_url
        self.keys, self.used = KeySet(broker.url), UsedProofs()

    def admit(self, method, path, authorization, dpop, body):
        """Returns the token's claims and the action that the request is, or raises `Rejected`."""
        if not self.feed.is_in_touch(time.monotonic()):
            raise unavailable("out of touch with the revocation feed")
        if len(authorization) != 1 or not authorization[0].startswith("DPoP "):
            raise invalid_token("expected one `authorization: DPoP TOKEN`")
        if len(dpop) != 1:
            raise invalid_proof("expected one `dpop`")
        token = authorization[0].removeprefix("DPoP ")
        claims = check_token(token, self.keys, self.broker.url, self.audience, time.time())
        verdict = self.feed.judge(claims, time.monotonic())
        if verdict != "accepted":
            raise invalid_token("revoked") if verdict == "revoked" else unavailable("the token cannot be judged")
        jti = check_proof(dpop[0], token, claims["cnf"]["jkt"], method, self.own_url + path, time.time(), self.used)
        match [method, *(urllib.parse.unquote(part) for part in without_query(path).split("/")[1:])]:
            case ["GET", "cases", case]:
                action, target = "case.read", {"type": "Case", "id": case}
            case ["POST", "accounts", account, "disable"]:
                action, target = "account.disable", {"type": "Account", "id": account}
            case _:
                raise Rejected(404, None, "no such path")
        try:
            asked = strict_json(body) if body else {}
            parameters, salts = dict(asked.get("parameters", {})), dict(asked.get("salts", {}))
        except Exception as error:
            raise Rejected(400, None, f"body: {error}") from None
        check_action(claims["authorization_details"][0], action, target, parameters, salts)
        if "uses" in claims:
            self.consume(token, jti)
        return claims, action, target

    def consume(self, token, jti):
        use_id = jti if re.fullmatch("[A-Za-z0-9._-]{1,64}", jti) else b64u(sha256(jti))
        try:
            answer = self.broker.call(self.key, "TokenService/ConsumeToken", token_pb.ConsumeTokenRequest(token=token, use_id=use_id))
        except Refused as refused:
            if refused.reason in ("USES_EXHAUSTED", "TOKEN_INACTIVE"):
                raise invalid_token(refused.reason) from None
            raise unavailable(f"consume: {refused}") from None
        if answer.outcome not in (token_pb.CONSUME_OUTCOME_SPENT, token_pb.CONSUME_OUTCOME_NO_LIMIT):
            raise invalid_proof("this proof has consumed its use before, perhaps at another server")

def handler(guard):
    class Handler(BaseHTTPRequestHandler):
        def answer(self):
            status, error = 200, None
            try:
                body = self.rfile.read(min(int(self.headers.get("content-length") or 0), 65536))
                claims, action, target = guard.admit(
                    self.command, self.path, self.headers.get_all("authorization", []), self.headers.get_all("dpop", []), body)
                text = {"did": action, "target": target["id"], "agent": claims["client_id"]}
            except Rejected as rejected:
                status, error, text = rejected.status, rejected.error, {"refused": str(rejected)}
            self.send_response(status)
            self.send_header("content-type", "application/json")
            if error:
                self.send_header("www-authenticate", f'DPoP error="{error}", algs="ES256"')
            self.end_headers()
            self.wfile.write(json.dumps(text).encode())
        do_GET = do_POST = answer
        def log_message(self, *_): pass
    return Handler

def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("broker", "audience", "key"):
        parser.add_argument(f"--{name}", required=True)
    o = parser.parse_args()
    key = serialization.load_pem_private_key(pathlib.Path(o.key).read_bytes(), None)
    broker, feed = Broker(o.broker), Feed()
    threading.Thread(target=feed.follow, args=(broker, key), daemon=True).start()
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    own_url = f"http://127.0.0.1:{server.server_port}"
    server.RequestHandlerClass = handler(Guard(broker, key, feed, o.audience, own_url))
    while not feed.is_in_touch(time.monotonic()):
        time.sleep(0.01)
    print(own_url, flush=True)
    server.serve_forever()

if __name__ == "__main__":
    main()
