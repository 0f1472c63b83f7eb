//! A rendered card: headline, sections and rows of text that is safe to print.

use super::AccessRequestStatus;
use crate::model::*;

/// Most characters shown of each of the agent's texts; the view states how many are left out.
pub const AGENT_WORDS_MAX: usize = 500;

/// A rendered card. Every text is plain, safe and one line; the layout escapes it for its own markup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CardView {
    /// The access request.
    pub access_request: AccessRequestId,
    /// Its status.
    pub status: AccessRequestStatus,
    /// Verb and object.
    pub headline: Headline,
    /// The match phrase.
    pub phrase: String,
    /// When the access request expires, RFC 3339 in UTC.
    pub deadline: String,
    /// Seconds until then; 0 after it.
    pub left_s: i64,
    /// The same in words: `14m 12s`.
    pub left: String,
    /// Seconds the card must have been shown before an approval is accepted.
    pub dwell_s: u32,
    /// The console's page of the access request.
    pub console_url: Option<String>,
    /// Everything else, in the order to read it. No section is empty.
    pub sections: Vec<CardSection>,
}

/// Verb and object: what an approver reads first, and the inbox and chats show alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Headline {
    /// The verb: the catalogue's title, or the action's name where it has none.
    pub verb: String,
    /// The object: the target's id.
    pub object: String,
    /// The target's type.
    pub object_type: String,
    /// The target's attribute `environment`, where the policy bundle has one.
    pub environment: Option<String>,
    /// The action's name, as rules and tokens have it.
    pub action: String,
    /// Its risk; absent when the catalogue does not say.
    pub risk: Option<Risk>,
    /// `HIGH RISK`, or `RISK UNKNOWN`.
    pub risk_word: String,
    /// Warnings about how verb or object are written.
    pub flags: Vec<String>,
}

/// Rows that answer one question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CardSection {
    /// The question.
    pub kind: SectionKind,
    /// The question as a heading.
    pub title: &'static str,
    /// At least one.
    pub rows: Vec<CardRow>,
}

/// The questions, in the order they are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SectionKind {
    /// Who requests it?
    Who,
    /// Why is approval required?
    Why,
    /// What happens, and can it be undone?
    Effect,
    /// With which parameters, all of them?
    Parameters,
    /// What is known of the target?
    Target,
    /// What is unusual?
    Unusual,
    /// How were similar requests decided?
    History,
    /// What would the token allow?
    Token,
    /// Who must approve, and who has?
    Needs,
    /// What else is signed?
    Signed,
    /// What does the agent say?
    Words,
}

impl SectionKind {
    /// A word for ids and classes: lowercase letters.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Who => "who",
            Self::Why => "why",
            Self::Effect => "effect",
            Self::Parameters => "parameters",
            Self::Target => "target",
            Self::Unusual => "unusual",
            Self::History => "history",
            Self::Token => "token",
            Self::Needs => "needs",
            Self::Signed => "signed",
            Self::Words => "words",
        }
    }

    pub(super) const fn title(self) -> &'static str {
        match self {
            Self::Who => "Requester",
            Self::Why => "Why approval is required",
            Self::Effect => "Effect",
            Self::Parameters => "Parameters",
            Self::Target => "Target",
            Self::Unusual => "Unusual",
            Self::History => "History",
            Self::Token => "Token",
            Self::Needs => "Required approvals",
            Self::Signed => "Also signed",
            Self::Words => "The agent says (unverified)",
        }
    }
}

/// A label and its value. A parameter's label begins with `with` and an attribute's with `target`, so that no name
/// chosen by others is the label of another row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CardRow {
    /// The subject of the row: a fixed word, and after `with` and `target` a name.
    pub label: String,
    /// The catalogue's title of a parameter.
    pub caption: Option<String>,
    /// The value, one line each, at least one.
    pub lines: Vec<String>,
    /// The emphasis.
    pub tone: Tone,
    /// Warnings about how it is written: each once, the first six, then how many more.
    pub flags: Vec<String>,
}

/// The emphasis of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tone {
    /// Ordinary text.
    Plain,
    /// To be read first.
    Strong,
    /// A reason to stop.
    Alarm,
    /// An unknown value.
    Unknown,
    /// Ids and digests, for comparison.
    Quiet,
    /// Words of the agent, in quotes.
    Quoted,
}

impl Tone {
    /// A word for classes: lowercase letters.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Strong => "strong",
            Self::Alarm => "alarm",
            Self::Unknown => "unknown",
            Self::Quiet => "quiet",
            Self::Quoted => "quoted",
        }
    }
}
