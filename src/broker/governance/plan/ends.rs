//! What a policy bundle would end, or change, of what is open now.

use std::collections::BTreeSet;

use super::PlanInput;
use crate::approve::needs::{self, Reassessment};
use crate::approve::votes;
use crate::broker::Broker;
use crate::broker::governance::disallowed::may_still_operate;
use crate::model::*;
use crate::policy::ActivePolicy;

impl Broker {
    /// What a bundle would end of what is open now.
    pub(super) fn planned_ends(
        &self,
        input: &PlanInput,
        active: &ActivePolicy,
        now: Timestamp,
    ) -> PlannedEnds {
        let mut ends = PlannedEnds::default();
        let candidate = &input.candidate;
        // Approvers are looked at as they are registered now.
        let people_change = !input.people.changes.is_empty();
        let mut ended = BTreeSet::new();
        for task in self.show().open_tasks() {
            let opened = &task.opened;
            let owner = candidate.agent(&opened.agent).map(|a| a.owner.clone());
            let is_frozen = owner.is_some_and(|owner| {
                self.preview(|read| read.is_frozen(&FreezeScope::Owner(owner)))
            });
            let goes_on = !is_frozen && may_still_operate(opened, active);
            if !goes_on {
                ended.insert(opened.task);
                add(&mut ends.tasks, opened.task, &opened.agent, String::new());
            }
            for grant in self.show().grants_of_task(&opened.task) {
                if self.show().end_cause(&grant, now).is_some() {
                    continue;
                }
                let jti = grant.issued.jti;
                let is_allowed = self.preview(|read| {
                    let grant = read.grant(&jti);
                    grant.is_none_or(|g| crate::approve::is_allowed_by(read, &g, candidate))
                });
                if !goes_on || !is_allowed {
                    let action = &grant.issued.action;
                    add(
                        &mut ends.tokens,
                        jti,
                        &grant.issued.agent,
                        request_of(action),
                    );
                }
            }
        }
        for request in self.show().pending_requests(now) {
            let opened = &request.opened;
            let id = opened.access_request;
            let (who, what) = (
                opened
                    .agent()
                    .map_or_else(|| opened.owner().to_string(), ToString::to_string),
                request_of(&opened.action),
            );
            let is_of_ended_task = opened.task().is_some_and(|task| ended.contains(&task));
            let proposed = opened.by_person().map(|by| by.bundle);
            if proposed == Some(candidate.version()) {
                continue;
            }
            // Another bundle in force voids every proposal.
            if is_of_ended_task || proposed.is_some() {
                add(&mut ends.access_requests, id, who, what);
                continue;
            }
            let becomes = self.preview(|read| {
                let request = read.access_request(&id)?;
                let after = self.voter_context(read, active);
                let becomes = needs::reassess(&request, after, now);
                let satisfied = |context| votes::tally(&request, context, now).satisfied;
                // Approvals that would be void: what they were given for changes.
                let in_force = read.rules()?;
                let before = satisfied(self.voter_context(read, &in_force));
                let is_void = !before.is_subset(&satisfied(after));
                Some((becomes, is_void))
            });
            match becomes {
                Some((Reassessment::Ends(_), _)) => add(&mut ends.access_requests, id, who, what),
                Some((Reassessment::Changed(_), _) | (Reassessment::Same, true)) => {
                    add(&mut ends.reassessed, id, who, what);
                }
                Some((Reassessment::Same, false)) if people_change => {
                    add(&mut ends.uncertain, id, who, what);
                }
                Some((Reassessment::Same, false)) | None => {}
            }
        }
        ends
    }
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
