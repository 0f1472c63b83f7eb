//! How the command comes to use its token: as given, or as it was given first.

use std::path::PathBuf;

use clap::Args;
use serde::{Deserialize, Serialize};

use super::deliver::Way;
use super::origin::{Origin, Where};
use crate::cli::failure::{Failure, failed};
use crate::model::Audience;

/// How the command comes to use the token, and where. With --request, what is not given is as it was given first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Means {
    /// How the command comes to use the token [default: proxy]
    #[arg(long, value_enum)]
    pub(super) deliver: Option<Way>,
    /// Where the audience is really reached [default: the audience itself]
    #[arg(long, value_name = "URL")]
    pub(super) audience_url: Option<String>,
    /// Certificate authorities (PEM) that the audience is checked by [default: the system's]
    #[arg(long, value_name = "FILE")]
    pub(super) audience_ca: Option<PathBuf>,
    /// Accept an audience over plain http that is not on this machine
    #[arg(long)]
    pub(super) insecure_audience: bool,
}

impl Means {
    pub(super) fn way(&self) -> Way {
        self.deliver.unwrap_or(Way::Proxy)
    }

    /// These, and for what they leave open the earlier ones. That one place over http was accepted says nothing of another.
    pub(super) fn or(self, earlier: Self) -> Self {
        let same_place = self.audience_url.is_none() || self.audience_url == earlier.audience_url;
        Self {
            deliver: self.deliver.or(earlier.deliver),
            insecure_audience: self.insecure_audience || (same_place && earlier.insecure_audience),
            audience_url: self.audience_url.or(earlier.audience_url),
            audience_ca: self.audience_ca.or(earlier.audience_ca),
        }
    }

    /// The same from whatever directory it is read.
    pub(super) fn anywhere(&self) -> Result<Self, Failure> {
        let ca = self.audience_ca.as_ref();
        let whole = |file: &PathBuf| std::path::absolute(file).map_err(failed(file.display()));
        Ok(Self {
            audience_ca: ca.map(whole).transpose()?,
            ..self.clone()
        })
    }

    pub(super) fn origin(&self, audience: &Audience) -> Result<Origin, Failure> {
        Origin::new(Where {
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
    fn what_is_given_again_wins_and_an_accepted_place_is_one_place() {
        let earlier = || Means {
            deliver: Some(Way::Fd),
            audience_url: Some("http://idp.example".to_owned()),
            audience_ca: Some("/ca.pem".into()),
            insecure_audience: true,
        };
        assert_eq!(Means::default().or(earlier()), earlier());
        let given = Means {
            deliver: Some(Way::Proxy),
            audience_url: Some("http://idp2.example".to_owned()),
            ..Means::default()
        };
        let both = given.or(earlier());
        assert_eq!(both.way(), Way::Proxy);
        assert_eq!(both.audience_url.as_deref(), Some("http://idp2.example"));
        assert_eq!(both.audience_ca, earlier().audience_ca);
        assert!(!both.insecure_audience, "accepted for another place");
        assert_eq!(Means::default().way(), Way::Proxy);
    }
}
