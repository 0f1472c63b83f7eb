//! Card renderer: a card in sections of rows. Every text in it is safe to print and is one line.

use super::confusables::{cap_flags, confusable_warnings, distinct};
use super::view::{AGENT_WORDS_MAX, CardRow, CardSection, CardView, Headline, SectionKind, Tone};
use super::{Card, History, PersonRef, ProfileProgress, escape_untrusted, quoted};
use crate::model::*;

impl Card {
    /// Renders the card for a reader at this time.
    pub fn show(&self, now: Timestamp) -> CardView {
        let left_s = self.expires_at.since(now).max(0) / 1_000;
        let sections = [
            (SectionKind::Who, self.requester(now)),
            (SectionKind::Why, self.rules()),
            (SectionKind::Effect, self.effect()),
            (SectionKind::Parameters, self.parameters()),
            (SectionKind::Target, self.target()),
            (SectionKind::Unusual, self.anomalies()),
            (SectionKind::History, self.history(now)),
            (SectionKind::Token, self.token()),
            (SectionKind::Needs, self.needs()),
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
                    title: kind.title(),
                    rows,
                }
            });
        CardView {
            access_request: self.access_request,
            status: self.status,
            headline: self.headline(),
            phrase: self.phrase().to_string(),
            deadline: self.expires_at.to_string(),
            left_s,
            left: format_seconds(left_s),
            dwell_s: self.dwell_s,
            console_url: self.console_url.as_deref().map(escape_untrusted),
            sections: sections.collect(),
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
        Headline::new(&self.title, self.action.as_deref(), environment, self.risk)
    }

    fn requester(&self, now: Timestamp) -> Vec<CardRow> {
        let agent = CardRow::new("agent", self.agent.id.as_str()).strong();
        let owner = CardRow::new("owner", &self.agent.owner.to_text());
        let attestation = &self.verified;
        let mut verified = CardRow::new("verified", attestation.subject.as_str());
        verified.lines.push(format!(
            "by {}, {} ({})",
            escape_untrusted(&attestation.kind),
            relative_time(attestation.verified_at, now),
            attestation.verified_at
        ));
        let claims = match &self.agent.registered {
            Some(claims) => vec![
                CardRow::known("environment", &claims.environment),
                CardRow::known("model", &claims.model),
                CardRow::known("autonomy", &claims.autonomy),
            ],
            None => vec![CardRow::alarm(
                "registered",
                "NOT ANY MORE: the policy bundle does not list this agent",
            )],
        };
        [agent, owner, verified].into_iter().chain(claims).collect()
    }

    fn rules(&self) -> Vec<CardRow> {
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
        self.rules.iter().map(row).collect()
    }

    fn effect(&self) -> Vec<CardRow> {
        let for_good = self.reversible.trim().eq_ignore_ascii_case("no");
        let mut rows = vec![
            CardRow::known("effect", &self.effect),
            match for_good {
                true => CardRow::alarm("reversible", "NO: it cannot be undone"),
                false => CardRow::known("reversible", &self.reversible),
            },
        ];
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
        row.caption = self
            .parameter_titles
            .get(pattern)
            .map(|title| escape_untrusted(title));
        row.flags = row
            .caption
            .iter()
            .flat_map(|title| confusable_warnings(title))
            .collect();
        match param {
            Param::Record(members) if !members.is_empty() => {
                if row.caption.is_some() {
                    row.lines = vec![format!("{} parts:", members.len())];
                    rows.push(row);
                }
                for (name, member) in members {
                    let (path, pattern) = (format!("{path}.{name}"), format!("{pattern}.{name}"));
                    self.parameter(&path, &pattern, member, rows);
                }
            }
            Param::Set(items) if items.iter().any(is_composed) => {
                row.lines = vec![format!("{} values:", items.len())];
                rows.push(row);
                for (n, item) in (1..).zip(items) {
                    let (path, pattern) = (format!("{path}[{n}]"), format!("{pattern}[]"));
                    self.parameter(&path, &pattern, item, rows);
                }
            }
            Param::Set(items) if !items.is_empty() => {
                row.lines = items.iter().map(plain).collect();
                row.add_flags(items.iter().flat_map(suspect_param));
                rows.push(row);
            }
            Param::Str(_) | Param::Bool(_) | Param::Int(_) | Param::Set(_) | Param::Record(_) => {
                row.lines = vec![plain(param)];
                row.add_flags(suspect_param(param));
                rows.push(row);
            }
        }
    }

    fn target(&self) -> Vec<CardRow> {
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
        let life = format_seconds(self.max_ttl);
        let mut rows = vec![CardRow::own("token", &format!("at most {life}, {uses}"))];
        if let Some(action) = &self.action {
            rows.push(CardRow::new("only for", action.audience.as_str()));
        }
        rows.push(CardRow::own("bound to", "the task's key"));
        rows
    }

    fn needs(&self) -> Vec<CardRow> {
        if self.needs.is_empty() {
            return vec![CardRow::unknown("needs", "unknown: no profile is recorded")];
        }
        self.needs.iter().map(ProfileProgress::row).collect()
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
            CardRow::quiet("task", &self.task.to_string()),
            CardRow::quiet("task key", &self.task_key.to_string()),
            CardRow::quiet("policy", &self.policy.to_string()),
        ]);
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
                let head: String = text.chars().take(AGENT_WORDS_MAX).collect();
                let more = text.chars().count().saturating_sub(AGENT_WORDS_MAX);
                let mut row = CardRow::own(label, &quoted(&head));
                if more > 0 {
                    row.lines
                        .push(format!("and {more} more characters, not shown"));
                }
                row.tone = Tone::Quoted;
                row.flags = confusable_warnings(&head);
                row
            })
            .collect()
    }
}

impl Headline {
    /// From the catalogue's title and risk, the action, and the target's attribute `environment`; also for rows of the inbox.
    pub fn new(
        title: &str,
        action: Option<&Action>,
        environment: Option<&str>,
        risk: Option<Risk>,
    ) -> Self {
        let name = action.map(|a| a.name.as_str()).unwrap_or_default();
        let (object, object_type) = match action {
            Some(action) => (
                escape_untrusted(&action.target.id),
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
        for who in &self.approvers {
            row.add_suspect(&who.to_text());
            row.lines
                .push(format!("approved: {}", escape_untrusted(&who.to_text())));
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
            tone: Tone::Plain,
            flags: Vec::new(),
        }
    }

    /// A row with untrusted text: it is escaped and checked.
    fn new(label: &str, text: &str) -> Self {
        let shown = if text.is_empty() {
            "(empty)".to_owned()
        } else {
            escape_untrusted(text)
        };
        let mut row = Self::own(label, &shown);
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
            self.lines.push(escape_untrusted(text));
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

/// One value on one line. Text is quoted: `"true"` is not `true`.
fn plain(param: &Param) -> String {
    match param {
        Param::Str(text) => quoted(text),
        Param::Bool(yes) => yes.to_string(),
        Param::Int(n) => n.to_string(),
        Param::Set(_) => "an empty set".to_owned(),
        Param::Record(_) => "an empty record".to_owned(),
    }
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
