//! Public test vectors: RFC 8785 (JCS), the Merkle tree of RFC 6962, and a list of every file with the test that reads it.
//! Where there are vectors, none may be skipped: a file that is missing or that no test reads fails.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dipylon::audit::{Inclusion, verify_inclusion};
use dipylon_sdk::model::{Digest, json};
use serde_json::Value;

/// The folder of all public vectors; `None` where there is none: it was not named, and does not lie beside the checkout.
fn root() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("DIPYLON_VECTORS") {
        return Some(PathBuf::from(named));
    }
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/vectors");
    beside.is_dir().then_some(beside)
}

/// Says that a test was skipped. Not by `eprintln!`, which a passing test captures.
fn print_skipped(what: &str) {
    writeln!(
        std::io::stderr(),
        "SKIPPED: {what}: no public vectors at ../shared/vectors; set DIPYLON_VECTORS"
    )
    .expect("stderr");
}

/// The folder of one kind of public vectors; prints that the test is skipped where there are no vectors at all.
pub fn vectors(what: &str) -> Option<PathBuf> {
    let Some(root) = root() else {
        print_skipped(what);
        return None;
    };
    let path = root.join(what);
    assert!(path.is_dir(), "{} is missing", path.display());
    Some(path)
}

#[test]
fn jcs() {
    let Some(root) = vectors("jcs") else { return };
    let (mut same, mut refused) = (0, 0);
    for file in std::fs::read_dir(root.join("input")).expect("input") {
        let name = file.expect("file").file_name();
        let input = json::parse(&std::fs::read(root.join("input").join(&name)).expect("read"))
            .expect("JSON");
        let output = std::fs::read_to_string(root.join("output").join(&name)).expect("output");
        match json::canonical(&input) {
            Ok(text) => {
                assert_eq!(text, output.trim_end_matches('\n'), "{name:?}");
                let hex = root.join("outhex").join(&name).with_extension("txt");
                let hex = std::fs::read_to_string(hex).expect("outhex");
                let bytes = hex
                    .split_whitespace()
                    .map(|byte| u8::from_str_radix(byte, 16).expect("hex"));
                assert!(bytes.eq(text.bytes()), "{name:?}");
                same += 1;
            }
            // Hashed JSON has no fractions.
            Err(_) => {
                assert!(
                    output.contains(['.', 'e']),
                    "{name:?} has no fraction to refuse"
                );
                refused += 1;
            }
        }
    }
    eprintln!("jcs: {same} equal, {refused} refused for fractions");
    assert!(same >= 4 && same + refused >= 6);
}

#[test]
fn merkle_inclusion() {
    let Some(root) = vectors("merkle-proofs/inclusion") else {
        return;
    };
    let (mut good, mut bad) = (0, 0);
    let mut folders = vec![root];
    while let Some(folder) = folders.pop() {
        for file in std::fs::read_dir(folder).expect("folder") {
            let path = file.expect("file").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let case: Value =
                serde_json::from_slice(&std::fs::read(&path).expect("read")).expect("JSON");
            let wanted = !case["wantErr"].as_bool().expect("wantErr");
            let hash = |v: &Value| {
                let bytes = STANDARD.decode(v.as_str().unwrap_or_default()).ok()?;
                <[u8; 32]>::try_from(bytes.as_slice())
                    .ok()
                    .map(Digest::from_bytes)
            };
            let proof = case["proof"].as_array().cloned().unwrap_or_default();
            let path_hashes: Option<Vec<Digest>> = proof.iter().map(hash).collect();
            let holds = match (
                hash(&case["leafHash"]),
                hash(&case["root"]),
                path_hashes,
                case["leafIdx"].as_u64(),
                case["treeSize"].as_u64(),
            ) {
                (Some(leaf), Some(root), Some(path), Some(index), Some(size)) => {
                    verify_inclusion(leaf, &Inclusion { index, size, path }, root)
                }
                // A hash of another length or a negative number is no proof.
                _ => false,
            };
            assert_eq!(holds, wanted, "{}", path.display());
            if wanted { good += 1 } else { bad += 1 }
        }
    }
    eprintln!("merkle: {good} accepted, {bad} refused");
    assert!(good >= 5 && bad >= 50);
}

/// The messages and the method of our copy are those of the SPIFFE project.
#[test]
fn spiffe_workload_api() {
    let Some(root) = vectors("spiffe") else {
        return;
    };
    let lines = |text: String| -> BTreeSet<String> {
        let lines = text
            .lines()
            .map(|line| line.split("//").next().unwrap_or_default());
        let words = lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
        words.filter(|line| !line.is_empty()).collect()
    };
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto/spiffe/workloadapi.proto");
    let ours = lines(std::fs::read_to_string(ours).expect("ours"));
    let theirs =
        std::fs::read_to_string(root.join("workloadapi.proto")).expect("workloadapi.proto");
    let theirs = lines(theirs);
    let others: Vec<_> = ours.difference(&theirs).collect();
    assert!(others.is_empty(), "not in SPIFFE's file: {others:?}");
}

/// How a test finds the files of a row.
enum Reads {
    /// It names each of them.
    Named,
    /// It lists the folder.
    Listed,
}
use Reads::{Listed, Named};

/// Files by the beginning of their path, and the test that reads them.
const READ: [(&str, Reads, &str); 14] = [
    ("dpop/", Named, "sdk/src/jose/vectors.rs"),
    ("jcs/input/", Listed, "tests/it/vectors.rs"),
    ("jcs/outhex/", Listed, "tests/it/vectors.rs"),
    ("jcs/output/", Listed, "tests/it/vectors.rs"),
    ("merkle-proofs/inclusion/", Listed, "tests/it/vectors.rs"),
    (
        "rfc-examples/rfc8037.json",
        Named,
        "sdk/src/jose/vectors.rs",
    ),
    (
        "spiffe/go-spiffe/bundle/jwtbundle/",
        Named,
        "sdk/src/jose/vectors.rs",
    ),
    (
        "spiffe/go-spiffe/bundle/spiffebundle/",
        Named,
        "sdk/src/jose/vectors.rs",
    ),
    ("spiffe/workloadapi.proto", Named, "tests/it/vectors.rs"),
    ("webauthn/", Named, "tests/it/webauthn/mod.rs"),
    ("wycheproof/ecdsa_", Named, "sdk/src/jose/vectors.rs"),
    ("wycheproof/ed25519_", Named, "sdk/src/jose/vectors.rs"),
    ("wycheproof/json_web_", Named, "sdk/src/jose/vectors.rs"),
    ("wycheproof/rsa_", Named, "sdk/src/jose/vectors.rs"),
];

/// Files that no test reads, by the beginning of their path, and why.
const NOT_READ: [(&str, &str); 11] = [
    ("authzen/", "an authorization API is not built"),
    ("c2sp-note/", "signed checkpoints are not built"),
    (
        "rfc-examples/rfc_json_examples.json",
        "OAuth endpoints are not built",
    ),
    ("spiffe/JWT-SVID.schema", "a schema, not data"),
    (
        "spiffe/go-spiffe/bundle/x509bundle/",
        "X.509-SVIDs are not built",
    ),
    (
        "spiffe/go-spiffe/exp/bundle/witbundle/",
        "workload identity tokens are not built",
    ),
    (
        "spiffe/go-spiffe/svid/x509svid/",
        "X.509-SVIDs are not built",
    ),
    ("token-status-list/", "status lists are not built"),
    ("wimse-wit-wpt/", "workload identity tokens are not built"),
    ("wycheproof/hmac_", "no message is authenticated with HMAC"),
    ("wycheproof/schemas/", "schemas, not data"),
];

#[test]
fn every_public_vector_is_read_or_listed() {
    let Some(root) = root() else {
        return print_skipped("the list of public vectors");
    };
    let mut files = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in
            std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
        {
            let path = entry.expect("entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let relative = path.strip_prefix(&root).expect("below the root");
                files.push(relative.to_str().expect("UTF-8").to_owned());
            }
        }
    }
    let name = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
    files.retain(|path| {
        let name = name(path);
        name != "README.md" && name != "ORIGIN.md" && !name.starts_with("LICENSE")
    });
    assert!(
        files.len() >= 100,
        "{} files at {}",
        files.len(),
        root.display()
    );
    let source = |path: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    };
    let mut left: BTreeSet<&str> = files.iter().map(String::as_str).collect();
    for (prefix, reads, test) in &READ {
        let source = source(test);
        let found: Vec<&str> = left
            .iter()
            .copied()
            .filter(|path| path.starts_with(prefix))
            .collect();
        assert!(
            !found.is_empty(),
            "{prefix}: no such file, which {test} reads"
        );
        for path in found {
            let named = match reads {
                Named => name(path),
                Listed => prefix
                    .split('/')
                    .rev()
                    .nth(1)
                    .unwrap_or_default()
                    .to_owned(),
            };
            assert!(source.contains(&named), "{test} does not read {path}");
            left.remove(path);
        }
    }
    for (prefix, why) in NOT_READ {
        let count = left.len();
        left.retain(|path| !path.starts_with(prefix));
        assert!(
            left.len() < count,
            "{prefix} ({why}): no such file; drop the row"
        );
    }
    assert!(left.is_empty(), "no test reads, and no row names: {left:?}");
}
