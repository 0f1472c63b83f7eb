//! Who may use whom: the floors of `src/lib.rs`, held to by reading the sources.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Each room and the rooms it may use.
const ROOMS: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("card", &["model"]),
    ("proto", &["model", "card"]),
    ("jose", &["model"]),
    ("policy", &["model", "jose"]),
    ("webauthn", &["model", "jose"]),
    ("rate_limit", &[]),
    ("telemetry", &["model"]),
    ("audit", &["model", "jose", "policy", "webauthn"]),
    ("state", &["model", "journal"]),
    ("verify", &["model", "jose", "policy"]),
    (
        "approve",
        &["model", "jose", "policy", "webauthn", "state", "verify"],
    ),
    ("mint", &["model", "jose", "approve"]),
    ("clock", &["model"]),
    ("keys", &["jose"]),
    ("journal", &["model", "audit", "clock"]),
    (
        "config",
        &["model", "jose", "rate_limit", "telemetry", "broker"],
    ),
    (
        "broker",
        &[
            "model",
            "jose",
            "policy",
            "webauthn",
            "state",
            "verify",
            "approve",
            "card",
            "mint",
            "clock",
            "journal",
            "rate_limit",
            "telemetry",
        ],
    ),
    (
        "serve",
        &[
            "model",
            "card",
            "proto",
            "policy",
            "state",
            "config",
            "rate_limit",
            "telemetry",
            "broker",
        ],
    ),
    ("client", &["model", "card", "jose", "proto", "clock"]),
    ("validator", &["model", "jose", "proto", "clock", "client"]),
    (
        "cli",
        &[
            "model",
            "card",
            "jose",
            "policy",
            "audit",
            "proto",
            "clock",
            "keys",
            "config",
            "journal",
            "telemetry",
            "broker",
            "serve",
            "client",
            "validator",
        ],
    ),
    ("main", &[]),
    ("lib", &[]),
];

/// Each dependency that has a home, and its homes.
const HOMES: &[(&str, &[&str])] = &[
    ("cedar_policy", &["policy"]),
    ("cedar_policy_core", &["policy"]),
    ("rusqlite", &["journal"]),
    ("dashmap", &["state"]),
    ("jsonwebtoken", &["jose"]),
    ("coset", &["webauthn"]),
    ("ciborium", &["webauthn"]),
    ("ring", &["jose", "model", "broker", "client"]),
    ("tonic", &["proto", "serve", "client"]),
    ("askama", &["serve"]),
    ("axum", &["serve", "cli"]),
    ("clap", &["cli", "main"]),
    ("rustls", &["serve", "client"]),
    ("tokio_rustls", &["serve", "client"]),
    ("prometheus_client", &["telemetry"]),
    ("tracing_subscriber", &["telemetry"]),
    ("opentelemetry", &["telemetry"]),
    ("tracing_opentelemetry", &["telemetry"]),
    ("unicode_normalization", &["card"]),
    ("unicode_script", &["card"]),
    ("unicode_security", &["card"]),
];

/// Rooms where value goes in and value comes out.
const PURE: &[&str] = &[
    "model", "card", "jose", "policy", "webauthn", "verify", "approve", "mint", "state", "audit",
];

fn sources(dir: &Path, out: &mut Vec<PathBuf>) {
    for file in std::fs::read_dir(dir).expect("dir") {
        let path = file.expect("file").path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

/// Every source line of each room, without comments and tests.
fn code() -> BTreeMap<String, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut rooms: BTreeMap<String, String> = BTreeMap::new();
    for path in files {
        let relative = path.strip_prefix(&root).expect("inside").to_owned();
        let first = relative.components().next().expect("a name");
        let room = first
            .as_os_str()
            .to_string_lossy()
            .trim_end_matches(".rs")
            .to_owned();
        let name = relative
            .file_stem()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        if ["tests", "strict_tests", "vectors", "attacks"].contains(&name.as_str()) {
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("source");
        let text = text
            .split("#[cfg(test)]\nmod tests {")
            .next()
            .unwrap_or_default();
        let code = rooms.entry(room).or_default();
        for line in text.lines() {
            code.push_str(line.split("//").next().unwrap_or_default());
            code.push('\n');
        }
    }
    rooms
}

fn uses(code: &str, path: &str) -> bool {
    code.match_indices(path).any(|(i, _)| {
        let before = code[..i].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
    })
}

#[test]
fn module_layering() {
    let code = code();
    let known: BTreeSet<&str> = ROOMS.iter().map(|(room, _)| *room).collect();
    let found: BTreeSet<&str> = code.keys().map(String::as_str).collect();
    assert_eq!(
        found, known,
        "a room was added or taken away: say in this table who may use whom"
    );
    for (room, may) in ROOMS {
        for (other, _) in ROOMS {
            let used = uses(&code[*room], &format!("crate::{other}::"));
            assert!(
                !used || other == room || may.contains(other),
                "{room} uses {other}"
            );
        }
    }
    for (dependency, homes) in HOMES {
        for (room, text) in &code {
            let used = uses(text, &format!("{dependency}::"));
            assert!(
                !used || homes.contains(&room.as_str()),
                "{room} uses {dependency}"
            );
        }
    }
    for room in PURE {
        for env in [
            "std::fs",
            "std::net",
            "std::process",
            "std::env",
            "tokio::",
            "SystemTime",
            "Instant::now",
        ] {
            assert!(
                !code[*room].contains(env),
                "{room} touches the world: {env}"
            );
        }
    }
}

/// In no build, with whatever feature: one TLS library, and no RSA of its own.
#[test]
fn banned_crates() {
    let lock = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.lock");
    let lock = std::fs::read_to_string(lock).expect("lock file");
    assert!(lock.contains("name = \"ring\""));
    for banned in [
        "aws-lc-rs",
        "aws-lc-sys",
        "openssl",
        "openssl-sys",
        "reqwest",
        "rsa",
    ] {
        assert!(!lock.contains(&format!("name = \"{banned}\"")), "{banned}");
    }
}
