//! Conversions between wire messages and types of the model, for both sides of a call.

use std::collections::BTreeMap;

use super::v1;
use crate::model::{
    Action, ActionName, Audience, Evidence, JournalPosition, PARAM_DEPTH_MAX, Param, ParseError,
    ParseField as _, Secret, Target, TaskOutcome, Timestamp, Verdict,
};

/// Reads an action: everything but its optional parameters must be there, no parameter twice, no value empty.
pub fn action(wire: &v1::Action) -> Result<Action, ParseError> {
    Action::new(
        ActionName::parse(&wire.name).at("action.name")?,
        Audience::parse(&wire.audience).at("action.audience")?,
        target(required("action.target", wire.target.as_ref())?)?,
        parameters(&wire.parameters, 1)?,
    )
}

/// Writes an action.
pub fn action_to_wire(action: &Action) -> v1::Action {
    v1::Action {
        name: action.name.to_string(),
        target: Some(target_to_wire(&action.target)),
        parameters: parameters_to_wire(&action.parameters),
        audience: action.audience.to_string(),
    }
}

/// Reads a target.
pub fn target(wire: &v1::Target) -> Result<Target, ParseError> {
    Target::parse(&wire.r#type, &wire.id)
}

/// Writes a target.
pub fn target_to_wire(target: &Target) -> v1::Target {
    v1::Target {
        r#type: target.kind.clone(),
        id: target.id.clone(),
    }
}

/// Reads a journal position.
pub fn position(wire: v1::Position) -> JournalPosition {
    JournalPosition {
        epoch: wire.epoch,
        index: wire.index,
    }
}

/// Writes a journal position.
pub fn position_to_wire(position: JournalPosition) -> v1::Position {
    v1::Position {
        epoch: position.epoch,
        index: position.index,
    }
}

/// Reads one value; bounds and the order of sets are [`Action::new`]'s to check.
pub fn value(wire: &v1::Value) -> Result<Param, ParseError> {
    value_at(wire, 1)
}

fn value_at(wire: &v1::Value, depth: usize) -> Result<Param, ParseError> {
    if depth > PARAM_DEPTH_MAX {
        return Err(ParseError::new(
            "parameters",
            format!("must nest at most {PARAM_DEPTH_MAX} deep"),
        ));
    }
    Ok(
        match required("parameters.value.kind", wire.kind.as_ref())? {
            v1::value::Kind::StringValue(text) => Param::Str(text.clone()),
            v1::value::Kind::BoolValue(truth) => Param::Bool(*truth),
            v1::value::Kind::IntValue(number) => Param::Int(*number),
            v1::value::Kind::SetValue(set) => Param::Set(
                set.elements
                    .iter()
                    .map(|element| value_at(element, depth + 1))
                    .collect::<Result<_, _>>()?,
            ),
            v1::value::Kind::RecordValue(record) => {
                Param::Record(parameters(&record.members, depth + 1)?)
            }
        },
    )
}

/// Writes one value.
pub fn value_to_wire(param: &Param) -> v1::Value {
    v1::Value {
        kind: Some(match param {
            Param::Str(text) => v1::value::Kind::StringValue(text.clone()),
            Param::Bool(truth) => v1::value::Kind::BoolValue(*truth),
            Param::Int(number) => v1::value::Kind::IntValue(*number),
            Param::Set(items) => v1::value::Kind::SetValue(v1::ValueSet {
                elements: items.iter().map(value_to_wire).collect(),
            }),
            Param::Record(members) => v1::value::Kind::RecordValue(v1::ValueRecord {
                members: parameters_to_wire(members),
            }),
        }),
    }
}

fn parameters(wire: &[v1::Parameter], depth: usize) -> Result<BTreeMap<String, Param>, ParseError> {
    let mut out = BTreeMap::new();
    for parameter in wire {
        let read = value_at(
            required("parameters.value", parameter.value.as_ref())?,
            depth,
        )?;
        if out.insert(parameter.name.clone(), read).is_some() {
            return Err(ParseError::new("parameters", "a name stands twice"));
        }
    }
    Ok(out)
}

fn parameters_to_wire(parameters: &BTreeMap<String, Param>) -> Vec<v1::Parameter> {
    parameters
        .iter()
        .map(|(name, param)| v1::Parameter {
            name: name.clone(),
            value: Some(value_to_wire(param)),
        })
        .collect()
}

/// Reads evidence; its kind must be there.
pub fn evidence(wire: &v1::Evidence) -> Result<Evidence, ParseError> {
    match required("evidence.kind", wire.kind.as_ref())? {
        v1::evidence::Kind::JwtSvid(svid) => Ok(Evidence::JwtSvid(Secret::new(svid.clone()))),
    }
}

/// Writes evidence.
pub fn evidence_to_wire(evidence: &Evidence) -> v1::Evidence {
    v1::Evidence {
        kind: Some(match evidence {
            Evidence::JwtSvid(svid) => v1::evidence::Kind::JwtSvid(svid.expose_secret().to_owned()),
        }),
    }
}

/// Reads a verdict; the unspecified one and unknown numbers are refused.
pub fn verdict(wire: i32) -> Result<Verdict, ParseError> {
    match v1::Verdict::try_from(wire) {
        Ok(v1::Verdict::Approve) => Ok(Verdict::Approve),
        Ok(v1::Verdict::Deny) => Ok(Verdict::Deny),
        Ok(v1::Verdict::Unspecified) | Err(_) => {
            Err(ParseError::new("verdict", "must be approve or deny"))
        }
    }
}

/// Writes a verdict.
pub fn verdict_to_wire(verdict: Verdict) -> v1::Verdict {
    match verdict {
        Verdict::Approve => v1::Verdict::Approve,
        Verdict::Deny => v1::Verdict::Deny,
    }
}

/// Reads a task's outcome; the unspecified one and unknown numbers are refused.
pub fn task_outcome(wire: i32) -> Result<TaskOutcome, ParseError> {
    match v1::TaskOutcome::try_from(wire) {
        Ok(v1::TaskOutcome::Succeeded) => Ok(TaskOutcome::Succeeded),
        Ok(v1::TaskOutcome::Failed) => Ok(TaskOutcome::Failed),
        Ok(v1::TaskOutcome::Abandoned) => Ok(TaskOutcome::Abandoned),
        Ok(v1::TaskOutcome::Unspecified) | Err(_) => Err(ParseError::new(
            "outcome",
            "must be succeeded, failed or abandoned",
        )),
    }
}

/// Writes a task's outcome.
pub fn task_outcome_to_wire(outcome: TaskOutcome) -> v1::TaskOutcome {
    match outcome {
        TaskOutcome::Succeeded => v1::TaskOutcome::Succeeded,
        TaskOutcome::Failed => v1::TaskOutcome::Failed,
        TaskOutcome::Abandoned => v1::TaskOutcome::Abandoned,
    }
}

/// Reads a duration in whole seconds, within ±10,000 years (the bound of the well-known type). A fraction is refused;
/// whether zero or a negative one makes sense is the caller's question.
pub fn seconds(what: &'static str, wire: &prost_types::Duration) -> Result<i64, ParseError> {
    if wire.nanos != 0 {
        return Err(ParseError::new(what, "must be whole seconds"));
    }
    if !(-DURATION_S_MAX..=DURATION_S_MAX).contains(&wire.seconds) {
        return Err(ParseError::new(
            what,
            "must lie within ±315576000000 seconds",
        ));
    }
    Ok(wire.seconds)
}

/// Writes whole seconds.
pub fn seconds_to_wire(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}

/// Reads a moment, rounded down to the millisecond.
pub fn timestamp(
    what: &'static str,
    wire: &prost_types::Timestamp,
) -> Result<Timestamp, ParseError> {
    let wrong = || ParseError::new(what, "must be a moment from year 1 to year 9999");
    if !(TIMESTAMP_S_MIN..=TIMESTAMP_S_MAX).contains(&wire.seconds)
        || !(0..1_000_000_000).contains(&wire.nanos)
    {
        return Err(wrong());
    }
    Ok(Timestamp::from_secs(wire.seconds).plus_millis(i64::from(wire.nanos / 1_000_000)))
}

/// Writes a moment.
pub fn timestamp_to_wire(moment: Timestamp) -> prost_types::Timestamp {
    let millis = moment.since(Timestamp::from_secs(moment.secs()));
    prost_types::Timestamp {
        seconds: moment.secs(),
        nanos: i32::try_from(millis)
            .unwrap_or_default()
            .saturating_mul(1_000_000),
    }
}

/// A field that must be there.
pub fn required<'a, T>(what: &'static str, field: Option<&'a T>) -> Result<&'a T, ParseError> {
    field.ok_or_else(|| ParseError::new(what, "is required"))
}

/// Bounds of google.protobuf.Duration and Timestamp, in seconds.
const DURATION_S_MAX: i64 = 315_576_000_000;
const TIMESTAMP_S_MIN: i64 = -62_135_596_800;
const TIMESTAMP_S_MAX: i64 = 253_402_300_799;

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Action {
        let inner = Param::Record(BTreeMap::from([("deep".to_owned(), Param::Int(-7))]));
        Action::new(
            ActionName::parse("account.disable").expect("name"),
            Audience::parse("https://idp.example").expect("audience"),
            Target::parse("Account", "ann").expect("target"),
            BTreeMap::from([
                ("flag".to_owned(), Param::Bool(false)),
                (
                    "hosts".to_owned(),
                    Param::set(vec![Param::Str("b".into()), Param::Str("a".into())]).expect("set"),
                ),
                ("more".to_owned(), inner),
            ]),
        )
        .expect("action")
    }

    #[test]
    fn action_roundtrip_keeps_digest() {
        let ours = sample();
        let back = action(&action_to_wire(&ours)).expect("reads back");
        assert_eq!(back, ours);
        assert_eq!(back.digest(), ours.digest());
    }

    #[test]
    fn missing_or_duplicate_fields_are_rejected() {
        let good = action_to_wire(&sample());
        let bent = |bend: &dyn Fn(&mut v1::Action)| {
            let mut wire = good.clone();
            bend(&mut wire);
            action(&wire)
        };
        assert!(bent(&|_| ()).is_ok());
        let bends: [&dyn Fn(&mut v1::Action); 8] = [
            &|w| w.target = None,
            &|w| w.name.clear(),
            &|w| w.audience.clear(),
            &|w| w.parameters[0].value = None,
            &|w| w.parameters[0].value = Some(v1::Value { kind: None }),
            &|w| w.parameters.push(w.parameters[0].clone()),
            &|w| match w.parameters[1].value.as_mut().and_then(|v| v.kind.as_mut()) {
                Some(v1::value::Kind::SetValue(set)) => set.elements.reverse(),
                _ => panic!("a set"),
            },
            &|w| {
                for _ in 0..PARAM_DEPTH_MAX {
                    let inner = v1::ValueSet {
                        elements: w.parameters[0].value.clone().into_iter().collect(),
                    };
                    w.parameters[0].value = Some(v1::Value {
                        kind: Some(v1::value::Kind::SetValue(inner)),
                    });
                }
            },
        ];
        for (i, bend) in bends.iter().enumerate() {
            assert!(bent(bend).is_err(), "bend {i}");
        }
        let member = v1::Parameter {
            name: "x".to_owned(),
            value: good.parameters[0].value.clone(),
        };
        let twice = v1::ValueRecord {
            members: vec![member.clone(), member],
        };
        assert!(
            value(&v1::Value {
                kind: Some(v1::value::Kind::RecordValue(twice))
            })
            .is_err()
        );
    }

    #[test]
    fn durations_are_whole_seconds() {
        let read = |seconds_: i64, nanos| {
            seconds(
                "ttl",
                &prost_types::Duration {
                    seconds: seconds_,
                    nanos,
                },
            )
        };
        assert_eq!(read(300, 0), Ok(300));
        assert_eq!(read(-1, 0), Ok(-1));
        for (s, n) in [(1, 1), (0, -1), (DURATION_S_MAX + 1, 0), (i64::MIN, 0)] {
            assert!(read(s, n).is_err(), "{s} {n}");
        }
    }

    #[test]
    fn timestamps_keep_milliseconds() {
        for ms in [0, 1, 999, 1_800_000_000_123, -1] {
            let moment = Timestamp::from_millis(ms);
            assert_eq!(timestamp("at", &timestamp_to_wire(moment)), Ok(moment));
        }
        for (seconds, nanos) in [
            (TIMESTAMP_S_MAX + 1, 0),
            (0, -1),
            (0, 1_000_000_000),
            (i64::MAX, 0),
        ] {
            assert!(timestamp("at", &prost_types::Timestamp { seconds, nanos }).is_err());
        }
    }

    #[test]
    fn task_outcome_roundtrip() {
        for outcome in [
            TaskOutcome::Succeeded,
            TaskOutcome::Failed,
            TaskOutcome::Abandoned,
        ] {
            assert_eq!(
                task_outcome(task_outcome_to_wire(outcome).into()),
                Ok(outcome)
            );
        }
        assert!(task_outcome(0).is_err() && task_outcome(4).is_err());
    }

    #[test]
    fn verdict_roundtrip() {
        assert_eq!(
            verdict(verdict_to_wire(Verdict::Deny).into()),
            Ok(Verdict::Deny)
        );
        assert_eq!(
            verdict(verdict_to_wire(Verdict::Approve).into()),
            Ok(Verdict::Approve)
        );
        assert!(verdict(0).is_err() && verdict(3).is_err());
    }
}
