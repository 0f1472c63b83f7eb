//! What a policy bundle would end, or change, of what is open now.

use std::collections::{BTreeMap, BTreeSet};

use super::{AskedBy, PlanFailure, PlanInput, PlanJob};
use crate::approve::needs::{self, Reassessment};
use crate::approve::votes;
use crate::broker::Broker;
use crate::broker::governance::disallowed::may_still_operate;
use crate::jose::PublicKey;
use crate::model::*;
use crate::policy::{ActivePolicy, AlikeRequests, PolicyBundle};
use crate::state::{AccessRequest, Shown};

impl Broker {
    /// What a bundle would end of what is open now.
    pub(super) fn planned_ends(
        &self,
        job: &PlanJob,
        input: &PlanInput,
        active: &ActivePolicy,
        now: Timestamp,
    ) -> Result<PlannedEnds, PlanFailure> {
        let mut ends = PlannedEnds::default();
        let candidate = &input.candidate;
        let mut ended = BTreeSet::new();
        let mut secrets = SecretRules::default();
        let mut alike = AlikeRequests::of(&input.base, candidate);
        let running = self.show().open_tasks().into_iter();
        // Those that time has ended are no longer a bundle's to end.
        for task in running.filter(|task| task.is_running(now)) {
            if job.is_given_up() {
                return Err(PlanFailure::Cancelled);
            }
            let opened = &task.opened;
            let owner = candidate.agent(&opened.agent).map(|a| a.owner.clone());
            let is_frozen = owner.is_some_and(|owner| {
                self.preview(|read| read.is_frozen(&FreezeScope::Owner(owner)))
            });
            let goes_on = !is_frozen
                && may_still_operate(opened, active)
                && !is_given_to_another(opened, candidate);
            if !goes_on {
                ended.insert(opened.task);
                add(&mut ends.tasks, opened.task, &opened.agent, String::new());
            }
            for grant in self.show().grants_of_task(&opened.task) {
                if self.show().end_cause(&grant, now).is_some() {
                    continue;
                }
                let (jti, issued) = (grant.issued.jti, &grant.issued);
                // A token for what another agent recommended rests on that agent, too.
                let consumed = issued
                    .consumed
                    .and_then(|id| self.show().access_request(&id));
                let is_own = consumed.is_none_or(|r| r.opened.executor().is_none());
                let agent = input.base.agent(&issued.agent);
                let agent = agent.filter(|_| goes_on && is_own);
                let bundles = [&*input.base, &**candidate];
                let of = (&issued.action.action, &issued.action.target);
                // What is alive under the bundle in force stays under the other.
                if agent.is_some_and(|agent| alike.has(bundles, &agent, of.0, of.1)) {
                    continue;
                }
                let what = request_of(&issued.action);
                if goes_on && !secrets.tell_nothing(input, issued.secret, &issued.action) {
                    add(&mut ends.uncertain, jti, &issued.agent, what);
                    continue;
                }
                let is_allowed = self.preview(|read| {
                    let grant = read.grant(&jti);
                    grant.is_none_or(|g| crate::approve::is_allowed_by(read, &g, candidate))
                });
                if !goes_on || !is_allowed {
                    add(&mut ends.tokens, jti, &issued.agent, what);
                }
            }
        }
        for request in self.show().pending_requests(now) {
            if job.is_given_up() {
                return Err(PlanFailure::Cancelled);
            }
            let opened = &request.opened;
            let who = opened
                .agent()
                .map_or_else(|| opened.owner().to_string(), ToString::to_string);
            let becomes = match (opened.by_person(), opened.task()) {
                (Some(by), _) if job.is_of(by, candidate) => continue,
                // Another bundle in force voids every proposal.
                (Some(_), _) => Becomes::Ends,
                (None, Some(task)) if ended.contains(&task) => Becomes::Ends,
                (None, _) => self.becomes(&request, input, active, now, &mut secrets),
            };
            let list = match becomes {
                Becomes::Ends => &mut ends.access_requests,
                Becomes::Changed => &mut ends.reassessed,
                Becomes::Perhaps => &mut ends.uncertain,
                Becomes::Same => continue,
            };
            add(list, opened.access_request, who, request_of(&opened.action));
        }
        Ok(ends)
    }

    /// What becomes of a waiting access request of an agent.
    fn becomes(
        &self,
        request: &Shown<AccessRequest>,
        input: &PlanInput,
        active: &ActivePolicy,
        now: Timestamp,
        secrets: &mut SecretRules,
    ) -> Becomes {
        let opened = &request.opened;
        if !secrets.tell_nothing(input, opened.secret, &opened.action) {
            return Becomes::Perhaps;
        }
        let becomes = self.preview(|read| {
            let request = read.access_request(&opened.access_request)?;
            let after = self.voter_context(read, active);
            Some(match needs::reassess(&request, after, now) {
                Reassessment::Ends(_) => Becomes::Ends,
                Reassessment::Changed(_) => Becomes::Changed,
                Reassessment::Same => {
                    let in_force = read.rules()?;
                    let counted = |context| votes::tally(&request, context, now).counted;
                    let before = counted(self.voter_context(read, &in_force));
                    let after = counted(after);
                    // Approvals that would be void: what they were given for changes.
                    let is_void = before.iter().any(|(profile, voters)| {
                        let still = after.get(profile);
                        voters
                            .keys()
                            .any(|voter| still.is_none_or(|still| !still.contains_key(voter)))
                    });
                    match is_void {
                        true => Becomes::Changed,
                        // Approvers are looked at as they are registered now.
                        false if !input.people.changes.is_empty() => Becomes::Perhaps,
                        false => Becomes::Same,
                    }
                }
            })
        });
        becomes.unwrap_or(Becomes::Same)
    }
}

/// What becomes of a waiting access request.
enum Becomes {
    Same,
    Ends,
    /// It goes on with other approvals, or without some that it has.
    Changed,
    /// It may end or change.
    Perhaps,
}

impl PlanJob {
    /// Whether a proposal is the one that the plan is of.
    fn is_of(&self, by: &PersonRequester, candidate: &PolicyBundle) -> bool {
        match &self.asked_by {
            AskedBy::Card(proposal) => *by == **proposal,
            AskedBy::Operator(operator) => {
                let bundle = by.bundle().map(|(bundle, _)| *bundle);
                by.person == *operator && bundle == Some(candidate.version())
            }
        }
    }
}

/// By action and sensitive parameters, whether what a bundle says about it tells nothing of their values.
#[derive(Default)]
struct SecretRules(BTreeMap<(ActionName, Vec<String>), bool>);

impl SecretRules {
    fn tell_nothing(
        &mut self,
        input: &PlanInput,
        secret: Option<Digest>,
        action: &ActionOnRecord,
    ) -> bool {
        let key = (action.action.clone(), action.sensitive().cloned().collect());
        let asks = || {
            input
                .base
                .asks_the_same_of_secrets(&input.candidate, action)
        };
        secret.is_none() || *self.0.entry(key).or_insert_with(asks)
    }
}

/// Whether a bundle registers the key of a task for another agent, a person or a service.
fn is_given_to_another(opened: &TaskOpened, candidate: &PolicyBundle) -> bool {
    let key = opened.binding.jkt();
    let is_pinned = candidate
        .agents()
        .any(|agent| agent.jkt == Some(key) && agent.id != opened.agent);
    let has_it = |keys: &[PublicKey]| {
        let mut names = keys.iter().flat_map(PublicKey::thumbprints);
        names.any(|name| name == key)
    };
    is_pinned
        || candidate.people().any(|person| has_it(&person.keys))
        || candidate.services().any(|service| has_it(&service.keys))
}

/// Adds one to a list.
fn add(list: &mut PlannedList, id: impl ToString, who: impl ToString, what: String) {
    list.count += 1;
    if list.named.len() < NAMED_MAX {
        let (id, who) = (id.to_string(), who.to_string());
        list.named.push(PlannedItem { id, who, what });
    }
}

fn request_of(action: &ActionOnRecord) -> String {
    format!("{} on {}", action.action, action.target.in_sentence())
}

/// Most ends that a plan names of one kind.
const NAMED_MAX: usize = 50;
