//! Sample values: for each variable of a rule as many as can change the rule's answer.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::LazyLock;

use cedar_policy::{Context, EntityId, EntityTypeName, EntityUid, RestrictedExpression};

use super::reading::{Compared, Path, Reading};
use crate::jose::access_token::TTL_MAX_S;
use crate::model::{
    ActionName, Audience, Autonomy, CountKind, EvidenceKind, Param, ProfileName, Timestamp,
};
use crate::policy::calendar::WEEKDAYS;
use crate::policy::catalogue::{CatalogueAction, ParamSpec, ParamType};
use crate::policy::evaluator::{DeclaredContext, instant, milliseconds};
use crate::policy::schema::{COUNTS_MEMBER, FACTS_MEMBER, WAITED};
use crate::policy::{DeclaredCount, PolicyBundle};

/// A value of the context.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Sample {
    Bool(bool),
    Long(i64),
    Text(String),
    /// Milliseconds.
    Duration(i64),
    Instant(i64),
    StepUps(BTreeSet<String>),
    Set(Vec<Self>),
    Record(BTreeMap<String, Self>),
}

/// The sample values of one variable.
pub(super) struct Values {
    /// `None`: the variable is absent.
    pub(super) samples: Vec<Option<Sample>>,
    /// Whether no other value can change the answer of a rule that compares this variable as it does.
    pub(super) is_whole: bool,
}

impl Values {
    fn whole(samples: Vec<Sample>) -> Self {
        Self {
            samples: samples.into_iter().map(Some).collect(),
            is_whole: true,
        }
    }

    fn none() -> Self {
        Self::whole(Vec::new())
    }
}

/// Values of some variables; a variable without a value is absent.
pub(super) type Assignment = Vec<(Path, Option<Sample>)>;

/// The members of a context, or of a record in it.
pub(super) type Members = BTreeMap<String, Sample>;

/// The facts of one sample that no rule varies.
#[derive(Clone, Copy)]
pub(super) struct Situation<'a> {
    /// `None` for `operate`.
    pub(super) action: Option<&'a CatalogueAction>,
    pub(super) target_known: bool,
    pub(super) audiences: &'a BTreeSet<Audience>,
    /// Profiles that a remedy of some rule asks for at this action: under no other is there ever an approval.
    pub(super) asked: &'a BTreeSet<ProfileName>,
    /// Attributes of the agent and the target.
    pub(super) attributes: &'a BTreeSet<Sample>,
    pub(super) bundle: &'a PolicyBundle,
}

impl Situation<'_> {
    fn declared(&self) -> &DeclaredContext {
        self.bundle.evaluator.declared()
    }

    /// The values that can change the answer of comparisons of this variable with these constants.
    pub(super) fn values(&self, path: &[String], compared: &Compared) -> Values {
        let names: Vec<&str> = path.iter().map(String::as_str).collect();
        // The context of `operate` has these alone.
        let is_of_operate = matches!(
            names.first(),
            Some(&("evidence" | "binding" | "now" | "local"))
        );
        if self.action.is_none() && !is_of_operate {
            return Values::none();
        }
        match names.as_slice() {
            ["ttl"] => Values::whole(self.durations(compared, 1..=TTL_MAX_MS, MINUTE_MS)),
            [WAITED] => Values::whole(self.durations(compared, 0..=DAY_MS, 0)),
            ["evidence", "issued_age" | "verified_age"] | ["task", "age"] => {
                Values::whole(self.durations(compared, 0..=i64::MAX, 0))
            }
            // No task has a parent.
            ["task", "depth"] => Values::whole(vec![Sample::Long(0)]),
            ["evidence", "kind"] => Values::whole(vec![text(EvidenceKind::JwtSvid.as_str())]),
            ["binding"] => Values::whole(vec![text(BINDING)]),
            ["audience"] => {
                let audiences = self.audiences.iter();
                Values::whole(audiences.map(|audience| text(audience.as_str())).collect())
            }
            ["now"] => self.instants(compared),
            // Each by itself: every time of day is on every day of the week, and holidays fall on any of them.
            ["facts"] => Values::whole(self.fact_records()),
            ["facts", name] => {
                let mut facts = self.declared().facts.iter();
                match facts.any(|fact| fact.name.as_str() == *name) {
                    true => Values::whole(vec![Sample::Bool(false), Sample::Bool(true)]),
                    false => Values::none(),
                }
            }
            ["counts"] => Values {
                // Of all their combinations only some are samples.
                is_whole: false,
                ..Values::whole(self.count_records(compared))
            },
            ["counts", name] => {
                let mut counts = self.declared().counts.iter();
                let declared = counts.find(|count| count.name.as_str() == *name);
                declared.map_or_else(Values::none, |declared| {
                    Values::whole(match self.can_be_raised(declared) {
                        true => self.counts(compared),
                        false => vec![Sample::Long(0)],
                    })
                })
            }
            ["local", _, "weekday"] => Values::whole(WEEKDAYS.map(text).to_vec()),
            ["local", _, "time"] => Values::whole(self.durations(compared, 0..=DAY_MS - 1, 0)),
            ["local", zone, "holiday"] => {
                let is_any = self.declared().calendar.has_holidays(zone);
                let holidays = is_any.then_some(Sample::Bool(true));
                Values::whole(holidays.into_iter().chain([Sample::Bool(false)]).collect())
            }
            ["target_known"] => Values::whole(vec![Sample::Bool(self.target_known)]),
            ["approvals"] => {
                let asked: BTreeSet<String> = self
                    .asked
                    .iter()
                    .map(|name| name.as_str().to_owned())
                    .collect();
                let mut named: BTreeSet<String> = &compared.profiles & &asked;
                let other = asked.difference(&named).next().cloned();
                named.extend(other.filter(|_| compared.as_a_whole));
                let (mut sets, is_whole) = subsets(&named);
                if !sets.contains(&asked) {
                    sets.push(asked);
                }
                let samples = sets.into_iter().map(|set| Some(Sample::StepUps(set)));
                Values {
                    samples: samples.collect(),
                    is_whole,
                }
            }
            ["parameters", first, rest @ ..] => {
                let spec = self.action.and_then(|action| action.parameters.get(*first));
                spec.map_or_else(Values::none, |spec| self.parameter(spec, rest, compared))
            }
            _ => Values::none(),
        }
    }

    /// The attributes that a variable is compared with, each with the integers beside it.
    fn beside(&self, compared: &Compared, number: impl Fn(&Sample) -> Option<i64>) -> Vec<i64> {
        let attributes = compared.with_entities.then_some(self.attributes);
        let numbers = attributes.into_iter().flatten().filter_map(number);
        numbers
            .flat_map(|n| [n.saturating_sub(1), n, n.saturating_add(1)])
            .collect()
    }

    fn durations(
        &self,
        compared: &Compared,
        within: RangeInclusive<i64>,
        base: i64,
    ) -> Vec<Sample> {
        let same = self.beside(compared, |value| match value {
            Sample::Duration(ms) => Some(*ms),
            _ => None,
        });
        let same = same
            .into_iter()
            .map(|ms| ms.clamp(*within.start(), *within.end()));
        let same: Vec<i64> = same.collect();
        let values: BTreeSet<i64> = around(compared, within, base).chain(same).collect();
        values.into_iter().map(Sample::Duration).collect()
    }

    /// Every combination of values of the facts.
    fn fact_records(&self) -> Vec<Sample> {
        let mut records = vec![Members::new()];
        for fact in self.declared().facts.iter() {
            let with = |record: &Members, value: bool| {
                let mut record = record.clone();
                record.insert(fact.name.to_string(), Sample::Bool(value));
                record
            };
            let both = records
                .iter()
                .flat_map(|r| [false, true].map(|v| with(r, v)));
            records = both.collect();
        }
        records.into_iter().map(Sample::Record).collect()
    }

    /// Whether anything that a registered agent can do raises a count as a rule about this action sees it. Which agent asks is not looked
    /// at: a sample stands for every agent that the rule does not tell apart.
    fn can_be_raised(&self, declared: &DeclaredCount) -> bool {
        let asked = self.action.map(|action| &action.name);
        let is_about = |action: &&ActionName| !declared.per_action || Some(*action) == asked;
        let mut actions = declared.actions.iter().filter(is_about);
        actions.any(|name| {
            let action = self.bundle.action(name);
            let is_single_use = action.is_some_and(|action| action.single_use);
            match declared.of {
                // What rules deny can be asked for, too.
                CountKind::Requests | CountKind::Denials => true,
                CountKind::Uses if !is_single_use => false,
                CountKind::Tokens | CountKind::Uses => self.bundle.agents().any(|agent| {
                    agent.autonomy != Autonomy::Advisory && agent.ceiling.contains(name)
                }),
            }
        })
    }

    /// Values of one count.
    fn counts(&self, compared: &Compared) -> Vec<Sample> {
        let same = self.beside(compared, |value| match value {
            Sample::Long(n) => Some(*n),
            _ => None,
        });
        let same = same.into_iter().map(|n| n.clamp(0, COUNT_MAX));
        let values = around(compared, 0..=COUNT_MAX, 0).chain(same);
        let values: BTreeSet<i64> = values.collect();
        values.into_iter().map(Sample::Long).collect()
    }

    /// The counts as a whole: all with the same value, for each value.
    fn count_records(&self, compared: &Compared) -> Vec<Sample> {
        let names = || self.declared().counts.iter().map(|count| &count.name);
        let record = |value: Sample| {
            let members = names().map(|name| (name.to_string(), value.clone()));
            Sample::Record(members.collect())
        };
        self.counts(compared).into_iter().map(record).collect()
    }

    fn instants(&self, compared: &Compared) -> Values {
        let mut values = instants(compared);
        let same = self.beside(compared, |value| match value {
            Sample::Instant(ms) => Some(*ms),
            _ => None,
        });
        for ms in same {
            let value = Some(Sample::Instant(ms));
            if !values.samples.contains(&value) {
                values.samples.push(value);
            }
        }
        values
    }

    fn parameter(&self, spec: &ParamSpec, rest: &[&str], compared: &Compared) -> Values {
        if let (ParamType::Record(members), [first, rest @ ..]) = (&spec.ty, rest) {
            let member = members.get(*first);
            return member.map_or_else(Values::none, |spec| self.parameter(spec, rest, compared));
        }
        let mut values = self.of_type(&spec.ty, compared);
        if !spec.required {
            values.samples.push(None);
        }
        values
    }

    fn of_type(&self, ty: &ParamType, compared: &Compared) -> Values {
        let with_entities = compared.with_entities.then_some(self.attributes);
        let attributes = || with_entities.into_iter().flatten();
        match ty {
            ParamType::Bool => Values::whole(vec![Sample::Bool(false), Sample::Bool(true)]),
            ParamType::Long => {
                let same = self.beside(compared, |value| match value {
                    Sample::Long(n) => Some(*n),
                    _ => None,
                });
                let same = same.into_iter().map(|n| n.clamp(-LONG_MAX, LONG_MAX));
                let values = around(compared, -LONG_MAX..=LONG_MAX, 0).chain(same);
                let values: BTreeSet<i64> = values.collect();
                Values::whole(values.into_iter().map(Sample::Long).collect())
            }
            ParamType::String => {
                let same = attributes().filter(|value| matches!(value, Sample::Text(_)));
                let given = compared.texts.keys().chain(&compared.matching);
                let given = given.map(|t| text(t));
                let others = [text(""), text(OTHER_TEXT)];
                let values: BTreeSet<Sample> = given.chain(same.cloned()).chain(others).collect();
                Values {
                    // Of the texts that a pattern matches only one is a sample.
                    is_whole: compared.matching.is_empty(),
                    ..Values::whole(values.into_iter().collect())
                }
            }
            ParamType::Set(of) => {
                let items = self.of_type(of, compared);
                let members: BTreeSet<Sample> = items.samples.into_iter().flatten().collect();
                let (sets, is_whole) = subsets(&members);
                let sets = sets
                    .into_iter()
                    .map(|set| Sample::Set(set.into_iter().collect()));
                Values {
                    is_whole: is_whole && items.is_whole,
                    ..Values::whole(sets.collect())
                }
            }
            ParamType::Record(members) => Values {
                is_whole: false,
                ..Values::whole(vec![record(members)])
            },
        }
    }

    /// The context with these values beside those of [`Situation::base`].
    pub(super) fn context(base: &Members, assignment: &Assignment) -> Option<Context> {
        let mut root = base.clone();
        for (path, value) in assignment {
            if let Some((last, parents)) = path.split_last() {
                place(&mut root, parents, last, value.clone());
            }
        }
        let members = root
            .into_iter()
            .map(|(name, value)| Some((name, value.expression()?)));
        Context::from_pairs(members.collect::<Option<Vec<_>>>()?).ok()
    }

    /// What a rule reads of a request without approvals, with evidence just verified: Cedar takes long to make a context.
    pub(super) fn base(&self, reading: &Reading) -> Members {
        let mut base = self.every_member();
        let is_read = |name: &String| {
            let mut paths = reading.variables.keys();
            paths.any(|path| path.first() == Some(name))
        };
        base.retain(|name, _| reading.is_undecided || is_read(name));
        base
    }

    fn every_member(&self) -> Members {
        let named = |members: &[(&str, Sample)]| -> Members {
            let owned = |(name, value): &(&str, Sample)| ((*name).to_owned(), value.clone());
            members.iter().map(owned).collect()
        };
        let evidence = named(&[
            ("kind", text(EvidenceKind::JwtSvid.as_str())),
            ("issued_age", Sample::Duration(0)),
            ("verified_age", Sample::Duration(0)),
        ]);
        let mut base = named(&[
            ("evidence", Sample::Record(evidence)),
            ("binding", text(BINDING)),
            ("now", Sample::Instant(NOON_MS)),
        ]);
        let zones = self.declared().calendar.at(Timestamp::from_millis(NOON_MS));
        let zones: Members = zones
            .into_iter()
            .flatten()
            .map(|there| {
                let local = named(&[
                    ("weekday", text(there.weekday)),
                    ("time", Sample::Duration(there.time_ms)),
                    ("holiday", Sample::Bool(there.holiday)),
                ]);
                (there.zone, Sample::Record(local))
            })
            .collect();
        if !zones.is_empty() {
            base.insert("local".to_owned(), Sample::Record(zones));
        }
        if let Some(action) = self.action {
            let facts = self.declared().facts.iter();
            let facts: Members = facts
                .map(|fact| (fact.name.to_string(), Sample::Bool(fact.normal)))
                .collect();
            if !facts.is_empty() {
                base.insert(FACTS_MEMBER.to_owned(), Sample::Record(facts));
            }
            let counts = self.declared().counts.iter();
            let counts: Members = counts
                .map(|count| (count.name.to_string(), Sample::Long(0)))
                .collect();
            if !counts.is_empty() {
                base.insert(COUNTS_MEMBER.to_owned(), Sample::Record(counts));
            }
            let task = named(&[("age", Sample::Duration(0)), ("depth", Sample::Long(0))]);
            let audience = self.audiences.first().map_or("", Audience::as_str);
            base.extend(named(&[
                ("ttl", Sample::Duration(MINUTE_MS)),
                ("approvals", Sample::StepUps(BTreeSet::new())),
                ("task", Sample::Record(task)),
                ("target_known", Sample::Bool(self.target_known)),
                ("audience", text(audience)),
                (WAITED, Sample::Duration(0)),
                ("parameters", record(&action.parameters)),
            ]));
        }
        base
    }
}

/// Puts a value into a record, or takes it out of it. A record that is absent has no members.
fn place(record: &mut Members, parents: &[String], last: &str, value: Option<Sample>) {
    match parents.split_first() {
        Some((first, rest)) => {
            if let Some(Sample::Record(inner)) = record.get_mut(first) {
                place(inner, rest, last, value);
            }
        }
        None => match value {
            Some(value) => drop(record.insert(last.to_owned(), value)),
            None => drop(record.remove(last)),
        },
    }
}

fn record(members: &BTreeMap<String, ParamSpec>) -> Sample {
    let sample = |spec: &ParamSpec| match &spec.ty {
        ParamType::String => text(""),
        ParamType::Bool => Sample::Bool(false),
        ParamType::Long => Sample::Long(0),
        ParamType::Set(_) => Sample::Set(Vec::new()),
        ParamType::Record(members) => record(members),
    };
    let members = members
        .iter()
        .map(|(name, spec)| (name.clone(), sample(spec)));
    Sample::Record(members.collect())
}

fn text(text: &str) -> Sample {
    Sample::Text(text.to_owned())
}

/// Every constant with the integers beside it, or the nearest within the bounds, and `base`.
fn around(
    compared: &Compared,
    within: RangeInclusive<i64>,
    base: i64,
) -> impl Iterator<Item = i64> + use<> {
    let near = compared
        .numbers
        .iter()
        .flat_map(|n| [n.saturating_sub(1), *n, n.saturating_add(1)]);
    let within = |value: i64| value.clamp(*within.start(), *within.end());
    let values: BTreeSet<i64> = near.chain([base]).map(within).collect();
    values.into_iter()
}

fn instants(compared: &Compared) -> Values {
    let day = |ms: i64| ms - ms.rem_euclid(DAY_MS);
    let days: BTreeSet<i64> = compared
        .numbers
        .iter()
        .flat_map(|ms| [ms.saturating_sub(DAY_MS), *ms, ms.saturating_add(DAY_MS)])
        .chain([NOON_MS])
        .map(day)
        .collect();
    let times: BTreeSet<i64> = compared
        .times_of_day
        .iter()
        .flat_map(|ms| [ms.saturating_sub(1), *ms, ms.saturating_add(1)])
        .map(|ms| ms.clamp(0, DAY_MS - 1))
        .chain([NOON_MS.rem_euclid(DAY_MS)])
        .collect();
    let at_times = days
        .iter()
        .flat_map(|day| times.iter().map(|time| day.saturating_add(*time)));
    let values: BTreeSet<i64> = around(compared, i64::MIN..=i64::MAX, NOON_MS)
        .chain(at_times)
        .collect();
    Values {
        // Of the times on the day of an instant not all are samples.
        is_whole: compared.numbers.is_empty() || compared.times_of_day.is_empty(),
        ..Values::whole(values.into_iter().map(Sample::Instant).collect())
    }
}

/// Moments that can change the answer of comparisons of the time with these constants, and whether no other moment can.
pub(super) fn moments(compared: &Compared) -> (Vec<i64>, bool) {
    let values = instants(compared);
    let moments = values
        .samples
        .into_iter()
        .flatten()
        .filter_map(|value| match value {
            Sample::Instant(ms) => Some(ms),
            _ => None,
        });
    (moments.collect(), values.is_whole)
}

/// Every set of these, and that it is every one; of many, none, each alone, all, and all but one; of very many, none, one and all.
fn subsets<T: Ord + Clone>(items: &BTreeSet<T>) -> (Vec<BTreeSet<T>>, bool) {
    if items.len() <= SUBSETS_OF_MAX {
        let mut sets = vec![BTreeSet::new()];
        for item in items {
            let with = |set: &BTreeSet<T>| {
                let mut set = set.clone();
                set.insert(item.clone());
                set
            };
            let more: Vec<_> = sets.iter().map(with).collect();
            sets.extend(more);
        }
        return (sets, true);
    }
    let mut sets = vec![BTreeSet::new(), items.clone()];
    let few = match items.len() <= SETS_OF_MAX {
        true => items.len(),
        false => 1,
    };
    for one in items.iter().take(few) {
        sets.push(BTreeSet::from([one.clone()]));
        sets.push(items.iter().filter(|item| *item != one).cloned().collect());
    }
    (sets, false)
}

impl Sample {
    /// The value of an approval under a profile beside those it has.
    pub(super) fn with_approval(self, profile: &ProfileName) -> Self {
        match self {
            Self::StepUps(mut held) => {
                held.insert(profile.as_str().to_owned());
                Self::StepUps(held)
            }
            other => other,
        }
    }

    /// The value as a parameter of an action.
    pub(super) fn parameter(self) -> Option<Param> {
        Some(match self {
            Self::Bool(value) => Param::Bool(value),
            Self::Long(value) => Param::Int(value),
            Self::Text(value) => Param::Str(value),
            Self::Set(items) => {
                let items = items.into_iter().map(Self::parameter);
                Param::set(items.collect::<Option<Vec<_>>>()?).ok()?
            }
            Self::Record(members) => {
                let member = |(name, value): (String, Self)| Some((name, value.parameter()?));
                let members = members.into_iter().map(member);
                Param::Record(members.collect::<Option<BTreeMap<_, _>>>()?)
            }
            Self::Duration(_) | Self::Instant(_) | Self::StepUps(_) => return None,
        })
    }

    fn expression(self) -> Option<RestrictedExpression> {
        Some(match self {
            Self::Bool(value) => RestrictedExpression::new_bool(value),
            Self::Long(value) => RestrictedExpression::new_long(value),
            Self::Text(value) => RestrictedExpression::new_string(value),
            Self::Duration(ms) => milliseconds(ms)?,
            Self::Instant(ms) => instant(Timestamp::from_millis(ms))?,
            Self::StepUps(names) => {
                let kind = LazyLock::force(&STEP_UP).as_ref()?;
                let entity = |name: String| {
                    let id = EntityId::new(name);
                    let uid = EntityUid::from_type_name_and_id(kind.clone(), id);
                    Some(RestrictedExpression::new_entity_uid(uid))
                };
                let names = names.into_iter().map(entity);
                RestrictedExpression::new_set(names.collect::<Option<Vec<_>>>()?)
            }
            Self::Set(items) => {
                let items = items.into_iter().map(Self::expression);
                RestrictedExpression::new_set(items.collect::<Option<Vec<_>>>()?)
            }
            Self::Record(members) => {
                let members = members
                    .into_iter()
                    .map(|(name, value)| Some((name, value.expression()?)));
                RestrictedExpression::new_record(members.collect::<Option<Vec<_>>>()?).ok()?
            }
        })
    }
}

static STEP_UP: LazyLock<Option<EntityTypeName>> = LazyLock::new(|| "StepUp".parse().ok());
/// The broker binds every task to a key.
pub(super) const BINDING: &str = "jkt";
/// Every binding that a rule may name.
pub(super) const BINDINGS: [&str; 2] = [BINDING, "bearer"];
/// The longest life of a token that a configuration allows.
pub(super) const TTL_MAX_MS: i64 = TTL_MAX_S * 1000;
/// Integers of parameters are those that JSON keeps exactly.
const LONG_MAX: i64 = (1 << 53) - 1;
/// The greatest value of a count.
const COUNT_MAX: i64 = u32::MAX as i64;
/// A text that no rule compares with.
pub(super) const OTHER_TEXT: &str = "\u{7f}";
/// 12:00 on Thursday, 1 January 2026.
const NOON_MS: i64 = 1_767_268_800_000;
pub(super) const DAY_MS: i64 = 86_400_000;
const MINUTE_MS: i64 = 60_000;
/// Most items of which every set is a sample.
const SUBSETS_OF_MAX: usize = 6;
/// Most items of which each alone, and all but each, is a sample: as many sets as items, of as many items.
const SETS_OF_MAX: usize = 64;
