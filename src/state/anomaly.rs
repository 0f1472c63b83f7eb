//! Anomaly hints: what is out of the ordinary about an access request, for the approver.
//!
//! In: the statistics before the request, and `now`. Out: anomalies, each with one sentence made of the broker's words and
//! numbers. Never: an alarm without a history to compare with; that lack is an anomaly of its own.

use serde::Serialize;

use super::action_stats::{ActionStats, KnownTargets, hour_of};
use crate::model::*;

/// One thing that is out of the ordinary, or the reason why that is unknown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Anomaly {
    /// The anomalies at opening were evicted from memory.
    Evicted,
    /// Fewer than [`HISTORY_MIN`] requests of the agent were decided, none for this action.
    NoHistory,
    /// Requests of the agent for this action were decided before, but fewer than [`HISTORY_MIN`].
    LittleHistory {
        /// Decided requests, at least 1.
        decided: u64,
    },
    /// Other requests of the agent were decided before, none for this action.
    FirstRequest,
    /// Requests of the agent for this action were decided before, none for this target.
    NewTarget,
    /// Its decided requests for this action had more targets than are kept: whether this one is new is unknown.
    ManyTargets,
    /// None of its decided requests for this action was made at this hour of the day, or the hour before or after.
    UnusualHour {
        /// Hour of this request, 0 to 23, UTC.
        hour: u8,
        /// Decided requests.
        decided: u64,
    },
    /// Far more requests today than on the median day.
    UnusualVolume {
        /// Requests today, this one included.
        nth: u32,
        /// Requests on the median day.
        median: u32,
    },
    /// The last access request that people decided was denied.
    LastDenied {
        /// The person who denied it.
        by: PersonId,
        /// Milliseconds ago.
        ago_ms: i64,
    },
    /// The agent's evidence was not fresh when the access request was opened.
    OldEvidence {
        /// Milliseconds from its verification to the opening.
        age_ms: i64,
    },
    /// The agent was added to the policy bundle less than [`RECENT_MS`] ago.
    NewlyRegistered {
        /// Milliseconds ago.
        ago_ms: i64,
    },
    /// The agent's registration in the policy bundle changed less than [`RECENT_MS`] ago.
    RegistrationChanged {
        /// Milliseconds ago.
        ago_ms: i64,
    },
}

/// Fewest decided requests that are a history to compare with.
pub const HISTORY_MIN: u64 = 5;
/// Fewest decided requests with which an hour can be unusual.
pub const HOURS_MIN: u64 = 20;
/// Fewest days with requests with which a day can be unusual.
pub const DAYS_MIN: usize = 5;
/// Fewest requests in a day that can be unusual.
pub const DAY_ASKS_MIN: u32 = 4;
/// Multiple of the median day from which a day is unusual.
pub const DAY_FACTOR: u32 = 3;
/// How long a denial or a change of registration is reported, in milliseconds: one day.
pub const RECENT_MS: i64 = 86_400_000;
/// Age from which evidence is reported as old, in milliseconds.
pub const OLD_EVIDENCE_MS: i64 = 120_000;

/// The last change of an agent's registration in the policy bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AgentRegistrationChange {
    /// Time of the change.
    pub at: Timestamp,
    /// Whether the agent was added, not changed.
    pub new: bool,
}

impl Anomaly {
    /// One sentence, lowercase and without a final period.
    pub fn sentence(&self) -> String {
        match self {
            Self::Evicted => "anomalies at the opening are no longer known".to_owned(),
            Self::NoHistory => "no history yet".to_owned(),
            Self::LittleHistory { decided: 1 } => "little history yet: decided once".to_owned(),
            Self::LittleHistory { decided } => {
                format!("little history yet: decided {decided} times")
            }
            Self::FirstRequest => "no earlier decision on this action for this agent".to_owned(),
            Self::NewTarget => "no earlier decision on this target".to_owned(),
            Self::ManyTargets => {
                "too many earlier targets to tell whether this one is new".to_owned()
            }
            Self::UnusualHour { hour, decided } => {
                format!("no earlier decision at this hour ({hour:02} UTC) among {decided}")
            }
            Self::UnusualVolume { nth, median } => {
                format!("{} today; the median day has {median}", ordinal(*nth))
            }
            Self::LastDenied { by, ago_ms } => {
                format!("the last one was denied by {by} {} ago", about(*ago_ms))
            }
            Self::OldEvidence { age_ms } => {
                format!(
                    "evidence was verified {} before the request",
                    about(*age_ms)
                )
            }
            Self::NewlyRegistered { ago_ms } => format!("agent registered {} ago", about(*ago_ms)),
            Self::RegistrationChanged { ago_ms } => {
                format!("the agent's registration changed {} ago", about(*ago_ms))
            }
        }
    }
}

/// Anomalies of a request for `target` made at `at`, given the statistics before it. `agent_decided`: decided requests of
/// the agent, for any action.
pub(super) fn at_open(
    before: Option<&ActionStats>,
    agent_decided: u64,
    target: &Target,
    at: Timestamp,
) -> Vec<Anomaly> {
    let mut anomalies = match before.filter(|stats| stats.decided() > 0) {
        None if agent_decided < HISTORY_MIN => vec![Anomaly::NoHistory],
        None => vec![Anomaly::FirstRequest],
        Some(stats) if stats.decided() < HISTORY_MIN => {
            let decided = stats.decided();
            vec![Anomaly::LittleHistory { decided }]
        }
        Some(stats) => compare_with_history(stats, target, at),
    };
    anomalies.extend(before.and_then(|stats| unusual_volume(stats, at)));
    anomalies
}

fn compare_with_history(stats: &ActionStats, target: &Target, at: Timestamp) -> Vec<Anomaly> {
    let mut anomalies = Vec::new();
    match &stats.targets {
        KnownTargets::All(known) if known.contains(target) => {}
        KnownTargets::All(_) => anomalies.push(Anomaly::NewTarget),
        KnownTargets::Many => anomalies.push(Anomaly::ManyTargets),
    }
    let hour = hour_of(at);
    // The hour before and the hour after count as this one: a request one minute past the hour is not unusual.
    let near = [(hour + 23) % 24, hour, (hour + 1) % 24];
    let never = near
        .iter()
        .all(|hour| stats.hours.get(*hour).is_none_or(|requests| *requests == 0));
    if stats.decided() >= HOURS_MIN && never {
        anomalies.push(Anomaly::UnusualHour {
            hour: u8::try_from(hour).unwrap_or(0),
            decided: stats.decided(),
        });
    }
    anomalies
}

/// Counts all requests, decided or not: an agent whose requests are all denied is unusual too.
fn unusual_volume(stats: &ActionStats, at: Timestamp) -> Option<Anomaly> {
    let nth = stats.requests_on(at).saturating_add(1);
    let (median, days) = stats.median_day_before(at);
    let median = median.filter(|_| days >= DAYS_MIN)?;
    let busy = nth >= DAY_ASKS_MIN && nth >= median.saturating_mul(DAY_FACTOR);
    busy.then_some(Anomaly::UnusualVolume { nth, median })
}

/// Anomalies of an access request when it is viewed at `now`, besides those at its opening. `verified_at`: when its evidence
/// was verified.
pub fn at_view(
    verified_at: Timestamp,
    opened_at: Timestamp,
    stats: Option<&ActionStats>,
    registration: Option<AgentRegistrationChange>,
    now: Timestamp,
) -> Vec<Anomaly> {
    let mut anomalies = Vec::new();
    let recent = |at: Timestamp| (0..RECENT_MS).contains(&now.since(at));
    if let Some((at, by)) = stats.and_then(|stats| stats.last_denied.as_ref()) {
        let approved_since = stats
            .and_then(|stats| stats.last_approved.as_ref())
            .is_some_and(|(approved, _)| approved > at);
        if !approved_since && recent(*at) {
            anomalies.push(Anomaly::LastDenied {
                by: by.clone(),
                ago_ms: now.since(*at),
            });
        }
    }
    let age_ms = opened_at.since(verified_at);
    if age_ms >= OLD_EVIDENCE_MS {
        anomalies.push(Anomaly::OldEvidence { age_ms });
    }
    if let Some(registration) = registration.filter(|r| recent(r.at)) {
        let ago_ms = now.since(registration.at);
        anomalies.push(match registration.new {
            true => Anomaly::NewlyRegistered { ago_ms },
            false => Anomaly::RegistrationChanged { ago_ms },
        });
    }
    anomalies
}

/// A duration in its largest unit: `3 min`.
fn about(ms: i64) -> String {
    let seconds = ms.max(0) / 1000;
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7_199 => format!("{} min", seconds / 60),
        7_200..=172_799 => format!("{} h", seconds / 3_600),
        172_800.. | i64::MIN..=-1 => format!("{} d", seconds / 86_400),
    }
}

fn ordinal(n: u32) -> String {
    let ending = match (n % 100, n % 10) {
        (11..=13, _) => "th",
        (_, 1) => "st",
        (_, 2) => "nd",
        (_, 3) => "rd",
        (_, 0 | 4..) => "th",
    };
    format!("{n}{ending}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400;
    /// 2027-01-15, 08:00:00 UTC.
    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    fn target(id: &str) -> Target {
        Target::parse("Account", id).expect("target")
    }

    fn granted(stats: &mut ActionStats, at: Timestamp, target: &Target) {
        stats.record_request(at);
        stats.record_decided(at, target);
        stats.granted += 1;
    }

    /// One granted request per unit of `days`, the last day being yesterday, all at hour `hours` UTC.
    fn history(days: &[u32], hours: i64) -> ActionStats {
        let mut stats = ActionStats::default();
        let midnight = NOW.secs().div_euclid(DAY) * DAY;
        let mut ago = i64::try_from(days.len()).expect("few");
        for requests in days {
            for _ in 0..*requests {
                let at = Timestamp::from_secs(midnight - ago * DAY + hours * 3_600);
                granted(&mut stats, at, &target("ann"));
            }
            ago -= 1;
        }
        stats
    }

    fn sentences(anomalies: &[Anomaly]) -> Vec<String> {
        anomalies.iter().map(Anomaly::sentence).collect()
    }

    fn opening(stats: Option<&ActionStats>, agent_asked: u64, target: &Target) -> Vec<String> {
        sentences(&at_open(stats, agent_asked, target, NOW))
    }

    #[test]
    fn no_anomaly_without_history() {
        let ann = target("ann");
        assert_eq!(
            sentences(&[Anomaly::Evicted]),
            ["anomalies at the opening are no longer known"]
        );
        assert_eq!(opening(None, 0, &ann), ["no history yet"]);
        assert_eq!(opening(None, HISTORY_MIN - 1, &ann), ["no history yet"]);
        assert_eq!(
            opening(None, HISTORY_MIN, &ann),
            ["no earlier decision on this action for this agent"]
        );
        let far = history(&[1], 20);
        assert_eq!(
            opening(Some(&far), 1, &target("bob")),
            ["little history yet: decided once"]
        );
        let four = history(&[1, 1, 1, 1], 20);
        assert_eq!(
            opening(Some(&four), 4, &target("bob")),
            ["little history yet: decided 4 times"]
        );
    }

    #[test]
    fn new_target_until_too_many_are_known() {
        let mut known = history(&[1; 5], 8);
        assert_eq!(opening(Some(&known), 5, &target("ann")), [""; 0]);
        assert_eq!(
            opening(Some(&known), 5, &target("bob")),
            ["no earlier decision on this target"]
        );
        for n in 0..super::super::action_stats::TARGETS_MAX {
            granted(&mut known, NOW.plus_secs(-DAY), &target(&format!("t-{n}")));
        }
        assert_eq!(known.targets, KnownTargets::Many);
        for any in ["ann", "bob"] {
            let anomalies = opening(Some(&known), 40, &target(any));
            let cannot_tell = "too many earlier targets to tell whether this one is new";
            assert!(anomalies.iter().any(|s| s == cannot_tell), "{anomalies:?}");
        }
    }

    #[test]
    fn unusual_hour_needs_history_and_no_neighbours() {
        let ann = target("ann");
        let anomalies = ["no earlier decision at this hour (08 UTC) among 20"];
        assert_eq!(opening(Some(&history(&[1; 20], 10)), 20, &ann), anomalies);
        assert_eq!(opening(Some(&history(&[1; 20], 6)), 20, &ann), anomalies);
        for near in [7, 8, 9] {
            assert_eq!(opening(Some(&history(&[1; 20], near)), 20, &ann), [""; 0]);
        }
        assert_eq!(opening(Some(&history(&[1; 19], 10)), 19, &ann), [""; 0]);
        // Midnight has a neighbour on the day before.
        let late = history(&[1; 20], 23);
        let midnight = Timestamp::from_secs(NOW.secs().div_euclid(DAY) * DAY);
        assert_eq!(
            sentences(&at_open(Some(&late), 20, &ann, midnight)),
            [""; 0]
        );
    }

    #[test]
    fn undecided_requests_are_no_history() {
        let ann = target("ann");
        let mut undecided = ActionStats::default();
        for _ in 0..HOURS_MIN {
            undecided.record_request(NOW);
            undecided.denied_by_rules += 1;
        }
        assert_eq!(opening(Some(&undecided), 0, &ann), ["no history yet"]);
        granted(&mut undecided, NOW.plus_secs(-DAY), &ann);
        undecided.denied += 1;
        assert_eq!(
            opening(Some(&undecided), 2, &ann),
            ["little history yet: decided 2 times"]
        );
    }

    #[test]
    fn unusual_volume_against_median_day() {
        let ann = target("ann");
        let mut busy = history(&[1, 1, 1, 9, 1], 8);
        for _ in 0..6 {
            busy.record_request(NOW);
        }
        assert_eq!(
            opening(Some(&busy), 19, &ann),
            ["7th today; the median day has 1"]
        );
        let mut usual = history(&[3, 3, 3, 3, 3], 8);
        for _ in 0..6 {
            usual.record_request(NOW);
        }
        assert_eq!(opening(Some(&usual), 21, &ann), [""; 0], "7 of 3 is no 9");
        let mut young = history(&[1, 1, 1, 1], 8);
        for _ in 0..6 {
            young.record_request(NOW);
        }
        granted(&mut young, NOW, &ann);
        assert_eq!(opening(Some(&young), 10, &ann), [""; 0], "too few days");
        let mut vain = ActionStats::default();
        for ago in [5, 4, 3, 2, 1, 0, 0, 0] {
            vain.record_request(NOW.plus_secs(-ago * DAY));
        }
        assert_eq!(
            opening(Some(&vain), 0, &ann),
            ["no history yet", "4th today; the median day has 1"]
        );
    }

    #[test]
    fn anomalies_expire() {
        let lee = PersonId::parse("lee").expect("id");
        let maria = PersonId::parse("maria").expect("id");
        let mut stats = history(&[5], 8);
        let denied = NOW.plus_secs(-180);
        stats.last_denied = Some((denied, lee));
        let fresh = NOW.plus_secs(-30);
        let show = |stats: &ActionStats, registration, verified_at, now| {
            sentences(&at_view(verified_at, NOW, Some(stats), registration, now))
        };
        assert_eq!(
            show(&stats, None, fresh, NOW),
            ["the last one was denied by lee 3 min ago"]
        );
        assert_eq!(show(&stats, None, fresh, NOW.plus_secs(DAY)), [""; 0]);
        stats.last_approved = Some((denied.plus_secs(1), maria));
        assert_eq!(show(&stats, None, fresh, NOW), [""; 0], "approved since");
        assert_eq!(
            show(&stats, None, NOW.plus_secs(-240), NOW.plus_secs(600)),
            ["evidence was verified 4 min before the request"],
            "as of the asking, whenever it is shown"
        );
        let registration = |ago_s: i64, new| {
            let at = NOW.plus_secs(-ago_s);
            show(
                &stats,
                Some(AgentRegistrationChange { at, new }),
                fresh,
                NOW,
            )
        };
        assert_eq!(registration(7_200, true), ["agent registered 2 h ago"]);
        assert_eq!(
            registration(60, false),
            ["the agent's registration changed 60 s ago"]
        );
        assert_eq!(registration(DAY, false), [""; 0]);
    }

    #[test]
    fn ordinals_and_durations() {
        let ordinals: Vec<_> = [1, 2, 3, 4, 11, 12, 13, 21, 22, 111, 1_003]
            .map(ordinal)
            .to_vec();
        assert_eq!(
            ordinals,
            [
                "1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "22nd", "111th",
                "1003rd"
            ]
        );
        let spans = [-5_000, 119_999, 120_000, 7_200_000, 172_800_000];
        assert_eq!(spans.map(about), ["0 s", "119 s", "2 min", "2 h", "2 d"]);
    }
}
