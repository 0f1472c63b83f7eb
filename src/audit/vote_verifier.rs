//! Vote verification: checks every vote in a journal again, offline: its voter, its statement and its access request.
//!
//! An auditor does not have the broker's configuration, so the origin comes from the evidence: the authenticator signed it,
//! and the relying party is its host, as at the broker. The report lists the origins; the auditor checks that they are the
//! broker's own.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::AuditError;
use crate::model::*;
use crate::policy::{BundleFiles, Person, PolicyBundle, StepUpProfile, VoteMethod};
use crate::webauthn::{self, Assertion, AssertionEvidenceError, WebauthnError};

/// Why a journalled vote cannot be verified.
#[derive(Debug, thiserror::Error)]
pub enum VoteError {
    /// The voter was not registered in the policy bundle active at the vote.
    #[error("its voter was not registered then")]
    VoterUnknown,
    /// The policy bundle active at the vote had no such profile, or another definition of it.
    #[error("its profile was not active then")]
    ProfileMismatch,
    /// The vote is by a key of `people.toml`, but its profile requires a passkey.
    #[error("its profile requires a passkey, and it was signed with a plain key")]
    PasskeyRequired,
    /// The access request was not pending at the vote.
    #[error("its access request was not pending then")]
    RequestNotPending,
    /// The signed statement cannot be read.
    #[error("its statement cannot be read")]
    Statement,
    /// The signed statement differs from the entry.
    #[error("its statement has another {0} than the entry")]
    EntryMismatch(&'static str),
    /// The signed statement differs from the access request.
    #[error("its statement has another {0} than the access request")]
    RequestMismatch(&'static str),
    /// The key was not the voter's at the vote, or was revoked before.
    #[error("its key was not an active key of the voter then")]
    KeyNotActive,
    /// A key's signature does not verify.
    #[error("its signature does not verify")]
    Signature,
    /// A signature counter without a passkey's evidence.
    #[error("it has a signature counter but no passkey evidence")]
    NoEvidence,
    /// The evidence cannot be read.
    #[error("its evidence: {0}")]
    Evidence(#[from] AssertionEvidenceError),
    /// A WebAuthn check fails.
    #[error("its passkey: {0}")]
    Passkey(#[from] WebauthnError),
}

/// Counts of verified votes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VoteReport {
    /// Votes by keys of `people.toml`.
    pub by_key: u64,
    /// Votes by passkeys.
    pub by_passkey: u64,
    /// The web origins on which passkeys signed.
    pub origins: BTreeSet<String>,
}

/// Verifies votes: give it every entry in order.
#[derive(Debug, Default)]
pub struct VoteVerifier {
    realm: Option<Realm>,
    people: BTreeMap<PersonId, Person>,
    profiles: BTreeMap<ProfileName, StepUpProfile>,
    passkeys: HashMap<Thumbprint, (PersonId, PasskeyOnRecord)>,
    revoked: HashSet<Thumbprint>,
    tasks: HashMap<TaskId, Thumbprint>,
    pending: HashMap<AccessRequestId, Arc<AccessRequestOpened>>,
    report: VoteReport,
}

impl VoteVerifier {
    /// Takes the next entry, and verifies it if it is a vote. `blob` finds a blob by its hash, which is checked.
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
            if Digest::sha256(text.as_bytes()) == *name {
                Ok(text)
            } else {
                Err(AuditError::BlobChanged(*name).into())
            }
        };
        match &entry.event {
            Event::EpochStarted(f) => self.realm = Some(f.realm.clone()),
            Event::PolicyApplied(f) => self.load_policy(&read(&f.version)?),
            Event::ApproverEnrolled(f) => {
                let passkey = (f.person.clone(), f.passkey.clone());
                self.passkeys.insert(f.passkey.key, passkey);
            }
            Event::ApproverKeysRevoked(f) => self.revoked.extend(&f.keys),
            Event::TaskOpened(f) => {
                self.tasks.insert(f.task, f.binding.jkt());
            }
            Event::TaskEnded(f) => {
                for task in &f.tasks {
                    self.tasks.remove(task);
                }
                self.pending
                    .retain(|_, opened| !f.tasks.contains(&opened.task));
            }
            Event::AccessRequestOpened(f) => {
                self.pending.insert(f.access_request, Arc::new(f.clone()));
            }
            Event::AccessRequestClosed(f) => {
                self.pending.remove(&f.access_request);
            }
            Event::TokenIssued(f) => {
                f.consumed.map(|id| self.pending.remove(&id));
            }
            Event::VoteCast(f) => {
                let opened = self.pending.get(&f.access_request).map(Arc::clone);
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
                // One denial closes it.
                if f.verdict == Verdict::Deny {
                    self.pending.remove(&f.access_request);
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

    /// The votes verified so far.
    pub fn report(&self) -> &VoteReport {
        &self.report
    }

    /// An unreadable bundle registers no person, so that no vote under it verifies.
    fn load_policy(&mut self, text: &str) {
        let read = BundleFiles::parse(text).and_then(|files| PolicyBundle::people_in(&files));
        (self.people, self.profiles) = read.unwrap_or_default();
    }

    /// INVARIANT (a vote on record is proved by what is on record): statement, evidence and signature match the entry, the
    /// access request, and a key that was the voter's at that entry.
    fn check(
        &mut self,
        cast: &VoteCast,
        opened: Option<&AccessRequestOpened>,
        secret: Option<&str>,
        statement: &str,
        evidence: Option<&str>,
    ) -> Result<(), VoteError> {
        let voter = self
            .people
            .get(&cast.voter)
            .ok_or(VoteError::VoterUnknown)?;
        let profile = self
            .profiles
            .get(&cast.profile.name)
            .filter(|p| p.digest() == cast.profile.digest)
            .ok_or(VoteError::ProfileMismatch)?;
        let statement = VoteStatement::parse(statement).map_err(|_| VoteError::Statement)?;
        self.matches_entry(cast, &statement)?;
        self.matches_request(
            opened.ok_or(VoteError::RequestNotPending)?,
            secret,
            &statement,
        )?;
        if self.revoked.contains(&cast.key) {
            return Err(VoteError::KeyNotActive);
        }
        let digest = statement.digest().map_err(|_| VoteError::Statement)?;
        let signature = URL_SAFE_NO_PAD
            .decode(&cast.signature)
            .map_err(|_| VoteError::Signature)?;
        let Some(evidence) = evidence else {
            if profile.method == VoteMethod::Passkey {
                return Err(VoteError::PasskeyRequired);
            }
            if cast.sign_count.is_some() {
                return Err(VoteError::NoEvidence);
            }
            let key = voter
                .keys
                .iter()
                .find(|key| key.thumbprint() == cast.key)
                .ok_or(VoteError::KeyNotActive)?;
            if !key.verify(digest.as_bytes(), &signature) {
                return Err(VoteError::Signature);
            }
            self.report.by_key += 1;
            return Ok(());
        };
        let (_, passkey) = self
            .passkeys
            .get(&cast.key)
            .filter(|(holder, _)| *holder == cast.voter)
            .ok_or(VoteError::KeyNotActive)?;
        let assertion = Assertion::from_evidence(evidence, signature)?;
        if URL_SAFE_NO_PAD.encode(&assertion.credential) != passkey.credential {
            return Err(VoteError::KeyNotActive);
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
            return Err(VoteError::EntryMismatch("signature counter"));
        }
        self.report.by_passkey += 1;
        self.report.origins.insert(party.origin);
        Ok(())
    }

    fn matches_entry(&self, cast: &VoteCast, statement: &VoteStatement) -> Result<(), VoteError> {
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
        all(&same).map_err(VoteError::EntryMismatch)
    }

    fn matches_request(
        &self,
        opened: &AccessRequestOpened,
        secret: Option<&str>,
        statement: &VoteStatement,
    ) -> Result<(), VoteError> {
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
        all(&same).map_err(VoteError::RequestMismatch)
    }
}

/// The name of the first check that fails.
fn all(checks: &[(&'static str, bool)]) -> Result<(), &'static str> {
    match checks.iter().find(|(_, holds)| !holds) {
        None => Ok(()),
        Some((what, _)) => Err(what),
    }
}
