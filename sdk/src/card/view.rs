//! A rendered card: headline, sections and rows of text that is safe to print.

use super::AccessRequestStatus;
use super::escape::cut_shown;
use crate::model::*;

/// How much of a long value is shown at first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoldLimits {
    /// Most characters.
    pub chars: usize,
    /// Most lines of a value that is shown whole: the items of a short set are all seen.
    pub whole_lines: usize,
    /// Most lines of the beginning of one that is not.
    pub lines: usize,
}

impl FoldLimits {
    /// For a parameter.
    pub const VALUE: Self = Self {
        chars: 240,
        whole_lines: 16,
        lines: 4,
    };
    /// For one of many parameters, where the others must be seen beside it.
    pub const ONE_OF_MANY: Self = Self {
        chars: 72,
        whole_lines: 6,
        lines: 3,
    };
    /// For one of the agent's texts.
    pub const AGENT_WORDS: Self = Self {
        chars: 500,
        whole_lines: 4,
        lines: 4,
    };
}

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
    /// The object: the target's id, in quotes where the policy bundle does not have the target, because an agent chose it.
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
    /// With which parameters, all of them?
    Parameters,
    /// What does a proposed policy bundle change?
    Changes,
    /// What would it end, and have decided?
    Plan,
    /// What is known of the target?
    Target,
    /// What happens, and can it be undone?
    Effect,
    /// What is unusual?
    Unusual,
    /// How were similar requests decided?
    History,
    /// Who requests it?
    Who,
    /// Why is approval required?
    Why,
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
            Self::Changes => "changes",
            Self::Plan => "plan",
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
            Self::Changes => "Changes of the policy bundle",
            Self::Plan => "Plan of the broker (not signed)",
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
    /// The whole value, at least one line. A quoted text goes on in the next line after each of its line breaks.
    pub lines: Vec<String>,
    /// How long the value is; absent for one that is never folded.
    pub extent: Option<Extent>,
    /// The emphasis.
    pub tone: Tone,
    /// Warnings about how it is written: each once, the first six, then how many more.
    pub flags: Vec<String>,
}

/// What tells a long value from others that begin alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extent {
    /// `4096 characters in 17 lines`, or `12 values`.
    pub length: String,
    /// SHA-256 in hexadecimal: of the UTF-8 bytes of a text, of the canonical JSON (RFC 8785) of a set.
    pub digest: String,
}

impl CardSection {
    /// Whether the heading says what the row's label says.
    pub fn is_named_by_heading(&self, row: &CardRow) -> bool {
        self.title.eq_ignore_ascii_case(&row.label) || row.label == "with"
    }
}

impl CardRow {
    /// The label below the section's heading: without `with` and `target`.
    pub fn label_in_section(&self) -> &str {
        let named = ["with ", "target "];
        let mut names = named
            .iter()
            .filter_map(|word| self.label.strip_prefix(word));
        names.next().unwrap_or(&self.label)
    }

    /// How much of the value is shown at first, unless many stand side by side.
    pub const fn fold_limits(&self) -> FoldLimits {
        match self.tone {
            Tone::Quoted => FoldLimits::AGENT_WORDS,
            Tone::Plain | Tone::Strong | Tone::Alarm | Tone::Unknown | Tone::Quiet => {
                FoldLimits::VALUE
            }
        }
    }

    /// The beginning of a value that is longer than this, the last line cut short, and what tells it from others; none if all
    /// of it is to be shown.
    pub fn fold(&self, limits: FoldLimits) -> Option<(Vec<String>, &Extent)> {
        let extent = self.extent.as_ref()?;
        let chars = self.lines.iter().map(|line| line.chars().count());
        if self.lines.len() <= limits.whole_lines && chars.sum::<usize>() <= limits.chars {
            return None;
        }
        let mut left = limits.chars;
        let mut head = Vec::new();
        for line in self.lines.iter().take(limits.lines) {
            let (first, more) = cut_shown(line, left);
            left = left.saturating_sub(first.chars().count());
            let first = first.trim_end_matches(' ');
            // A line of which nothing is left would look like the end of the value.
            if more == 0 || !first.is_empty() {
                head.push(first.to_owned());
            }
            if more > 0 || left == 0 {
                break;
            }
        }
        (head != self.lines).then_some((head, extent))
    }
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
