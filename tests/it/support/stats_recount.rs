//! Recount of the decision statistics from the stored entries, to compare with the state.

use std::collections::{BTreeMap, BTreeSet};

use dipylon::journal::JournalReader;
use dipylon::state::Show;
use dipylon::state::action_stats::{KnownTargets, TARGETS_MAX};
use dipylon_sdk::model::*;

/// Recomputes the statistics from the stored entries in a naive way, and compares.
pub fn recount(dir: &std::path::Path, state: Show<'_>) {
    #[derive(Default)]
    struct RecountedActionStats {
        requested: u64,
        granted: u64,
        refused: u64,
        denied: u64,
        expired: u64,
        approved: u64,
        hours: [u32; 24],
        targets: BTreeSet<Target>,
    }
    impl RecountedActionStats {
        /// Counts a decided request opened at this time.
        fn count_decided(&mut self, asked_at: Timestamp, target: &Target) {
            let text = asked_at.to_string();
            let hour: usize = text[11..13].parse().expect("RFC 3339");
            self.hours[hour] += 1;
            self.targets.insert(target.clone());
        }
    }
    let mut recounted: BTreeMap<(AgentId, ActionName), RecountedActionStats> = BTreeMap::new();
    let mut hits: BTreeMap<String, u64> = BTreeMap::new();
    let mut votes: BTreeMap<PersonId, (u64, u64, u64)> = BTreeMap::new();
    let mut voted_by_key: BTreeSet<AccessRequestId> = BTreeSet::new();
    let mut approved_by_key: BTreeMap<String, u64> = BTreeMap::new();
    let mut asked_by: BTreeMap<AccessRequestId, Vec<String>> = BTreeMap::new();
    let mut agents: BTreeMap<TaskId, AgentId> = BTreeMap::new();
    let mut decided: BTreeMap<AgentId, u64> = BTreeMap::new();
    let mut requests: BTreeMap<AccessRequestId, (AgentId, ActionName)> = BTreeMap::new();
    let mut asks: BTreeMap<AccessRequestId, (Timestamp, Target)> = BTreeMap::new();
    let journal = JournalReader::open(dir).expect("readable");
    let walked = journal.read_all(|stored| {
        let mut hit = |decision: &DecisionRecord| {
            for rule in decision.rules.iter() {
                *hits.entry(rule.id.to_string()).or_default() += 1;
            }
        };
        let entry = Entry::parse(&stored.text).expect("an entry");
        match entry.event {
            Event::TaskOpened(f) => {
                agents.insert(f.task, f.agent);
            }
            Event::RequestDenied(f) => {
                if let Some(decision) = &f.decision {
                    hit(decision);
                    let key = (agents[&f.task].clone(), f.action.action.clone());
                    let action_stats = recounted.entry(key).or_default();
                    action_stats.requested += 1;
                    action_stats.refused += 1;
                }
            }
            Event::AccessRequestOpened(f) => {
                // A proposal by a person counts for no agent.
                if let AccessRequester::Agent(by) = f.requester {
                    hit(&by.decision);
                    let rules = by.decision.rules.iter().map(|rule| rule.id.to_string());
                    asked_by.insert(f.access_request, rules.collect());
                    let key = (by.agent, f.action.action);
                    recounted.entry(key.clone()).or_default().requested += 1;
                    asks.insert(f.access_request, (entry.at, f.action.target));
                    requests.insert(f.access_request, key);
                }
            }
            Event::VoteCast(f) => {
                let by_key = f.assertion.is_none();
                let (approvals, approvals_by_key, denials) = votes.entry(f.voter).or_default();
                match f.verdict {
                    Verdict::Approve => {
                        *approvals += 1;
                        *approvals_by_key += u64::from(by_key);
                        if by_key {
                            voted_by_key.insert(f.access_request);
                        }
                    }
                    Verdict::Deny => {
                        *denials += 1;
                        if let Some(key) = requests.get(&f.access_request).cloned() {
                            *decided.entry(key.0.clone()).or_default() += 1;
                            let action_stats = recounted.entry(key).or_default();
                            action_stats.denied += 1;
                            let (at, target) = &asks[&f.access_request];
                            action_stats.count_decided(*at, target);
                        }
                    }
                }
            }
            Event::AccessRequestClosed(f) if f.cause == CloseCause::Expired => {
                if let Some(key) = requests.get(&f.access_request).cloned() {
                    recounted.entry(key).or_default().expired += 1;
                }
            }
            Event::TokenIssued(f) => {
                hit(&f.decision);
                *decided.entry(f.agent.clone()).or_default() += 1;
                let key = (f.agent, f.action.action.clone());
                let action_stats = recounted.entry(key).or_default();
                let at = f.consumed.map_or(entry.at, |id| asks[&id].0);
                action_stats.count_decided(at, &f.action.target);
                action_stats.requested += u64::from(f.consumed.is_none());
                action_stats.granted += 1;
                action_stats.approved += u64::from(f.approval.is_some());
                let by_key = f.approval.and(f.consumed);
                for id in by_key.iter().filter(|id| voted_by_key.contains(id)) {
                    for rule in &asked_by[id] {
                        *approved_by_key.entry(rule.clone()).or_default() += 1;
                    }
                }
            }
            _ => {}
        }
        Ok(())
    });
    walked.expect("walked");
    let stats = state.stats();
    for ((agent, action), plain) in &recounted {
        let action_stats = stats.action_stats(agent, action).expect("counted");
        assert_eq!(
            (
                action_stats.requested,
                action_stats.granted,
                action_stats.denied_by_rules
            ),
            (plain.requested, plain.granted, plain.refused),
            "{agent} {action}"
        );
        assert_eq!(
            (
                action_stats.approved,
                action_stats.denied,
                action_stats.expired
            ),
            (plain.approved, plain.denied, plain.expired),
            "{agent} {action}"
        );
        let of_days: u32 = action_stats.days.iter().map(|(_, asks)| asks).sum();
        assert_eq!(u64::from(of_days), plain.requested);
        assert_eq!(action_stats.hours, plain.hours, "{agent} {action}");
        match action_stats.targets {
            KnownTargets::All(targets) => {
                let targets: BTreeSet<Target> = targets.into_iter().collect();
                assert_eq!(targets, plain.targets, "{agent} {action}");
            }
            KnownTargets::Many => assert!(plain.targets.len() > TARGETS_MAX),
        }
    }
    for (agent, count) in &decided {
        assert_eq!(stats.agent(agent).decided, *count, "{agent}");
    }
    for (rule, count) in &hits {
        assert_eq!(stats.rule(rule).hits, *count, "{rule}");
        let by_key = approved_by_key.get(rule).copied().unwrap_or_default();
        assert_eq!(stats.rule(rule).approved_by_key, by_key, "{rule}");
    }
    for (person, counts) in &votes {
        let approver = stats.approver(person);
        let counted = (
            approver.approvals,
            approver.approvals_by_key,
            approver.denials,
        );
        assert_eq!(counted, *counts, "{person}");
    }
}
