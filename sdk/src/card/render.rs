//! Card renderer: a card in sections of rows. Every text in it is safe to print and is one line.

use super::confusables::{cap_flags, confusable_warnings, distinct};
use super::decide_by;
use super::escape::in_lines;
use super::view::{CardRow, CardSection, CardView, Extent, Headline, SectionKind, Tone};
use super::{
    Card, History, PersonRef, ProfileProgress, Requester, escape_untrusted, plain_or_quoted,
    quoted, target_id,
};
use crate::model::text::counted;
use crate::model::*;

impl Card {
    /// Renders the card for a reader at this time.
    pub fn show(&self, now: Timestamp) -> CardView {
        let decide_by = decide_by(self.delay.as_ref(), self.expires_at, now);
        let left_s = decide_by.since(now).max(0) / 1_000;
        let sections = [
            (SectionKind::Parameters, self.parameters()),
            (SectionKind::Changes, self.changes()),
            (SectionKind::Plan, self.plan()),
            (SectionKind::Target, self.target()),
            (SectionKind::Effect, self.effect()),
            (SectionKind::Unusual, self.anomalies()),
            (SectionKind::History, self.history(now)),
            (SectionKind::Who, self.requester(now)),
            (SectionKind::Why, self.rules()),
            (SectionKind::Token, self.token()),
            (SectionKind::Needs, self.needs(now)),
            (SectionKind::Signed, self.other_signed()),
            (SectionKind::Words, self.agent_texts()),
        ];
        let sections = sections
            .into_iter()
            .filter(|(_, rows)| !rows.is_empty())
            .map(|(kind, mut rows)| {
                for row in &mut rows {
                    row.flags = cap_flags(std::mem::take(&mut row.flags));
                }
                CardSection {
                    kind,
                    title: self.section_title(kind),
                    rows,
                }
            });
        CardView {
            access_request: self.access_request,
            status: self.status,
            headline: self.headline(),
            phrase: self.phrase().to_string(),
            deadline: decide_by.to_string(),
            left_s,
            left: format_seconds(left_s),
            dwell_s: self.dwell_s,
            console_url: self.console_url.as_deref().map(escape_untrusted),
            sections: sections.collect(),
        }
    }

    /// Whether a person proposes the value of a named fact.
    fn is_of_fact(&self) -> bool {
        let action = self.action.as_ref();
        self.requester.agent().is_none()
            && action.is_some_and(|action| action.name.as_str() == POLICY_SET_FACT)
    }

    fn section_title(&self, kind: SectionKind) -> &'static str {
        match kind {
            SectionKind::Changes if self.is_of_fact() => "What the fact says, and who reads it",
            SectionKind::Words if self.requester.agent().is_none() => {
                "The proposer says (unverified)"
            }
            kind => kind.title(),
        }
    }

    /// Verb and object alone.
    pub fn headline(&self) -> Headline {
        let environment = self.target_attributes.iter().flatten();
        let environment = environment
            .filter(|(name, _)| name == "environment")
            .map(|(_, value)| value.as_str())
            .next();
        // The name alone: its place on the card shows that it is an environment.
        let environment = environment.map(|e| e.strip_prefix("Environment::").unwrap_or(e));
        Headline::new(
            &self.title,
            self.action.as_deref(),
            self.target_attributes.is_some(),
            environment,
            self.risk,
        )
    }

    fn requester(&self, now: Timestamp) -> Vec<CardRow> {
        let by = match &self.requester {
            Requester::Agent(by) => by,
            Requester::Person(person) => {
                return vec![CardRow::new("proposed by", &person.to_text()).strong()];
            }
        };
        let label = match by.executor {
            Some(_) => "recommended by",
            None => "agent",
        };
        let agent = CardRow::new(label, by.id.as_str()).strong();
        let owner = CardRow::new("owner", &by.owner.to_text());
        let attestation = &by.verified;
        let mut verified = CardRow::new("verified", attestation.subject.as_str());
        verified.lines.push(format!(
            "by {}, {} ({})",
            escape_untrusted(&attestation.kind),
            relative_time(attestation.verified_at, now),
            attestation.verified_at
        ));
        verified.lines.push(match attestation.issued_at {
            Some(at) => format!("issued {} ({at})", relative_time(at, now)),
            None => "which does not say when it was issued".to_owned(),
        });
        let claims = registration("", &by.registered);
        let mut rows = Vec::new();
        if let Some(executor) = &by.executor {
            rows.push(CardRow::new("executor", executor.id.as_str()).strong());
            rows.push(CardRow::new("executor's owner", &executor.owner.to_text()));
            rows.extend(registration("executor's ", &executor.registered));
        }
        rows.extend([agent, owner, verified]);
        rows.extend(claims);
        rows
    }

    fn rules(&self) -> Vec<CardRow> {
        if self.requester.agent().is_none() {
            return Vec::new();
        }
        if self.rules.is_empty() {
            return vec![CardRow::unknown("rule", "unknown: no rule is recorded")];
        }
        let row = |rule: &super::RuleSummary| {
            let mut row = CardRow::new("rule", &rule.id);
            row.add(&rule.why);
            row.lines
                .push(format!("in {}", escape_untrusted(&rule.file)));
            row
        };
        let mut rows: Vec<CardRow> = self.rules.iter().map(row).collect();
        rows.extend(self.named_facts.iter().map(|(name, fact)| {
            let value = if fact.value { "true" } else { "not true" };
            let mut row = CardRow::new(&format!("fact {}", escape_untrusted(name)), value);
            row.add(&fact.title);
            row
        }));
        rows
    }

    fn effect(&self) -> Vec<CardRow> {
        let reversible = match Reversibility::parse(&self.reversible) {
            Ok(Reversibility::NothingChanges) => CardRow::known("reversible", "nothing changes"),
            Ok(Reversibility::Reversible) => CardRow::known("reversible", "yes"),
            Ok(Reversibility::Recoverable) => {
                CardRow::alarm("reversible", "only by another process")
            }
            Ok(Reversibility::Irreversible) => {
                CardRow::alarm("reversible", "NO: it cannot be undone")
            }
            // Of a broker with other words.
            Err(_) => CardRow::known("reversible", &self.reversible),
        };
        let mut rows = vec![CardRow::known("effect", &self.effect), reversible];
        if !self.undo.is_empty() {
            rows.push(CardRow::new("undo", &self.undo));
        }
        rows
    }

    fn parameters(&self) -> Vec<CardRow> {
        let Some(action) = &self.action else {
            return vec![CardRow::alarm(
                "with",
                "NO LONGER ON RECORD: it cannot be decided any more",
            )];
        };
        let mut rows = Vec::new();
        for (name, param) in &action.parameters {
            self.parameter(name, name, param, &mut rows);
        }
        if rows.is_empty() {
            rows.push(CardRow::own("with", "no parameters"));
        }
        rows
    }

    /// Records become rows by path; a set of plain values is one row with a line for each, any other set numbers them.
    /// `pattern` is the path in the catalogue, which knows no numbers.
    fn parameter(&self, path: &str, pattern: &str, param: &Param, rows: &mut Vec<CardRow>) {
        let mut row = CardRow::own(&format!("with {}", escape_untrusted(path)), "");
        let title = self.parameter_titles.get(pattern);
        // A title that repeats the name says nothing.
        let title = title.filter(|title| !is_same_name(title, path));
        row.caption = title.map(|title| escape_untrusted(title));
        row.add_flags(title.iter().flat_map(|title| confusable_warnings(title)));
        match param {
            Param::Record(members) if !members.is_empty() => {
                if row.caption.is_some() {
                    row.lines = vec![format!("{}:", counted(members.len(), "part"))];
                    rows.push(row);
                }
                for (name, member) in members {
                    let (path, pattern) = (format!("{path}.{name}"), format!("{pattern}.{name}"));
                    self.parameter(&path, &pattern, member, rows);
                }
            }
            Param::Set(items) if items.iter().any(is_composed) => {
                row.lines = vec![format!("{}:", counted(items.len(), "value"))];
                rows.push(row);
                for (n, item) in (1..).zip(items) {
                    let (path, pattern) = (format!("{path}[{n}]"), format!("{pattern}[]"));
                    self.parameter(&path, &pattern, item, rows);
                }
            }
            Param::Set(items) if !items.is_empty() => {
                row.lines = items
                    .iter()
                    .flat_map(|item| plain(item, SET_ITEM))
                    .collect();
                row.add_flags(items.iter().flat_map(suspect_param));
                row.extent = Some(Extent::of(param));
                rows.push(row);
            }
            Param::Str(_) | Param::Bool(_) | Param::Int(_) | Param::Set(_) | Param::Record(_) => {
                row.lines = plain(param, "");
                row.add_flags(suspect_param(param));
                if let Param::Str(_) = param {
                    row.extent = Some(Extent::of(param));
                }
                rows.push(row);
            }
        }
    }

    /// What a proposed policy bundle changes: sentences first, then every line that differs, by file.
    fn changes(&self) -> Vec<CardRow> {
        let Some(changes) = &self.changes else {
            return Vec::new();
        };
        let mut rows: Vec<CardRow> = changes
            .summary
            .iter()
            .map(|what| CardRow::new("changes", what).strong())
            .collect();
        rows.extend(changes.files.iter().map(|file| {
            let mut row = CardRow::own(&format!("file {}", escape_untrusted(&file.path)), "");
            row.lines = file.lines.iter().map(|line| changed_line(line)).collect();
            row.add_flags(file.lines.iter().flat_map(|line| confusable_warnings(line)));
            row
        }));
        rows
    }

    fn plan(&self) -> Vec<CardRow> {
        let lines = self.plan.iter();
        lines.map(|line| CardRow::new("plan", line)).collect()
    }

    fn target(&self) -> Vec<CardRow> {
        if self.requester.agent().is_none() {
            return Vec::new();
        }
        match &self.target_attributes {
            None => vec![CardRow::alarm(
                "target",
                "NOT KNOWN to the policy bundle: nothing is recorded about it",
            )],
            Some(facts) => facts
                .iter()
                .map(|(name, value)| {
                    let mut row =
                        CardRow::new(&format!("target {}", escape_untrusted(name)), value);
                    row.add_suspect(name);
                    row
                })
                .collect(),
        }
    }

    fn anomalies(&self) -> Vec<CardRow> {
        // Nothing is counted of proposals by people.
        if self.requester.agent().is_none() {
            return Vec::new();
        }
        if self.anomalies.is_empty() {
            return vec![match self.history {
                Some(_) => CardRow::own("unusual", "nothing"),
                None => CardRow::unknown("unusual", "unknown: no figures are kept of it yet"),
            }];
        }
        let rows = self.anomalies.iter();
        rows.map(|what| CardRow::new("unusual", what).strong())
            .collect()
    }

    fn history(&self, now: Timestamp) -> Vec<CardRow> {
        if self.requester.agent().is_none() {
            return Vec::new();
        }
        match &self.history {
            None => vec![CardRow::unknown(
                "similar requests",
                "unknown: no figures are kept of it yet",
            )],
            Some(history) => history.rows(now),
        }
    }

    fn token(&self) -> Vec<CardRow> {
        let uses = match self.uses {
            Some(1) => "one use".to_owned(),
            Some(uses) => format!("{uses} uses"),
            None => "any number of uses".to_owned(),
        };
        let Some(max_ttl) = self.max_ttl else {
            let none = match self.is_of_fact() {
                true => "none: the fact itself is set",
                false => "none: the policy bundle itself comes in force",
            };
            return vec![CardRow::own("token", none)];
        };
        let life = format_seconds(max_ttl);
        let mut rows = vec![CardRow::own("token", &format!("at most {life}, {uses}"))];
        if let Some(action) = &self.action {
            rows.push(CardRow::new("only for", action.audience.as_str()));
        }
        let recommended = self.requester.agent().and_then(|by| by.executor.as_ref());
        let bound_to = match recommended {
            Some(_) => "the executor's key: the agent that recommends gets no token",
            None => "the task's key",
        };
        rows.push(CardRow::own("bound to", bound_to));
        rows
    }

    fn needs(&self, now: Timestamp) -> Vec<CardRow> {
        if self.needs.is_empty() {
            let nobody = "nobody any more: the rules in force ask for no approval";
            return vec![CardRow::own("needs", nobody)];
        }
        let void = self.void_votes.iter().map(|vote| {
            let text = format!(
                "APPROVAL VOID: what {} approved has changed: {}",
                vote.voter.to_text(),
                vote.changed.join(", ")
            );
            CardRow::alarm("void", &escape_untrusted(&text))
        });
        let delay = self.delay_text(now);
        let delay = delay.iter().map(|text| CardRow::own("or", text));
        self.needs
            .iter()
            .map(ProfileProgress::row)
            .chain(delay)
            .chain(void)
            .collect()
    }

    /// What time alone changes while it waits, in words.
    pub(super) fn delay_text(&self, now: Timestamp) -> Option<String> {
        let waits = self.status == super::AccessRequestStatus::Waiting;
        let delay = self.delay.as_ref().filter(|_| waits)?;
        Some(delay.text(now))
    }

    fn other_signed(&self) -> Vec<CardRow> {
        let mut rows = Vec::new();
        if let Some(action) = &self.action {
            rows.push(CardRow::quiet("action", action.name.as_str()));
            rows.push(CardRow::quiet("digest", &action.digest().to_string()));
        }
        rows.extend([
            CardRow::quiet("request", &self.access_request.to_string()),
            CardRow::quiet("realm", self.realm.as_str()),
        ]);
        if let Some(agent) = self.requester.agent() {
            rows.extend([
                CardRow::quiet("task", &agent.task.to_string()),
                CardRow::quiet("task key", &agent.task_key.to_string()),
            ]);
        }
        rows.push(CardRow::quiet("policy", &self.policy.to_string()));
        if let Ok(facts) = self.facts().digest() {
            rows.push(CardRow::quiet("facts", &facts.to_string()));
        }
        for need in &self.needs {
            let mut row = CardRow::quiet("profile", need.profile.name.as_str());
            row.add(&need.profile.digest.to_string());
            rows.push(row);
        }
        rows
    }

    fn agent_texts(&self) -> Vec<CardRow> {
        let texts = [("for", &self.purpose), ("reason", &self.reason)];
        texts
            .into_iter()
            .filter_map(|(label, text)| Some((label, text.as_ref()?.as_str())))
            .filter(|(_, text)| !text.is_empty())
            .map(|(label, text)| {
                let mut row = CardRow::own(label, "");
                row.lines = in_lines(&quoted(text));
                row.extent = Some(Extent::of(&Param::Str(text.to_owned())));
                row.tone = Tone::Quoted;
                row.flags = confusable_warnings(text);
                row
            })
            .collect()
    }
}

/// A line of [`FileChange::lines`]: `=` before one that stays, and a middle dot for each blank, which a page would fold or hide.
fn changed_line(line: &str) -> String {
    let (sign, text) = match line.split_at_checked(1) {
        Some((sign @ ("-" | "+"), text)) => (sign, text),
        Some((" ", text)) => ("=", text),
        _ => return escape_untrusted(line),
    };
    // A code of a blank becomes a dot, and so a dot of the line itself becomes a code.
    let shown = escape_untrusted(text)
        .replace('·', "<U+00B7>")
        .replace("<U+0020>", "·");
    format!("{sign} {shown}")
}

impl Headline {
    /// From the catalogue's title and risk, the action, whether the policy bundle has its target, and the target's attribute
    /// `environment`; also for rows of the inbox.
    pub fn new(
        title: &str,
        action: Option<&Action>,
        is_target_known: bool,
        environment: Option<&str>,
        risk: Option<Risk>,
    ) -> Self {
        let name = action.map(|a| a.name.as_str()).unwrap_or_default();
        let (object, object_type) = match action {
            Some(action) => (
                target_id(&action.target, is_target_known),
                escape_untrusted(&action.target.kind),
            ),
            None => ("?".to_owned(), "no longer on record".to_owned()),
        };
        let id = action.map(|a| a.target.id.as_str()).unwrap_or_default();
        let texts = [title, id, environment.unwrap_or_default()];
        Self {
            verb: escape_untrusted(if title.is_empty() { name } else { title }),
            object,
            object_type,
            environment: environment.map(escape_untrusted),
            action: escape_untrusted(name),
            risk,
            risk_word: risk.map_or_else(
                || "RISK UNKNOWN".to_owned(),
                |risk| format!("{} RISK", risk.as_str().to_uppercase()),
            ),
            flags: cap_flags(texts.iter().flat_map(|text| confusable_warnings(text))),
        }
    }
}

impl History {
    fn rows(&self, now: Timestamp) -> Vec<CardRow> {
        let count = |n: u32, word: &str| format!("{n} {word}");
        let at = |moment: Option<Timestamp>| {
            moment.map_or_else(String::new, |at| {
                format!(", the last {}", relative_time(at, now))
            })
        };
        let by = match &self.last_denied_by {
            Some(who) => format!(" by {}", escape_untrusted(&who.to_text())),
            None => String::new(),
        };
        let mut similar = match self.first {
            true => CardRow::own("similar requests", "none decided yet").strong(),
            false => CardRow::own(
                "similar requests",
                &format!(
                    "{}{}",
                    count(self.approved, "approved"),
                    at(self.last_approved_at)
                ),
            ),
        };
        if !self.first {
            similar.lines.push(format!(
                "{}{}{by}",
                count(self.denied, "denied"),
                at(self.last_denied_at)
            ));
        }
        let your_votes = format!(
            "{} to approve, {} to deny",
            self.approved_by_caller, self.denied_by_caller
        );
        vec![
            similar,
            CardRow::own("your votes", &your_votes),
            CardRow::own(
                "today",
                &format!(
                    "{} requested (UTC), this one included",
                    self.requested_today
                ),
            ),
        ]
    }
}

/// An agent's registration, which are claims of the security team. `whose`: what stands before each label.
fn registration(whose: &str, registered: &Option<super::AgentRegistration>) -> Vec<CardRow> {
    let label = |name: &str| format!("{whose}{name}");
    match registered {
        Some(claims) => vec![
            CardRow::known(&label("environment"), &claims.environment),
            CardRow::known(&label("model"), &claims.model),
            CardRow::known(&label("autonomy"), &claims.autonomy),
        ],
        None => vec![CardRow::alarm(
            &label("registered"),
            "NOT ANY MORE: the policy bundle does not list this agent",
        )],
    }
}

impl ProfileProgress {
    fn row(&self) -> CardRow {
        let mut row = CardRow::new("needs", self.profile.name.as_str());
        let how = if self.passkey { ", by passkey" } else { "" };
        row.lines.push(format!(
            "{} of {} from {}{how}",
            self.approvers.len(),
            self.quorum,
            escape_untrusted(&self.group)
        ));
        for approval in &self.approvers {
            let who = approval.person.to_text();
            row.add_suspect(&who);
            row.lines.push(format!(
                "approved: {}, {}",
                escape_untrusted(&who),
                approval.method.signed_by()
            ));
        }
        for note in &self.key_notes {
            row.lines.push(format!("key: {}", escape_untrusted(note)));
        }
        row
    }
}

impl PersonRef {
    /// `Dana Ruiz (dana)`; the id alone where there is no name. Not yet escaped.
    pub(super) fn to_text(&self) -> String {
        match &self.name {
            Some(name) if name != self.id.as_str() => format!("{name} ({})", self.id),
            Some(_) | None => self.id.to_string(),
        }
    }
}

impl CardRow {
    /// A row with fixed text, which is safe.
    fn own(label: &str, text: &str) -> Self {
        Self {
            label: label.to_owned(),
            caption: None,
            lines: vec![text.to_owned()],
            extent: None,
            tone: Tone::Plain,
            flags: Vec::new(),
        }
    }

    /// A row with untrusted text: it is escaped and checked.
    fn new(label: &str, text: &str) -> Self {
        let mut row = Self::own(label, &plain_or_quoted(text));
        row.add_suspect(text);
        row
    }

    /// The same; an absent text is shown as unknown.
    fn known(label: &str, text: &str) -> Self {
        if text.is_empty() {
            Self::unknown(label, "unknown")
        } else {
            Self::new(label, text)
        }
    }

    fn unknown(label: &str, text: &str) -> Self {
        Self {
            tone: Tone::Unknown,
            ..Self::own(label, text)
        }
    }

    fn alarm(label: &str, text: &str) -> Self {
        Self {
            tone: Tone::Alarm,
            ..Self::own(label, text)
        }
    }

    fn quiet(label: &str, text: &str) -> Self {
        Self {
            tone: Tone::Quiet,
            ..Self::new(label, text)
        }
    }

    fn strong(self) -> Self {
        Self {
            tone: Tone::Strong,
            ..self
        }
    }

    /// Adds a line of untrusted text, unless it is empty.
    fn add(&mut self, text: &str) {
        if !text.is_empty() {
            self.add_suspect(text);
            self.lines.push(plain_or_quoted(text));
        }
    }

    fn add_suspect(&mut self, text: &str) {
        self.add_flags(confusable_warnings(text));
    }

    fn add_flags(&mut self, flags: impl IntoIterator<Item = String>) {
        let before = std::mem::take(&mut self.flags);
        self.flags = distinct(before.into_iter().chain(flags));
    }
}

fn is_composed(param: &Param) -> bool {
    match param {
        Param::Set(_) | Param::Record(_) => true,
        Param::Str(_) | Param::Bool(_) | Param::Int(_) => false,
    }
}

/// Before each value of a set: a set of one value is not the value.
const SET_ITEM: &str = "• ";

/// One value, a text in lines. Text is quoted: `"true"` is not `true`.
fn plain(param: &Param, mark: &str) -> Vec<String> {
    let shown = match param {
        Param::Str(text) => quoted(text),
        Param::Bool(yes) => yes.to_string(),
        Param::Int(n) => n.to_string(),
        Param::Set(_) => "an empty set".to_owned(),
        Param::Record(_) => "an empty record".to_owned(),
    };
    in_lines(&format!("{mark}{shown}"))
}

/// Whether a title is the last name of a parameter's path in other letters: `End sessions` for `end_sessions`.
fn is_same_name(title: &str, path: &str) -> bool {
    let letters = |text: &str| -> String {
        let shown = text.chars().filter(|c| !matches!(c, ' ' | '_' | '-'));
        shown.map(|c| c.to_ascii_lowercase()).collect()
    };
    letters(title) == letters(path.rsplit('.').next().unwrap_or(path))
}

fn suspect_param(param: &Param) -> Vec<String> {
    match param {
        Param::Str(text) => confusable_warnings(text),
        Param::Bool(_) | Param::Int(_) | Param::Set(_) | Param::Record(_) => Vec::new(),
    }
}

/// `in 5m` or `5m ago`.
fn relative_time(at: Timestamp, now: Timestamp) -> String {
    let seconds = at.since(now) / 1_000;
    if seconds > 0 {
        format!("in {}", format_seconds(seconds))
    } else {
        format!("{} ago", format_seconds(seconds.saturating_neg()))
    }
}
