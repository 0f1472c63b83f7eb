//! The types of a Cedar schema, read from its JSON form with every common type resolved.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::{Map, Value};

/// A type of a schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum SchemaType {
    String,
    Bool,
    Long,
    /// An extension type, such as `duration`.
    Extension(String),
    /// A reference to an entity of this type.
    Entity(String),
    Set(Box<SchemaType>),
    Record(BTreeMap<String, RecordMember>),
}

/// A member of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RecordMember {
    pub(super) ty: SchemaType,
    pub(super) required: bool,
    pub(super) annotations: BTreeMap<String, Option<String>>,
}

impl SchemaType {
    /// Adds the names of its members, and of those of records in it.
    pub(super) fn member_names(&self, found: &mut BTreeSet<String>) {
        match self {
            Self::Set(of) => of.member_names(found),
            Self::Record(members) => {
                for (name, member) in members {
                    found.insert(name.clone());
                    member.ty.member_names(found);
                }
            }
            Self::String | Self::Bool | Self::Long | Self::Extension(_) | Self::Entity(_) => {}
        }
    }

    /// The record with these members, all required.
    pub(super) fn record<const N: usize>(members: [(&str, SchemaType); N]) -> Self {
        let member = |ty| RecordMember {
            ty,
            required: true,
            annotations: BTreeMap::new(),
        };
        Self::Record(
            members
                .into_iter()
                .map(|(name, ty)| (name.to_owned(), member(ty)))
                .collect(),
        )
    }
}

/// As in a Cedar schema.
impl fmt::Display for SchemaType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::String => f.write_str("String"),
            Self::Bool => f.write_str("Bool"),
            Self::Long => f.write_str("Long"),
            Self::Extension(name) | Self::Entity(name) => f.write_str(name),
            Self::Set(of) => write!(f, "Set<{of}>"),
            Self::Record(members) => {
                let members = members.iter().map(|(name, m)| {
                    format!("{name}{}: {}", if m.required { "" } else { "?" }, m.ty)
                });
                write!(f, "{{ {} }}", members.collect::<Vec<_>>().join(", "))
            }
        }
    }
}

/// Reads types of one fragment: its own common types and those of the fragment every bundle gets.
pub(super) struct TypeReader<'a> {
    /// Common types by name, in JSON form.
    pub(super) common: Vec<&'a Map<String, Value>>,
}

impl TypeReader<'_> {
    /// The type that `json` writes.
    pub(super) fn read(&self, json: &Value) -> Result<SchemaType, String> {
        self.read_at(json, 0)
    }

    fn read_at(&self, json: &Value, depth: usize) -> Result<SchemaType, String> {
        if depth > DEPTH_MAX {
            return Err(format!("a type is nested more than {DEPTH_MAX} deep"));
        }
        let word = |key: &str| {
            json.get(key)
                .and_then(Value::as_str)
                .ok_or_else(|| format!("a type has no {key}"))
        };
        Ok(match word("type")? {
            "String" => SchemaType::String,
            "Boolean" | "Bool" => SchemaType::Bool,
            "Long" => SchemaType::Long,
            "Extension" => SchemaType::Extension(word("name")?.to_owned()),
            "Entity" => SchemaType::Entity(word("name")?.to_owned()),
            "Set" => SchemaType::Set(Box::new(self.read_at(
                json.get("element").ok_or("a set has no element")?,
                depth + 1,
            )?)),
            "Record" => self.record(json, depth)?,
            "EntityOrCommon" => self.named(word("name")?, depth)?,
            name => self.named(name, depth)?,
        })
    }

    fn record(&self, json: &Value, depth: usize) -> Result<SchemaType, String> {
        if json
            .get("additionalAttributes")
            .is_some_and(|open| open != &Value::Bool(false))
        {
            return Err("an open record is not a type here".to_owned());
        }
        let mut members = BTreeMap::new();
        for (name, member) in json
            .get("attributes")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
        {
            let ty = self.read_at(member, depth + 1)?;
            let required = member
                .get("required")
                .and_then(Value::as_bool)
                .unwrap_or(true);
            members.insert(
                name.clone(),
                RecordMember {
                    ty,
                    required,
                    annotations: annotations(member),
                },
            );
        }
        Ok(SchemaType::Record(members))
    }

    fn named(&self, name: &str, depth: usize) -> Result<SchemaType, String> {
        if let Some(json) = self.common.iter().find_map(|types| types.get(name)) {
            return self.read_at(json, depth + 1);
        }
        Ok(match name.strip_prefix("__cedar::").unwrap_or(name) {
            "String" => SchemaType::String,
            "Bool" | "Boolean" => SchemaType::Bool,
            "Long" => SchemaType::Long,
            extension if EXTENSIONS.contains(&extension) => {
                SchemaType::Extension(extension.to_owned())
            }
            entity => SchemaType::Entity(entity.to_owned()),
        })
    }
}

/// The annotations of a part of the schema; one without a value is `None` or empty.
pub(super) fn annotations(json: &Value) -> BTreeMap<String, Option<String>> {
    let all = json
        .get("annotations")
        .and_then(Value::as_object)
        .into_iter()
        .flatten();
    all.map(|(key, value)| {
        (
            key.clone(),
            value
                .as_str()
                .filter(|text| !text.is_empty())
                .map(str::to_owned),
        )
    })
    .collect()
}

/// Names of Cedar's own types, which no bundle may give another meaning.
pub(super) const BUILT_IN: [&str; 6] = ["String", "Bool", "Boolean", "Long", "Set", "Record"];
/// Cedar's extension types.
pub(super) const EXTENSIONS: [&str; 4] = ["datetime", "decimal", "duration", "ipaddr"];
/// Deepest nesting of types, names resolved.
const DEPTH_MAX: usize = 16;
