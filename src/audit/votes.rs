//! Every vote once more, without its broker: whose it was, of what, and whether that was asked.
//!
//! An auditor has no configuration of the broker's, so the origin comes from the evidence: it stands in what the authenticator
//! signed, and the relying party is its host, as at the broker. Which origins votes were signed on is part of the report; that
//! they were the broker's own, whoever reads it knows.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::AuditError;
use crate::jose::PublicKey;
use crate::model::*;
use crate::policy::{BundleFiles, Method, Person, PolicyBundle, Profile};
use crate::webauthn::{self, Assertion, AssertionEvidenceError, WebauthnError};

/// Why a vote on record proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum WrongVote {
    /// The policy bundle in force then does not know the voter.
    #[error("its voter was not registered then")]
    Stranger,
    /// The policy bundle in force then has no such profile, or another one of that name.
    #[error("its profile was not in force then")]
    Profile,
    /// By a key of `people.toml`, for a profile that takes passkeys alone.
    #[error("it is not by passkey, and its profile takes passkeys alone")]
    NotByPasskey,
    /// No such access request waited then.
    #[error("its access request did not wait then")]
    NotAsked,
    /// The signed statement cannot be read.
    #[error("its statement cannot be read")]
    Statement,
    /// The entry says something else than the signed statement.
    #[error("its statement has another {0} than the entry")]
    Differs(&'static str),
    /// The signed statement is not of what was asked.
    #[error("its statement has another {0} than the access request")]
    AskedElse(&'static str),
    /// The key was not the voter's then, or was revoked before.
    #[error("its key was not, or no longer, the voter's then")]
    Key,
    /// A key's signature does not verify.
    #[error("its signature does not verify")]
    Signature,
    /// The evidence is not what an assertion leaves, or it is missing, or there where it must not be.
    #[error("its evidence is not that of an assertion")]
    NoEvidence,
    /// The evidence cannot be read.
    #[error("its evidence: {0}")]
    Evidence(#[from] AssertionEvidenceError),
    /// A check of WebAuthn fails.
    #[error("its passkey: {0}")]
    Passkey(#[from] WebauthnError),
}

/// Votes that prove what they say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VotesChecked {
    /// By keys of `people.toml`.
    pub by_key: u64,
    /// By passkeys.
    pub by_passkey: u64,
    /// The origins that passkeys were used on.
    pub origins: BTreeSet<String>,
}

/// The walk of the votes: feed it every entry in order.
#[derive(Debug, Default)]
pub struct Votes {
    realm: Option<Realm>,
    people: BTreeMap<PersonId, Person>,
    profiles: BTreeMap<ProfileName, Profile>,
    passkeys: HashMap<Thumbprint, (PersonId, PasskeyOnRecord)>,
    revoked: HashSet<Thumbprint>,
    tasks: HashMap<TaskId, Thumbprint>,
    waiting: HashMap<AccessRequestId, Arc<AccessRequestOpened>>,
    checked: VotesChecked,
}

impl Votes {
    /// Takes in the next entry, and checks it if it is a vote. `blob` finds blobs by their names; their content is not
    /// believed either.
    pub fn entry<E: From<AuditError>>(
        &mut self,
        entry: &Entry,
        blob: impl Fn(&Digest) -> Result<Option<Arc<str>>, E>,
    ) -> Result<(), E> {
        let read = |name: &Digest| -> Result<Arc<str>, E> {
            let missing = AuditError::BlobMissing {
                count: 1,
                first: *name,
            };
            let text = blob(name)?.ok_or(missing)?;
            if Digest::of(text.as_bytes()) == *name {
                Ok(text)
            } else {
                Err(AuditError::BlobChanged(*name).into())
            }
        };
        match &entry.fact {
            Event::EpochStarted(f) => self.realm = Some(f.realm.clone()),
            Event::PolicyApplied(f) => self.on_policy(&read(&f.version)?),
            Event::ApproverEnrolled(f) => {
                let of = (f.person.clone(), f.passkey.clone());
                self.passkeys.insert(f.passkey.key, of);
            }
            Event::ApproverKeysRevoked(f) => self.revoked.extend(&f.keys),
            Event::TaskOpened(f) => {
                self.tasks.insert(f.task, f.binding.jkt());
            }
            Event::TaskEnded(f) => {
                for task in &f.tasks {
                    self.tasks.remove(task);
                }
                self.waiting
                    .retain(|_, opened| !f.tasks.contains(&opened.task));
            }
            Event::AccessRequestOpened(f) => {
                self.waiting.insert(f.access_request, Arc::new(f.clone()));
            }
            Event::AccessRequestClosed(f) => {
                self.waiting.remove(&f.access_request);
            }
            Event::TokenIssued(f) => {
                f.consumed.map(|id| self.waiting.remove(&id));
            }
            Event::VoteCast(f) => {
                let opened = self.waiting.get(&f.access_request).map(Arc::clone);
                let secret = opened.as_ref().and_then(|o| o.secret);
                let secret = secret.map(|name| read(&name)).transpose()?;
                let statement = read(&f.statement)?;
                let evidence = f.assertion.map(|name| read(&name)).transpose()?;
                self.check(
                    f,
                    opened.as_deref(),
                    secret.as_deref(),
                    &statement,
                    evidence.as_deref(),
                )
                .map_err(|why| AuditError::Vote {
                    index: entry.index,
                    why,
                })?;
                // One no ends it.
                if f.verdict == Verdict::Deny {
                    self.waiting.remove(&f.access_request);
                }
            }
            Event::TrustBundleChanged(_)
            | Event::KeyPublished(_)
            | Event::AgentSuspended(_)
            | Event::AgentResumed(_)
            | Event::Frozen(_)
            | Event::Unfrozen(_)
            | Event::LeasesExtended(_)
            | Event::RequestDenied(_)
            | Event::VoteRefused(_)
            | Event::ApproverInvited(_)
            | Event::TokenReissued(_)
            | Event::TokenConsumed(_)
            | Event::GrantsEnded(_)
            | Event::RefusalsCounted(_) => {}
        }
        Ok(())
    }

    /// What was checked so far.
    pub fn checked(&self) -> &VotesChecked {
        &self.checked
    }

    /// A bundle that cannot be read leaves nobody registered: no vote rests on it.
    fn on_policy(&mut self, text: &str) {
        let read = BundleFiles::parse(text).and_then(|files| PolicyBundle::people_in(&files));
        (self.people, self.profiles) = read.unwrap_or_default();
    }

    /// INVARIANT (a vote on record is proved by what is on record): statement, evidence and signature belong to the entry, to
    /// what was asked, and to a key that was the voter's at that entry.
    fn check(
        &mut self,
        cast: &VoteCast,
        opened: Option<&AccessRequestOpened>,
        secret: Option<&str>,
        statement: &str,
        evidence: Option<&str>,
    ) -> Result<(), WrongVote> {
        let voter = self.people.get(&cast.voter).ok_or(WrongVote::Stranger)?;
        let profile = self
            .profiles
            .get(&cast.profile.name)
            .filter(|p| p.digest() == cast.profile.digest)
            .ok_or(WrongVote::Profile)?;
        let statement = VoteStatement::parse(statement).map_err(|_| WrongVote::Statement)?;
        self.is_of_the_entry(cast, &statement)?;
        self.is_of_what_was_asked(opened.ok_or(WrongVote::NotAsked)?, secret, &statement)?;
        if self.revoked.contains(&cast.key) {
            return Err(WrongVote::Key);
        }
        let digest = statement.digest().map_err(|_| WrongVote::Statement)?;
        let signature = URL_SAFE_NO_PAD
            .decode(&cast.signature)
            .map_err(|_| WrongVote::Signature)?;
        let Some(evidence) = evidence else {
            if profile.method == Method::Passkey {
                return Err(WrongVote::NotByPasskey);
            }
            if cast.sign_count.is_some() {
                return Err(WrongVote::NoEvidence);
            }
            let key = voter
                .keys
                .iter()
                .filter_map(|key| PublicKey::from_jwk(&key.jwk).ok())
                .find(|key| key.thumbprint() == cast.key)
                .ok_or(WrongVote::Key)?;
            if !key.verify(digest.as_bytes(), &signature) {
                return Err(WrongVote::Signature);
            }
            self.checked.by_key += 1;
            return Ok(());
        };
        let (_, passkey) = self
            .passkeys
            .get(&cast.key)
            .filter(|(holder, _)| *holder == cast.voter)
            .ok_or(WrongVote::Key)?;
        let assertion = Assertion::from_evidence(evidence, signature)?;
        if URL_SAFE_NO_PAD.encode(&assertion.credential) != passkey.credential {
            return Err(WrongVote::Key);
        }
        let party = assertion.party()?;
        let seen = webauthn::verify_assertion(
            &party,
            digest.as_bytes(),
            &passkey.jwk,
            passkey.backup_eligible,
            &assertion,
        )?;
        if cast.sign_count != Some(seen.sign_count) {
            return Err(WrongVote::Differs("signature counter"));
        }
        self.checked.by_passkey += 1;
        self.checked.origins.insert(party.origin);
        Ok(())
    }

    fn is_of_the_entry(&self, cast: &VoteCast, statement: &VoteStatement) -> Result<(), WrongVote> {
        let same = [
            ("realm", self.realm.as_ref() == Some(&statement.realm)),
            (
                "access request",
                statement.access_request_id == cast.access_request,
            ),
            ("verdict", statement.verdict == cast.verdict),
            ("profile", statement.profile == cast.profile),
            ("longest life", statement.max_ttl == cast.max_ttl),
            ("number of uses", statement.uses == cast.uses),
            (
                "end of its life",
                Timestamp::from_secs(statement.not_after) == cast.not_after,
            ),
        ];
        all(&same).map_err(WrongVote::Differs)
    }

    fn is_of_what_was_asked(
        &self,
        opened: &AccessRequestOpened,
        secret: Option<&str>,
        statement: &VoteStatement,
    ) -> Result<(), WrongVote> {
        let secret = secret.and_then(ActionSecret::from_blob);
        let action = opened.action.reopen(secret.as_ref()).ok();
        let uses = match (statement.uses, opened.uses) {
            (Some(uses), Some(bound)) => uses > 0 && uses <= bound,
            (Some(uses), None) => uses > 0,
            (None, bound) => bound.is_none(),
        };
        let same = [
            ("agent", statement.agent == opened.agent),
            ("owner", statement.owner == opened.owner),
            ("task", statement.task == opened.task),
            (
                "task key",
                self.tasks.get(&opened.task) == Some(&statement.task_key),
            ),
            (
                "action",
                action.is_some_and(|a| a.to_json() == statement.action),
            ),
            (
                "longest life",
                (1..=opened.max_ttl).contains(&statement.max_ttl),
            ),
            ("number of uses", uses),
        ];
        all(&same).map_err(WrongVote::AskedElse)
    }
}

/// The first that does not hold.
fn all(checks: &[(&'static str, bool)]) -> Result<(), &'static str> {
    match checks.iter().find(|(_, holds)| !holds) {
        None => Ok(()),
        Some((what, _)) => Err(what),
    }
}
