//! The parts of a request in a test: its own, and those of `[action.NAME]` and `[defaults]`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};
use toml::Spanned;
use toml::de::DeValue;

use super::Facts;
use crate::model::{
    Audience, CountName, CountValues, EvidenceAges, FactName, FactValues, Param, ParseError,
    ProfileName, Timestamp, parse_duration,
};
use crate::policy::PolicyBundle;
use crate::policy::problem::nearest;
use crate::policy::toml_reader::TableReader;

/// The parts of a request that cases, matrices, `[defaults]` and `[action.NAME]` may have.
#[derive(Debug, Clone, Default)]
pub(super) struct RequestParts {
    pub(super) audience: Option<Audience>,
    pub(super) parameters: Option<BTreeMap<String, Param>>,
    approvals: Option<BTreeSet<ProfileName>>,
    ttl_s: Option<u32>,
    issued_age_s: Option<u32>,
    verified_age_s: Option<u32>,
    task_age_s: Option<u32>,
    waited_s: Option<u32>,
    at: Option<Timestamp>,
    named_facts: Option<FactValues>,
    counts: Option<CountValues>,
}

impl RequestParts {
    /// Reads the parts of many requests: their targets have the attributes of `entities.json`.
    pub(super) fn read_shared<'a>(bundle: &PolicyBundle, fields: &mut TableReader<'a, '_>) -> Self {
        if fields.get("target_attributes").is_some() {
            fields.problem_at(
                "target_attributes",
                "is for a single target: write it in a case",
            );
        }
        Self::read(bundle, fields)
    }

    /// Reads the parts that a table has.
    pub(super) fn read<'a>(bundle: &PolicyBundle, fields: &mut TableReader<'a, '_>) -> Self {
        let approvals = fields.get("approvals").is_some().then(|| {
            let names = fields.text_set("approvals", |text| profile(bundle, text));
            names.into_iter().collect()
        });
        Self {
            audience: fields.optional("audience", Audience::parse),
            parameters: parameters(fields),
            approvals,
            ttl_s: fields.optional("ttl", |text| parse_duration("ttl", text)),
            issued_age_s: fields.optional("issued_age", age),
            verified_age_s: fields.optional("verified_age", age),
            task_age_s: fields.optional("task_age", age),
            waited_s: fields.optional("waited", age),
            at: moment(fields),
            named_facts: named_facts(bundle, fields),
            counts: counts(bundle, fields),
        }
    }

    /// These parts, and those of another where these have none.
    pub(super) fn or(self, other: &Self) -> Self {
        Self {
            audience: self.audience.or_else(|| other.audience.clone()),
            parameters: self.parameters.or_else(|| other.parameters.clone()),
            approvals: self.approvals.or_else(|| other.approvals.clone()),
            ttl_s: self.ttl_s.or(other.ttl_s),
            issued_age_s: self.issued_age_s.or(other.issued_age_s),
            verified_age_s: self.verified_age_s.or(other.verified_age_s),
            task_age_s: self.task_age_s.or(other.task_age_s),
            waited_s: self.waited_s.or(other.waited_s),
            at: self.at.or(other.at),
            named_facts: self.named_facts.or_else(|| other.named_facts.clone()),
            counts: self.counts.or_else(|| other.counts.clone()),
        }
    }

    pub(super) fn facts(&self) -> Facts {
        let ms = |seconds: Option<u32>, default: u32| {
            i64::from(seconds.unwrap_or(default)).saturating_mul(1000)
        };
        Facts {
            ttl_ms: ms(self.ttl_s, TTL_S),
            approvals: self.approvals.clone().unwrap_or_default(),
            ages: EvidenceAges {
                issued_ms: ms(self.issued_age_s, ISSUED_AGE_S),
                verified_ms: ms(self.verified_age_s, 0),
            },
            task_age_ms: ms(self.task_age_s, 0),
            waited_ms: ms(self.waited_s, 0),
            at: self.at.unwrap_or(Timestamp::from_secs(AT_S)),
            named: self.named_facts.clone().unwrap_or_default(),
            counts: self.counts.clone().unwrap_or_default(),
        }
    }
}

/// The profile of the bundle with this name.
pub(super) fn profile(bundle: &PolicyBundle, text: &str) -> Result<ProfileName, ParseError> {
    let name = ProfileName::parse(text)?;
    if bundle.profile(&name).is_none() {
        let near = nearest(text, bundle.profiles().map(|p| p.name.as_str()));
        let reason = format!("\"{name}\" is not a profile of people.toml{near}");
        return Err(ParseError::new("profile", reason));
    }
    Ok(name)
}

fn parameters<'a>(fields: &mut TableReader<'a, '_>) -> Option<BTreeMap<String, Param>> {
    let (at, table) = fields.table("parameters")?;
    let read = |(name, value): (&Spanned<std::borrow::Cow<'_, str>>, &Spanned<DeValue<'a>>)| {
        let value = Param::from_json(&json_value(value.get_ref())?)?;
        Ok((name.get_ref().to_string(), sorted(value)?))
    };
    match table.iter().map(read).collect::<Result<_, ParseError>>() {
        Ok(parameters) => Some(parameters),
        Err(e) => {
            fields.invalid("parameters", at, &e.reason);
            None
        }
    }
}

/// Values of named facts; those that a test does not say are normal.
fn named_facts(bundle: &PolicyBundle, fields: &mut TableReader<'_, '_>) -> Option<FactValues> {
    let (_, table) = fields.table("facts")?;
    let mut values = FactValues::new();
    for (name, value) in table.iter() {
        let text: &str = name.get_ref().as_ref();
        let known = FactName::parse(text).ok();
        let known = known.filter(|name| bundle.fact(name).is_some());
        match (known, value.get_ref().as_bool()) {
            (Some(name), Some(value)) => drop(values.insert(name, value)),
            (Some(_), None) => fields.invalid("facts", value, "must be true or false"),
            (None, _) => {
                let near = nearest(text, bundle.facts().map(|fact| fact.name.as_str()));
                let text = text.escape_debug();
                let message = format!("\"{text}\" is not a fact of facts.toml{near}");
                fields.problem_at("facts", message);
            }
        }
    }
    Some(values)
}

/// Values of counts; those that a test does not say are 0.
fn counts(bundle: &PolicyBundle, fields: &mut TableReader<'_, '_>) -> Option<CountValues> {
    let (_, table) = fields.table("counts")?;
    let mut values = CountValues::new();
    for (name, value) in table.iter() {
        let text: &str = name.get_ref().as_ref();
        let known = CountName::parse(text).ok();
        let known = known.filter(|name| bundle.count(name).is_some());
        let number = value.get_ref().as_integer();
        let number = number.and_then(|n| u32::from_str_radix(n.as_str(), n.radix()).ok());
        match (known, number) {
            (Some(name), Some(number)) => drop(values.insert(name, number)),
            (Some(_), None) => fields.invalid(
                "counts",
                value,
                "must be a whole number from 0 to 4294967295",
            ),
            (None, _) => {
                let near = nearest(text, bundle.counts().map(|count| count.name.as_str()));
                let text = text.escape_debug();
                let message = format!("\"{text}\" is not a count of counts.toml{near}");
                fields.problem_at("counts", message);
            }
        }
    }
    Some(values)
}

/// A duration that may be zero.
fn age(text: &str) -> Result<u32, ParseError> {
    match text {
        "0s" => Ok(0),
        _ => parse_duration("age", text),
    }
}

/// The time of a request: a date and time with its offset from UTC, as TOML has it or as text.
fn moment(fields: &mut TableReader<'_, '_>) -> Option<Timestamp> {
    let value = fields.get("at")?;
    let date_time = match value.get_ref() {
        DeValue::Datetime(at) => Some(*at),
        DeValue::String(text) => text.parse().ok(),
        _ => None,
    };
    let at = date_time.and_then(timestamp);
    if at.is_none() {
        fields.invalid(
            "at",
            value,
            "must be a date and time with its offset, such as 2026-01-05T12:00:00Z",
        );
    }
    at
}

fn timestamp(at: toml::value::Datetime) -> Option<Timestamp> {
    let (date, time, offset) = (at.date?, at.time?, at.offset?);
    let minutes = match offset {
        toml::value::Offset::Z => 0,
        toml::value::Offset::Custom { minutes } => i64::from(minutes),
    };
    let month = time::Month::try_from(date.month).ok()?;
    let date = time::Date::from_calendar_date(i32::from(date.year), month, date.day).ok()?;
    let time = time::Time::from_hms(time.hour, time.minute, time.second.unwrap_or(0)).ok()?;
    let local = time::PrimitiveDateTime::new(date, time).assume_utc();
    let seconds = local
        .unix_timestamp()
        .checked_sub(minutes.checked_mul(60)?)?;
    Some(Timestamp::from_secs(seconds))
}

/// The attributes that the target of a case has, other than in `entities.json`, as JSON.
pub(super) fn attributes(fields: &mut TableReader<'_, '_>) -> BTreeMap<String, String> {
    let Some((at, table)) = fields.table("target_attributes") else {
        return BTreeMap::new();
    };
    let mut attributes = BTreeMap::new();
    for (name, value) in table.iter() {
        match json_value(value.get_ref()) {
            Ok(value) => drop(attributes.insert(name.get_ref().to_string(), value.to_string())),
            Err(e) => fields.invalid("target_attributes", at, &e.reason),
        }
    }
    attributes
}

/// A value of TOML as the JSON that agents send.
fn json_value(value: &DeValue<'_>) -> Result<Value, ParseError> {
    Ok(match value {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Boolean(b) => Value::Bool(*b),
        DeValue::Integer(n) => match i64::from_str_radix(n.as_str(), n.radix()) {
            Ok(n) => Value::from(n),
            Err(_) => return Err(ParseError::new("value", "numbers must be integers")),
        },
        DeValue::Array(items) => {
            let items = items.iter().map(|item| json_value(item.get_ref()));
            Value::Array(items.collect::<Result<_, _>>()?)
        }
        DeValue::Table(table) => {
            let members = table.iter().map(|(name, value)| {
                Ok((name.get_ref().to_string(), json_value(value.get_ref())?))
            });
            Value::Object(members.collect::<Result<Map<_, _>, ParseError>>()?)
        }
        DeValue::Float(_) | DeValue::Datetime(_) => {
            return Err(ParseError::new(
                "value",
                "must be text, true or false, a whole number, a list or a table",
            ));
        }
    })
}

/// A parameter with every set in the order that requests have.
fn sorted(param: Param) -> Result<Param, ParseError> {
    Ok(match param {
        Param::Set(items) => Param::set(items.into_iter().map(sorted).collect::<Result<_, _>>()?)?,
        Param::Record(members) => {
            let members = members.into_iter().map(|(name, p)| Ok((name, sorted(p)?)));
            Param::Record(members.collect::<Result<_, ParseError>>()?)
        }
        param => param,
    })
}

/// The lifetime that a request asks for, in seconds, where a test does not say: the broker's own default.
const TTL_S: u32 = 300;
/// Age of the evidence since it was issued, in seconds, where a test does not say.
const ISSUED_AGE_S: u32 = 10;
/// The time of a request where a test does not say: Monday 2026-01-05, noon UTC.
const AT_S: i64 = 1_767_614_400;
