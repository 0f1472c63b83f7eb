"""Runs tests/vectors through agent.py and resource_server.py: an implementation without a line of Rust must agree with them."""
import json, pathlib, sys
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf import json_format
import agent, resource_server as server

VECTORS = pathlib.Path(__file__).resolve().parents[1] / "vectors"
counts = {}

def load(name):
    return json.loads((VECTORS / f"{name}.json").read_text())

def check(file, vector, is_right):
    good, wrong = counts.get(file, (0, []))
    counts[file] = (good + bool(is_right), wrong if is_right else [*wrong, vector])

def accepts(function, *arguments):
    """What the function returns, or None when it refuses."""
    try:
        return function(*arguments)
    except Exception:
        return None

keys = load("keys")
for v in keys["vectors"]:
    read = accepts(server.read_jwk, v["jwk"])
    check("keys", v["name"], read is not None and read[1] == v["thumbprint"] if v["expect"] == "accept" else read is None)
for v in load("action_digests")["vectors"]:
    if v["expect"] == "accept":
        check("action_digests", v["name"], agent.action_digest(json.loads(v["canonical"])) == v["digest"] and agent.jcs(json.loads(v["canonical"])).decode() == v["canonical"])
for v in load("commitments")["vectors"]:
    commitment = agent.b64u(agent.sha256("dipylon/commitment/v1\0", v["salt"], "\0", agent.jcs(v["value"])))
    check("commitments", v["name"], commitment == v["commitment"] and agent.jcs(v["value"]).decode() == v["canonical"])

tokens, claims = load("access_tokens"), {}
broker_keys = {key["kid"]: server.read_jwk(key)[0] for key in tokens["jwks"]["keys"]}
for v in tokens["vectors"]:
    claims[v["name"]] = accepts(server.check_token, v["token"], broker_keys.__getitem__, tokens["issuer"], tokens["audience"], tokens["now"])
    check("access_tokens", v["name"], (claims[v["name"]] is not None) == (v["expect"] == "accept"))
for v in tokens["actions"]:
    asked, approved = v["required"], claims[v["token"]]["authorization_details"][0]
    fits = accepts(lambda: server.check_action(approved, asked["action"], asked["target"], asked["parameters"], v["openings"]) or True)
    check("access_tokens", v["name"], (fits is not None) == (v["expect"] == "accept"))

proofs, pair = load("dpop_proofs"), keys["keys"]["agent"]
for v in proofs["resource_server"]:
    c = v["check"]
    jti = accepts(server.check_proof, v["proof"], c["token"], pair["thumbprint"], c["method"], c["url"], c["now"], lambda _, jti: jti not in c["used_jtis"])
    check("dpop_proofs", v["name"], (jti is not None) == (v["expect"] == "accept"))
key = ec.derive_private_key(int.from_bytes(server.from_b64u(pair["private_jwk"]["d"]), "big"), ec.SECP256R1())
for v in (v for v in proofs["broker"] if v["expect"] == "accept"):
    c, wanted = v["check"], server.open_jws(v["proof"])[1]
    evidence = c["evidence"] and agent.b64u(agent.sha256(c["evidence"]))
    made = agent.proof(key, htm=c["htm"], htu=wanted["htu"], nonce=c["nonce"], adg=c["action_digest"], evh=evidence, jti=wanted["jti"], iat=wanted["iat"])
    check("dpop_proofs", v["name"], server.open_jws(made)[1] == wanted)

for v in load("revocation_feed")["vectors"]:
    feed = server.Feed()
    feed.heard = 1000
    for message in v["messages"]:
        feed.read(json_format.ParseDict(message, agent.token_pb.WatchRevocationsResponse()), 1000)
    for token in v["tokens"]:
        verdict = feed.judge(token | {"authorization_details": [{"action": token["action"]}]}, 1000 + v["silence_ms"] / 1000)
        check("revocation_feed", f"{v['name']}: {token}", verdict == token["expect"])

votes, pair = load("vote_statements"), keys["keys"]["voter"]["private_jwk"]
voter = server.read_jwk({name: value for name, value in pair.items() if name != "d"})[0]
facts = agent.b64u(agent.sha256(votes["facts"]))
MEMBERS = {"v", "realm", "access_request_id", "requester", "action", "facts", "policy", "profile", "verdict", "not_after", "nonce"}
for v in votes["vectors"]:
    text, said = v["statement"], json.loads(v["statement"])
    challenge = agent.sha256("dipylon/vote/v1\0", text)
    right = agent.b64u(challenge) == v["challenge"]
    form = agent.jcs(said).decode() == text and said["v"] == 2 and MEMBERS <= set(said) <= MEMBERS | {"max_ttl", "uses", "comment"}
    shown = form and said["facts"] == facts and said["action"]["digest"] == agent.action_digest({name: said["action"][name] for name in ("action", "audience", "parameters", "target")})
    signed = accepts(lambda: server.verify_es256(voter, challenge, server.from_b64u(v["signature"])) or True)
    check("vote_statements", v["name"], right and bool(shown and signed) == (v["expect"] == "accept"))

for file, (good, wrong) in counts.items():
    print(json.dumps({"file": file, "agreed": good, "wrong": wrong}))
sys.exit(any(wrong for _, wrong in counts.values()))
