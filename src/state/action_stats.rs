//! Statistics of one agent and one action: what is usual for the agent, by hour, day and target.

use std::collections::VecDeque;

use serde::Serialize;

use super::counters::{add, median_of};
use crate::model::*;

/// Most days with requests kept besides today; the median day is taken over them.
pub const DAYS_MAX: usize = 31;
/// Most distinct targets kept; with more, no target is reported as new.
pub const TARGETS_MAX: usize = 32;

/// Counters of one agent and one action.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ActionStats {
    /// Requests that the policy answered, with any answer. A retry with an unchanged answer does not count.
    pub requested: u64,
    /// Tokens issued.
    pub granted: u64,
    /// Requests that the policy denied.
    pub denied_by_rules: u64,
    /// Access requests that people approved and a token was issued for.
    pub approved: u64,
    /// Access requests that a person denied.
    pub denied: u64,
    /// Access requests that expired undecided.
    pub expired: u64,
    /// Time and author of the last approval that led to a token.
    pub last_approved: Option<(Timestamp, PersonId)>,
    /// Time and author of the last denial.
    pub last_denied: Option<(Timestamp, PersonId)>,
    /// Time of the first request.
    pub first_at: Option<Timestamp>,
    /// Time of the last request.
    pub last_at: Option<Timestamp>,
    /// Decided requests by the hour of the day at which they were made, UTC.
    pub hours: [u32; 24],
    /// The last days with requests, oldest first: day number since 1970-01-01 UTC, and requests. At most [`DAYS_MAX`] and today.
    pub days: VecDeque<(i64, u32)>,
    /// Targets of decided requests.
    pub targets: KnownTargets,
}

/// The distinct targets of decided requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum KnownTargets {
    /// All of them.
    All(Vec<Target>),
    /// More than [`TARGETS_MAX`].
    Many,
}

impl Default for KnownTargets {
    fn default() -> Self {
        Self::All(Vec::new())
    }
}

impl ActionStats {
    /// Decided requests: a token was issued, or a person denied it.
    pub fn decided(&self) -> u64 {
        self.granted.saturating_add(self.denied)
    }

    /// Requests on the UTC day of `now`.
    pub fn requests_on(&self, now: Timestamp) -> u32 {
        let today = day_of(now);
        let entry = self.days.iter().find(|(day, _)| *day == today);
        entry.map_or(0, |(_, requests)| *requests)
    }

    /// Median number of requests over the kept days before `now` that had any, and the number of such days.
    pub fn median_day_before(&self, now: Timestamp) -> (Option<u32>, usize) {
        let today = day_of(now);
        let before = self.days.iter().filter(|(day, _)| *day < today);
        let mut requests: Vec<u32> = before.map(|(_, requests)| *requests).collect();
        (median_of(&mut requests), requests.len())
    }

    pub(super) fn record_request(&mut self, at: Timestamp) {
        add(&mut self.requested);
        self.first_at.get_or_insert(at);
        self.last_at = Some(at);
        match self.days.back_mut() {
            // Entries are in order of time.
            Some((day, requests)) if *day == day_of(at) => *requests = requests.saturating_add(1),
            Some(_) | None => {
                self.days.push_back((day_of(at), 1));
                if self.days.len() > DAYS_MAX + 1 {
                    self.days.pop_front();
                }
            }
        }
    }

    /// Counts a request made at `requested_at` that was decided.
    pub(super) fn record_decided(&mut self, requested_at: Timestamp, target: &Target) {
        if let Some(hour) = self.hours.get_mut(hour_of(requested_at)) {
            *hour = hour.saturating_add(1);
        }
        if let KnownTargets::All(known) = &mut self.targets
            && !known.contains(target)
        {
            if known.len() < TARGETS_MAX {
                known.push(target.clone());
            } else {
                self.targets = KnownTargets::Many;
            }
        }
    }
}

/// Days since 1970-01-01, UTC.
fn day_of(at: Timestamp) -> i64 {
    at.secs().div_euclid(86_400)
}

/// Hour of the day, UTC: 0 to 23.
pub(super) fn hour_of(at: Timestamp) -> usize {
    usize::try_from(at.secs().rem_euclid(86_400) / 3_600).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_bounded_and_exclude_today() {
        let mut stats = ActionStats::default();
        for day in 0..100 {
            for _ in 0..=day % 2 {
                stats.record_request(Timestamp::from_secs(day * 86_400 + 7_200));
            }
        }
        let today = Timestamp::from_secs(99 * 86_400 + 80_000);
        assert_eq!(stats.days.len(), DAYS_MAX + 1);
        assert_eq!(stats.requests_on(today), 2);
        assert_eq!(stats.median_day_before(today), (Some(1), DAYS_MAX));
        assert_eq!(stats.requests_on(today.plus_secs(86_400)), 0);
        assert_eq!(stats.requested, 150);
    }

    #[test]
    fn undecided_requests_do_not_train_stats() {
        let target = Target::parse("Case", "1").expect("target");
        let mut stats = ActionStats::default();
        stats.record_request(Timestamp::from_secs(7_200));
        assert_eq!(
            (stats.hours, &stats.targets),
            ([0; 24], &KnownTargets::default())
        );
        stats.record_decided(Timestamp::from_secs(7_200), &target);
        assert_eq!(
            (stats.hours[2], &stats.targets),
            (1, &KnownTargets::All(vec![target]))
        );
    }
}
