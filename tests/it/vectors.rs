//! Public test vectors for the journal: RFC 8785 (JCS) and the Merkle tree of RFC 6962. (Those of JOSE are in `src/jose`.)

use std::io::Write as _;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dipylon::audit::{Inclusion, verify_inclusion};
use dipylon_sdk::model::{Digest, json};
use serde_json::Value;

/// The directory of public vectors; prints that the test is skipped where it is missing.
pub fn vectors(what: &str) -> Option<PathBuf> {
    let root = std::env::var_os("DIPYLON_VECTORS").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/vectors")),
        PathBuf::from,
    );
    let path = root.join(what);
    if path.is_dir() {
        return Some(path);
    }
    // Not by `eprintln!`, which a passing test captures.
    writeln!(
        std::io::stderr(),
        "SKIPPED: {what}: no vectors at {}",
        path.display()
    )
    .expect("stderr");
    None
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
