//! Token receipts: the entries that one token rests on, each proved to be in the journal, signed with the broker's key.
//!
//! Reads only: a crash here leaves nothing. What blobs hold of agents' words and sensitive parameters is not read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::audit::{
    ExpectedReceipt, ProfileDefinition, RECEIPT_BYTES_MAX, RECEIPT_FORM, ReceiptEntry,
    SignedCheckpoint, TokenReceipt, VoteEvidence, verify_receipt,
};
use crate::broker::{Broker, CallContext, Refusal};
use crate::jose::KeySet;
use crate::journal::{Journal, JournalHead, OpenError};
use crate::mint::TokenIssuer;
use crate::model::*;
use crate::policy::{BundleFiles, PeopleAndProfiles, PolicyBundle};
use crate::state::State;

/// A receipt for its caller.
#[derive(Debug)]
pub struct TokenReceiptReply {
    /// The operator or auditor who asked.
    pub caller: String,
    /// The receipt in its RFC 8785 form, at most [`RECEIPT_BYTES_MAX`] bytes.
    pub text: String,
}

/// Why a receipt cannot be made.
#[derive(Debug, thiserror::Error)]
enum ReceiptFailure {
    /// The journal cannot be read.
    #[error(transparent)]
    Journal(#[from] OpenError),
    /// The record lacks a part, or is too long.
    #[error("{0}")]
    Unavailable(String),
    /// A fault of the broker.
    #[error("{0}")]
    Internal(String),
}

/// Most entries of a token after its issue in a receipt; a token with more gets one without them.
const LATER_ENTRIES_MAX: usize = 256;
/// Receipts that are made at once: each reads and hashes for a while.
pub(in crate::broker) const RECEIPTS_AT_ONCE_MAX: usize = 4;
/// Longest wait until the entry of a token that was just issued counts as written.
const HEAD_WAIT: Duration = Duration::from_secs(2);

impl Broker {
    /// The receipt of a token, active or ended.
    pub async fn token_receipt(
        &self,
        call: &CallContext,
        jti: TokenId,
    ) -> Result<TokenReceiptReply, Refusal> {
        let now = self.now();
        let caller = self.authenticate_reader(call, now)?;
        let unknown = || self.refuse(call.method, Reason::NotFound, format!("no token {jti}"));
        let grant = self.show().grant(&jti).ok_or_else(unknown)?;
        // State shows an entry a moment before the head has it.
        let mut head = self.journal.head();
        let written = head.wait_for(|head| head.checkpoint.size > grant.index);
        let head = match tokio::time::timeout(HEAD_WAIT, written).await {
            Ok(Ok(head)) => *head,
            Ok(Err(_)) | Err(_) => {
                let why = "the entry of the token is not written".to_owned();
                return Err(self.refuse(call.method, Reason::JournalUnavailable, why));
            }
        };
        let keys = self.show().own_keys();
        let keys = keys.ok_or_else(|| self.refuse(call.method, Reason::InternalError, NO_KEY))?;
        let maker = ReceiptMaker {
            record: TokenRecord {
                state: self.state.clone(),
                journal: self.journal.clone(),
                head,
            },
            token_issuer: self.token_issuer.clone(),
            keys,
            realm: self.settings.realm.clone(),
            issuer: self.settings.issuer.clone(),
            at: self.now(),
        };
        let (issue, end) = (grant.index, self.show().first_end(&grant));
        // Held by the work itself: a caller who goes away frees no place of it.
        let slot = Arc::clone(&self.receipt_slots).try_acquire_owned();
        let slot = slot.map_err(|_| {
            let why = "the broker makes as many receipts at once as it may";
            self.refuse(call.method, Reason::Overloaded, why)
        })?;
        let make = move || {
            let _slot = slot;
            maker.make(jti, issue, end.map(|end| end.index))
        };
        let made = tokio::task::spawn_blocking(make).await;
        let made = made.unwrap_or_else(|e| Err(ReceiptFailure::Internal(e.to_string())));
        let text = made.map_err(|failure| {
            let reason = match &failure {
                ReceiptFailure::Journal(_) => Reason::JournalUnavailable,
                ReceiptFailure::Unavailable(_) => Reason::ReceiptUnavailable,
                ReceiptFailure::Internal(_) => Reason::InternalError,
            };
            self.refuse(call.method, reason, failure.to_string())
        })?;
        Ok(TokenReceiptReply { caller, text })
    }
}

const NO_KEY: &str = "no signing key is published";

/// Everything that a receipt is made from, apart from the broker: a long one takes a while, off the threads that serve calls.
struct ReceiptMaker {
    record: TokenRecord,
    token_issuer: Arc<TokenIssuer>,
    keys: Arc<KeySet>,
    realm: Realm,
    issuer: String,
    at: Timestamp,
}

impl ReceiptMaker {
    fn make(&self, jti: TokenId, issue: u64, end: Option<u64>) -> Result<String, ReceiptFailure> {
        let mut parts = self.record.gather(issue, end, false)?;
        if size_of_parts(&parts) > PARTS_BYTES_MAX {
            parts = self.record.gather(issue, end, true)?;
        }
        let internal = ReceiptFailure::Internal;
        let receipt = self.sign(jti, parts).map_err(internal)?;
        let text = receipt.canonical().map_err(|e| internal(e.to_string()))?;
        if text.len() > RECEIPT_BYTES_MAX {
            let why = format!("it would be longer than {RECEIPT_BYTES_MAX} bytes");
            return Err(ReceiptFailure::Unavailable(why));
        }
        // INVARIANT (check your own work): a receipt leaves only if it verifies with the keys that the broker publishes.
        let expected = ExpectedReceipt {
            keys: &self.keys,
            realm: Some(&self.realm),
            checkpoint: Some(self.record.head.checkpoint),
        };
        verify_receipt(&receipt, &expected)
            .map_err(|e| internal(format!("the receipt of {jti} does not verify: {e}")))?;
        Ok(text)
    }

    fn sign(&self, jti: TokenId, parts: ReceiptParts) -> Result<TokenReceipt, String> {
        let sign = |digest: Result<Digest, json::JsonError>| {
            let digest = digest.map_err(|e| e.to_string())?;
            let signature = self.token_issuer.sign_record(&digest);
            signature.map_err(|e| e.to_string())
        };
        let head = &self.record.head;
        let mut checkpoint = SignedCheckpoint {
            epoch: head.epoch,
            size: head.checkpoint.size,
            root: head.checkpoint.root,
            at: self.at,
            signature: String::new(),
        };
        checkpoint.signature = sign(checkpoint.digest(&self.realm, &self.issuer))?;
        let mut receipt = TokenReceipt {
            form: RECEIPT_FORM.to_owned(),
            realm: self.realm.clone(),
            issuer: self.issuer.clone(),
            jti,
            checkpoint,
            entries: parts.entries,
            votes: parts.votes,
            profiles: parts.profiles,
            uses_omitted: parts.uses_omitted,
            kid: self.token_issuer.kid().clone(),
            signature: String::new(),
        };
        receipt.signature = sign(receipt.digest())?;
        Ok(receipt)
    }
}

/// The unsigned parts of a receipt.
struct ReceiptParts {
    entries: Vec<ReceiptEntry>,
    votes: Vec<VoteEvidence>,
    profiles: Vec<ProfileDefinition>,
    uses_omitted: bool,
}

/// Most bytes of the parts of a receipt with uses: the quotes of an entry are escaped, and the rest is small.
const PARTS_BYTES_MAX: usize = RECEIPT_BYTES_MAX / 2;

fn size_of_parts(parts: &ReceiptParts) -> usize {
    let entries = parts.entries.iter();
    let entries = entries.map(|entry| entry.entry.len() + entry.path.len() * PATH_STEP_BYTES);
    let votes = parts.votes.iter();
    let votes = votes.flat_map(|vote| {
        let texts = [&vote.statement, &vote.facts].into_iter();
        texts.chain(&vote.assertion).map(String::len)
    });
    entries.chain(votes).sum()
}

/// Bytes of one hash of a path, with its quotes and comma.
const PATH_STEP_BYTES: usize = 46;

/// Reads what the journal has of one token, up to one head.
struct TokenRecord {
    state: Arc<State>,
    journal: Journal,
    head: JournalHead,
}

/// Entries by their index, with the text as stored.
type Gathered = BTreeMap<u64, (String, Entry)>;

impl TokenRecord {
    fn gather(
        &self,
        issue: u64,
        end: Option<u64>,
        omit_uses: bool,
    ) -> Result<ReceiptParts, ReceiptFailure> {
        let mut found = Gathered::new();
        self.read(0, &mut found)?;
        let issue = self.read(issue, &mut found)?;
        let Event::TokenIssued(issued) = &issue.event else {
            return Err(missing(issue.index, "a token"));
        };
        for stream in [
            Stream::Policy,
            Stream::Key(issued.kid.clone()),
            Stream::Task(issued.task),
        ] {
            let version = version_in(&issue.read_set, &stream);
            let index = version.ok_or_else(|| missing(issue.index, &stream.to_string()))?;
            self.read(index, &mut found)?;
        }
        let mut votes = Vec::new();
        if let Some(id) = issued.consumed {
            let stream = Stream::AccessRequest(id);
            let mut before = version_in(&issue.write_set, &stream);
            while let Some(index) = before {
                let entry = self.read(index, &mut found)?;
                before = version_in(&entry.write_set, &stream);
                match &entry.event {
                    Event::VoteCast(_) => votes.push(entry),
                    // A recommendation has a task of its own.
                    Event::AccessRequestOpened(f) => {
                        if let Some(task) = f.task().filter(|task| *task != issued.task) {
                            let stream = Stream::Task(task);
                            let opening = version_in(&issue.read_set, &stream);
                            let opening =
                                opening.ok_or_else(|| missing(issue.index, &stream.to_string()))?;
                            self.read(opening, &mut found)?;
                        }
                    }
                    Event::AccessRequestReassessed(_) => {}
                    _ => return Err(missing(index, "a vote")),
                }
            }
            votes.reverse();
        }
        let (votes, profiles) = self.evidence(issued, &votes, &mut found)?;
        let mut uses_omitted = omit_uses;
        if !omit_uses {
            uses_omitted = !self.read_later(issued.jti, issue.index, &mut found)?;
        }
        if let Some(end) = end.filter(|end| *end < self.head.checkpoint.size) {
            self.read(end, &mut found)?;
        }
        let indexes: Vec<u64> = found.keys().copied().collect();
        let size = self.head.checkpoint.size;
        let paths = self.journal.inclusion_paths(&indexes, size)?;
        let entries = found.into_iter().zip(paths);
        let entries =
            entries.map(|((index, (entry, _)), path)| ReceiptEntry { index, entry, path });
        Ok(ReceiptParts {
            entries: entries.collect(),
            votes,
            profiles,
            uses_omitted,
        })
    }

    fn read(&self, index: u64, found: &mut Gathered) -> Result<Entry, ReceiptFailure> {
        let stored = self.journal.entry(index)?;
        let stored = stored.ok_or_else(|| missing(index, "an entry"))?;
        let entry = Entry::parse(&stored.text).map_err(|_| missing(index, "a readable entry"))?;
        found.insert(index, (stored.text, entry.clone()));
        Ok(entry)
    }

    fn blob(&self, name: &Digest) -> Result<String, ReceiptFailure> {
        let text = self.journal.blob(name)?;
        let gone = || ReceiptFailure::Unavailable(format!("the content {name} is no longer kept"));
        Ok(text.ok_or_else(gone)?.to_string())
    }

    /// The reissues and uses of a token, from the last one back to its issue. False, and nothing read, when they are too many.
    fn read_later(
        &self,
        jti: TokenId,
        issue: u64,
        found: &mut Gathered,
    ) -> Result<bool, ReceiptFailure> {
        let stream = Stream::Token(jti);
        let mut later = Gathered::new();
        let mut before = self.state.show().version(&stream).checked_sub(1);
        while let Some(index) = before.filter(|index| *index > issue) {
            if later.len() >= LATER_ENTRIES_MAX {
                return Ok(false);
            }
            let entry = self.read(index, &mut later)?;
            before = version_in(&entry.write_set, &stream);
        }
        // Those that came after the head are in no tree yet.
        later.retain(|index, _| *index < self.head.checkpoint.size);
        found.extend(later);
        Ok(true)
    }

    /// The proof of each vote, the enrolments of the passkeys, and the definitions of the satisfied profiles.
    fn evidence(
        &self,
        issued: &TokenIssued,
        votes: &[Entry],
        found: &mut Gathered,
    ) -> Result<(Vec<VoteEvidence>, Vec<ProfileDefinition>), ReceiptFailure> {
        let mut bundles = Bundles {
            record: self,
            read: BTreeMap::new(),
        };
        let mut proofs = Vec::new();
        for entry in votes {
            let Event::VoteCast(cast) = &entry.event else {
                return Err(missing(entry.index, "a vote"));
            };
            let mut proof = VoteEvidence {
                index: entry.index,
                method: cast.method(),
                statement: self.blob(&cast.statement)?,
                facts: self.blob(&cast.facts)?,
                assertion: None,
                jwk: None,
            };
            if let Some(assertion) = &cast.assertion {
                proof.assertion = Some(self.blob(assertion)?);
                let show = self.state.show();
                let identity = show.key_identity(cast.key);
                let enrolled = identity.map(|key| show.version(&Stream::EnrolledKey(key)));
                let index = enrolled.and_then(|version| version.checked_sub(1));
                self.read(
                    index.ok_or_else(|| missing(entry.index, "an enrolled passkey"))?,
                    found,
                )?;
            } else {
                // The bundle in force at the vote has the key, also where a later one has not.
                let policy = version_in(&entry.read_set, &Stream::Policy);
                let policy = policy.ok_or_else(|| missing(entry.index, "a policy bundle"))?;
                let (people, _) = bundles.at(policy)?;
                let keys = people.get(&cast.voter).map(|person| person.keys.iter());
                let key = keys
                    .into_iter()
                    .flatten()
                    .find(|key| key.thumbprint() == cast.key);
                let key = key.ok_or_else(|| missing(entry.index, "a registered key"))?;
                proof.jwk = Some(key.to_jwk());
            }
            proofs.push(proof);
        }
        let satisfied: BTreeSet<&ProfileName> = issued
            .approval
            .iter()
            .flat_map(|claim| &claim.profiles)
            .collect();
        let mut profiles = Vec::new();
        for name in satisfied {
            let (_, defined) = bundles.of(&issued.decision.policy)?;
            let profile = defined.get(name);
            let profile = profile.ok_or_else(|| {
                ReceiptFailure::Unavailable(format!("profile {name} is not defined"))
            })?;
            let profile = profile.about(&issued.action.target);
            profiles.push(ProfileDefinition::from(&*profile));
        }
        Ok((proofs, profiles))
    }
}

/// People and profiles of the policy bundles that votes were cast under.
struct Bundles<'a> {
    record: &'a TokenRecord,
    read: BTreeMap<Digest, PeopleAndProfiles>,
}

impl Bundles<'_> {
    /// Of the bundle that the entry at this index put in force.
    fn at(&mut self, index: u64) -> Result<&PeopleAndProfiles, ReceiptFailure> {
        let entry = self.record.read(index, &mut Gathered::new())?;
        match &entry.event {
            Event::PolicyApplied(f) => self.of(&f.version),
            _ => Err(missing(index, "a policy bundle")),
        }
    }

    fn of(&mut self, version: &Digest) -> Result<&PeopleAndProfiles, ReceiptFailure> {
        if !self.read.contains_key(version) {
            let text = self.record.blob(version)?;
            let read = BundleFiles::parse(&text).and_then(|files| PolicyBundle::people_in(&files));
            let unreadable = || {
                ReceiptFailure::Unavailable(format!("the policy bundle {version} cannot be read"))
            };
            self.read.insert(*version, read.map_err(|_| unreadable())?);
        }
        let read = self.read.get(version);
        read.ok_or_else(|| {
            ReceiptFailure::Unavailable(format!("the policy bundle {version} cannot be read"))
        })
    }
}

/// The entry that advanced a stream last, as an entry that read or advances it names it: its index.
pub(super) fn version_in(set: &[(Stream, Version)], stream: &Stream) -> Option<u64> {
    let found = set.iter().find(|(named, _)| named == stream);
    found.and_then(|(_, version)| version.checked_sub(1))
}

fn missing(index: u64, what: &str) -> ReceiptFailure {
    ReceiptFailure::Unavailable(format!("entry {index} is not or does not name {what}"))
}
