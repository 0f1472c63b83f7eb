//! Connection settings: the caller's key and the broker to call.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::Common;
use super::dev::DevConfig;
use super::error::CliError;
use crate::client::{ApproverClient, ConnectOptions, Endpoint, OperatorClient};
use crate::jose::SigningKey;
use crate::keys;
use crate::model::text::nearest_word;
use crate::model::{HttpOrigin, Realm};

/// The caller's own key.
#[derive(Debug, Clone, Args)]
pub(super) struct KeyArgs {
    /// Your private key, registered for you in people.toml
    #[arg(long, value_name = "FILE", env = "DIPYLON_KEY")]
    key: Option<PathBuf>,
    /// In development: use the key of this person or service
    #[arg(long = "as", id = "person", value_name = "ID", conflicts_with = "key")]
    person: Option<String>,
}

impl KeyArgs {
    #[cfg(test)]
    pub(super) fn from_file(key: PathBuf) -> Self {
        Self {
            key: Some(key),
            person: None,
        }
    }

    /// Whether a key was given.
    pub(super) const fn is_given(&self) -> bool {
        self.key.is_some() || self.person.is_some()
    }

    pub(super) fn key(&self, common: &Common) -> Result<Arc<SigningKey>, CliError> {
        let path = match (&self.key, &self.person) {
            (_, Some(person))
                if person
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') =>
            {
                development_key(&DevConfig::load(common)?, person)?
            }
            (Some(key), None) => key.clone(),
            (_, Some(_)) | (None, None) => {
                return Err(CliError::usage(
                    "no key given: use --key FILE or DIPYLON_KEY, or --as ID in development",
                ));
            }
        };
        Ok(Arc::new(keys::read(&path)?))
    }

    pub(super) fn approver_client(&self, common: &Common) -> Result<ApproverClient, CliError> {
        Ok(ApproverClient::new(endpoint(common)?, self.key(common)?))
    }

    pub(super) fn operator_client(&self, common: &Common) -> Result<OperatorClient, CliError> {
        Ok(OperatorClient::new(endpoint(common)?, self.key(common)?))
    }
}

/// The key file of a person or service of the development broker.
fn development_key(dev_config: &DevConfig, person: &str) -> Result<PathBuf, CliError> {
    let path = dev_config.key_file(person);
    if path.exists() {
        return Ok(path);
    }
    let files = path.parent().map(std::fs::read_dir);
    let mut known: Vec<String> = files
        .into_iter()
        .flatten()
        .flatten()
        .flatten()
        .filter_map(|file| {
            let name = file.file_name().into_string().ok()?;
            name.strip_suffix(".pem").map(str::to_owned)
        })
        .collect();
    known.sort();
    let near = did_you_mean(person, known.iter().map(String::as_str));
    Err(
        CliError::usage(format!("there is no development key for `{person}`{near}"))
            .with_next_step(format!("there are keys for {}", known.join(", "))),
    )
}

/// ` (did you mean `…`?)` with the known name nearest to `name`, when one is near.
pub(super) fn did_you_mean<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    nearest_word(name, known).map_or_else(String::new, |near| format!(" (did you mean `{near}`?)"))
}

/// The broker given by the arguments, or else the development broker.
pub(super) fn endpoint(common: &Common) -> Result<Endpoint, CliError> {
    let url = match &common.url {
        Some(url) => url.clone(),
        None => {
            let dev_config = DevConfig::load(common).map_err(|_| {
                CliError::usage("no broker URL given, and no development broker is set up")
                    .with_next_step(
                        "use --url URL or DIPYLON_URL, or start one with 'dipylon serve --dev'",
                    )
            })?;
            dev_config.config().settings.external_url.to_string()
        }
    };
    Ok(Endpoint::connect_with(&url, &connect_options(common))?)
}

/// The connection options given by the arguments.
pub(super) fn connect_options(common: &Common) -> ConnectOptions {
    ConnectOptions {
        ca: common.ca.clone(),
        socket: common.socket.clone(),
        allow_plain_http: common.allow_plain_http,
    }
}

/// The realm of a vote, from the voter's own configuration: never from the broker, which could name another.
pub(super) fn realm(common: &Common, given: Option<Realm>) -> Result<Realm, CliError> {
    if let Some(realm) = given {
        return Ok(realm);
    }
    let dev_config = DevConfig::load(common).ok();
    let matching = dev_config.filter(|dev_config| {
        common
            .url
            .as_ref()
            .is_none_or(|url| is_same_url(url, dev_config.config().settings.external_url.as_str()))
    });
    let realm = matching.map(|dev_config| dev_config.config().settings.realm.clone());
    realm.ok_or_else(|| CliError::usage("no realm given: use --realm REALM or DIPYLON_REALM"))
}

/// Whether two spellings of a broker's URL name one broker.
pub(super) fn is_same_url(left: &str, right: &str) -> bool {
    let origin = |url| HttpOrigin::parse("url", url).ok();
    left == right || origin(left).is_some_and(|left| origin(right) == Some(left))
}
