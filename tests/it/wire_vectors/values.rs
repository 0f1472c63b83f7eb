//! Vectors of values: keys, ids, durations, action digests, commitments.

use dipylon_sdk::model::Digest;
use serde_json::{Value, json};

use super::Former;
use super::keys::{self, encode};

/// The keys, and JWKs with their thumbprints.
pub fn key_vectors(_former: &Former) -> Value {
    let fixed = keys::all();
    let keys: serde_json::Map<String, Value> = fixed
        .iter()
        .map(|fixed| {
            let entry = json!({
                "source": fixed.source,
                "private_jwk": fixed.private_jwk,
                "thumbprint": fixed.key.thumbprint(),
            });
            (fixed.name.to_owned(), entry)
        })
        .collect();
    let agent = &fixed[1];
    let jwk = agent.key.public().to_jwk();
    let with = |name: &str, value: Value| {
        let mut jwk = jwk.clone();
        jwk[name] = value;
        jwk
    };
    let good = [
        ("required members", jwk.clone()),
        (
            "optional members do not change the thumbprint",
            json!({ "alg": "ES256", "use": "sig", "kid": "any", "key_ops": ["verify"], "ext": true,
                "y": jwk["y"], "x": jwk["x"], "crv": "P-256", "kty": "EC" }),
        ),
    ];
    let bad = [
        ("a private member", agent.private_jwk.clone()),
        ("another curve", with("crv", json!("P-384"))),
        ("another type", with("kty", json!("RSA"))),
        ("another algorithm", with("alg", json!("ES384"))),
        ("for encryption", with("use", json!("enc"))),
        ("key_ops without verify", with("key_ops", json!(["sign"]))),
        ("an unknown member", with("x5c", json!([]))),
        (
            "a coordinate of 31 bytes",
            with("x", json!(encode(&[1; 31]))),
        ),
        (
            "padding",
            with(
                "x",
                json!(format!("{}=", jwk["x"].as_str().unwrap_or_default())),
            ),
        ),
        ("a point off the curve", with("x", jwk["y"].clone())),
    ];
    let good = good.map(|(name, jwk)| {
        json!({ "name": name, "jwk": jwk, "expect": "accept", "thumbprint": agent.key.thumbprint() })
    });
    let bad = bad.map(|(name, jwk)| json!({ "name": name, "jwk": jwk, "expect": "refuse" }));
    json!({
        "comment": "Keys that specifications publish, for tests only. `thumbprint` is b64u(SHA-256(JCS({crv, kty, x, y}))) \
            (RFC 7638). For `vectors`: read the JWK as a proof's `jwk` header; accept with this thumbprint, or refuse.",
        "keys": keys,
        "vectors": ([&good[..], &bad[..]].concat()),
    })
}

/// Ids, names and durations, good and bad.
pub fn ids(_former: &Former) -> Value {
    let id = "BQUFBQUFBQUFBQUFBQUFBQ";
    let long = "a".repeat(64);
    let longer = "a".repeat(65);
    let last_bits = format!("tok_{}w", "_".repeat(21));
    let uri = format!("https://{}", "a".repeat(248));
    let longer_uri = format!("{uri}a");
    let table: [(&str, &[&str], &[&str]); 12] = [
        (
            "task_id",
            &["task_BQUFBQUFBQUFBQUFBQUFBQ"],
            &[
                id,
                "Task_BQUFBQUFBQUFBQUFBQUFBQ",
                "areq_BQUFBQUFBQUFBQUFBQUFBQ",
                "task_BQUFBQUFBQUFBQUFBQUFBR",
                "task_BQUFBQUFBQUFBQUFBQUFBQ==",
                "task_BQUFBQUFBQUFBQUFBQUFB",
                "task_BQUFBQUFBQUFBQUFBQUFBQA",
                "task_",
                "",
            ],
        ),
        (
            "access_request_id",
            &["areq_AAAAAAAAAAAAAAAAAAAAAA"],
            &["areq_AAAAAAAAAAAAAAAAAAAAA+"],
        ),
        ("jti", &[&last_bits], &["tok_AAAA"]),
        (
            "idempotency_key",
            &[
                "a",
                "0",
                "open-1",
                "A.b_c-d",
                "-a",
                "_a",
                ".a",
                "kWnGzX1u3oY6e-_8bq7Z1w",
                &long,
            ],
            &["", "a b", "a/b", "a:b", "é", &longer, "a="],
        ),
        (
            "use_id",
            &["AQEBAQEBAQEBAQEBAQEBAQ", "-_4BAQEBAQEBAQEBAQEBAQ", &long],
            &["", " a", &longer],
        ),
        (
            "action",
            &["account.disable", "a", &long],
            &["", "account disable", "account/disable", ".a", &longer],
        ),
        (
            "target_type",
            &["Account", "_a1", "Soc::Host"],
            &["", "1a", "a-b", "Soc:Host", "Soc::", "::Host", "É"],
        ),
        (
            "target_id",
            &[
                "ann",
                "INC-8841",
                "web 1",
                " ",
                "é",
                "e\u{301}",
                "::",
                "\"\\/",
                "\u{1f600}",
                "\u{e000}",
                &"é".repeat(128),
            ],
            &[
                "",
                "a\nb",
                "a\u{0}b",
                "a\u{7f}b",
                "a\u{85}b",
                "a\u{a0}b",
                "a\u{ad}b",
                "a\u{200b}b",
                "a\u{2028}b",
                "a\u{202e}b",
                "a\u{2800}b",
                "a\u{3000}b",
                "a\u{fe0f}b",
                "a\u{feff}b",
                "a\u{fff9}b",
                "a\u{e0041}b",
                &"é".repeat(129),
            ],
        ),
        (
            "parameter_name",
            &["end_sessions", "_", "A1"],
            &["", "1a", "a-b", "a.b", "$commitment", "é", &longer],
        ),
        (
            "audience",
            &[
                "https://idp.soc.example",
                "idp",
                "https://idp.soc.example/",
                &uri,
            ],
            &["", "a b", "a\"b", "a\\b", "a<b", "a`b", "é", &longer_uri],
        ),
        (
            "spiffe_id",
            &["spiffe://soc.example/agent/triage", "spiffe://a/B_c.d-e"],
            &[
                "spiffe://soc.example",
                "spiffe://soc.example/",
                "spiffe://SOC.example/a",
                "spiffe://soc.example:1/a",
                "https://soc.example/a",
                "spiffe://soc.example/a/",
                "spiffe://soc.example/./a",
                "spiffe://soc.example/%61",
            ],
        ),
        (
            "digest",
            &["AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI"],
            &[
                "",
                "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgJ",
                "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=",
                "AgIC",
            ],
        ),
    ];
    let mut vectors = Vec::new();
    for (kind, good, bad) in table {
        for (texts, expect) in [(good, "accept"), (bad, "refuse")] {
            vectors.extend(
                texts
                    .iter()
                    .map(|text| json!({ "kind": kind, "text": text, "expect": expect })),
            );
        }
    }
    for (seconds, nanos, expect) in [
        (300, 0, "accept"),
        (1, 0, "accept"),
        (0, 500_000_000, "refuse"),
        (1, 1, "refuse"),
        (315_576_000_001_i64, 0, "refuse"),
    ] {
        let duration = json!({ "seconds": seconds.to_string(), "nanos": nanos });
        vectors.push(json!({ "kind": "duration", "duration": duration, "expect": expect }));
    }
    json!({
        "comment": "What the broker accepts and refuses as each kind of value. A client must send what is accepted; it need not \
            check what it sends. `duration` is a google.protobuf.Duration in a request.",
        "vectors": vectors,
    })
}

fn action(name: &str, audience: &str, target: (&str, &str), parameters: Value) -> Value {
    let (kind, id) = target;
    json!({ "name": name, "audience": audience, "target": { "type": kind, "id": id }, "parameters": parameters })
}

/// Actions as ProtoJSON, with their canonical JSON and digest, or refused.
pub fn action_digests(_former: &Former) -> Value {
    let idp = "https://idp.soc.example";
    let of = |parameters: Value| action("a", "b", ("T", "t"), parameters);
    let one = |value: Value| of(json!([{ "name": "p", "value": value }]));
    let set = |elements: Value| json!({ "set_value": { "elements": elements } });
    let int = |n: i64| json!({ "int_value": n.to_string() });
    let text = |s: &str| json!({ "string_value": s });
    let nested = |depth: usize| (1..depth).fold(int(1), |value, _| set(json!([value])));
    let many = |n: usize| {
        Value::Array(
            (0..n)
                .map(|n| json!({ "name": format!("p{n:03}"), "value": int(1) }))
                .collect(),
        )
    };
    // The canonical JSON of each is written here by hand.
    let good = [
        (
            "from docs/wire.md",
            action(
                "account.disable",
                idp,
                ("Account", "ann"),
                json!([{ "name": "end_sessions", "value": { "bool_value": true } }]),
            ),
            r#"{"action":"account.disable","audience":"https://idp.soc.example","parameters":{"end_sessions":true},"target":{"id":"ann","type":"Account"}}"#,
        ),
        (
            "no parameters",
            of(json!([])),
            r#"{"action":"a","audience":"b","parameters":{},"target":{"id":"t","type":"T"}}"#,
        ),
        (
            "the order in which parameters are sent does not matter",
            of(
                json!([{ "name": "b", "value": int(2) }, { "name": "B", "value": int(3) }, { "name": "a", "value": int(1) }]),
            ),
            r#"{"action":"a","audience":"b","parameters":{"B":3,"a":1,"b":2},"target":{"id":"t","type":"T"}}"#,
        ),
        (
            "an audience and a target are byte-exact",
            action(
                "a",
                "https://idp.soc.example/",
                ("Soc::Host", "Web-1 é\u{1f600}"),
                json!([]),
            ),
            "{\"action\":\"a\",\"audience\":\"https://idp.soc.example/\",\"parameters\":{},\"target\":{\"id\":\"Web-1 é\u{1f600}\",\"type\":\"Soc::Host\"}}",
        ),
        (
            "escapes",
            one(text(
                "\"\\/\u{8}\u{c}\n\r\t\u{0}\u{1f}\u{7f}é\u{2028}\u{1f600}",
            )),
            "{\"action\":\"a\",\"audience\":\"b\",\"parameters\":{\"p\":\"\\\"\\\\/\\b\\f\\n\\r\\t\\u0000\\u001f\u{7f}é\u{2028}\u{1f600}\"},\"target\":{\"id\":\"t\",\"type\":\"T\"}}",
        ),
        (
            "an empty text",
            one(text("")),
            r#"{"action":"a","audience":"b","parameters":{"p":""},"target":{"id":"t","type":"T"}}"#,
        ),
        (
            "the largest integer",
            one(int(9_007_199_254_740_991)),
            r#"{"action":"a","audience":"b","parameters":{"p":9007199254740991},"target":{"id":"t","type":"T"}}"#,
        ),
        (
            "the smallest integer",
            one(int(-9_007_199_254_740_991)),
            r#"{"action":"a","audience":"b","parameters":{"p":-9007199254740991},"target":{"id":"t","type":"T"}}"#,
        ),
        (
            "zero",
            one(int(0)),
            r#"{"action":"a","audience":"b","parameters":{"p":0},"target":{"id":"t","type":"T"}}"#,
        ),
        (
            "false",
            one(json!({ "bool_value": false })),
            r#"{"action":"a","audience":"b","parameters":{"p":false},"target":{"id":"t","type":"T"}}"#,
        ),
        (
            "an empty set",
            one(set(json!([]))),
            r#"{"action":"a","audience":"b","parameters":{"p":[]},"target":{"id":"t","type":"T"}}"#,
        ),
        (
            "a set of integers, in the order of their texts",
            one(set(json!([int(-1), int(10), int(9)]))),
            r#"{"action":"a","audience":"b","parameters":{"p":[-1,10,9]},"target":{"id":"t","type":"T"}}"#,
        ),
        (
            "a set of texts, in the order of their UTF-8 bytes with quotes",
            one(set(json!([
                text(""),
                text("B"),
                text("a b"),
                text("a"),
                text("é"),
                text("\u{ff61}"),
                text("\u{1f600}")
            ]))),
            "{\"action\":\"a\",\"audience\":\"b\",\"parameters\":{\"p\":[\"\",\"B\",\"a b\",\"a\",\"é\",\"\u{ff61}\",\"\u{1f600}\"]},\"target\":{\"id\":\"t\",\"type\":\"T\"}}",
        ),
        (
            "a record, and a set of records",
            one(json!({ "record_value": { "members": [
                { "name": "z", "value": set(json!([
                    { "record_value": { "members": [{ "name": "n", "value": int(1) }] } },
                    { "record_value": { "members": [{ "name": "n", "value": int(2) }] } },
                ])) },
                { "name": "a", "value": text("x") },
            ] } })),
            r#"{"action":"a","audience":"b","parameters":{"p":{"a":"x","z":[{"n":1},{"n":2}]}},"target":{"id":"t","type":"T"}}"#,
        ),
        (
            "four levels",
            one(nested(4)),
            r#"{"action":"a","audience":"b","parameters":{"p":[[[1]]]},"target":{"id":"t","type":"T"}}"#,
        ),
    ];
    let no_target = json!({ "name": "a", "audience": "b" });
    let bad = [
        ("five levels", one(nested(5))),
        ("129 values", of(many(129))),
        ("an integer above 2^53 - 1", one(int(9_007_199_254_740_992))),
        (
            "an integer below -(2^53 - 1)",
            one(int(-9_007_199_254_740_992)),
        ),
        ("a set out of order", one(set(json!([int(9), int(10)])))),
        ("an element twice", one(set(json!([int(1), int(1)])))),
        (
            "a parameter twice",
            of(json!([{ "name": "p", "value": int(1) }, { "name": "p", "value": int(1) }])),
        ),
        (
            "a member of a record twice",
            one(json!({ "record_value": { "members": [
            { "name": "m", "value": int(1) }, { "name": "m", "value": int(2) }] } })),
        ),
        ("a value without a kind", one(json!({}))),
        ("a parameter without a value", of(json!([{ "name": "p" }]))),
        (
            "a parameter's name with a dollar sign",
            of(json!([{ "name": "$commitment", "value": int(1) }])),
        ),
        ("a text of 4097 bytes", one(text(&"a".repeat(4_097)))),
        ("no target", no_target),
        ("no name", action("", "b", ("T", "t"), json!([]))),
        ("no audience", action("a", "", ("T", "t"), json!([]))),
        (
            "a target with an invisible character",
            action("a", "b", ("T", "a\u{202e}b"), json!([])),
        ),
    ];
    let good = good.map(|(name, action, canonical)| {
        json!({ "name": name, "action": action, "expect": "accept", "canonical": canonical,
            "digest": Digest::tagged("dipylon/action/v1", canonical.as_bytes()) })
    });
    let bad =
        bad.map(|(name, action)| json!({ "name": name, "action": action, "expect": "refuse" }));
    json!({
        "comment": "`action` is a dipylon.v1.Action in ProtoJSON. A client must compute `canonical` (RFC 8785) and `digest` = \
            b64u(SHA-256(\"dipylon/action/v1\" 0x00 canonical)), the proof's `adg`. What the broker refuses, a client must not send.",
        "vectors": ([&good[..], &bad[..]].concat()),
    })
}

/// Commitments of sensitive parameters and of the digests of their actions.
pub fn commitments(_former: &Former) -> Value {
    let salt = encode(&[1; 16]);
    let of_value = |name: &str, value: Value, canonical: &str| {
        let bytes = format!("dipylon/commitment/v1\0{salt}\0{canonical}");
        json!({ "name": name, "salt": salt, "value": value, "canonical": canonical,
            "commitment": Digest::sha256(bytes.as_bytes()) })
    };
    let parameters = [
        of_value(
            "from docs/wire.md",
            json!("call her back"),
            r#""call her back""#,
        ),
        of_value("a number", json!(-7), "-7"),
        of_value("true", json!(true), "true"),
        of_value("a set", json!(["a", "b"]), r#"["a","b"]"#),
        of_value(
            "a record",
            json!({ "b": 1, "a": "é" }),
            r#"{"a":"é","b":1}"#,
        ),
    ];
    let digest = Digest::sha256(b"any");
    let (salt, tag) = (encode(&[2; 16]), "dipylon/digest-commitment/v1");
    let bytes = [
        tag.as_bytes(),
        &[0],
        salt.as_bytes(),
        &[0],
        digest.as_bytes(),
    ]
    .concat();
    json!({
        "comment": "A resource server must compute `commitment` from `salt` (its text) and `value`, and compare it with the \
            token's `$commitment`: b64u(SHA-256(\"dipylon/commitment/v1\" 0x00 salt 0x00 canonical)). `digests`: how the broker \
            commits to an action digest; nothing for a client to do.",
        "vectors": parameters,
        "digests": [{ "salt": salt, "digest": digest, "commitment": Digest::sha256(&bytes) }],
    })
}
