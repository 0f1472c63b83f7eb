//! Audit of approvals: every vote and every approval of a grant in a journal, verified again by the functions that counted them.
//!
//! In: each entry, the state before it, its blobs. Out: counts, or the first vote or grant that does not hold. Trusts: the replay, that
//! each entry is legal where it stands; the signatures of people's own keys.
//! An auditor does not have the broker's configuration, so the origin of a passkey's vote comes from its evidence: the authenticator
//! signed it, and the relying party is its host, as at the broker. The report lists the origins; the auditor checks that they are the
//! broker's own.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::DECISION_LIFE_MS;
use super::facts;
use super::vote_proof::{VoteProof, VoteProofCache, VoteProofError, VotingKey};
use super::votes::{self, SigningWith, VoterContext, uses_within};
use crate::audit::{AgreementError, AuditError, DecisionError, GrantError, VoteError, VoteReport};
use crate::model::*;
use crate::policy::{BundleFiles, PolicyBundle, diff};
use crate::state::{AccessRequest, Read, Recorded, State};
use crate::webauthn::Assertion;

/// Verifies votes and approvals: give it every entry in order, each with the state before it.
#[derive(Debug, Default)]
pub struct ApprovalVerifier {
    realm: Option<Realm>,
    /// The last entry, when it put a bundle in force that was not looked at yet.
    applied: Option<AppliedBundle>,
    proofs: VoteProofCache,
    report: VoteReport,
}

/// An entry that puts a bundle in force.
#[derive(Debug)]
struct AppliedBundle {
    index: u64,
    /// The bundle before it.
    before: Option<Arc<PolicyBundle>>,
    returning: BTreeSet<PersonId>,
}

impl ApprovalVerifier {
    /// Takes the next entry with the state before it, and verifies it if it is a vote or a grant. `blob` finds a blob by its hash,
    /// which is checked.
    pub fn entry<E: From<AuditError>>(
        &mut self,
        entry: &Entry,
        state: &Arc<State>,
        blob: impl Fn(&Digest) -> Result<Option<Arc<str>>, E>,
    ) -> Result<(), E> {
        self.registered(state)?;
        let read = state.read();
        let text = |name: &Digest| -> Result<Arc<str>, E> {
            let missing = AuditError::BlobMissing {
                count: 1,
                first: *name,
            };
            let text = blob(name)?.ok_or(missing)?;
            match Digest::sha256(text.as_bytes()) == *name {
                true => Ok(text),
                false => Err(AuditError::BlobChanged(*name).into()),
            }
        };
        decided(&read, entry).map_err(|why| AuditError::Decision {
            index: entry.index,
            why,
        })?;
        match &entry.event {
            Event::EpochStarted(f) => self.realm = Some(f.realm.clone()),
            Event::VoteCast(f) => {
                let facts = text(&f.facts)?;
                let statement = text(&f.statement)?;
                let evidence = f.assertion.map(|name| text(&name)).transpose()?;
                let checked = self.vote(
                    &read,
                    f,
                    (&statement, &facts, evidence.as_deref()),
                    entry.at,
                );
                checked.map_err(|why| AuditError::Vote {
                    index: entry.index,
                    why,
                })?;
            }
            Event::AccessRequestOpened(AccessRequestOpened {
                requester: AccessRequester::Person(by),
                ..
            }) => {
                let files = |name: &Digest| -> Result<Option<BundleFiles>, E> {
                    Ok(BundleFiles::parse(&text(name)?).ok())
                };
                let shown: Option<PolicyChanges> =
                    json::parse_as(text(&by.changes)?.as_bytes()).ok();
                let is_true = match &by.proposed {
                    Proposed::Bundle { bundle, .. } => {
                        let both = files(&by.replaces)?.zip(files(bundle)?);
                        let differ = both.and_then(|(b, a)| diff::file_changes(&b, &a).ok());
                        differ.is_some() && shown.map(|shown| shown.files) == differ
                    }
                    // Its sentences are this broker's; what is signed beside them is the whole action.
                    Proposed::Fact { .. } => shown.is_some_and(|shown| shown.files.is_empty()),
                };
                if !is_true {
                    return Err(AuditError::Agreement {
                        index: entry.index,
                        why: AgreementError::Changes,
                    }
                    .into());
                }
            }
            Event::TokenIssued(f) => {
                let checked = self.grant(&read, f);
                checked.map_err(|why| AuditError::Grant {
                    index: entry.index,
                    why,
                })?;
            }
            Event::FactSet(f) => {
                let rules = read.rules();
                let declared = rules.as_ref().and_then(|rules| rules.bundle.fact(&f.fact));
                let is_safe = declared.is_some_and(|declared| declared.safe == f.value);
                let checked = match is_safe {
                    true => Ok(()),
                    false => self.agreed(&read, f.proposal, entry.at),
                };
                checked.map_err(|why| AuditError::Agreement {
                    index: entry.index,
                    why,
                })?;
            }
            Event::PolicyApplied(f) => {
                let checked = match f.recovery {
                    Some(_) => Ok(()),
                    None => self.agreed(&read, f.proposal, entry.at),
                };
                checked.map_err(|why| AuditError::Agreement {
                    index: entry.index,
                    why,
                })?;
                let before = read.rules().map(|rules| Arc::clone(&rules.bundle));
                self.applied = Some(AppliedBundle {
                    index: entry.index,
                    before,
                    returning: f.returning.clone(),
                });
            }
            Event::ApproverEnrolled(_)
            | Event::PasskeyConfirmed(_)
            | Event::ApproverKeysRevoked(_)
            | Event::TaskOpened(_)
            | Event::TaskEnded(_)
            | Event::AccessRequestOpened(_)
            | Event::AccessRequestReassessed(_)
            | Event::AccessRequestClosed(_)
            | Event::TrustBundleChanged(_)
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

    /// After the last entry, with the state after it.
    pub fn finish(mut self, state: &State) -> Result<VoteReport, AuditError> {
        self.registered(state)?;
        Ok(self.report)
    }

    /// Whether the bundle that came in force last registers what the journal permits.
    fn registered(&mut self, state: &State) -> Result<(), AuditError> {
        let Some(applied) = self.applied.take() else {
            return Ok(());
        };
        match state.registration_fault(applied.before.as_deref(), &applied.returning) {
            None => Ok(()),
            Some(why) => Err(AuditError::Registration {
                index: applied.index,
                why: why.to_string(),
            }),
        }
    }

    /// INVARIANT (a vote on record is proved by what is on record): statement, evidence and signature match the entry and the access
    /// request; the key was the voter's at that entry, and lived; the vote counted when it was cast.
    fn vote(
        &mut self,
        read: &Read,
        cast: &VoteCast,
        (statement, facts, evidence): (&str, &str, Option<&str>),
        at: Timestamp,
    ) -> Result<(), VoteError> {
        let rules = read.rules().ok_or(VoteError::VoterUnknown)?;
        let bundle = &rules.bundle;
        let voter = bundle.person(&cast.voter).ok_or(VoteError::VoterUnknown)?;
        let on_record = read.access_request(&cast.access_request);
        let target = on_record.as_ref().map(|r| &r.opened.action.target);
        let name = &cast.profile.name;
        let profile = match target {
            Some(target) => bundle.profile_about(name, target),
            None => bundle.profile(name).map(Cow::Borrowed),
        };
        let profile = profile
            .filter(|p| p.digest() == cast.profile.digest)
            .ok_or(VoteError::ProfileMismatch)?;
        let statement = VoteStatement::parse(statement).map_err(|_| VoteError::Statement)?;
        self.matches_entry(cast, &statement)?;
        let request = pending(read, &cast.access_request, at)?;
        let realm = self
            .realm
            .as_ref()
            .ok_or(VoteError::EntryMismatch("realm"))?;
        let context = self.voter_context(read, bundle, realm);
        matches_request(&request, &statement, context)?;
        // What the card showed, as the bundle in force had it.
        let shown = facts::card_facts(&request, bundle).canonical();
        if shown.ok().as_deref() != Some(facts) {
            return Err(VoteError::RequestMismatch("facts"));
        }
        let people = read.people(BTreeSet::from([cast.voter.clone()]));
        people
            .may_act(&cast.voter, cast.key)
            .map_err(|_| VoteError::KeyNotActive)?;
        let signature = URL_SAFE_NO_PAD
            .decode(&cast.signature)
            .map_err(|_| VoteError::Signature)?;
        let method = bundle.vote_method(&profile, &request.opened.action.action);
        let (proof, origin) = match evidence {
            None if method == VoteMethod::Passkey => {
                return Err(match profile.method {
                    VoteMethod::Passkey => VoteError::PasskeyRequired,
                    VoteMethod::Key => VoteError::RiskRequiresPasskey,
                });
            }
            None if cast.sign_count.is_some() => return Err(VoteError::NoEvidence),
            None => (VoteProof::Signature(signature), None),
            Some(evidence) => {
                let assertion = Assertion::from_evidence(evidence, signature)?;
                let origin = assertion.party()?.origin;
                (VoteProof::Passkey(assertion), Some(origin))
            }
        };
        let enrolled = people.get(&cast.voter);
        let key = VotingKey::find(voter, &enrolled, cast.key, method, origin.is_some());
        let key = key.map_err(|_| VoteError::KeyNotActive)?;
        let verified = key.verify(&statement, &proof, None);
        let verified = verified.map_err(|error| match error {
            VoteProofError::Signature => VoteError::Signature,
            VoteProofError::PasskeyRequired => VoteError::PasskeyRequired,
            VoteProofError::NotEnrolled => VoteError::KeyNotActive,
            VoteProofError::Passkey(why) => VoteError::Passkey(why),
        })?;
        if cast.sign_count != verified.map(|seen| seen.sign_count) {
            return Err(VoteError::EntryMismatch("signature counter"));
        }
        votes::eligible(
            &cast.voter,
            SigningWith::Key(cast.key),
            &cast.profile.name,
            cast.verdict,
            &request,
            context,
            at,
        )
        .map_err(|why| VoteError::Ineligible(why.to_string()))?;
        match origin {
            None => self.report.by_key += 1,
            Some(origin) => {
                self.report.by_passkey += 1;
                self.report.origins.insert(origin);
            }
        }
        Ok(())
    }

    /// INVARIANT (a grant rests on the votes that it names): the profiles it says were satisfied are those that the tally finds, by
    /// distinct people with distinct living keys, and it is within what their votes allow.
    fn grant(&mut self, read: &Read, issued: &TokenIssued) -> Result<(), GrantError> {
        let (Some(rules), Some(realm)) = (read.rules(), self.realm.as_ref()) else {
            return Ok(());
        };
        let Some(request) = issued.consumed.and_then(|id| read.access_request(&id)) else {
            return Ok(());
        };
        let mut context = self.voter_context(read, &rules.bundle, realm);
        let task = read.task(&issued.task);
        if request.opened.executor().is_some() {
            context.executing = task.as_deref();
        }
        // At most a moment before its entry.
        let decided_at = issued.decision.input.now;
        let tally = votes::tally(&request, context, decided_at);
        let says = issued.approval.iter().flat_map(|claim| &claim.profiles);
        let says: Vec<ProfileName> = says.cloned().collect();
        let counted: Vec<ProfileName> = tally.satisfied.iter().cloned().collect();
        // Of a recommendation, and of what waited, every profile that people are asked under to the end.
        let waited_ms = issued.decision.input.waited_ms;
        let mut required = request.required_after(waited_ms).iter();
        let is_short = (request.opened.executor().is_some() || waited_ms != 0)
            && !required.all(|need| tally.satisfied.contains(&need.name));
        if says != counted || is_short {
            return Err(GrantError::Quorum { says, counted });
        }
        let is_wider = tally
            .max_ttl
            .is_some_and(|most| issued.exp - issued.iat > most)
            || tally
                .not_after
                .is_some_and(|until| issued.exp > until.secs())
            || (tally.uses.is_some() && !uses_within(issued.uses, tally.uses));
        if is_wider {
            return Err(GrantError::Wider);
        }
        if !says.is_empty() {
            self.report.approved_tokens += 1;
        }
        Ok(())
    }

    /// INVARIANT (no single hand): a bundle that comes in force, and a fact set to another value than its safe one, has the approvals that
    /// the bundle before it asks for, by people other than its proposer. A recovery by the owner of the broker's host needs none.
    fn agreed(
        &mut self,
        read: &Read,
        proposal: Option<AccessRequestId>,
        at: Timestamp,
    ) -> Result<(), AgreementError> {
        let (Some(rules), Some(realm)) = (read.rules(), self.realm.as_ref()) else {
            return Ok(());
        };
        let Some(asked) = read.change_profile() else {
            return Ok(());
        };
        let request = proposal.and_then(|id| read.access_request(&id));
        let request = request.ok_or(AgreementError::NoProposal)?;
        let context = self.voter_context(read, &rules.bundle, realm);
        let tally = votes::tally(&request, context, at);
        match tally.satisfied.contains(&asked.name) {
            true => {
                self.report.agreed_changes += 1;
                Ok(())
            }
            false => Err(AgreementError::Quorum {
                counted: tally.counted.get(&asked.name).map_or(0, BTreeMap::len),
                quorum: asked.quorum,
            }),
        }
    }

    const fn voter_context<'a>(
        &'a self,
        read: &'a Read,
        bundle: &'a PolicyBundle,
        realm: &'a Realm,
    ) -> VoterContext<'a> {
        VoterContext {
            read,
            bundle,
            realm,
            proofs: &self.proofs,
            executing: None,
        }
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
            ("facts", statement.facts == cast.facts),
            ("longest life", statement.max_ttl == cast.max_ttl),
            ("number of uses", statement.uses == cast.uses),
            (
                "end of its life",
                Timestamp::from_secs(statement.not_after) == cast.not_after,
            ),
        ];
        all(&same).map_err(VoteError::EntryMismatch)
    }
}

/// INVARIANT (a decision names the evidence that it rests on): the ages that rules saw are those of the entry's evidence when it was decided,
/// at most a moment before the entry. What an access request requires anew rests on the ages on record, or on lesser ones of newer evidence.
fn decided(read: &Read, entry: &Entry) -> Result<(), DecisionError> {
    let (decision, evidence) = match &entry.event {
        Event::TokenIssued(f) => (&f.decision, &*f.evidence),
        Event::RequestDenied(f) => match &f.decision {
            Some(decision) => (decision, &f.evidence),
            None => return Ok(()),
        },
        Event::AccessRequestOpened(f) => match f.by_agent() {
            Some(by) => (&by.decision, &by.evidence),
            None => return Ok(()),
        },
        Event::AccessRequestReassessed(f) => {
            let request = read.access_request(&f.access_request);
            let recorded = request.as_ref().and_then(|r| r.decision.as_ref());
            return recorded.map_or(Ok(()), |was| {
                reassessed(&was.input, &f.decision.input, entry.at)
            });
        }
        _ => return Ok(()),
    };
    let (now, at) = (decision.input.now, entry.at);
    if now > at || at.since(now) > DECISION_LIFE_MS {
        return Err(DecisionError::Moment { now, at });
    }
    let (says, found) = (decision.input.evidence_ages(), evidence.ages(now));
    let differs = ages_by_field(says, found).find(|(_, says, found)| says != found);
    match differs {
        None => Ok(()),
        Some((field, says, found)) => Err(DecisionError::Age { field, says, found }),
    }
}

/// What an access request requires anew, after what it required: when it was decided is not after its entry, and no age has grown.
fn reassessed(was: &PolicyInput, is: &PolicyInput, at: Timestamp) -> Result<(), DecisionError> {
    if is.now > at {
        return Err(DecisionError::Moment { now: is.now, at });
    }
    let mut ages = ages_by_field(is.evidence_ages(), was.evidence_ages());
    match ages.find(|(_, says, recorded)| says > recorded) {
        None => Ok(()),
        Some((field, says, recorded)) => Err(DecisionError::OlderThanRecorded {
            field,
            says,
            recorded,
        }),
    }
}

/// Each age of one and of another, with its name in the entry.
fn ages_by_field(
    one: EvidenceAges,
    other: EvidenceAges,
) -> impl Iterator<Item = (&'static str, i64, i64)> {
    [
        ("evidence_issued_age_ms", one.issued_ms, other.issued_ms),
        (
            "evidence_verified_age_ms",
            one.verified_ms,
            other.verified_ms,
        ),
    ]
    .into_iter()
}

/// The access request, while it waits for votes.
fn pending<'r>(
    read: &'r Read,
    id: &AccessRequestId,
    at: Timestamp,
) -> Result<Recorded<'r, AccessRequest>, VoteError> {
    let request = read
        .access_request(id)
        .filter(|request| request.is_pending(at));
    let request = request.ok_or(VoteError::RequestNotPending)?;
    let task = request.opened.task().map(|task| read.task(&task));
    match task.is_none_or(|task| task.is_some_and(|task| task.ended.is_none())) {
        true => Ok(request),
        false => Err(VoteError::RequestNotPending),
    }
}

fn matches_request(
    request: &AccessRequest,
    statement: &VoteStatement,
    context: VoterContext<'_>,
) -> Result<(), VoteError> {
    let opened = &request.opened;
    let requester = votes::requester_of(request, context);
    let same = [
        (
            "requester",
            requester.as_ref() == Some(&statement.requester),
        ),
        ("action", statement.action == opened.action),
        (
            "longest life",
            match (opened.max_ttl, statement.max_ttl) {
                (Some(most), Some(ttl)) => (1..=most).contains(&ttl),
                (None, None) => true,
                (Some(_), None) | (None, Some(_)) => false,
            },
        ),
        ("number of uses", uses_within(statement.uses, opened.uses)),
    ];
    all(&same).map_err(VoteError::RequestMismatch)
}

/// The name of the first check that fails.
fn all(checks: &[(&'static str, bool)]) -> Result<(), &'static str> {
    match checks.iter().find(|(_, holds)| !holds) {
        None => Ok(()),
        Some((what, _)) => Err(what),
    }
}
