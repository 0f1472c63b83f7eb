//! Proposals of policy bundles and facts: access requests by an operator that others must agree to before the bundle comes in force.
//!
//! The bundle in force says who agrees. A proposal is for the bundle that it would replace; when another one comes in force, or the
//! proposer's key dies, its entry closes it. What people agreed to comes in force at once, in the proposer's name.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use crate::approve::quorum::{self, VoteSubject};
use crate::approve::votes;
use crate::broker::governance::policy::{BundleApplied, PeopleSummary, StagedBundle};
use crate::broker::transaction::Step;
use crate::broker::{Broker, CallContext, PersonCaller, Refusal};
use crate::journal::{Blob, Journal};
use crate::model::*;
use crate::policy::{
    ActivePolicy, BundleFiles, PolicyBundle, Role, StepUpProfile, diff, sentences,
};
use crate::state::{
    AccessRequest, Draft, PeopleRegistration, PersonChange, PersonGain, Read, Recorded,
};

/// A proposal that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProposalReply {
    /// Its id.
    pub access_request: AccessRequestId,
    /// When it expires.
    pub expires_at: Timestamp,
}

/// Most pending proposals of one operator.
const PROPOSALS_MAX: usize = 10;
/// Most bytes of the changes that people are shown: a card fits into a message, and can be read.
const CHANGES_BYTES_MAX: usize = 40 * 1024;

/// What an operator asks to put in force.
pub(super) struct BundleToPropose<'a> {
    pub(super) staged: &'a StagedBundle<'a>,
    pub(super) files: &'a BundleFiles,
    pub(super) returning: &'a BTreeSet<PersonId>,
    pub(super) operator: &'a PersonCaller,
    pub(super) changed: &'a ChangedFiles,
}

/// A proposal to open.
pub(super) struct NewProposal<'a> {
    pub(super) operator: &'a PersonCaller,
    pub(super) proposed: Proposed,
    /// What people are shown.
    pub(super) changes: PolicyChanges,
    /// Why, in the operator's words.
    pub(super) reason: Option<&'a UntrustedText>,
    /// What the entry names beside.
    pub(super) blobs: Vec<Blob>,
}

/// What differs between the bundle in force and another: computed before the round that rests on it, since it takes long.
#[derive(Debug, Default)]
pub(super) struct ChangedFiles {
    /// The bundle in force.
    pub(super) replaces: Option<Digest>,
    files: Vec<FileChange>,
    /// What the check warns of in the bundle in force.
    warned: BTreeSet<String>,
}

impl Broker {
    /// The operator's own pending proposal of this bundle.
    pub(super) fn own_proposal<'r>(
        &self,
        read: &'r Read,
        bundle: &BundleToPropose<'_>,
        now: Timestamp,
    ) -> Option<Recorded<'r, AccessRequest>> {
        let own = read.proposals_of(&bundle.operator.id, now).into_iter();
        own.into_iter().find(|request| {
            request.opened.by_person().is_some_and(|by| {
                by.bundle() == Some((&bundle.staged.bundle().version(), bundle.returning))
            })
        })
    }

    /// The votes that agree to a proposal: when the first of them expires, once there are enough.
    pub(in crate::broker) fn agreed_until(
        &self,
        read: &Read,
        request: &Recorded<'_, AccessRequest>,
        rules: &ActivePolicy,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let needed = &request.opened.by_person()?.needs;
        let tally = votes::tally(request, self.voter_context(read, rules), now);
        let until = tally.not_after.unwrap_or(request.opened.expires_at);
        tally
            .satisfied
            .contains(&needed.name)
            .then(|| until.min(request.opened.expires_at))
    }

    /// The entry that opens the proposal of a bundle, where the bundle in force asks these people to agree.
    pub(super) fn open_proposal(
        &self,
        read: &Read,
        call: &CallContext,
        bundle: &BundleToPropose<'_>,
        (rules, profile): (&ActivePolicy, &StepUpProfile),
        registration: &PeopleRegistration,
    ) -> Result<(Draft, ProposalReply), Refusal> {
        let mut summary = summary(read, &rules.bundle, bundle, registration);
        summary.extend(self.facts_under(bundle.staged.bundle(), self.now()));
        let changes = PolicyChanges {
            summary,
            files: bundle.changed.files.clone(),
        };
        let proposal = NewProposal {
            operator: bundle.operator,
            proposed: Proposed::Bundle {
                bundle: bundle.staged.bundle().version(),
                returning: bundle.returning.clone(),
            },
            changes,
            reason: None,
            blobs: vec![Blob::new(bundle.files.canonical())],
        };
        self.draft_proposal(read, call, proposal, (rules, profile))
    }

    /// The entry that opens a proposal, where the bundle in force asks these people to agree.
    pub(super) fn draft_proposal(
        &self,
        read: &Read,
        call: &CallContext,
        proposal: NewProposal<'_>,
        (rules, profile): (&ActivePolicy, &StepUpProfile),
    ) -> Result<(Draft, ProposalReply), Refusal> {
        let now = self.now();
        let operator = proposal.operator;
        if read.proposals_of(&operator.id, now).len() >= PROPOSALS_MAX {
            let message = format!(
                "{PROPOSALS_MAX} proposals of yours wait: withdraw one with 'dipylon policy withdraw'"
            );
            return Err(self.refuse(call.method, Reason::TooManyPending, message));
        }
        let context = self.voter_context(read, rules);
        let tally = votes::VoteTally::default();
        if !quorum::can_be_met(
            &[Cow::Borrowed(profile)],
            VoteSubject::change(),
            &tally,
            &[&operator.id],
            context,
        ) {
            return Err(self.refuse_ungoverned_change(call.method, profile));
        }
        let refuse = |why: String| self.refuse(call.method, Reason::DecisionUnavailable, why);
        let text = json::canonical_of(&proposal.changes).map_err(|e| refuse(e.to_string()))?;
        if text.len() > CHANGES_BYTES_MAX {
            let message = format!(
                "the changes have {} bytes; the people who must agree are shown at most {CHANGES_BYTES_MAX}: change the bundle in smaller steps",
                text.len()
            );
            return Err(self.refuse(call.method, Reason::InvalidPolicyBundle, message));
        }
        let changes = Blob::new(text);
        let reason = proposal.reason;
        let reason = reason.map(|text| Blob::new(text.blob(self.random_bytes())));
        let id = AccessRequestId::from_random(self.random_bytes());
        let expires_at = now.plus_secs(profile.wait_s.into());
        let replaces = rules.bundle.version();
        let action = proposal_action(&replaces, &proposal.proposed);
        let action = action.map_err(|e| refuse(e.to_string()))?;
        let (action, _no_secret) = action.on_record(&BTreeSet::new(), &mut || self.random_bytes());
        let event = AccessRequestOpened {
            access_request: id,
            requester: AccessRequester::Person(Box::new(PersonRequester {
                person: operator.id.clone(),
                key: operator.key,
                replaces,
                proposed: proposal.proposed,
                changes: changes.hash(),
                needs: profile.reference(),
            })),
            action,
            secret: None,
            reason: reason.as_ref().map(Blob::hash),
            max_ttl: None,
            uses: None,
            expires_at,
        };
        let blobs = proposal.blobs.into_iter().chain([changes]).chain(reason);
        let draft = Draft::one(Event::AccessRequestOpened(event))
            .not_after(expires_at)
            .with_blobs(blobs);
        let reply = ProposalReply {
            access_request: id,
            expires_at,
        };
        Ok((draft, reply))
    }

    /// What differs between the bundle in force and these files, where others have to agree to a change; nothing where they do not.
    pub(super) async fn changed_files(
        &self,
        method: &'static str,
        files: &BundleFiles,
    ) -> Result<ChangedFiles, Refusal> {
        let replaces = self.preview(|read| {
            read.change_profile()?;
            Some(read.rules()?.bundle.version())
        });
        let Some(replaces) = replaces else {
            return Ok(ChangedFiles::default());
        };
        let refuse = |why: String| self.refuse(method, Reason::DecisionUnavailable, why);
        let (before, after) = (self.bundle_files(&replaces).map_err(refuse)?, files.clone());
        let comparing = tokio::task::spawn_blocking(move || {
            // A bundle of an earlier broker may no longer pass the check; then every warning is new.
            let checked = PolicyBundle::load_checked(&before);
            let warned =
                checked.map_or_else(|_| BTreeSet::new(), |bundle| sentences::warnings(&bundle));
            (diff::file_changes(&before, &after), warned)
        });
        let (compared, warned) = comparing.await.map_err(|e| refuse(e.to_string()))?;
        let files =
            compared.map_err(|why| self.refuse(method, Reason::InvalidPolicyBundle, why))?;
        Ok(ChangedFiles {
            replaces: Some(replaces),
            files,
            warned,
        })
    }

    fn refuse_ungoverned_change(&self, method: &'static str, profile: &StepUpProfile) -> Refusal {
        let who = match profile.role {
            Role::Operator => "no other operator with a key that lives is left".to_owned(),
            Role::Approver => format!(
                "too few people of the profile {} could vote beside you",
                profile.name
            ),
        };
        let message = format!("the bundle in force asks others to agree to a change, and {who}");
        self.refuse(method, Reason::ChangeQuorumUnreachable, message)
    }

    /// The files of a bundle that the journal has.
    fn bundle_files(&self, version: &Digest) -> Result<BundleFiles, String> {
        stored_bundle(&self.journal, version)
    }

    /// Puts the bundle of a proposal in force that enough people agree to, or sets its fact, in its proposer's name. Nothing when they do not, or when
    /// the bundle cannot come in force any more: then the proposal is closed. `waits`: for an apply that is under way.
    pub(in crate::broker) async fn apply_agreed(
        self: &Arc<Self>,
        method: &'static str,
        id: AccessRequestId,
        waits: bool,
    ) -> Result<Option<BundleApplied>, Refusal> {
        let by = self.preview(|read| {
            let rules = read.rules()?;
            let request = read.access_request(&id)?;
            let now = self.now();
            if !request.is_pending(now) {
                return None;
            }
            self.agreed_until(read, &request, &rules, now)?;
            request.opened.by_person().cloned()
        });
        let Some(by) = by else {
            return Ok(None);
        };
        let Proposed::Bundle { bundle, returning } = &by.proposed else {
            self.set_agreed_fact(method, id).await?;
            return Ok(None);
        };
        let refuse = |why: String| self.refuse(method, Reason::DecisionUnavailable, why);
        let files = self.bundle_files(bundle).map_err(refuse)?;
        let before = self.bundle_files(&by.replaces).map_err(refuse)?;
        let loading = tokio::task::spawn_blocking(move || {
            let changes = diff::file_changes(&before, &files).unwrap_or_default();
            // It was checked when it was proposed; by another version of this program perhaps less strictly.
            let bundle = PolicyBundle::load_checked(&files).or_else(|_| PolicyBundle::load(&files));
            bundle.map(|bundle| (files, bundle, changes))
        });
        let loaded = loading.await.map_err(|e| refuse(e.to_string()))?;
        let (files, bundle, changes) = loaded.map_err(|e| refuse(e.to_string()))?;
        let mut applied = BundleApplied::of(&bundle);
        let mut people = PeopleSummary::default();
        let _alone = match waits {
            true => self.policy_lock.lock().await,
            // An apply that is under way comes first: maintenance never waits for one.
            false => match self.policy_lock.try_lock() {
                Ok(alone) => alone,
                Err(_) => return Ok(None),
            },
        };
        let staged = self.stage(bundle, &files);
        let done = loop {
            self.revoke_disallowed()
                .await
                .map_err(|e| self.refuse_append(method, &e))?;
            let applying = self.transaction(method).applying();
            let done = applying.run(|read| {
                let now = self.now();
                let (Some(rules), Some(request)) = (read.rules(), read.access_request(&id)) else {
                    return Ok(Step::Answer(Agreed::No));
                };
                let until = match request.is_pending(now) {
                    true => self.agreed_until(read, &request, &rules, now),
                    false => None,
                };
                let Some(until) = until else {
                    return Ok(Step::Answer(Agreed::No));
                };
                if !self.is_enforced(read) {
                    return Ok(Step::Answer(Agreed::Unswept));
                }
                // INVARIANT (what comes in force is what was shown): the changes that people read are those between the two bundles.
                let shown = request.changes.as_ref().map(|shown| &shown.files);
                let registration = match shown == Some(&changes) {
                    true => read
                        .may_register(staged.bundle(), returning)
                        .map_err(|why| why.to_string()),
                    false => {
                        Err("the changes that were shown are not those of the bundle".to_owned())
                    }
                };
                match registration {
                    Ok(registration) => {
                        people = self.people_summary(&registration);
                        let draft = staged.agreed_draft(&by.person, returning, id);
                        Ok(Step::Append(draft.not_after(until), Agreed::InForce))
                    }
                    Err(why) => {
                        let close = AccessRequestClosed {
                            access_request: id,
                            cause: CloseCause::Policy,
                            voting_started: false,
                        };
                        let draft = Draft::one(Event::AccessRequestClosed(close));
                        Ok(Step::Append(draft, Agreed::Invalid(why)))
                    }
                }
            });
            let done = applying_done(done).await?;
            if !matches!(done, Agreed::Unswept) {
                break done;
            }
        };
        match done {
            Agreed::InForce => {
                applied.people = people.changes;
                applied.warnings.extend(people.warnings);
                applied.warnings.extend(self.unreachable_profiles());
                self.revoke_after_change(&mut applied).await;
                Ok(Some(applied))
            }
            Agreed::Invalid(why) => {
                tracing::warn!(access_request = %id, %why, "an agreed policy bundle cannot come in force any more");
                Ok(None)
            }
            Agreed::No | Agreed::Unswept => Ok(None),
        }
    }

    /// Puts agreed bundles in force whose votes are on record: after a crash between the two, or an outage.
    pub(in crate::broker) async fn apply_all_agreed(self: &Arc<Self>) {
        let proposals = self.show().unclosed_requests().into_iter().filter(|id| {
            let request = self.show().access_request(id);
            request.is_some_and(|r| r.opened.by_person().is_some() && !r.votes.is_empty())
        });
        for id in proposals.collect::<Vec<_>>() {
            if let Err(refusal) = self.apply_agreed("maintenance", id, false).await {
                tracing::debug!(access_request = %id, reason = %refusal.reason, "an agreed policy bundle is not in force yet");
            }
        }
    }

    /// Withdraws a proposal of the caller's own. A crash before the append leaves it waiting; after it, withdrawn.
    pub async fn withdraw_proposal(
        &self,
        call: &CallContext,
        id: AccessRequestId,
    ) -> Result<(), Refusal> {
        let operator = self.authenticate_person(call)?;
        let done = self.transaction(call.method).run(|read| {
            let now = self.now();
            self.require_person(read, call, &operator)?;
            let own = |request: &Recorded<'_, AccessRequest>| {
                let by = request.opened.by_person();
                by.is_some_and(|by| by.person == operator.id)
            };
            let request = read.access_request(&id).filter(own).ok_or_else(|| {
                let message = format!("no proposal {id} of yours");
                self.refuse(call.method, Reason::NotFound, message)
            })?;
            if request.status == crate::state::StoredStatus::Closed(CloseCause::Cancelled) {
                return Ok(Step::Answer(()));
            }
            if !request.is_pending(now) {
                let message = "the proposal is no longer pending";
                return Err(self.refuse(call.method, Reason::AccessRequestClosed, message));
            }
            let event = Event::AccessRequestClosed(AccessRequestClosed {
                access_request: id,
                cause: CloseCause::Cancelled,
                voting_started: false,
            });
            Ok(Step::Append(
                Draft::one(event).not_after(request.opened.expires_at),
                (),
            ))
        });
        done.await.map(|_| ())
    }
}

/// The files of a bundle that the journal has. Blocks.
pub(in crate::broker) fn stored_bundle(
    journal: &Journal,
    version: &Digest,
) -> Result<BundleFiles, String> {
    let text = journal.blob(version).map_err(|e| e.to_string())?;
    let text = text.ok_or_else(|| format!("the bundle {version} is no longer on record"))?;
    BundleFiles::parse(&text).map_err(|e| e.to_string())
}

/// What a round that puts an agreed bundle in force came to.
#[derive(Debug, Clone)]
enum Agreed {
    /// The bundle is in force.
    InForce,
    /// It is not, or no longer, agreed.
    No,
    /// What the bundle in force disallows is not yet ended.
    Unswept,
    /// The journal does not permit it any more.
    Invalid(String),
}

async fn applying_done<F>(done: F) -> Result<Agreed, Refusal>
where
    F: Future<Output = Result<crate::broker::transaction::Done<Agreed>, Refusal>>,
{
    done.await.map(|done| done.value)
}

/// What the bundle changes, in sentences without figures: who governs first, then what people gain and lose, then everything else, then
/// what the check of the bundle warns of and did not before.
fn summary(
    read: &Read,
    before: &PolicyBundle,
    proposed: &BundleToPropose<'_>,
    registration: &PeopleRegistration,
) -> Vec<String> {
    let after = proposed.staged.bundle();
    let mut all = Vec::new();
    if !read.change_is_possible(after, &registration.returning()) {
        all.push(NOBODY_COULD_CHANGE.to_owned());
    }
    let people = registration.changes.iter().map(PersonChange::sentence);
    let people = people.chain(registration.gains.iter().filter_map(PersonGain::sentence));
    all.extend(sentences::summary(
        before,
        after,
        people,
        &proposed.changed.warned,
    ));
    all
}

/// The sentence on a change after which no operator could change the bundle any more.
pub(super) const NOBODY_COULD_CHANGE: &str =
    "NOBODY COULD CHANGE THE POLICY BUNDLE AFTER THIS, but the owner of the broker's host";
