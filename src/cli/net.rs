//! Who calls which broker.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::Common;
use super::dev::Home;
use super::failure::Failure;
use crate::client::{ApproverClient, ConnectOptions, Endpoint, OperatorClient};
use crate::jose::SigningKey;
use crate::keys;
use crate::model::Realm;

/// The caller's own key.
#[derive(Debug, Clone, Args)]
pub(super) struct KeyArgs {
    /// Your private key, registered for you in people.toml
    #[arg(long, value_name = "FILE", env = "DIPYLON_KEY")]
    key: Option<PathBuf>,
    /// In development: act as this person or service
    #[arg(long = "as", id = "person", value_name = "ID", conflicts_with = "key")]
    person: Option<String>,
}

impl KeyArgs {
    #[cfg(test)]
    pub(super) fn of_file(key: PathBuf) -> Self {
        Self {
            key: Some(key),
            person: None,
        }
    }

    /// Whether a key was named at all.
    pub(super) const fn given(&self) -> bool {
        self.key.is_some() || self.person.is_some()
    }

    pub(super) fn key(&self, common: &Common) -> Result<Arc<SigningKey>, Failure> {
        let path = match (&self.key, &self.person) {
            (_, Some(person))
                if person
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') =>
            {
                Home::of(common)?.key_file(person)
            }
            (Some(key), None) => key.clone(),
            (_, Some(_)) | (None, None) => {
                return Err(Failure::usage(
                    "name your key: --key FILE, or --as ID in development",
                ));
            }
        };
        Ok(Arc::new(keys::read(&path)?))
    }

    pub(super) fn approver(&self, common: &Common) -> Result<ApproverClient, Failure> {
        Ok(ApproverClient::new(endpoint(common)?, self.key(common)?))
    }

    pub(super) fn operator(&self, common: &Common) -> Result<OperatorClient, Failure> {
        Ok(OperatorClient::new(endpoint(common)?, self.key(common)?))
    }
}

/// The broker that the arguments name, or else the development broker.
pub(super) fn endpoint(common: &Common) -> Result<Endpoint, Failure> {
    let url = match &common.url {
        Some(url) => url.clone(),
        None => {
            let home = Home::of(common).map_err(|_| {
                Failure::usage("which broker? --url URL or DIPYLON_URL names it")
                    .next("'dipylon serve --dev' starts one to try")
            })?;
            home.config().settings.external_url.clone()
        }
    };
    Ok(Endpoint::connect_with(&url, &reach(common))?)
}

/// How the broker is reached, as the arguments say.
pub(super) fn reach(common: &Common) -> ConnectOptions {
    ConnectOptions {
        ca: common.ca.clone(),
        socket: common.socket.clone(),
    }
}

/// The realm one votes in: as one's own configuration says, never as the broker does.
pub(super) fn realm(common: &Common, given: Option<Realm>) -> Result<Realm, Failure> {
    if let Some(realm) = given {
        return Ok(realm);
    }
    let home = Home::of(common).ok();
    let ours = home.filter(|home| {
        common
            .url
            .as_ref()
            .is_none_or(|url| same(url, &home.config().settings.external_url))
    });
    let realm = ours.map(|home| home.config().settings.realm.clone());
    realm.ok_or_else(|| {
        Failure::usage("which realm do you vote in? --realm REALM or DIPYLON_REALM names it")
    })
}

fn same(one: &str, other: &str) -> bool {
    one.trim_end_matches('/') == other.trim_end_matches('/')
}
