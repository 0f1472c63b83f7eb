//! People, services, keys and step-up profiles: `people.toml`.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;
use toml::Spanned;
use toml::de::DeValue;

use super::approvals::ApprovalLimits;
use super::changes::{ANOTHER_OPERATOR, ChangeAgreement, ChangeRule};
use super::files::PEOPLE;
use super::problem::{Problems, nearest};
use super::spellings::{NameClash, RegisteredNames};
use super::toml_reader::{TableReader, TomlSource};
use crate::jose::PublicKey;
use crate::model::{
    Audience, Digest, GroupId, ParseError, PersonId, ProfileName, ProfileRef, ServiceId, SpiffeId,
    Target, Thumbprint, VoteMethod, attribute_name, check_visible, json, parse_duration,
};

/// A registered person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Person {
    /// The opaque id that entries and votes hold.
    pub id: PersonId,
    /// The person's name, for cards and consoles, never for decisions.
    pub name: String,
    /// Groups that rules and profiles name.
    pub groups: BTreeSet<GroupId>,
    /// The groups of the targets that name this person, for each attribute that a profile reads.
    pub target_groups: BTreeSet<GroupId>,
    /// The person's roles.
    pub roles: BTreeSet<Role>,
    /// The person's keys.
    pub keys: Vec<PublicKey>,
}

impl Person {
    /// The key of `people.toml` with this thumbprint.
    pub fn key(&self, key: Thumbprint) -> Option<&PublicKey> {
        self.keys.iter().find(|own| own.thumbprint() == key)
    }

    /// Every group of the person: the registered ones, and those of the targets that name them.
    pub fn all_groups(&self) -> impl Iterator<Item = &GroupId> {
        self.groups.iter().chain(&self.target_groups)
    }

    /// Whether a person is in a group of either kind.
    pub fn is_in(&self, group: &GroupId) -> bool {
        self.groups.contains(group) || self.target_groups.contains(group)
    }
}

/// The name of an attribute of targets.
fn attribute(text: &str) -> Result<String, ParseError> {
    match attribute_name(text) {
        Ok(()) => Ok(text.to_owned()),
        Err(broken) => Err(ParseError::new("target_attribute", broken)),
    }
}

/// What a person may do at the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// May vote under profiles of their groups.
    Approver,
    /// May suspend, freeze, revoke, and apply policy bundles.
    Operator,
}

impl Role {
    /// The name in `people.toml`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Approver => "approver",
            Self::Operator => "operator",
        }
    }

    fn parse(text: &str) -> Result<Self, ParseError> {
        match text {
            "approver" => Ok(Self::Approver),
            "operator" => Ok(Self::Operator),
            _ => Err(ParseError::new(
                "role",
                "must be \"approver\" or \"operator\"",
            )),
        }
    }
}

/// A registered caller that is neither an agent nor a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegisteredService {
    /// Its id, unique among people and services.
    pub id: ServiceId,
    /// Its kind.
    pub kind: ServiceKind,
    /// The audiences whose tokens it may introspect and spend; empty for auditors.
    pub audiences: BTreeSet<Audience>,
    /// The attested identity that may call as this service, matched byte by byte.
    pub spiffe_id: Option<SpiffeId>,
    /// Its keys.
    pub keys: Vec<PublicKey>,
}

/// The kind of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServiceKind {
    /// Validates tokens for its audiences.
    Validator,
    /// Reads the audit log.
    Auditor,
}

/// A step-up profile: whose approval is required, from how many people, and how long it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepUpProfile {
    /// The name in rules.
    pub name: ProfileName,
    /// The group of its approvers. Of a profile with `target_attribute` those of all targets; [`Self::about`] has those of one.
    pub group: GroupId,
    /// The attribute of the target that names its approvers, instead of a registered group.
    pub target_attribute: Option<String>,
    /// The role of its voters: approvers of the group; operators, of any group, for a change of the policy bundle.
    pub role: Role,
    /// How many different people must approve, 1 to [`QUORUM_MAX`].
    pub quorum: u32,
    /// Seconds an access request stays open.
    pub wait_s: u32,
    /// Seconds an approval holds.
    pub good_for_s: u32,
    /// How a vote is signed, unless the action's risk takes a passkey: see [`super::PolicyBundle::vote_method`].
    pub method: VoteMethod,
}

impl StepUpProfile {
    /// SHA-256("dipylon/profile/v1" ‖ 0x00 ‖ RFC 8785 form of its definition): an approval counts while this is unchanged.
    pub fn digest(&self) -> Digest {
        let mut form = json!({
            "name": self.name.as_str(),
            "group": self.group.as_str(),
            "quorum": self.quorum,
            "wait": self.wait_s,
            "good_for": self.good_for_s,
            "method": self.method.as_str(),
        });
        if let (Role::Operator, Some(members)) = (self.role, form.as_object_mut()) {
            members.insert("role".to_owned(), json!(self.role.as_str()));
        }
        // Texts and 32-bit integers always have a canonical form.
        Digest::tagged(
            "dipylon/profile/v1",
            json::canonical(&form).unwrap_or_default().as_bytes(),
        )
    }

    /// Whether a person may vote under it by role and group. It is not looked at here whose agent it is for, nor at keys.
    pub fn takes(&self, person: &Person) -> bool {
        person.roles.contains(&self.role)
            && (self.role == Role::Operator || person.is_in(&self.group))
    }

    /// The profile as it is for a request about a target: its approvers are those whom this target names.
    pub fn about(&self, target: &Target) -> Cow<'_, Self> {
        match &self.target_attribute {
            None => Cow::Borrowed(self),
            Some(attribute) => Cow::Owned(Self {
                group: GroupId::of_target(attribute, target),
                ..self.clone()
            }),
        }
    }

    /// The name with the digest.
    pub fn reference(&self) -> ProfileRef {
        ProfileRef {
            name: self.name.clone(),
            digest: self.digest(),
        }
    }
}

/// The content of `people.toml`.
#[derive(Debug, Default)]
pub(super) struct People {
    /// Whether the file is TOML at all.
    pub(super) is_read: bool,
    pub(super) persons: BTreeMap<PersonId, Person>,
    pub(super) services: BTreeMap<ServiceId, RegisteredService>,
    pub(super) profiles: BTreeMap<ProfileName, StepUpProfile>,
    /// Profiles with a problem included.
    pub(super) declared_profiles: BTreeSet<ProfileName>,
    pub(super) audiences: BTreeSet<Audience>,
    pub(super) approvals: ApprovalLimits,
    pub(super) changes: ChangeRule,
    /// Whose each key is, by its thumbprint and that of its negative.
    pub(super) key_holders: BTreeMap<Thumbprint, String>,
    /// Ids of people and services.
    ids: RegisteredNames,
    groups: RegisteredNames,
    profile_names: RegisteredNames,
    pub(super) service_spiffe_ids: BTreeSet<SpiffeId>,
    /// How many approvers each group has.
    approvers: BTreeMap<GroupId, usize>,
}

impl People {
    /// Reads `people.toml`; findings that do not make it invalid go to `warnings`.
    pub(super) fn read(text: &str, problems: &mut Problems, warnings: &mut Problems) -> Self {
        let mut people = Self::default();
        let source = TomlSource { file: PEOPLE, text };
        let Some(root) = source.read(problems) else {
            return people;
        };
        people.is_read = true;
        let mut top = TableReader::new(source, "people", None, root.get_ref(), problems);
        let persons = top.tables("person");
        let validators = top.tables("validator");
        let auditors = top.tables("auditor");
        let keys = top.tables("key");
        let profiles = top.named_tables("profile");

        for (at, table) in persons {
            people.person(TableReader::new(
                source,
                "person",
                Some(at),
                table,
                top.problems(),
            ));
        }
        for (at, table) in validators {
            let fields = TableReader::new(source, "validator", Some(at), table, top.problems());
            people.service(ServiceKind::Validator, fields);
        }
        for (at, table) in auditors {
            people.service(
                ServiceKind::Auditor,
                TableReader::new(source, "auditor", Some(at), table, top.problems()),
            );
        }
        let mut seen = BTreeMap::new();
        for (at, table) in keys {
            people.key(
                source,
                TableReader::new(source, "key", Some(at), table, top.problems()),
                &mut seen,
            );
        }
        for (name, at, table) in profiles {
            let fields = TableReader::new(
                source,
                format!("profile {name}"),
                Some(at),
                table,
                top.problems(),
            );
            people.profile(name, fields, warnings);
        }
        if let Some((at, table)) = top.table("approvals") {
            people.approvals = ApprovalLimits::read(TableReader::new(
                source,
                "approvals",
                Some(at),
                table,
                top.problems(),
            ));
        }
        if let Some((at, table)) = top.table("changes") {
            let fields = TableReader::new(source, "changes", Some(at), table, top.problems());
            let line = fields.line();
            people.changes = ChangeRule::read(fields);
            people.check_changes(line, top.problems(), warnings);
        }
        top.finish();
        people
    }

    /// Reports a rule of changes that names no profile, and warns of one that lets one operator alone change everything.
    fn check_changes(&self, line: Option<usize>, problems: &mut Problems, warnings: &mut Problems) {
        match &self.changes.agree {
            ChangeAgreement::Operator => {}
            ChangeAgreement::Nobody => warnings.add(
                PEOPLE,
                line,
                "changes: agree = \"nobody\": one operator alone changes every rule, this one too"
                    .to_owned(),
            ),
            ChangeAgreement::Profile(name)
                if self
                    .profiles
                    .get(name)
                    .is_some_and(|profile| profile.target_attribute.is_some()) =>
            {
                problems.add(
                    PEOPLE,
                    None,
                    format!("changes: agree: the profile {name} asks the people whom a target names, and a change has no target: choose another"),
                );
            }
            ChangeAgreement::Profile(name) if self.profiles.contains_key(name) => {}
            ChangeAgreement::Profile(name) => {
                let near = nearest(name.as_str(), self.profiles.keys().map(ProfileName::as_str));
                let message = format!(
                    "changes: agree: no profile has the name \"{name}\"{near}; expected \"operator\", \"nobody\" or a profile"
                );
                problems.add(PEOPLE, line, message);
            }
        }
    }

    fn person(&mut self, mut fields: TableReader<'_, '_>) {
        let id = fields.required("id", PersonId::parse);
        let name = fields.required("name", |text| line("name", text));
        let groups = fields.text_set("groups", GroupId::parse);
        let roles = fields.text_set("roles", Role::parse);
        self.check_groups(&groups, &mut fields);
        if let (Some(id), Some(name)) = (id, name)
            && self.is_free(id.as_str(), &mut fields)
        {
            if roles.contains(&Role::Approver) {
                for group in &groups {
                    let count = self.approvers.entry(group.clone()).or_default();
                    *count = count.saturating_add(1);
                }
            }
            self.persons.insert(
                id.clone(),
                Person {
                    id,
                    name,
                    groups,
                    target_groups: BTreeSet::new(),
                    roles,
                    keys: Vec::new(),
                },
            );
        }
        fields.finish();
    }

    fn service(&mut self, kind: ServiceKind, mut fields: TableReader<'_, '_>) {
        let id = fields.required("id", ServiceId::parse);
        let spiffe_id = fields.optional("spiffe_id", SpiffeId::parse);
        let audiences = match kind {
            ServiceKind::Validator => {
                let audiences = fields.text_set("audiences", Audience::parse);
                if audiences.is_empty() {
                    fields.problem("audiences must name at least one");
                }
                audiences
            }
            ServiceKind::Auditor => BTreeSet::new(),
        };
        if let Some(id) = id
            && self.is_free(id.as_str(), &mut fields)
        {
            let spiffe_ids = &mut self.service_spiffe_ids;
            if spiffe_id
                .as_ref()
                .is_some_and(|id| !spiffe_ids.insert(id.clone()))
            {
                fields.problem("another service has this spiffe_id");
            } else {
                self.audiences.extend(audiences.iter().cloned());
                self.services.insert(
                    id.clone(),
                    RegisteredService {
                        id,
                        kind,
                        audiences,
                        spiffe_id,
                        keys: Vec::new(),
                    },
                );
            }
        }
        fields.finish();
    }

    /// `seen` maps the x coordinate of each key to its holder. The holder of a private key d also has n − d, whose public
    /// point differs in y alone, so two keys with the same x belong to the same holder.
    fn key<'a>(
        &mut self,
        source: TomlSource<'a>,
        mut fields: TableReader<'a, '_>,
        seen: &mut BTreeMap<String, String>,
    ) {
        let of = fields.required("of", |text| Ok(text.to_owned()));
        let jwk = match fields.get("jwk") {
            Some(value) => read_jwk(source, value, &mut fields),
            None => {
                fields.problem("jwk is missing");
                None
            }
        };
        if let (Some(of), Some((key, x))) = (of, jwk) {
            let holder = match (PersonId::parse(&of), ServiceId::parse(&of)) {
                (Ok(person), Ok(service)) => match self.persons.get_mut(&person) {
                    Some(person) => Some(&mut person.keys),
                    None => self.services.get_mut(&service).map(|s| &mut s.keys),
                },
                (Err(_), _) | (_, Err(_)) => None,
            };
            match (holder, seen.get(&x)) {
                (Some(_), Some(first)) => fields.problem(format!(
                    "the same key is already registered for \"{first}\""
                )),
                (Some(keys), None) if keys.len() >= KEYS_MAX => fields.problem(format!(
                    "\"{of}\" has {KEYS_MAX} keys already, the most for one person or service"
                )),
                (Some(keys), None) => {
                    for name in key.thumbprints() {
                        self.key_holders.insert(name, of.clone());
                    }
                    keys.push(key);
                    seen.insert(x, of);
                }
                (None, _) => {
                    let near = nearest(&of, self.ids());
                    fields.problem(format!(
                        "no person, validator or auditor has the id it is of{near}"
                    ));
                }
            }
        }
        fields.finish();
    }

    fn profile(&mut self, name: &str, mut fields: TableReader<'_, '_>, warnings: &mut Problems) {
        let name = ProfileName::parse(name)
            .map_err(|e| fields.problem(format!("name {}", e.reason)))
            .ok();
        if let Some(name) = &name
            && let Err(clash) = self.profile_names.add_use(name.as_str(), fields.line())
        {
            fields.problem(format!("name {clash}"));
        }
        self.declared_profiles.extend(name.clone());
        let reserved =
            |name: &ProfileName| matches!(name.as_str(), ANOTHER_OPERATOR | "operator" | "nobody");
        if name.as_ref().is_some_and(reserved) {
            fields.problem("name is reserved for the rule of changes: choose another");
        }
        let target_attribute = fields.optional("target_attribute", attribute);
        let group = match (&target_attribute, fields.get("group")) {
            (None, None) => {
                fields.problem("group or target_attribute is missing");
                None
            }
            (None, Some(_)) => fields.required("group", GroupId::parse),
            (Some(attribute), None) => Some(GroupId::of_targets(attribute)),
            (Some(_), Some(_)) => {
                fields.problem_at(
                    "group",
                    "group and target_attribute are two answers to who approves: leave one out",
                );
                None
            }
        };
        if target_attribute.is_none() {
            self.check_groups(&group, &mut fields);
        }
        let quorum = match fields.get("quorum") {
            Some(_) => fields.number("quorum", 1..=QUORUM_MAX),
            None => Some(1),
        };
        let wait_s = fields.required("wait", |text| parse_duration("wait", text));
        let good_for_s = fields.required("good_for", |text| parse_duration("good_for", text));
        let method = fields.required("method", VoteMethod::parse);
        if let (
            Some(name),
            Some(group),
            Some(quorum),
            Some(wait_s),
            Some(good_for_s),
            Some(method),
        ) = (name, group, quorum, wait_s, good_for_s, method)
        {
            let eligible = self.approvers.get(&group).copied().unwrap_or_default();
            if target_attribute.is_none() && u32::try_from(eligible).is_ok_and(|n| n < quorum) {
                let message = format!(
                    "profile {name}: group \"{group}\" has {eligible} approvers, fewer than the quorum {quorum}"
                );
                warnings.add(PEOPLE, fields.line(), message);
            }
            self.profiles.insert(
                name.clone(),
                StepUpProfile {
                    name,
                    group,
                    target_attribute,
                    role: Role::Approver,
                    quorum,
                    wait_s,
                    good_for_s,
                    method,
                },
            );
        }
        fields.finish();
    }

    /// Whether no person or service before has this id; reports one that is the same, or that letter case alone tells apart.
    fn is_free(&mut self, id: &str, fields: &mut TableReader<'_, '_>) -> bool {
        match self.ids.add(id, fields.line()) {
            Ok(()) => true,
            Err(NameClash::Same(place)) => {
                fields.problem(format!(
                    "id \"{id}\" is taken by the one{place}; ids are unique among people, validators and auditors"
                ));
                false
            }
            // Registered all the same, so that its keys are no problems of their own.
            Err(NameClash::LetterCase(message)) => {
                fields.problem(format!("id {message}"));
                true
            }
        }
    }

    /// Reports a group of which letter case alone tells another one apart.
    fn check_groups<'g>(
        &mut self,
        groups: impl IntoIterator<Item = &'g GroupId>,
        fields: &mut TableReader<'_, '_>,
    ) {
        for group in groups {
            if let Err(message) = self.groups.add_use(group.as_str(), fields.line()) {
                fields.problem(format!("group {message}"));
            }
        }
    }

    fn ids(&self) -> impl Iterator<Item = &str> {
        self.persons
            .keys()
            .map(PersonId::as_str)
            .chain(self.services.keys().map(ServiceId::as_str))
    }
}

/// The public key and its x coordinate.
fn read_jwk<'a>(
    source: TomlSource<'a>,
    value: &'a Spanned<DeValue<'a>>,
    outer: &mut TableReader<'a, '_>,
) -> Option<(PublicKey, String)> {
    let Some(table) = value.get_ref().as_table() else {
        outer.problem(
            "jwk must be a table: { kty = \"EC\", crv = \"P-256\", x = \"…\", y = \"…\" }",
        );
        return None;
    };
    let mut fields = TableReader::new(source, "key: jwk", Some(value), table, outer.problems());
    if fields.get("d").is_some() {
        fields.problem("has the private part d; only the public key belongs here, and this private key is no longer secret");
        return None;
    }
    let kty = fields.required("kty", |text| exactly("kty", text, "EC"));
    let crv = fields.required("crv", |text| exactly("crv", text, "P-256"));
    let x = fields.required("x", coordinate);
    let y = fields.required("y", coordinate);
    fields.finish();
    let (Some(kty), Some(crv), Some(x), Some(y)) = (kty, crv, x, y) else {
        return None;
    };
    let jwk = json!({ "kty": kty, "crv": crv, "x": x, "y": y });
    match PublicKey::from_jwk(&jwk) {
        Ok(key) => Some((key, x)),
        Err(why) => {
            outer.problem(why.to_string());
            None
        }
    }
}

fn exactly(what: &'static str, text: &str, wanted: &str) -> Result<String, ParseError> {
    if text == wanted {
        Ok(text.to_owned())
    } else {
        Err(ParseError::new(what, format!("must be \"{wanted}\"")))
    }
}

/// 32 bytes in base64url without padding (RFC 7518 §6.2.1.2), the form of digests too.
fn coordinate(text: &str) -> Result<String, ParseError> {
    match Digest::parse(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(e) => Err(ParseError::new("coordinate", e.reason)),
    }
}

/// One line of visible text.
pub(super) fn line(what: &'static str, text: &str) -> Result<String, ParseError> {
    check_visible(what, text, LINE_BYTES_MAX)?;
    Ok(text.to_owned())
}

/// Most keys of one person or service.
const KEYS_MAX: usize = 20;
/// Largest quorum of a profile.
pub const QUORUM_MAX: u32 = 20;
/// Longest name, model or autonomy, in bytes.
const LINE_BYTES_MAX: usize = 128;
