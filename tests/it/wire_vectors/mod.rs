//! The project's own vectors in `tests/vectors`, for implementations in other languages: what `docs/wire.md` says, in numbers.
//! `DIPYLON_BLESS=1` writes the files anew; signatures that still verify stay. Here and in the SDK's `validator` every vector
//! is run through the checks that the product uses.

mod feed;
pub mod keys;
mod proofs;
mod read;
mod tokens;
mod values;
mod votes;

use std::path::{Path, PathBuf};

use dipylon_sdk::model::Digest;
use serde_json::{Value, json};

/// The moment of the vectors, in Unix seconds.
const NOW: i64 = 1_800_000_000;
/// Each byte of the key under which the broker of the vectors makes nonces.
const NONCE_KEY: u8 = 7;

type Generate = fn(&Former) -> Value;

/// Every file and the function that writes it.
const FILES: [(&str, Generate); 8] = [
    ("access_tokens.json", tokens::access_tokens),
    ("action_digests.json", values::action_digests),
    ("commitments.json", values::commitments),
    ("dpop_proofs.json", proofs::dpop_proofs),
    ("ids.json", values::ids),
    ("keys.json", values::key_vectors),
    ("revocation_feed.json", feed::revocation_feed),
    ("vote_statements.json", votes::vote_statements),
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors")
}

fn load(file: &str) -> Value {
    let path = folder().join(file);
    let text = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn list<'a>(file: &'a Value, name: &str) -> &'a [Value] {
    let list = file[name].as_array().map(Vec::as_slice);
    list.unwrap_or_else(|| panic!("no list {name}"))
}

fn text<'a>(vector: &'a Value, name: &str) -> &'a str {
    vector[name]
        .as_str()
        .unwrap_or_else(|| panic!("no text {name} in {vector}"))
}

/// Whether the vector must be accepted.
fn is_good(vector: &Value) -> bool {
    match text(vector, "expect") {
        "accept" => true,
        "refuse" => false,
        other => panic!("expect is {other}"),
    }
}

/// A file as it was before: the source of signatures that are kept.
struct Former(Value);

impl Former {
    fn load(file: &str) -> Self {
        let text = std::fs::read(folder().join(file)).unwrap_or_default();
        Self(serde_json::from_slice(&text).unwrap_or_default())
    }

    /// A text member of the vector of this name.
    fn text(&self, list: &str, name: &str, member: &str) -> Option<String> {
        let vectors = self.0[list].as_array()?;
        let vector = vectors.iter().find(|vector| vector["name"] == name)?;
        vector[member].as_str().map(str::to_owned)
    }
}

/// The first token of `access_tokens.json`, which the proofs for a resource server belong to.
fn good_token() -> String {
    let tokens = tokens::access_tokens(&Former::load("access_tokens.json"));
    text(&tokens["vectors"][0], "token").to_owned()
}

/// A change to a proof's or token's header and claims before it is signed.
type Change = fn(&mut Value, &mut Value);

/// The digest of the documented action.
fn action_digest() -> Digest {
    let canonical = r#"{"action":"account.disable","audience":"https://idp.soc.example","parameters":{"end_sessions":true},"target":{"id":"ann","type":"Account"}}"#;
    Digest::tagged("dipylon/action/v1", canonical.as_bytes())
}

/// A vector with its name and verdict.
fn named(vector: Value, name: &str, why: Option<&str>) -> Value {
    let mut named = json!({
        "name": name,
        "expect": if why.is_none() { "accept" } else { "refuse" },
    });
    if let Some(why) = why {
        named["why"] = json!(why);
    }
    let members = named.as_object_mut().expect("object");
    for (member, value) in vector.as_object().expect("object") {
        members
            .entry(member.as_str())
            .or_insert_with(|| value.clone());
    }
    named
}

fn remove(value: &mut Value, name: &str) {
    value.as_object_mut().expect("object").remove(name);
}

#[test]
fn files_are_as_generated() {
    let bless = std::env::var_os("DIPYLON_BLESS").is_some();
    for (file, generate) in FILES {
        let mut found = serde_json::to_string_pretty(&generate(&Former::load(file))).expect("JSON");
        found.push('\n');
        let path = folder().join(file);
        if bless {
            std::fs::create_dir_all(folder()).expect("folder");
            std::fs::write(&path, &found).expect("written");
        }
        let frozen = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            found == frozen,
            "{file} differs from what its generator writes; if the change is intended, run with DIPYLON_BLESS=1"
        );
    }
}

#[test]
fn every_file_is_generated_and_says_what_to_do() {
    let mut files: Vec<String> = std::fs::read_dir(folder())
        .expect("folder")
        .map(|entry| {
            entry
                .expect("entry")
                .file_name()
                .into_string()
                .expect("UTF-8")
        })
        .filter(|name| name != "README.md")
        .collect();
    files.sort();
    assert_eq!(files, FILES.map(|(file, _)| file));
    let readme = std::fs::read_to_string(folder().join("README.md")).expect("README.md");
    let wire = std::fs::read_to_string(folder().join("../../docs/wire.md")).expect("wire.md");
    for file in files {
        assert!(load(&file)["comment"].is_string(), "{file} has no comment");
        assert!(readme.contains(&file), "README.md does not name {file}");
        assert!(wire.contains(&file), "docs/wire.md does not name {file}");
    }
}
