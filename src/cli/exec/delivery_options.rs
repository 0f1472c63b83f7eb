//! Delivery options of `exec`; with `--resume`, missing ones default to the saved ones.

use std::path::PathBuf;

use clap::Args;
use hyper::header::HeaderName;
use serde::{Deserialize, Serialize};

use super::delivery::DeliveryMode;
use super::headers;
use super::upstream::{Upstream, UpstreamArgs};
use crate::cli::error::{CliError, io_error};
use crate::model::Audience;

/// How the command uses the token, and where the audience is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DeliveryOptions {
    /// How the command uses the token [default: proxy]
    #[arg(long, value_enum)]
    pub(super) deliver: Option<DeliveryMode>,
    /// Base URL at which the audience is reached [default: the audience itself]
    #[arg(long, value_name = "URL")]
    pub(super) audience_url: Option<String>,
    /// Certificate authorities (PEM) trusted for the audience [default: the system's]
    #[arg(long, value_name = "FILE")]
    pub(super) audience_ca: Option<PathBuf>,
    /// Allow plain http to an audience that is not on this machine
    #[arg(long)]
    pub(super) insecure_audience: bool,
    /// Another request header that the proxy passes on; may be repeated
    #[arg(long = "forward-header", value_name = "NAME", value_parser = forwarded)]
    #[serde(default)]
    pub(super) forward_headers: Vec<String>,
}

/// The lower-case name of a header that may be passed on.
fn forwarded(name: &str) -> Result<String, String> {
    headers::forwarded(name).map(|name| name.as_str().to_owned())
}

impl DeliveryOptions {
    pub(super) fn mode(&self) -> DeliveryMode {
        self.deliver.unwrap_or(DeliveryMode::Proxy)
    }

    /// These options, with missing ones from `earlier`. --insecure-audience holds for the audience URL it was given for.
    pub(super) fn with_defaults_from(self, earlier: Self) -> Self {
        let same_url = self.audience_url.is_none() || self.audience_url == earlier.audience_url;
        Self {
            deliver: self.deliver.or(earlier.deliver),
            insecure_audience: self.insecure_audience || (same_url && earlier.insecure_audience),
            audience_url: self.audience_url.or(earlier.audience_url),
            audience_ca: self.audience_ca.or(earlier.audience_ca),
            // A new list replaces the earlier one.
            forward_headers: match self.forward_headers.is_empty() {
                true => earlier.forward_headers,
                false => self.forward_headers,
            },
        }
    }

    /// The same with paths independent of the working directory.
    pub(super) fn absolute_paths(&self) -> Result<Self, CliError> {
        let ca = self.audience_ca.as_ref();
        let absolute = |file: &PathBuf| std::path::absolute(file).map_err(io_error(file.display()));
        Ok(Self {
            audience_ca: ca.map(absolute).transpose()?,
            ..self.clone()
        })
    }

    /// The headers that the proxy passes, checked again: the saved file may have been edited.
    pub(super) fn forwarded(&self) -> Result<Vec<HeaderName>, CliError> {
        let names = self.forward_headers.iter();
        names
            .map(|name| headers::forwarded(name).map_err(CliError::usage))
            .collect()
    }

    pub(super) fn upstream(&self, audience: &Audience) -> Result<Upstream, CliError> {
        Upstream::new(UpstreamArgs {
            url: self.audience_url.as_deref().unwrap_or(audience.as_str()),
            ca: self.audience_ca.as_deref(),
            insecure: self.insecure_audience,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn explicit_options_override_saved_ones() {
        let earlier = || DeliveryOptions {
            deliver: Some(DeliveryMode::Fd),
            audience_url: Some("http://idp.example".to_owned()),
            audience_ca: Some("/ca.pem".into()),
            insecure_audience: true,
            forward_headers: vec!["x-own".to_owned()],
        };
        assert_eq!(
            DeliveryOptions::default().with_defaults_from(earlier()),
            earlier()
        );
        let given = DeliveryOptions {
            deliver: Some(DeliveryMode::Proxy),
            audience_url: Some("http://idp2.example".to_owned()),
            forward_headers: vec!["x-two".to_owned()],
            ..DeliveryOptions::default()
        };
        let both = given.with_defaults_from(earlier());
        assert_eq!(both.mode(), DeliveryMode::Proxy);
        assert_eq!(both.audience_url.as_deref(), Some("http://idp2.example"));
        assert_eq!(both.audience_ca, earlier().audience_ca);
        assert_eq!(both.forward_headers, ["x-two"], "the new list");
        assert!(!both.insecure_audience, "accepted for another URL");
        assert_eq!(DeliveryOptions::default().mode(), DeliveryMode::Proxy);
    }
}
