"""An agent of a Dipylon broker, written from docs/wire.md and proto/ alone: it opens a task, requests a token for one action, proves
possession of the token's key to a resource server, and completes the task. It prints one JSON object for each step."""
import argparse, base64, datetime, hashlib, json, pathlib, secrets, sys, time, urllib.error, urllib.request
import grpc
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from google.rpc import error_details_pb2, status_pb2

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "proto"))
types_pb = grpc.protos("dipylon/v1/types.proto")
task_pb, task_grpc = grpc.protos_and_services("dipylon/v1/task.proto")
token_pb, token_grpc = grpc.protos_and_services("dipylon/v1/token.proto")

def b64u(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

def sha256(*parts):
    return hashlib.sha256(b"".join(part if isinstance(part, bytes) else part.encode() for part in parts)).digest()

def jcs(value):
    """Canonical JSON (section 2.4) of texts, booleans, integers, lists and objects. Members of actions are ASCII, so the order of
    code points is that of UTF-16 code units."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()

def proof(key, **claims):
    """A DPoP proof (section 4). Claims that are None are left out."""
    point = key.public_key().public_numbers()
    jwk = {"kty": "EC", "crv": "P-256", "x": b64u(point.x.to_bytes(32, "big")), "y": b64u(point.y.to_bytes(32, "big"))}
    claims = {"jti": b64u(secrets.token_bytes(16)), "iat": int(time.time())} | {name: value for name, value in claims.items() if value is not None}
    signed = ".".join(b64u(jcs(part)) for part in ({"typ": "dpop+jwt", "alg": "ES256", "jwk": jwk}, claims))
    r, s = utils.decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
    return signed + "." + b64u(r.to_bytes(32, "big") + s.to_bytes(32, "big"))

def to_parameter(name, value):
    """A parameter that is a boolean, an integer or a text; sets and records are not used here."""
    kind = {bool: "bool_value", int: "int_value", str: "string_value"}[type(value)]
    return types_pb.Parameter(name=name, value=types_pb.Value(**{kind: value}))

def action_digest(action):
    return b64u(sha256("dipylon/action/v1\0", jcs(action)))

class Refused(Exception):
    def __init__(self, error):
        self.code, self.reason, self.correlation, self.retry_s = error.code().name, "", "", None
        for detail in status_pb2.Status.FromString(dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b"")).details:
            info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
            if detail.Unpack(info):
                self.reason, self.correlation = info.reason, info.metadata["correlation"]
            elif detail.Unpack(retry):
                self.retry_s = retry.retry_delay.ToTimedelta().total_seconds()
        super().__init__(error.details())

class Broker:
    """One connection, with the newest nonce of the broker (section 4.4)."""
    def __init__(self, url):
        self.url, self.nonce = url, None
        address, options = url.split("://")[1], [("grpc.max_reconnect_backoff_ms", 1000)]
        tls = url.startswith("https://")
        channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(), options) if tls else grpc.insecure_channel(address, options)
        self.services = {"TaskService": task_grpc.TaskServiceStub(channel), "TokenService": token_grpc.TokenServiceStub(channel)}

    def call(self, key, method, message, wait_s=0, **claims):
        """Calls `Service/Method`; for a stream, returns it with its first message read: the refusal of a nonce comes only then."""
        service, name = method.split("/")
        for attempt in range(3):
            dpop = proof(key, htm="POST", htu=f"{self.url}/dipylon.v1.{method}", nonce=self.nonce, **claims)
            try:
                stub = getattr(self.services[service], name)
                if name.startswith("Watch"):
                    stream = stub(message, metadata=[("dpop", dpop)])
                    first = next(stream)
                    self.keep_nonce(stream.initial_metadata())
                    return stream, first
                answer, call = stub.with_call(message, timeout=10 + wait_s, metadata=[("dpop", dpop)])
                self.keep_nonce(call.initial_metadata())
                return answer
            except grpc.RpcError as error:
                self.keep_nonce(error.trailing_metadata())
                refused = Refused(error)
                again = refused.reason == "USE_DPOP_NONCE" or (refused.retry_s is not None and refused.retry_s <= 1)
                if not again or attempt == 2:
                    raise refused from None
                time.sleep(refused.retry_s or 0)

    def keep_nonce(self, metadata):
        self.nonce = dict(metadata or ()).get("dpop-nonce", self.nonce)

def say(step, **facts):
    print(json.dumps({"step": step, **facts}), flush=True)

def send(method, url, token, dpop, body=None):
    """One request to the resource server with token and proof (section 5.7)."""
    headers = {"authorization": f"DPoP {token}", "dpop": dpop, "content-type": "application/json"}
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, method=method, headers=headers, data=body), timeout=10)
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        return answer.status, answer.read().decode()

def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("broker", "evidence", "action", "target-type", "target-id", "audience", "method", "url"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--parameters", type=json.loads, default={}, help="a JSON object")
    o = parser.parse_args()
    broker, key, outcome = Broker(o.broker), ec.generate_private_key(ec.SECP256R1()), task_pb.TASK_OUTCOME_FAILED
    evidence, name = pathlib.Path(o.evidence).read_text().strip(), lambda: b64u(secrets.token_bytes(16))
    try:
        opened = broker.call(key, "TaskService/OpenTask", task_pb.OpenTaskRequest(evidence=types_pb.Evidence(jwt_svid=evidence), purpose="read a case",
                             max_duration=datetime.timedelta(minutes=10), idempotency_key=name()), evh=b64u(sha256(evidence)))
        say("opened", task=opened.task_id, agent=opened.agent_id)
        parameters, target = o.parameters, {"type": o.target_type, "id": o.target_id}
        action = types_pb.Action(name=o.action, audience=o.audience, target=types_pb.Target(**target), parameters=[to_parameter(*pair) for pair in parameters.items()])
        adg = action_digest({"action": o.action, "audience": o.audience, "parameters": parameters, "target": target})
        request = task_pb.RequestTokenRequest(task_id=opened.task_id, action=action, ttl=datetime.timedelta(minutes=1), idempotency_key=name())
        answer = broker.call(key, "TaskService/RequestToken", request, adg=adg)
        while answer.WhichOneof("outcome") == "pending":
            say("pending", request=answer.pending.access_request_id, match_phrase=answer.pending.match_phrase)
            request.wait.FromSeconds(30)
            answer = broker.call(key, "TaskService/RequestToken", request, wait_s=30, adg=adg)
        if answer.WhichOneof("outcome") == "denied":
            return say("denied", reason=answer.denied.reason, comment=answer.denied.comment) or 1
        token = answer.token.token
        say("token", jti=answer.token.jti, uses=answer.token.uses)
        body = jcs({"parameters": parameters, "salts": {opening.parameter: opening.salt for opening in answer.token.openings}})
        dpop = proof(key, htm=o.method, htu=o.url, ath=b64u(sha256(token)))
        for step in ("used", "replayed"):
            status, text = send(o.method, o.url, token, dpop, None if o.method == "GET" else body)
            say(step, status=status, body=text)
        outcome = task_pb.TASK_OUTCOME_SUCCEEDED
    except Refused as error:
        return say("refused", code=error.code, reason=error.reason, correlation=error.correlation, message=str(error)) or 1
    report = broker.call(key, "TaskService/CompleteTask", task_pb.CompleteTaskRequest(task_id=opened.task_id, outcome=outcome)).report
    say("completed", cause=report.cause, tokens_revoked=report.tokens_revoked)
    deadline = time.monotonic() + 10
    while (status := send(o.method, o.url, token, proof(key, htm=o.method, htu=o.url, ath=b64u(sha256(token))))[0]) == 200 and time.monotonic() < deadline:
        pass  # the revocation is on its way to the resource server
    say("after", status=status)

if __name__ == "__main__":
    sys.exit(main())
