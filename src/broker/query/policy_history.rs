//! Policy bundles that were ever in force: when each came in force, how and by whom, and the files of one.
//!
//! Reads only: a crash here leaves nothing. The entry that put a bundle in force names the entry before it, by the version that the
//! policy's stream had, so the history is read from the newest back and no part of it is kept in memory.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use super::receipt::version_in;
use crate::broker::governance::proposal::stored_bundle;
use crate::broker::{Broker, CallContext, Refusal};
use crate::journal::Journal;
use crate::model::*;
use crate::policy::BundleFiles;
use crate::state::{AccessRequest, Shown};

/// A policy bundle that came in force.
#[derive(Debug, Clone)]
pub struct PolicyBundleRecord {
    /// Its entry.
    pub index: u64,
    /// When.
    pub at: Timestamp,
    /// What the entry says.
    pub applied: PolicyApplied,
}

/// How a policy bundle came in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PolicyBundleOrigin {
    /// The configuration seeded an empty journal.
    Seed,
    /// One operator applied it.
    Alone,
    /// An operator proposed it, and others agreed.
    Agreed,
    /// The owner of the broker's host recovered the operators.
    Recovery,
}

impl PolicyBundleOrigin {
    /// Its word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Seed => "seed",
            Self::Alone => "alone",
            Self::Agreed => "agreed",
            Self::Recovery => "recovery",
        }
    }
}

impl PolicyBundleRecord {
    /// How it came in force.
    pub const fn origin(&self) -> PolicyBundleOrigin {
        let PolicyApplied {
            by,
            recovery,
            proposal,
            ..
        } = &self.applied;
        match (recovery, proposal, by) {
            (Some(_), _, _) => PolicyBundleOrigin::Recovery,
            (None, Some(_), _) => PolicyBundleOrigin::Agreed,
            (None, None, Some(_)) => PolicyBundleOrigin::Alone,
            (None, None, None) => PolicyBundleOrigin::Seed,
        }
    }
}

/// A part of the history, and what waits to become a part of it.
#[derive(Debug)]
pub struct PolicyHistoryPage {
    /// Newest first.
    pub bundles: Vec<PolicyBundleRecord>,
    /// Proposals that wait, by their expiry; none but on the first page.
    pub proposals: Vec<Shown<AccessRequest>>,
}

/// A policy bundle that a caller names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PolicyBundleSelector {
    /// The one in force.
    InForce,
    /// The one whose version begins so.
    Version(DigestPrefix),
}

impl PolicyBundleSelector {
    /// Reads a version or its first characters; an empty text names the bundle in force.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        match text {
            "" => Ok(Self::InForce),
            text => DigestPrefix::parse(text).map(Self::Version),
        }
    }

    /// Keeps the next version, from the newest back, if it is named; whether an older one can be named, too.
    fn visit(&self, version: Digest, found: &mut BTreeSet<Digest>) -> ControlFlow<()> {
        match self {
            Self::InForce => {
                found.insert(version);
                ControlFlow::Break(())
            }
            Self::Version(prefix) => {
                if prefix.matches(&version) {
                    found.insert(version);
                }
                ControlFlow::Continue(())
            }
        }
    }
}

/// A policy bundle for its caller.
#[derive(Debug)]
pub struct PolicyBundleReply {
    /// The operator or auditor who asked.
    pub caller: String,
    /// The bundle.
    pub files: BundleFiles,
}

/// Why a bundle is not returned.
#[derive(Debug, PartialEq, Eq)]
enum BundleNotFound {
    /// No such version was ever in force.
    Unknown,
    /// So many versions begin so.
    Ambiguous(usize),
    /// The journal cannot be read.
    Unreadable(String),
}

impl Broker {
    /// At most `max` bundles that came in force, newest first, from the one before the entry `after`; and, on the first page, the
    /// proposals that wait.
    pub async fn policy_history(
        &self,
        call: &CallContext,
        after: Option<u64>,
        max: usize,
    ) -> Result<PolicyHistoryPage, Refusal> {
        let now = self.now();
        self.authenticate_reader(call, now)?;
        let from = match after {
            Some(index) => Some(index),
            None => self.last_policy_entry().await,
        };
        let journal = self.journal.clone();
        let read = move || {
            let mut bundles = Vec::new();
            each_bundle_from(&journal, from, |record| {
                if Some(record.index) != after {
                    bundles.push(record);
                }
                match bundles.len() < max {
                    true => ControlFlow::Continue(()),
                    false => ControlFlow::Break(()),
                }
            })
            .map(|()| bundles)
        };
        let read = tokio::task::spawn_blocking(read).await;
        let bundles = read.unwrap_or_else(|e| Err(e.to_string()));
        let bundles =
            bundles.map_err(|why| self.refuse(call.method, Reason::JournalUnavailable, why))?;
        let mut proposals = Vec::new();
        if after.is_none() {
            proposals = self.show().pending_requests(now);
            proposals.retain(|request| request.opened.by_person().is_some());
            proposals
                .sort_by_key(|request| (request.opened.expires_at, request.opened.access_request));
        }
        Ok(PolicyHistoryPage { bundles, proposals })
    }

    /// The files of a policy bundle that is or was in force.
    pub async fn policy_bundle(
        &self,
        call: &CallContext,
        selector: PolicyBundleSelector,
    ) -> Result<PolicyBundleReply, Refusal> {
        let caller = self.authenticate_reader(call, self.now())?;
        let last = self.last_policy_entry().await;
        let journal = self.journal.clone();
        let read = move || {
            let version = select(&journal, last, &selector)?;
            stored_bundle(&journal, &version).map_err(BundleNotFound::Unreadable)
        };
        let read = tokio::task::spawn_blocking(read).await;
        let read = read.unwrap_or_else(|e| Err(BundleNotFound::Unreadable(e.to_string())));
        let files = read.map_err(|why| match why {
            BundleNotFound::Unknown => {
                let message = "no policy bundle of this version was ever in force";
                self.refuse(call.method, Reason::NotFound, message)
            }
            BundleNotFound::Ambiguous(n) => {
                let rule = format!("{n} bundles that were in force begin so: give more characters");
                self.malformed(call.method, &ParseError::new("version", rule))
            }
            BundleNotFound::Unreadable(why) => {
                self.refuse(call.method, Reason::JournalUnavailable, why)
            }
        })?;
        Ok(PolicyBundleReply { caller, files })
    }

    /// Index of the last entry that advanced the policy's stream.
    async fn last_policy_entry(&self) -> Option<u64> {
        self.answer(|read| read.last_entry(&Stream::Policy)).await
    }
}

/// The version that a caller names. Blocks.
fn select(
    journal: &Journal,
    last: Option<u64>,
    selector: &PolicyBundleSelector,
) -> Result<Digest, BundleNotFound> {
    let mut found = BTreeSet::new();
    let read = each_bundle_from(journal, last, |record| {
        selector.visit(record.applied.version, &mut found)
    });
    read.map_err(BundleNotFound::Unreadable)?;
    only(&found)
}

/// The one version that was found.
fn only(found: &BTreeSet<Digest>) -> Result<Digest, BundleNotFound> {
    match (found.first(), found.len()) {
        (Some(version), 1) => Ok(*version),
        (None, _) => Err(BundleNotFound::Unknown),
        (Some(_), n) => Err(BundleNotFound::Ambiguous(n)),
    }
}

/// Each bundle that came in force, from the entry `from` of the policy's stream back to the first. Blocks.
fn each_bundle_from(
    journal: &Journal,
    mut from: Option<u64>,
    mut visit: impl FnMut(PolicyBundleRecord) -> ControlFlow<()>,
) -> Result<(), String> {
    while let Some(index) = from {
        let stored = journal.entry(index).map_err(|e| e.to_string())?;
        let stored = stored.ok_or_else(|| format!("entry {index} is missing"))?;
        let entry = Entry::parse(&stored.text).map_err(|e| format!("entry {index}: {e}"))?;
        from = version_in(&entry.write_set, &Stream::Policy);
        // A revocation of a stolen key advances the stream, too.
        if let Event::PolicyApplied(applied) = entry.event {
            let record = PolicyBundleRecord {
                index,
                at: entry.at,
                applied,
            };
            if visit(record).is_break() {
                break;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The version that a text names among others, newest first.
    fn named(text: &str, versions: &[Digest]) -> Result<Digest, BundleNotFound> {
        let selector = PolicyBundleSelector::parse(text).expect("a selector");
        let mut found = BTreeSet::new();
        for version in versions {
            if selector.visit(*version, &mut found).is_break() {
                break;
            }
        }
        only(&found)
    }

    #[test]
    fn a_prefix_names_one_version_or_none() {
        // Six bytes are eight characters.
        let digest = |seventh: u8| {
            let mut bytes = [7; 32];
            bytes[6] = seventh;
            Digest::from_bytes(bytes)
        };
        let (one, two, three) = (digest(1), digest(2), Digest::from_bytes([9; 32]));
        // The first came in force twice.
        let history = [one, three, two, one];
        let text = one.to_string();
        assert_eq!(named(&text, &history), Ok(one));
        assert_eq!(
            named(&text[..8], &history),
            Err(BundleNotFound::Ambiguous(2))
        );
        assert_eq!(named(&text[..8], &[one, three, one]), Ok(one));
        assert_eq!(named(&three.to_string()[..8], &history), Ok(three));
        assert_eq!(named("", &history), Ok(one));
        assert_eq!(named("", &[]), Err(BundleNotFound::Unknown));
        let never = Digest::from_bytes([8; 32]).to_string();
        assert_eq!(named(&never, &history), Err(BundleNotFound::Unknown));
    }
}
