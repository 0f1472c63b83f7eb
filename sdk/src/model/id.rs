//! Ids and names: random ids with a prefix, registered names, and text written by agents.

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::digest::write_base64;
use super::{Digest, ParseError, Target, Thumbprint, json, text};

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident($what:literal) = $prefix:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name([u8; 16]);

        impl $name {
            /// From 16 random bytes drawn by the caller.
            pub const fn from_random(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }

            /// Parses the written form: the prefix and 16 bytes as base64url.
            pub fn parse(text: &str) -> Result<Self, ParseError> {
                let wrong = || ParseError::new($what, concat!("must be ", $prefix, "_ and 22 characters of base64url"));
                let rest = text.strip_prefix(concat!($prefix, "_")).ok_or_else(wrong)?;
                let mut bytes = [0; 16];
                match URL_SAFE_NO_PAD.decode_slice(rest, &mut bytes) {
                    Ok(16) => Ok(Self(bytes)),
                    Ok(_) | Err(_) => Err(wrong()),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                const PREFIX: &str = concat!($prefix, "_");
                write_base64::<{ PREFIX.len() + 22 }>(PREFIX, &self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{self}")
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                Self::parse(&String::deserialize(d)?).map_err(serde::de::Error::custom)
            }
        }
    )*};
}

ids! {
    /// A task. Also the `txn` claim of its tokens.
    TaskId("task id") = "task";
    /// An access request: an action that people approve or deny.
    AccessRequestId("access request id") = "areq";
    /// A token's `jti`.
    TokenId("token id") = "tok";
    /// One decision of gate 2.
    DecisionId("decision id") = "dec";
    /// One refused call, for `dipylon explain`.
    CorrelationId("correlation id") = "cor";
    /// An invitation to enrol a passkey.
    InvitationId("invitation id") = "inv";
}

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident($what:literal, $rule:expr);)*) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Parses the name, byte-exact: nothing is case-folded, trimmed or normalised.
            pub fn parse(text: &str) -> Result<Self, ParseError> {
                let rule: fn(&str) -> Result<(), &'static str> = $rule;
                match rule(text) {
                    Ok(()) => Ok(Self(text.into())),
                    Err(broken) => Err(ParseError::new($what, broken)),
                }
            }

            /// The name as written.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The same name with the `Arc` that `intern` has for its text, since many records share few names.
            #[must_use]
            pub fn interned(&self, intern: &mut dyn FnMut(&Arc<str>) -> Arc<str>) -> Self {
                Self(intern(&self.0))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                Self::parse(&String::deserialize(d)?).map_err(serde::de::Error::custom)
            }
        }
    )*};
}

names! {
    /// A registered agent.
    AgentId("agent id", name);
    /// A registered person, by an opaque id that the security team chose; never a name or an address.
    PersonId("person id", name);
    /// A registered validator or auditor.
    ServiceId("service id", name);
    /// A group of people or of agents.
    GroupId("group", name);
    /// An action of the catalogue.
    ActionName("action", name);
    /// A step-up profile.
    ProfileName("profile", name);
    /// A deployment environment.
    EnvironmentName("environment", name);
    /// The deployment that a broker serves; part of every vote statement.
    Realm("realm", name);
    /// A client's idempotency key. It has no other meaning.
    IdempotencyKey("idempotency_key", client_key);
    /// A validator's idempotency key for consuming one use of a token. The `jti` of the request's proof is a natural choice.
    UseId("use_id", client_key);
    /// The resource server that a token is for: one absolute URI or name, compared byte by byte.
    Audience("audience", uri_like);
    /// The name of a signing key.
    KeyId("kid", key_id);
    /// Why the operators were recovered, in the words of the owner of the broker's host.
    RecoveryReason("reason", line);
    /// A named fact of the policy bundle, as rules read it: `context.facts.NAME`.
    FactName("fact", member_name);
    /// A count of the policy bundle, as rules read it: `context.counts.NAME`.
    CountName("count", member_name);
    /// A user of the system that a broker runs on, as a process of that user names itself.
    HostUser("host user", line);
}

impl GroupId {
    /// The people whom an attribute of a target names. No file can register a person in such a group: its text is no name.
    pub fn of_target(attribute: &str, target: &Target) -> Self {
        let id = serde_json::Value::from(target.id.as_str());
        Self(format!("{attribute} of {}::{id}", target.kind).into())
    }

    /// The people whom an attribute of any target names.
    pub fn of_targets(attribute: &str) -> Self {
        Self(format!("{attribute} of the target").into())
    }

    /// A group on record: a registered one, or that of a target.
    pub fn on_record(text: &str) -> Result<Self, ParseError> {
        match text.split_once(" of ") {
            Some((attribute, of)) if !of.is_empty() && attribute_name(attribute).is_ok() => {
                Ok(Self(text.into()))
            }
            Some(_) | None => Self::parse(text),
        }
    }
}

impl UseId {
    /// A digest as base64url.
    pub fn from_digest(digest: Digest) -> Self {
        Self(digest.to_string().into())
    }
}

impl HostUser {
    /// A user by the number that the system has for it, and by the name and caller that it claims where these are lines to read.
    pub fn claimed(uid: u32, name: Option<&str>, called_by: Option<&str>) -> Self {
        let uid = format!("uid {uid}");
        let is_short = |text: &&str| text.len() <= 100 && line(text).is_ok();
        let name = name.filter(is_short).map(|name| format!("{name}, "));
        let caller = called_by
            .filter(is_short)
            .map(|caller| format!(", called by {caller}"));
        Self(
            format!(
                "{}{uid}{}",
                name.unwrap_or_default(),
                caller.unwrap_or_default()
            )
            .into(),
        )
    }
}

impl KeyId {
    /// The id of a key named by its thumbprint (RFC 7638), so that no two keys share it.
    pub fn from_thumbprint(key: Thumbprint) -> Self {
        Self(key.to_string().into())
    }
}

/// Letters, digits, `.`, `_`, `-`; first a letter or digit; 1 to 64 bytes. Without the `/` and `:` that separate stream names.
fn name(text: &str) -> Result<(), &'static str> {
    let starts = text.starts_with(|c: char| c.is_ascii_alphanumeric());
    if starts && client_key(text).is_ok() {
        Ok(())
    } else {
        Err("must be 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or digit")
    }
}

/// The alphabet of [`name`], with any of it first: a client draws these ids at random, often as base64url.
fn client_key(text: &str) -> Result<(), &'static str> {
    let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if (1..=64).contains(&text.len()) && text.bytes().all(ok) {
        Ok(())
    } else {
        Err("must be 1 to 64 letters, digits, '.', '_' or '-'")
    }
}

/// A name that Cedar takes as the name of a record's member, in lowercase.
pub fn member_name(text: &str) -> Result<(), &'static str> {
    let begins = text.starts_with(|c: char| c.is_ascii_lowercase());
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    match begins && text.len() <= 32 && text.bytes().all(fits) && !CEDAR_WORDS.contains(&text) {
        true => Ok(()),
        false => Err(
            "must be 1 to 32 lowercase letters, digits or '_', beginning with a letter, and no word of Cedar's",
        ),
    }
}

/// The name of an attribute in a Cedar schema, as an identifier.
pub fn attribute_name(text: &str) -> Result<(), &'static str> {
    let begins = text.starts_with(|c: char| c.is_ascii_alphabetic());
    let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    match begins && text.len() <= 64 && text.bytes().all(fits) {
        true => Ok(()),
        false => Err("must be 1 to 64 letters, digits or '_', beginning with a letter"),
    }
}

/// Words that Cedar does not take as the name of a member.
const CEDAR_WORDS: [&str; 9] = [
    "true", "false", "if", "then", "else", "in", "is", "like", "has",
];

/// A line that people read.
fn line(text: &str) -> Result<(), &'static str> {
    let is_blank = text.trim().is_empty();
    if text.len() <= 500 && !is_blank && !text.chars().any(super::text::is_invisible) {
        Ok(())
    } else {
        Err("must be 1 to 500 bytes in one line, without invisible or control characters")
    }
}

fn uri_like(text: &str) -> Result<(), &'static str> {
    if (1..=256).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_graphic() && !matches!(b, b'"' | b'\\' | b'<' | b'>' | b'`'))
    {
        Ok(())
    } else {
        Err("must be 1 to 256 visible ASCII characters without quotes, backslash or angle brackets")
    }
}

fn key_id(text: &str) -> Result<(), &'static str> {
    if (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic()) {
        Ok(())
    } else {
        Err("must be 1 to 128 visible ASCII characters")
    }
}

/// Text written by an agent or operator: a purpose or a reason. Shown as unverified, not visible to rules, stored as a blob.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UntrustedText(String);

impl UntrustedText {
    /// At most [`UntrustedText::BYTES_MAX`] bytes; may be empty. Control characters are kept, and escaped when shown.
    pub fn parse(field: &'static str, text: &str) -> Result<Self, ParseError> {
        if text.len() > Self::BYTES_MAX {
            return Err(ParseError::new(
                field,
                format!("must be at most {} bytes", Self::BYTES_MAX),
            ));
        }
        Ok(Self(text.to_owned()))
    }

    /// The text exactly as sent.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The blob that stores it. The random salt makes the blob's hash, which entries contain, a salted commitment.
    pub fn blob(&self, salt: [u8; 16]) -> String {
        let salt = URL_SAFE_NO_PAD.encode(salt);
        json::canonical_of(&serde_json::json!({ "salt": salt, "text": self.0 })).unwrap_or_default()
    }

    /// Parses a blob; `None` for anything else.
    pub fn from_blob(blob: &str) -> Option<Self> {
        let value = json::parse(blob.as_bytes()).ok()?;
        Self::parse("text", value.get("text")?.as_str()?).ok()
    }

    /// Longest accepted text, in bytes.
    pub const BYTES_MAX: usize = 2_000;
}

impl fmt::Debug for UntrustedText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UntrustedText({} bytes)", self.0.len())
    }
}

/// Checks an identifier that people read: 1 to `bytes_max` bytes, without invisible or control characters.
pub fn check_visible(field: &'static str, text: &str, bytes_max: usize) -> Result<(), ParseError> {
    if text.is_empty() || text.len() > bytes_max {
        return Err(ParseError::new(
            field,
            format!("must be 1 to {bytes_max} bytes"),
        ));
    }
    match text.chars().find(|c| text::is_invisible(*c)) {
        Some(c) => Err(ParseError::new(
            field,
            format!("has the invisible or control character U+{:04X}", c as u32),
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::Stream;

    proptest! {
        /// Random ids are written as base64url, which begins with `-` or `_` once in thirty-two.
        #[test]
        fn random_base64url_is_a_client_key(bytes in prop::collection::vec(any::<u8>(), 16..=48), task: [u8; 16]) {
            let text = URL_SAFE_NO_PAD.encode(&bytes);
            let use_id = UseId::parse(&text).expect("use_id");
            prop_assert_eq!(use_id.as_str(), text.as_str());
            let key = IdempotencyKey::parse(&text).expect("idempotency_key");
            let (task, agent) = (TaskId::from_random(task), AgentId::parse("triage").expect("agent"));
            let streams = [
                Stream::TokenRequest(task, key.clone()),
                Stream::open_task(agent, Thumbprint(Digest::sha256(&bytes)), key),
            ];
            for stream in streams {
                let name = stream.to_string();
                prop_assert_eq!(Stream::parse(&name).expect("stream"), stream);
            }
        }
    }

    #[test]
    fn client_keys_begin_with_any_character_and_names_do_not() {
        for text in ["-", "_", ".", "-a", "_a", ".a", "a", "0", &"-".repeat(64)] {
            assert!(
                IdempotencyKey::parse(text).is_ok() && UseId::parse(text).is_ok(),
                "{text}"
            );
            let first = text.starts_with(|c: char| c.is_ascii_alphanumeric());
            assert_eq!(AgentId::parse(text).is_ok(), first, "{text}");
        }
        for text in ["", "a/b", "a:b", "a b", "é", "a\n", &"-".repeat(65)] {
            assert!(
                IdempotencyKey::parse(text).is_err() && UseId::parse(text).is_err(),
                "{text}"
            );
        }
    }

    #[test]
    fn id_roundtrip() {
        let bytes: [u8; 16] = std::array::from_fn(|i| 0xff - u8::try_from(i).expect("small"));
        let text = format!("areq_{}", URL_SAFE_NO_PAD.encode(bytes));
        let id = AccessRequestId::from_random(bytes);
        assert_eq!(id.to_string(), text);
        assert_eq!(AccessRequestId::parse(&text), Ok(id));
        let encode = |bytes: &[u8]| format!("areq_{}", URL_SAFE_NO_PAD.encode(bytes));
        for wrong in [
            encode(&bytes[..15]),
            encode(&[bytes.as_slice(), &[0]].concat()),
            format!("{text}=="),
            format!("{text}A"),
            text.replace("areq_", "task_"),
            text.replace("areq_", ""),
            // Nonzero trailing bits in the last character.
            format!("{}x", &text[..text.len() - 1]),
        ] {
            assert!(AccessRequestId::parse(&wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn host_users_are_one_line_whatever_the_environment_says() {
        let claimed = |name: &str, caller: &str| {
            let user = HostUser::claimed(7, Some(name), Some(caller));
            assert_eq!(HostUser::parse(user.as_str()), Ok(user.clone()));
            user.to_string()
        };
        assert_eq!(claimed("ann", "bob"), "ann, uid 7, called by bob");
        let long = "x".repeat(101);
        for odd in ["", " ", "a\nb", "a\u{202E}b", &long] {
            assert_eq!(claimed(odd, odd), "uid 7", "{odd:?}");
        }
        assert!(RecoveryReason::parse(&"x".repeat(500)).is_ok());
        for odd in ["", "  ", "a\nb", &"x".repeat(501)] {
            assert!(RecoveryReason::parse(odd).is_err(), "{odd:?}");
        }
    }

    /// The group of a target is no name that a file can give, and no two targets have the same.
    #[test]
    fn groups_of_targets() {
        let target = |kind: &str, id: &str| Target::parse(kind, id).expect("target");
        let group = GroupId::of_target("owner", &target("Service", "billing"));
        assert_eq!(group.as_str(), "owner of Service::\"billing\"");
        assert!(GroupId::parse(group.as_str()).is_err());
        assert_eq!(GroupId::on_record(group.as_str()), Ok(group));
        assert!(GroupId::on_record("Owner of").is_err() && GroupId::on_record("a b").is_err());
        let (one, other) = (target("A", "B::\"c"), target("A::B", "c"));
        let (one, other) = (
            GroupId::of_target("owner", &one),
            GroupId::of_target("owner", &other),
        );
        assert_ne!(one, other);
    }
}
