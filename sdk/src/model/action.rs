use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::id::visible;
use super::json::{self, INTEGER_MAX};
use super::{ActionName, Audience, Digest, Malformed};

/// What an action is done to: an entity of the policy bundle, byte-exact.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// The entity type of the team's schema, such as `Account`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The entity's id, 1 to 256 bytes, free of invisible characters.
    pub id: String,
}

impl Target {
    /// Reads both halves. The type is one or more Cedar identifiers joined by `::`.
    pub fn parse(kind: &str, id: &str) -> Result<Self, Malformed> {
        if kind.len() > 128 || !kind.split("::").all(is_identifier) {
            return Err(Malformed::new(
                "target type",
                "must be identifiers joined by '::', at most 128 bytes",
            ));
        }
        visible("target id", id, 256)?;
        Ok(Self {
            kind: kind.to_owned(),
            id: id.to_owned(),
        })
    }

    /// Reads `Type::id`, the form people type: split at the last `::` of the leading type path, as in `Account::ann`.
    pub fn parse_pair(text: &str) -> Result<Self, Malformed> {
        let (kind, id) = text
            .split_once("::")
            .ok_or_else(|| Malformed::new("target", "must be Type::id, such as Account::ann"))?;
        Self::parse(kind, id)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}::{}", self.kind, self.id)
    }
}

/// A typed parameter. No floats, no null, no free-form JSON: what is approved reads the same to everyone.
#[derive(Clone, PartialEq, Eq)]
pub enum Param {
    /// Text, at most 4,096 bytes.
    Str(String),
    /// True or false.
    Bool(bool),
    /// An integer within ±(2^53 − 1).
    Int(i64),
    /// Distinct elements, sorted by the bytes of their canonical JSON.
    Set(Vec<Param>),
    /// Named members.
    Record(BTreeMap<String, Param>),
}

/// Most parameters of an action, members and elements included.
pub const PARAMETERS_MAX: usize = 128;
/// Deepest nesting of sets and records.
pub const PARAM_DEPTH_MAX: usize = 4;

impl Param {
    /// The JSON form that digests, tokens and entries hold.
    pub fn to_json(&self) -> Value {
        match self {
            Self::Str(s) => Value::String(s.clone()),
            Self::Bool(b) => Value::Bool(*b),
            Self::Int(n) => Value::from(*n),
            Self::Set(items) => Value::Array(items.iter().map(Self::to_json).collect()),
            Self::Record(members) => Value::Object(
                members
                    .iter()
                    .map(|(k, v)| (k.clone(), v.to_json()))
                    .collect(),
            ),
        }
    }

    /// Reads the JSON form back; refuses null, fractions and unsorted sets.
    pub fn from_json(value: &Value) -> Result<Self, Malformed> {
        Ok(match value {
            Value::String(s) => Self::Str(s.clone()),
            Value::Bool(b) => Self::Bool(*b),
            Value::Number(n) => Self::Int(
                n.as_i64()
                    .ok_or_else(|| wrong("numbers must be integers"))?,
            ),
            Value::Array(items) => Self::Set(
                items
                    .iter()
                    .map(Self::from_json)
                    .collect::<Result<_, _>>()?,
            ),
            Value::Object(members) => Self::Record(
                members
                    .iter()
                    .map(|(k, v)| Ok((k.clone(), Self::from_json(v)?)))
                    .collect::<Result<_, Malformed>>()?,
            ),
            Value::Null => return Err(wrong("must not be null")),
        })
    }

    /// The set with its elements in canonical order and no element twice: for clients; the broker refuses any other order.
    pub fn set(items: Vec<Self>) -> Result<Self, Malformed> {
        let mut keyed = items
            .into_iter()
            .map(|p| Ok((canonical(&p)?, p)))
            .collect::<Result<Vec<_>, Malformed>>()?;
        keyed.sort_by(|a, b| a.0.cmp(&b.0));
        keyed.dedup_by(|a, b| a.0 == b.0);
        Ok(Self::Set(keyed.into_iter().map(|(_, p)| p).collect()))
    }

    fn check(&self, depth: usize, count: &mut usize) -> Result<(), Malformed> {
        *count += 1;
        if depth > PARAM_DEPTH_MAX || *count > PARAMETERS_MAX {
            return Err(wrong(format!(
                "must nest at most {PARAM_DEPTH_MAX} deep and hold at most {PARAMETERS_MAX} values"
            )));
        }
        match self {
            Self::Str(s) if s.len() > 4_096 => Err(wrong("text must be at most 4096 bytes")),
            Self::Int(n) if !(-INTEGER_MAX..=INTEGER_MAX).contains(n) => {
                Err(wrong("integers must lie within ±(2^53-1)"))
            }
            Self::Str(_) | Self::Bool(_) | Self::Int(_) => Ok(()),
            Self::Set(items) => {
                let mut last: Option<String> = None;
                for item in items {
                    item.check(depth + 1, count)?;
                    let form = canonical(item)?;
                    if last.is_some_and(|l| l >= form) {
                        return Err(wrong(
                            "set elements must be distinct and sorted by their canonical JSON",
                        ));
                    }
                    last = Some(form);
                }
                Ok(())
            }
            Self::Record(members) => {
                for (name, member) in members {
                    parameter_name(name)?;
                    member.check(depth + 1, count)?;
                }
                Ok(())
            }
        }
    }
}

/// Values may be sensitive: only the shape is printed.
impl fmt::Debug for Param {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Str(_) => "string",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Set(_) => "set",
            Self::Record(_) => "record",
        })
    }
}

fn wrong(rule: impl Into<String>) -> Malformed {
    Malformed::new("parameters", rule)
}

fn canonical(param: &Param) -> Result<String, Malformed> {
    json::canonical(&param.to_json()).map_err(|e| wrong(e.to_string()))
}

fn is_identifier(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes
        .next()
        .is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

fn parameter_name(name: &str) -> Result<(), Malformed> {
    if is_identifier(name) && name.len() <= 64 {
        Ok(())
    } else {
        Err(Malformed::new(
            "parameter name",
            "must be an identifier of at most 64 letters, digits and '_'",
        ))
    }
}

/// The one specific thing that is asked, approved, minted and spent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Action {
    /// What to do, as the catalogue calls it.
    pub name: ActionName,
    /// The resource server that will do it.
    pub audience: Audience,
    /// What it is done to.
    pub target: Target,
    /// With what: exactly as sent, no defaults filled in.
    pub parameters: BTreeMap<String, Param>,
}

impl Action {
    /// Checks names, bounds and the order of sets.
    pub fn new(
        name: ActionName,
        audience: Audience,
        target: Target,
        parameters: BTreeMap<String, Param>,
    ) -> Result<Self, Malformed> {
        let mut count = 0;
        for (name, param) in &parameters {
            parameter_name(name)?;
            param.check(1, &mut count)?;
        }
        Ok(Self {
            name,
            audience,
            target,
            parameters,
        })
    }

    /// The object that is digested: `{action, audience, parameters, target: {type, id}}`.
    pub fn to_json(&self) -> Value {
        object([
            ("action", Value::String(self.name.to_string())),
            ("audience", Value::String(self.audience.to_string())),
            (
                "parameters",
                Value::Object(
                    self.parameters
                        .iter()
                        .map(|(k, v)| (k.clone(), v.to_json()))
                        .collect(),
                ),
            ),
            (
                "target",
                object([
                    ("type", Value::String(self.target.kind.clone())),
                    ("id", Value::String(self.target.id.clone())),
                ]),
            ),
        ])
    }

    /// The action digest: SHA-256("dipylon/action/v1" ‖ 0x00 ‖ RFC 8785 form). Two actions are the same if and only if
    /// their digests are.
    pub fn digest(&self) -> Digest {
        // Construction bounded every number, so the canonical form exists; an empty one would match nothing.
        Digest::tagged(
            "dipylon/action/v1",
            json::canonical(&self.to_json())
                .unwrap_or_default()
                .as_bytes(),
        )
    }

    /// Parts what everyone may read from what is kept apart: each parameter named in `sensitive` becomes a salted
    /// commitment, and the digest too, since a guess could be checked against it. `draw` gives fresh random salts.
    pub fn on_record(
        &self,
        sensitive: &BTreeSet<String>,
        draw: &mut dyn FnMut() -> [u8; 16],
    ) -> (ActionOnRecord, Option<ActionSecret>) {
        let mut record = ActionOnRecord {
            action: self.name.clone(),
            audience: self.audience.clone(),
            target: self.target.clone(),
            parameters: Map::new(),
            digest: self.digest(),
        };
        let mut hidden = BTreeMap::new();
        for (name, param) in &self.parameters {
            let value = param.to_json();
            if sensitive.contains(name) {
                let opening = Opening {
                    salt: salt(draw),
                    value,
                };
                record.parameters.insert(
                    name.clone(),
                    object([(COMMITMENT, Value::String(opening.commitment().to_string()))]),
                );
                hidden.insert(name.clone(), opening);
            } else {
                record.parameters.insert(name.clone(), value);
            }
        }
        if hidden.is_empty() {
            return (record, None);
        }
        let secret = ActionSecret {
            salt: salt(draw),
            digest: self.digest(),
            parameters: hidden,
        };
        record.digest = secret.digest_commitment();
        (record, Some(secret))
    }
}

fn salt(draw: &mut dyn FnMut() -> [u8; 16]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(draw())
}

fn object<const N: usize>(members: [(&str, Value); N]) -> Value {
    Value::Object(
        members
            .into_iter()
            .map(|(k, v)| (k.to_owned(), v))
            .collect(),
    )
}

/// The member that marks a committed value. `$` cannot stand in a parameter's name, so nothing else looks like it.
const COMMITMENT: &str = "$commitment";

/// An action as entries and tokens hold it: sensitive parameters and, if there are any, the digest are commitments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActionOnRecord {
    /// The catalogue's name.
    pub action: ActionName,
    /// The resource server.
    pub audience: Audience,
    /// What it is done to.
    pub target: Target,
    /// Values, or `{"$commitment": …}` for sensitive ones.
    pub parameters: Map<String, Value>,
    /// The action digest, or SHA-256(tag ‖ 0x00 ‖ salt ‖ digest) when a parameter is sensitive.
    pub digest: Digest,
}

impl ActionOnRecord {
    /// Puts the action together again, with its secret part when it has one, and checks that all of it belongs together.
    pub fn reopen(&self, secret: Option<&ActionSecret>) -> Result<Action, Malformed> {
        let mut parameters = BTreeMap::new();
        for (name, value) in &self.parameters {
            let value = match value.as_object().and_then(|o| o.get(COMMITMENT)) {
                None => value.clone(),
                Some(commitment) => {
                    let opening = secret
                        .and_then(|s| s.parameters.get(name))
                        .ok_or_else(|| wrong("the sensitive part is missing"))?;
                    if commitment.as_str() != Some(opening.commitment().to_string().as_str()) {
                        return Err(wrong("the sensitive part does not match its commitment"));
                    }
                    opening.value.clone()
                }
            };
            parameters.insert(name.clone(), Param::from_json(&value)?);
        }
        let action = Action::new(
            self.action.clone(),
            self.audience.clone(),
            self.target.clone(),
            parameters,
        )?;
        let expected = secret.map_or(action.digest(), ActionSecret::digest_commitment);
        if expected != self.digest || secret.is_some_and(|s| s.digest != action.digest()) {
            return Err(wrong("the action does not match its digest"));
        }
        Ok(action)
    }
}

/// The part of an action that entries and tokens do not show; kept as a blob while its task lives.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActionSecret {
    /// Salt of the digest's commitment, base64url.
    pub salt: String,
    /// The plain action digest.
    pub digest: Digest,
    /// The openings of the committed parameters.
    pub parameters: BTreeMap<String, Opening>,
}

impl ActionSecret {
    /// The blob that keeps it.
    pub fn blob(&self) -> String {
        json::canonical_of(self).unwrap_or_default()
    }

    /// Reads a blob back; `None` for anything else.
    pub fn from_blob(blob: &str) -> Option<Self> {
        json::parse_as(blob.as_bytes()).ok()
    }

    fn digest_commitment(&self) -> Digest {
        Digest::of_parts(&[
            b"dipylon/digest-commitment/v1",
            &[0],
            self.salt.as_bytes(),
            &[0],
            self.digest.as_bytes(),
        ])
    }
}

impl fmt::Debug for ActionSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ActionSecret({} parameters)", self.parameters.len())
    }
}

/// What opens a commitment: SHA-256("dipylon/commitment/v1" ‖ 0x00 ‖ salt ‖ 0x00 ‖ canonical value).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opening {
    /// 16 random bytes, base64url.
    pub salt: String,
    /// The value itself.
    pub value: Value,
}

impl Opening {
    /// The commitment that entries and tokens hold.
    pub fn commitment(&self) -> Digest {
        let value = json::canonical(&self.value).unwrap_or_default();
        Digest::of_parts(&[
            b"dipylon/commitment/v1",
            &[0],
            self.salt.as_bytes(),
            &[0],
            value.as_bytes(),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn action() -> Action {
        Action::new(
            ActionName::parse("account.disable").expect("name"),
            Audience::parse("https://idp.example").expect("audience"),
            Target::parse("Account", "ann").expect("target"),
            BTreeMap::from([
                ("end_sessions".to_owned(), Param::Bool(true)),
                ("note".to_owned(), Param::Str("secret words".to_owned())),
            ]),
        )
        .expect("action")
    }

    #[test]
    fn every_field_is_in_the_digest() {
        let base = action().digest();
        let mut others = [action(), action(), action(), action(), action(), action()];
        others[0].target.id = "bob".into();
        others[1].target.kind = "Host".into();
        others[2].audience = Audience::parse("https://idp.example/").expect("audience");
        others[3].name = ActionName::parse("account.enable").expect("name");
        others[4]
            .parameters
            .insert("end_sessions".into(), Param::Bool(false));
        others[5].parameters.remove("note");
        let all: BTreeSet<_> = others.iter().map(Action::digest).chain([base]).collect();
        assert_eq!(all.len(), 7);
    }

    #[test]
    fn the_sensitive_part_leaves_the_record_and_comes_back_only_whole() {
        let mut n = 0;
        let mut draw = || {
            n += 1;
            [n; 16]
        };
        let (record, secret) = action().on_record(&BTreeSet::from(["note".to_owned()]), &mut draw);
        let secret = secret.expect("there is a sensitive parameter");
        let text = serde_json::to_string(&record).expect("json");
        assert!(
            !text.contains("secret words") && !text.contains(&action().digest().to_string()),
            "{text}"
        );
        assert_eq!(record.reopen(Some(&secret)).expect("whole"), action());
        assert!(record.reopen(None).is_err());
        let mut other = secret.clone();
        other.parameters.get_mut("note").expect("note").value = Value::String("other words".into());
        assert!(record.reopen(Some(&other)).is_err());
        let mut moved = record.clone();
        moved.target.id = "bob".into();
        assert!(moved.reopen(Some(&secret)).is_err());
    }

    #[test]
    fn sets_have_one_form() {
        let set =
            |items: &[&str]| Param::Set(items.iter().map(|s| Param::Str((*s).into())).collect());
        let with = |p| {
            Action::new(
                action().name,
                action().audience,
                action().target,
                BTreeMap::from([("hosts".to_owned(), p)]),
            )
        };
        assert!(with(set(&["a", "b"])).is_ok());
        assert!(with(set(&["b", "a"])).is_err());
        assert!(with(set(&["a", "a"])).is_err());
        assert!(with(Param::Int(INTEGER_MAX + 1)).is_err());
        assert_eq!(
            Param::set(vec![
                Param::Str("b".into()),
                Param::Str("a".into()),
                Param::Str("b".into())
            ])
            .expect("set"),
            set(&["a", "b"])
        );
    }
}
