//! What is unusual about an access request, for the person who decides it.
//!
//! In: what was counted before it, and the moment. Out: oddities, each with one sentence made of our own words and numbers.
//! Never an alarm where there is nothing to compare with: then it says so.

use serde::Serialize;

use super::figures::{Habit, Targets, hour_of};
use crate::model::*;

/// One thing that is out of the ordinary, or why nothing can be said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Oddity {
    /// What was counted at the asking was given up since.
    Forgotten,
    /// Too little of the agent was decided: there is nothing to compare with.
    NoHistory,
    /// The agent's asks for this action were decided before, but too seldom to compare with.
    LittleHistory {
        /// How often.
        decided: u64,
    },
    /// Other asks of the agent were decided before, none for this action.
    FirstTime,
    /// Its asks for this action were decided before, for other targets.
    FirstOnTarget,
    /// Its asks for this action that were decided had more targets than are remembered.
    ManyTargets,
    /// None of its decided asks for this action came at this hour of the day, nor the hours beside it.
    Hour {
        /// 0 to 23, UTC.
        hour: u8,
        /// Decided before.
        decided: u64,
    },
    /// It asks much more often today than on its other days.
    Day {
        /// Asks today, this one counted.
        nth: u32,
        /// Asks of the middle one of its days.
        median: u32,
    },
    /// The last one that people decided was denied.
    LastDenied {
        /// By whom.
        by: PersonId,
        /// Milliseconds ago.
        ago_ms: i64,
    },
    /// Its evidence was not fresh when it asked.
    OldEvidence {
        /// Milliseconds since it had been verified.
        age_ms: i64,
    },
    /// The agent came into the policy bundle lately.
    Registered {
        /// Milliseconds ago.
        ago_ms: i64,
    },
    /// What the policy bundle says of the agent changed lately.
    Changed {
        /// Milliseconds ago.
        ago_ms: i64,
    },
}

/// Decided asks below which there is too little to compare with.
pub const HISTORY_MIN: u64 = 5;
/// Decided asks below which no hour is unusual.
pub const HOURS_MIN: u64 = 20;
/// Days with asks below which no day is unusual.
pub const DAYS_MIN: usize = 5;
/// Asks in a day below which no day is unusual.
pub const DAY_ASKS_MIN: u32 = 4;
/// How many times the median day makes a day unusual.
pub const DAY_FACTOR: u32 = 3;
/// How long a denial or a change of the agent is worth a sentence, in milliseconds: a day.
pub const LATELY_MS: i64 = 86_400_000;
/// Age at which evidence is worth a sentence, in milliseconds.
pub const OLD_EVIDENCE_MS: i64 = 120_000;

/// When the policy bundle last said something new of an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Registration {
    /// When.
    pub at: Timestamp,
    /// Whether it was not there before.
    pub new: bool,
}

impl Oddity {
    /// One sentence without a capital and a full stop.
    pub fn sentence(&self) -> String {
        match self {
            Self::Forgotten => "what was unusual when it was asked is no longer known".to_owned(),
            Self::NoHistory => "no history yet".to_owned(),
            Self::LittleHistory { decided: 1 } => {
                "little history yet: decided once before".to_owned()
            }
            Self::LittleHistory { decided } => {
                format!("little history yet: decided {decided} times before")
            }
            Self::FirstTime => "nothing like this was decided for this agent before".to_owned(),
            Self::FirstOnTarget => "nothing was decided on this target before".to_owned(),
            Self::ManyTargets => {
                "too many targets before to tell whether this one is new".to_owned()
            }
            Self::Hour { hour, decided } => {
                format!("none at this hour ({hour:02} UTC) among the {decided} decided before")
            }
            Self::Day { nth, median } => {
                format!("{} today; the median day has {median}", ordinal(*nth))
            }
            Self::LastDenied { by, ago_ms } => {
                format!("the last one was denied by {by} {} ago", about(*ago_ms))
            }
            Self::OldEvidence { age_ms } => {
                format!("evidence verified {} before it asked", about(*age_ms))
            }
            Self::Registered { ago_ms } => format!("agent registered {} ago", about(*ago_ms)),
            Self::Changed { ago_ms } => {
                format!("the agent's registration changed {} ago", about(*ago_ms))
            }
        }
    }
}

/// What is unusual about an ask at its moment, given what was counted before it. `agent_decided`: asks of the agent that were
/// decided, whatever for.
pub(super) fn at_opening(
    before: Option<&Habit>,
    agent_decided: u64,
    target: &Target,
    at: Timestamp,
) -> Vec<Oddity> {
    let mut odd = match before.filter(|habit| habit.decided() > 0) {
        None if agent_decided < HISTORY_MIN => vec![Oddity::NoHistory],
        None => vec![Oddity::FirstTime],
        Some(habit) if habit.decided() < HISTORY_MIN => {
            let decided = habit.decided();
            vec![Oddity::LittleHistory { decided }]
        }
        Some(habit) => beside_the_decided(habit, target, at),
    };
    odd.extend(before.and_then(|habit| busy_day(habit, at)));
    odd
}

fn beside_the_decided(habit: &Habit, target: &Target, at: Timestamp) -> Vec<Oddity> {
    let mut odd = Vec::new();
    match &habit.targets {
        Targets::All(known) if known.contains(target) => {}
        Targets::All(_) => odd.push(Oddity::FirstOnTarget),
        Targets::Many => odd.push(Oddity::ManyTargets),
    }
    let hour = hour_of(at);
    // The hours beside it count as this one: a minute past the hour is no news.
    let near = [(hour + 23) % 24, hour, (hour + 1) % 24];
    let never = near
        .iter()
        .all(|hour| habit.hours.get(*hour).is_none_or(|asks| *asks == 0));
    if habit.decided() >= HOURS_MIN && never {
        odd.push(Oddity::Hour {
            hour: u8::try_from(hour).unwrap_or(0),
            decided: habit.decided(),
        });
    }
    odd
}

/// Of all asks, decided or not: whoever asks in vain all day is as unusual.
fn busy_day(habit: &Habit, at: Timestamp) -> Option<Oddity> {
    let nth = habit.on_day_of(at).saturating_add(1);
    let (median, days) = habit.median_day_before(at);
    let median = median.filter(|_| days >= DAYS_MIN)?;
    let busy = nth >= DAY_ASKS_MIN && nth >= median.saturating_mul(DAY_FACTOR);
    busy.then_some(Oddity::Day { nth, median })
}

/// What is unusual about an access request now, beside what was at its opening; its evidence had been verified at
/// `verified_at`.
pub fn at_showing(
    verified_at: Timestamp,
    opened_at: Timestamp,
    habit: Option<&Habit>,
    registration: Option<Registration>,
    now: Timestamp,
) -> Vec<Oddity> {
    let mut odd = Vec::new();
    let lately = |at: Timestamp| (0..LATELY_MS).contains(&now.since(at));
    if let Some((at, by)) = habit.and_then(|habit| habit.last_denied.as_ref()) {
        let approved_since = habit
            .and_then(|habit| habit.last_approved.as_ref())
            .is_some_and(|(approved, _)| approved > at);
        if !approved_since && lately(*at) {
            odd.push(Oddity::LastDenied {
                by: by.clone(),
                ago_ms: now.since(*at),
            });
        }
    }
    let age_ms = opened_at.since(verified_at);
    if age_ms >= OLD_EVIDENCE_MS {
        odd.push(Oddity::OldEvidence { age_ms });
    }
    if let Some(registration) = registration.filter(|r| lately(r.at)) {
        let ago_ms = now.since(registration.at);
        odd.push(match registration.new {
            true => Oddity::Registered { ago_ms },
            false => Oddity::Changed { ago_ms },
        });
    }
    odd
}

/// A span as people say it: its largest unit alone.
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

    fn given(habit: &mut Habit, at: Timestamp, target: &Target) {
        habit.ask_at(at);
        habit.learn(at, target);
        habit.granted += 1;
    }

    /// As many tokens given as `days` says, the last of them yesterday, all at this hour of the day.
    fn habit(days: &[u32], hours: i64) -> Habit {
        let mut habit = Habit::default();
        let midnight = NOW.secs().div_euclid(DAY) * DAY;
        let mut ago = i64::try_from(days.len()).expect("few");
        for asks in days {
            for _ in 0..*asks {
                let at = Timestamp::from_secs(midnight - ago * DAY + hours * 3_600);
                given(&mut habit, at, &target("ann"));
            }
            ago -= 1;
        }
        habit
    }

    fn said(odd: &[Oddity]) -> Vec<String> {
        odd.iter().map(Oddity::sentence).collect()
    }

    fn opening(habit: Option<&Habit>, agent_asked: u64, target: &Target) -> Vec<String> {
        said(&at_opening(habit, agent_asked, target, NOW))
    }

    #[test]
    fn without_a_history_nothing_is_an_alarm() {
        let ann = target("ann");
        assert_eq!(
            said(&[Oddity::Forgotten]),
            ["what was unusual when it was asked is no longer known"]
        );
        assert_eq!(opening(None, 0, &ann), ["no history yet"]);
        assert_eq!(opening(None, HISTORY_MIN - 1, &ann), ["no history yet"]);
        assert_eq!(
            opening(None, HISTORY_MIN, &ann),
            ["nothing like this was decided for this agent before"]
        );
        let far = habit(&[1], 20);
        assert_eq!(
            opening(Some(&far), 1, &target("bob")),
            ["little history yet: decided once before"]
        );
        let four = habit(&[1, 1, 1, 1], 20);
        assert_eq!(
            opening(Some(&four), 4, &target("bob")),
            ["little history yet: decided 4 times before"]
        );
    }

    #[test]
    fn a_new_target_is_told_while_targets_are_told_apart() {
        let mut known = habit(&[1; 5], 8);
        assert_eq!(opening(Some(&known), 5, &target("ann")), [""; 0]);
        assert_eq!(
            opening(Some(&known), 5, &target("bob")),
            ["nothing was decided on this target before"]
        );
        for n in 0..super::super::figures::TARGETS_MAX {
            given(&mut known, NOW.plus_secs(-DAY), &target(&format!("t-{n}")));
        }
        assert_eq!(known.targets, Targets::Many);
        for any in ["ann", "bob"] {
            let odd = opening(Some(&known), 40, &target(any));
            let cannot_tell = "too many targets before to tell whether this one is new";
            assert!(odd.iter().any(|s| s == cannot_tell), "{odd:?}");
        }
    }

    #[test]
    fn an_hour_is_odd_with_enough_asks_and_none_near_it() {
        let ann = target("ann");
        let odd = ["none at this hour (08 UTC) among the 20 decided before"];
        assert_eq!(opening(Some(&habit(&[1; 20], 10)), 20, &ann), odd);
        assert_eq!(opening(Some(&habit(&[1; 20], 6)), 20, &ann), odd);
        for near in [7, 8, 9] {
            assert_eq!(opening(Some(&habit(&[1; 20], near)), 20, &ann), [""; 0]);
        }
        assert_eq!(opening(Some(&habit(&[1; 19], 10)), 19, &ann), [""; 0]);
        // Midnight has neighbours on both sides.
        let late = habit(&[1; 20], 23);
        let midnight = Timestamp::from_secs(NOW.secs().div_euclid(DAY) * DAY);
        assert_eq!(said(&at_opening(Some(&late), 20, &ann, midnight)), [""; 0]);
    }

    #[test]
    fn asks_that_nobody_decided_are_no_history() {
        let ann = target("ann");
        let mut asked = Habit::default();
        for _ in 0..HOURS_MIN {
            asked.ask_at(NOW);
            asked.refused += 1;
        }
        assert_eq!(opening(Some(&asked), 0, &ann), ["no history yet"]);
        given(&mut asked, NOW.plus_secs(-DAY), &ann);
        asked.denied += 1;
        assert_eq!(
            opening(Some(&asked), 2, &ann),
            ["little history yet: decided 2 times before"]
        );
    }

    #[test]
    fn a_day_is_odd_beside_its_median() {
        let ann = target("ann");
        let mut busy = habit(&[1, 1, 1, 9, 1], 8);
        for _ in 0..6 {
            busy.ask_at(NOW);
        }
        assert_eq!(
            opening(Some(&busy), 19, &ann),
            ["7th today; the median day has 1"]
        );
        let mut usual = habit(&[3, 3, 3, 3, 3], 8);
        for _ in 0..6 {
            usual.ask_at(NOW);
        }
        assert_eq!(opening(Some(&usual), 21, &ann), [""; 0], "7 of 3 is no 9");
        let mut young = habit(&[1, 1, 1, 1], 8);
        for _ in 0..6 {
            young.ask_at(NOW);
        }
        given(&mut young, NOW, &ann);
        assert_eq!(opening(Some(&young), 10, &ann), [""; 0], "too few days");
        let mut vain = Habit::default();
        for ago in [5, 4, 3, 2, 1, 0, 0, 0] {
            vain.ask_at(NOW.plus_secs(-ago * DAY));
        }
        assert_eq!(
            opening(Some(&vain), 0, &ann),
            ["no history yet", "4th today; the median day has 1"]
        );
    }

    #[test]
    fn what_is_said_when_it_is_shown_fades() {
        let lee = PersonId::parse("lee").expect("id");
        let maria = PersonId::parse("maria").expect("id");
        let mut habit = habit(&[5], 8);
        let denied = NOW.plus_secs(-180);
        habit.last_denied = Some((denied, lee));
        let fresh = NOW.plus_secs(-30);
        let show = |habit: &Habit, registration, verified_at, now| {
            said(&at_showing(
                verified_at,
                NOW,
                Some(habit),
                registration,
                now,
            ))
        };
        assert_eq!(
            show(&habit, None, fresh, NOW),
            ["the last one was denied by lee 3 min ago"]
        );
        assert_eq!(show(&habit, None, fresh, NOW.plus_secs(DAY)), [""; 0]);
        habit.last_approved = Some((denied.plus_secs(1), maria));
        assert_eq!(show(&habit, None, fresh, NOW), [""; 0], "approved since");
        assert_eq!(
            show(&habit, None, NOW.plus_secs(-240), NOW.plus_secs(600)),
            ["evidence verified 4 min before it asked"],
            "as of the asking, whenever it is shown"
        );
        let registration = |ago_s: i64, new| {
            let at = NOW.plus_secs(-ago_s);
            show(&habit, Some(Registration { at, new }), fresh, NOW)
        };
        assert_eq!(registration(7_200, true), ["agent registered 2 h ago"]);
        assert_eq!(
            registration(60, false),
            ["the agent's registration changed 60 s ago"]
        );
        assert_eq!(registration(DAY, false), [""; 0]);
    }

    #[test]
    fn numbers_are_said_as_people_say_them() {
        let said: Vec<_> = [1, 2, 3, 4, 11, 12, 13, 21, 22, 111, 1_003]
            .map(ordinal)
            .to_vec();
        assert_eq!(
            said,
            [
                "1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "22nd", "111th",
                "1003rd"
            ]
        );
        let spans = [-5_000, 119_999, 120_000, 7_200_000, 172_800_000];
        assert_eq!(spans.map(about), ["0 s", "119 s", "2 min", "2 h", "2 d"]);
    }
}
