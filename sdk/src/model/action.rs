//! Actions: what an agent requests, with typed parameters, and the commitments that hide sensitive ones.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::id::check_visible;
use super::json::{self, INTEGER_MAX};
use super::{ActionName, Audience, Digest, ParseError};

/// The target of an action: an entity of the policy bundle, byte-exact.
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
    /// Parses type and id. The type is one or more Cedar identifiers joined by `::`.
    pub fn parse(kind: &str, id: &str) -> Result<Self, ParseError> {
        if kind.len() > 128 || !kind.split("::").all(is_identifier) {
            return Err(ParseError::new(
                "target type",
                "must be identifiers joined by '::', at most 128 bytes",
            ));
        }
        check_visible("target id", id, 256)?;
        Ok(Self {
            kind: kind.to_owned(),
            id: id.to_owned(),
        })
    }

    /// Parses `Type::id`, split at the first `::`, as in `Account::ann`.
    pub fn parse_pair(text: &str) -> Result<Self, ParseError> {
        let (kind, id) = text
            .split_once("::")
            .ok_or_else(|| ParseError::new("target", "must be Type::id, such as Account::ann"))?;
        Self::parse(kind, id)
    }

    /// `Type::id` for a sentence: in quotes, as in `Account::"ann [LOW RISK]"`, if the id is more than a name of ASCII letters,
    /// digits and `-._@/:+=#~`, because agents choose the ids of targets that the policy bundle does not have. Not escaped: the
    /// sentence is escaped as a whole.
    pub fn in_sentence(&self) -> String {
        let is_name = |c: char| c.is_ascii_alphanumeric() || "-._@/:+=#~".contains(c);
        let id = &self.id;
        // `A::B` and `c`, or `A` and `B::c`?
        if id.chars().all(is_name) && !id.starts_with(':') && !id.contains("::") {
            self.to_string()
        } else {
            format!("{}::{}", self.kind, super::text::quote(id))
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}::{}", self.kind, self.id)
    }
}

/// A typed parameter. No floats, no null, no free-form JSON, so that every reader sees the approved value alike.
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

/// Most values in an action's parameters, members and elements included.
pub const PARAMETERS_MAX: usize = 128;
/// Deepest nesting of sets and records.
pub const PARAM_DEPTH_MAX: usize = 4;

impl Param {
    /// The JSON form in digests, tokens and entries.
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

    /// Parses the JSON form; refuses null and fractions. Bounds and the order of sets are checked by [`Action::new`].
    pub fn from_json(value: &Value) -> Result<Self, ParseError> {
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
                    .collect::<Result<_, ParseError>>()?,
            ),
            Value::Null => return Err(wrong("must not be null")),
        })
    }

    /// A set with its elements sorted and deduplicated, for clients; the broker refuses any other order.
    pub fn set(items: Vec<Self>) -> Result<Self, ParseError> {
        let mut keyed = items
            .into_iter()
            .map(|p| Ok((canonical(&p)?, p)))
            .collect::<Result<Vec<_>, ParseError>>()?;
        keyed.sort_by(|a, b| a.0.cmp(&b.0));
        keyed.dedup_by(|a, b| a.0 == b.0);
        Ok(Self::Set(keyed.into_iter().map(|(_, p)| p).collect()))
    }

    fn check(&self, depth: usize, count: &mut usize) -> Result<(), ParseError> {
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

/// Values may be sensitive: only the type is printed.
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

fn wrong(reason: impl Into<String>) -> ParseError {
    ParseError::new("parameters", reason)
}

fn canonical(param: &Param) -> Result<String, ParseError> {
    json::canonical(&param.to_json()).map_err(|e| wrong(e.to_string()))
}

fn is_identifier(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes
        .next()
        .is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

fn parameter_name(name: &str) -> Result<(), ParseError> {
    if is_identifier(name) && name.len() <= 64 {
        Ok(())
    } else {
        Err(ParseError::new(
            "parameter name",
            "must be an identifier of at most 64 letters, digits and '_'",
        ))
    }
}

/// One specific action: requested, approved, and allowed by one token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Action {
    /// The action's name in the catalogue.
    pub name: ActionName,
    /// The resource server that performs it.
    pub audience: Audience,
    /// The entity it acts on.
    pub target: Target,
    /// The parameters exactly as sent, without defaults.
    pub parameters: BTreeMap<String, Param>,
}

impl Action {
    /// Checks names, bounds and the order of sets.
    pub fn new(
        name: ActionName,
        audience: Audience,
        target: Target,
        parameters: BTreeMap<String, Param>,
    ) -> Result<Self, ParseError> {
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

    /// The object of the action digest: `{action, audience, parameters, target: {type, id}}`.
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

    /// Splits the action into a public record and a secret part: each parameter named in `sensitive` becomes a salted
    /// commitment, and so does the digest, since a guess could be checked against it. `draw` returns 16 fresh random bytes.
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

/// The member that marks a committed value. A parameter's name cannot contain `$`, so no other value has this member.
const COMMITMENT: &str = "$commitment";

/// An action as in entries and tokens: sensitive parameters and, if there are any, the digest are commitments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActionOnRecord {
    /// The action's name in the catalogue.
    pub action: ActionName,
    /// The resource server that performs it.
    pub audience: Audience,
    /// The entity it acts on.
    pub target: Target,
    /// Values, or `{"$commitment": …}` for sensitive ones.
    pub parameters: Map<String, Value>,
    /// The action digest, or SHA-256(tag ‖ 0x00 ‖ salt ‖ digest) when a parameter is sensitive.
    pub digest: Digest,
}

impl ActionOnRecord {
    /// Whether a parameter is sensitive: then parameters and digest are salted commitments.
    pub fn has_sensitive(&self) -> bool {
        self.sensitive().next().is_some()
    }

    /// The names of the parameters that are commitments.
    pub fn sensitive(&self) -> impl Iterator<Item = &String> {
        let is_commitment = |(_, value): &(&String, &Value)| {
            let members = value.as_object();
            members.is_some_and(|members| members.contains_key(COMMITMENT))
        };
        self.parameters
            .iter()
            .filter(is_commitment)
            .map(|(name, _)| name)
    }

    /// Restores the action, with its secret part when it has one, and checks every commitment and the digest.
    pub fn reopen(&self, secret: Option<&ActionSecret>) -> Result<Action, ParseError> {
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

/// The secret part of an action, which entries and tokens only commit to; stored as a blob.
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
    /// The blob that stores it.
    pub fn blob(&self) -> String {
        json::canonical_of(self).unwrap_or_default()
    }

    /// Parses a blob; `None` for anything else.
    pub fn from_blob(blob: &str) -> Option<Self> {
        json::parse_as(blob.as_bytes()).ok()
    }

    fn digest_commitment(&self) -> Digest {
        Digest::sha256_parts(&[
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

/// The opening of a commitment SHA-256("dipylon/commitment/v1" ‖ 0x00 ‖ salt ‖ 0x00 ‖ canonical value).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opening {
    /// 16 random bytes, base64url.
    pub salt: String,
    /// The value itself.
    pub value: Value,
}

impl Opening {
    /// The commitment in entries and tokens.
    pub fn commitment(&self) -> Digest {
        let value = json::canonical(&self.value).unwrap_or_default();
        Digest::sha256_parts(&[
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
    fn sensitive_parameters_are_committed_and_reopen() {
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
    fn sets_have_one_canonical_form() {
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
