//! Recount of the decision statistics from the stored entries, to compare with the state.

use std::collections::{BTreeMap, BTreeSet};

use dipylon::journal::JournalReader;
use dipylon::state::State;
use dipylon::state::action_stats::{KnownTargets, TARGETS_MAX};
use dipylon_sdk::model::*;

/// Recomputes the statistics from the stored entries in a naive way, and compares.
pub fn recount(dir: &std::path::Path, state: &State) {
    #[derive(Default)]
    struct RecountedHabit {
        asked: u64,
        granted: u64,
        refused: u64,
        denied: u64,
        expired: u64,
        approved: u64,
        hours: [u32; 24],
        targets: BTreeSet<Target>,
    }
    impl RecountedHabit {
        /// Counts a decided request opened at this time.
        fn learn(&mut self, asked_at: Timestamp, target: &Target) {
            let text = asked_at.to_string();
            let hour: usize = text[11..13].parse().expect("RFC 3339");
            self.hours[hour] += 1;
            self.targets.insert(target.clone());
        }
    }
    let mut habits: BTreeMap<(AgentId, ActionName), RecountedHabit> = BTreeMap::new();
    let mut hits: BTreeMap<String, u64> = BTreeMap::new();
    let mut votes: BTreeMap<PersonId, (u64, u64)> = BTreeMap::new();
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
                    let habit = habits.entry(key).or_default();
                    habit.asked += 1;
                    habit.refused += 1;
                }
            }
            Event::AccessRequestOpened(f) => {
                hit(&f.decision);
                let key = (f.agent, f.action.action);
                habits.entry(key.clone()).or_default().asked += 1;
                asks.insert(f.access_request, (entry.at, f.action.target));
                requests.insert(f.access_request, key);
            }
            Event::VoteCast(f) => {
                let (yes, no) = votes.entry(f.voter).or_default();
                match f.verdict {
                    Verdict::Approve => *yes += 1,
                    Verdict::Deny => {
                        *no += 1;
                        let key = requests[&f.access_request].clone();
                        *decided.entry(key.0.clone()).or_default() += 1;
                        let habit = habits.entry(key).or_default();
                        habit.denied += 1;
                        let (at, target) = &asks[&f.access_request];
                        habit.learn(*at, target);
                    }
                }
            }
            Event::AccessRequestClosed(f) if f.cause == CloseCause::Expired => {
                let key = requests[&f.access_request].clone();
                habits.entry(key).or_default().expired += 1;
            }
            Event::TokenIssued(f) => {
                hit(&f.decision);
                *decided.entry(f.agent.clone()).or_default() += 1;
                let key = (f.agent, f.action.action.clone());
                let habit = habits.entry(key).or_default();
                let at = f.consumed.map_or(entry.at, |id| asks[&id].0);
                habit.learn(at, &f.action.target);
                habit.asked += u64::from(f.consumed.is_none());
                habit.granted += 1;
                habit.approved += u64::from(f.approval.is_some());
            }
            _ => {}
        }
        Ok(())
    });
    walked.expect("walked");
    let figures = state.stats();
    for ((agent, action), plain) in &habits {
        let habit = figures.action_stats(agent, action).expect("counted");
        assert_eq!(
            (habit.requested, habit.granted, habit.denied_by_rules),
            (plain.asked, plain.granted, plain.refused),
            "{agent} {action}"
        );
        assert_eq!(
            (habit.approved, habit.denied, habit.expired),
            (plain.approved, plain.denied, plain.expired),
            "{agent} {action}"
        );
        let of_days: u32 = habit.days.iter().map(|(_, asks)| asks).sum();
        assert_eq!(u64::from(of_days), plain.asked);
        assert_eq!(habit.hours, plain.hours, "{agent} {action}");
        match habit.targets {
            KnownTargets::All(targets) => {
                let targets: BTreeSet<Target> = targets.into_iter().collect();
                assert_eq!(targets, plain.targets, "{agent} {action}");
            }
            KnownTargets::Many => assert!(plain.targets.len() > TARGETS_MAX),
        }
    }
    for (agent, count) in &decided {
        assert_eq!(figures.agent(agent).decided, *count, "{agent}");
    }
    for (rule, count) in &hits {
        assert_eq!(figures.rule(rule).hits, *count, "{rule}");
    }
    for (person, counts) in &votes {
        let approver = figures.approver(person);
        assert_eq!((approver.approvals, approver.denials), *counts, "{person}");
    }
}
