//! Policy bundles: applying one. What it no longer allows is ended by [`super::disallowed`].

use std::collections::BTreeMap;
use std::sync::Arc;

use tracing::Instrument as _;

use crate::broker::governance::disallowed::RevocationSummary;
use crate::broker::transaction::Step;
use crate::broker::{Broker, CallContext, PersonCaller, Refusal};
use crate::journal::{AppendError, Blob};
use crate::model::*;
use crate::policy::{BundleFiles, PolicyBundle};
use crate::rate_limit::ConcurrencyPermit;
use crate::state::{Draft, Read, State};

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
    /// Counts of what it no longer allows and therefore ended.
    pub revoked: RevocationSummary,
}

/// What a round of an apply came to.
#[derive(Debug, Clone, Copy)]
enum Applying {
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
    /// The keys it registers, each with its holder.
    keys: BTreeMap<Thumbprint, String>,
}

impl StagedBundle<'_> {
    /// The entry that puts the bundle in force.
    pub(in crate::broker) fn draft(&self, by: Option<PersonId>) -> Draft {
        let version = self.version;
        let event = Event::PolicyApplied(PolicyApplied { version, by });
        Draft::one(event).with_blobs([self.content.clone()])
    }

    /// The first of its keys that a person enrolled as a passkey, with the holder that the bundle registers it for.
    fn enrolled_key(&self, read: &Read) -> Option<(Thumbprint, &str)> {
        let enrolled = read.were_enrolled(self.keys.keys().copied());
        let key = *enrolled.first()?;
        Some((key, self.keys.get(&key)?))
    }
}

impl Drop for StagedBundle<'_> {
    fn drop(&mut self) {
        self.state.unstage_bundle(&self.version);
    }
}

impl Broker {
    /// Puts a policy bundle in force, whole, or refuses it whole. A crash before the append leaves the last one in force;
    /// after it, the new one, and the next start ends what this one did not.
    ///
    /// Runs in its own task, so that a client that disconnects does not cancel it: what a bundle no longer allows is always
    /// ended before the next bundle.
    pub async fn apply_policy_bundle(
        self: &Arc<Self>,
        call: &CallContext,
        operator: PersonCaller,
        files: BTreeMap<String, String>,
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
        let uncancellable =
            async move { broker.apply_uncancellable(&call, &operator, files).await };
        let applying = tokio::spawn(uncancellable.instrument(tracing::Span::current()));
        // Cut by the end of the process, before or after an append.
        applying
            .await
            .unwrap_or_else(|e| Err(self.refuse(method, Reason::OutcomeUnknown, e.to_string())))
    }

    async fn apply_uncancellable(
        &self,
        call: &CallContext,
        operator: &PersonCaller,
        files: BTreeMap<String, String>,
    ) -> Result<BundleApplied, Refusal> {
        let (files, bundle, mut applied) = self.load_bundle(call.method, files).await?;
        let _alone = self.policy_lock.lock().await;
        let staged = self.stage(bundle, &files);
        let done = loop {
            // INVARIANT (what a bundle ended stays ended): all it disallows is ended before another comes in force.
            self.revoke_disallowed()
                .await
                .map_err(|e| self.refuse_append(call.method, &e))?;
            let apply = self.transaction(call.method).applying();
            let done = apply.run(|read| {
                let in_force = self.require_operator(read, call, operator)?;
                if in_force.bundle.version() == staged.version {
                    return Ok(Step::Answer(Applying::Done));
                }
                // The bundle of an earlier apply, whose outcome was unknown, came in force after the sweep.
                if !self.is_enforced(read) {
                    return Ok(Step::Answer(Applying::Unswept));
                }
                // INVARIANT (a key has one holder): a passkey, revoked or not, is its person's for good.
                if let Some((key, holder)) = staged.enrolled_key(read) {
                    let message = format!(
                        "`people.toml`: the key {key} of {holder} is enrolled as a passkey: use another key"
                    );
                    return Err(self.refuse(call.method, Reason::InvalidPolicyBundle, message));
                }
                let by = Some(operator.id.clone());
                Ok(Step::Append(staged.draft(by), Applying::Done))
            });
            let done = done.await?;
            match done.value {
                Applying::Done => break done,
                Applying::Unswept => {}
            }
        };
        applied.changed = done.entry.is_some();
        if applied.changed {
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
        self.append_at_start(|read| read.rules().is_none().then(|| staged.draft(None)))
            .await
    }

    /// Keeps a parsed bundle for its entry.
    pub(in crate::broker) fn stage(
        &self,
        bundle: PolicyBundle,
        files: &BundleFiles,
    ) -> StagedBundle<'_> {
        let people = bundle
            .people()
            .flat_map(|person| person.keys.iter().map(|key| (key, person.id.to_string())));
        let services = bundle.services().flat_map(|service| {
            let keys = service.keys.iter();
            keys.map(|key| (key, service.id.to_string()))
        });
        let staged = StagedBundle {
            state: &self.state,
            version: bundle.version(),
            content: Blob::new(files.canonical()),
            keys: people
                .chain(services)
                .map(|(key, holder)| (key.thumbprint(), holder))
                .collect(),
        };
        self.state.stage_bundle(bundle);
        staged
    }

    /// Ends what the bundle just put in force no longer allows. A failure is a warning: the bundle is in force, and refuses
    /// what it does not allow at each use; maintenance records the ends when the journal takes entries again.
    pub(in crate::broker) async fn revoke_after_change(&self, applied: &mut BundleApplied) {
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
            PolicyBundle::load(&files).map(|bundle| (files, bundle))
        });
        let (files, bundle) = loading
            .await
            .map_err(|e| refuse(&e))?
            .map_err(|e| refuse(&e))?;
        bundle.check_has_operator().map_err(|e| refuse(&e))?;
        let applied = BundleApplied {
            version: bundle.version().to_string(),
            changed: true,
            rules: bundle.rules().count(),
            agents: bundle.agents().count(),
            warnings: bundle.warnings().iter().map(ToString::to_string).collect(),
            revoked: RevocationSummary::default(),
        };
        Ok((files, bundle, applied))
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
