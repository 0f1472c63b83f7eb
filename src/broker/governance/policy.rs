//! Policy bundles: applying one. What it no longer allows is ended by [`super::disallowed`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tracing::Instrument as _;

use crate::approve::quorum;
use crate::broker::governance::disallowed::RevocationSummary;
use crate::broker::governance::proposal::{BundleToPropose, NOBODY_COULD_CHANGE, ProposalReply};
use crate::broker::transaction::Step;
use crate::broker::{Broker, CallContext, PersonCaller, Refusal};
use crate::journal::{AppendError, Blob};
use crate::model::text::counted;
use crate::model::*;
use crate::policy::{BundleFiles, PolicyBundle};
use crate::rate_limit::ConcurrencyPermit;
use crate::state::{
    Draft, PeopleRegistration, PersonChange, PersonChangeKind, PersonGain, RegistrationError, Show,
    State,
};

/// Summary of applying a policy bundle.
#[derive(Debug, Clone, Default)]
pub struct BundleApplied {
    /// Its version.
    pub version: String,
    /// False: it was in force before.
    pub changed: bool,
    /// Rules in it.
    pub rules: usize,
    /// Agents in it.
    pub agents: usize,
    /// Warnings about valid but unusual content.
    pub warnings: Vec<String>,
    /// What it changed for people: who left, lost a role, came and returned, each in one sentence.
    pub people: Vec<String>,
    /// The proposal that waits for others to agree; absent when the bundle is in force.
    pub proposal: Option<ProposalReply>,
    /// Counts of what it no longer allows and therefore ended.
    pub revoked: RevocationSummary,
}

/// What a round of an apply came to.
#[derive(Debug, Clone, Copy)]
enum Applying {
    /// Others have to agree to it first.
    Waits(ProposalReply),
    /// The bundle is in force.
    Done,
    /// What the bundle in force disallows is not yet ended.
    Unswept,
}

/// A loaded bundle on its way into the journal: kept parsed until its entry is applied, or until this is dropped.
pub(in crate::broker) struct StagedBundle<'a> {
    state: &'a State,
    version: Digest,
    content: Blob,
    bundle: Arc<PolicyBundle>,
}

impl<'a> StagedBundle<'a> {
    /// Keeps a parsed bundle for its entry.
    pub(super) fn new(state: &'a State, bundle: PolicyBundle, files: &BundleFiles) -> Self {
        let bundle = Arc::new(bundle);
        state.stage_bundle(Arc::clone(&bundle));
        Self {
            state,
            version: bundle.version(),
            content: Blob::new(files.canonical()),
            bundle,
        }
    }

    /// The entry that puts the bundle in force.
    pub(in crate::broker) fn draft(
        &self,
        by: Option<PersonId>,
        returning: &BTreeSet<PersonId>,
    ) -> Draft {
        self.draft_as(by, None, None, returning)
    }

    /// The entry that puts the bundle of an approved proposal in force.
    pub(super) fn agreed_draft(
        &self,
        by: &PersonId,
        returning: &BTreeSet<PersonId>,
        proposal: AccessRequestId,
    ) -> Draft {
        self.draft_as(Some(by.clone()), None, Some(proposal), returning)
    }

    /// The entry that recovers the operators with the bundle.
    pub(super) fn recovery_draft(
        &self,
        recovery: OperatorRecovery,
        returning: &BTreeSet<PersonId>,
    ) -> Draft {
        self.draft_as(None, Some(recovery), None, returning)
    }

    fn draft_as(
        &self,
        by: Option<PersonId>,
        recovery: Option<OperatorRecovery>,
        proposal: Option<AccessRequestId>,
        returning: &BTreeSet<PersonId>,
    ) -> Draft {
        let event = Event::PolicyApplied(PolicyApplied {
            version: self.version,
            by,
            recovery,
            proposal,
            returning: returning.clone(),
        });
        Draft::one(event).with_blobs([self.content.clone()])
    }

    /// The bundle.
    pub(in crate::broker) const fn bundle(&self) -> &Arc<PolicyBundle> {
        &self.bundle
    }
}

impl Drop for StagedBundle<'_> {
    fn drop(&mut self) {
        self.state.unstage_bundle(&self.version);
    }
}

impl Broker {
    /// Puts a policy bundle in force, whole, or refuses it whole; where the bundle in force asks others to agree to a change, proposes it to
    /// them. A crash before the append leaves the last one in force;
    /// after it, the new one, and the next start ends what this one did not.
    ///
    /// Runs in its own task, so that a client that disconnects does not cancel it: what a bundle no longer allows is always
    /// ended before the next bundle.
    /// With `base`, refuses while another version than this one is in force.
    pub async fn apply_policy_bundle(
        self: &Arc<Self>,
        call: &CallContext,
        operator: PersonCaller,
        files: BTreeMap<String, String>,
        returning: BTreeSet<PersonId>,
        base: Option<Digest>,
    ) -> Result<BundleApplied, Refusal> {
        let broker = Arc::clone(self);
        let call = CallContext {
            method: call.method,
            allowed_roles: call.allowed_roles,
            proof: None,
            bearer: None,
            session: None,
            permit: ConcurrencyPermit::unlimited(call.permit.class()),
        };
        let method = call.method;
        let uncancellable = async move {
            broker
                .apply_uncancellable(&call, &operator, files, returning, base)
                .await
        };
        let applying = tokio::spawn(uncancellable.instrument(tracing::Span::current()));
        // Cut by the end of the process, before or after an append.
        let applied = applying
            .await
            .unwrap_or_else(|e| Err(self.refuse(method, Reason::OutcomeUnknown, e.to_string())));
        if let Ok(applied) = &applied
            && let Some(proposal) = applied.proposal
        {
            // Made now, so that the first card has it.
            let request = self.show().access_request(&proposal.access_request);
            if let Some(request) = &request
                && let Some(by) = request.opened.by_person()
            {
                let _shown_later = self.plan_of_proposal(by, request.opened_at, false);
            }
        }
        applied
    }

    async fn apply_uncancellable(
        &self,
        call: &CallContext,
        operator: &PersonCaller,
        files: BTreeMap<String, String>,
        returning: BTreeSet<PersonId>,
        base: Option<Digest>,
    ) -> Result<BundleApplied, Refusal> {
        let (files, bundle, mut applied) = self.load_bundle(call.method, files).await?;
        let mut people = PeopleSummary::default();
        let _alone = self.policy_lock.lock().await;
        let staged = self.stage(bundle, &files);
        let done = loop {
            // INVARIANT (what a bundle ended stays ended): all it disallows is ended before another comes in force.
            self.revoke_disallowed()
                .await
                .map_err(|e| self.refuse_append(call.method, &e))?;
            let changed = self.changed_files(call.method, &files).await?;
            let apply = self.transaction(call.method).applying();
            let done = apply.run(|read| {
                let in_force = self.require_operator(read, call, operator)?;
                if in_force.bundle.version() == staged.version {
                    if let Some(person) = returning.first() {
                        let why = RegistrationError::NotReturning(person.clone()).to_string();
                        return Err(self.refuse(call.method, Reason::InvalidPolicyBundle, why));
                    }
                    return Ok(Step::Answer(Applying::Done));
                }
                // INVARIANT (a bundle comes in force on the one it was planned on): as this round reads it.
                let in_force_now = in_force.bundle.version();
                if let Some(base) = base.filter(|base| *base != in_force_now) {
                    let why = format!(
                        "the bundle was planned on version {base}, and version {in_force_now} is in force: plan it again"
                    );
                    return Err(self.refuse(call.method, Reason::PolicyChanged, why));
                }
                // The bundle of an earlier apply, whose outcome was unknown, came in force after the sweep.
                if !self.is_enforced(read) {
                    return Ok(Step::Answer(Applying::Unswept));
                }
                // INVARIANT (a key is one holder's, and the realm is governed): as journal and bundle stand together.
                let registration = read.may_register(&staged.bundle, &returning).map_err(|e| {
                    self.refuse(call.method, Reason::InvalidPolicyBundle, e.to_string())
                })?;
                people = self.people_summary(&registration);
                if !read.change_is_possible(&staged.bundle, &registration.returning()) {
                    people.warnings.insert(0, NOBODY_COULD_CHANGE.to_owned());
                }
                let now = self.now();
                // It decides nothing later: what changes meanwhile is no conflict.
                let quorums = self.preview(|read| {
                    quorum::after_change(read, &staged.bundle, &registration, now)
                });
                let require_quorums = || match quorums.refused.is_empty() {
                    true => Ok(()),
                    false => {
                        let why = quorums.refused.join("\n");
                        Err(self.refuse(call.method, Reason::InvalidPolicyBundle, why))
                    }
                };
                people.warnings.extend(quorums.warned.iter().cloned());
                let Some(profile) = read.change_profile() else {
                    require_quorums()?;
                    let by = Some(operator.id.clone());
                    return Ok(Step::Append(staged.draft(by, &returning), Applying::Done));
                };
                // Another bundle came in force since the comparison.
                if changed.replaces != Some(in_force.bundle.version()) {
                    return Ok(Step::Answer(Applying::Unswept));
                }
                let proposed = BundleToPropose {
                    staged: &staged,
                    files: &files,
                    returning: &returning,
                    operator,
                    changed: &changed,
                };
                let Some(request) = self.own_proposal(read, &proposed, now) else {
                    require_quorums()?;
                    let opened = self.open_proposal(
                        read,
                        call,
                        &proposed,
                        (&in_force, &profile),
                        &registration,
                    );
                    let (draft, reply) = opened?;
                    return Ok(Step::Append(draft, Applying::Waits(reply)));
                };
                let id = request.opened.access_request;
                if let Some(until) = self.agreed_until(read, &request, &in_force, now) {
                    let draft = staged.agreed_draft(&operator.id, &returning, id);
                    return Ok(Step::Append(draft.not_after(until), Applying::Done));
                }
                Ok(Step::Answer(Applying::Waits(ProposalReply {
                    access_request: id,
                    expires_at: request.opened.expires_at,
                })))
            });
            let done = done.await?;
            match done.value {
                Applying::Done | Applying::Waits(_) => break done,
                Applying::Unswept => {}
            }
        };
        if let Applying::Waits(proposal) = done.value {
            applied.changed = false;
            applied.people = people.changes;
            applied.warnings.extend(people.warnings);
            applied.proposal = Some(proposal);
            return Ok(applied);
        }
        applied.changed = done.entry.is_some();
        if applied.changed {
            applied.people = people.changes;
            applied.warnings.extend(people.warnings);
            applied.warnings.extend(self.unreachable_profiles());
            self.revoke_after_change(&mut applied).await;
        }
        Ok(applied)
    }

    /// Puts the bundle in force that seeds an empty journal, at a start. A crash before the entry leaves none in force.
    pub(in crate::broker) async fn seed_bundle(
        &self,
        bundle: PolicyBundle,
        files: &BundleFiles,
    ) -> Result<(), AppendError> {
        let staged = self.stage(bundle, files);
        self.append_at_start(|read| {
            read.rules()
                .is_none()
                .then(|| staged.draft(None, &BTreeSet::new()))
        })
        .await
    }

    /// Keeps a parsed bundle for its entry.
    pub(in crate::broker) fn stage(
        &self,
        bundle: PolicyBundle,
        files: &BundleFiles,
    ) -> StagedBundle<'_> {
        StagedBundle::new(&self.state, bundle, files)
    }

    /// Ends what the bundle just put in force no longer allows. A failure is a warning: the bundle is in force, and refuses
    /// what it does not allow at each use; maintenance records the ends when the journal takes entries again.
    pub(in crate::broker) async fn revoke_after_change(&self, applied: &mut BundleApplied) {
        self.learn_asking_agents();
        match self.revoke_disallowed().await {
            Ok(revoked) => applied.revoked = revoked,
            Err(error) => applied.warnings.insert(
                0,
                format!(
                    "the bundle is in force and what it no longer allows is refused, but its end is not recorded yet: {error}"
                ),
            ),
        }
    }

    /// Profiles of the bundle in force whose quorum cannot be reached now, in words.
    pub(super) fn unreachable_profiles(&self) -> Vec<String> {
        self.preview(|read| {
            let rules = read.rules()?;
            Some(quorum::unreachable(
                self.voter_context(read, &rules),
                self.now(),
            ))
        })
        .unwrap_or_default()
    }

    /// Profiles that too few people can satisfy now and once waiting invitations are used, in words: for everyone who signs in, until
    /// it is mended. Nothing as long as it is not known which requests ask for them, shortly after a start.
    fn lapsed_quorums(&self) -> Vec<String> {
        self.preview(|read| {
            let rules = read.rules()?;
            let asking = rules.bundle.known_asking_agents()?;
            Some(quorum::lapsed(read, &rules.bundle, asking, self.now()))
        })
        .unwrap_or_default()
    }

    /// Notices for everyone who signs in: facts that have another value than normally, and profiles that too few people can satisfy.
    pub fn notices(&self) -> Vec<String> {
        let mut notices = self.fact_notices(self.now());
        notices.extend(self.lapsed_quorums());
        notices
    }

    /// What a bundle changes for people as they are now.
    pub(super) fn people_summary(&self, registration: &PeopleRegistration) -> PeopleSummary {
        let (show, now) = (self.show(), self.now());
        PeopleSummary::new(show, registration, |person| {
            let since = show.person(person).since;
            self.sessions.of_person(person, since, now)
        })
    }

    /// Loads and checks the files as a policy bundle, with the summary of applying it.
    pub(in crate::broker) async fn load_bundle(
        &self,
        method: &'static str,
        files: BTreeMap<String, String>,
    ) -> Result<(BundleFiles, PolicyBundle, BundleApplied), Refusal> {
        let refuse = |e: &dyn std::fmt::Display| {
            let problems = shortened(&e.to_string());
            self.refuse(method, Reason::InvalidPolicyBundle, problems)
        };
        let files = BundleFiles::new(files).map_err(|e| refuse(&e))?;
        // Loading parses, validates and self-tests: long enough to keep off the threads that answer calls.
        let loading = tokio::task::spawn_blocking(move || {
            PolicyBundle::load_checked(&files).map(|bundle| (files, bundle))
        });
        let (files, bundle) = loading
            .await
            .map_err(|e| refuse(&e))?
            .map_err(|e| refuse(&e))?;
        bundle.check_has_operator().map_err(|e| refuse(&e))?;
        let applied = BundleApplied::of(&bundle);
        Ok((files, bundle, applied))
    }
}

impl BundleApplied {
    /// The summary before anything is known of its effects.
    pub(super) fn of(bundle: &PolicyBundle) -> Self {
        Self {
            version: bundle.version().to_string(),
            changed: true,
            rules: bundle.rules().count(),
            agents: bundle.agents().count(),
            warnings: bundle.warnings().iter().map(ToString::to_string).collect(),
            ..Self::default()
        }
    }
}

/// What an apply changes for people, in sentences.
#[derive(Debug, Default)]
pub(super) struct PeopleSummary {
    pub(super) changes: Vec<String>,
    pub(super) warnings: Vec<String>,
}

impl PeopleSummary {
    /// The changes before they are made; `sessions`: how many a person has open. Shown: nothing is decided by it.
    pub(super) fn new(
        show: Show<'_>,
        registration: &PeopleRegistration,
        sessions: impl Fn(&PersonId) -> usize,
    ) -> Self {
        let describe = |change: &PersonChange| {
            let person = &change.person;
            let known = show.person(person);
            let ended = || {
                let mut ended = vec![counted(known.passkeys.len(), "passkey")];
                ended.push(counted(sessions(person), "session"));
                if show.invitation(person).is_some() {
                    ended.push("1 invitation".to_owned());
                }
                ended.join(", ")
            };
            match &change.kind {
                PersonChangeKind::Left => format!("{person} leaves: {} end", ended()),
                PersonChangeKind::LostRoles(roles) => {
                    let roles: Vec<_> = roles.iter().map(|role| role.as_str()).collect();
                    format!(
                        "{person} loses the role {}: {} end",
                        roles.join(", "),
                        ended()
                    )
                }
                PersonChangeKind::Narrowed { groups, keys } => {
                    let groups = groups.iter().map(|group| format!("the group {group}"));
                    let keys = (*keys > 0).then(|| counted(*keys, "registered key"));
                    let lost: Vec<_> = groups.chain(keys).collect();
                    format!(
                        "{person} loses {}: votes of theirs that no token has used no longer count",
                        lost.join(", ")
                    )
                }
                PersonChangeKind::Came if !show.has_keys(person) => {
                    format!("{person} comes")
                }
                PersonChangeKind::Came => format!(
                    "{person} comes as a new person: no key of the {person} who left counts again (`--returning {person}`, in the apply that brings them, says that they are the same)"
                ),
                PersonChangeKind::Returned => {
                    format!(
                        "{person} returns: {} and registered keys count again",
                        counted(known.left.len(), "passkey")
                    )
                }
            }
        };
        let dead = |(person, key): &(PersonId, Thumbprint)| {
            format!("people.toml: the key {key} of {person} is dead and does nothing: remove it")
        };
        let changes = registration.changes.iter().map(describe);
        Self {
            changes: changes
                .chain(registration.gains.iter().filter_map(PersonGain::sentence))
                .collect(),
            warnings: registration.dead.iter().map(dead).collect(),
        }
    }
}

/// Most bytes of the problems in a refusal.
const PROBLEMS_BYTES_MAX: usize = 1_600;

/// The first problems, one on a line, and the number of the others.
fn shortened(problems: &str) -> String {
    if problems.len() <= PROBLEMS_BYTES_MAX {
        return problems.to_owned();
    }
    let mut left = PROBLEMS_BYTES_MAX;
    let fits = |line: &&str| {
        let rest = left.checked_sub(line.len() + 1);
        left = rest.unwrap_or(0);
        rest.is_some()
    };
    let mut kept: Vec<&str> = problems.lines().take_while(fits).collect();
    let more = problems.lines().count() - kept.len();
    let rest = format!("and {more} more; 'dipylon policy check DIR' lists every problem");
    kept.push(&rest);
    kept.join("\n")
}
