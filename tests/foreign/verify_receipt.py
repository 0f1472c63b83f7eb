"""Verifies token receipts, written from the section "Token receipts" of docs/wire.md alone.

verify_receipt.py FILE --keys JWKS [--realm REALM] [--checkpoint SIZE:ROOT]
verify_receipt.py --keys JWKS --batch      one JSON object {receipt, realm?, checkpoint?} a line on stdin; an answer a line

Exit 0 and what was verified, or exit 1 and the part that is refused.
"""

import argparse
import base64
import hashlib
import json
import sys
from urllib.parse import urlsplit

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

FORM = "dipylon/token-receipt/v1"
BYTES_MAX = 1024 * 1024
ENTRIES_MAX = 512
PATH_MAX = 53
ENTRY_BYTES_MAX = 32 * 1024
INTEGER_MAX = 2**53 - 1


class Refused(Exception):
    """The first part of a receipt that fails."""

    def __init__(self, part, why):
        super().__init__(f"{part}: {why}")
        self.part = part


def need(holds, part, why):
    if not holds:
        raise Refused(part, why)


# --- JSON, base64url, digests, keys


def unique(pairs):
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("a member twice")
    return dict(pairs)


def integer(text):
    value = int(text)
    if abs(value) > INTEGER_MAX or text == "-0":
        raise ValueError("an integer out of range")
    return value


def no_number(text):
    raise ValueError(f"not an integer: {text}")


def parse(text):
    return json.loads(text, object_pairs_hook=unique, parse_int=integer, parse_float=no_number, parse_constant=no_number)


def canonical(value):
    """RFC 8785 of a value whose numbers are integers."""
    if isinstance(value, dict):
        names = sorted(value, key=lambda name: name.encode("utf-16-be"))
        return "{" + ",".join(f"{canonical(name)}:{canonical(value[name])}" for name in names) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(canonical, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def encode(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decode(text, length=None):
    data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if encode(data) != text or length not in (None, len(data)):
        raise ValueError("not base64url of this length")
    return data


def sha256(data):
    return hashlib.sha256(data).digest()


def tagged(tag, value):
    return sha256(tag.encode() + b"\0" + canonical(value).encode())


def ec_key(jwk):
    x, y = decode(jwk["x"], 32), decode(jwk["y"], 32)
    if jwk["kty"] != "EC" or jwk["crv"] != "P-256":
        raise ValueError("not P-256")
    return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + x + y)


def verifies(check):
    try:
        check()
        return True
    except InvalidSignature:
        return False


def es256(jwk, message, signature):
    """ES256 with r and s in 64 bytes."""
    if len(signature) != 64:
        return False
    der = encode_dss_signature(int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))
    return verifies(lambda: ec_key(jwk).verify(der, message, ec.ECDSA(hashes.SHA256())))


def authenticator_verifies(jwk, message, signature):
    kind = (jwk["kty"], jwk.get("crv"))
    if kind == ("EC", "P-256"):
        return verifies(lambda: ec_key(jwk).verify(signature, message, ec.ECDSA(hashes.SHA256())))
    if kind == ("OKP", "Ed25519"):
        key = ed25519.Ed25519PublicKey.from_public_bytes(decode(jwk["x"], 32))
        return verifies(lambda: key.verify(signature, message))
    if kind == ("RSA", None):
        n, e = (int.from_bytes(decode(jwk[name]), "big") for name in ("n", "e"))
        key = rsa.RSAPublicNumbers(e, n).public_key()
        return verifies(lambda: key.verify(signature, message, padding.PKCS1v15(), hashes.SHA256()))
    return False


REQUIRED = {"EC": ("crv", "kty", "x", "y"), "OKP": ("crv", "kty", "x"), "RSA": ("e", "kty", "n")}


def thumbprint(jwk):
    """RFC 7638, of a JWK that has the required members alone."""
    if set(jwk) != set(REQUIRED[jwk["kty"]]):
        raise ValueError("more or less than the required members")
    return encode(sha256(canonical(jwk).encode()))


def identity(jwk):
    """What a key and its negative share."""
    if jwk["kty"] == "EC":
        return ("P-256", jwk["x"])
    if jwk["kty"] == "OKP":
        y = bytearray(decode(jwk["x"], 32))
        y[31] &= 0x7F
        return ("Ed25519", encode(bytes(y)))
    return ("RSA", jwk["n"])


# --- form

RECEIPT = {
    "form": str, "realm": str, "issuer": str, "jti": str, "checkpoint": dict, "entries": list, "votes": list, "profiles": list,
    "uses_omitted": bool, "kid": str, "signature": str,
}
CHECKPOINT = {"epoch": int, "size": int, "root": str, "at": int, "signature": str}
ENTRY = {"index": int, "entry": str, "path": list}
VOTE = {"index": int, "method": str, "statement": str, "facts": str}
VOTE_OPTIONAL = {"assertion": str, "jwk": dict}
PROFILE = {"name": str, "group": str, "quorum": int, "wait": int, "good_for": int, "method": str}


def members(value, required, optional=None):
    optional = optional or {}
    if not isinstance(value, dict) or not set(required) <= set(value) <= set(required) | set(optional):
        raise ValueError("a member is missing or unknown")
    for name, kind in {**required, **optional}.items():
        if name in value and type(value[name]) is not kind:
            raise ValueError(f"{name} has another type")
        if kind is int and name in value and name != "at" and value[name] < 0:
            raise ValueError(f"{name} is negative")


def read(text):
    text = text[:-1] if text.endswith("\n") else text
    need(len(text.encode()) <= BYTES_MAX, "form", "too long")
    try:
        receipt = parse(text)
        need(isinstance(receipt, dict) and receipt.get("form") == FORM, "form", "another form")
        members(receipt, RECEIPT)
        members(receipt["checkpoint"], CHECKPOINT)
        decode(receipt["checkpoint"]["root"], 32)
        for entry in receipt["entries"]:
            members(entry, ENTRY)
            for step in entry["path"]:
                decode(step, 32)
            need(len(entry["path"]) <= PATH_MAX, "form", "a long path")
            need(len(entry["entry"].encode()) <= ENTRY_BYTES_MAX, "form", "a long entry")
        for vote in receipt["votes"]:
            members(vote, VOTE, VOTE_OPTIONAL)
            need(vote["method"] in ("key", "passkey"), "form", "an unknown method")
        for profile in receipt["profiles"]:
            members(profile, PROFILE)
        need(receipt["jti"].startswith("tok_"), "form", "jti")
        decode(receipt["jti"][4:], 16)
    except Refused:
        raise
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise Refused("form", error) from None
    need(canonical(receipt) == text, "form", "not canonical")
    need(len(receipt["entries"]) <= ENTRIES_MAX, "form", "too many entries")
    return receipt


# --- signatures and inclusion


def check_signatures(receipt, keys, noted):
    key = keys.get(receipt["kid"])
    need(key is not None, "signature", "an unknown key")

    def signed(digest, signature):
        try:
            return es256(key, digest, decode(signature, 64))
        except ValueError:
            return False

    body = {name: value for name, value in receipt.items() if name != "signature"}
    need(signed(tagged(FORM, body), receipt["signature"]), "signature", "it does not verify")
    head = receipt["checkpoint"]
    body = {name: head[name] for name in ("at", "epoch", "root", "size")}
    body |= {"issuer": receipt["issuer"], "realm": receipt["realm"]}
    need(signed(tagged("dipylon/checkpoint/v1", body), head["signature"]), "checkpoint", "its signature does not verify")
    need(noted in (None, f"{head['size']}:{head['root']}"), "checkpoint", "another one was noted")


def leads_to(leaf, index, size, path, root):
    """RFC 9162 section 2.1.3.2."""
    if index >= size:
        return False
    node, last, found = index, size - 1, leaf
    for step in path:
        if last == 0:
            return False
        if node & 1 or node == last:
            found = sha256(b"\x01" + step + found)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            found = sha256(b"\x01" + found + step)
        node, last = node >> 1, last >> 1
    return last == 0 and found == root


def check_inclusion(receipt):
    head = receipt["checkpoint"]
    root, entries, before = decode(head["root"], 32), {}, -1
    for one in receipt["entries"]:
        index, text = one["index"], one["entry"]
        path = [decode(step, 32) for step in one["path"]]
        leaf = sha256(b"\0" + text.encode())
        need(leads_to(leaf, index, head["size"], path, root), "inclusion", f"entry {index}")
        try:
            entry = parse(text)
            fits = canonical(entry) == text and entry["v"] == 2 and entry["index"] == index
            fits = fits and entry["epoch"] <= head["epoch"] and entry["at"] <= head["at"]
            entry["writes"], entry["reads"] = dict(entry["write_set"]), dict(entry["read_set"])
            entry["kind"], entry["body"] = entry["kind"], entry["body"]
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise Refused("entries", error) from None
        need(fits and index > before, "entries", f"entry {index} does not fit")
        entries[index], before = entry, index
    return entries


# --- entries


class Record:
    """The entries of one token: each names the next by the version of a stream, 1 + the index of the entry before it there."""

    def __init__(self, receipt, entries):
        self.all, self.taken = entries, set()
        jti, realm = receipt["jti"], receipt["realm"]
        self.expect(0, "EpochStarted", lambda body: body["realm"] == realm)
        issues = [e for e in entries.values() if e["kind"] == "TokenIssued" and e["body"]["jti"] == jti]
        need(issues, "entries", "no issue of this token")
        self.issue = issues[0]
        self.issued = issued = self.issue["body"]
        self.taken.add(self.issue["index"])
        self.read_by_issue("policy", "PolicyApplied", lambda body: body["version"] == issued["decision"]["policy"])
        self.read_by_issue(f"key:{issued['kid']}", "KeyPublished", lambda body: body["kid"] == issued["kid"])
        opening = self.read_by_issue(
            f"task:{issued['task']}", "TaskOpened",
            lambda body: all(body[a] == issued[b] for a, b in (("task", "task"), ("agent", "agent"), ("binding", "cnf"))),
        )
        self.task = self.requested_in = opening["body"]
        self.request, self.votes = self.approval()
        if self.request is not None and self.request["executor"] is not None:
            asked = self.request["task"]
            opening = self.read_by_issue(f"task:{asked}", "TaskOpened", lambda body: body["task"] == asked)
            self.requested_in = opening["body"]
            apart = all(
                one(self.requested_in) != one(self.task)
                for one in (lambda task: task["key_identity"], lambda task: task["evidence"]["subject"])
            )
            need(apart, "entries", "it executes its own recommendation")
        for vote in self.votes:
            if "assertion" in vote["body"]:
                need(self.enrolment(vote), "entries", "a passkey's enrolment is missing")
                self.taken.add(self.enrolment(vote)["index"])
        self.uses = 0
        self.later(receipt["uses_omitted"])
        self.end()
        need(self.taken == set(entries), "entries", "an entry is no part of the record")

    def expect(self, index, kind, holds):
        entry = self.all.get(index)
        need(entry is not None and entry["kind"] == kind and holds(entry["body"]), "entries", f"entry {index} is not its {kind}")
        self.taken.add(index)
        return entry

    def read_by_issue(self, stream, kind, holds):
        need(self.issue["reads"].get(stream, 0) > 0, "entries", f"the issue does not rest on {stream}")
        return self.expect(self.issue["reads"][stream] - 1, kind, holds)

    def approval(self):
        issued = self.issued
        request, claim = issued.get("consumed"), issued.get("approval")
        if request is None:
            need(claim is None, "entries", "an approval of no access request")
            return None, []
        need(claim is None or claim["access_request"] == request, "entries", "an approval of another access request")
        at, votes, required = self.issue, [], None
        while True:
            index = at["writes"].get(f"access-request:{request}", 0) - 1
            need(0 <= index < at["index"] and index in self.all, "entries", f"entry {index} of the access request is missing")
            at = self.all[index]
            need(at["body"].get("access_request") == request, "entries", f"entry {index} is of another access request")
            self.taken.add(index)
            if at["kind"] == "VoteCast":
                votes.insert(0, at)
                continue
            if at["kind"] == "AccessRequestReassessed":
                if required is None:
                    required = at["body"]["decision"]["required_profiles"]
                continue
            need(at["kind"] == "AccessRequestOpened", "entries", f"entry {index} is no entry of a waiting request")
            opened, by = at["body"], at["body"]["requester"].get("agent")
            need(by is not None, "entries", "the request of a person")
            executor = by.get("executor")
            if executor is None:
                need(by["task"] == issued["task"] and by["agent"] == issued["agent"], "entries", "another task or agent")
            else:
                other = by["task"] != issued["task"] and by["agent"] != issued["agent"]
                need(other and executor["agent"] == issued["agent"], "entries", "another executor")
            need(same_action(opened["action"], issued["action"]), "entries", "another action")
            if required is None:
                required = by["decision"]["required_profiles"]
            return {
                "action": opened["action"], "owner": by["owner"], "required": required, "agent": by["agent"], "task": by["task"],
                "executor": executor,
            }, votes

    def enrolment(self, vote):
        cast = vote["body"]
        for index in sorted(self.all):
            entry = self.all[index]
            body = entry["body"]
            if index < vote["index"] and entry["kind"] == "ApproverEnrolled":
                if body["person"] == cast["voter"] and body["passkey"]["key"] == cast["key"]:
                    return entry
        return None

    def after_issue(self):
        return [self.all[index] for index in sorted(self.all) if index > self.issue["index"]]

    def later(self, omitted):
        jti, last = self.issued["jti"], self.issue["index"]
        for entry in self.after_issue():
            version = entry["writes"].get(f"token:{jti}")
            if version is None:
                continue
            need(omitted or version == last + 1, "entries", "an entry of the token is missing")
            kind, body = entry["kind"], entry["body"]
            one = kind in ("TokenReissued", "TokenConsumed") and body["jti"] == jti and not omitted
            need(one or (kind == "GrantsEnded" and jti in body["jtis"]), "entries", "not of this token")
            self.uses += kind == "TokenConsumed"
            self.taken.add(entry["index"])
            last = entry["index"]

    def end(self):
        rest = [entry for entry in self.after_issue() if entry["index"] not in self.taken]
        if not rest:
            return
        kind, body = rest[0]["kind"], rest[0]["body"]
        issued, task = self.issued, self.task
        scope = body.get("scope", "")
        need(
            (kind == "TaskEnded" and issued["task"] in body["tasks"])
            or (kind == "AgentSuspended" and body["agent"] == issued["agent"])
            or (
                kind == "Frozen"
                and (scope in ("all", f"agent/{issued['agent']}", f"action/{issued['action']['action']}") or scope.startswith("owner/"))
            )
            or (
                kind == "TrustBundleChanged"
                and any(kid in body["removed"] for kid in (issued["evidence"]["kid"], task["evidence"]["kid"]))
            ),
            "entries",
            "an entry is no end of this token",
        )
        self.taken.add(rest[0]["index"])


def sensitive(value):
    return isinstance(value, dict) and "$commitment" in value


def same_action(one, other):
    a, b = one["parameters"], other["parameters"]
    return (
        all(one[name] == other[name] for name in ("action", "audience", "target"))
        and set(a) == set(b)
        and all(a[name] == b[name] or sensitive(a[name]) or sensitive(b[name]) for name in a)
        and (any(map(sensitive, [*a.values(), *b.values()])) or one["digest"] == other["digest"])
    )


def action_form(action):
    return {name: action[name] for name in ("action", "audience", "parameters", "target")}


# --- votes


def check_votes(receipt, record):
    indexes = [vote["index"] for vote in record.votes]
    need([proof["index"] for proof in receipt["votes"]] == indexes, "votes", "not the proofs of the votes")
    holders = {}
    for vote, proof in zip(record.votes, receipt["votes"]):
        cast = vote["body"]
        try:
            vote["shown"] = shown(cast, proof)
            jwk = check_vote(receipt, record, vote, proof)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise Refused("votes", error) from None
        need(holders.setdefault(identity(jwk), cast["voter"]) == cast["voter"], "votes", "two people with one key")


def method(cast):
    return "passkey" if "assertion" in cast else "key"


def check_vote(receipt, record, vote, proof):
    cast = vote["body"]
    need(proof["method"] == method(cast), "votes", "another method")
    digest = signed_digest(receipt, record, vote, proof)
    signature = decode(cast["signature"])
    if "assertion" not in cast:
        need("jwk" in proof and "assertion" not in proof and "sign_count" not in cast, "votes", "not the proof of a key")
        jwk = proof["jwk"]
        need(thumbprint(jwk) == cast["key"] and jwk["kty"] == "EC", "votes", "another key")
        need(es256(jwk, digest, signature), "votes", "the signature does not verify")
        return jwk
    need("assertion" in proof and "jwk" not in proof, "votes", "not the proof of a passkey")
    passkey = record.enrolment(vote)["body"]["passkey"]
    need(encode(sha256(proof["assertion"].encode())) == cast["assertion"], "votes", "another assertion")
    parts = parse(proof["assertion"])
    need(set(parts) == {"authenticator_data", "client_data_json", "credential"}, "votes", "the assertion's members")
    need(canonical(parts) == proof["assertion"], "votes", "the assertion's form")
    need(parts["credential"] == passkey["credential"], "votes", "another credential")
    need(thumbprint(passkey["jwk"]) == cast["key"], "votes", "another passkey")
    data, client = decode(parts["authenticator_data"]), decode(parts["client_data_json"])
    said = json.loads(client, object_pairs_hook=unique)
    need(said["type"] == "webauthn.get" and said["challenge"] == encode(digest), "votes", "another challenge")
    need(said.get("crossOrigin", False) is False and "topOrigin" not in said, "votes", "inside another page")
    host = urlsplit(said["origin"]).hostname
    need(host is not None, "votes", "no origin")
    need(len(data) >= 37 and data[:32] == sha256(host.encode()), "votes", "another relying party")
    flags, count = data[32], int.from_bytes(data[33:37], "big")
    need(flags & 0x01 and flags & 0x04 and not flags & 0x40, "votes", "no verified user")
    need(bool(flags & 0x08) == passkey["backup_eligible"], "votes", "another eligibility for backup")
    need(flags & 0x08 or not flags & 0x10, "votes", "backed up but not eligible")
    need(count == cast["sign_count"], "votes", "another signature counter")
    need(authenticator_verifies(passkey["jwk"], data + sha256(client), signature), "votes", "the signature does not verify")
    return passkey["jwk"]


FACTS = {"action": dict, "owner": dict, "rules": dict}
FACTS_OPTIONAL = {"target": dict, "agent": dict, "changes": dict, "executor": dict}
ACTION_FACTS = {"title": str, "effect": str, "reversible": str, "undo": str, "risk": str, "parameters": dict}


def shown(cast, proof):
    """What the voter's card showed."""
    need(encode(sha256(proof["facts"].encode())) == cast["facts"], "votes", "other facts")
    facts = parse(proof["facts"])
    need(canonical(facts) == proof["facts"], "votes", "the form of the facts")
    members(facts, FACTS, FACTS_OPTIONAL)
    members(facts["action"], ACTION_FACTS)
    members(facts["owner"], {"id": str, "name": str})
    return facts


def signed_digest(receipt, record, vote, proof):
    cast, opened, text = vote["body"], record.request, proof["statement"]
    need(encode(sha256(text.encode())) == cast["statement"], "votes", "another statement")
    said = parse(text)
    need(canonical(said) == text and said["v"] == 2, "votes", "the statement's form")
    agent = {
        "id": opened["agent"], "owner": vote["shown"]["owner"]["id"], "task": opened["task"],
        "task_key": record.requested_in["binding"]["jkt"],
    }
    requester, executor = {"agent": agent}, opened["executor"]
    if executor is not None:
        seen = vote["shown"]["executor"]
        need(seen["id"] == executor["agent"], "votes", "the card showed another executor")
        requester = {"recommendation": agent | {"executor": seen["id"], "executor_owner": seen["owner"]["id"]}}
    expected = {
        "realm": receipt["realm"], "access_request_id": cast["access_request"], "requester": requester,
        "action": opened["action"], "facts": cast["facts"], "verdict": cast["verdict"], "profile": cast["profile"], "max_ttl": cast["max_ttl"], "uses": cast.get("uses"),
    }
    for name, value in expected.items():
        need(said.get(name) == value, "votes", f"the statement has another {name}")
    need(said["not_after"] * 1000 == cast["not_after"], "votes", "the statement ends at another time")
    return tagged("dipylon/vote/v1", said)


# --- token


def check_token(receipt, record):
    issued, part = record.issued, "token"
    ttl, given = issued["decision"]["ttl"], issued["decision"]["input"]
    least = min([ttl["requested"]] + [limit["seconds"] for limit in ttl["limits"]])
    need(least == ttl["granted"] and ttl["requested"] == issued["requested_ttl"], part, "its lifetime is not the least of its limits")
    need(issued["iat"] == given["now"] // 1000 and issued["exp"] == issued["iat"] + least, part, "its dates do not fit")
    if "secret" not in issued:
        digest = tagged("dipylon/action/v1", action_form(issued["action"]))
        need(encode(digest) == issued["action"]["digest"], part, "its action has another digest")
    need(record.uses <= issued.get("uses", record.uses), part, "it was used more often than it allows")
    satisfied = issued.get("approval", {}).get("profiles", [])
    need([profile["name"] for profile in receipt["profiles"]] == satisfied == given["approvals"], part, "other profiles")
    if record.request is None:
        return
    need(all(vote["body"]["verdict"] == "approve" for vote in record.votes), part, "a person denied it")
    # Votes for what was required last, by the facts that their cards showed: those for other facts were void.
    by_facts, executor = {}, record.request["executor"]
    if executor is not None:
        need(all(name["name"] in satisfied for name in record.request["required"]), part, "an approval is missing")
    for vote in record.votes:
        cast, shown_by = vote["body"], vote["shown"]
        owners = {record.request["owner"], record.task["owner"], record.requested_in["owner"], shown_by["owner"]["id"]}
        if executor is not None:
            owners |= {executor["owner"], shown_by["executor"]["owner"]["id"]}
        if cast["voter"] not in owners and covers(cast, issued) and cast["profile"] in record.request["required"]:
            by_facts.setdefault(cast["facts"], {})[cast["voter"]] = cast
    profiles = []
    for profile in receipt["profiles"]:
        reference = {"name": profile["name"], "digest": encode(tagged("dipylon/profile/v1", profile))}
        known = reference in record.request["required"] and profile["method"] in ("key", "passkey")
        need(known, part, "a profile is not as required")
        profiles.append((profile, reference))

    def is_met(latest, profile, reference):
        people = [
            cast["voter"] for cast in latest.values()
            if cast["profile"] == reference and (profile["method"] == "key" or "assertion" in cast)
        ]
        return 0 < profile["quorum"] <= len(people)

    groups = list(by_facts.values()) or [{}]
    met = any(all(is_met(latest, *profile) for profile in profiles) for latest in groups)
    need(met, part, "too few people for a profile")


def covers(cast, issued):
    decision = issued["decision"]
    uses, allowed = cast.get("uses"), issued.get("uses")
    return (
        cast["max_ttl"] >= decision["ttl"]["granted"]
        and cast["not_after"] > decision["input"]["now"]
        and cast["not_after"] >= issued["exp"] * 1000
        and (uses is None or (allowed is not None and allowed <= uses))
    )


def verify(text, keys, realm=None, checkpoint=None):
    receipt = read(text)
    need(realm in (None, receipt["realm"]), "realm", "another realm")
    check_signatures(receipt, keys, checkpoint)
    entries = check_inclusion(receipt)
    try:
        record = Record(receipt, entries)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Refused("entries", error) from None
    check_votes(receipt, record)
    try:
        check_token(receipt, record)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Refused("token", error) from None
    return {
        "jti": receipt["jti"],
        "entries": [[index, entries[index]["kind"]] for index in sorted(entries)],
        "votes": [[vote["body"]["voter"], vote["body"]["verdict"], method(vote["body"])] for vote in record.votes],
        "shown": [[vote["shown"]["action"]["risk"], vote["shown"]["action"]["effect"]] for vote in record.votes],
    }


def read_keys(path):
    with open(path, encoding="utf-8") as file:
        keys = json.load(file)["keys"]
    return {key["kid"]: key for key in keys if key["kty"] == "EC" and key["crv"] == "P-256" and key.get("use") == "sig"}


def answer(keys, receipt, realm=None, checkpoint=None):
    try:
        return {"verified": verify(receipt, keys, realm, checkpoint)}
    except Refused as refused:
        return {"refused": refused.part, "why": str(refused)}


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("file", nargs="?")
    arguments.add_argument("--keys", required=True)
    arguments.add_argument("--realm")
    arguments.add_argument("--checkpoint")
    arguments.add_argument("--batch", action="store_true")
    given = arguments.parse_args()
    keys = read_keys(given.keys)
    if given.batch:
        for line in sys.stdin:
            print(json.dumps(answer(keys, **json.loads(line))), flush=True)
        return 0
    with open(given.file, encoding="utf-8", newline="") as file:
        found = answer(keys, file.read(BYTES_MAX + 2), given.realm, given.checkpoint)
    print(json.dumps(found))
    return 0 if "verified" in found else 1


if __name__ == "__main__":
    sys.exit(main())
