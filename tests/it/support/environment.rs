//! Everything outside the broker: the signer of the trust domain, the keys of people, the policy files.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use dipylon_sdk::client::EvidenceSource;
use dipylon_sdk::clock::Clock;
use dipylon_sdk::jose::{SigningKey, Usage};
use dipylon_sdk::model::*;
use serde_json::json;

use crate::support::URL;
use crate::support::own_key::{OwnKey, row};
use crate::support::software_authenticator::SoftwareAuthenticator;

/// Everything outside the broker: the trust domain's signer, the people's keys, the policy files.
pub struct TestEnvironment {
    pub signer: SigningKey,
    pub keys: BTreeMap<String, SigningKey>,
    pub policy: BTreeMap<String, String>,
    pkcs8: BTreeMap<String, Vec<u8>>,
    /// Passkeys that people vote with, each with its person.
    passkeys: Mutex<Vec<(String, Arc<SoftwareAuthenticator>)>>,
}

impl TestEnvironment {
    /// No action is of high risk, and every profile takes keys: most tests vote by key.
    pub fn new() -> Self {
        let mut env = Self::with_high_risk();
        for (file, from, to) in [
            ("schema.cedarschema", "@risk(\"high\")", "@risk(\"medium\")"),
            ("people.toml", "method = \"passkey\"", "method = \"key\""),
        ] {
            let text = env.policy.get_mut(file).expect("a file");
            assert!(text.contains(from), "{file}");
            *text = text.replace(from, to);
        }
        env
    }

    /// The example as it is, but for its approval limits: `host.isolate` is of high risk and takes votes by passkey alone.
    pub fn with_high_risk() -> Self {
        let mut policy = soc();
        // Most tests vote repeatedly without advancing the clock, so the approval limits are off here; they have their
        // own tests.
        let people = policy.get_mut("people.toml").expect("people");
        let own = people.find("[approvals]").expect("the example has one");
        people.truncate(own);
        people.push_str(NO_LIMITS);
        let mut env = Self {
            signer: SigningKey::generate().expect("key").0,
            keys: BTreeMap::new(),
            policy,
            pkcs8: BTreeMap::new(),
            passkeys: Mutex::default(),
        };
        for name in [
            "dana", "maria", "lee", "olga", "idp", "cases", "logs", "vault", "audit",
        ] {
            env.add_key(name);
        }
        env
    }

    /// Registers a key of a person or service of the policy bundle.
    pub fn add_key(&mut self, name: &str) {
        let (key, secret) = SigningKey::generate().expect("key");
        let people = self.policy.get_mut("people.toml").expect("people");
        people.push_str(&row(name, &key));
        self.pkcs8.insert(name.to_owned(), secret.to_vec());
        self.keys.insert(name.to_owned(), key);
    }

    /// A second handle on a person's key, for code that owns its key.
    pub fn key_of(&self, name: &str) -> SigningKey {
        SigningKey::from_pkcs8(&self.pkcs8[name]).expect("key")
    }

    /// Keeps a passkey that the person votes with from now on.
    pub fn keep_passkey(&self, name: &str, passkey: SoftwareAuthenticator) {
        let mut kept = self.passkeys.lock().expect("passkeys");
        kept.push((name.to_owned(), Arc::new(passkey)));
    }

    /// The person's kept passkey among these credentials, in base64url.
    pub fn passkey_among(
        &self,
        name: &str,
        credentials: &[String],
    ) -> Option<Arc<SoftwareAuthenticator>> {
        let kept = self.passkeys.lock().expect("passkeys");
        let found = kept.iter().find(|(of, passkey)| {
            of == name && credentials.contains(&URL_SAFE_NO_PAD.encode(passkey.credential()))
        });
        found.map(|(_, passkey)| Arc::clone(passkey))
    }

    /// A key of a person or service with its private half.
    pub fn own_key(&self, name: &str) -> OwnKey {
        OwnKey::of(&self.pkcs8[name])
    }

    /// A person's private key as a PEM file.
    pub fn pem_of(&self, name: &str) -> String {
        SigningKey::to_pem(&self.pkcs8[name]).to_string()
    }

    pub fn trust_bundle(&self) -> String {
        let kid = KeyId::from_thumbprint(self.signer.thumbprint());
        json!({ "keys": [self.signer.public().to_jwk_named(&kid, Usage::JwtSvid)], "spiffe_sequence": 1 }).to_string()
    }

    /// A JWT-SVID for a SPIFFE ID, as the trust domain would issue it.
    pub fn svid(&self, spiffe_id: &str, now: Timestamp, life_s: i64) -> Secret {
        self.svid_for(URL, spiffe_id, now, life_s)
    }

    pub fn svid_for(&self, audience: &str, spiffe_id: &str, now: Timestamp, life_s: i64) -> Secret {
        self.svid_with(json!({ "sub": spiffe_id, "aud": [audience], "iat": now.secs(), "exp": now.secs() + life_s }))
    }

    /// Evidence that an agent of the trust domain keeps fresh: the newest of those issued every 200 s for two hours.
    pub fn fresh_evidence(&self, audience: &str, spiffe_id: &str, clock: &Clock) -> EvidenceSource {
        let first = clock.now();
        let issued: Vec<_> = (0..36)
            .map(|n| first.plus_secs(200 * n))
            .map(|at| (at, self.svid_for(audience, spiffe_id, at, 3_600)))
            .collect();
        let clock = clock.clone();
        EvidenceSource::Fn(std::sync::Arc::new(move || {
            let now = clock.now();
            let newest = issued.iter().rev().find(|(at, _)| *at <= now);
            let evidence = newest.map(|(_, svid)| svid.clone());
            evidence.ok_or_else(|| "the clock went back".to_owned())
        }))
    }

    /// Signs any claims, also those that no real signer would write.
    pub fn svid_with(&self, claims: serde_json::Value) -> Secret {
        let kid = KeyId::from_thumbprint(self.signer.thumbprint());
        let part = |v: &serde_json::Value| URL_SAFE_NO_PAD.encode(v.to_string());
        let signed = format!(
            "{}.{}",
            part(&json!({ "alg": "ES256", "kid": kid, "typ": "JWT" })),
            part(&claims)
        );
        let signature = self.signer.sign(signed.as_bytes()).expect("signed");
        Secret::new(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    /// The policy bundle without a person and their key.
    pub fn without_person(&self, id: &str) -> BTreeMap<String, String> {
        let mut files = self.policy_with("people.toml", |text| {
            let (before, _, after) = around_person(text, id);
            format!("{before}{after}").replace(&self.own_key(id).row(id), "")
        });
        silence_quorum_without(&mut files, id);
        files
    }

    /// The policy bundle in which an approver has no role.
    pub fn without_role(&self, id: &str) -> BTreeMap<String, String> {
        let mut files = self.policy_with("people.toml", |text| {
            let (before, person, after) = around_person(text, id);
            let roleless = person.replace("roles = [\"approver\"]", "roles = []");
            assert_ne!(roleless, person);
            format!("{before}{roleless}{after}")
        });
        silence_quorum_without(&mut files, id);
        files
    }

    /// The policy bundle with one file changed.
    pub fn policy_with(
        &self,
        path: &str,
        change: impl FnOnce(&str) -> String,
    ) -> BTreeMap<String, String> {
        let mut files = self.policy.clone();
        let changed = change(files.get(path).map_or("", String::as_str));
        files.insert(path.to_owned(), changed);
        files
    }
}

/// The text of `people.toml` before the table of a person, the table, and the text after it.
pub fn around_person<'a>(text: &'a str, id: &str) -> (&'a str, &'a str, &'a str) {
    let from = text
        .find(&format!("[[person]]\nid = \"{id}\""))
        .expect("a person");
    let (before, rest) = text.split_at(from);
    let end = rest[2..].find("[[").expect("another table") + 2;
    let (person, after) = rest.split_at(end);
    (before, person, after)
}

/// Silences that two-security has too few approvers beside the owner, where that is so without this person.
fn silence_quorum_without(files: &mut BTreeMap<String, String>, id: &str) {
    let of_group = |person: &str| {
        ["groups = [\"security\"]", "roles = [\"approver\""]
            .iter()
            .all(|part| person.contains(part))
    };
    let people = files.get("people.toml").expect("people");
    let others = people.split("[[person]]").filter(|person| of_group(person));
    let others = others.filter(|person| !person.contains("id = \"dana\""));
    if ["dana", "maria", "lee"].contains(&id) && others.count() < 2 {
        silence(files, "quorum-unreachable", "two-security");
    }
}

/// Says in a bundle that a finding of the check about a rule, agent, action or profile is intended.
pub fn silence(files: &mut BTreeMap<String, String>, check: &str, of: &str) {
    let checks = files.entry("checks.toml".to_owned()).or_default();
    checks.push_str(&format!(
        "[[silence]]\ncheck = \"{check}\"\nof = \"{of}\"\nreason = \"a test\"\n\n"
    ));
}

/// Writes a policy bundle below a directory.
pub fn write_policy(dir: &Path, files: &BTreeMap<String, String>) {
    for (path, text) in files {
        let path = dir.join(path);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a directory");
        std::fs::write(path, text).expect("written");
    }
}

/// Approval limits switched off.
pub const NO_LIMITS: &str = "[approvals]\nasks_per_minute = 100000\nopens_per_minute = 0\ndwell = \"off\"\nback_off = []\nquarantine = 0\n";

/// The policy bundle of `examples/soc`.
pub fn soc() -> BTreeMap<String, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/soc");
    let mut files = BTreeMap::new();
    for folder in ["", "rules/"] {
        for found in std::fs::read_dir(root.join(folder)).expect("example") {
            let found = found.expect("example");
            let path = format!("{folder}{}", found.file_name().to_str().expect("name"));
            // A test changes the bundle as it likes.
            if found.path().is_file() && !["README.md", "tests.toml"].contains(&path.as_str()) {
                let text = std::fs::read_to_string(found.path()).expect("example");
                files.insert(path, text);
            }
        }
    }
    files
}
