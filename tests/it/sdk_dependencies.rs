//! The SDK's dependency tree: how many crates a user compiles, which ones never, and the Rust version they need.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// Crates in the SDK's tree, itself not counted.
const CRATES_MAX: usize = 110;
/// The same with build dependencies.
const CRATES_WITH_BUILD_MAX: usize = 142;
/// Parts of the broker that no user of the SDK compiles.
const BROKER_ONLY: [&str; 7] = [
    "cedar-policy",
    "rusqlite",
    "axum",
    "clap",
    "prometheus-client",
    "tracing-subscriber",
    "dipylon",
];

fn cargo(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(arguments)
        .args(["--locked", "--offline"])
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "cargo {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// The platform of this build: packages of others may not be downloaded.
fn host() -> String {
    let output = Command::new("rustc")
        .arg("-vV")
        .output()
        .expect("rustc runs");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let line = text.lines().find_map(|line| line.strip_prefix("host: "));
    line.expect("a host line").to_owned()
}

/// Name and version of every dependency of the SDK along these kinds of edges.
fn tree(edges: &str) -> BTreeSet<(String, String)> {
    let tree = cargo(&[
        "tree",
        "--package=dipylon-sdk",
        "--prefix=none",
        "--edges",
        edges,
    ]);
    tree.lines()
        .filter_map(|line| line.split_once(" v"))
        .map(|(name, rest)| {
            let version = rest.split_whitespace().next().expect("a version");
            (name.to_owned(), version.to_owned())
        })
        .filter(|(name, _)| name != "dipylon-sdk")
        .collect()
}

/// `1.88` or `1.88.0` as numbers.
fn rust_version(text: &str) -> (u32, u32, u32) {
    let mut parts = text.split('.').map(|part| part.parse().expect("a number"));
    let mut next = || parts.next().unwrap_or(0);
    (next(), next(), next())
}

#[test]
fn sdk_tree_is_small_and_free_of_the_broker() {
    let linked = tree("normal");
    assert!(linked.len() > 50, "the tree was not read: {linked:?}");
    assert!(linked.len() <= CRATES_MAX, "{} crates", linked.len());
    let compiled = tree("normal,build");
    assert!(
        compiled.len() <= CRATES_WITH_BUILD_MAX,
        "{} crates with build dependencies",
        compiled.len()
    );
    for name in BROKER_ONLY {
        assert!(!compiled.iter().any(|(found, _)| found == name), "{name}");
    }
}

#[test]
fn sdk_dependencies_build_with_its_rust_version() {
    let platform = [
        "metadata",
        "--format-version=1",
        "--filter-platform",
        &host(),
    ];
    let metadata: Value = serde_json::from_str(&cargo(&platform)).expect("JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let declared: BTreeMap<(String, String), (u32, u32, u32)> = packages
        .iter()
        .filter_map(|package| {
            let name = package["name"].as_str()?.to_owned();
            let version = package["version"].as_str()?.to_owned();
            let rust = rust_version(package["rust_version"].as_str()?);
            Some(((name, version), rust))
        })
        .collect();
    let of = |name: &str| {
        let found = declared.iter().find(|((found, _), _)| found == name);
        *found.expect(name).1
    };
    let sdk = of("dipylon-sdk");
    assert!(sdk < of("dipylon"), "lower than the broker's");
    for dependency in tree("normal,build") {
        let needs = declared.get(&dependency);
        assert!(
            needs.is_none_or(|needs| *needs <= sdk),
            "{dependency:?} needs Rust {needs:?}, the SDK declares {sdk:?}"
        );
    }
}
