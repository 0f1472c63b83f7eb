"""Yubico's fido2 as a second opinion on passkeys: one JSON object a line in, one a line out.

{"ask": "register" | "check", ...}  ->  {"yes": bool, "why": str}
{"ask": "make", "alg": ...}         ->  a registration and an assertion of its own making
"""

import json
import sys
from hashlib import sha256
from os import urandom

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from fido2.cose import ES256, RS256, EdDSA
from fido2.server import Fido2Server
from fido2.utils import websafe_decode, websafe_encode
from fido2.webauthn import (
    AttestationObject,
    AttestedCredentialData,
    AuthenticatorData,
    CollectedClientData,
    PublicKeyCredentialRpEntity,
)


def server(case):
    rp = PublicKeyCredentialRpEntity(id=case["rp"], name=case["rp"])
    # Its own rule for origins takes every subdomain.
    return Fido2Server(rp, verify_origin=lambda origin: origin == case["origin"])


def registered(case):
    state = {"challenge": case["creation"], "user_verification": "required"}
    credential = websafe_encode(b"\0" * 16)
    return server(case).register_complete(
        state,
        {
            "id": credential,
            "rawId": credential,
            "type": "public-key",
            "response": {
                "clientDataJSON": case["made_client_data"],
                "attestationObject": case["attestation_object"],
            },
        },
    )


def checked(case):
    state = {"challenge": case["request"], "user_verification": "required"}
    credential = AttestedCredentialData(websafe_decode(case["credential_data"]))
    identifier = websafe_encode(credential.credential_id)
    server(case).authenticate_complete(
        state,
        [credential],
        {
            "id": identifier,
            "rawId": identifier,
            "type": "public-key",
            "response": {
                "clientDataJSON": case["client_data"],
                "authenticatorData": case["authenticator_data"],
                "signature": case["signature"],
            },
        },
    )


def made(case):
    if case["alg"] == "ES256":
        private = ec.generate_private_key(ec.SECP256R1())
        cose, sign = ES256, lambda m: private.sign(m, ec.ECDSA(hashes.SHA256()))
    elif case["alg"] == "EdDSA":
        private = ed25519.Ed25519PrivateKey.generate()
        cose, sign = EdDSA, private.sign
    else:
        private = rsa.generate_private_key(65537, case["bits"])
        cose, sign = RS256, lambda m: private.sign(m, padding.PKCS1v15(), hashes.SHA256())
    key = cose.from_cryptography_key(private.public_key())
    rp = sha256(case["rp"].encode()).digest()
    flag = AuthenticatorData.FLAG
    credential = AttestedCredentialData.create(urandom(16), urandom(48), key)
    data = AuthenticatorData.create(rp, flag.UP | flag.UV | flag.AT, 0, credential)
    said = CollectedClientData.create("webauthn.create", case["creation"], case["origin"])
    signed = AuthenticatorData.create(rp, flag.UP | flag.UV, 0)
    asked = CollectedClientData.create("webauthn.get", case["request"], case["origin"])
    return {
        "made_client_data": websafe_encode(said),
        "attestation_object": websafe_encode(AttestationObject.create("none", data, {})),
        "authenticator_data": websafe_encode(signed),
        "client_data": websafe_encode(asked),
        "signature": websafe_encode(sign(signed + asked.hash)),
        "credential": websafe_encode(credential.credential_id),
    }


for line in sys.stdin:
    case = json.loads(line)
    if case["ask"] == "make":
        answer = made(case)
    else:
        try:
            (registered if case["ask"] == "register" else checked)(case)
            answer = {"yes": True, "why": ""}
        except Exception as e:  # whatever it says no with
            answer = {"yes": False, "why": f"{type(e).__name__}: {e}"}
    print(json.dumps(answer), flush=True)
