//! Recoveries of the operators in this process, and policy bundles with other keys of people.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use dipylon::broker::{OperatorsRecovered, RecoveryError, RecoveryOptions, recover_operators};
use dipylon::journal::{FaultInjection, OpenError};
use dipylon::policy::{BundleFiles, PolicyBundle};
use dipylon_sdk::clock::Clock;
use dipylon_sdk::jose::SigningKey;
use dipylon_sdk::model::*;

use crate::support::TestEnvironment;

/// A new key, with its PKCS#8.
pub fn new_key() -> (SigningKey, Vec<u8>) {
    let (key, secret) = SigningKey::generate().expect("key");
    (key, secret.to_vec())
}

/// The `[[key]]` of a person in `people.toml`.
fn key_block(person: &str, key: &SigningKey) -> String {
    let jwk = key.public().to_jwk();
    let (x, y) = (&jwk["x"], &jwk["y"]);
    format!(
        "\n[[key]]\nof = \"{person}\"\njwk = {{ kty = \"EC\", crv = \"P-256\", x = {x}, y = {y} }}\n"
    )
}

/// The bundle with another key of a person, in place of those that it registers.
pub fn with_key(env: &TestEnvironment, person: &str, key: &SigningKey) -> BTreeMap<String, String> {
    env.policy_with("people.toml", |text| {
        let own = format!("\n[[key]]\nof = \"{person}\"\n");
        let mut parts = text.split(&own);
        let mut kept = parts.next().expect("a part").to_owned();
        for part in parts {
            kept.push_str(part.split_once('\n').expect("a line of the key").1);
        }
        kept + &key_block(person, key)
    })
}

/// A recovery on the directory of a broker that was dropped.
pub async fn recover(
    dir: &Path,
    clock: &Clock,
    files: BTreeMap<String, String>,
    operators_lost: bool,
) -> Result<OperatorsRecovered, RecoveryError> {
    recover_with(dir, clock, files, operators_lost, FaultInjection::default()).await
}

/// The same with faults of the journal.
pub async fn recover_with(
    dir: &Path,
    clock: &Clock,
    files: BTreeMap<String, String>,
    operators_lost: bool,
    faults: FaultInjection,
) -> Result<OperatorsRecovered, RecoveryError> {
    let files = BundleFiles::new(files).expect("files");
    for _ in 0..200 {
        let options = RecoveryOptions {
            data_dir: dir.to_owned(),
            realm: crate::support::settings().realm,
            files: files.clone(),
            returning: BTreeSet::new(),
            recovery: OperatorRecovery {
                reason: RecoveryReason::parse("olga's laptop <b>burnt</b>").expect("reason"),
                host_user: HostUser::claimed(1_000, Some("ann"), None),
                operators_lost,
            },
            clock: clock.clone(),
            faults: faults.clone(),
        };
        let bundle = PolicyBundle::load(&files).expect("loads");
        match recover_operators(options, bundle).await {
            // The broker's writer may still hold the lock.
            Err(RecoveryError::Open(OpenError::Locked(_))) => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            other => return other,
        }
    }
    panic!("the journal stays locked");
}
